//! Whatever changes, and whenever an agent reads: what it makes of its lines is what its node needs of the state.

use super::*;
use crate::{agent::replica::Replica, manager::state::Changed};
use mesh_model::{
    Cluster, Endpoint, EndpointSpec, Health, NetworkSpec, NodeSpec, Role, ServiceSpec, Target, admit,
    parse_publish,
};
use proptest::{prelude::*, sample::Index};
use serde_json::json;

const EPOCH: u64 = 7;

/// What a node needs of a state.
fn needed(snapshot: &Snapshot, node: NodeId) -> Snapshot {
    let networks = snapshot.networks_on(node);
    let mut needed = snapshot.clone();
    needed.endpoints.retain(|_, endpoint| networks.contains(&endpoint.network));
    needed.health.retain(|id, _| needed.endpoints.contains_key(id));
    needed
}

/// Three nodes, three networks with three endpoints each, spread; two services, one of which publishes a port.
fn records() -> Vec<Object> {
    let cluster = json!({
        "id": "0000000000000001", "data_path_port": 4789,
        "address_pools": ["10.128.0.0/9"], "node_pools": ["100.127.0.0/16"],
    });
    let mut made = Vec::new();
    let mut snapshot = Snapshot::default();
    let mut put = |snapshot: &mut Snapshot, object: Object| {
        snapshot.apply(Change::Put(object.clone()));
        made.push(object);
    };
    let mut number = 0;
    let mut fresh = || {
        number += 1;
        admit::Fresh { id: number, mac: number, now: 0 }
    };
    put(&mut snapshot, Object::Cluster(Arc::new(serde_json::from_value::<Cluster>(cluster).unwrap())));
    for host in 1..=3 {
        let spec = NodeSpec {
            name: format!("vm{host}").parse().unwrap(),
            advertise: ([192, 0, 2, host], 7443).into(),
        };
        let node = admit::node(&snapshot, &spec, Role::Worker, fresh()).unwrap();
        put(&mut snapshot, Object::Node(Arc::new(node)));
    }
    for network in ["red", "green", "blue"] {
        let spec = NetworkSpec::named(network.parse().unwrap());
        let network = admit::network(&snapshot, &spec, &[], fresh()).unwrap();
        put(&mut snapshot, Object::Network(Arc::new(network)));
    }
    for (service, ports) in [("red", "80:80"), ("green", "")] {
        let spec = json!({ "name": service, "networks": [service], "drain_timeout_ms": 0 });
        let mut spec: ServiceSpec = serde_json::from_value(spec).unwrap();
        spec.ports = if ports.is_empty() { Vec::new() } else { parse_publish(ports).unwrap() };
        let service = admit::service(&snapshot, &spec, fresh()).unwrap();
        put(&mut snapshot, Object::Service(Arc::new(service)));
    }
    let nodes: Vec<NodeId> = snapshot.nodes.keys().copied().collect();
    for (network, node) in
        ["red", "green", "blue"].iter().flat_map(|n| nodes.iter().map(move |node| (n, node)))
    {
        let fresh = fresh();
        let target = Target::Netns(format!("/run/netns/{}", fresh.id).into());
        let spec = EndpointSpec { namespace_inode: fresh.id, ..EndpointSpec::new(*network, target, "eth0") };
        let endpoint: Endpoint = admit::endpoint(&snapshot, *node, &spec, fresh).unwrap();
        put(&mut snapshot, Object::Health(endpoint.id, Health::Healthy));
        put(&mut snapshot, Object::Endpoint(Arc::new(endpoint)));
    }
    made
}

/// A manager's log with agents that read from it.
struct Rig {
    log: Log,
    snapshot: Snapshot,
    agents: Vec<Agent>,
    /// What the store remembers: the keys that each revision changed.
    history: BTreeMap<u64, Vec<Key>>,
}

struct Agent {
    node: NodeId,
    replica: Replica,
    reached: Arc<Snapshot>,
    subscription: Arc<Subscription>,
    cursor: Cursor,
}

impl Rig {
    fn new() -> Self {
        let mut snapshot = Snapshot { epoch: EPOCH, revision: 1, ..Snapshot::default() };
        let nodes = records().into_iter().filter(|r| matches!(r, Object::Cluster(_) | Object::Node(_)));
        nodes.for_each(|node| snapshot.apply(Change::Put(node)));
        let mut log = Log::new(&snapshot);
        let agent = |node: &NodeId| {
            let (subscription, cursor) = log.subscribe(*node, &snapshot, None);
            let reached = Arc::<Snapshot>::default();
            Agent { node: *node, replica: Replica::new(Arc::clone(&reached)), reached, subscription, cursor }
        };
        let agents = snapshot.nodes.keys().map(agent).collect();
        Self { log, snapshot, agents, history: BTreeMap::new() }
    }

