//! What a container with every right in its own namespace, or a stranger on the LAN, can do to others: nothing. Each
//! attack is carried out with the protection taken away as well, where it must succeed.

use crate::lab::{Lab, Space, address, tracked, wait_until};
use mesh_model::{EndpointId, NetworkId};
use mesh_net::Pass;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    process::{Child, Command, Stdio},
};

pub(crate) const MARK: &[u8] = b"the end of it";
const BROADCAST: [u8; 6] = [0xff; 6];

/// Sends frames from an interface called `eth0`.
pub(crate) fn send(space: &Space, frames: &[Vec<u8>]) {
    const SCRIPT: &str = "import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for frame in sys.stdin.read().split(): s.send(bytes.fromhex(frame))";
    let start = || Command::new("python3").args(["-c", SCRIPT]).stdin(Stdio::piped()).spawn();
    let mut python = space.within(start).expect("python3 is needed");
    let mut stdin = python.stdin.take().expect("stdin is piped");
    for frame in frames {
        writeln!(stdin, "{}", frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            .expect("it reads");
    }
    drop(stdin);
    assert!(python.wait().expect("it ends").success());
}

/// Listens to everything that arrives at an interface called `eth0`, until the mark comes.
pub(crate) struct Sniffer {
    python: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Sniffer {
    pub(crate) fn start(space: &Space) -> Self {
        const SCRIPT: &str = "import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(('eth0', 3))
s.setsockopt(263, 1, __import__('struct').pack('IHH8s', socket.if_nametoindex('eth0'), 1, 0, b''))
s.settimeout(20)
print('ready', flush=True)
while True:
    frame, where = s.recvfrom(65536)
    if where[2] == 4: continue
    print(frame.hex(), flush=True)
    if sys.argv[1].encode() in frame: break";
        let mark = String::from_utf8_lossy(MARK).into_owned();
        let start = || Command::new("python3").args(["-c", SCRIPT, &mark]).stdout(Stdio::piped()).spawn();
        let mut python = space.within(start).expect("python3 is needed");
        let mut output = BufReader::new(python.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it is ready");
        assert_eq!(line, "ready\n");
        Self { python, output }
    }

    /// The frames that have come, as hexadecimal digits.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let frames: Vec<String> = self.output.by_ref().lines().map_while(Result::ok).collect();
        assert!(self.python.wait().expect("it ends").success(), "the mark did not come: {frames:#?}");
        frames
    }
}

pub(crate) fn frame(to: [u8; 6], from: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

fn arp(from: [u8; 6], sender: [u8; 6], claimed: Ipv4Addr, about: Ipv4Addr) -> Vec<u8> {
    frame(BROADCAST, from, 0x0806, &arp_packet(2, sender, claimed, about))
}

/// A question (operation 1) or an answer (2).
fn arp_packet(operation: u8, sender: [u8; 6], claimed: Ipv4Addr, about: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, operation];
    [&fixed[..], &sender, &claimed.octets(), &BROADCAST, &about.octets()].concat()
}

pub(crate) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// A UDP datagram without a checksum of its own, in IPv4.
pub(crate) fn udp(source: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2], text: &[u8]) -> Vec<u8> {
    let length = (20 + 8 + text.len()) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    let [from_port, to_port] = ports.map(u16::to_be_bytes);
    [&header[..], &from_port, &to_port, &(length - 20).to_be_bytes(), &[0, 0], text].concat()
}

/// An ICMPv6 message.
fn icmpv6(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    icmpv6_behind(None, source, to, message)
}

/// The same behind an extension header of a type, of eight bytes that say nothing: hop-by-hop (0), a fragment that is the
/// whole (44), or destination options (60).
fn icmpv6_behind(header: Option<u8>, source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let length = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&source.octets(), &to.octets(), &length, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum);
    let extension = match header {
        None => vec![],
        Some(44) => vec![58, 0, 0, 0, 0, 0, 0, 1],
        Some(_) => vec![58, 0, 1, 4, 0, 0, 0, 0],
    };
    ipv6(header.unwrap_or(58), source, to, &[extension, message].concat())
}

