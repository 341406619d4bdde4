//! What happens in the cluster, as a stream of lines.

use bytes::Bytes;
use mesh_model::Event;
use serde::{Deserialize, Serialize};

/// `events`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct EventsQuery {
    /// Begin with what happened after this revision; absent: with what happens from now on.
    #[serde(default)]
    pub since: Option<u64>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Revision of the transaction; of the last one, for what is not stored: nodes that come and go.
    pub revision: u64,
    /// When it happened, in milliseconds since 1970.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// One line of the daemon's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLine {
    /// Something happened.
    Event(EventView),
    /// There will be no more, for this reason.
    Error(String),
}

/// A value as one line of a stream.
pub fn json_line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|e| unreachable!("lines are plain data: {e}"));
    line.push(b'\n');
    line.into()
}