    fn change(&mut self, changes: Vec<Change>) {
        let revision = self.snapshot.revision + 1;
        let keys = changes.iter().map(|change| match change {
            Change::Put(object) => object.key(),
            Change::Delete(key) => *key,
        });
        self.history.insert(revision, keys.collect());
        self.log.apply(&mut self.snapshot, changes, revision);
    }

    /// The manager ends, and one starts whose store remembers some of the last changes.
    fn restart(&mut self, remembered: u64) {
        let since = self.snapshot.revision.saturating_sub(remembered).max(1);
        let known = self.history.range(since + 1..);
        let last = known.flat_map(|(revision, keys)| keys.iter().map(|key| (*key, *revision))).collect();
        self.log = Log::recalled(&self.snapshot, Changed { since, last });
        (0..self.agents.len()).for_each(|agent| self.reconnect(agent));
    }

    /// An agent takes up to `lines` of what is there for it; returns how many bytes that was.
    fn read(&mut self, agent: usize, lines: usize) -> usize {
        let agent = &mut self.agents[agent];
        let told = self.log.advance(agent.node, &agent.subscription, &mut agent.cursor, &self.snapshot);
        let whole = told.len() <= lines;
        let mut bytes = 0;
        for line in told.iter().take(lines) {
            bytes += line.len();
            if let Some(reached) = agent.replica.take(serde_json::from_slice(line).unwrap()) {
                agent.reached = reached;
            }
        }
        if whole {
            let needed = needed(&self.snapshot, agent.node);
            // Revisions with nothing for the node are left out.
            let revision = agent.reached.revision;
            assert!(revision <= needed.revision && revision >= agent.subscription.due(needed.revision));
            assert_eq!(*agent.reached, Snapshot { revision, ..needed });
        } else {
            let node = agent.node;
            self.reconnect_agent(node);
        }
        bytes
    }

    fn reconnect(&mut self, agent: usize) {
        self.reconnect_agent(self.agents[agent].node);
    }

