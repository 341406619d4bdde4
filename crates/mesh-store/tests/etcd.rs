//! What is particular to the etcd driver, against real etcd processes.

#[path = "etcd/failures.rs"]
mod failures;
#[path = "etcd/member.rs"]
mod member;
#[path = "etcd/members.rs"]
mod members;
#[path = "etcd/sharing.rs"]
mod sharing;
#[path = "etcd/tls.rs"]
mod tls;

use std::time::Duration;

use member::Member;
use mesh_store::{Error, EtcdOptions, EtcdStore, Event, Store, Txn, Watch};

/// How soon things must happen on a busy machine, where nothing is down.
const SOON: Duration = Duration::from_secs(20);

async fn open(options: EtcdOptions) -> EtcdStore {
    EtcdStore::open(options).await.expect("open the store")
}

fn refusal(result: Result<EtcdStore, Error>) -> Error {
    match result {
        Ok(_) => panic!("the store was opened"),
        Err(err) => err,
    }
}

async fn next(watch: &mut dyn Watch) -> Result<Event, Error> {
    tokio::time::timeout(SOON, watch.next()).await.expect("an event before the deadline")
}

#[tokio::test]
async fn a_large_transaction_is_one_event() {
    let member = Member::start().await;
    let store = open(member.options()).await;
    let (_, start) = store.range("").await.unwrap();
    let mut live = store.watch("", start).await.unwrap();
    // Over etcd's 128 operations at once, and three together over what it sends in one response.
    let mut revisions = Vec::new();
    for round in 0..3 {
        let value = vec![round; 320];
        let txn = (0..3500).fold(Txn::new(), |txn, index| txn.put(format!("key/{index:04}"), value.clone()));
        revisions.push(store.commit(txn).await.unwrap());
    }
    let mut late = store.watch("", start).await.unwrap();
    for watch in [&mut live, &mut late] {
        for revision in &revisions {
            let event = next(&mut **watch).await.unwrap();
            assert_eq!((event.revision, event.changes.len()), (*revision, 3500));
            assert!(
                event.changes.iter().map(|change| change.key()).is_sorted(),
                "in the order of operations"
            );
        }
    }
    let (entries, _) = store.range("key/").await.unwrap();
    assert_eq!(entries.len(), 3500, "read in pages");
    assert!(entries.iter().all(|entry| entry.mod_revision == revisions[2]));
    let revision = store.commit(Txn::new().delete_prefix("key/")).await.unwrap();
    let event = next(&mut *late).await.unwrap();
    assert_eq!((event.revision, event.changes.len()), (revision, 3500));
}

#[tokio::test]
async fn what_etcd_does_not_take_is_refused() {
    let member = Member::start().await;
    let store = open(member.options()).await;
    // Over what etcd takes as a request, and over what its transport takes as a message.
    for (size, why) in [(1600 << 10, "too large"), (3 << 20, "larger than max")] {
        let err = store.commit(Txn::new().put("a", vec![0; size])).await.unwrap_err();
        assert!(matches!(&err, Error::Refused { reason, .. } if reason.contains(why)), "{err}");
    }
    let many = (0..5000).fold(Txn::new(), |txn, index| txn.put(format!("{index}"), ""));
    let err = store.commit(many).await.unwrap_err();
    assert!(matches!(&err, Error::InvalidTxn(_)), "{err}");
    assert_eq!(store.range("").await.unwrap().0, []);
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let member = Member::start().await;
    let store = open(member.options()).await;
    let (_, revision) = store.range("").await.unwrap();
    let mut watch = store.watch("", revision).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut *watch).await });
    drop(store);
    let err = waiting.await.unwrap().unwrap_err();
    assert!(matches!(err, Error::Closed), "{err}");
}
