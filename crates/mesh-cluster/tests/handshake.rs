//! Who gets through a TLS handshake with whom. Real handshakes over a pipe; rustls asks the system for the time.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_cluster::{
    Authority, Credentials, Error, Fingerprint, PeerIdentity, handshake_refusal, peer_identity,
    pinned_client_config, server_name,
};
use mesh_model::{ClusterId, NodeId, Role};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const DAY: u64 = 24 * 60 * 60;
const MANAGER: NodeId = NodeId::from_bits(0xa);
const WORKER: NodeId = NodeId::from_bits(0xb);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn authority() -> Authority {
    Authority::generate(ClusterId::from_bits(1), now()).unwrap()
}

fn credentials(authority: &Authority, node: NodeId, role: Role) -> Credentials {
    Credentials::issue(authority, node, role, now(), 90 * DAY).unwrap()
}

/// What each side made of it: the server's view of the client, and what the client read.
struct Outcome {
    server: io::Result<Option<PeerIdentity>>,
    client: io::Result<Vec<u8>>,
}

/// One connection: the server says "hello" to whom it accepts.
async fn connect(server: ServerConfig, client: ClientConfig) -> Outcome {
    let (near, far) = tokio::io::duplex(4096);
    let serve = async move {
        let mut tls = TlsAcceptor::from(Arc::new(server)).accept(near).await?;
        let certificate = tls.get_ref().1.peer_certificates().map(|chain| chain[0].clone());
        tls.write_all(b"hello").await?;
        tls.shutdown().await?;
        Ok(certificate.map(|der| peer_identity(&der).expect("one of ours")))
    };
    let ask = async move {
        let mut tls = TlsConnector::from(Arc::new(client)).connect(server_name(), far).await?;
        let mut text = Vec::new();
        tls.read_to_end(&mut text).await?;
        Ok(text)
    };
    let (server, client) = tokio::join!(serve, ask);
    Outcome { server, client }
}

impl Outcome {
    fn accepted(self) -> Option<PeerIdentity> {
        assert_eq!(self.client.expect("the client accepts"), b"hello");
        self.server.expect("the server accepts")
    }

    /// Neither side got anything out of it; the client's reason.
    fn refused_by_client(self) -> io::Error {
        assert!(self.server.is_err(), "the server must not believe the handshake done");
        self.client.expect_err("the client refuses")
    }

    fn refused_by_server(self) -> io::Error {
        assert!(self.client.is_err(), "the client must not read anything");
        self.server.expect_err("the server refuses")
    }
}

#[tokio::test]
async fn nodes_of_a_cluster_know_each_other() {
    let ca = authority();
    let manager = credentials(&ca, MANAGER, Role::Manager);
    for (node, role) in [(WORKER, Role::Worker), (MANAGER, Role::Manager)] {
        let agent = credentials(&ca, node, role);
        let outcome = connect(manager.server_config().unwrap(), agent.client_config().unwrap()).await;
        assert_eq!(outcome.accepted(), Some(PeerIdentity { node, role }));
    }
}

#[tokio::test]
async fn a_joining_node_is_anonymous_and_knows_the_manager_by_fingerprint() {
    let ca = authority();
    let manager = credentials(&ca, MANAGER, Role::Manager);
    let joining = pinned_client_config(ca.certificate().fingerprint()).unwrap();
    assert_eq!(connect(manager.server_config().unwrap(), joining).await.accepted(), None);
}

#[tokio::test]
async fn another_fingerprint_ends_the_join_with_a_clear_line() {
    let manager = credentials(&authority(), MANAGER, Role::Manager);
    for fingerprint in [authority().certificate().fingerprint(), Fingerprint::of(b"")] {
        let joining = pinned_client_config(fingerprint).unwrap();
        let err = connect(manager.server_config().unwrap(), joining).await.refused_by_client();
        assert!(matches!(handshake_refusal(&err), Some(Error::WrongAuthority)), "{err}");
    }
}

#[tokio::test]
async fn showing_the_pinned_ca_is_not_enough() {
    let (ca, impostor) = (authority(), authority());
    let forged = leaf(&impostor, &["manager.role.mesh.internal"], now());
    let joining = || pinned_client_config(ca.certificate().fingerprint()).unwrap();
    // The impostor's own leaf, followed by the CA that the token names: it is public.
    let server = forged.server(&ca);
    connect(server, joining()).await.refused_by_client();
    // The true CA as the leaf.
    let mut server = forged.server(&ca);
    server.cert_resolver = forged.resolver(&[ca.certificate().der().clone()]);
    connect(server, joining()).await.refused_by_client();
}

