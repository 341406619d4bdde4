//! Several clusters, and other programs, on one etcd.

use etcd_client::Client;
use mesh_store::{Change, Error, EtcdOptions, Store, Txn};

use crate::member::Member;
use crate::{next, open, refusal};

fn cluster(member: &Member, name: &str) -> EtcdOptions {
    EtcdOptions { cluster: name.to_owned(), ..member.options() }
}

#[tokio::test]
async fn clusters_do_not_see_each_other() {
    let member = Member::start().await;
    let (blue, bluer) = (open(cluster(&member, "blue")).await, open(cluster(&member, "bluer")).await);
    let (_, start) = blue.range("").await.unwrap();
    let mut watch = blue.watch("", start).await.unwrap();
    bluer.commit(Txn::new().put("a", "theirs")).await.unwrap();
    let revision = blue.commit(Txn::new().expect_absent("a").put("a", "ours")).await.unwrap();
    assert_eq!(revision, start + 2, "revisions count what others write");

    let (entries, _) = blue.range("").await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].key.as_str(), &*entries[0].value), ("a", &b"ours"[..]));
    let event = next(&mut *watch).await.unwrap();
    assert_eq!((event.revision, event.changes), (revision, vec![Change::Put(entries[0].clone())]));

    bluer.commit(Txn::new().delete_prefix("a")).await.unwrap();
    assert_eq!(blue.range("").await.unwrap().0, entries, "not deleted with theirs");
    assert_eq!(blue.commit(Txn::new().delete("a")).await.unwrap(), revision + 2);
    assert_eq!(next(&mut *watch).await.unwrap().changes, [Change::Delete { key: "a".to_owned() }]);
}

#[tokio::test]
async fn keys_live_under_the_name_of_the_cluster() {
    let member = Member::start().await;
    let store = open(cluster(&member, "blue")).await;
    store.commit(Txn::new().put("network/1", "x")).await.unwrap();
    let mut etcd = Client::connect([member.url()], None).await.unwrap();
    let found = etcd.get("/meshd/blue/network/1", None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"x");

    etcd.put(b"/meshd/blue/\xff".to_vec(), "", None).await.unwrap();
    let err = store.range("").await.unwrap_err();
    assert!(matches!(err, Error::Foreign { .. }), "{err}");
    let err = refusal(mesh_store::EtcdStore::open(cluster(&member, "a/b")).await);
    assert!(matches!(err, Error::Options(_)), "{err}");
}
