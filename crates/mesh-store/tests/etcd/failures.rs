//! Members that die, hang and come back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::Client;
use mesh_store::{Change, Error, EtcdOptions, EtcdStore, Event, Revision, Store, Txn, Watch};
use tokio::task::JoinHandle;

use crate::member::{Member, answers};
use crate::{SOON, next, open, refusal};

/// How soon a cluster must take changes again after it lost its leader. An election takes a second or two here.
const FAILOVER: Duration = Duration::from_secs(15);

/// What an operation may take beyond its timeout before we say that it hangs.
const SLACK: Duration = Duration::from_secs(5);

/// Commits one number after the other for as long as `more` says, and returns those acknowledged.
fn write(
    store: EtcdStore,
    more: impl Fn(usize) -> bool + Send + 'static,
) -> JoinHandle<BTreeMap<Revision, u64>> {
    tokio::spawn(async move {
        let mut acknowledged = BTreeMap::new();
        for number in 0.. {
            match store.commit(Txn::new().put("number", number.to_string())).await {
                Ok(revision) => drop(acknowledged.insert(revision, number)),
                Err(Error::Unknown { .. } | Error::Unreachable { .. }) => {}
                Err(err) => panic!("{err}"),
            }
            if !more(acknowledged.len()) {
                break;
            }
        }
        acknowledged
    })
}

fn number(event: &Event) -> (Revision, u64) {
    let [Change::Put(entry)] = &event.changes[..] else { panic!("one put in {event:?}") };
    (event.revision, str::from_utf8(&entry.value).unwrap().parse().unwrap())
}

async fn collect(watch: &mut dyn Watch, newest: Revision) -> Vec<(Revision, u64)> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(revision, _)| *revision < newest) {
        seen.push(number(&next(watch).await.expect("the watch goes on")));
    }
    seen
}

/// Three members that are one etcd.
async fn trio() -> (Vec<Member>, EtcdOptions) {
    let members = [Member::new(), Member::new(), Member::new()];
    let cluster = members.each_ref().map(|member| format!("{0}=http://{0}:2380", member.address())).join(",");
    let mut members = members.map(|member| {
        let arguments = vec![format!("--initial-cluster={cluster}")];
        member.with_arguments("http", arguments)
    });
    members.iter_mut().for_each(Member::spawn);
    let options = EtcdOptions::new(members.iter().map(Member::url), "test");
    for member in &members {
        answers(&member.options()).await;
    }
    (members.into(), options)
}

async fn leader(members: &[Member]) -> usize {
    for (index, member) in members.iter().enumerate() {
        let mut etcd = Client::connect([member.url()], None).await.unwrap();
        let status = etcd.status().await.unwrap();
        if status.header().unwrap().member_id() == status.leader() {
            return index;
        }
    }
    panic!("no leader");
}

