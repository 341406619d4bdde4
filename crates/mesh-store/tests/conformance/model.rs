//! Random transactions against a map that is obviously right.

use std::collections::BTreeMap;

use mesh_store::{Change, Entry, Error, Event, Expected, Op, Revision, Store, Txn};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::suite::{Fixture, next};

#[derive(Clone, Debug)]
enum Step {
    Commit(Txn),
    Compact(u64),
    Restart,
}

/// The reference: state, and every event there ever was.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    events: Vec<Event>,
    revision: Revision,
}

impl Model {
    /// `None`: a compare does not hold.
    fn commit(&mut self, txn: &Txn) -> Option<Revision> {
        let holds = txn.compares().iter().all(|compare| {
            let found = self.entries.get(&compare.key).map(|entry| entry.mod_revision);
            match compare.expected {
                Expected::Absent => found.is_none(),
                Expected::Revision(revision) => found == Some(revision),
            }
        });
        if !holds {
            return None;
        }
        let revision = self.revision + 1;
        let changes: Vec<_> = txn.ops().iter().flat_map(|op| self.apply(op, revision)).collect();
        if !changes.is_empty() {
            self.revision = revision;
            self.events.push(Event { revision, changes });
        }
        Some(self.revision)
    }

    fn apply(&mut self, op: &Op, mod_revision: Revision) -> Vec<Change> {
        let gone = |key: &String| -> bool {
            match op {
                Op::Put { .. } => false,
                Op::Delete { key: deleted } => key == deleted,
                Op::DeletePrefix { prefix } => key.starts_with(prefix),
            }
        };
        if let Op::Put { key, value } = op {
            let entry = Entry { key: key.clone(), value: value.clone(), mod_revision };
            self.entries.insert(key.clone(), entry.clone());
            return vec![Change::Put(entry)];
        }
        let keys: Vec<_> = self.entries.keys().filter(|key| gone(key)).cloned().collect();
        self.entries.retain(|key, _| !gone(key));
        keys.into_iter().map(|key| Change::Delete { key }).collect()
    }

    /// What a watch on `prefix` must show after `after`.
    fn watched(&self, prefix: &str, after: Revision) -> Vec<Event> {
        let seen = self.events.iter().filter(|event| event.revision > after).map(|event| Event {
            revision: event.revision,
            changes: event.changes.iter().filter(|c| c.key().starts_with(prefix)).cloned().collect(),
        });
        seen.filter(|event| !event.changes.is_empty()).collect()
    }
}

/// Few keys, so that transactions meet.
fn key() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ab](/[ab])?").expect("a pattern")
}

fn txn() -> impl Strategy<Value = Txn> {
    // Compares name a revision from a small range after the start: some hold, some don't.
    let compare = (key(), prop_oneof![Just(None), (1..12u64).prop_map(Some)]);
    let compares = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(compare, 1..3)];
    let op = prop_oneof![
        3 => (key(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(key, value)| Op::Put { key, value }),
        1 => key().prop_map(|key| Op::Delete { key }),
        1 => "[ab]/?".prop_map(|prefix| Op::DeletePrefix { prefix }),
    ];
    (compares, prop::collection::vec(op, 0..4)).prop_map(|(compares, ops)| {
        let txn = compares.into_iter().fold(Txn::new(), |txn, (key, revision)| match revision {
            None => txn.expect_absent(key),
            Some(revision) => txn.expect_revision(key, revision),
        });
        ops.into_iter().fold(txn, |txn, op| match op {
            Op::Put { key, value } => txn.put(key, value),
            Op::Delete { key } => txn.delete(key),
            Op::DeletePrefix { prefix } => txn.delete_prefix(prefix),
        })
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => txn().prop_map(Step::Commit),
        1 => (0..20u64).prop_map(Step::Compact),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

pub(crate) fn random_transactions_behave_as_the_model<F: Fixture>() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut runner =
        TestRunner::new(Config { cases: F::CASES, failure_persistence: None, ..Config::default() });
    runner
        .run(&steps(), |steps| runtime.block_on(compare_with_model::<F>(steps)))
        .expect("store equals model");
}

async fn compare_with_model<F: Fixture>(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut fixture = F::start().await;
    let (_, start) = fixture.store().range("").await.unwrap();
    let mut model = Model { revision: start, ..Model::default() };
    let mut oldest = start;
    for step in steps {
        match step {
            Step::Commit(txn) => commit_both(&*fixture.store(), &mut model, txn).await?,
            Step::Compact(keep) => {
                oldest = oldest.max(model.revision.saturating_sub(keep));
                prop_assert_eq!(fixture.store().compact(keep).await.unwrap(), oldest);
            }
            Step::Restart => fixture.restart().await,
        }
        let (entries, revision) = fixture.store().range("").await.unwrap();
        let expected: Vec<_> = model.entries.values().cloned().collect();
        prop_assert_eq!((entries, revision), (expected, model.revision));
    }
    let store = fixture.store();
    for prefix in ["", "a", "b/"] {
        let mut watches = Vec::new();
        for after in oldest..=model.revision {
            watches.push((after, store.watch(prefix, after).await.unwrap()));
        }
        for (after, mut watch) in watches {
            for event in model.watched(prefix, after) {
                prop_assert_eq!(next(&mut *watch).await.unwrap(), event);
            }
        }
        let nothing_older = oldest == start || store.watch(prefix, oldest - 1).await.is_err();
        prop_assert!(nothing_older, "a watch was granted on compacted history");
    }
    Ok(())
}

async fn commit_both(store: &dyn Store, model: &mut Model, txn: Txn) -> Result<(), TestCaseError> {
    match store.commit(txn.clone()).await {
        Ok(revision) => prop_assert_eq!(Some(revision), model.commit(&txn)),
        // The refusal of contradictions has a test of its own.
        Err(Error::InvalidTxn(_)) => {}
        Err(Error::Conflict { .. }) => prop_assert_eq!(None, model.commit(&txn)),
        Err(err) => return Err(TestCaseError::fail(err.to_string())),
    }
    Ok(())
}
