//! axum's extractors, with mistakes told in our words and form.

use super::Failure;
use axum::{
    extract::{FromRequest, FromRequestParts, rejection},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// A JSON body, of requests and of answers.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Failure))]
pub(crate) struct Json<T>(pub(crate) T);

/// What a path names.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Failure))]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl From<rejection::JsonRejection> for Failure {
    fn from(rejection: rejection::JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<rejection::PathRejection> for Failure {
    fn from(rejection: rejection::PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
