//! Reads that need the whole state. A node knows the endpoints of its own networks; managers know all.

use crate::daemon::Member;
use axum::{
    Json,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use mesh_model::Snapshot;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How long a manager may take to tell the whole state.
const ASK: Duration = Duration::from_secs(2);
const PARTIAL: &str =
    "no manager answers: endpoints are only those on networks of this node, as it last knew them";

/// The state, and whether that is all of it.
pub(super) struct Whole {
    pub(super) snapshot: Arc<Snapshot>,
    partial: bool,
}

/// What is shown of it.
pub(super) struct Shown<T> {
    value: T,
    partial: bool,
}

impl Whole {
    /// Asks the manager in this process, else one over the link; if none answers, this node's own snapshot must do.
    pub(super) async fn of(member: &Member) -> Self {
        let own = member.agent.snapshot();
        let asked = match member.manager() {
            Some(manager) => Some(manager.snapshot()),
            None => timeout(ASK, member.agent.link.get("/v1/agent/state")).await.ok().and_then(Result::ok),
        };
        match asked {
            // Liveness is what this node sees.
            Some(whole) => {
                let status = own.status.clone();
                Self { snapshot: Arc::new(Snapshot { status, ..Snapshot::clone(&whole) }), partial: false }
            }
            None => Self { snapshot: own, partial: true },
        }
    }

    /// What this node knows itself, which is all of its own endpoints.
    pub(super) fn of_node(member: &Member) -> Self {
        Self { snapshot: member.agent.snapshot(), partial: false }
    }

    /// Whether no manager answered.
    pub(super) fn is_partial(&self) -> bool {
        self.partial
    }

    /// An answer made of it, with a warning for the user if it may lack something.
    pub(super) fn shows<T>(&self, value: T) -> Shown<T> {
        Shown { value, partial: self.partial }
    }
}

impl<T: Serialize> IntoResponse for Shown<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.value).into_response();
        if self.partial {
            response.headers_mut().insert(mesh_api::WARNING, HeaderValue::from_static(PARTIAL));
        }
        response
    }
}