    /// The connection breaks, perhaps in the middle of what was told: the agent goes on from what it had reached.
    fn reconnect_agent(&mut self, node: NodeId) {
        let Some(agent) = self.agents.iter_mut().find(|a| a.node == node) else { return };
        agent.replica = Replica::new(Arc::clone(&agent.reached));
        let resume = agent.replica.resume(node);
        (agent.subscription, agent.cursor) = self.log.subscribe(node, &self.snapshot, resume);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Change(Vec<(Index, bool)>),
    Read(Index, usize),
    Reconnect(Index),
    /// The manager, which remembers so many revisions.
    Restart(u64),
    /// Enough changes to be forgotten by the log.
    Flood,
    /// The same records under new revisions.
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((any::<Index>(), prop::bool::weighted(0.6)), 1..4);
    prop_oneof![
        8 => changes.prop_map(Step::Change),
        4 => (any::<Index>(), prop_oneof![9 => Just(usize::MAX), 1 => 0..4_usize]).prop_map(|(a, n)| Step::Read(a, n)),
        2 => any::<Index>().prop_map(Step::Reconnect),
        1 => (0..12_u64).prop_map(Step::Restart),
        1 => Just(Step::Flood),
        1 => Just(Step::Restore),
    ]
}

proptest! {
    #[test]
    fn an_agent_has_what_its_node_needs(steps in prop::collection::vec(step(), 1..80)) {
        let records = records();
        let mut rig = Rig::new();
        for step in steps {
            match step {
                Step::Change(picks) => {
                    let nodes_stay = |object: &&Object| !matches!(object, Object::Node(_) | Object::Cluster(_));
                    let records: Vec<&Object> = records.iter().filter(nodes_stay).collect();
                    let change = |(which, put): &(Index, bool)| {
                        let object = (*which.get(&records)).clone();
                        if *put { Change::Put(object) } else { Change::Delete(object.key()) }
                    };
                    rig.change(picks.iter().map(change).collect());
                }
                Step::Read(agent, lines) => {
                    rig.read(agent.index(3), lines);
                }
                Step::Reconnect(agent) => rig.reconnect(agent.index(3)),
                Step::Restart(remembered) => rig.restart(remembered),
                Step::Flood => {
                    rig.log.entries.drain(..).for_each(|entry| {
                        rig.log.bytes -= entry.size();
                        rig.log.base = entry.revision;
                        rig.log.first += 1;
                    });
                }
                Step::Restore => {
                    rig.snapshot.epoch += 1;
                    rig.snapshot.revision = 1;
                    rig.history.clear();
                    rig.log.restart(&rig.snapshot);
                }
            }
            prop_assert_eq!(&rig.log.placement, &Placement::of(&rig.snapshot));
            for node in rig.snapshot.nodes.keys() {
                prop_assert_eq!(rig.log.placement.networks_on(*node), rig.snapshot.networks_on(*node));
            }
        }
        (0..3).for_each(|agent| {
            rig.read(agent, usize::MAX);
        });
    }
}

/// With everything but the service that publishes a port: each network is where its endpoints are.
fn full() -> Rig {
    let mut rig = Rig::new();
    let quiet = records().into_iter().filter(|r| !matches!(r, Object::Service(s) if !s.ports.is_empty()));
    rig.change(quiet.map(Change::Put).collect());
    (0..3).for_each(|agent| {
        rig.read(agent, usize::MAX);
    });
    rig
}

#[test]
fn an_agent_that_returns_is_told_what_it_missed() {
    let mut rig = full();
    let whole = rig.snapshot.endpoints.len();
    let gone = *rig.snapshot.endpoints.keys().next().unwrap();
    rig.change(vec![Change::Delete(Key::Endpoint(gone))]);
    rig.reconnect(1);
    let resumed = rig.read(1, usize::MAX);
    assert_eq!(rig.agents[1].reached.endpoints.len(), whole - 1);
    rig.agents[1].reached = Arc::default();
    rig.reconnect(1);
    let anew = rig.read(1, usize::MAX);
    assert!(resumed * 4 < anew, "{resumed} bytes, {anew} for the whole state");
}

#[test]
fn an_agent_goes_on_after_its_manager_started_again() {
    let mut rig = full();
    let whole = rig.snapshot.endpoints.len();
    let red = rig.snapshot.find_network("red").unwrap().id;
    let gone = rig.snapshot.endpoints.values().find(|e| e.network == red).unwrap().id;
    rig.change(vec![Change::Delete(Key::Endpoint(gone))]);
    rig.restart(1);
    let resumed = rig.read(1, usize::MAX);
    assert_eq!(rig.agents[1].reached.endpoints.len(), whole - 1);
    assert_eq!(rig.agents[1].reached.revision, rig.snapshot.revision);
    rig.change(Vec::from([Change::Put(Object::Node(Arc::clone(
        rig.snapshot.nodes.values().next().unwrap(),
    )))]));
    rig.restart(0);
    let anew = rig.read(1, usize::MAX);
    assert!(resumed * 4 < anew, "{resumed} bytes, {anew} for the whole state");
}

#[test]
fn only_nodes_that_a_network_is_on_are_woken() {
    let mut rig = full();
    let blue = rig.snapshot.find_network("blue").unwrap().id;
    let on_blue =
        |s: &Snapshot, node| s.endpoints.values().find(|e| e.network == blue && e.node == node).unwrap().id;
    let nodes: Vec<NodeId> = rig.agents.iter().map(|agent| agent.node).collect();
    let ids = [on_blue(&rig.snapshot, nodes[0]), on_blue(&rig.snapshot, nodes[1])];
    rig.change(vec![Change::Delete(Key::Endpoint(ids[0]))]);
    (0..3).for_each(|agent| {
        rig.read(agent, usize::MAX);
    });
    rig.change(vec![Change::Delete(Key::Endpoint(ids[1]))]);
    let due: Vec<bool> =
        rig.agents.iter().map(|a| a.subscription.due(u64::MAX) == rig.snapshot.revision).collect();
    assert_eq!(due, [false, true, true], "the first node is not on blue any more");
    assert_eq!(rig.read(0, usize::MAX), 0);
    rig.log.tell(nodes[0], rig.snapshot.revision);
    assert!(rig.read(0, usize::MAX) > 0, "it is told when it asks");
    assert_eq!(rig.agents[0].reached.revision, rig.snapshot.revision);
}

#[test]
fn who_is_far_behind_gets_the_whole_state() {
    let mut rig = full();
    let node = Arc::clone(rig.snapshot.nodes.values().next().unwrap());
    for _ in 0..=ENTRIES {
        rig.change(vec![Change::Put(Object::Node(Arc::clone(&node)))]);
    }
    assert_eq!(rig.log.entries.len(), ENTRIES);
    rig.read(0, usize::MAX);
    assert!(
        rig.log.subscribe(node.id, &rig.snapshot, rig.agents[1].replica.resume(node.id)).1.next.is_none()
    );
    assert!(
        rig.log.subscribe(node.id, &rig.snapshot, rig.agents[0].replica.resume(node.id)).1.next.is_some()
    );
}
