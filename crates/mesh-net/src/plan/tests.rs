//! Plans are carried out on a model of the kernel, which refuses what the kernel would.

use super::*;
use crate::{
    desired::{Attachment, Facts, desired},
    scope::Scope,
};
use ipnetwork::IpNetwork;
use mesh_model::{
    Availability, Balance, Change, Cluster, ClusterId, Endpoint, EndpointId, EndpointMode, MacAddr, Network,
    NetworkId, Node, NodeId, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId, ServiceNetwork,
    Snapshot, Subnet, Target,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// A kernel that holds objects and veth pairs.
#[derive(Clone, Default)]
struct Model {
    objects: Objects,
    pairs: Vec<[PairEnd; 2]>,
}

impl Model {
    fn apply(&mut self, works: &[Work]) -> Result<(), String> {
        works.iter().flat_map(|work| &work.steps).try_for_each(|step| self.step(step))
    }

    /// Takes so many steps. The failing one, and what the kernel refuses without it, ends the steps of its owner.
    fn cut_short(&mut self, works: &[Work], end: usize, failing: usize) {
        let mut taken = 0;
        for work in works {
            for step in &work.steps {
                taken += 1;
                if taken > end {
                    return;
                }
                if taken == failing || self.step(step).is_err() {
                    break;
                }
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Make(space, object) => {
                if self.objects.contains(&(*space, object.name())) {
                    return Err(format!("EEXIST: {step:?}"));
                }
                self.admit(*space, object)?;
                self.objects.put(*space, object.clone());
            }
            Step::Change(space, object) => {
                let is_link_of_other_kind = match (object, self.objects.get(&(*space, object.name()))) {
                    (_, None) => return Err(format!("ENOENT: {step:?}")),
                    (Object::Link(_, new), Some(Object::Link(_, old))) => new.kind != old.kind,
                    _ => false,
                };
                if is_link_of_other_kind {
                    return Err(format!("EOPNOTSUPP: {step:?}"));
                }
                self.objects.put(*space, object.clone());
            }
            Step::MakePair(ends) => {
                for (space, name, link) in ends {
                    let link = Object::Link(*name, *link);
                    self.step(&Step::Make(*space, link))?;
                }
                self.pairs.push([(ends[0].0, ends[0].1), (ends[1].0, ends[1].1)]);
            }
            Step::Delete(space, object) => self.delete(*space, object.name()),
        }
        Ok(())
    }

    fn admit(&self, space: Space, object: &Object) -> Result<(), String> {
        let has = |name: Name| self.objects.contains(&(space, name));
        let needs = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(format!("{what}: {space:?} {object:?}")) }
        };
        let overlay = matches!(space, Space::Overlay(_)) && !matches!(object, Object::Namespace);
        needs(!overlay || has(Name::Namespace), "no namespace")?;
        match object {
            Object::Link(..) | Object::Namespace | Object::Sysctl(..) | Object::Rule(..) => Ok(()),
            Object::Up(_, Some(bridge)) => needs(has(Name::Link(*bridge)), "no bridge"),
            Object::Port(port, ..) | Object::Station(port, ..) => needs(has(Name::Up(*port)), "no port yet"),
            Object::Route(_, _, hop) => needs(has(Name::Up(hop.link)), "link is not up"),
            Object::Up(..) | Object::Address(..)
                if object.link().is_some_and(|link| link.as_str() == "lo") =>
            {
                Ok(())
            }
            other => needs(other.link().is_some_and(|link| has(Name::Link(link))), "no link"),
        }
    }

    /// The other end of a pair goes with the one that is deleted.
    fn delete(&mut self, space: Space, name: Name) {
        let gone: Vec<PairEnd> = match &name {
            Name::Link(link) => vec![(space, *link)],
            Name::Namespace => self.pairs.iter().flatten().filter(|end| end.0 == space).copied().collect(),
            _ => vec![],
        };
        self.objects.remove(&(space, name));
        for end in gone {
            if let Some(at) = self.pairs.iter().position(|pair| pair.contains(&end)) {
                for (space, link) in self.pairs.swap_remove(at) {
                    self.objects.remove(&(space, Name::Link(link)));
                }
            }
        }
    }

    /// What is read of it: targets are looked at only where an endpoint is desired.
    fn read(&self, desired: &Desired) -> Objects {
        let mut objects = self.objects.clone();
        objects.retain(|(space, _), _| match space {
            Space::Target(id) => desired.parts.iter().any(|part| part.owner == Owner::Endpoint(*id)),
            _ => true,
        });
        objects
    }

    fn holds(&self, desired: &Desired) -> Result<(), String> {
        let wanted: BTreeMap<_, _> = desired.parts.iter().flat_map(|part| part.objects.iter()).collect();
        let found: BTreeMap<_, _> = self.objects.iter().collect();
        let is_setting = |object: &Object| matches!(object, Object::LinkSysctl(..) | Object::Sysctl(..));
        for (key, object) in &wanted {
            if found.get(key) != Some(object) {
                return Err(format!("wanted {object:?}, found {:?}", found.get(key)));
            }
        }
        match found
            .iter()
            .find(|(key, object)| !wanted.contains_key(*key) && !is_setting(object) && !is_lo_up(object))
        {
            Some(extra) => Err(format!("left over: {extra:?}")),
            None => Ok(()),
        }
    }
}

