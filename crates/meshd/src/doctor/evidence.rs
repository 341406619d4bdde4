//! What a doctor has to go by: everything that was seen and heard, as plain data.

use super::{prober::Heard, underlay::Port};
use ipnetwork::IpNetwork;
use mesh_model::{MacAddr, NodeStatus, Role};
use mesh_net::{
    Missing,
    survey::{Survey, Usage},
};
use std::net::{IpAddr, SocketAddr};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Name of this node; empty if it belongs to no cluster.
    pub(super) me: String,
    /// Its underlay address.
    pub(super) address: Option<IpAddr>,
    /// What is not looked at, by the user's wish: other nodes, or this one.
    pub(super) only_peers: bool,
    /// UDP port of VXLAN.
    pub(super) vxlan_port: u16,
    /// What the kernel and this process lack.
    pub(super) missing: Vec<Missing>,
    /// The host; or why it can't be looked at.
    pub(super) survey: Option<Result<Survey, String>>,
    /// What an earlier membership left behind, a line each.
    pub(super) leftovers: Vec<String>,
    pub(super) state: KernelState,
    pub(super) duplicates: Duplicates,
    pub(super) managers: Managers,
    pub(super) peers: Vec<Peer>,
    pub(super) links: Vec<Link>,
    /// Links that were not asked, for there are too many.
    pub(super) links_left_out: usize,
    pub(super) networks: Vec<Network>,
    /// Whom names of others are asked of.
    pub(super) resolvers: Vec<Resolver>,
    /// Whether a front process runs; none if none is needed.
    pub(super) front: Option<bool>,
    /// What it can't serve, a line each.
    pub(super) front_problems: Vec<String>,
    /// Published ports that this node can't hold, a line each.
    pub(super) degraded_ports: Vec<String>,
    /// How many ports are published on this node.
    pub(super) published: usize,
    /// Published ports of other nodes.
    pub(super) ingress: Vec<Ingress>,
}

/// The kernel, compared with the state.
#[derive(Debug, Default)]
pub(super) struct KernelState {
    /// Why it can't be compared.
    pub(super) unknown: Option<String>,
    /// What was not as it should be, and was repaired: whose it is, and what.
    pub(super) repaired: Vec<(String, String)>,
    /// What was not as it should be again right after a repair.
    pub(super) stays: Vec<(String, String)>,
    /// What this node could not be brought to, a line each.
    pub(super) failures: Vec<String>,
    /// MTU of the underlay's interface less what VXLAN adds, in bytes.
    pub(super) overlay_mtu: Option<u32>,
}

/// Who answers for addresses.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    /// How many were asked for.
    pub(super) asked: usize,
    /// Those that more than one machine answers for, or another than should.
    pub(super) found: Vec<Duplicate>,
    /// Why nobody could be asked, somewhere.
    pub(super) unknown: Option<String>,
}

/// An address that has a wrong owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Duplicate {
    pub(super) address: IpAddr,
    /// Name of the network; none: the underlay.
    pub(super) network: Option<String>,
    /// Whose it is, in words: `node 'vm1'`.
    pub(super) owner: String,
    /// Name of the node whose underlay address it is, if it is another's.
    pub(super) peer: Option<String>,
    /// Who answers for it besides, or instead.
    pub(super) others: Vec<MacAddr>,
    /// Whose MAC addresses these are, as far as they are known.
    pub(super) known: Vec<String>,
}

/// The managers as this node sees them.
#[derive(Debug, Default)]
pub(super) struct Managers {
    /// One of them is connected.
    pub(super) connected: bool,
    /// The managers say that this node is no member.
    pub(super) removed: bool,
    /// What is wrong with the manager in this process, its store among it; a line each.
    pub(super) own: Vec<String>,
    /// This node is a manager.
    pub(super) here: bool,
    /// Why none is followed, a line each.
    pub(super) refusals: Vec<String>,
}

/// Another node.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) address: SocketAddr,
    /// What membership says.
    pub(super) status: NodeStatus,
    /// TCP at its address: the manager's port.
    pub(super) tcp: Port,
    /// UDP there: membership. Asked only if membership misses it.
    pub(super) udp: Option<Port>,
}

/// Another node over one network, by one family of its addresses.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) peer: String,
    pub(super) network: String,
    /// By IPv6; else by IPv4.
    pub(super) ipv6: bool,
    /// MTU of the network, in bytes.
    pub(super) mtu: Option<u32>,
    pub(super) heard: Heard,
}

/// A network on this node.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) subnets: Vec<IpNetwork>,
    /// MTU asked for, in bytes.
    pub(super) mtu: Option<u32>,
    /// Name servers that do not answer, and why.
    pub(super) mute: Vec<(IpAddr, String)>,
    pub(super) conntrack: Option<Usage>,
}

/// A resolver beyond the mesh.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    pub(super) address: SocketAddr,
    /// Name of the network that it is in; none: it is asked from the host.
    pub(super) network: Option<String>,
    /// It asks this node in turn, and so is not asked.
    pub(super) loops: bool,
    /// Why it does not answer, if it does not.
    pub(super) mute: Option<String>,
}

/// A published port of another node.
#[derive(Debug, Clone)]
pub(super) struct Ingress {
    pub(super) peer: String,
    pub(super) port: u16,
    pub(super) service: String,
    pub(super) answer: Port,
}

impl Link {
    /// What it is by, in words.
    pub(super) fn family(&self) -> &'static str {
        if self.ipv6 { "IPv6" } else { "IPv4" }
    }
}

impl Peer {
    /// The host is up, whatever of it does not answer.
    pub(super) fn host_answers(&self, links: &[Link]) -> bool {
        self.status == NodeStatus::Ready
            || self.tcp.shows_life()
            || self.udp.as_ref().is_some_and(Port::shows_life)
            || self.links(links).any(|link| link.heard.reached())
    }

    /// The host says that its daemon does not run, and nothing of that daemon is heard.
    pub(super) fn daemon_is_off(&self, links: &[Link]) -> bool {
        let refused = self.udp == Some(Port::Refused) || self.links(links).any(|link| link.heard.refused);
        refused && !self.links(links).any(|link| link.heard.answered())
    }

    /// What was heard of it over networks.
    pub(super) fn links<'a>(&'a self, links: &'a [Link]) -> impl Iterator<Item = &'a Link> {
        links.iter().filter(|link| link.peer == self.name)
    }
}