pub(crate) fn ipv6(next: u8, source: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &source.octets(), &to.octets(), payload].concat()
}

/// An advertisement that an address is at a MAC address, overriding what is known.
fn advertisement(claimed: Ipv6Addr, at: [u8; 6]) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &claimed.octets(), &[2, 1], &at].concat()
}

/// Three containers of one network on one host: who attacks, who is attacked, and who talks with that one.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) attacker: EndpointId,
    pub(crate) victim: EndpointId,
    pub(crate) client: EndpointId,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::over(false)
    }

    /// On an underlay of IPv6, or else of IPv4.
    fn over(ipv6_underlay: bool) -> Self {
        let mut lab = Lab::new(2, ipv6_underlay);
        lab.network(1);
        let [attacker, victim, client] = [11, 12, 13].map(|last| lab.container(0, 1, last));
        lab.reconcile(Pass::Changed);
        let scene = Self { lab, attacker, victim, client };
        for to in ["10.1.0.12", "fd1::12", "10.1.0.1", "fd1::1"] {
            scene.lab.in_container(client).reaches(to);
        }
        scene
    }

    pub(crate) fn mac(&self, of: EndpointId) -> [u8; 6] {
        self.lab.snapshot.endpoints[&of].mac.0
    }

    pub(crate) fn v4(&self, of: EndpointId) -> Ipv4Addr {
        match self.lab.snapshot.endpoints[&of].addresses[0] {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => unreachable!("IPv4 comes first"),
        }
    }

    fn v6(&self, of: EndpointId) -> Ipv6Addr {
        match self.lab.snapshot.endpoints[&of].addresses[1] {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => unreachable!("IPv6 comes second"),
        }
    }

    fn overlay(&self) -> Space {
        self.lab.hosts[0].overlay(NetworkId::from_bits(1))
    }

    /// Where the client believes an address to be.
    fn believed(&self, address: &str) -> String {
        self.lab.in_container(self.client).ip(&format!("neigh show {address}"))
    }

    /// What VXLAN would carry a datagram of the client's to the victim in.
    pub(crate) fn capsule(&self, word: &str) -> Vec<u8> {
        let inner = udp(self.v4(self.client), self.v4(self.victim), [7, 7], word.as_bytes());
        let vni = 4097u32.to_be_bytes();
        let header = [8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        [&header[..], &frame(self.mac(self.victim), self.mac(self.client), 0x0800, &inner)].concat()
    }

    /// Something that the attacker may well send.
    pub(crate) fn marked(&self) -> Vec<u8> {
        let datagram = udp(self.v4(self.attacker), self.v4(self.victim), [7, 7], MARK);
        frame(self.mac(self.victim), self.mac(self.attacker), 0x0800, &datagram)
    }
}

