//! What the daemon and a front process say to each other.

use crate::{config::DnsConfig, wire::Counted};
use mesh_api::{DnsCounts, UpstreamView};
use mesh_model::{Change, Key, NetworkId, NodeId, NodeStatus, Snapshot};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

/// Of the messages. A front that speaks another one still hands over its sockets, retires and ends: of those messages
/// nothing may ever change.
pub(crate) const PROTOCOL: u32 = 1;

/// What is served in one place, by sockets that the daemon opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// A port of the L7 ingress: the socket that listens.
    Http(SocketAddr),
    /// A TCP port that the kernel forwards, for whom it can't: the socket that listens.
    Stream(SocketAddr),
    /// A UDP port, likewise: the socket that it is bound to.
    Datagrams(SocketAddr),
    /// A name server: a UDP socket, and a TCP socket that listens.
    Names(NameServer),
    /// The name server of the host's own processes, likewise.
    HostNames(SocketAddr),
}

impl Place {
    /// Whether a name server is there.
    pub(crate) fn is_of_names(&self) -> bool {
        matches!(self, Self::Names(_) | Self::HostNames(_))
    }

    /// The network that it is in; the host's otherwise.
    pub(crate) fn network(&self) -> Option<NetworkId> {
        if let Self::Names(at) = self { Some(at.network) } else { None }
    }

    /// Where the L7 ingress listens.
    pub(crate) fn http(&self) -> Option<SocketAddr> {
        if let Self::Http(address) = self { Some(*address) } else { None }
    }

    /// Where the relay receives.
    pub(crate) fn datagrams(&self) -> Option<SocketAddr> {
        if let Self::Datagrams(address) = self { Some(*address) } else { None }
    }

    /// Where the relay listens.
    pub(crate) fn stream(&self) -> Option<SocketAddr> {
        if let Self::Stream(address) = self { Some(*address) } else { None }
    }
}

/// A name server's place: a gateway address inside a network's namespace. Should the namespace be made anew, so is
/// the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct NameServer {
    pub(crate) network: NetworkId,
    pub(crate) namespace: u64,
    pub(crate) gateway: IpAddr,
}

/// The sockets of one place. Copies of the handle are one and the same sockets.
pub(crate) type Descriptors = Arc<Vec<OwnedFd>>;

/// The sockets of every place.
pub(crate) type Held = BTreeMap<Place, Descriptors>;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Serve this place, with the sockets that come along, from the next [`Order::Apply`] on.
    Open(Place),
    /// Serve it no more, likewise.
    Close(Place),
    /// Forward names like this from now on. Only for those that run this daemon's program.
    Forward(DnsConfig),
    /// Serve the places that are open from this state.
    Apply {
        /// Repeated in the answer.
        turn: u64,
        delta: Delta,
    },
    /// Another process serves all places now: finish what is under way, then end.
    Retire,
    /// End.
    End,
}

/// From a front process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Report {
    /// First of all, for each place: it is served, with the sockets that come along.
    Holds(Place),
    /// All of them were told.
    Ready {
        protocol: u32,
        node: NodeId,
        retired: bool,
        /// For people. The first ones did not say.
        #[serde(default)]
        version: Option<String>,
    },
    /// The state of that turn is in force.
    Applied { turn: u64 },
    /// The sockets of that place do not work: it needs others.
    Failed(Place),
    /// What the name servers do. Only to those that said how to [forward](Order::Forward), as all after it.
    Names(NamesReport),
    /// What was relayed since the process started.
    Relayed(Vec<Counted>),
    /// Lines of the log.
    Log(String),
}

/// What the name servers do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamesReport {
    /// Of networks; of the host.
    pub(crate) counts: Vec<(Option<NetworkId>, DnsCounts)>,
    pub(crate) upstreams: Vec<UpstreamView>,
}

/// What leads from one state to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// It starts from nothing.
    whole: bool,
    epoch: u64,
    revision: u64,
    changes: Vec<Change>,
    /// Absent: nothing is known of the node.
    status: BTreeMap<NodeId, Option<NodeStatus>>,
}

impl Delta {
    /// What leads from the state that was told last to another; the whole of it if none was told.
    pub(crate) fn between(told: Option<&Snapshot>, next: &Snapshot) -> Self {
        let nothing = Snapshot::default();
        let before = told.unwrap_or(&nothing);
        let changed = next.status.iter().filter(|(node, status)| before.status.get(node) != Some(status));
        let gone = before.status.keys().filter(|node| !next.status.contains_key(node));
        Self {
            whole: told.is_none(),
            epoch: next.epoch,
            revision: next.revision,
            changes: next.changes_since(before),
            status: changed
                .map(|(node, status)| (*node, Some(*status)))
                .chain(gone.map(|node| (*node, None)))
                .collect(),
        }
    }

    /// The records that it changes, a node's if its liveness does; none: it is a state of its own.
    pub(crate) fn changed(&self) -> Option<Vec<Key>> {
        let nodes = self.status.keys().map(|node| Key::Node(*node));
        (!self.whole).then(|| self.changes.iter().map(Change::key).chain(nodes).collect())
    }

    /// The state after it.
    pub(crate) fn apply(self, snapshot: &mut Snapshot) {
        if self.whole {
            *snapshot = Snapshot::default();
        }
        (snapshot.epoch, snapshot.revision) = (self.epoch, self.revision);
        self.changes.into_iter().for_each(|change| snapshot.apply(change));
        for (node, status) in self.status {
            match status {
                Some(status) => drop(snapshot.status.insert(node, status)),
                None => drop(snapshot.status.remove(&node)),
            }
        }
    }
}
