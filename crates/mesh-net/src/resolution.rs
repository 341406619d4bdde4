//! Who answers for an address on a link: address resolution by hand, so that more than one answer is seen.
//!
//! Questions are probes (RFC 5227, 2.1.1; RFC 4862, 5.4.2): without a sender's address, so that nobody learns anything
//! from them. Needs CAP_NET_RAW in the namespace.

use mesh_model::MacAddr;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, bind},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// How often a question is repeated.
const TRIES: u32 = 3;
const ETHERNET: usize = 14;
const IPV6: usize = 40;
/// `IPPROTO_ICMPV6`, and the types of neighbour solicitations and advertisements (RFC 4861).
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The option with the target's link-layer address.
const TARGET_ADDRESS: u8 = 2;

/// The MAC addresses that answer for each address.
pub type Answers = BTreeMap<IpAddr, BTreeSet<MacAddr>>;

/// Asks on a link of the calling thread's namespace, and collects answers for as long as `wait`. Blocks. What this host
/// has itself on that link does not answer.
///
/// # Errors
/// There is no such link, or CAP_NET_RAW is missing.
pub fn who_has(link: &str, addresses: &[IpAddr], wait: Duration) -> io::Result<Answers> {
    let local = link_address(link)?;
    let mac = local.addr().map(MacAddr).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut answers = Answers::new();
    let (ipv4, ipv6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    for (asked, protocol) in [(ipv4, libc::ETH_P_ARP), (ipv6, libc::ETH_P_IPV6)] {
        if !asked.is_empty() {
            ask(&local, mac, protocol, &asked, wait, &mut answers)?;
        }
    }
    Ok(answers)
}

fn link_address(link: &str) -> io::Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|interface| interface.interface_name == link);
    all.find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {link}")))
}

fn ask(
    local: &LinkAddr,
    mac: MacAddr,
    protocol: i32,
    addresses: &[IpAddr],
    wait: Duration,
    answers: &mut Answers,
) -> io::Result<()> {
    let in_network_order = i32::from((protocol as u16).to_be());
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(in_network_order)))?;
    bind(socket.as_raw_fd(), local)?;
    for _ in 0..TRIES {
        for address in addresses {
            // A link that is full or down answers nothing, which is what is to be found out.
            let _ = socket.send(&question(mac, *address));
        }
        collect(&mut socket, Instant::now() + wait / TRIES, addresses, answers)?;
    }
    Ok(())
}

fn collect(
    socket: &mut Socket,
    deadline: Instant,
    addresses: &[IpAddr],
    answers: &mut Answers,
) -> io::Result<()> {
    let mut frame = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        let read = match socket.read(&mut frame) {
            Ok(read) => read,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e),
        };
        if let Some((address, mac)) =
            answer(&frame[..read]).filter(|(address, _)| addresses.contains(address))
        {
            answers.entry(address).or_default().insert(mac);
        }
    }
}

fn question(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_probe(mac, address),
        IpAddr::V6(address) => solicitation(mac, address),
    }
}

fn ethernet(to: [u8; 6], from: MacAddr, kind: i32) -> Vec<u8> {
    [&to[..], &from.0, &(kind as u16).to_be_bytes()].concat()
}

/// RFC 826: Ethernet, IPv4, request.
fn arp_probe(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, libc::ETH_P_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(Ipv4Addr::UNSPECIFIED.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// RFC 4861, 4.3, to the solicited-node address.
fn solicitation(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    let checksum = checksum(Ipv6Addr::UNSPECIFIED, to, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0xff, a, b, c], mac, libc::ETH_P_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(Ipv6Addr::UNSPECIFIED.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of an ICMPv6 message with its pseudo-header (RFC 8200, 8.1).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let all = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, ICMPV6], message].concat();
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = all.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Which address a frame answers for, and with which MAC address.
fn answer(frame: &[u8]) -> Option<(IpAddr, MacAddr)> {
    let kind = i32::from(u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?));
    let body = frame.get(ETHERNET..)?;
    match kind {
        libc::ETH_P_ARP if body.get(..8)? == [0, 1, 8, 0, 6, 4, 0, 2] => {
            let (mac, address): ([u8; 6], [u8; 4]) =
                (body.get(8..14)?.try_into().ok()?, body.get(14..18)?.try_into().ok()?);
            Some((address.into(), MacAddr(mac)))
        }
        libc::ETH_P_IPV6 if *body.get(6)? == ICMPV6 => {
            let message = body.get(IPV6..)?;
            if *message.first()? != ADVERTISEMENT {
                return None;
            }
            let address: [u8; 16] = message.get(8..24)?.try_into().ok()?;
            let option = message.get(24..32).filter(|option| option[..2] == [TARGET_ADDRESS, 1]);
            let mac = option.map_or_else(|| frame.get(6..12), |option| Some(&option[2..8]))?;
            Some((address.into(), MacAddr(mac.try_into().ok()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{Namespace, within};
    use crate::nft::tests::namespace::in_namespace;
    use proptest::prelude::*;
    use std::{os::fd::AsFd, process::Command};

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).output().expect("this test needs ip");
        assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A namespace that lives as long as it is held.
    fn machine() -> Namespace {
        in_namespace(|| Namespace::current().unwrap())
    }

    #[test]
    fn every_machine_that_has_an_address_answers() {
        in_namespace(|| {
            ip("link add name br0 type bridge");
            ip("link set br0 address 02:00:00:00:00:01 up");
            let machines = [(2, "a"), (3, "b")].map(|(number, port)| {
                let machine = machine();
                let space = format!("/proc/{}/fd/{}", std::process::id(), machine.as_fd().as_raw_fd());
                ip(&format!("link add name {port} master br0 up type veth peer name eth0 netns {space}"));
                within(&machine, || {
                    ip(&format!("link set eth0 address 02:00:00:00:00:0{number}"));
                    ip("address add 192.0.2.7/24 dev eth0");
                    ip("address add 2001:db8::7/64 dev eth0 nodad");
                    ip(&format!("address add 192.0.2.{number}/24 dev eth0"));
                    ip("link set eth0 up");
                })
                .unwrap();
                machine
            });
            let asked: Vec<IpAddr> =
                ["192.0.2.7", "192.0.2.2", "192.0.2.9", "2001:db8::7"].map(|a| a.parse().unwrap()).into();
            let mut found = Answers::new();
            // A port of a bridge passes packets a moment after it is up.
            let deadline = Instant::now() + Duration::from_secs(10);
            while found.get(&asked[3]).map_or(0, BTreeSet::len) < 2 && Instant::now() < deadline {
                found = who_has("br0", &asked, Duration::from_millis(300)).unwrap();
            }
            drop(machines);
            let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
            let both = BTreeSet::from([mac(2), mac(3)]);
            let expected = [(asked[0], both.clone()), (asked[1], BTreeSet::from([mac(2)])), (asked[3], both)];
            assert_eq!(found, Answers::from(expected));
        });
    }

    #[test]
    fn a_link_that_is_not_there_is_named() {
        let refused = who_has("none0", &["192.0.2.1".parse().unwrap()], Duration::ZERO).unwrap_err();
        assert_eq!(refused.to_string(), "no interface none0");
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange(frame in prop::collection::vec(any::<u8>(), 0..128), arp: bool) {
            let mut frame = frame;
            if let Some(kind) = frame.get_mut(12..14) {
                kind.copy_from_slice(if arp { &[8, 6] } else { &[0x86, 0xdd] });
            }
            answer(&frame);
        }
    }
}