/// Frames that no container may send, each with a word in it that tells it from others.
fn forged(scene: &Scene) -> Vec<(&'static str, Vec<u8>)> {
    let (own, victim, client) = (scene.mac(scene.attacker), scene.mac(scene.victim), scene.mac(scene.client));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to_all = [0x33, 0x33, 0, 0, 0, 1];
    let plain =
        |word: &'static str, source, ports| udp(source, scene.v4(scene.victim), ports, word.as_bytes());
    let link_local: Ipv6Addr = "fe80::bad".parse().expect("an address");
    let with =
        |message: &[u8], word: &'static str| [message, &[1, 3, 0, 0, 0, 0, 0, 0], word.as_bytes()].concat();
    let advert = with(&advertisement(scene.v6(scene.client), own), "foreign advertisement");
    let router = with(&[134, 0, 0, 0, 64, 0, 0x70, 8, 0, 0, 0, 0, 0, 0, 0, 0], "router advertisement");
    let redirect = with(&[137, 0, 0, 0, 0, 0, 0, 0], "redirect");
    let query = with(&[130, 0, 0, 0, 0, 1, 0, 0], "listener query");
    let tagged = [&[0, 5, 8, 0][..], &plain("vlan tag", scene.v4(scene.attacker), [7, 7])].concat();
    let double =
        [&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &plain("double tag", scene.v4(scene.attacker), [7, 7])].concat();
    let behind = |header, message: &[u8], word| {
        let message = with(message, word);
        frame(
            to_all,
            own,
            0x86dd,
            &icmpv6_behind(Some(header), scene.v6(scene.attacker), all_nodes, &message),
        )
    };
    let router_advert = [134, 0, 0, 0, 64, 0, 0x70, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let dhcpv6 = [&[2, 35, 2, 34, 0, 21, 0, 0][..], b"DHCPv6 server"].concat();
    vec![
        ("double tag", frame(victim, own, 0x88a8, &double)),
        (
            "LLDP",
            frame([1, 0x80, 0xc2, 0, 0, 0x0e], own, 0x88cc, b"LLDP, with zeros behind it\0\0\0\0\0\0\0\0"),
        ),
        ("advertisement behind options", behind(60, &router_advert, "advertisement behind options")),
        ("advertisement behind hops", behind(0, &router_advert, "advertisement behind hops")),
        ("advertisement as a fragment", behind(44, &router_advert, "advertisement as a fragment")),
        ("redirect behind options", behind(60, &[137, 0, 0, 0, 0, 0, 0, 0], "redirect behind options")),
        (
            "neighbour behind options",
            behind(60, &advertisement(scene.v6(scene.client), own), "neighbour behind options"),
        ),
        (
            "DHCPv6 server",
            frame(to_all, own, 0x86dd, &ipv6(17, scene.v6(scene.attacker), all_nodes, &dhcpv6)),
        ),
        (
            "foreign MAC",
            frame(victim, client, 0x0800, &plain("foreign MAC", scene.v4(scene.attacker), [7, 7])),
        ),
        ("foreign IPv4", frame(victim, own, 0x0800, &plain("foreign IPv4", scene.v4(scene.client), [7, 7]))),
        (
            "gateway's IPv4",
            frame(victim, own, 0x0800, &plain("gateway's IPv4", Ipv4Addr::new(10, 1, 0, 1), [7, 7])),
        ),
        (
            "DHCP server",
            frame(BROADCAST, own, 0x0800, &plain("DHCP server", scene.v4(scene.attacker), [67, 68])),
        ),
        (
            "foreign IPv6",
            frame(
                victim,
                own,
                0x86dd,
                &icmpv6(
                    scene.v6(scene.client),
                    scene.v6(scene.victim),
                    &with(&[128, 0, 0, 0, 0, 1, 0, 1], "foreign IPv6"),
                ),
            ),
        ),
        (
            "made-up link-local",
            frame(
                victim,
                own,
                0x86dd,
                &icmpv6(
                    link_local,
                    scene.v6(scene.victim),
                    &with(&[128, 0, 0, 0, 0, 1, 0, 1], "made-up link-local"),
                ),
            ),
        ),
        (
            "foreign advertisement",
            frame(to_all, own, 0x86dd, &icmpv6(scene.v6(scene.attacker), all_nodes, &advert)),
        ),
        (
            "router advertisement",
            frame(to_all, own, 0x86dd, &icmpv6(scene.v6(scene.attacker), all_nodes, &router)),
        ),
        (
            "redirect",
            frame(victim, own, 0x86dd, &icmpv6(scene.v6(scene.attacker), scene.v6(scene.victim), &redirect)),
        ),
        ("listener query", frame(to_all, own, 0x86dd, &icmpv6(scene.v6(scene.attacker), all_nodes, &query))),
        (
            "VIP's IPv4",
            frame(victim, own, 0x0800, &plain("VIP's IPv4", Ipv4Addr::new(10, 1, 0, 100), [7, 7])),
        ),
        ("vlan tag", frame(victim, own, 0x8100, &tagged)),
        (
            "spanning tree",
            frame([1, 0x80, 0xc2, 0, 0, 0], own, 38, b"BB\x03spanning tree, with zeros behind it\0\0\0\0"),
        ),
        ("other protocol", frame(victim, own, 0x88b5, b"other protocol")),
    ]
}

pub(crate) fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_container_sends_as_itself_only() {
    let mut scene = Scene::new();
    let frames = forged(&scene);
    let arrived = |scene: &Scene| -> Vec<&'static str> {
        let sniffer = Sniffer::start(scene.lab.in_container(scene.victim));
        let all: Vec<Vec<u8>> =
            frames.iter().map(|(_, frame)| frame.clone()).chain([scene.marked()]).collect();
        send(scene.lab.in_container(scene.attacker), &all);
        let seen = sniffer.finish();
        let came = |name: &str| seen.iter().any(|frame| frame.contains(&hex(name)));
        frames.iter().map(|(name, _)| *name).filter(|name| came(name)).collect()
    };
    assert_eq!(arrived(&scene), [""; 0]);
    // The attacks are real ones.
    scene.overlay().ok("nft delete table bridge mesh");
    let names: Vec<&str> = frames.iter().map(|(name, _)| *name).collect();
    assert_eq!(arrived(&scene), names);
    scene.lab.reconcile(Pass::Full);
    assert_eq!(arrived(&scene), [""; 0]);
}

