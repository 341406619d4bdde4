//! An etcd that somebody else than `meshd` runs.

use std::process::Stdio;

use anyhow::Result;

use crate::host::Host;
use crate::process::Background;

/// The etcd of a site, which clients reach at one URL. It has etcd's own limits and ends when dropped.
#[derive(Debug)]
pub struct SiteEtcd {
    /// Where clients reach it.
    pub url: String,
    /// What it is asked for over TLS.
    pub tls: Option<SiteTls>,
    _process: Background,
}

/// Files in the lab, all in PEM: one authority, and one certificate for both sides.
#[derive(Debug, Clone)]
pub struct SiteTls {
    /// The authority.
    pub ca: String,
    /// The certificate of etcd, which clients may show too.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl SiteEtcd {
    /// Starts one without certificates, for clients of its own host.
    pub fn plain(host: &Host, port: u16) -> Result<Self> {
        Self::start(host, format!("http://127.0.0.1:{port}"), port, None)
    }

    /// Starts one that speaks TLS alone, and with clients that show a certificate of its authority; for every host.
    pub fn tls(host: &Host, port: u16) -> Result<Self> {
        let base = format!("/run/lab/{}", host.name());
        let address = host.ip();
        host.shell(&format!(
            "cd {base} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -keyout ca.key \
             -out ca.pem -subj /CN=site -addext basicConstraints=critical,CA:TRUE && \
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout etcd.key -out etcd.csr -subj /CN=etcd && \
             openssl x509 -req -in etcd.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -out etcd.pem \
             -extfile <(echo subjectAltName=IP:{address})"
        ))
        .ok()?;
        let file = |name: &str| format!("{base}/{name}");
        let tls = SiteTls { ca: file("ca.pem"), cert: file("etcd.pem"), key: file("etcd.key") };
        Self::start(host, format!("https://{address}:{port}"), port, Some(tls))
    }

    fn start(host: &Host, url: String, port: u16, tls: Option<SiteTls>) -> Result<Self> {
        let peer = format!("http://127.0.0.1:{}", port + 1);
        let options = tls.as_ref().map(|SiteTls { ca, cert, key }| {
            format!("--client-cert-auth --trusted-ca-file={ca} --cert-file={cert} --key-file={key}")
        });
        let line = format!(
            "exec etcd --data-dir=/run/lab/{0}/site-{port} --logger=zap --log-outputs=stderr \
             --listen-client-urls={url} --advertise-client-urls={url} --listen-peer-urls={peer} \
             --initial-advertise-peer-urls={peer} --initial-cluster=default={peer} {1}",
            host.name(),
            options.unwrap_or_default()
        );
        let process = host.spawn_into(&["bash", "-c", &line], Stdio::null(), Stdio::null())?;
        Ok(Self { url, tls, _process: process })
    }
}
