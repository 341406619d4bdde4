//! What an answer of etcd, or the lack of one, means for the caller.

use std::error::Error as StdError;

use tonic::{Code, ConnectError, Status};

use crate::Error;

/// Why one request to one member brought nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for is yet to come.
    Future,
    /// etcd's final word: another member would say the same.
    Refused(String),
    /// It was surely not done: another member may do it.
    NotDone(String),
    /// It may or may not have been done.
    Lost(String),
}

/// Why an operation brought nothing, after everything was tried.
#[derive(Debug)]
pub(super) enum Failure {
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for is yet to come.
    Future,
    /// Everything else.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        Failure::Final(err)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let reason = match failure {
            Failure::Final(err) => return err,
            Failure::Compacted => "the revision read was compacted again and again",
            Failure::Future => "the revision asked for is yet to come",
        };
        Error::Refused { endpoint: "any endpoint".to_owned(), reason: reason.to_owned() }
    }
}

impl From<etcd_client::Error> for Fault {
    fn from(err: etcd_client::Error) -> Self {
        match err {
            etcd_client::Error::GRpcStatus(status) => status.into(),
            other => Fault::Lost(other.to_string()),
        }
    }
}

/// By code, and where a code has several meanings by the texts that etcd has had since 3.0 (`rpctypes/error.go`).
impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        let text = text_of(&status);
        match status.code() {
            Code::OutOfRange if text.contains("has been compacted") => Fault::Compacted,
            Code::OutOfRange if text.contains("future revision") => Fault::Future,
            Code::Unavailable
                if never_sent(&status)
                    || text.ends_with("etcdserver: no leader")
                    // Of a change of members: the others are not all connected yet.
                    || text.ends_with("etcdserver: unhealthy cluster") =>
            {
                Fault::NotDone(text)
            }
            Code::ResourceExhausted if text.contains("too many requests") => Fault::NotDone(text),
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Fault::Refused(text),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Fault::Lost(text),
        }
    }
}

/// Whether there was no connection to send it on.
fn never_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

fn text_of(status: &Status) -> String {
    match status.source() {
        Some(source) => chain(source),
        None if status.message().is_empty() => status.code().to_string(),
        None => one_line(status.message()),
    }
}

/// An error with its causes in one line.
pub(super) fn chain(err: &(dyn StdError + 'static)) -> String {
    let mut text = err.to_string();
    for cause in causes(err) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    one_line(&text)
}

fn causes<'a>(err: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(err.source(), |cause| (*cause).source())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_done_is_repeated() {
        let fault = |code, text: &str| Fault::from(Status::new(code, text));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(fault(Code::OutOfRange, compacted), Fault::Compacted);
        let future = "etcdserver: mvcc: required revision is a future revision";
        assert_eq!(fault(Code::OutOfRange, future), Fault::Future);
        for (code, text) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unavailable, "etcdserver: unhealthy cluster"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
        ] {
            assert_eq!(fault(code, text), Fault::NotDone(text.to_owned()));
        }
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "h2 protocol error: broken"),
        ] {
            assert_eq!(fault(code, text), Fault::Lost(text.to_owned()));
        }
        for (code, text) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
        ] {
            assert_eq!(fault(code, text), Fault::Refused(text.to_owned()));
        }
    }
}