#[test]
fn nobody_is_talked_out_of_where_others_are() {
    let scene = Scene::new();
    let (own, victim) = (scene.mac(scene.attacker), scene.mac(scene.victim));
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let gateway = (Ipv4Addr::new(10, 1, 0, 1), "fd1::1".parse::<Ipv6Addr>().expect("an address"));
    let before = [
        scene.believed("10.1.0.12"),
        scene.believed("fd1::12"),
        scene.believed("10.1.0.1"),
        scene.believed("fd1::1"),
    ];
    assert!(before[..2].iter().all(|entry| entry.contains(&mac(victim))), "{before:?}");
    let lies = |scene: &Scene| {
        let to_all = [0x33, 0x33, 0, 0, 0, 1];
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let client = scene.v4(scene.client);
        let mut frames = vec![];
        for (v4, v6) in [(scene.v4(scene.victim), scene.v6(scene.victim)), gateway] {
            frames.push(arp(own, own, v4, client));
            frames.push(arp(own, own, v4, v4));
            frames.push(frame(to_all, own, 0x86dd, &icmpv6(v6, all_nodes, &advertisement(v6, own))));
            frames.push(frame(
                to_all,
                own,
                0x86dd,
                &icmpv6(scene.v6(scene.attacker), all_nodes, &advertisement(v6, own)),
            ));
        }
        frames.push(scene.marked());
        let sniffer = Sniffer::start(scene.lab.in_container(scene.victim));
        send(scene.lab.in_container(scene.attacker), &frames);
        sniffer.finish();
    };
    lies(&scene);
    for address in ["10.1.0.12", "fd1::12", "10.1.0.1", "fd1::1"] {
        assert!(!scene.believed(address).contains(&mac(own)), "{address}: {}", scene.believed(address));
    }
    // Frames that pretend to be the victim's, also ones that bridges take for themselves: its own still find it.
    let theft = [
        frame(BROADCAST, victim, 0x0800, &udp(scene.v4(scene.victim), Ipv4Addr::BROADCAST, [7, 7], b"theft")),
        frame([1, 0x80, 0xc2, 0, 0, 0x0e], victim, 0x88cc, b"theft"),
        frame([1, 0x80, 0xc2, 0, 0, 0], victim, 38, b"theft, with more behind it to be a frame"),
    ];
    send(scene.lab.in_container(scene.attacker), &theft);
    let known = scene.overlay().ok("bridge fdb show br br0");
    let of_victim: Vec<&str> = known.lines().filter(|line| line.contains(&mac(victim))).collect();
    let port = mesh_net::desired::port(scene.victim);
    // Where bridges know VLANs, they show an entry for each.
    let at_its_port = of_victim.iter().all(|line| line.contains(port.as_str()));
    assert!(!of_victim.is_empty() && at_its_port, "{of_victim:?}");
    assert!(scene.lab.in_container(scene.client).pings("10.1.0.12"));
    // The lies are real ones.
    scene.overlay().ok("nft delete table bridge mesh");
    for address in ["10.1.0.12", "fd1::12"] {
        // What was confirmed a moment ago is not given up for another's word (locktime, arp(7)).
        wait_until(address, || {
            lies(&scene);
            scene.believed(address).contains(&mac(own))
        });
    }
}