/// A target's loopback stays up when its endpoint goes.
fn is_lo_up(object: &Object) -> bool {
    matches!(object, Object::Up(link, None) if link.as_str() == "lo")
}

const ME: NodeId = NodeId::from_bits(1);

fn address(text: String) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: String) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn node(index: u32, underlay: u8) -> Node {
    Node {
        id: NodeId::from_bits(index.into()),
        name: format!("n{index}").parse().expect("a name"),
        role: Role::Worker,
        index,
        advertise: format!("10.77.{underlay}.{index}:7443").parse().expect("an address"),
        addresses: vec![address(format!("10.200.0.{index}")), address(format!("fd20::{index}"))],
        availability: Availability::Active,
        labels: BTreeMap::new(),
        created: 0,
    }
}

fn network(number: u32, vni: u32, mtu: Option<u32>, internal: bool) -> Network {
    let subnet = |cidr, gateway| Subnet { cidr: prefix(cidr), gateway: address(gateway), range: None };
    Network {
        id: NetworkId::from_bits(number.into()),
        name: format!("net{number}").parse().expect("a name"),
        vni,
        subnets: vec![
            subnet(format!("10.{number}.0.0/24"), format!("10.{number}.0.1")),
            subnet(format!("fd{number}::/64"), format!("fd{number}::1")),
        ],
        internal,
        mtu,
        dns: Default::default(),
        labels: BTreeMap::new(),
        created: 0,
    }
}

fn endpoint(number: u32, network: u32, node: u32, mac: u8, ifname: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::from_bits(u64::from(number) << 40),
        name: format!("c{number}").parse().expect("a name"),
        network: NetworkId::from_bits(network.into()),
        node: NodeId::from_bits(node.into()),
        addresses: vec![
            address(format!("10.{network}.0.{}", 10 + number)),
            address(format!("fd{network}::{}", 10 + number)),
        ],
        mac: MacAddr::endpoint(u64::from(number) << 8 | u64::from(mac)),
        service: None,
        aliases: vec![],
        target: Target::Pid(number as i32 + 1),
        namespace_inode: 0,
        ifname: ifname.into(),
        ports: Vec::new(),
        owner: None,
        local_addresses: Vec::new(),
        source_nat: Vec::new(),
        weight: mesh_model::Weight::default(),
        draining: false,
        created: 0,
    }
}

fn service(number: u32, vip: u8, published: bool) -> Service {
    let on = ServiceNetwork {
        network: NetworkId::from_bits(number.into()),
        vips: vec![address(format!("10.{number}.0.{vip}")), address(format!("fd{number}::{vip}"))],
    };
    Service {
        id: ServiceId::from_bits(number.into()),
        name: format!("s{number}").parse().expect("a name"),
        networks: vec![on],
        aliases: vec![],
        endpoint_mode: EndpointMode::Vip,
        ports: published.then(port).into_iter().collect(),
        health: None,
        balance: Balance::Roundrobin,
        drain_timeout_ms: 0,
        prefer_local: false,
        created: 0,
    }
}

/// One that leads into the service's network from every node.
fn port() -> PublishedPort {
    PublishedPort {
        published: 80,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    }
}

/// States that are near each other, so that a change from one to another keeps a part, changes a part.
fn state() -> impl Strategy<Value = Desired> {
    cluster_and_host().prop_map(|(snapshot, facts)| of(&snapshot, &facts, &Scope::All))
}

fn of(snapshot: &Snapshot, facts: &Facts, scope: &Scope) -> Desired {
    desired(snapshot, &snapshot.nodes[&ME], facts, scope)
}

