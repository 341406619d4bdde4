//! What can go wrong for good.

use std::io;

/// Why a server ended unasked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket that the caller passed can't be used here.
    #[error("the DNS socket can't be used: {0}")]
    Socket(#[source] io::Error),
    /// The UDP socket yields nothing but errors.
    #[error("the DNS socket can't be read: {0}")]
    Receive(#[source] io::Error),
}