/// Bridges keep some group addresses for themselves, and hand frames to some of them to the host past their rules.
#[test]
fn what_is_for_bridges_goes_no_other_way() {
    let scene = Scene::new();
    let own = scene.mac(scene.attacker);
    let gateway = Ipv4Addr::new(10, 1, 0, 1);
    let invented = |last: u8| Ipv4Addr::new(10, 1, 0, 200 + last);
    // A question of somebody who is not there, to each of the addresses: who hears it remembers them.
    let ask = |scene: &Scene| -> Vec<u8> {
        let question = |last: u8| {
            frame([1, 0x80, 0xc2, 0, 0, last], own, 0x0806, &arp_packet(1, own, invented(last), gateway))
        };
        let questions: Vec<Vec<u8>> = (0..16).map(question).chain([scene.marked()]).collect();
        let sniffer = Sniffer::start(scene.lab.in_container(scene.victim));
        send(scene.lab.in_container(scene.attacker), &questions);
        sniffer.finish();
        let known = scene.overlay().ip("-4 neigh show nud all");
        (0..16).filter(|last| known.contains(&format!("{} ", invented(*last)))).collect()
    };
    assert_eq!(ask(&scene), [0; 0]);
    // Left to themselves they do. The second and some others are for no host.
    scene.overlay().ip("link set br0 type bridge group_fwd_mask 0");
    scene.overlay().ok("nft delete table bridge mesh");
    wait_until("the attack is a real one", || ask(&scene).contains(&0x0e));
}

#[test]
fn a_listening_container_hears_what_is_its_own() {
    let scene = Scene::new();
    let [attacker, client] = [scene.attacker, scene.client].map(|of| scene.lab.in_container(of));
    let sniffer = Sniffer::start(attacker);
    // The attacker's interface listens to everything; the client's datagrams are for the victim, then for all.
    let own = scene.mac(scene.client);
    let secret = udp(scene.v4(scene.client), scene.v4(scene.victim), [7, 7], b"a secret");
    let unknown = udp(scene.v4(scene.client), scene.v4(scene.victim), [7, 7], b"to nobody");
    let loud = udp(scene.v4(scene.client), Ipv4Addr::BROADCAST, [7, 7], MARK);
    let frames = [
        frame(scene.mac(scene.victim), own, 0x0800, &secret),
        frame([2, 9, 9, 9, 9, 9], own, 0x0800, &unknown),
        frame(BROADCAST, own, 0x0800, &loud),
    ];
    send(client, &frames);
    let heard = sniffer.finish();
    for word in ["a secret", "to nobody"] {
        assert!(!heard.iter().any(|frame| frame.contains(&hex(word))), "{word}");
    }
}

