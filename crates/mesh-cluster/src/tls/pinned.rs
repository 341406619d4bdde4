//! Trust by fingerprint: the only way to verify a manager before the CA is known.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{manager_verifier, server_name};
use crate::{AuthorityCertificate, Error, Fingerprint};

/// Accepts a manager whose chain holds the CA with this fingerprint.
#[derive(Debug)]
pub(super) struct PinnedAuthority {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    pub(super) fn new(fingerprint: Fingerprint, provider: Arc<CryptoProvider>) -> Self {
        Self { fingerprint, provider }
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Having the CA in the chain proves nothing by itself: it is public. The leaf must be signed by it.
        let pinned = intermediates.iter().find(|der| Fingerprint::of(der) == self.fingerprint);
        let pinned = pinned.ok_or_else(|| refused(Error::WrongAuthority))?;
        let authority = AuthorityCertificate::from(pinned.clone().into_owned());
        let verifier = manager_verifier(&[authority], Arc::clone(&self.provider)).map_err(refused)?;
        // The name is fixed here: the role must hold, whatever the caller connected with.
        verifier.verify_server_cert(end_entity, &[], &server_name(), ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn refused(err: Error) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(err)))
}