#[tokio::test]
async fn a_foreign_ca_is_refused_by_either_side() {
    let (ours, theirs) = (authority(), authority());
    let manager = credentials(&ours, MANAGER, Role::Manager);
    let stranger = credentials(&theirs, WORKER, Role::Worker);
    let outcome = connect(manager.server_config().unwrap(), stranger.client_config().unwrap()).await;
    outcome.refused_by_client();

    // A stranger who does not care whom it talks to: the server must.
    let pinned = pinned_client_config(ours.certificate().fingerprint()).unwrap();
    let mut careless = stranger.client_config().unwrap();
    careless.dangerous().set_certificate_verifier(verifier_of(&manager));
    connect(manager.server_config().unwrap(), careless).await.refused_by_server();
    assert_eq!(connect(manager.server_config().unwrap(), pinned).await.accepted(), None);
}

#[tokio::test]
async fn a_worker_is_no_manager() {
    let ca = authority();
    let agent = || credentials(&ca, WORKER, Role::Worker).client_config().unwrap();
    let joining = || pinned_client_config(ca.certificate().fingerprint()).unwrap();
    let worker = || credentials(&ca, WORKER, Role::Worker).server_config().unwrap();
    connect(worker(), agent()).await.refused_by_client();
    connect(worker(), joining()).await.refused_by_client();

    // Even if its certificate were one of a server, its name is that of a worker.
    let serving = leaf(&ca, &["000000000000000b.node.mesh.internal", "worker.role.mesh.internal"], now());
    for client in [agent(), joining()] {
        let err = connect(serving.server(&ca), client).await.refused_by_client();
        assert!(err.to_string().contains("not valid for name"), "{err}");
    }
    // The same one, but of a manager, is accepted: it was the name.
    let managing = leaf(&ca, &["000000000000000a.node.mesh.internal", "manager.role.mesh.internal"], now());
    connect(managing.server(&ca), agent()).await.accepted();
}

#[tokio::test]
async fn an_expired_certificate_proves_a_node_but_no_manager() {
    let long_ago = now() - 91 * DAY;
    let ca = Authority::generate(ClusterId::from_bits(1), long_ago).unwrap();
    let manager = credentials(&ca, MANAGER, Role::Manager);
    let expired = |node, role| Credentials::issue(&ca, node, role, long_ago, 90 * DAY).unwrap();
    let client = expired(WORKER, Role::Worker);
    assert!(client.validity().until < now(), "the server has to ask");
    let outcome = connect(manager.server_config().unwrap(), client.client_config().unwrap()).await;
    assert_eq!(outcome.accepted(), Some(PeerIdentity { node: WORKER, role: Role::Worker }));

    let server = expired(MANAGER, Role::Manager).server_config().unwrap();
    let client = credentials(&ca, WORKER, Role::Worker).client_config().unwrap();
    let err = connect(server, client).await.refused_by_client();
    assert!(matches!(handshake_refusal(&err), Some(Error::Clock)), "{err}");
}

#[tokio::test]
async fn certificates_of_the_future_are_refused_by_either_side() {
    let ahead = now() + 400 * DAY;
    let ca = Authority::generate(ClusterId::from_bits(1), now()).unwrap();
    let of_the_future = |node, role| Credentials::issue(&ca, node, role, ahead, 90 * DAY);
    assert!(of_the_future(WORKER, Role::Worker).is_ok(), "by the issuer's clock");
    let manager = of_the_future(MANAGER, Role::Manager).unwrap().server_config().unwrap();
    let agent = credentials(&ca, WORKER, Role::Worker).client_config().unwrap();
    let err = connect(manager, agent).await.refused_by_client();
    assert!(matches!(handshake_refusal(&err), Some(Error::Clock)), "{err}");
    let manager = credentials(&ca, MANAGER, Role::Manager).server_config().unwrap();
    let agent = of_the_future(WORKER, Role::Worker).unwrap().client_config().unwrap();
    connect(manager, agent).await.refused_by_server();
}

