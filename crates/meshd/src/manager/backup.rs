//! Backups: every record of the store at one revision, and the key that opens its secrets. Whoever reads one rules the
//! cluster.
//!
//! ```text
//! meshd backup 1
//! {"cluster":…,"node":…,"revision":…,"time":…,"version":…}
//! {"key":…,"records":[{"key":…,"value":BASE64},…]}
//! sha256 HEX
//! ```
//!
//! The last line is the SHA-256 of all before it. The first is never but for its number: a newer format is told from a
//! damaged file.

use super::{
    Error, FirstNode, Manager, authority, journal,
    secrets::StoreKey,
    state::{self, EPOCH, GUARD, HISTORY},
};
use crate::{clock, config::Config, identity::Identity};
use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_api::StoreSpec;
use mesh_cluster::{Credentials, Fingerprint, NODE_LIFETIME};
use mesh_model::{Action, ClusterId, Event, Key, Name, Node, Object, Role, Snapshot};
use mesh_store::{Change, Entry};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

const MAGIC: &str = "meshd backup ";
const FORMAT: u32 = 1;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) cluster: ClusterId,
    /// The manager that made it.
    pub(crate) node: Name,
    pub(crate) revision: u64,
    /// When, in seconds since 1970.
    pub(crate) time: u64,
    /// Of the meshd that made it.
    pub(crate) version: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    key: StoreKey,
    records: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    value: String,
}

/// A backup that was checked: it is whole, and its secrets can be opened.
pub(crate) struct Backup {
    pub(crate) header: Header,
    key: StoreKey,
    records: Vec<(String, Vec<u8>)>,
    snapshot: Snapshot,
}

/// A manager of a backup, about to be one again.
pub(crate) struct Restoration {
    pub(crate) identity: Identity,
    pub(crate) first: FirstNode,
    pub(crate) credentials: Credentials,
    /// The other managers, which are workers from now on.
    pub(crate) demoted: Vec<Arc<Node>>,
    /// All other nodes of the backup: any of them may have become a manager since.
    pub(crate) others: Vec<Arc<Node>>,
    key: StoreKey,
}