fn cluster_and_host() -> impl Strategy<Value = (Snapshot, Facts)> {
    let place = (1..=2u32, 1..=3u32, 0..2u8, any::<[bool; 2]>(), prop::bool::weighted(0.3));
    let endpoints = prop::collection::btree_map(0..6u32, place, 0..6);
    let networks = (any::<bool>(), prop::option::of(Just(1400)), any::<bool>());
    let vip = prop::option::of((100..102u8, any::<bool>()));
    (endpoints, networks, 0..2u8, vip, 1..=3u32).prop_map(
        |(endpoints, (swap_vnis, mtu, internal), underlay, vip, nodes)| {
            let cluster = Cluster {
                id: ClusterId::from_bits(1),
                data_path_port: 4789,
                address_pools: vec![],
                node_pools: vec![],
                gossip_key: 0,
                authorities: vec![],
                cert_expiry_s: 0,
            };
            let mut snapshot = Snapshot { cluster: Some(Arc::new(cluster)), ..Snapshot::default() };
            for index in 1..=nodes {
                snapshot.nodes.insert(NodeId::from_bits(index.into()), Arc::new(node(index, underlay)));
            }
            for number in 1..=2 {
                let vni = 4096 + if swap_vnis { 3 - number } else { number };
                let network = network(number, vni, mtu, internal);
                snapshot.networks.insert(network.id, Arc::new(network));
            }
            let service = vip.map(|(vip, published)| Arc::new(service(1, vip, published)));
            snapshot.services.extend(service.map(|service| (service.id, service)));
            let mut facts = Facts { mtu: 1450, ..Facts::default() };
            for (number, (network, on, mac, [default_ipv4, default_ipv6], staged)) in endpoints {
                let mut endpoint = endpoint(number, network, on, mac, if mac == 0 { "eth0" } else { "eth1" });
                endpoint.service = (network == 1 && number % 2 == 0).then_some(ServiceId::from_bits(1));
                if endpoint.node == ME && staged {
                    facts.staged.insert(endpoint.id);
                } else if endpoint.node == ME {
                    facts.attachments.insert(
                        endpoint.id,
                        Attachment { default_ipv4, default_ipv6, ..Attachment::default() },
                    );
                }
                snapshot.endpoints.insert(endpoint.id, Arc::new(endpoint));
            }
            (snapshot, facts)
        },
    )
}

fn reached(model: &mut Model, desired: &Desired) -> Result<(), TestCaseError> {
    model.apply(&plan(&model.read(desired), desired)).map_err(TestCaseError::fail)?;
    model.holds(desired).map_err(TestCaseError::fail)?;
    prop_assert_eq!(plan(&model.read(desired), desired), vec![]);
    Ok(())
}

/// Forgets the targets of endpoints that are no longer there: their containers are somebody else's.
fn forget_targets(model: &mut Model, desired: &Desired) {
    let kept = model.read(desired);
    let stale_rules_stay = |space: &Space| matches!(space, Space::Target(_));
    model.objects.retain(|key, _| kept.contains(key) || !stale_rules_stay(&key.0));
}

