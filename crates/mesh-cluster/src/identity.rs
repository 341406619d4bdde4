//! What a certificate says of its holder: the names in its subject alternative name (RFC 5280, 4.2.1.6).

use mesh_model::{NodeId, Role};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::Error;

const NODE_SUFFIX: &str = ".node.mesh.internal";

/// Who holds a node certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The node.
    pub node: NodeId,
    /// What it was admitted as.
    pub role: Role,
}

/// The identity in a certificate that a handshake has already verified.
///
/// It is read as written: of a certificate that was not verified it says nothing. Errors: [`Error::NotANode`].
pub fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, Error> {
    let refused = |why: &str| Error::NotANode(why.to_owned());
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| refused("it is malformed"))?;
    let names = parsed.subject_alternative_name().map_err(|_| refused("its names are malformed"))?;
    let names = names.ok_or_else(|| refused("it has no names"))?;
    let (mut nodes, mut roles) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        let GeneralName::DNSName(name) = name else { return Err(refused("it has names of another kind")) };
        if let Some(node) = name.strip_suffix(NODE_SUFFIX) {
            nodes.push(node.parse().map_err(|_| refused("its node name is no node ID"))?);
        } else if let Some(role) = role_named(name) {
            roles.push(role);
        } else {
            return Err(refused("it has other names"));
        }
    }
    match (nodes.as_slice(), roles.as_slice()) {
        (&[node], &[role]) => Ok(PeerIdentity { node, role }),
        _ => Err(refused("it must name one node and one role")),
    }
}

/// From when to when a certificate holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Dated back by [`CLOCK_SKEW`](crate::CLOCK_SKEW) from when it was issued.
    pub from: u64,
    /// Refused from then on.
    pub until: u64,
}

impl Validity {
    /// When to ask for the next certificate: after two thirds of its life, and `jitter` (0 to 1) of a tenth of it
    /// later, so that nodes that joined together don't ask together.
    pub fn renewal(&self, jitter: f64) -> u64 {
        let issued = self.from.saturating_add(crate::CLOCK_SKEW).min(self.until);
        let life = (self.until - issued) as f64;
        issued + (life * (2.0 / 3.0 + jitter.clamp(0.0, 1.0) / 10.0)) as u64
    }
}

/// When a certificate holds. Errors: [`Error::NotANode`] when it is malformed.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::NotANode("it is malformed".to_owned()))?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
    let validity = parsed.validity();
    Ok(Validity { from: seconds(validity.not_before), until: seconds(validity.not_after) })
}

/// The names of a node's certificate.
pub(crate) fn names(node: NodeId, role: Role) -> Vec<String> {
    vec![format!("{node}{NODE_SUFFIX}"), role_name(role).to_owned()]
}

/// The name that every node of a role has. That of managers is also what a client asks for in the handshake.
pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager.role.mesh.internal",
        Role::Worker => "worker.role.mesh.internal",
    }
}

fn role_named(name: &str) -> Option<Role> {
    [Role::Manager, Role::Worker].into_iter().find(|role| role_name(*role) == name)
}
