//! The cases, written against the trait.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesh_store::{Change, Entry, Error, Event, Expected, Revision, Store, Txn, Watch};

/// One driver with a store of its own.
pub(crate) trait Fixture: Sized {
    /// How many runs against the model are worth their time.
    const CASES: u32;
    /// A new, empty store that keeps the history of the tests.
    fn start() -> impl Future<Output = Self>;
    /// The running store.
    fn store(&self) -> Arc<dyn Store>;
    /// Ends the store and starts it on the same data. The caller has dropped what `store` returned.
    fn restart(&mut self) -> impl Future<Output = ()>;
}

pub(crate) async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    store.commit(Txn::new().put(key, value)).await.expect("put")
}

/// The next event, which must come soon.
pub(crate) async fn next(watch: &mut dyn Watch) -> Result<Event, Error> {
    let deadline = Duration::from_secs(10);
    tokio::time::timeout(deadline, watch.next()).await.expect("an event before the deadline")
}

fn entry(key: &str, value: &str, mod_revision: Revision) -> Entry {
    Entry { key: key.to_owned(), value: value.into(), mod_revision }
}

fn deleted(key: &str) -> Change {
    Change::Delete { key: key.to_owned() }
}

pub(crate) async fn a_key_is_what_was_put_last(fixture: impl Fixture) {
    let store = fixture.store();
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = put(&*store, "a", "one").await;
    assert_eq!(store.get("a").await.unwrap(), Some(entry("a", "one", first)));
    let second = put(&*store, "a", "two").await;
    assert_eq!(second, first + 1);
    assert_eq!(store.get("a").await.unwrap(), Some(entry("a", "two", second)));
    store.commit(Txn::new().delete("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
}

pub(crate) async fn a_range_is_ordered_and_knows_its_revision(fixture: impl Fixture) {
    let store = fixture.store();
    let (empty, start) = store.range("").await.unwrap();
    assert_eq!((empty, start >= 1), (vec![], true), "an empty store has a revision");
    for key in ["n/b", "n/a", "n", "m/z", "n0", "o"] {
        put(&*store, key, key).await;
    }
    let (entries, revision) = store.range("n/").await.unwrap();
    assert_eq!(revision, start + 6);
    assert_eq!(entries, vec![entry("n/a", "n/a", start + 2), entry("n/b", "n/b", start + 1)]);
    let (all, _) = store.range("").await.unwrap();
    let keys: Vec<_> = all.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["m/z", "n", "n/a", "n/b", "n0", "o"]);
}

pub(crate) async fn a_transaction_is_all_or_nothing(fixture: impl Fixture) {
    let store = fixture.store();
    let first = put(&*store, "a", "one").await;
    let txn = || Txn::new().put("b", "new").delete("a").put("c/1", "new");
    let err = store.commit(txn().expect_revision("a", first).expect_absent("a")).await.unwrap_err();
    assert!(matches!(err, Error::Conflict { .. }), "{err}");
    let (entries, revision) = store.range("").await.unwrap();
    assert_eq!((entries, revision), (vec![entry("a", "one", first)], first), "nothing was done");

    let second = store.commit(txn().expect_revision("a", first).expect_absent("b")).await.unwrap();
    assert_eq!(second, first + 1, "one revision for all of it");
    let (entries, _) = store.range("").await.unwrap();
    assert_eq!(entries, vec![entry("b", "new", second), entry("c/1", "new", second)]);
}

pub(crate) async fn a_conflict_names_the_key(fixture: impl Fixture) {
    let store = fixture.store();
    let revision = put(&*store, "service/web", "1").await;
    let cases = [
        ("service/web", Expected::Absent, Some(revision)),
        ("service/web", Expected::Revision(revision - 1), Some(revision)),
        ("service/web", Expected::Revision(revision + 1), Some(revision)),
        ("service/db", Expected::Revision(revision), None),
    ];
    for (name, expectation, actual) in cases {
        let err = store.commit(Txn::new().expect(name, expectation).put("x", "")).await.unwrap_err();
        let Error::Conflict { key, expected, found } = &err else { panic!("{err}") };
        assert_eq!((key.as_str(), *expected, *found), (name, expectation, actual));
        assert!(err.to_string().contains(name), "{err}");
    }
    assert_eq!(store.get("x").await.unwrap(), None);
}

pub(crate) async fn a_transaction_that_changes_nothing_takes_no_revision(fixture: impl Fixture) {
    let store = fixture.store();
    let revision = put(&*store, "a", "1").await;
    for txn in
        [Txn::new(), Txn::new().expect_revision("a", revision), Txn::new().delete("b").delete_prefix("a/")]
    {
        assert_eq!(store.commit(txn).await.unwrap(), revision);
    }
    let err = store.commit(Txn::new().expect_absent("a")).await.unwrap_err();
    assert!(matches!(err, Error::Conflict { .. }), "compares alone are checked: {err}");
    assert_eq!(put(&*store, "a", "1").await, revision + 1, "an equal value is a change");
}

pub(crate) async fn a_contradictory_transaction_is_refused(fixture: impl Fixture) {
    let store = fixture.store();
    for (txn, why) in [
        (Txn::new().put("", "x"), "empty key"),
        (Txn::new().delete(""), "empty key"),
        (Txn::new().expect_absent("").put("a", ""), "empty key"),
        (Txn::new().delete_prefix(""), "empty prefix"),
        (Txn::new().put("a", "1").put("a", "2"), "a is put twice"),
        (Txn::new().put("a", "1").delete("a"), "a is both put and deleted"),
        (Txn::new().delete_prefix("a/").put("a/b", "1"), "a/b is both put and deleted"),
    ] {
        let err = store.commit(txn).await.unwrap_err();
        assert!(matches!(err, Error::InvalidTxn(_)) && err.to_string().contains(why), "{err}: {why}");
    }
    let overlapping = Txn::new().put("a", "1").delete("a/b").delete_prefix("a/").delete_prefix("a/b");
    store.commit(overlapping).await.expect("deletions may overlap, and a is not under a/");
}

pub(crate) async fn one_of_many_concurrent_writers_wins(fixture: impl Fixture) {
    let store = fixture.store();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let address =
                Txn::new().expect_absent("address/10.0.0.2").put("address/10.0.0.2", format!("{writer}"));
            store.commit(address).await
        });
    }
    let outcomes = writers.join_all().await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let lost = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::Conflict { .. }))).count();
    assert_eq!((won, lost), (1, 15));
}

