//! Looks and asks: all at once, each with a time of its own.

mod duplicates;

use super::{
    Scope,
    evidence::{
        Duplicates, Evidence, Ingress, KernelState, Link, Managers, Network as NetworkSeen, Peer,
        Resolver as ResolverSeen,
    },
    names,
    prober::{self, Way},
    underlay,
};
use crate::{agent::Agent, daemon::Member, sockets::Sockets};
use futures_util::{StreamExt, future::join_all, stream};
use mesh_api::UpstreamState;
use mesh_dns::Upstream;
use mesh_model::{Network, NetworkId, Node, NodeId, NodeStatus, Protocol, PublishMode, Role, Snapshot};
use mesh_net::{
    Difference,
    desired::Owner,
    netns, probe_kernel,
    survey::{self, Survey},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{task::spawn_blocking, time::sleep};

/// Links that are asked at once, and at all.
const AT_ONCE: usize = 64;
const LINKS: usize = 512;
/// Networks whose name servers and addresses are asked for.
const NETWORKS: usize = 128;
/// Resolvers that are asked.
const RESOLVERS: usize = 64;
/// Port of DNS (RFC 1035).
const DNS: u16 = 53;
/// Ports of one other node, and of all.
const PORTS: usize = 16;
const ALL_PORTS: usize = 256;
/// After a repair, until it is looked whether it lasted.
const LASTS: Duration = Duration::from_millis(1200);

/// What a host that is no member's can tell.
pub(super) async fn of_host(run_dir: &Path) -> Evidence {
    let (missing, survey) = host().await;
    let kept = netns::kept(run_dir).unwrap_or_default();
    let namespaces =
        kept.iter().map(|network| format!("namespace {}", netns::namespace_of(run_dir, *network).display()));
    let uplinks = survey.iter().flat_map(|survey| &survey.uplinks).map(|name| format!("interface {name}"));
    let leftovers = namespaces.chain(uplinks).collect();
    let no_member = || Some("this node belongs to no cluster".to_owned());
    Evidence {
        missing,
        survey: Some(survey),
        leftovers,
        state: KernelState { unknown: no_member(), ..KernelState::default() },
        duplicates: Duplicates { unknown: no_member(), ..Duplicates::default() },
        ..Evidence::default()
    }
}

async fn host() -> (Vec<mesh_net::Missing>, Result<Survey, String>) {
    let looked = spawn_blocking(|| (probe_kernel(), survey::survey().map_err(|e| e.to_string()))).await;
    looked.unwrap_or_else(|error| (Vec::new(), Err(error.to_string())))
}

/// One examination of a member.
pub(super) struct Gather<'a> {
    member: &'a Arc<Member>,
    agent: &'a Agent,
    snapshot: Arc<Snapshot>,
    sockets: Sockets,
    run_dir: PathBuf,
    me: NodeId,
    scope: Scope,
    /// The networks on this node that are looked at.
    networks: Vec<Arc<Network>>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(
        member: &'a Arc<Member>,
        snapshot: Arc<Snapshot>,
        run_dir: &Path,
        scope: Scope,
    ) -> Self {
        let me = member.identity.node;
        let wanted = |id: &NetworkId| scope.network.is_none_or(|only| only == *id);
        let networks = snapshot
            .networks_on(me)
            .iter()
            .filter(|id| wanted(id))
            .filter_map(|id| snapshot.networks.get(id))
            .cloned()
            .collect();
        let sockets = member.agent.sockets();
        let agent = &member.agent;
        Self { member, agent, snapshot, sockets, run_dir: run_dir.to_owned(), me, scope, networks }
    }

    /// Everything.
    pub(super) async fn evidence(self) -> Evidence {
        let me = self.snapshot.nodes.get(&self.me).cloned();
        let only_peers = self.scope.node.is_some_and(|node| node != self.me);
        // What changes what others find out comes first; it takes milliseconds.
        let before = self.look().await;
        let overlay_mtu = before.overlay_mtu;
        let (missing, survey) = host().await;
        let (state, duplicates, peers, links, networks, resolvers, ingress) = tokio::join!(
            self.lasting(before),
            self.duplicates(survey.as_ref().ok()),
            self.peers(),
            self.links(overlay_mtu),
            self.networks(),
            self.resolvers(),
            self.ingress(),
        );
        let (links, links_left_out) = links;
        let applied = self.agent.applied.subscribe().borrow().clone();
        let told = |problem: &&String| {
            !applied.kernel.contains(problem) && applied.ports.iter().all(|(_, of_port)| of_port != *problem)
        };
        Evidence {
            me: self.member.identity.name.to_string(),
            address: me.map(|node| node.advertise.ip()),
            only_peers,
            vxlan_port: self.snapshot.cluster.as_ref().map_or(4789, |cluster| cluster.data_path_port),
            missing,
            survey: Some(survey),
            leftovers: Vec::new(),
            state,
            duplicates,
            managers: self.managers(),
            peers,
            links,
            links_left_out,
            front: self.front(),
            networks,
            resolvers,
            front_problems: applied.problems.iter().filter(told).cloned().collect(),
            degraded_ports: applied.ports.iter().map(|(_, problem)| problem.clone()).collect(),
            published: self.snapshot.services.values().map(|service| service.ports.len()).sum(),
            ingress,
        }
    }

    fn managers(&self) -> Managers {
        let link = &self.agent.link;
        let node = self.snapshot.nodes.get(&self.me);
        Managers {
            connected: link.is_connected(),
            removed: link.is_removed(),
            own: self.member.manager_problems(),
            here: node.is_some_and(|node| node.role == Role::Manager),
            refusals: link.problems(),
        }
    }

    /// Compares the kernel with the state, and has it repaired if it differs.
    async fn look(&self) -> KernelState {
        let mut state = KernelState::default();
        let mut differences = self.differences(&mut state).await;
        if !differences.is_empty() {
            self.agent.repair().await;
            // From here on it is known what the tables were like when they were written.
            state.stays = self.differences(&mut state).await;
            differences.retain(|difference| !state.stays.contains(difference));
        }
        state.repaired = differences;
        state
    }

    /// Whether what was repaired lasts; a repair that was undone at once may have been undone a moment later too.
    async fn lasting(&self, mut state: KernelState) -> KernelState {
        if !state.repaired.is_empty() || !state.stays.is_empty() {
            sleep(LASTS).await;
            let again = self.differences(&mut state).await;
            let new = again.into_iter().filter(|difference| !state.stays.contains(difference));
            let new: Vec<_> = new.collect();
            state.stays.extend(new);
            state.repaired.retain(|difference| !state.stays.contains(difference));
        }
        state.failures = self.agent.applied.subscribe().borrow().kernel.clone();
        state
    }

    async fn differences(&self, state: &mut KernelState) -> Vec<(String, String)> {
        match self.agent.inspect().await {
            None => state.unknown = Some("this node has not applied any state yet".to_owned()),
            Some(Err(error)) => state.unknown = Some(error.to_string()),
            Some(Ok(inspection)) => {
                state.overlay_mtu = Some(inspection.mtu);
                return inspection
                    .differences
                    .iter()
                    .filter_map(|difference| self.named(difference))
                    .collect();
            }
        }
        Vec::new()
    }

    /// Whose a difference is, in words, if it is within the scope.
    fn named(&self, difference: &Difference) -> Option<(String, String)> {
        let network = match difference.owner {
            Owner::Host => None,
            Owner::Network(id) => Some(id),
            Owner::Endpoint(id) => self.snapshot.endpoints.get(&id).map(|endpoint| endpoint.network),
        };
        if network.is_some() && self.scope.network.is_some_and(|only| network != Some(only)) {
            return None;
        }
        let owner = match difference.owner {
            Owner::Host => String::new(),
            Owner::Network(id) => match self.snapshot.networks.get(&id) {
                Some(network) => format!("network '{}'", network.name),
                None => "a network of before".to_owned(),
            },
            Owner::Endpoint(id) => match self.snapshot.endpoints.get(&id) {
                Some(endpoint) => format!("endpoint '{}'", endpoint.name),
                None => "an endpoint of before".to_owned(),
            },
        };
        Some((owner, difference.text.clone()))
    }

    /// The other nodes that are looked at.
    fn others(&self) -> impl Iterator<Item = &Arc<Node>> {
        let wanted =
            |node: &&Arc<Node>| node.id != self.me && self.scope.node.is_none_or(|only| only == node.id);
        self.snapshot.nodes.values().filter(wanted)
    }

    async fn peers(&self) -> Vec<Peer> {
        let connector = self.agent.connector();
        let from = self.member.identity.advertise.ip();
        let ask = self.others().map(|node| {
            let (connector, status) = (connector.clone(), self.snapshot.status_of(node.id));
            async move {
                let udp = async {
                    match status {
                        NodeStatus::Ready => None,
                        NodeStatus::Suspect | NodeStatus::Down => {
                            Some(underlay::udp(from, node.advertise).await)
                        }
                    }
                };
                let tcp = underlay::manager_port(node.role, node.advertise, connector);
                let (tcp, udp) = tokio::join!(tcp, udp);
                Peer {
                    name: node.name.to_string(),
                    role: node.role,
                    address: node.advertise,
                    status,
                    tcp,
                    udp,
                }
            }
        });
        let asked: Vec<_> = ask.collect();
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    /// Over each network that is on both nodes; and how many links were left out. As long as there is room, each node is
    /// asked over another network too.
    async fn links(&self, overlay_mtu: Option<u32>) -> (Vec<Link>, usize) {
        let mut shared: BTreeMap<NodeId, Vec<&Arc<Network>>> = BTreeMap::new();
        for node in self.others() {
            let there = self.snapshot.networks_on(node.id);
            let both = self.networks.iter().filter(|network| there.contains(&network.id));
            shared.insert(node.id, both.collect());
        }
        let all: usize = shared.values().map(Vec::len).sum();
        let most = shared.values().map(Vec::len).max().unwrap_or_default();
        let in_turn = (0..most).flat_map(|turn| {
            shared.iter().filter_map(move |(node, networks)| Some((*node, *networks.get(turn)?)))
        });
        let chosen: Vec<(NodeId, &Arc<Network>)> = in_turn.take(LINKS).collect();
        let left_out = all - chosen.len();
        let ask: Vec<_> =
            chosen.into_iter().map(|(node, network)| self.link(node, network, overlay_mtu)).collect();
        let links: Vec<Vec<Link>> = stream::iter(ask).buffered(AT_ONCE).collect().await;
        (links.into_iter().flatten().collect(), left_out)
    }

    /// By each family that the network has: what carries the one may well lose the other.
    async fn link(&self, peer: NodeId, network: &Network, overlay_mtu: Option<u32>) -> Vec<Link> {
        let nodes = &self.snapshot.nodes;
        let (Some(me), Some(peer)) = (nodes.get(&self.me), nodes.get(&peer)) else { return Vec::new() };
        let mtu = network.mtu.or(overlay_mtu);
        let of_network =
            |from: &&IpAddr| network.subnets.iter().any(|subnet| subnet.cidr.is_ipv6() == from.is_ipv6());
        let ask = me.addresses.iter().filter(of_network).filter_map(|from| {
            let to = peer.addresses.iter().find(|to| to.is_ipv6() == from.is_ipv6())?;
            let way = Way { network: network.id, from: *from, to: *to, mtu };
            Some(async move {
                let heard = prober::probe(&self.sockets, way).await;
                let (peer, network) = (peer.name.to_string(), network.name.to_string());
                Link { peer, network, ipv6: way.to.is_ipv6(), mtu, heard }
            })
        });
        join_all(ask).await
    }

    async fn networks(&self) -> Vec<NetworkSeen> {
        let ask: Vec<_> = self.networks.iter().take(NETWORKS).map(|network| self.network(network)).collect();
        stream::iter(ask).buffered(AT_ONCE).collect().await
    }

    async fn network(&self, network: &Network) -> NetworkSeen {
        let asked = network.gateways().map(|gateway| async move {
            let server = Upstream { address: (gateway, DNS).into(), network: Some(network.id) };
            let why = names::ask(&self.sockets, network, server).await?;
            Some((gateway, why))
        });
        let mute = join_all(asked).await.into_iter().flatten().collect();
        let (sockets, id) = (self.sockets.clone(), network.id);
        let conntrack = spawn_blocking(move || sockets.within(id, || Ok(survey::conntrack())).ok().flatten());
        let conntrack = conntrack.await.ok().flatten();
        NetworkSeen {
            name: network.name.to_string(),
            subnets: network.prefixes().collect(),
            mtu: network.mtu,
            mute,
            conntrack,
        }
    }

    /// The resolvers beyond that names of others are asked of, by this host or in the networks that are looked at.
    async fn resolvers(&self) -> Vec<ResolverSeen> {
        let upstreams = self.agent.applied.subscribe().borrow().names.upstreams.clone();
        let wanted = |network: &NetworkId| self.networks.iter().any(|known| known.id == *network);
        let upstreams = upstreams.into_iter().filter(|upstream| upstream.network.iter().all(wanted));
        let ask = upstreams.take(RESOLVERS).map(|upstream| async move {
            let name = |id| self.snapshot.networks.get(&id).map(|network| network.name.to_string());
            let server = Upstream { address: upstream.address, network: upstream.network };
            let loops = upstream.state == UpstreamState::Loops;
            ResolverSeen {
                address: upstream.address,
                network: upstream.network.and_then(name),
                loops,
                mute: if loops { None } else { names::ask_beyond(&self.sockets, server).await },
            }
        });
        let asked: Vec<_> = ask.collect();
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    /// Published TCP ports through the other nodes. A connection that is accepted is closed at once.
    async fn ingress(&self) -> Vec<Ingress> {
        let mut wanted = Vec::new();
        for node in self.others() {
            let ports = self.snapshot.services.values().flat_map(|service| {
                let network =
                    service.ingress_network().filter(|id| self.scope.network.is_none_or(|only| only == *id));
                let served =
                    network.is_some_and(|id| self.snapshot.backends(service.id, id).next().is_some());
                service.ports.iter().filter(move |_| served).map(move |port| (service, port))
            });
            let reachable = ports.filter(|(_, port)| {
                port.protocol != Protocol::Udp && port.mode == PublishMode::Ingress && port.ip.is_none()
            });
            wanted.extend(reachable.take(PORTS).map(|(service, port)| (node, port.published, service)));
        }
        wanted.truncate(ALL_PORTS);
        let ask = wanted.into_iter().map(|(node, port, service)| async move {
            let answer = underlay::tcp(SocketAddr::new(node.advertise.ip(), port)).await;
            Ingress { peer: node.name.to_string(), port, service: service.name.to_string(), answer }
        });
        let asked: Vec<_> = ask.collect();
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    /// Whether a front process runs, by the sockets that they keep in the run directory.
    fn front(&self) -> Option<bool> {
        if self.networks.is_empty() {
            return None;
        }
        let entries = std::fs::read_dir(&self.run_dir).ok()?.flatten();
        let pid = |name: String| name.strip_prefix("front.")?.strip_suffix(".sock")?.parse::<u32>().ok();
        let mut pids = entries.filter_map(|entry| pid(entry.file_name().into_string().ok()?));
        Some(pids.any(|pid| Path::new(&format!("/proc/{pid}")).exists()))
    }
}