impl Manager {
    /// The state as it is now, as text.
    pub(crate) async fn backup(&self) -> Result<String, Error> {
        let (entries, revision) = self.store.range("").await?;
        let header = Header {
            cluster: self.identity.cluster,
            node: self.identity.name.clone(),
            revision,
            time: clock::unix_seconds(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let records = entries.into_iter().map(|entry| (entry.key, entry.value));
        Ok(encode(&header, &self.key, records))
    }
}

fn encode(header: &Header, key: &StoreKey, records: impl Iterator<Item = (String, Vec<u8>)>) -> String {
    let records = records.map(|(key, value)| Record { key, value: STANDARD.encode(value) }).collect();
    let content = Content { key: key.clone(), records };
    let plain = |e| unreachable!("backups are plain data: {e}");
    let header = serde_json::to_string(header).unwrap_or_else(plain);
    let content = serde_json::to_string(&content).unwrap_or_else(plain);
    let text = format!("{MAGIC}{FORMAT}\n{header}\n{content}\n");
    let sum = Fingerprint::of(text.as_bytes());
    format!("{text}sha256 {sum}\n")
}

/// Checks everything that can be checked without the rest of the world.
fn decode(backup: &[u8]) -> anyhow::Result<(Header, Content)> {
    const CUT: &str = "the backup is cut short or altered";
    ensure!(
        backup.starts_with(MAGIC.as_bytes()),
        "this is no backup: 'meshctl cluster backup FILE' makes one"
    );
    let text = std::str::from_utf8(backup).context(CUT)?;
    let (first, rest) = text.split_once('\n').context(CUT)?;
    let format: u32 = first.strip_prefix(MAGIC).and_then(|number| number.parse().ok()).context(CUT)?;
    ensure!(
        format == FORMAT,
        "the backup has format {format}, this meshd knows format {FORMAT}: use a newer meshd"
    );
    let (summed, sum) = text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n')).context(CUT)?;
    let expected = format!("sha256 {}", Fingerprint::of(&backup[..summed.len() + 1]));
    ensure!(sum == expected, "{CUT}: its checksum is not that of its content");
    let (header, rest) = rest.split_once('\n').context(CUT)?;
    let (content, _) = rest.split_once('\n').context(CUT)?;
    Ok((serde_json::from_str(header).context(CUT)?, serde_json::from_str(content).context(CUT)?))
}

impl Backup {
    /// Reads a backup and all that is in it.
    pub(crate) fn parse(backup: &[u8]) -> anyhow::Result<Self> {
        let (header, Content { key, records }) = decode(backup)?;
        let mut snapshot = Snapshot::default();
        let mut decoded = Vec::new();
        for Record { key, value } in records {
            let value = STANDARD.decode(value).with_context(|| format!("record {key} is damaged"))?;
            let entry = Entry { key: key.clone(), value: value.clone(), mod_revision: 0 };
            if let Some(change) = state::decode(Change::Put(entry))? {
                snapshot.apply(change);
            }
            decoded.push((key, value));
        }
        let cluster = snapshot.cluster.as_ref().map(|cluster| cluster.id);
        ensure!(
            cluster == Some(header.cluster),
            "the backup holds nothing of its cluster {}",
            header.cluster
        );
        Ok(Self { header, key, records: decoded, snapshot })
    }

    /// This host as the manager that it was: the one with an address of its own (`is_own`). It gets a new certificate.
    /// There is one manager from now on; the others become workers, since their stores are of another history.
    pub(crate) fn restore(mut self, is_own: impl Fn(IpAddr) -> bool) -> anyhow::Result<Restoration> {
        let managers: Vec<_> =
            self.snapshot.nodes.values().filter(|node| node.role == Role::Manager).cloned().collect();
        let Some(node) = managers.iter().find(|node| is_own(node.advertise.ip())).cloned() else {
            let names: Vec<_> =
                managers.iter().map(|n| format!("{} ({})", n.name, n.advertise.ip())).collect();
            bail!(
                "this host was no manager of cluster {}: restore it on one that has the address of {}",
                self.header.cluster,
                names.join(" or ")
            );
        };
        let sealed = self.records.iter().find(|(key, _)| key == authority::RECORD);
        let (_, sealed) = sealed.context("the backup has no CA")?;
        let authority = authority::open(&self.key, sealed)?;
        let lifetime = self.snapshot.cluster.as_ref().map_or(NODE_LIFETIME, |cluster| cluster.cert_expiry_s);
        let now = clock::unix_seconds();
        let credentials = Credentials::issue(&authority, node.id, Role::Manager, now, lifetime)?;
        let identity = Identity {
            cluster: self.header.cluster,
            node: node.id,
            name: node.name.clone(),
            role: Role::Manager,
            advertise: node.advertise,
            managers: vec![node.advertise],
            store: StoreSpec::Redb,
        };
        let demoted: Vec<_> = managers.into_iter().filter(|other| other.id != node.id).collect();
        for other in &demoted {
            let key = Key::Node(other.id).to_string();
            let worker = Object::Node(Arc::new(Node { role: Role::Worker, ..Node::clone(other) }));
            self.put(&key, state::encode(&worker));
        }
        // A new epoch is drawn when this is committed: revisions start anew.
        self.records.retain(|(key, _)| key != EPOCH && key != HISTORY);
        self.put(GUARD, journal::written(vec![self.event()]));
        let others = self.snapshot.nodes.values().filter(|other| other.id != node.id).cloned().collect();
        let first = FirstNode { records: self.records };
        Ok(Restoration { identity, first, credentials, demoted, others, key: self.key })
    }

    fn put(&mut self, key: &str, value: Vec<u8>) {
        self.records.retain(|(known, _)| known != key);
        self.records.push((key.to_owned(), value));
    }

    fn event(&self) -> Event {
        let id = self.header.cluster.to_string();
        let detail = format!("restored from a backup of revision {}", self.header.revision);
        Event { action: Action::Updated, kind: "cluster".to_owned(), name: id.clone(), id, detail }
    }
}

impl Restoration {
    /// Writes what the node keeps outside the store, its identity last.
    pub(crate) fn save(&self, config: &Config) -> anyhow::Result<()> {
        self.key.save(&config.data_dir)?;
        self.identity.save(&config.data_dir, &self.credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            cluster: ClusterId::from_bits(7),
            node: "vm1".parse().unwrap(),
            revision: 42,
            time: 1_795_470_606,
            version: "0.1.0".to_owned(),
        }
    }

    fn sample() -> String {
        let records = [("guard", &b""[..]), ("token/worker", &[0, 159, 255]), ("x", b"{}")];
        let records = records.into_iter().map(|(key, value)| (key.to_owned(), value.to_vec()));
        encode(&header(), &StoreKey::generate(), records)
    }

    fn refusal(backup: &[u8]) -> String {
        match decode(backup) {
            Ok(_) => panic!("it was taken"),
            Err(e) => format!("{e:#}"),
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused() {
        let text = sample();
        assert_eq!(decode(text.as_bytes()).unwrap().0, header());
        for place in 0..text.len() {
            refusal(&text.as_bytes()[..place]);
            for mask in [0x01, 0x20, 0x80] {
                let mut changed = text.clone().into_bytes();
                changed[place] ^= mask;
                refusal(&changed);
            }
        }
        refusal(format!("{text}\n").as_bytes());
    }

    #[test]
    fn refusals_say_what_it_is() {
        let text = sample();
        assert!(refusal(b"PK\x03\x04").contains("no backup"));
        assert!(refusal(text.replacen("backup 1", "backup 2", 1).as_bytes()).contains("newer meshd"));
        assert!(refusal(text.replacen("vm1", "vm2", 1).as_bytes()).contains("checksum"));
        assert!(refusal(&text.as_bytes()[..100]).contains("cut short"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec((".*", prop::collection::vec(any::<u8>(), 0..50)), 0..9)) {
            let text = encode(&header(), &StoreKey::generate(), records.clone().into_iter());
            let (_, content) = decode(text.as_bytes()).unwrap();
            let read: Vec<_> =
                content.records.into_iter().map(|r| (r.key, STANDARD.decode(r.value).unwrap())).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let behind = [sample().as_bytes(), &garbage].concat();
            prop_assert!(garbage.is_empty() || decode(&behind).is_err());
            prop_assert!(decode(&garbage).is_err());
        }
    }
}
