//! Snapshots made by hand, and questions to their tables.

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use mesh_dns::{Names, Outcome, Table, Transport, answer};
use mesh_model::{
    Availability, Endpoint, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, Network,
    NetworkId, Node, NodeId, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId, ServiceNetwork,
    Snapshot, Subnet, Target,
};
use rand::{SeedableRng, rngs::SmallRng};
use std::net::IpAddr;

/// The network whose table is asked.
pub(crate) const OURS: NetworkId = NetworkId::from_bits(1);
/// Another one.
pub(crate) const OTHER: NetworkId = NetworkId::from_bits(2);

/// A snapshot in the making.
#[derive(Default)]
pub(crate) struct Mesh {
    pub(crate) snapshot: Snapshot,
    next: u64,
}

impl Mesh {
    /// Network `Self-Network` with a subnet of each family, and network `other`.
    pub(crate) fn new() -> Self {
        let mut mesh = Self::default();
        mesh.network(OURS, "Self-Network", &["192.168.100.0/24", "fd00:64::/64"]);
        mesh.network(OTHER, "other", &["10.7.0.0/16"]);
        mesh
    }

    /// The mesh that most tests ask: a checked service of three replicas, of which the second is out.
    pub(crate) fn with_web() -> Self {
        let mut mesh = Self::new();
        let web = mesh.service("nginx_service", |service| {
            service.aliases = vec!["www".parse().unwrap(), "shared".parse().unwrap()];
            service.ports = vec![port(8080, Protocol::Http), port(53, Protocol::Udp)];
            service.health = Some(check());
        });
        for (index, health) in [Health::Healthy, Health::Unhealthy, Health::Healthy].into_iter().enumerate() {
            let last = 11 + index;
            let id = mesh.endpoint(&format!("web.{}", index + 1), last as u8, |endpoint| {
                endpoint.service = Some(web);
                endpoint.aliases = vec!["replica".parse().unwrap()];
            });
            mesh.snapshot.health.insert(id, health);
        }
        mesh.endpoint("Lonely", 20, |endpoint| endpoint.aliases = vec!["shared".parse().unwrap()]);
        mesh
    }

    pub(crate) fn network(&mut self, id: NetworkId, name: &str, subnets: &[&str]) {
        let subnet = |text: &&str| {
            let cidr: ipnetwork::IpNetwork = text.parse().unwrap();
            Subnet { cidr, gateway: mesh_model::first_free(cidr, &Default::default()).unwrap(), range: None }
        };
        let network = Network {
            id,
            name: name.parse().unwrap(),
            vni: 4096 + id.bits() as u32,
            subnets: subnets.iter().map(subnet).collect(),
            internal: false,
            mtu: None,
            dns: Default::default(),
            labels: Default::default(),
            created: 0,
        };
        self.snapshot.networks.insert(id, network.into());
    }

    /// A service on our network with the VIPs `.2` and `::2` (the next one `.3`, and so on).
    pub(crate) fn service(&mut self, name: &str, change: impl FnOnce(&mut Service)) -> ServiceId {
        self.next += 1;
        let id = ServiceId::from_bits(self.next);
        let number = self.snapshot.services.len() + 2;
        let vips = vec![ip(&format!("192.168.100.{number}")), ip(&format!("fd00:64::{number}"))];
        let mut service = Service {
            id,
            name: name.parse().unwrap(),
            networks: vec![ServiceNetwork { network: OURS, vips }],
            aliases: Vec::new(),
            endpoint_mode: EndpointMode::Vip,
            ports: Vec::new(),
            health: None,
            balance: Default::default(),
            drain_timeout_ms: 0,
            prefer_local: false,
            created: 0,
        };
        change(&mut service);
        self.snapshot.services.insert(id, service.into());
        id
    }

    /// An endpoint on our network with the addresses `.last` and `::last`.
    pub(crate) fn endpoint(
        &mut self,
        name: &str,
        last: u8,
        change: impl FnOnce(&mut Endpoint),
    ) -> EndpointId {
        let addresses = vec![ip(&format!("192.168.100.{last}")), ip(&format!("fd00:64::{last}"))];
        self.endpoint_at(name, addresses, change)
    }

