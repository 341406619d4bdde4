//! Two nodes as namespaces without names, which vanish with the test: a client on the LAN, the host of the first node, the
//! overlay of each, and a replica on each, endpoints 0x11 and 0x12. A plain veth pair stands for VXLAN.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::desired::port;
use crate::nft::tests::namespace::{self, in_namespace};
use mesh_model::{EndpointId, MacAddr};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for an answer that should not come.
const DOUBT: Duration = Duration::from_millis(700);

/// A network namespace, kept by an open file.
pub(super) struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let namespace =
            Self(in_namespace(|| File::open("/proc/thread-self/ns/net").expect("proc is mounted")));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs something on a thread inside.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("this test needs root: it enters namespaces");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` inside.
    fn ip(&self, arguments: &str) {
        self.run(|| namespace::ip(arguments));
    }

    fn sysctl(&self, name: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/net/{name}"), value))
            .unwrap_or_else(|error| panic!("sysctl net/{name}: {error}"));
    }

    fn forward(&self) {
        self.sysctl("ipv4/ip_forward", "1");
        self.sysctl("ipv6/conf/all/forwarding", "1");
    }

    /// A path of this namespace for other processes.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Both ends of a veth pair, up and without IPv6 duplicate address detection.
    fn connect(&self, name: &str, peer: &Namespace, peer_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer_name} netns {}", peer.path()));
        for (namespace, name) in [(self, name), (peer, peer_name)] {
            namespace.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
            namespace.ip(&format!("link set {name} up"));
        }
    }

    /// Serves TCP until the process ends: says its name and who asks.
    fn serve(&self, name: &'static str, port: u16) {
        let listener =
            self.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free"));
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                // The client may have gone already; the next one is served all the same.
                let _ = write!(stream, "{name} {}", peer.ip().to_canonical());
            }
        });
    }

    /// Connects and reads the answer: the server's name, and the address it saw.
    pub(super) fn ask(&self, to: IpAddr, port: u16) -> io::Result<(String, IpAddr)> {
        self.ask_within(PATIENCE, to, port)
    }

    /// The same, where the error of interest is that nothing comes back.
    pub(super) fn ask_in_vain(&self, to: IpAddr, port: u16) -> io::ErrorKind {
        match self.ask_within(DOUBT, to, port) {
            Ok(answer) => panic!("[{to}]:{port} answered: {answer:?}"),
            Err(error) => error.kind(),
        }
    }

    /// Whether a ping is answered.
    pub(super) fn ping(&self, to: IpAddr) -> bool {
        let mut ping = Command::new("ping");
        ping.args(["-c1", "-W10", &to.to_string()]);
        self.run(|| ping.output()).expect("this test needs ping").status.success()
    }

    fn ask_within(&self, patience: Duration, to: IpAddr, port: u16) -> io::Result<(String, IpAddr)> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (name, address) = answer.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
            Ok((name.to_owned(), address.parse().map_err(|_| io::ErrorKind::InvalidData)?))
        })
    }
}

/// Addresses of one version: LAN 10.77.0.0/24 or fd77::/64, overlay 10.78.0.0/24 or fd78::/64.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    ipv6: bool,
}

impl Plan {
    pub(super) const BOTH: [Plan; 2] = [Plan { ipv6: false }, Plan { ipv6: true }];

    fn address(self, net: u16, host: u16) -> IpAddr {
        if self.ipv6 {
            Ipv6Addr::new(0xfd00 + net, 0, 0, 0, 0, 0, 0, host).into()
        } else {
            Ipv4Addr::new(10, if net == 0x77 { 77 } else { 78 }, 0, host as u8).into()
        }
    }

    pub(super) fn lan(self, host: u16) -> IpAddr {
        self.address(0x77, host)
    }

    pub(super) fn overlay(self, host: u16) -> IpAddr {
        self.address(0x78, host)
    }

    fn prefix(self) -> u8 {
        if self.ipv6 { 64 } else { 24 }
    }

    fn whole(self) -> u8 {
        if self.ipv6 { 128 } else { 32 }
    }

    fn everything(self) -> &'static str {
        if self.ipv6 { "::/0" } else { "0.0.0.0/0" }
    }
}

/// LAN addresses: 1 is the host, 2 the client. Overlay addresses: 1 is the gateway on both nodes, 11 and 12 are the replicas.
pub(super) struct Lab {
    pub(super) client: Namespace,
    pub(super) host: Namespace,
    pub(super) overlays: [Namespace; 2],
    pub(super) replicas: [Namespace; 2],
}

/// MAC addresses of the nodes' bridges, and their link-local addresses.
const BRIDGES: [(&str, &str); 2] =
    [("06:6d:00:00:00:01", "fe80::6d:0:1"), ("06:6d:00:00:00:02", "fe80::6d:0:2")];

impl Lab {
    /// Builds it, with a TCP server on port 80 of each replica and on the client, and on port 22 of the host.
    pub(super) fn new(vips: &[u16]) -> Self {
        let lab = Lab {
            client: Namespace::new(),
            host: Namespace::new(),
            overlays: [Namespace::new(), Namespace::new()],
            replicas: [Namespace::new(), Namespace::new()],
        };
        lab.host.forward();
        lab.host.connect("eth0", &lab.client, "eth0");
        for node in 0..2 {
            lab.bridge(node);
        }
        let [first, second] = &lab.overlays;
        first.connect("vx4096", second, "vx4096");
        for overlay in [first, second] {
            overlay.ip("link set vx4096 master br0");
        }
        lab.host.connect("up4096", first, "up0");
        lab.host.ip("address add fe80::1/64 dev up4096");
        first.ip("address add fe80::2/64 dev up0");
        for plan in Plan::BOTH {
            lab.number(plan, vips);
        }
        for (replica, name) in lab.replicas.iter().zip(["one", "two"]) {
            replica.serve(name, 80);
        }
        lab.client.serve("client", 80);
        lab.host.serve("host", 22);
        lab
    }

    /// One node's bridge and the replica on it.
    fn bridge(&self, node: usize) {
        let (overlay, (mac, link_local)) = (&self.overlays[node], BRIDGES[node]);
        overlay.forward();
        for sysctl in ["rp_filter", "send_redirects"] {
            for scope in ["all", "default"] {
                overlay.sysctl(&format!("ipv4/conf/{scope}/{sysctl}"), "0");
            }
        }
        overlay.ip(&format!("link add br0 address {mac} type bridge mcast_snooping 0"));
        overlay.sysctl("ipv6/conf/br0/accept_dad", "0");
        overlay.ip("link set br0 up");
        // Where the module is there, it is switched on in every new namespace.
        for family in ["iptables", "ip6tables"].map(|family| format!("bridge/bridge-nf-call-{family}")) {
            if overlay.run(|| fs::exists(format!("/proc/sys/net/{family}")).unwrap_or_default()) {
                overlay.sysctl(&family, "0");
            }
        }
        overlay.ip(&format!("address add {link_local}/64 dev br0"));
        let (replica, endpoint) = (&self.replicas[node], 0x11 + node as u64);
        let port = port(EndpointId::from_bits(endpoint));
        replica.connect("eth0", overlay, port.as_str());
        replica.ip("link set eth0 down");
        replica.ip(&format!("link set eth0 address {} up", MacAddr::endpoint(endpoint)));
        overlay.ip(&format!("link set {port} master br0"));
    }

    fn number(&self, plan: Plan, vips: &[u16]) {
        let prefix = plan.prefix();
        let nets = format!("{}/{prefix}", plan.overlay(0));
        self.host.ip(&format!("address add {}/{prefix} dev eth0", plan.lan(1)));
        self.host.ip(&format!("route add {nets} via inet6 fe80::2 dev up4096"));
        self.client.ip(&format!("address add {}/{prefix} dev eth0", plan.lan(2)));
        // A neighbour that tries the door.
        self.client.ip(&format!("route add {nets} via {}", plan.lan(1)));
        let gateway = plan.overlay(1);
        for (node, (overlay, replica)) in self.overlays.iter().zip(&self.replicas).enumerate() {
            overlay.ip(&format!("address add {gateway}/{prefix} dev br0"));
            for vip in vips {
                overlay.ip(&format!("address add {}/{} dev br0", plan.overlay(*vip), plan.whole()));
            }
            replica.ip(&format!("address add {}/{prefix} dev eth0", plan.overlay(11 + node as u16)));
            replica.ip(&format!("route add {} via {gateway}", plan.everything()));
            // Each node has the gateway, and here broadcast crosses between them.
            for host in vips.iter().chain(&[1]) {
                let mac = BRIDGES[node].0;
                let neighbour = format!("{} lladdr {mac} dev eth0 nud permanent", plan.overlay(*host));
                replica.ip(&format!("neighbour add {neighbour}"));
            }
        }
        let [first, second] = &self.overlays;
        first.ip(&format!("route add {} via inet6 fe80::1 dev up0", plan.everything()));
        // The way back for connections that the first node took.
        let version = if plan.ipv6 { "-6" } else { "-4" };
        second.ip(&format!("{version} rule add fwmark 1 lookup 100"));
        let back = format!("{} via inet6 {} dev br0 onlink table 100", plan.everything(), BRIDGES[0].1);
        second.ip(&format!("route add {back}"));
    }
}
