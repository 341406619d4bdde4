//! Health checks of the endpoints on this node: `plan` (pure) → one task each → verdicts that changed.

mod plan;
mod probe;
mod verdict;
mod watcher;

pub use plan::{Check, Probe, plan_checks};
pub use verdict::Verdict;
pub use watcher::{HealthChecks, Report};
