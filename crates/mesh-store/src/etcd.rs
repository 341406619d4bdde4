//! The driver for several managers: an etcd cluster (3.4 or newer) that they share.
//!
//! ```text
//! get, range ──► one connection, kept; the next endpoint when it fails ──────► etcd
//! commit ──────► the same, once it answered within the last second ──────────► etcd: one Txn request
//! watch ───────► a connection of its own, opened anew from the last revision ► etcd: a Watch stream
//! ```
//!
//! Keys live under `/meshd/<cluster>/`, so that clusters and other programs can share one etcd. Revisions are etcd's
//! own and count what others write as well: those of one cluster grow, but not always by one. Likewise
//! [`compact`](Store::compact) forgets the history of everybody who shares the etcd.
//!
//! etcd takes at most 1.5 MiB in one transaction (its `--max-request-bytes`), and ours up to 64 × 64 operations.

mod assemble;
mod connections;
mod fault;
mod keyspace;
mod members;
mod options;
mod request;
mod watch;

use std::sync::Arc;

use etcd_client::{GetOptions, GetResponse, ResponseHeader};
use tokio::sync::watch as signal;

use crate::etcd::connections::Connections;
pub use crate::etcd::fault::EtcdRefusal;
use crate::etcd::fault::Failure;
use crate::etcd::keyspace::Keyspace;
pub use crate::etcd::members::{EtcdMember, EtcdMembersChange};
pub use crate::etcd::options::{EtcdClientCertificate, EtcdOptions, EtcdTls};
use crate::etcd::watch::EtcdWatch;
use crate::{Entry, Error, Reply, Revision, Store, Txn, Watch};

/// How many entries are read in one request.
const PAGE_ENTRIES: i64 = 500;

/// How often a range is begun anew because the revision it reads at was compacted meanwhile.
const RANGE_ATTEMPTS: usize = 5;

/// A cluster's keys in an etcd. Cheap to clone; watches end with the last clone.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

/// What clones of a store share.
struct Shared {
    etcd: Arc<Connections>,
    keyspace: Keyspace,
    /// Watches end when this goes.
    alive: signal::Sender<()>,
}

impl EtcdStore {
    /// Connects, and makes sure that a quorum answers.
    ///
    /// Errors: [`Error::Options`], [`Error::Unreachable`], [`Error::Refused`].
    pub async fn open(options: EtcdOptions) -> Result<Self, Error> {
        let keyspace = Keyspace::new(&options.cluster)?;
        let etcd = Arc::new(Connections::new(&options, keyspace.root())?);
        etcd.probe().await?;
        Ok(Self { shared: Arc::new(Shared { etcd, keyspace, alive: signal::Sender::new(()) }) })
    }

    /// Trusts and shows other certificates from now on: for new connections, those that exist go on.
    ///
    /// Errors: [`Error::Options`].
    pub fn renew(&self, tls: EtcdTls) -> Result<(), Error> {
        self.shared.etcd.renew(tls)
    }

    async fn range_once(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Failure> {
        let Shared { etcd, keyspace, .. } = &*self.shared;
        let (mut from, end) = (keyspace.key(prefix), keyspace.end(prefix));
        let mut found = Vec::new();
        let mut revision = 0;
        loop {
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE_ENTRIES).with_revision(revision);
            let mut page = etcd.get(&from, &options).await?;
            // The pages that follow are read as of the first one.
            if revision == 0 {
                revision = page.header().map_or(0, ResponseHeader::revision);
            }
            for pair in page.take_kvs() {
                from = [pair.key(), b"\0"].concat();
                found.push(keyspace.entry(pair)?);
            }
            if !page.more() {
                return Ok((found, unsigned(revision)));
            }
        }
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Entry>> {
        Box::pin(async move {
            let keyspace = &self.shared.keyspace;
            let mut found = self.shared.etcd.get(&keyspace.key(key), &GetOptions::new()).await?;
            found.take_kvs().pop().map(|pair| keyspace.entry(pair)).transpose()
        })
    }

    fn range<'a>(&'a self, prefix: &'a str) -> Reply<'a, (Vec<Entry>, Revision)> {
        Box::pin(async move {
            for _ in 1..RANGE_ATTEMPTS {
                match self.range_once(prefix).await {
                    Err(Failure::Compacted) => {}
                    other => return Ok(other?),
                }
            }
            Ok(self.range_once(prefix).await?)
        })
    }

    /// A failure after the transaction was sent is [`Error::Unknown`]: it is not repeated, as it may have been done.
    fn commit(&self, txn: Txn) -> Reply<'_, Revision> {
        Box::pin(async move {
            txn.validate()?;
            let request = request::build(&txn, &self.shared.keyspace)?;
            let response = self
                .shared
                .etcd
                .write(|client| {
                    let (mut client, request) = (client.kv_client(), request.clone());
                    async move { client.txn(request).await }
                })
                .await?;
            if !response.succeeded() {
                return Err(request::conflict(&txn, &response));
            }
            Ok(revision_of(response.header()))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let Shared { etcd, keyspace, alive } = &*self.shared;
            let watch =
                EtcdWatch::open(Arc::clone(etcd), keyspace.clone(), alive.subscribe(), prefix, after).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    /// The revisions of all who share the etcd are counted, and their history goes too.
    fn compact(&self, keep: u64) -> Reply<'_, Revision> {
        Box::pin(async move {
            let etcd = &self.shared.etcd;
            let horizon = etcd.probe().await?.saturating_sub(keep);
            if horizon > 0 {
                let compacted = etcd.read(|client| {
                    let mut client = client.kv_client();
                    async move { client.compact(signed(horizon), None).await }
                });
                match compacted.await {
                    Ok(_) => return Ok(horizon),
                    // Somebody was there first.
                    Err(Failure::Compacted) => {}
                    Err(other) => return Err(other.into()),
                }
            }
            watch::oldest(etcd, &self.shared.keyspace).await
        })
    }
}

/// A revision as etcd's interface has it.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or_default()
}

fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision()))
}

impl Connections {
    /// Reads one key or range, linearizably.
    async fn get(&self, key: &[u8], options: &GetOptions) -> Result<GetResponse, Failure> {
        self.read(|client| {
            let (mut client, key, options) = (client.kv_client(), key.to_vec(), options.clone());
            client = client.max_decoding_message_size(usize::MAX);
            async move { client.get(key, Some(options)).await }
        })
        .await
    }
}
