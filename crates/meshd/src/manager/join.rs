//! How nodes become members: the first by `cluster init`, the others with a token.

use super::{
    Error, Manager, authority,
    secrets::StoreKey,
    state::{encode, with_epoch},
};
use crate::{
    clock,
    config::Config,
    identity::Identity,
    wire::{JoinReply, JoinRequest},
};
use anyhow::Context;
use ipnetwork::IpNetwork;
use mesh_api::{Init, JoinTokenRequest, JoinTokenView, StoreSpec};
use mesh_cluster::{Authority, Credentials, JoinToken, TokenRecord};
use mesh_model::{
    Change, Cluster, ClusterId, Key, NodeId, NodeSpec, NodeStatus, Object, Refusal, Role, Snapshot, admit,
};
use mesh_store::{Store, Txn};
use serde::{Deserialize, Serialize};
use std::{net::Ipv6Addr, sync::Arc};

/// Subnets of networks; far from the 10.0.0.0/16 and 192.168.0.0/16 that many sites use.
const ADDRESS_POOL: &str = "10.128.0.0/9";
/// The nodes' own overlay addresses: from the shared address space (RFC 6598), which no site routes.
const NODE_POOL: &str = "100.127.0.0/16";

/// A token as managers keep it: sealed, so that the token itself can be kept and shown again.
#[derive(Serialize, Deserialize)]
struct KeptToken {
    token: String,
    record: TokenRecord,
}

/// The first node of a cluster, new or from a backup, not yet committed.
pub(crate) struct FirstNode {
    /// Keys and values of all records.
    pub(super) records: Vec<(String, Vec<u8>)>,
}

impl FirstNode {
    /// Makes the CA, the cluster and its first manager, and saves what the node keeps outside the store.
    pub(crate) fn prepare(config: &Config, init: &Init) -> Result<(Identity, Self), Error> {
        let now = clock::unix_seconds();
        let mut cluster = cluster(init)?;
        let spec = NodeSpec { name: config.name.clone(), advertise: init.advertise };
        let empty = Snapshot { cluster: Some(Arc::new(cluster.clone())), ..Snapshot::default() };
        let node = admit::node(&empty, &spec, Role::Manager, super::change::fresh())?;
        let authority = Authority::generate(cluster.id, now)?;
        cluster.authorities.push(authority.certificate().to_pem());
        let credentials = Credentials::issue(&authority, node.id, Role::Manager, now, cluster.cert_expiry_s)?;
        let identity = Identity {
            cluster: cluster.id,
            node: node.id,
            name: node.name.clone(),
            role: Role::Manager,
            advertise: init.advertise,
            managers: vec![init.advertise],
            store: init.store.clone(),
        };
        let key = StoreKey::generate();
        let save = || {
            key.save(&config.data_dir)?;
            if identity.store == StoreSpec::Etcd {
                super::etcd::prepare(config, &identity, &authority)?;
            }
            identity.save(&config.data_dir, &credentials)
        };
        save().map_err(|e| Error::Files(format!("{e:#}")))?;
        let objects = [Object::Cluster(Arc::new(cluster)), Object::Node(Arc::new(node))];
        let records = objects.iter().map(|object| (object.key().to_string(), encode(object)));
        let sealed = (authority::RECORD.to_owned(), authority::seal(&key, &authority));
        Ok((identity, Self { records: records.chain([sealed]).collect() }))
    }

    /// Commits them to a store that must be empty.
    pub(super) async fn commit(self, store: &dyn Store) -> anyhow::Result<()> {
        let txn = with_epoch(Txn::new()).expect_absent(Key::Cluster.to_string());
        let txn = self.records.into_iter().fold(txn, |txn, (key, value)| txn.put(key, value));
        store.commit(txn).await.context("the store can't take the new cluster")?;
        Ok(())
    }
}

fn cluster(init: &Init) -> Result<Cluster, Refusal> {
    let id: u64 = rand::random();
    let address_pools = or_defaults(&init.address_pools, ADDRESS_POOL, unique_local(id, 0, 48));
    let node_pools = or_defaults(&init.node_pools, NODE_POOL, unique_local(id, 0xffff, 64));
    admit::pools(&address_pools, &node_pools)?;
    Ok(Cluster {
        id: ClusterId::from_bits(id),
        data_path_port: init.data_path_port,
        // The nodes' pool lies at the end of the cluster's own IPv6 prefix: subnets are taken from its start.
        address_pools,
        node_pools,
        gossip_key: 0,
        authorities: Vec::new(),
        cert_expiry_s: init.cert_expiry_s,
    })
}

/// What the user gave, and the default of each family that the user left out.
fn or_defaults(given: &[IpNetwork], v4: &str, v6: IpNetwork) -> Vec<IpNetwork> {
    let v4 = v4.parse().unwrap_or_else(|e| unreachable!("a valid prefix: {e}"));
    let missing =
        [v4, v6].into_iter().filter(|d: &IpNetwork| !given.iter().any(|g| g.is_ipv4() == d.is_ipv4()));
    given.iter().copied().chain(missing).collect()
}

