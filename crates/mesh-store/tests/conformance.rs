//! What every driver must do, whatever is behind it. A driver joins by implementing [`suite::Fixture`].

#[allow(dead_code, reason = "some is for the tests in etcd.rs")]
#[path = "etcd/member.rs"]
mod member;
#[path = "conformance/model.rs"]
mod model;
#[path = "conformance/suite.rs"]
mod suite;

use std::sync::Arc;

use member::Member;
use mesh_store::{EtcdStore, Options, RedbStore, Store};
use suite::Fixture;
use tempfile::TempDir;

/// Enough history for every case that does not ask for less.
const HISTORY: u64 = 1000;

struct Redb {
    dir: TempDir,
    store: Option<Arc<dyn Store>>,
}

impl Redb {
    async fn open(dir: &TempDir) -> Arc<dyn Store> {
        let options = Options { history: HISTORY, ..Options::default() };
        Arc::new(RedbStore::open(dir.path().join("store"), options).await.expect("open the store"))
    }
}

impl Fixture for Redb {
    const CASES: u32 = 48;

    async fn start() -> Self {
        let dir = TempDir::new().expect("temporary directory");
        let store = Some(Self::open(&dir).await);
        Self { dir, store }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("a running store")
    }

    async fn restart(&mut self) {
        self.store = None;
        self.store = Some(Self::open(&self.dir).await);
    }
}

/// An etcd of one member.
struct Etcd {
    member: Member,
    store: Option<Arc<dyn Store>>,
}

impl Etcd {
    async fn open(member: &Member) -> Arc<dyn Store> {
        Arc::new(EtcdStore::open(member.options()).await.expect("open the store"))
    }
}

impl Fixture for Etcd {
    const CASES: u32 = 8;

    async fn start() -> Self {
        let member = Member::start().await;
        let store = Some(Self::open(&member).await);
        Self { member, store }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("a running store")
    }

    async fn restart(&mut self) {
        self.store = None;
        self.member.kill();
        self.member.run().await;
        self.store = Some(Self::open(&self.member).await);
    }
}

macro_rules! conformance {
    ($($case:ident),+ $(,)?) => {
        conformance!(redb, super::Redb: $($case),+);
        conformance!(etcd, super::Etcd: $($case),+);
    };
    ($module:ident, $fixture:ty: $($case:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $case() {
                super::suite::$case(<$fixture as super::suite::Fixture>::start().await).await;
            })+

            #[test]
            fn random_transactions_behave_as_the_model() {
                super::model::random_transactions_behave_as_the_model::<$fixture>();
            }
        }
    };
}

conformance!(
    a_key_is_what_was_put_last,
    a_range_is_ordered_and_knows_its_revision,
    a_transaction_is_all_or_nothing,
    a_conflict_names_the_key,
    a_transaction_that_changes_nothing_takes_no_revision,
    a_contradictory_transaction_is_refused,
    one_of_many_concurrent_writers_wins,
    a_watch_continues_from_a_range_without_a_gap,
    a_watch_shows_a_transaction_whole_and_only_its_prefix,
    a_watch_waits_and_wakes,
    a_dropped_wait_loses_no_event,
    compaction_keeps_the_keys_and_ends_old_watches,
    a_slow_watch_ends_with_compacted,
    a_revision_of_another_store_is_refused,
    history_survives_a_restart,
);
