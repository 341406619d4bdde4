//! Trust: the cluster's CA, node certificates, join tokens and the TLS configurations made of them. And
//! [`membership`]: which of the trusted nodes are alive.
//!
//! How a node comes to be trusted, and how it comes to trust:
//!
//! ```text
//! manager                                        node
//! Authority::generate
//! JoinToken::issue ──── token, by hand ────────► JoinToken: the CA's fingerprint and a secret
//!                  ◄─── TLS, pinned_client_config: is this CA the one of the token? ───
//! JoinToken::verify ◄── secret, NodeKey::request ─ the key never leaves the node
//! Authority::issue ──── certificate, CA ───────► Credentials::new, save
//!                  ◄─── mTLS from now on: Credentials::client_config ───
//! peer_identity: node and role
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `authority` | [`Authority`] signs; [`AuthorityCertificate`] is what others know of it |
//! | `credentials` | [`NodeKey`] and [`Credentials`]: what a node holds |
//! | `identity` | the names in a certificate, [`peer_identity`] |
//! | `token` | [`JoinToken`], [`TokenRecord`] |
//! | `tls` | rustls configurations, TLS 1.3 and ring only |
//! | `private_file` | [`write_private`], [`read_private`] |
//! | [`membership`] | who is alive: SWIM over sealed UDP |
//!
//! A CA is replaced by its [`successor`](Authority::successor): every node trusts both until each has a certificate of the
//! new one, then the old one is forgotten. Nodes that were away follow the bridge that the old CA signed for the new.
//!
//! An expired certificate of a node that is still a member is good for one thing: to be renewed. What ends a node's
//! membership is its removal, which managers check at every request; a cluster that was switched off for longer than its
//! certificates live comes back by itself.
//!
//! Nothing of trust reads a clock: `now` is in seconds since 1970, given by the caller. TLS handshakes are the exception,
//! where rustls asks the system.

mod authority;
mod credentials;
mod error;
mod fingerprint;
mod identity;
pub mod membership;
mod pem;
mod private_file;
mod tls;
mod token;

pub use authority::{Authority, AuthorityCertificate, CLOCK_SKEW, NODE_LIFETIME};
pub use credentials::{Credentials, NodeKey};
pub use error::Error;
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub use identity::{PeerIdentity, Validity, peer_identity, validity};
pub use private_file::{read_private, write_private};
pub use tls::{MANAGER_NAME, handshake_refusal, pinned_client_config, server_name};
pub use token::{JoinToken, TokenRecord};