pub(crate) async fn a_watch_continues_from_a_range_without_a_gap(fixture: impl Fixture) {
    let store = fixture.store();
    put(&*store, "a", "before").await;
    let (_, revision) = store.range("").await.unwrap();
    put(&*store, "a", "between").await;
    let mut watch = store.watch("", revision).await.unwrap();
    put(&*store, "a", "after").await;
    for (step, value) in [(1, "between"), (2, "after")] {
        let event = next(&mut *watch).await.unwrap();
        let changes = vec![Change::Put(entry("a", value, revision + step))];
        assert_eq!(event, Event { revision: revision + step, changes });
    }
}

pub(crate) async fn a_watch_shows_a_transaction_whole_and_only_its_prefix(fixture: impl Fixture) {
    let store = fixture.store();
    let start = store.commit(Txn::new().put("n/1", "1").put("n/2", "2").put("m/1", "1")).await.unwrap();
    let mut watch = store.watch("n/", start).await.unwrap();
    put(&*store, "m/1", "unseen").await;
    put(&*store, "n", "unseen").await;
    let txn = Txn::new().put("n/3", "3").put("m/2", "2").delete_prefix("n/1").delete("n/2").delete("n/9");
    let revision = store.commit(txn).await.unwrap();
    let changes = vec![Change::Put(entry("n/3", "3", revision)), deleted("n/1"), deleted("n/2")];
    assert_eq!(next(&mut *watch).await.unwrap(), Event { revision, changes });
}

pub(crate) async fn a_watch_waits_and_wakes(fixture: impl Fixture) {
    let store = fixture.store();
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("a", start).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut *watch).await.map(|event| event.revision) });
    put(&*store, "b", "unseen").await;
    let revision = put(&*store, "a", "seen").await;
    assert_eq!(waiting.await.unwrap().unwrap(), revision);
}

