//! Hosts, containers and clients as network namespaces that nothing but this process holds: they end with it, however
//! it ends. Mounts are made in a mount namespace of the test's own thread.

use ipnetwork::IpNetwork;
use mesh_model::{
    Availability, Balance, Cluster, ClusterId, Endpoint, EndpointId, EndpointMode, MacAddr, Network,
    NetworkId, Node, NodeId, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId, ServiceNetwork,
    Snapshot, Subnet, Target,
};
use mesh_net::{
    Config, DataPlane, Pass, Report,
    netns::{Namespace, within},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// A namespace that lives as long as this value.
pub(crate) struct Space {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        let fresh = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
            Namespace::current().map_err(|e| e.to_string())
        };
        let namespace = thread::scope(|scope| scope.spawn(fresh).join()).expect("the thread ends well");
        let namespace =
            namespace.unwrap_or_else(|e| panic!("root is needed to make network namespaces: {e}"));
        let space = Self { name: name.into(), namespace };
        space.ip("link set lo up");
        space
    }

    /// A path that opens this namespace, for `ip` and for endpoints.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd()).into()
    }

    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        within(&self.namespace, f).expect("the namespace can be entered")
    }

    /// Runs a command line inside.
    pub(crate) fn run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command");
        self.within(|| Command::new(program).args(words).output())
            .unwrap_or_else(|e| panic!("{program} is needed: {e}"))
    }

    /// Runs one that must succeed, and returns what it printed.
    pub(crate) fn ok(&self, command: &str) -> String {
        let output = self.run(command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}: {command}: {text}{}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.ok(&format!("ip {arguments}"))
    }

    /// Whether one ping is answered within a second.
    pub(crate) fn pings(&self, address: &str) -> bool {
        self.run(&format!("ping -n -c 1 -W 1 {address}")).status.success()
    }

    /// Waits until a ping is answered.
    pub(crate) fn reaches(&self, address: &str) {
        wait_until(&format!("{} reaches {address}", self.name), || self.pings(address));
    }
}

/// Answers every connection to port 80 in a namespace with `NAME CLIENT\n`, until the test ends.
pub(crate) fn serve(space: &Space) {
    let listener = space.within(|| TcpListener::bind("[::]:80")).expect("port 80 is free in a container");
    let name = space.name.clone();
    thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = writeln!(stream, "{name} {}", client.ip().to_canonical());
        }
    });
}

/// Connects from a namespace and reads the answer: who served, and which client it saw.
pub(crate) fn ask(space: &Space, to: &str) -> std::io::Result<(String, IpAddr)> {
    let to: SocketAddr = to.parse().expect("address and port");
    let limit = Duration::from_secs(2);
    let mut stream = space.within(|| TcpStream::connect_timeout(&to, limit))?;
    stream.set_read_timeout(Some(limit))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (name, client) = answer.trim_end().split_once(' ').ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((name.to_owned(), client.parse().expect("an address")))
}

/// What connection tracking says of itself in a namespace: `count`, `max`.
pub(crate) fn tracked(space: &Space, what: &str) -> u32 {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{what}");
    let read = space.within(|| std::fs::read_to_string(path)).expect("conntrack is there");
    read.trim().parse().expect("a number")
}

/// Sends every datagram to port 80 in a namespace back, until the test ends.
pub(crate) fn echo_datagrams(space: &Space) {
    let socket = space.within(|| UdpSocket::bind("[::]:80")).expect("port 80 is free in a container");
    thread::spawn(move || {
        let mut datagram = [0; 1 << 16];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
}

/// Sends whatever comes on connections to port 80 in a namespace back, until the test ends.
pub(crate) fn echo_streams(space: &Space) {
    let listener = space.within(|| TcpListener::bind("[::]:80")).expect("port 80 is free in a container");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut writer = stream.try_clone()?;
                std::io::copy(&mut stream, &mut writer)
            });
        }
    });
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::yield_now();
    }
}

/// A host with a data plane.
pub(crate) struct Host {
    pub(crate) space: Space,
    pub(crate) node: Node,
    pub(crate) run_dir: PathBuf,
    plane: Option<DataPlane>,
}

