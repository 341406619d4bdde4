//! What happened to the records, for people who follow the cluster.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It has other content.
    Updated,
    /// It is gone.
    Removed,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Removed => "removed",
        })
    }
}

/// One change of one record, told with the names of its time: what it refers to may be gone when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What became of it.
    pub action: Action,
    /// What it is: `cluster`, `node`, `network`, `service` or `endpoint`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its ID.
    pub id: String,
    /// What of it changed, in short; empty if there is no more to say.
    pub detail: String,
}

/// All that one transaction changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// When it was decided, by the manager's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// Its changes, in order.
    pub events: Vec<Event>,
}