#[test]
fn a_container_that_goes_through_all_addresses_fills_no_table() {
    let scene = Scene::new();
    let attacker = scene.lab.in_container(scene.attacker);
    // By way of the gateway, which would have to look for them.
    for (subnet, gateway) in [("10.1.0.0/24", "10.1.0.1"), ("fd1::/64", "fd1::1")] {
        attacker.ip(&format!("route add {gateway} dev eth0"));
        attacker.ip(&format!("route del {subnet} dev eth0"));
        attacker.ip(&format!("route add {subnet} via {gateway}"));
    }
    let nobody4 = (120..=250).map(|last| IpAddr::from([10, 1, 0, last]));
    let nobody6 = (0x1000..0x1100).map(|last| IpAddr::from([0xfd1, 0, 0, 0, 0, 0, 0, last]));
    let nobody: Vec<IpAddr> = nobody4.chain(nobody6).collect();
    let [socket4, socket6] =
        ["0.0.0.0:0", "[::]:0"].map(|any| attacker.within(|| UdpSocket::bind(any)).expect("a socket"));
    let overlay = scene.overlay();
    // Entries of nobody that stand in others' way. Of a failed one the kernel makes room as soon as somebody needs it.
    let held = || {
        for to in &nobody {
            let socket = if to.is_ipv4() { &socket4 } else { &socket6 };
            drop(socket.send_to(b"?", (*to, 7)));
        }
        ["-4", "-6"].map(|family| {
            let known = overlay.ip(&format!("{family} neigh show dev br0 nud all"));
            let held = known.lines().filter(|line| !line.contains("FAILED"));
            let addresses = held.filter_map(|line| line.split(' ').next()?.parse().ok());
            addresses.filter(|address: &IpAddr| nobody.contains(address)).count()
        })
    };
    assert_eq!(held(), [0, 0]);
    for gateway in ["10.1.0.1", "fd1::1"] {
        attacker.reaches(gateway);
    }
    assert_eq!(held(), [0, 0]);
    scene.lab.in_container(scene.client).reaches("fd1::12");
    // Where they are looked for, they are held.
    overlay.ok("sysctl -q net.ipv4.neigh.br0.mcast_solicit=3 net.ipv6.neigh.br0.mcast_solicit=3");
    overlay.ip("neigh flush dev br0 nud failed");
    wait_until("the attack is a real one", || held().iter().all(|held| *held > 100));
}

/// VXLAN knows no sender: who is no node of the cluster must not get frames into its networks, and containers not even by
/// way of their host, whose address they bear outside.
#[test]
fn frames_of_strangers_stay_outside() {
    for (ipv6_underlay, family, net) in [(false, "ip", "10.77.0."), (true, "ip6", "fd77::")] {
        let [target, at] = [11, 100].map(|last| format!("{net}{last}"));
        let mut scene = Scene::over(ipv6_underlay);
        scene.lab.network(2);
        let other = scene.lab.container(1, 2, 14);
        scene.lab.reconcile(Pass::Changed);
        let stranger = scene.lab.plug("stranger", 100);
        let attack = |scene: &Scene| -> Vec<&'static str> {
            let sniffer = Sniffer::start(scene.lab.in_container(scene.victim));
            let from_container = scene.lab.in_container(other);
            let ways = [(&stranger, "of a stranger"), (from_container, "from a container")];
            for (space, word) in ways {
                let any = if ipv6_underlay { "[::]:0" } else { "0.0.0.0:0" };
                let socket = space.within(|| UdpSocket::bind(any)).expect("a socket");
                let sent = socket.send_to(&scene.capsule(word), (address(&target), 4789));
                sent.expect("it is sent");
            }
            // Over the same network and link.
            ways.iter().for_each(|(space, _)| space.reaches(&target));
            send(scene.lab.in_container(scene.attacker), &[scene.marked()]);
            let seen = sniffer.finish();
            let came = |word: &str| seen.iter().any(|frame| frame.contains(&hex(word)));
            ways.map(|(_, word)| word).into_iter().filter(|word| came(word)).collect()
        };
        assert_eq!(attack(&scene), [""; 0]);
        // A VXLAN of the host's own on the same port goes on.
        for (space, own, local, remote) in [
            (&scene.lab.hosts[0].space, "10.99.0.1/24", &target, &at),
            (&stranger, "10.99.0.2/24", &at, &target),
        ] {
            let link = format!("link add other type vxlan id 99 dstport 4789 local {local} remote {remote}");
            space.ip(&link);
            space.ip(&format!("addr add {own} dev other"));
            space.ip("link set other up");
        }
        stranger.reaches("10.99.0.1");
        // Without its rules for what is forwarded, the host bears the frames of its containers out as its own.
        scene.lab.hosts[1].space.ok(&format!("nft flush chain {family} meshd forward"));
        wait_until("the attack is a real one", || attack(&scene).contains(&"from a container"));
        // Without the rules where they arrive, strangers get in.
        scene.lab.hosts[0].space.ok(&format!("nft delete table {family} meshd"));
        wait_until("the attack is a real one", || attack(&scene).contains(&"of a stranger"));
    }
}

