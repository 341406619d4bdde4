//! Where the etcd is and how to speak with it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Identity, TlsOptions};
use tonic::transport::{Certificate, Endpoint};

use crate::Error;
use crate::etcd::fault::chain;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How much one stream may send that nobody has read yet, in bytes: what a slow watch costs here.
const STREAM_WINDOW: u32 = 1 << 20;

/// Which etcd an [`EtcdStore`](crate::EtcdStore) uses, and for whom.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// The members' client URLs, `https://host:port`, or `http://host:port` without [`tls`](Self::tls). The first
    /// one that answers is used.
    pub endpoints: Vec<String>,
    /// Names the cluster whose keys these are: they live under `/meshd/<cluster>/`.
    pub cluster: String,
    /// For `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// How long an operation goes on trying before it is [`Error::Unreachable`] or [`Error::Unknown`].
    pub timeout: Duration,
}

/// Whom to trust, and who we are. All in PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authorities that may have signed the members' certificates.
    pub ca: String,
    /// What to show to members that ask (`--client-cert-auth`).
    pub client: Option<EtcdClientCertificate>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct EtcdClientCertificate {
    /// The certificate, and those between it and its authority.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl fmt::Debug for EtcdClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdClientCertificate")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl EtcdOptions {
    /// Plain connections and a timeout of 5 seconds.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>, cluster: impl Into<String>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            cluster: cluster.into(),
            tls: None,
            timeout: Duration::from_secs(5),
        }
    }

    /// The endpoints, ready to be dialled.
    pub(super) fn members(&self) -> Result<Vec<Member>, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Options("no etcd endpoint is given".to_owned()));
        }
        self.endpoints.iter().map(|url| self.member(url)).collect()
    }

    fn member(&self, url: &str) -> Result<Member, Error> {
        let wrong = |why: &str| Error::Options(format!("etcd endpoint {url}: {why}"));
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|err| wrong(&chain(&err)))?;
        let endpoint = match (endpoint.uri().scheme_str(), &self.tls) {
            (Some("http"), None) => endpoint,
            (Some("http"), Some(_)) => return Err(wrong("certificates are given, so it has to be https://")),
            (Some("https"), None) => return Err(wrong("https:// needs the CA that signed its certificate")),
            (Some("https"), Some(tls)) => {
                endpoint.tls_config(tls.client_config()?).map_err(|err| wrong(&chain(&err)))?
            }
            _ => return Err(wrong("expected http://host:port or https://host:port")),
        };
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).initial_stream_window_size(STREAM_WINDOW);
        Ok(Member { url: url.into(), endpoint })
    }
}

impl EtcdTls {
    fn client_config(&self) -> Result<TlsOptions, Error> {
        let missing = |what: &str, pem: &str, kind: &str| {
            let wanted = format!("-----BEGIN {kind}");
            let there = pem.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(kind));
            (!there).then(|| Error::Options(format!("{what} for etcd is no PEM: no {wanted} in it")))
        };
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.ca));
        let mut problem = missing("the CA", &self.ca, "CERTIFICATE");
        if let Some(client) = &self.client {
            config = config.identity(Identity::from_pem(&client.certificate, &client.key));
            problem = problem
                .or_else(|| missing("the client certificate", &client.certificate, "CERTIFICATE"))
                .or_else(|| missing("the client key", &client.key, "PRIVATE KEY"));
        }
        problem.map_or(Ok(config), Err)
    }
}

/// One member of the etcd cluster, as an address.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) url: Arc<str>,
    pub(super) endpoint: Endpoint,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(endpoints: &[&str], tls: Option<EtcdTls>) -> String {
        let options = EtcdOptions { tls, ..EtcdOptions::new(endpoints.to_vec(), "blue") };
        match options.members() {
            Err(Error::Options(text)) => text,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[tokio::test]
    async fn what_can_not_work_is_refused_at_once() {
        let tls = |ca: &str| Some(EtcdTls { ca: ca.to_owned(), client: None });
        assert!(refusal(&[], None).contains("no etcd endpoint"));
        assert!(refusal(&["etcd:2379"], None).contains("expected http://host:port"));
        assert!(refusal(&["not a url"], None).contains("not a url"));
        assert!(refusal(&["https://etcd:2379"], None).contains("needs the CA"));
        assert!(refusal(&["http://etcd:2379"], tls("")).contains("https://"));
        assert!(refusal(&["https://etcd:2379"], tls("garbage")).contains("the CA for etcd is no PEM"));
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let client = EtcdClientCertificate { certificate: "public".to_owned(), key: "secret".to_owned() };
        let printed = format!("{:?}", EtcdTls { ca: String::new(), client: Some(client) });
        assert!(printed.contains("public") && !printed.contains("secret"), "{printed}");
    }
}
