//! The cluster's CA.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use mesh_model::{ClusterId, NodeId, Role};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::identity::{self, validity};
use crate::{Error, Fingerprint, pem};

const DAY: u64 = 24 * 60 * 60;
const AUTHORITY_LIFETIME: u64 = 10 * 365 * DAY;
/// How long a node's certificate is valid unless the cluster says otherwise, in seconds.
pub const NODE_LIFETIME: u64 = 90 * DAY;

/// A manager that was away for longer can't open its store: nobody could give it another certificate before.
const ETCD_LIFETIME: u64 = 2 * 365 * DAY;

/// How far certificates are dated back, in seconds, so that a node whose clock is behind accepts them.
pub const CLOCK_SKEW: u64 = 60 * 60;

/// The CA with its key: signs the certificates of nodes. Managers only.
///
/// All keys are ECDSA P-256: what every TLS stack that may ever face these certificates speaks (Go's for etcd,
/// OpenSSL, browsers and load balancers before an API), which Ed25519 is not.
pub struct Authority {
    certificate: AuthorityCertificate,
    issuer: Issuer<'static, KeyPair>,
    /// This CA's key, signed by the CA before it: who knows only that one follows it to this one.
    bridge: Option<CertificateDer<'static>>,
}

/// The CA as everybody may know it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityCertificate(CertificateDer<'static>);

impl Authority {
    /// A new CA of `cluster`, valid for ten years from `now`.
    pub fn generate(cluster: ClusterId, now: u64) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = valid(now, AUTHORITY_LIFETIME)?;
        // Two CAs of one cluster are told apart by their names as well: a chain is found by names first.
        let generation: u32 = OsRng.try_next_u32()?;
        params.distinguished_name = common_name(&format!("mesh cluster {cluster} CA {generation:08x}"));
        // Room for the bridge to its successor.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = AuthorityCertificate(params.self_signed(&key)?.der().clone());
        Ok(Self { certificate, issuer: Issuer::new(params, key), bridge: None })
    }

    /// The CA that takes this one's place: a new key, vouched for by this one's in a [`bridge`](Self::bridge), so that
    /// nodes which were away when it was made believe the managers all the same.
    pub fn successor(&self, cluster: ClusterId, now: u64) -> Result<Self, Error> {
        let mut next = Self::generate(cluster, now)?;
        let mut params = valid(now, AUTHORITY_LIFETIME)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&next.certificate.0)
            .map_err(|_| Error::Mismatch("the CA's certificate is malformed"))?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        params.distinguished_name = common_name(name.unwrap_or_default());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        next.bridge = Some(params.signed_by(next.issuer.key(), &self.issuer)?.der().clone());
        Ok(next)
    }

    /// The same CA once nobody needs the bridge any more.
    pub fn without_bridge(&self) -> Result<Self, Error> {
        Self::from_pem(&(self.certificate.to_pem() + &self.key_pem()))
    }

    /// The certificate of this CA's key by the CA before it, as long as some nodes may know only that one.
    pub fn bridge(&self) -> Option<&CertificateDer<'static>> {
        self.bridge.as_ref()
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote. Errors: [`Error::Pem`], [`Error::Mismatch`].
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let certificate = AuthorityCertificate::from_pem(text)?;
        let key = KeyPair::try_from(pem::private_key(text)?.secret_pkcs8_der())?;
        if !holds_key(&certificate.0, &key) {
            return Err(Error::Mismatch("the CA's key is not that of its certificate"));
        }
        let bridge = pem::certificates(text)?.into_iter().nth(1);
        if !bridge.as_ref().is_none_or(|bridge| holds_key(bridge, &key)) {
            return Err(Error::Mismatch("the CA's bridge is not of its key"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.0, key)?;
        Ok(Self { certificate, issuer, bridge })
    }

    /// Certificate, bridge and key. Whoever reads it rules the cluster: see [`write_private`](crate::write_private).
    pub fn to_pem(&self) -> String {
        self.certificate.to_pem() + &self.bridge_pem() + &self.key_pem()
    }

    fn bridge_pem(&self) -> String {
        self.bridge.as_ref().map(|bridge| pem::encode(pem::CERTIFICATE, bridge)).unwrap_or_default()
    }

    fn key_pem(&self) -> String {
        pem::encode(pem::PRIVATE_KEY, self.issuer.key().serialized_der())
    }

    /// What to hand out.
    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    /// Signs the key in `request` (PEM, from [`NodeKey::request`](crate::NodeKey::request)) as that of `node` in
    /// `role`, for `lifetime` seconds from `now`. Returns the certificate as PEM.
    ///
    /// Nothing but the key is taken from the request: what else it claims is ignored. Errors: [`Error::Request`]
    /// when it is malformed, not signed with its own key, or of another kind of key.
    pub fn issue(
        &self,
        request: &str,
        node: NodeId,
        role: Role,
        now: u64,
        lifetime: u64,
    ) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(request);
        let key = request.map_err(|err| Error::Request(err.to_string()))?.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request("its key is not ECDSA P-256".to_owned()));
        }
        let certificate = node_params(node, role, now, lifetime)?.signed_by(&key, &self.issuer)?;
        Ok(pem::encode(pem::CERTIFICATE, certificate.der()))
    }

    /// A certificate with its key (PEM) for the etcd that a manager runs at these addresses, both as a server and as a
    /// client of others, for two years from `now`. Nodes don't take it for one of theirs: its addresses are names too.
    /// The bridge comes with it, if there is one: an etcd that does not know this CA yet believes it all the same.
    pub fn issue_for_etcd(&self, node: NodeId, addresses: &[IpAddr], now: u64) -> Result<String, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = node_params(node, Role::Manager, now, ETCD_LIFETIME)?;
        params.subject_alt_names.extend(addresses.iter().copied().map(rcgen::SanType::IpAddress));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let certificate = pem::encode(pem::CERTIFICATE, certificate.der());
        Ok(certificate + &self.bridge_pem() + &pem::encode(pem::PRIVATE_KEY, key.serialized_der()))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl AuthorityCertificate {
    /// The first certificate in `text`.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let first = pem::certificates(text)?.swap_remove(0);
        let authority = Self(first);
        // Refuses here what would fail in the first handshake.
        authority.roots()?;
        Ok(authority)
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.0)
    }

    /// The certificate as DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }

    /// SHA-256 of the DER: what a join token pins.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }

    /// When it ends, in seconds since 1970. Errors: [`Error::NotANode`] when it can't be read.
    pub fn expires(&self) -> Result<u64, Error> {
        Ok(validity(&self.0)?.until)
    }

    pub(crate) fn roots(&self) -> Result<RootCertStore, Error> {
        roots(std::slice::from_ref(self))
    }
}