impl Host {
    /// A pass that must come without failures.
    pub(crate) fn reconcile(&mut self, snapshot: &Snapshot, pass: Pass) -> Report {
        let report = self.try_reconcile(snapshot, pass);
        assert!(report.failures.is_empty(), "{}: {:#?}", self.space.name, report.failures);
        report
    }

    pub(crate) fn try_reconcile(&mut self, snapshot: &Snapshot, pass: Pass) -> Report {
        let Self { space, plane, run_dir, node } = self;
        space.within(|| {
            let config = Config { run_dir: run_dir.clone(), me: node.id, queries: None };
            let plane = plane.get_or_insert_with(|| DataPlane::new(config).expect("a data plane"));
            let report = plane.reconcile(&Arc::new(snapshot.clone()), pass);
            plane.settle();
            report
        })
    }

    /// A full pass that can open so many files only. Call it on a thread with a table of files of its own.
    pub(crate) fn reconcile_with_files(&mut self, snapshot: &Snapshot, free: usize) -> Report {
        let Self { space, plane, .. } = self;
        space.within(|| {
            let mut fill: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            fill.truncate(fill.len() - free);
            plane.as_mut().expect("a data plane").reconcile(&Arc::new(snapshot.clone()), Pass::Full)
        })
    }

    /// What is not as it should be, in words.
    pub(crate) fn inspect(&mut self, snapshot: &Snapshot) -> Vec<String> {
        let Self { space, plane, .. } = self;
        let inspection = space.within(|| plane.as_mut().expect("a data plane").inspect(snapshot));
        let differences = inspection.expect("the kernel can be read").differences;
        differences.into_iter().map(|difference| difference.text).collect()
    }

    /// Takes everything of the mesh out of this host.
    pub(crate) fn clear(&mut self) -> Report {
        let Self { space, plane, .. } = self;
        space.within(|| plane.as_mut().expect("a data plane").clear())
    }

    /// Forgets all that the data plane knows, as a killed daemon does.
    pub(crate) fn forget(&mut self) {
        self.plane = None;
    }

    /// An overlay namespace of this host.
    pub(crate) fn overlay(&self, network: NetworkId) -> Space {
        let path = mesh_net::netns::namespace_of(&self.run_dir, network);
        let namespace = Namespace::open(&path).expect("the network is on this host");
        Space { name: format!("{}/{network}", self.space.name), namespace }
    }
}

