//! What a node holds: its key, its certificate and the CA.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::{NodeId, Role};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::authority::holds_key;
use crate::{
    Authority, AuthorityCertificate, Error, PeerIdentity, Validity, peer_identity, pem, read_private, tls,
    validity, write_private,
};

/// A node's private key. It is made on the node and stays there.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// A request (PKCS #10, as PEM) for a certificate of this key. It claims no name: the CA would not believe it.
    pub fn request(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

/// All a node needs to prove itself and to verify others.
#[derive(Clone, Debug)]
pub struct Credentials {
    authority: AuthorityCertificate,
    trusted: Vec<AuthorityCertificate>,
    bridge: Option<CertificateDer<'static>>,
    certificate: CertificateDer<'static>,
    key: Arc<NodeKey>,
    identity: PeerIdentity,
    validity: Validity,
}

impl Credentials {
    /// What a manager answered to `key`'s request: a certificate (PEM) and the CA.
    ///
    /// Errors: [`Error::Tls`] when the certificate is not of `authority`, [`Error::Clock`] when it is not valid at
    /// `now`, else as [`load`](Self::load).
    pub fn new(
        authority: AuthorityCertificate,
        certificate: &str,
        key: NodeKey,
        now: u64,
    ) -> Result<Self, Error> {
        let certificate = pem::certificates(certificate)?.swap_remove(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        tls::verify_node(&authority, &certificate, now)?;
        Self::fitting(authority, certificate, key)
    }

    /// Those of a manager, signed by the CA beside it for `lifetime` seconds.
    pub fn issue(
        authority: &Authority,
        node: NodeId,
        role: Role,
        now: u64,
        lifetime: u64,
    ) -> Result<Self, Error> {
        let key = NodeKey::generate()?;
        let certificate = authority.issue(&key.request()?, node, role, now, lifetime)?;
        let issued = Self::new(authority.certificate().clone(), &certificate, key, now)?;
        Ok(Self { bridge: authority.bridge().cloned(), ..issued })
    }

    /// Reads what [`save`](Self::save) wrote; `None` if there is no such file. An expired certificate is loaded as
    /// well: handshakes will refuse it.
    ///
    /// Errors: [`Error::Pem`], [`Error::Certificate`], [`Error::NotANode`], [`Error::Mismatch`], [`Error::File`].
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = read_private(path)? else { return Ok(None) };
        let key = NodeKey(KeyPair::try_from(pem::private_key(&text)?.secret_pkcs8_der())?);
        let mut certificates = pem::certificates(&text)?.into_iter();
        let (Some(certificate), Some(authority)) = (certificates.next(), certificates.next()) else {
            return Err(Error::Pem("certificate of the CA"));
        };
        let loaded = Self::fitting(authority.into(), certificate, key)?;
        Ok(Some(loaded.trusting(certificates.map(AuthorityCertificate::from).collect())))
    }

    /// The same, but believing nodes of these CAs; of none given, of its own.
    #[must_use]
    pub fn trusting(mut self, authorities: Vec<AuthorityCertificate>) -> Self {
        self.trusted = if authorities.is_empty() { vec![self.authority.clone()] } else { authorities };
        self
    }

    /// Writes key, certificate and CAs to one file, so that they are never halves of two sets. Mode 0600.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let key = pem::encode(pem::PRIVATE_KEY, self.key.0.serialized_der());
        let certificate = pem::encode(pem::CERTIFICATE, &self.certificate);
        let own = std::slice::from_ref(&self.authority);
        let others = if self.trusted == own { &[] } else { self.trusted.as_slice() };
        let others = others.iter().map(AuthorityCertificate::to_pem).collect();
        write_private(path, &[key, certificate, self.authority.to_pem(), others].concat())
    }

    /// The CA that issued the certificate.
    pub fn authority(&self) -> &AuthorityCertificate {
        &self.authority
    }

    /// The CAs whose nodes it believes.
    pub fn trusted(&self) -> &[AuthorityCertificate] {
        &self.trusted
    }

    /// From when to when the certificate holds.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Who the certificate says this node is.
    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn bridge(&self) -> Option<&CertificateDer<'static>> {
        self.bridge.as_ref()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.0.serialize_der()).into()
    }

    fn fitting(
        authority: AuthorityCertificate,
        certificate: CertificateDer<'static>,
        key: NodeKey,
    ) -> Result<Self, Error> {
        if !holds_key(&certificate, &key.0) {
            return Err(Error::Mismatch("the certificate is not of this node's key"));
        }
        let identity = peer_identity(&certificate)?;
        let validity = validity(&certificate)?;
        let trusted = vec![authority.clone()];
        Ok(Self { authority, trusted, bridge: None, certificate, key: Arc::new(key), identity, validity })
    }
}
