//! Members that come and go while the cluster takes changes.

use std::time::{Duration, Instant};

use mesh_store::{Error, EtcdRefusal, EtcdStore, Store, Txn};

use crate::member::{Member, answers};
use crate::{SOON, open};

fn peer_url(member: &Member) -> String {
    format!("http://{}:2380", member.address())
}

/// A process for the member that was added at this URL. It does not run yet.
fn newcomer(existing: &[&Member]) -> Member {
    let member = Member::new();
    let all = existing.iter().copied().chain([&member]);
    let cluster: Vec<_> = all.map(|m| format!("{}={}", m.address(), peer_url(m))).collect();
    let arguments = vec![
        format!("--initial-cluster={}", cluster.join(",")),
        "--initial-cluster-state=existing".to_owned(),
    ];
    member.with_arguments("http", arguments)
}

/// Waits until a quorum answers again.
async fn put(store: &EtcdStore, value: &str) {
    let deadline = Instant::now() + SOON;
    while let Err(err) = store.commit(Txn::new().put("a", value)).await {
        let passes = matches!(err, Error::Unreachable { .. } | Error::Unknown { .. });
        assert!(passes && Instant::now() < deadline, "{err}");
    }
}

/// Asks for a removal that was made, while the rest may still choose who leads.
async fn gone_already(store: &EtcdStore, id: u64) {
    let deadline = Instant::now() + SOON;
    while let Err(err) = store.remove_member(id).await {
        let passes = matches!(err, Error::Unreachable { .. } | Error::Unknown { .. });
        assert!(passes && Instant::now() < deadline, "{err}");
    }
}

#[tokio::test]
async fn a_member_comes_as_a_learner_leads_and_goes() {
    let first = Member::start().await;
    let store = open(first.options()).await;
    put(&store, "1").await;
    let mut second = newcomer(&[&first]);
    let added = store.add_learner(&peer_url(&second), SOON).await.unwrap();
    assert!(added.learner && added.name.is_empty(), "{added:?}");
    assert_eq!(store.add_learner(&peer_url(&second), SOON).await.unwrap(), added, "asked again, added once");
    put(&store, "taken though the new member never started").await;
    let err = store.promote_learner(added.id, Duration::ZERO).await.unwrap_err();
    assert!(matches!(err, Error::Refused { why: EtcdRefusal::LearnerLags, .. }), "{err}");
    let url = peer_url(&Member::new());
    let err = store.add_learner(&url, Duration::ZERO).await.unwrap_err();
    assert!(matches!(err, Error::Refused { why: EtcdRefusal::TooManyLearners, .. }), "{err}");

    second.spawn();
    store.promote_learner(added.id, SOON).await.unwrap();
    store.promote_learner(added.id, SOON).await.expect("votes already");
    // A learner answers no reads; now it is a member like the first.
    answers(&second.options()).await;
    let members = store.members().await.unwrap();
    let mut names: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
    names.sort();
    let mut expected = vec![first.address().to_string(), second.address().to_string()];
    expected.sort();
    assert_eq!(names, expected);
    assert!(members.iter().all(|member| !member.learner));

    let leader = store.leader().await.unwrap().expect("somebody leads");
    let rest = if leader.id == added.id { &first } else { &second };
    let rest = open(rest.options()).await;
    rest.remove_member(leader.id).await.unwrap();
    gone_already(&rest, leader.id).await;
    let err = rest.promote_learner(leader.id, Duration::ZERO).await.unwrap_err();
    assert!(matches!(err, Error::Refused { why: EtcdRefusal::NoSuchMember, .. }), "{err}");
    put(&rest, "2").await;
    assert_eq!(rest.members().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_member_that_never_starts_is_removed_again() {
    let first = Member::start().await;
    let store = open(first.options()).await;
    let added = store.add_learner(&peer_url(&newcomer(&[&first])), SOON).await.unwrap();
    store.remove_member(added.id).await.unwrap();
    assert_eq!(store.members().await.unwrap().len(), 1);
    put(&store, "1").await;
}