proptest! {
    #[test]
    fn any_state_is_reached_from_any_other(states in prop::collection::vec(state(), 1..4)) {
        let mut model = Model::default();
        for desired in &states {
            let actual = model.objects.clone();
            model.apply(&plan(&actual, desired)).map_err(TestCaseError::fail)?;
            forget_targets(&mut model, desired);
            model.holds(desired).map_err(TestCaseError::fail)?;
            prop_assert_eq!(plan(&model.read(desired), desired), vec![]);
        }
    }

    /// Whatever passes have left undone, because a step failed or the daemon ended, and whatever is wanted by then.
    #[test]
    fn passes_that_are_cut_short_converge(
        turns in prop::collection::vec((state(), any::<[prop::sample::Index; 2]>()), 1..5),
        last in state(),
    ) {
        let mut model = Model::default();
        for (desired, [end, failing]) in &turns {
            let works = plan(&model.read(desired), desired);
            let steps: usize = works.iter().map(|work| work.steps.len()).sum();
            model.cut_short(&works, end.index(steps + 1), failing.index(steps + 1));
        }
        forget_targets(&mut model, &last);
        reached(&mut model, &last)?;
    }

    #[test]
    fn any_damage_is_repaired(desired in state(), damage in prop::collection::vec(any::<prop::sample::Index>(), 1..5)) {
        let mut model = Model::default();
        reached(&mut model, &desired)?;
        for index in damage {
            let keys: Vec<Key> = model.objects.iter().map(|(key, _)| key.clone()).collect();
            if !keys.is_empty() {
                let (space, name) = index.get(&keys).clone();
                model.delete(space, name);
            }
        }
        reached(&mut model, &desired)?;
    }

    /// From what changed alone follows what follows from everything.
    #[test]
    fn a_change_is_planned_by_what_it_touches(
        first in cluster_and_host(),
        states in prop::collection::vec((prop::bool::weighted(0.2), cluster_and_host()), 1..4),
    ) {
        let (mut before, mut known) = first;
        let mut model = Model::default();
        reached(&mut model, &of(&before, &known, &Scope::All))?;
        for (of_everything, (state, facts)) in states {
            // Records that are the same are shared.
            let mut after = before.clone();
            let concerns_all = |change: &Change| matches!(change.key(), mesh_model::Key::Node(_) | mesh_model::Key::Network(_));
            let changes = state.changes_since(&before).into_iter();
            changes.filter(|change| of_everything || !concerns_all(change)).for_each(|change| after.apply(change));
            let scope = Scope::of_pass(ME, (&before, &known), (&after, &facts));
            let wanted = of(&after, &facts, &scope);
            let whole = of(&after, &facts, &Scope::All);
            let works = match scope {
                Scope::All => plan(&model.read(&whole), &whole),
                Scope::Some(_) => plan_part(&model.objects, &of(&before, &known, &scope), &wanted, |_| false),
            };
            model.apply(&works).map_err(TestCaseError::fail)?;
            forget_targets(&mut model, &whole);
            model.holds(&whole).map_err(TestCaseError::fail)?;
            (before, known) = (after, facts);
        }
    }

    #[test]
    fn what_a_data_plane_records_is_what_the_kernel_holds(from in state(), to in state()) {
        let mut model = Model::default();
        reached(&mut model, &from)?;
        let mut recorded = model.objects.clone();
        let works = plan(&recorded, &to);
        model.apply(&works).map_err(TestCaseError::fail)?;
        works.iter().flat_map(|work| &work.steps).for_each(|step| record(step, &mut recorded));
        prop_assert_eq!(plan(&recorded, &to), vec![]);
        model.holds(&to).map_err(TestCaseError::fail)?;
    }
}

/// An address that an engine gave is good on its own host: elsewhere it may be another's.
#[test]
fn addresses_of_an_engine_are_routed_on_their_host_only() {
    let mut snapshot = Snapshot::default();
    snapshot.networks.insert(NetworkId::from_bits(1), Arc::new(network(1, 4097, None, false)));
    for index in 1..=3 {
        let mut node = node(index, 0);
        if index == 3 {
            // No frame of this node's gets there.
            node.advertise = "[fd77::3]:7443".parse().expect("an address");
        }
        snapshot.nodes.insert(node.id, Arc::new(node));
        let mut endpoint = endpoint(index, 1, index, 0, "eth0");
        endpoint.local_addresses = vec![address(format!("172.18.0.{index}"))];
        snapshot.endpoints.insert(endpoint.id, Arc::new(endpoint));
    }
    let desired = of(&snapshot, &Facts { mtu: 1450, ..Facts::default() }, &Scope::All);
    let objects = desired.parts.iter().flat_map(|part| part.objects.iter());
    let routed: Vec<String> = objects
        .filter_map(|(_, object)| match object {
            Object::Route(_, to, _) => Some(to.to_string()).filter(|to| to.starts_with("172.")),
            _ => None,
        })
        .collect();
    assert_eq!(routed, ["172.18.0.1/32"]);
}

#[test]
fn one_endpoint_elsewhere_costs_its_entries_only() {
    let state = |count: u32| {
        let mut snapshot = Snapshot::default();
        for index in 1..=2 {
            snapshot.nodes.insert(NodeId::from_bits(index.into()), Arc::new(node(index, 0)));
        }
        snapshot.networks.insert(NetworkId::from_bits(1), Arc::new(network(1, 4097, None, false)));
        for number in 0..count {
            let endpoint = endpoint(number, 1, if number == 0 { 1 } else { 2 }, 0, "eth0");
            snapshot.endpoints.insert(endpoint.id, Arc::new(endpoint));
        }
        let attachments = [(EndpointId::from_bits(0), Attachment::default())].into();
        desired(&snapshot, &node(1, 0), &Facts { mtu: 1450, attachments, ..Facts::default() }, &Scope::All)
    };
    let mut model = Model::default();
    model.apply(&plan(&Objects::default(), &state(5))).expect("a possible plan");
    let works = plan(&model.objects, &state(6));
    let steps: Vec<_> = works.iter().flat_map(|work| &work.steps).collect();
    // A forwarding entry, and for each family a neighbour on the bridge and one on the VXLAN link.
    assert_eq!(steps.len(), 5, "{steps:#?}");
    assert!(steps.iter().all(|step| matches!(step, Step::Make(_, Object::Fdb(..) | Object::Neighbour(..)))));
}