#[tokio::test]
async fn a_new_ca_is_believed_by_those_who_know_the_old_one_only() {
    let old = authority();
    let new = Authority::from_pem(&old.successor(ClusterId::from_bits(1), now()).unwrap().to_pem()).unwrap();
    let both = vec![new.certificate().clone(), old.certificate().clone()];
    let manager =
        || credentials(&new, MANAGER, Role::Manager).trusting(both.clone()).server_config().unwrap();
    let away = credentials(&old, WORKER, Role::Worker);
    let renewed = credentials(&new, WORKER, Role::Worker);
    for agent in [&away, &renewed, &away.clone().trusting(both.clone())] {
        connect(manager(), agent.client_config().unwrap()).await.accepted();
    }
    let join = |ca: &Authority| pinned_client_config(ca.certificate().fingerprint()).unwrap();
    assert_eq!(connect(manager(), join(&new)).await.accepted(), None);
    let err = connect(manager(), join(&old)).await.refused_by_client();
    assert!(matches!(handshake_refusal(&err), Some(Error::WrongAuthority)), "{err}");

    // Once the old one is forgotten, neither its nodes nor the bridge are believed any more.
    let settled = new.without_bridge().unwrap();
    assert!(settled.bridge().is_none() && settled.certificate() == new.certificate());
    let manager = || credentials(&settled, MANAGER, Role::Manager).server_config().unwrap();
    connect(manager(), renewed.client_config().unwrap()).await.accepted();
    let err = connect(manager(), away.client_config().unwrap()).await.refused_by_client();
    assert!(matches!(handshake_refusal(&err), Some(Error::ForeignManager)), "{err}");
    let trusting = away.trusting(both.clone()).client_config().unwrap();
    connect(manager(), trusting).await.refused_by_server();
}

#[tokio::test]
async fn a_bridge_of_another_ca_leads_nowhere() {
    let (ours, theirs) = (authority(), authority());
    let impostor = theirs.successor(ClusterId::from_bits(1), now()).unwrap();
    let server = credentials(&impostor, MANAGER, Role::Manager).server_config().unwrap();
    let agent = credentials(&ours, WORKER, Role::Worker).client_config().unwrap();
    connect(server, agent).await.refused_by_client();
}

#[tokio::test]
async fn a_clock_that_is_ten_minutes_behind_is_no_obstacle() {
    let ahead = now() + 600;
    let ca = Authority::generate(ClusterId::from_bits(1), ahead).unwrap();
    let manager = Credentials::issue(&ca, MANAGER, Role::Manager, ahead, 90 * DAY).unwrap();
    let agent = Credentials::issue(&ca, WORKER, Role::Worker, ahead, 90 * DAY).unwrap();
    let outcome = connect(manager.server_config().unwrap(), agent.client_config().unwrap()).await;
    assert!(outcome.accepted().is_some());
}

#[tokio::test]
async fn older_tls_is_refused() {
    let ca = authority();
    let manager = credentials(&ca, MANAGER, Role::Manager);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier_of(&manager))
        .with_no_client_auth();
    connect(manager.server_config().unwrap(), old).await.refused_by_server();
}

/// The usual verifier of clients that trust `node`'s CA.
fn verifier_of(node: &Credentials) -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(node.authority().der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
}

/// A server certificate with any names: what [`Authority::issue`] would never sign.
struct Leaf {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

fn leaf(ca: &Authority, names: &[&str], now: u64) -> Leaf {
    let text = ca.to_pem();
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
    let issuer =
        Issuer::from_ca_cert_der(ca.certificate().der(), KeyPair::try_from(key.secret_der()).unwrap())
            .unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(now + DAY);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
    Leaf { certificate, key }
}

impl Leaf {
    /// A server that shows this leaf, followed by `shown`'s certificate.
    fn server(&self, shown: &Authority) -> ServerConfig {
        let manager = credentials(shown, MANAGER, Role::Manager);
        let mut server = manager.server_config().unwrap();
        server.cert_resolver = self.resolver(&[self.certificate.clone(), shown.certificate().der().clone()]);
        server
    }

    fn resolver(&self, chain: &[CertificateDer<'static>]) -> Arc<dyn rustls::server::ResolvesServerCert> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(chain.to_vec(), key);
        Arc::new(rustls::sign::SingleCertAndKey::from(certified))
    }
}