/// A prefix of the cluster's own unique local /48 (RFC 4193), its global ID from the cluster's random one.
fn unique_local(cluster: u64, subnet: u16, length: u8) -> IpNetwork {
    let [a, b, c, d, e, ..] = cluster.to_be_bytes();
    let words =
        [0xfd00 | u16::from(a), u16::from_be_bytes([b, c]), u16::from_be_bytes([d, e]), subnet, 0, 0, 0, 0];
    IpNetwork::new(Ipv6Addr::from(words).into(), length)
        .unwrap_or_else(|e| unreachable!("a valid prefix: {e}"))
}

impl Manager {
    /// Takes a node in: the token says as what.
    pub(super) async fn join(&self, request: JoinRequest) -> Result<JoinReply, Error> {
        let role = self.verify(&request.token).await?;
        self.check_role(role)?;
        // A request that can't be signed is refused before anything is committed.
        self.issue(&request.csr, NodeId::from_bits(0), Role::Worker).await?;
        let committed = self
            .change(|snapshot, fresh| {
                let node = admit::node(snapshot, &request.node, role, fresh)?;
                let cluster = snapshot.cluster.clone().ok_or(Refusal::NoCluster)?;
                Ok((vec![Change::Put(Object::Node(Arc::new(node.clone())))], (node, cluster)))
            })
            .await?;
        let (node, cluster) = committed.value;
        // Whoever joins as a manager becomes one as a promoted worker does: from its record.
        let (certificate, authority) = self.issue(&request.csr, node.id, Role::Worker).await?;
        tracing::info!(node = %node.id, name = %node.name, address = %node.advertise, "joined");
        let ca = authority.certificate().to_pem();
        Ok(JoinReply { node, cluster: Cluster::clone(&cluster), certificate, ca })
    }

    fn check_role(&self, role: Role) -> Result<(), Error> {
        if role == Role::Manager && self.etcd.is_none() { Err(Error::OneManager) } else { Ok(()) }
    }

    /// Takes a node out that says so itself: it leaves, or its join failed on its side.
    pub(super) async fn withdraw(&self, node: NodeId) -> Result<(), Error> {
        self.change(|snapshot, _| match snapshot.nodes.get(&node) {
            Some(node) => Ok((admit::node_removal(snapshot, node, NodeStatus::Ready, true)?, ())),
            None => Ok((Vec::new(), ())),
        })
        .await
        .map(|_| ())
    }

    async fn verify(&self, text: &str) -> Result<Role, Error> {
        let token: JoinToken = text.parse()?;
        let mut records = Vec::new();
        for role in [Role::Worker, Role::Manager] {
            records.extend(self.kept_token(role).await?.map(|kept| kept.record));
        }
        Ok(token.verify(self.trust.authority().certificate(), &records, clock::unix_seconds())?)
    }

    /// The token of a role; a new one if there is none, it has expired, or rotation is asked for.
    pub(crate) async fn join_token(&self, request: &JoinTokenRequest) -> Result<JoinTokenView, Error> {
        self.check_role(request.role)?;
        let now = clock::unix_seconds();
        let kept = self.kept_token(request.role).await?;
        let fits =
            |kept: &KeptToken| kept.record.expires.is_none_or(|at| at > now) && request.ttl_ms.is_none();
        let token = match kept.filter(|kept| fits(kept) && !request.rotate) {
            Some(kept) => kept.token,
            None => self.new_token(request, now).await?,
        };
        Ok(JoinTokenView { token, manager: self.identity.advertise })
    }

    async fn new_token(&self, request: &JoinTokenRequest, now: u64) -> Result<String, Error> {
        let expires = request.ttl_ms.map(|ttl| now.saturating_add(ttl / 1000));
        let (token, record) =
            JoinToken::issue(self.trust.authority().certificate(), request.role, now, expires)?;
        let kept = KeptToken { token: token.to_string(), record };
        let value = serde_json::to_vec(&kept).unwrap_or_else(|e| unreachable!("tokens are plain data: {e}"));
        let record = token_key(request.role);
        let sealed = self.key.seal(&record, &value);
        self.store.commit(Txn::new().put(record, sealed)).await?;
        Ok(kept.token)
    }

    async fn kept_token(&self, role: Role) -> Result<Option<KeptToken>, Error> {
        let record = token_key(role);
        let Some(entry) = self.store.get(&record).await? else { return Ok(None) };
        // One that can't be read is made anew.
        Ok(serde_json::from_slice(&self.key.open(&record, &entry.value)?).ok())
    }
}

fn token_key(role: Role) -> String {
    format!("token/{role}")
}