#[tokio::test]
async fn a_killed_etcd_loses_nothing_and_the_watch_goes_on() {
    let mut member = Member::start().await;
    let store = open(member.options()).await;
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = write(store.clone(), move |_| !*stopped.borrow());
    let watcher = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Ok(Ok(event)) = tokio::time::timeout(SOON, watch.next()).await {
            seen.push(number(&event));
            if seen.last().is_some_and(|(_, number)| *number == u64::MAX) {
                break;
            }
        }
        seen
    });
    for _ in 0..3 {
        let (_, before) = store.range("").await.unwrap();
        while store.range("").await.unwrap().1 < before + 50 {
            tokio::task::yield_now().await;
        }
        member.kill();
        member.run().await;
    }
    stop.send(true).unwrap();
    let acknowledged = writer.await.unwrap();
    store.commit(Txn::new().put("number", u64::MAX.to_string())).await.unwrap();

    let seen = watcher.await.unwrap();
    let revisions: Vec<_> = seen.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(
        revisions,
        (start + 1..=start + seen.len() as u64).collect::<Vec<_>>(),
        "no gap, no duplicate"
    );
    assert_eq!(seen.last().map(|(_, number)| *number), Some(u64::MAX), "up to the end");
    assert!(acknowledged.len() >= 100, "only {} commits", acknowledged.len());
    let seen: BTreeMap<_, _> = seen.into_iter().collect();
    for (revision, number) in acknowledged {
        assert_eq!(seen.get(&revision), Some(&number), "acknowledged at {revision} and lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_holds_writes_up_for_seconds_only() {
    let (mut members, options) = trio().await;
    let store = open(options).await;
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    for _ in 0..2 {
        let leader = leader(&members).await;
        members[leader].kill();
        let killed = Instant::now();
        let acknowledged = write(store.clone(), |count| count < 20).await.unwrap();
        assert!(killed.elapsed() < FAILOVER, "{:?}", killed.elapsed());
        let newest = *acknowledged.last_key_value().unwrap().0;
        let seen: BTreeMap<_, _> = collect(&mut *watch, newest).await.into_iter().collect();
        assert!(acknowledged.iter().all(|(revision, number)| seen.get(revision) == Some(number)));
        members[leader].run().await;
    }
}

#[tokio::test]
async fn compaction_while_the_watch_is_away_is_told() {
    let mut member = Member::start().await;
    let store = open(member.options()).await;
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    member.kill();
    member.run().await;
    let mut newest = start;
    for _ in 0..5 {
        newest = store.commit(Txn::new().put("a", "")).await.unwrap();
    }
    assert_eq!(store.compact(1).await.unwrap(), newest - 1);
    for _ in 0..2 {
        let err = next(&mut *watch).await.unwrap_err();
        assert!(matches!(err, Error::Compacted { oldest } if oldest == newest - 1), "{err}");
    }
    let mut anew = store.watch("", newest - 1).await.unwrap();
    assert_eq!(next(&mut *anew).await.unwrap().revision, newest);
}

#[tokio::test]
async fn another_member_takes_over_from_one_that_hangs() {
    let (members, options) = trio().await;
    let store = open(options.clone()).await;
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    let first = store.commit(Txn::new().put("number", "1")).await.unwrap();
    assert_eq!(number(&next(&mut *watch).await.unwrap()), (first, 1));

    // The one that all is spoken with: the first that answered. Nothing is asked for longer than an answer counts as
    // fresh, so what is changed next is not entrusted to it, and its outcome is known.
    members[0].signal("STOP");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let began = Instant::now();
    let second = store.commit(Txn::new().put("number", "2")).await.unwrap();
    store.get("number").await.expect("a read goes to another member");
    assert!(began.elapsed() < options.timeout + SLACK, "{:?}", began.elapsed());
    assert_eq!(number(&next(&mut *watch).await.unwrap()), (second, 2));
    open(options).await;

    members[0].signal("CONT");
    let third = store.commit(Txn::new().put("number", "3")).await.unwrap();
    assert_eq!(number(&next(&mut *watch).await.unwrap()), (third, 3));
}

#[tokio::test]
async fn an_etcd_that_hangs_ends_operations_by_their_timeout() {
    let member = Member::start().await;
    let options = EtcdOptions { timeout: Duration::from_secs(2), ..member.options() };
    let store = open(options.clone()).await;
    let (_, start) = store.range("").await.unwrap();
    let mut watch = store.watch("", start).await.unwrap();
    store.commit(Txn::new().put("number", "1")).await.unwrap();
    member.signal("STOP");

    // Sent over a connection that has just answered.
    let began = Instant::now();
    let err = store.commit(Txn::new().put("number", "2")).await.unwrap_err();
    assert!(matches!(&err, Error::Unknown { endpoint, .. } if *endpoint == member.url()), "{err}");
    assert_eq!(err.to_string().lines().count(), 1);
    // Not sent at all: nothing answers.
    let err = store.commit(Txn::new().put("number", "3")).await.unwrap_err();
    assert!(matches!(err, Error::Unreachable { .. }), "{err}");
    let err = store.get("number").await.unwrap_err();
    assert!(matches!(err, Error::Unreachable { .. }), "{err}");
    assert!(began.elapsed() < options.timeout * 3 + SLACK, "{:?}", began.elapsed());

    member.signal("CONT");
    answers(&options).await;
    let last = store.commit(Txn::new().put("number", "4")).await.unwrap();
    let seen: Vec<_> = collect(&mut *watch, last).await.into_iter().map(|(_, number)| number).collect();
    // The one whose outcome was unknown may have been done; the one not sent was not.
    assert!(seen == [1, 4] || seen == [1, 2, 4], "{seen:?}");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let member = Member::new();
    let options = EtcdOptions { timeout: Duration::from_secs(1), ..member.options() };
    let began = Instant::now();
    let err = refusal(EtcdStore::open(options).await);
    assert!(began.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", began.elapsed());
    assert!(matches!(&err, Error::Unreachable { .. }), "{err:?}");
    let text = err.to_string();
    assert!(text.contains(&member.url()) && text.contains("refused") && text.lines().count() == 1, "{text}");
}
