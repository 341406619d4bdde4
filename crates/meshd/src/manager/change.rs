//! The one way to change the state: decide on a snapshot, commit if nothing was decided meanwhile, else again.

use super::{
    Error, Manager, journal,
    state::{GUARD, encode},
    trust,
};
use crate::{clock, wire::Committed};
use mesh_model::{Change, Key, Refusal, Snapshot, admit::Fresh};
use mesh_store::{Error as StoreError, Txn};

/// How often a decision is made anew when another manager was faster.
const ATTEMPTS: usize = 16;

impl Manager {
    /// Commits what `decide` makes of the state. Nothing is used before it is committed, and what is committed was
    /// decided on exactly the state that it follows.
    pub(super) async fn change<T>(
        &self,
        decide: impl Fn(&Snapshot, Fresh) -> Result<(Vec<Change>, T), Refusal>,
    ) -> Result<Committed<T>, Error> {
        self.change_with(|txn| txn, decide).await
    }

    /// The same, with records beside the state, such as secrets, that change in the same transaction.
    pub(super) async fn change_with<T>(
        &self,
        beside: impl Fn(Txn) -> Txn,
        decide: impl Fn(&Snapshot, Fresh) -> Result<(Vec<Change>, T), Refusal>,
    ) -> Result<Committed<T>, Error> {
        let _turn = self.turn.lock().await;
        for _ in 0..ATTEMPTS {
            let current = self.state.current();
            let (changes, value) = decide(&current.snapshot, fresh())?;
            if changes.is_empty() {
                return Ok(Committed { value, revision: current.snapshot.revision });
            }
            let guarded = match current.guard {
                Some(revision) => Txn::new().expect_revision(GUARD, revision),
                None => Txn::new().expect_absent(GUARD),
            };
            let guarded = beside(guarded.put(GUARD, journal::encode(&current.snapshot, &changes)));
            let txn = changes.iter().fold(guarded, |txn, change| match change {
                Change::Put(object) => txn.put(object.key().to_string(), encode(object)),
                Change::Delete(key) => {
                    let txn = txn.delete(key.to_string());
                    if let Key::Node(node) = key { txn.delete(trust::held_by(*node)) } else { txn }
                }
            });
            // Held on to, it would be copied when it changes.
            drop(current);
            match self.store.commit(txn).await {
                Ok(revision) => {
                    self.state.reached(revision).await;
                    return Ok(Committed { value, revision });
                }
                Err(StoreError::Conflict { found, .. }) => {
                    self.state.reached(found.unwrap_or_default()).await
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Contention)
    }
}

pub(super) fn fresh() -> Fresh {
    Fresh { id: rand::random(), mac: rand::random(), now: clock::unix_seconds() }
}