/// Hosts on one LAN.
pub(crate) struct Lab {
    pub(crate) lan: Space,
    pub(crate) hosts: Vec<Host>,
    pub(crate) containers: BTreeMap<EndpointId, Space>,
    pub(crate) snapshot: Snapshot,
    dir: tempfile::TempDir,
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn prefix(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

impl Lab {
    /// Hosts at 10.77.0.11 and up (fd77::11 and up), and an underlay of that family of VXLAN.
    pub(crate) fn new(hosts: usize, ipv6_underlay: bool) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("root is needed to make mount namespaces");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("mounts can be made private");
        let lan = Space::new("lan");
        lan.ip("link add lan type bridge mcast_snooping 0");
        lan.ip("link set lan up");
        let cluster = Cluster {
            id: ClusterId::from_bits(1),
            data_path_port: 4789,
            address_pools: vec![],
            node_pools: vec![prefix("10.200.0.0/16"), prefix("fd20::/64")],
            gossip_key: 0,
            authorities: vec![],
            cert_expiry_s: 0,
        };
        let snapshot = Snapshot { revision: 1, cluster: Some(Arc::new(cluster)), ..Snapshot::default() };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut lab = Self { lan, hosts: vec![], containers: BTreeMap::new(), snapshot, dir };
        for index in 1..=hosts as u32 {
            lab.add_host(index, ipv6_underlay);
        }
        lab
    }

    fn add_host(&mut self, index: u32, ipv6_underlay: bool) {
        let name = format!("vm{index}");
        let space = self.plug(&name, 10 + index);
        let advertise = if ipv6_underlay {
            format!("[fd77::{}]:7443", 10 + index)
        } else {
            format!("10.77.0.{}:7443", 10 + index)
        };
        let node = Node {
            id: NodeId::from_bits(index.into()),
            name: name.parse().expect("a name"),
            role: Role::Manager,
            index,
            advertise: advertise.parse().expect("an address"),
            addresses: vec![address(&format!("10.200.0.{index}")), address(&format!("fd20::{index}"))],
            availability: Availability::Active,
            labels: BTreeMap::new(),
            created: 0,
        };
        self.snapshot.nodes.insert(node.id, Arc::new(node.clone()));
        self.hosts.push(Host { space, node, run_dir: self.dir.path().join(name), plane: None });
    }

    /// A machine on the LAN with addresses that end in `last`.
    pub(crate) fn plug(&self, name: &str, last: u32) -> Space {
        let space = Space::new(name);
        self.lan.ip(&format!("link add {name} type veth peer name eth0 netns {}", space.path().display()));
        self.lan.ip(&format!("link set {name} master lan up"));
        space.ip(&format!("addr add 10.77.0.{last}/24 dev eth0"));
        space.ip(&format!("addr add fd77::{last}/64 dev eth0 nodad"));
        space.ip("link set eth0 up");
        space
    }

    /// Looks from now on whether frames with addresses of network 1 or of nodes are on the LAN, outside VXLAN.
    pub(crate) fn watch_for_leaks(&self) {
        let table = "table bridge leaks {
            set packets { typeof ip saddr . ip daddr . meta l4proto; flags dynamic; size 256; }
            set packets6 { typeof ip6 saddr . ip6 daddr . meta l4proto; flags dynamic; size 256; }
            chain frames {
                type filter hook prerouting priority 0;
                ip saddr { 10.1.0.0/24, 10.200.0.0/16 } add @packets { ip saddr . ip daddr . meta l4proto }
                ip daddr { 10.1.0.0/24, 10.200.0.0/16 } add @packets { ip saddr . ip daddr . meta l4proto }
                ip6 saddr { fd1::/64, fd20::/64 } add @packets6 { ip6 saddr . ip6 daddr . meta l4proto }
                ip6 daddr { fd1::/64, fd20::/64 } add @packets6 { ip6 saddr . ip6 daddr . meta l4proto }
            }
        }";
        let path = self.dir.path().join("leaks.nft");
        fs::write(&path, table).expect("the directory is there");
        self.lan.ok(&format!("nft -f {}", path.display()));
    }

    /// Asserts that there were none.
    pub(crate) fn leaks_nothing(&self) {
        let found = self.lan.ok("nft list table bridge leaks");
        assert!(!found.contains("elements"), "on the LAN outside VXLAN:\n{found}");
    }

    /// A network with both families: 10.N.0.0/24 and fdN::/64.
    pub(crate) fn network(&mut self, number: u32) -> NetworkId {
        let id = NetworkId::from_bits(number.into());
        let subnet = |cidr: String, gateway: String| Subnet {
            cidr: prefix(&cidr),
            gateway: address(&gateway),
            range: None,
        };
        let network = Network {
            id,
            name: format!("net{number}").parse().expect("a name"),
            vni: 4096 + number,
            subnets: vec![
                subnet(format!("10.{number}.0.0/24"), format!("10.{number}.0.1")),
                subnet(format!("fd{number}::/64"), format!("fd{number}::1")),
            ],
            internal: false,
            mtu: None,
            dns: Default::default(),
            labels: BTreeMap::new(),
            created: 0,
        };
        self.snapshot.networks.insert(id, Arc::new(network));
        id
    }

