//! What an answer of etcd, or the lack of one, means for the caller.
//!
//! etcd tells many of its reasons by their text alone: here is the one place that reads them.

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
    Refused(EtcdRefusal, String),
    /// The member answered that it can't do it now: another one may, or the same a moment later.
    NotNow(String),
    /// There was no connection to send it on: it was surely not done.
    NeverSent(String),
    /// It may or may not have been done.
    Lost(String),
}

/// Why etcd refuses a request, as far as a caller can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EtcdRefusal {
    /// A learner waits for its vote already: etcd takes one at a time.
    TooManyLearners,
    /// The learner has not caught up with the leader yet.
    LearnerLags,
    /// The member that was to get a vote has one.
    NoLearner,
    /// There is no such member.
    NoSuchMember,
    /// Of a change of members: the others are not all connected, or not for five seconds yet (its `HealthInterval`).
    Unhealthy,
    /// Anything else: etcd's words tell it.
    Other,
}

impl EtcdRefusal {
    /// By the texts that etcd has had since 3.4 (`rpctypes/error.go`).
    fn of(text: &str) -> Self {
        let known = [
            ("too many learner members in cluster", Self::TooManyLearners),
            ("can only promote a learner member which is in sync with leader", Self::LearnerLags),
            ("can only promote a learner member", Self::NoLearner),
            ("member not found", Self::NoSuchMember),
            ("unhealthy cluster", Self::Unhealthy),
        ];
        known.into_iter().find(|(end, _)| text.ends_with(end)).map_or(Self::Other, |(_, why)| why)
    }
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
        Error::Refused {
            endpoint: "any endpoint".to_owned(),
            why: EtcdRefusal::Other,
            reason: reason.to_owned(),
        }
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
            Code::Unavailable if never_sent(&status) => Fault::NeverSent(text),
            Code::Unavailable if text.ends_with("etcdserver: unhealthy cluster") => Fault::refused(text),
            Code::Unavailable
                if text.ends_with("etcdserver: no leader")
                    || text.ends_with("etcdserver: rpc not supported for learner") =>
            {
                Fault::NotNow(text)
            }
            Code::ResourceExhausted if text.contains("too many requests") => Fault::NotNow(text),
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Fault::refused(text),
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

impl Fault {
    fn refused(text: String) -> Self {
        Fault::Refused(EtcdRefusal::of(&text), text)
    }

    /// Why a member ended a watch, if not for the revision it was to begin at.
    pub(super) fn of_canceled_watch(reason: &str) -> Self {
        if reason.contains("denied") || reason.contains("auth") {
            return Fault::refused(reason.to_owned());
        }
        Fault::Lost(reason.to_owned())
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
            (Code::Unavailable, "etcdserver: rpc not supported for learner"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
        ] {
            assert_eq!(fault(code, text), Fault::NotNow(text.to_owned()));
        }
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "h2 protocol error: broken"),
        ] {
            assert_eq!(fault(code, text), Fault::Lost(text.to_owned()));
        }
        let learner = "etcdserver: can only promote a learner member";
        for (code, text, why) in [
            (Code::InvalidArgument, "etcdserver: request is too large", EtcdRefusal::Other),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", EtcdRefusal::Other),
            (Code::PermissionDenied, "etcdserver: permission denied", EtcdRefusal::Other),
            (Code::Unavailable, "etcdserver: unhealthy cluster", EtcdRefusal::Unhealthy),
            (Code::NotFound, "etcdserver: member not found", EtcdRefusal::NoSuchMember),
            (
                Code::FailedPrecondition,
                "etcdserver: too many learner members in cluster",
                EtcdRefusal::TooManyLearners,
            ),
            (
                Code::FailedPrecondition,
                &format!("{learner} which is in sync with leader"),
                EtcdRefusal::LearnerLags,
            ),
            (Code::FailedPrecondition, learner, EtcdRefusal::NoLearner),
        ] {
            assert_eq!(fault(code, text), Fault::Refused(why, text.to_owned()));
        }
    }
}
