//! Errors as a runtime reads them.

use crate::version::Version;
use mesh_api::Error;
use serde_json::{Value, json};

/// Codes of the specification (section 5, Error); from 100 on they are this plugin's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// A version of the protocol that is not spoken, or that lacks the command.
    Version = 1,
    /// A key of the configuration that nothing is done with. The message has key and value.
    Unsupported = 2,
    /// The container is gone: nothing has to be cleaned up.
    UnknownContainer = 3,
    /// Environment variables. The message names them.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// No JSON, or not of the types that are expected.
    Decoding = 6,
    /// A configuration that makes no sense.
    Config = 7,
    /// It may work later.
    TryAgain = 11,
    /// `ADD` would fail now.
    NotAvailable = 50,
    /// The same, and containers may be cut off.
    Limited = 51,
    /// meshd said no.
    Refused = 100,
    /// An attachment is not as it should be.
    Broken = 101,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    msg: String,
    details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds the longer reason.
    pub(crate) fn because(self, details: impl ToString) -> Self {
        Self { details: details.to_string(), ..self }
    }

    /// What meshd said, or that it said nothing.
    pub(crate) fn of_daemon(doing: &str, error: &Error) -> Self {
        let code = match error {
            Error::NotFound(_) => Code::Config,
            Error::Refused(_) => Code::Refused,
            Error::Unavailable(_) | Error::Unreachable { .. } | Error::Broken(_) | Error::Ended => {
                Code::TryAgain
            }
            Error::Permission(_) => Code::Io,
            Error::Answer(_) => Code::Decoding,
        };
        let details = match error {
            // Of a runtime without root, which is told that it is root: of its own user namespace.
            Error::Permission(_) => format!("{error}; rootless containers can't join"),
            _ => error.to_string(),
        };
        Self::new(code, doing).because(details)
    }

    /// For programs (`code`) and people (`msg`, `details`).
    pub(crate) fn json(&self, version: Version) -> Value {
        let mut value =
            json!({ "cniVersion": version.to_string(), "code": self.code as u32, "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = self.details.clone().into();
        }
        value
    }
}