    /// A container on a host with the addresses that end in `last`.
    pub(crate) fn container(&mut self, host: usize, network: u32, last: u32) -> EndpointId {
        let space = Space::new(&format!("c{network}-{last}"));
        let id = EndpointId::from_bits((u64::from(network) << 56) | (u64::from(last) << 40) | 1);
        let endpoint = Endpoint {
            id,
            name: space.name.parse().expect("a name"),
            network: NetworkId::from_bits(network.into()),
            node: self.hosts[host].node.id,
            addresses: vec![
                address(&format!("10.{network}.0.{last}")),
                address(&format!("fd{network}::{last}")),
            ],
            mac: MacAddr::endpoint((u64::from(network) << 16) | u64::from(last)),
            service: None,
            aliases: vec![],
            target: Target::Netns(space.path()),
            namespace_inode: space.namespace.inode(),
            ifname: "eth0".into(),
            ports: Vec::new(),
            owner: None,
            local_addresses: Vec::new(),
            source_nat: Vec::new(),
            weight: mesh_model::Weight::default(),
            draining: false,
            created: 0,
        };
        self.snapshot.endpoints.insert(id, Arc::new(endpoint));
        self.containers.insert(id, space);
        id
    }

    /// A service of these endpoints on a network, with VIPs that end in 100, and port 80 published as `published`.
    pub(crate) fn service(
        &mut self,
        network: u32,
        replicas: &[EndpointId],
        published: Option<u16>,
    ) -> ServiceId {
        let id = ServiceId::from_bits(u64::from(network) << 32 | u64::from(published.unwrap_or(0)));
        let ports = published.map(|published| PublishedPort {
            published,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            ip: None,
            proxy_protocol: None,
        });
        let vips = vec![address(&format!("10.{network}.0.100")), address(&format!("fd{network}::100"))];
        let service = Service {
            id,
            name: format!("web{network}").parse().expect("a name"),
            networks: vec![ServiceNetwork { network: NetworkId::from_bits(network.into()), vips }],
            aliases: vec![],
            endpoint_mode: EndpointMode::Vip,
            ports: ports.into_iter().collect(),
            health: None,
            balance: Balance::Roundrobin,
            drain_timeout_ms: 0,
            prefer_local: false,
            created: 0,
        };
        self.snapshot.services.insert(id, Arc::new(service));
        for replica in replicas {
            self.change(*replica, |endpoint| endpoint.service = Some(id));
        }
        id
    }

    /// Changes a record.
    pub(crate) fn change(&mut self, endpoint: EndpointId, change: impl FnOnce(&mut Endpoint)) {
        change(Arc::make_mut(self.snapshot.endpoints.get_mut(&endpoint).expect("an endpoint")));
    }

    /// A pass on every host; the work done. What a change is brought to by itself is what everything is brought to.
    pub(crate) fn reconcile(&mut self, pass: Pass) -> usize {
        let Self { hosts, snapshot, .. } = self;
        let mut steps = 0;
        for host in hosts {
            steps += host.reconcile(snapshot, pass).steps;
            if pass == Pass::Changed {
                let whole = host.reconcile(snapshot, Pass::Full);
                assert_eq!(whole.firewalls, 0, "{}: a full pass finds other rules", host.space.name);
            }
        }
        steps
    }

    pub(crate) fn in_container(&self, endpoint: EndpointId) -> &Space {
        &self.containers[&endpoint]
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            let overlays = self.hosts.iter().flat_map(|host| {
                let networks = self.snapshot.networks.keys();
                networks
                    .filter(|id| mesh_net::netns::namespace_of(&host.run_dir, **id).exists())
                    .map(|id| host.overlay(*id))
            });
            let overlays: Vec<Space> = overlays.collect();
            for space in
                self.hosts.iter().map(|host| &host.space).chain(&overlays).chain(self.containers.values())
            {
                for command in [
                    "ip -d -br link",
                    "ip -br addr",
                    "ip route",
                    "ip -6 route",
                    "ip rule",
                    "ip neigh",
                    "bridge fdb",
                    "nft list ruleset",
                ] {
                    eprintln!(
                        "--- {}: {command}\n{}",
                        space.name,
                        String::from_utf8_lossy(&space.run(command).stdout)
                    );
                }
            }
        }
        for host in &self.hosts {
            for network in self.snapshot.networks.keys() {
                let path = mesh_net::netns::namespace_of(&host.run_dir, *network);
                let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
            }
            let directory = mesh_net::netns::directory(&host.run_dir);
            let _ = nix::mount::umount2(&directory, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