impl From<CertificateDer<'static>> for AuthorityCertificate {
    fn from(der: CertificateDer<'static>) -> Self {
        Self(der)
    }
}

impl fmt::Debug for AuthorityCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthorityCertificate").field(&self.fingerprint()).finish()
    }
}

/// The anchors of all these.
pub(crate) fn roots(authorities: &[AuthorityCertificate]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.0.clone()))?;
    Ok(roots)
}

/// Whether `certificate` is of `key`.
pub(crate) fn holds_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

fn node_params(node: NodeId, role: Role, now: u64, lifetime: u64) -> Result<CertificateParams, Error> {
    let mut params = valid(now, lifetime)?;
    params.distinguished_name = common_name(&node.to_string());
    for name in identity::names(node, role) {
        params.subject_alt_names.push(rcgen::SanType::DnsName(name.try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role {
        Role::Manager => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        Role::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn valid(now: u64, lifetime: u64) -> Result<CertificateParams, Error> {
    let epoch = date_time_ymd(1970, 1, 1);
    let at = |seconds: u64| epoch.checked_add(Duration::from_secs(seconds).try_into().ok()?);
    let mut params = CertificateParams::default();
    params.not_before = at(now.saturating_sub(CLOCK_SKEW)).ok_or(rcgen::Error::Time)?;
    params.not_after = at(now.saturating_add(lifetime)).ok_or(rcgen::Error::Time)?;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// Positive, unique and not to be guessed (RFC 5280, 4.1.2.2).
fn random_serial() -> Result<SerialNumber, Error> {
    let mut serial = [0; 16];
    OsRng.try_fill_bytes(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}