/// Sends a datagram from each of `count` pairs of ports to an address, by who has this MAC address.
fn flood(scene: &Scene, (to, by): (Ipv4Addr, [u8; 6]), count: u32) {
    const SCRIPT: &str = "import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
frame = bytearray.fromhex(sys.argv[1])
for number in range(int(sys.argv[2])):
    frame[34:38] = (number + (1 << 16)).to_bytes(4, 'big')
    s.send(frame)";
    let datagram = udp(scene.v4(scene.attacker), to, [0, 0], b"one of many");
    let frame = frame(by, scene.mac(scene.attacker), 0x0800, &datagram);
    let frame: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let run = || Command::new("python3").args(["-c", SCRIPT, &frame, &count.to_string()]).status();
    let ended = scene.lab.in_container(scene.attacker).within(run).expect("python3 is needed");
    assert!(ended.success());
}

#[test]
fn a_container_that_takes_all_connections_gets_no_more() {
    let mut scene = Scene::new();
    // What goes to a replica is tracked.
    scene.lab.service(1, &[scene.victim], None);
    scene.lab.reconcile(Pass::Changed);
    let number = |scene: &Scene, what: &str| tracked(&scene.overlay(), what);
    let most = number(&scene, "max");
    let victim = (scene.v4(scene.victim), scene.mac(scene.victim));
    flood(&scene, victim, most / 2 + 1000);
    assert!(number(&scene, "count") > most / 2, "{} of {most}", number(&scene, "count"));
    let reach = |scene: &Scene, from, to| scene.lab.in_container(from).pings(to);
    assert!(reach(&scene, scene.attacker, "10.1.0.12"), "nobody has looked yet");
    scene.lab.reconcile(Pass::Full);
    assert!(!reach(&scene, scene.attacker, "10.1.0.12"), "it has had its share");
    assert!(!reach(&scene, scene.attacker, "fd1::12"), "by either version");
    assert!(reach(&scene, scene.client, "10.1.0.12") && reach(&scene, scene.victim, "10.1.0.13"));
    assert!(reach(&scene, scene.victim, "10.1.0.11"), "others reach it");
    assert_eq!(scene.lab.reconcile(Pass::Full), 0, "and so it stays");
}

/// The same on the way out, through the host's own table.
#[test]
fn a_container_that_takes_all_connections_of_the_host_gets_no_more() {
    let mut scene = Scene::new();
    let outside = scene.lab.plug("outside", 100);
    let number = |scene: &Scene, what: &str| tracked(&scene.lab.hosts[0].space, what);
    let most = number(&scene, "max");
    // Half of the packets of a burst may be lost on their way.
    let gateway = scene.lab.hosts[0].node.bridge_mac().0;
    while number(&scene, "count") <= most / 2 + 100 {
        flood(&scene, (Ipv4Addr::new(10, 77, 0, 100), gateway), most / 2 + 1000);
    }
    let reach = |scene: &Scene, from, to| scene.lab.in_container(from).pings(to);
    assert!(reach(&scene, scene.attacker, "10.77.0.100"), "nobody has looked yet");
    scene.lab.reconcile(Pass::Full);
    assert!(!reach(&scene, scene.attacker, "10.77.0.100"), "it has had its share");
    assert!(reach(&scene, scene.victim, "10.77.0.100"), "others get out");
    assert!(outside.pings("10.77.0.11"), "the host is reached");
}
