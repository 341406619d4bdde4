//! rustls configurations: TLS 1.3, ring, and no session resumption, so that every connection proves itself anew
//! (a session resumed would outlive the removal of its node).
//!
//! What is spoken inside is HTTP/2.

mod lapsed;
mod pinned;

use std::io;
use std::sync::Arc;

use mesh_model::Role;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::authority::roots;
use crate::identity::role_name;
use crate::tls::lapsed::LapsedToo;
use crate::tls::pinned::PinnedAuthority;
use crate::{AuthorityCertificate, Credentials, Error, Fingerprint};

/// HTTP/2, as ALPN names it (RFC 9113, 3.1).
const PROTOCOL: &[u8] = b"h2";
/// The name that the certificates of managers have, and no others.
pub const MANAGER_NAME: &str = role_name(Role::Manager);

/// The name to connect with, whatever the address is: that of the manager role. So the usual check of the server's
/// name is the check that it is a manager.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(role_name(Role::Manager)).expect("a DNS name")
}

/// For a node that is about to join: accepts only a manager of the cluster whose CA has this fingerprint, and shows no
/// certificate. Connect with [`server_name`].
pub fn pinned_client_config(authority: Fingerprint) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(PinnedAuthority::new(authority, provider()));
    let config = client_builder(verifier)?.with_no_client_auth();
    Ok(unresumed(config))
}

/// What a failed handshake means here: a clearer answer than its own, if there is one.
pub fn handshake_refusal(err: &io::Error) -> Option<&Error> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    match err.get_ref()?.downcast_ref::<Tls>()? {
        Tls::Other(other) => other.0.downcast_ref::<Error>(),
        Tls::InvalidCertificate(bad) if is_of_another_time(bad) => Some(&Error::Clock),
        Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => Some(&Error::ForeignManager),
        // Ours may be expired: that is accepted, and renewed. It is from the manager's future, then.
        Tls::AlertReceived(Alert::CertificateExpired) => Some(&Error::Clock),
        Tls::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => Some(&Error::Unknown),
        _ => None,
    }
}

impl Credentials {
    /// For a manager: accepts nodes of this CA, and those that show no certificate (they can only join; ask
    /// [`peer_identity`](crate::peer_identity) who is there). A certificate of another CA ends the handshake; an
    /// expired one does not: ask [`validity`](crate::validity), and let it do nothing but renew itself. The CA is sent
    /// along, for those who know its fingerprint only, and the bridge to it, for those who know the one before.
    pub fn server_config(&self) -> Result<ServerConfig, Error> {
        let clients = Arc::new(LapsedToo::new(client_verifier(roots(self.trusted())?, true)?));
        let mut chain = vec![self.certificate().clone(), self.authority().der().clone()];
        chain.extend(self.bridge().cloned());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, self.private_key())?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    /// For an agent: shows its certificate and accepts only managers of the CAs it trusts. Connect with [`server_name`].
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let verifier = manager_verifier(self.trusted(), provider())?;
        let chain = vec![self.certificate().clone()];
        let config = client_builder(verifier)?.with_client_auth_cert(chain, self.private_key())?;
        Ok(unresumed(config))
    }
}

/// Whether `certificate` was issued by `authority` to a node and is valid at `now`.
pub(crate) fn verify_node(
    authority: &AuthorityCertificate,
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let verified = client_verifier(authority.roots()?, false)?.verify_client_cert(certificate, &[], now);
    verified.map(drop).map_err(|err| match err {
        rustls::Error::InvalidCertificate(bad) if is_of_another_time(&bad) => Error::Clock,
        other => other.into(),
    })
}

fn is_of_another_time(bad: &CertificateError) -> bool {
    use CertificateError as Bad;
    matches!(
        bad,
        Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. }
    )
}

/// Never the process's default: another crate could have set it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client_verifier(roots: RootCertStore, or_none: bool) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if or_none { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(unusable)
}

fn manager_verifier(
    authorities: &[AuthorityCertificate],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let roots = Arc::new(roots(authorities)?);
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    Ok(verifier.map_err(unusable)?)
}

fn unusable(err: rustls::client::VerifierBuilderError) -> Error {
    Error::Tls(rustls::Error::General(err.to_string()))
}

type ClientBuilder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_builder(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientBuilder, Error> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    // "Dangerous" is any verifier but that of the public web.
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

fn unresumed(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config
}
