//! What can go wrong in this crate.

use std::{io, time::Duration};

/// An error of the ingress or of the health checks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A channel that the part lives by was closed while it was meant to run.
    #[error("the channel of {0} was closed")]
    Closed(&'static str),
    /// A connection to a backend was refused or got lost.
    #[error("connect: {0}")]
    Connect(#[from] io::Error),
    /// What a peer sent was no valid HTTP, or it hung up.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// A request that can't be formed.
    #[error("request: {0}")]
    Request(#[from] http::Error),
    /// A backend answered with a status that stands for failure.
    #[error("status {0}")]
    Status(u16),
    /// Something took longer than it may.
    #[error("nothing came for {0:?}")]
    Timeout(Duration),
}
