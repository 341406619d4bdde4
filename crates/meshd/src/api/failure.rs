//! A refusal as HTTP carries it: a status for programs, one line for people.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use mesh_api::ErrorBody;
use mesh_model::Refusal;
use mesh_wire::client::Refused;

/// Why a request was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        // Whatever an error says, people get one line, and their terminal no orders: it may be another node's words.
        Self { status, text: text.into().replace(char::is_control, " ") }
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    /// The node that asks is no member any more.
    pub(crate) fn removed() -> Self {
        Self::new(StatusCode::GONE, "this node was removed from the cluster")
    }

    /// Whether a manager says that this node is no member any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.status == StatusCode::GONE
    }

    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, text)
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    /// It was done or it was not: the store, or the manager that would know, did not answer.
    pub(crate) fn outcome_unknown() -> Self {
        Self::unavailable("no manager answers whether the change was made: look before you repeat it")
    }

    /// Whether another state could have led to another answer.
    pub(crate) fn is_of_state(&self) -> bool {
        matches!(self.status, StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE)
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    pub(crate) fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }

    /// Whether what was named is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Whether it is unknown what became of the request, or it may be done later.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound { .. } => StatusCode::NOT_FOUND,
            Refusal::NotYours => StatusCode::FORBIDDEN,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.to_string())
    }
}

/// What a manager answers is passed on as it is.
impl From<Refused> for Failure {
    fn from(Refused { status, text }: Refused) -> Self {
        Self::new(status, text)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.text })).into_response()
    }
}
