//! The access log: one line a request, written when it is over, however it ended.

use super::Ends;
use http::{Method, StatusCode, Uri, Version};
use std::{net::SocketAddr, time::Instant};

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    /// The whole response was handed to the client.
    Complete,
    /// The response was ours.
    Answered,
    /// The backend broke off in the middle.
    Truncated,
    /// The connection became a tunnel.
    Tunnel,
}

/// What is known of a request so far. Dropped, it becomes a line of the target `access` at level debug; dropped
/// without an outcome, the client has gone.
#[derive(Debug)]
pub(super) struct Record(Option<Box<Line>>);

#[derive(Debug)]
struct Line {
    start: Instant,
    ends: Ends,
    method: Method,
    uri: Uri,
    version: Version,
    service: Option<String>,
    backend: Option<SocketAddr>,
    retries: usize,
    status: Option<StatusCode>,
    bytes: u64,
    outcome: Option<Outcome>,
}

impl Record {
    /// Starts the record of a request; it costs nothing if nobody reads the log.
    pub(super) fn start(ends: Ends, method: &Method, uri: &Uri, version: Version) -> Self {
        if !tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            return Self(None);
        }
        Self(Some(Box::new(Line {
            start: Instant::now(),
            ends,
            method: method.clone(),
            uri: uri.clone(),
            version,
            service: None,
            backend: None,
            retries: 0,
            status: None,
            bytes: 0,
            outcome: None,
        })))
    }

    pub(super) fn service(&mut self, name: &str) {
        if let Some(line) = &mut self.0 {
            line.service = Some(name.to_owned());
        }
    }

    pub(super) fn backend(&mut self, addr: SocketAddr, retries: usize) {
        if let Some(line) = &mut self.0 {
            (line.backend, line.retries) = (Some(addr), retries);
        }
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        if let Some(line) = &mut self.0 {
            line.status = Some(status);
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        if let Some(line) = &mut self.0 {
            line.bytes += bytes as u64;
        }
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        if let Some(line) = &mut self.0 {
            line.outcome = Some(outcome);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        tracing::debug!(
            target: "access",
            client = %self.ends.peer,
            entry = %self.ends.local,
            service = self.service.as_deref().unwrap_or("-"),
            backend = self.backend.map(tracing::field::display),
            retries = self.retries,
            status = self.status.map_or(0, |status| status.as_u16()),
            bytes = self.bytes,
            ms = self.start.elapsed().as_millis() as u64,
            end = match self.outcome {
                Some(Outcome::Complete) => "complete",
                Some(Outcome::Answered) => "answered",
                Some(Outcome::Truncated) => "truncated",
                Some(Outcome::Tunnel) => "tunnel",
                None => "client gone",
            },
            "{} {} {:?}",
            self.method,
            self.uri,
            self.version,
        );
    }
}