    pub(crate) fn endpoint_at(
        &mut self,
        name: &str,
        addresses: Vec<IpAddr>,
        change: impl FnOnce(&mut Endpoint),
    ) -> EndpointId {
        self.next += 1;
        let id = EndpointId::from_bits(self.next);
        let mut endpoint = Endpoint {
            id,
            name: name.parse().unwrap(),
            network: OURS,
            node: NodeId::from_bits(1),
            addresses,
            mac: MacAddr::endpoint(self.next),
            service: None,
            aliases: Vec::new(),
            target: Target::Pid(1),
            namespace_inode: self.next,
            ifname: "eth0".to_owned(),
            ports: Vec::new(),
            owner: None,
            local_addresses: Vec::new(),
            source_nat: Vec::new(),
            weight: mesh_model::Weight::default(),
            draining: false,
            created: 0,
        };
        change(&mut endpoint);
        self.snapshot.endpoints.insert(id, endpoint.into());
        id
    }

    pub(crate) fn table(&self) -> Table {
        Table::new(&self.snapshot, OURS).expect("the network is there")
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(target: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort {
        published: 80,
        target,
        protocol,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    }
}

pub(crate) fn check() -> HealthCheck {
    HealthCheck {
        kind: HealthKind::Tcp,
        port: Some(80),
        interval_ms: 2000,
        timeout_ms: 1000,
        rise: 2,
        fall: 3,
    }
}

pub(crate) fn node(id: NodeId, availability: Availability) -> Node {
    Node {
        id,
        name: format!("vm{}", id.bits()).parse().unwrap(),
        role: Role::Worker,
        index: id.bits() as u32,
        advertise: ([192, 0, 2, id.bits() as u8], 7443).into(),
        addresses: Vec::new(),
        availability,
        labels: Default::default(),
        created: 0,
    }
}

/// A query as a client would send it, EDNS(0) included.
pub(crate) fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    message
}

/// What becomes of these octets.
pub(crate) fn outcome(table: &Table, octets: &[u8], transport: Transport) -> (Outcome, Vec<u8>) {
    let mut out = vec![0xaa; 65535];
    let names = Names::OfContainer(table, &[]);
    let outcome = answer(names, octets, transport, &mut SmallRng::from_os_rng(), &mut out);
    let len = if let Outcome::Answer(len) | Outcome::Refuse(len) = outcome { len } else { 0 };
    out.truncate(len);
    (outcome, out)
}

/// The answer over TCP, which has room for all; none if the question is forwarded.
pub(crate) fn ask(table: &Table, name: &str, rtype: RecordType) -> Option<Message> {
    match outcome(table, &query(name, rtype).to_vec().unwrap(), Transport::Tcp) {
        (Outcome::Answer(_) | Outcome::Refuse(_), octets) => {
            Some(Message::from_vec(&octets).expect("a well-formed answer"))
        }
        (Outcome::Forward, _) => None,
        (Outcome::Drop, _) => panic!("{name}: dropped"),
    }
}

/// The sorted addresses at a name of ours.
pub(crate) fn addresses(table: &Table, name: &str, rtype: RecordType) -> Vec<String> {
    let message = ask(table, name, rtype).unwrap_or_else(|| panic!("{name} is forwarded"));
    assert_eq!(message.metadata.response_code, ResponseCode::NoError, "{name}");
    let address = |data: &RData| match data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(aaaa) => aaaa.0.to_string(),
        other => panic!("{name}: {other}"),
    };
    let mut found: Vec<_> = message.answers.iter().map(|record| address(&record.data)).collect();
    found.sort();
    found
}

/// How a question about a name of ours fared, if it has no answer.
pub(crate) fn negative(table: &Table, name: &str, rtype: RecordType) -> ResponseCode {
    let message = ask(table, name, rtype).unwrap_or_else(|| panic!("{name} is forwarded"));
    assert!(message.answers.is_empty(), "{name}: {message}");
    let [soa] = &message.authorities[..] else { panic!("{name}: no SOA: {message}") };
    assert_eq!(soa.record_type(), RecordType::SOA, "{name}");
    assert!(soa.ttl <= 5, "{name}");
    assert!(soa.name.zone_of(message.queries[0].name()), "{name}: the SOA of {}", soa.name);
    message.metadata.response_code
}
