//! The cluster's CA.

use std::fmt;
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

use crate::{Error, Fingerprint, identity, pem};

const DAY: u64 = 24 * 60 * 60;
const AUTHORITY_LIFETIME: u64 = 10 * 365 * DAY;
const NODE_LIFETIME: u64 = 90 * DAY;

/// How far certificates are dated back, in seconds, so that a node whose clock is behind accepts them.
const CLOCK_SKEW: u64 = 60 * 60;

/// The CA with its key: signs the certificates of nodes. Managers only.
///
/// All keys are ECDSA P-256: what every TLS stack that may ever face these certificates speaks (Go's for etcd,
/// OpenSSL, browsers and load balancers before an API), which Ed25519 is not.
pub struct Authority {
    certificate: AuthorityCertificate,
    issuer: Issuer<'static, KeyPair>,
}

/// The CA as everybody may know it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityCertificate(CertificateDer<'static>);

impl Authority {
    /// A new CA of `cluster`, valid for ten years from `now`.
    pub fn generate(cluster: ClusterId, now: u64) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = valid(now, AUTHORITY_LIFETIME)?;
        params.distinguished_name = common_name(&format!("mesh cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = AuthorityCertificate(params.self_signed(&key)?.der().clone());
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote. Errors: [`Error::Pem`], [`Error::Mismatch`].
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let certificate = AuthorityCertificate::from_pem(text)?;
        let key = KeyPair::try_from(pem::private_key(text)?.secret_pkcs8_der())?;
        if !holds_key(&certificate.0, &key) {
            return Err(Error::Mismatch("the CA's key is not that of its certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.0, key)?;
        Ok(Self { certificate, issuer })
    }

    /// Certificate and key. Whoever reads it rules the cluster: see [`write_private`](crate::write_private).
    pub fn to_pem(&self) -> String {
        self.certificate.to_pem() + &pem::encode(pem::PRIVATE_KEY, self.issuer.key().serialized_der())
    }

    /// What to hand out.
    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    /// Signs the key in `request` (PEM, from [`NodeKey::request`](crate::NodeKey::request)) as that of `node` in
    /// `role`, for 90 days from `now`. Returns the certificate as PEM.
    ///
    /// Nothing but the key is taken from the request: what else it claims is ignored. Errors: [`Error::Request`]
    /// when it is malformed, not signed with its own key, or of another kind of key.
    pub fn issue(&self, request: &str, node: NodeId, role: Role, now: u64) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(request);
        let key = request.map_err(|err| Error::Request(err.to_string()))?.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request("its key is not ECDSA P-256".to_owned()));
        }
        let mut params = valid(now, NODE_LIFETIME)?;
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
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(pem::encode(pem::CERTIFICATE, certificate.der()))
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

    pub(crate) fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.clone())?;
        Ok(roots)
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

/// Whether `certificate` is of `key`.
pub(crate) fn holds_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
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