pub(crate) async fn a_dropped_wait_loses_no_event(fixture: impl Fixture) {
    let store = fixture.store();
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    let mut seen = Vec::new();
    for step in 1..=20 {
        let mut commit = store.commit(Txn::new().put("a", format!("{step}")));
        // The wait is dropped wherever it happens to be when the commit is done.
        let revision = tokio::select! {
            revision = &mut commit => revision,
            event = watch.next() => {
                seen.push(event.unwrap().revision);
                commit.await
            }
        };
        assert_eq!(revision.unwrap(), start + step);
    }
    while seen.last() != Some(&(start + 20)) {
        seen.push(next(&mut *watch).await.unwrap().revision);
    }
    assert_eq!(seen, (start + 1..=start + 20).collect::<Vec<_>>());
}

pub(crate) async fn compaction_keeps_the_keys_and_ends_old_watches(fixture: impl Fixture) {
    let store = fixture.store();
    let first = put(&*store, "a", "1").await;
    for step in 2..=10 {
        put(&*store, "a", &step.to_string()).await;
    }
    let newest = first + 9;
    let oldest = store.compact(3).await.unwrap();
    assert_eq!(oldest, newest - 3);
    assert_eq!(store.compact(5).await.unwrap(), oldest, "what is gone does not come back");
    assert_eq!(store.get("a").await.unwrap(), Some(entry("a", "10", newest)));

    let Err(err) = store.watch("", oldest - 1).await else { panic!("history is gone") };
    assert!(matches!(err, Error::Compacted { oldest: said } if said == oldest), "{err}");
    let mut watch = store.watch("", oldest).await.unwrap();
    for revision in oldest + 1..=newest {
        assert_eq!(next(&mut *watch).await.unwrap().revision, revision);
    }
    assert_eq!(store.compact(0).await.unwrap(), newest);
    assert!(store.watch("", newest).await.is_ok());
}

pub(crate) async fn a_slow_watch_ends_with_compacted(fixture: impl Fixture) {
    // More than any driver reads ahead.
    const STEPS: u64 = 400;
    let store = fixture.store();
    let (_, before) = store.range("").await.unwrap();
    let mut watch = store.watch("", before).await.unwrap();
    // Until its first event, etcd may still be gathering the past for it (every 100 ms): then everything that a quick
    // writer has done meanwhile comes at once, and nothing is left to be slow about.
    let start = put(&*store, "a", "first").await;
    assert_eq!(next(&mut *watch).await.unwrap().revision, start);
    let value = "x".repeat(32 << 10);
    for _ in 0..STEPS {
        put(&*store, "a", &value).await;
    }
    store.compact(2).await.unwrap();
    // What it had read ahead it may still hand out, without a gap; then it must say that it lost the thread.
    let mut expected = start + 1;
    let err = loop {
        match next(&mut *watch).await {
            Ok(event) => assert_eq!(event.revision, expected),
            Err(err) => break err,
        }
        expected += 1;
    };
    assert!(matches!(err, Error::Compacted { oldest } if oldest == start + STEPS - 2), "{err}");
}

pub(crate) async fn a_revision_of_another_store_is_refused(fixture: impl Fixture) {
    let store = fixture.store();
    let current = put(&*store, "a", "1").await;
    let Err(err) = store.watch("", current + 1).await else { panic!("no such revision yet") };
    assert!(
        matches!(err, Error::FutureRevision { after, current: said } if (after, said) == (current + 1, current))
    );
}

pub(crate) async fn history_survives_a_restart(mut fixture: impl Fixture) {
    let store = fixture.store();
    let first = put(&*store, "a", "1").await;
    let second = store.commit(Txn::new().put("b", "2").delete("a")).await.unwrap();
    drop(store);
    fixture.restart().await;

    let store = fixture.store();
    assert_eq!(store.range("").await.unwrap(), (vec![entry("b", "2", second)], second));
    let mut watch = store.watch("", first).await.unwrap();
    let changes = vec![Change::Put(entry("b", "2", second)), deleted("a")];
    assert_eq!(next(&mut *watch).await.unwrap(), Event { revision: second, changes });
    assert_eq!(put(&*store, "c", "3").await, second + 1);
    assert_eq!(next(&mut *watch).await.unwrap().revision, second + 1);
}
