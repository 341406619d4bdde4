//! Removing several things with one command.

use crate::session::Session;
use mesh_api::{Error, Removed};

/// Removes one after the other and answers for those that were removed; stops at the first refusal.
pub(crate) async fn each(
    session: &Session,
    names: &[String],
    remove: impl AsyncFn(&str) -> Result<Removed, Error>,
) -> anyhow::Result<()> {
    let mut answers = Vec::new();
    let mut refused = Ok(());
    for name in names {
        match session.wait(&format!("removing {name}"), remove(name)).await {
            Ok(removed) => answers.push(removed),
            Err(refusal) => {
                refused = Err(refusal);
                break;
            }
        }
    }
    if refused.is_ok() || !answers.is_empty() {
        session.output.done(&answers, &names[..answers.len()].join("\n"), "")?;
    }
    refused
}
