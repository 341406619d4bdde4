//! The one way to change the state: decide on a snapshot, commit if nothing was decided meanwhile, else again.

use super::{
    Error, Manager,
    etcd::turns::trust_of,
    journal,
    roles::declined,
    state::{GUARD, encode},
    trust,
};
use crate::{clock, wire::Committed};
use mesh_model::{
    Change, Key, Refusal, Snapshot,
    admit::{self, Fresh},
};
use mesh_store::{Error as StoreError, Revision, Txn};
use std::time::Duration;
use tokio::time::timeout;

/// How often a decision is made anew when another manager was faster.
const ATTEMPTS: usize = 16;
/// How long a commit's revision may take until it is in the state.
const CATCH_UP: Duration = Duration::from_secs(5);

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
        self.check_quorum()?;
        let mut unknown = Vec::new();
        match self.attempt(beside, decide, &mut unknown).await {
            // Whatever is wrong now, also what a decision finds in its own way, is not the whole truth then.
            Err(error) if !unknown.is_empty() => {
                tracing::warn!(%error, "a change got no answer: whether it was made is not known");
                Err(Error::OutcomeUnknown)
            }
            Err(Error::NoQuorum) => Err(self.no_quorum()),
            ended => ended,
        }
    }

    /// Decides and commits until it is made or refused. `unknown` are the decisions whose commit got no answer: each may
    /// have been made, or may yet be.
    async fn attempt<T>(
        &self,
        beside: impl Fn(Txn) -> Txn,
        decide: impl Fn(&Snapshot, Fresh) -> Result<(Vec<Change>, T), Refusal>,
        unknown: &mut Vec<(Vec<Change>, T)>,
    ) -> Result<Committed<T>, Error> {
        for _ in 0..ATTEMPTS {
            let current = self.state.current();
            if let Some(value) = take_made(unknown, &current.snapshot) {
                return Ok(Committed { value, revision: current.snapshot.revision });
            }
            let fresh = fresh();
            let (changes, value) = decide(&current.snapshot, fresh)?;
            if changes.is_empty() {
                return Ok(Committed { value, revision: current.snapshot.revision });
            }
            let happened = journal::encode(&current.snapshot, &changes);
            let released = admit::release(&current.snapshot, &changes, fresh.now);
            let all = changes.iter().chain(&released);
            let txn = beside(transaction(all, current.guard, happened));
            // Held on to, it would be copied when it changes.
            drop(current);
            match self.store.commit(txn).await {
                Ok(revision) => {
                    self.reached(revision).await;
                    return Ok(Committed { value, revision });
                }
                Err(StoreError::Conflict { found, .. }) => self.reached(found.unwrap_or_default()).await,
                // The guard lets at most one of the attempts through, whenever they arrive.
                Err(StoreError::Unknown { .. }) => {
                    unknown.push((changes, value));
                    let guard = self.store.get(GUARD).await?;
                    self.reached(guard.map_or(0, |guard| guard.mod_revision)).await;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Contention)
    }

    /// Refuses what the store would not take now.
    pub(super) fn check_quorum(&self) -> Result<(), Error> {
        if self.quorum.is_there() { Ok(()) } else { Err(self.no_quorum()) }
    }

    /// Why the store does not answer: it may be this manager's own part of it that does not run.
    fn no_quorum(&self) -> Error {
        let ailment = self.local.as_ref().and_then(|etcd| etcd.ailment());
        ailment.map_or(Error::NoQuorum, Error::EtcdAils)
    }

    /// Waits until the state includes a revision; not for ever, should the store be lost right now.
    async fn reached(&self, revision: Revision) {
        drop(timeout(CATCH_UP, self.state.reached(revision)).await);
    }
}

fn transaction<'a>(
    changes: impl Iterator<Item = &'a Change>,
    guard: Option<Revision>,
    happened: Vec<u8>,
) -> Txn {
    let guarded = match guard {
        Some(revision) => Txn::new().expect_revision(GUARD, revision),
        None => Txn::new().expect_absent(GUARD),
    };
    changes.fold(guarded.put(GUARD, happened), |txn, change| match change {
        Change::Put(object) => txn.put(object.key().to_string(), encode(object)),
        Change::Delete(key) => {
            let txn = txn.delete(key.to_string());
            if let Key::Node(node) = key {
                txn.delete(trust::held_by(*node)).delete(trust_of(*node)).delete(declined(*node))
            } else {
                txn
            }
        }
    })
}

/// The outcome of a decision that the state shows to have been made.
fn take_made<T>(unknown: &mut Vec<(Vec<Change>, T)>, snapshot: &Snapshot) -> Option<T> {
    let made = unknown.iter().position(|(changes, _)| changes.iter().all(|change| snapshot.holds(change)))?;
    Some(unknown.swap_remove(made).1)
}

pub(super) fn fresh() -> Fresh {
    Fresh { id: rand::random(), mac: rand::random(), now: clock::unix_seconds() }
}
