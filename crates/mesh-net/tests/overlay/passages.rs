//! From one network into another, by whatever a packet may say of its way.

use crate::{
    attacks::{MARK, Sniffer, checksum, frame, hex, ipv6, send, udp},
    lab::{Lab, wait_until},
};
use mesh_model::NetworkId;
use mesh_net::Pass;
use std::net::{Ipv4Addr, Ipv6Addr};

const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 11);

/// The datagram says which routers it wants to pass (RFC 791, loose source and record route).
fn source_routed(by: Ipv4Addr, then: Ipv4Addr, text: &[u8]) -> Vec<u8> {
    let datagram = udp(ATTACKER, by, [7, 7], text);
    let (header, payload) = datagram.split_at(20);
    let options = [&[131, 7, 4][..], &then.octets(), &[0]].concat();
    let mut header = [header, &options].concat();
    let length = (header.len() + payload.len()) as u16;
    header[0] = 0x47;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

/// The same by IPv6: a routing header of the type that was given up (0, RFC 5095), or of segment routing (4, RFC 8754).
fn segment_routed(kind: u8, by: Ipv6Addr, then: Ipv6Addr, text: &[u8]) -> Vec<u8> {
    let length = (8 + text.len() as u16).to_be_bytes();
    let datagram = [&[0, 7, 0, 7][..], &length, &[0, 0], text].concat();
    let source = "fd1::11".parse().expect("an address");
    ipv6(43, source, by, &[&[17, 2, kind, 1, 0, 0, 0, 0][..], &then.octets(), &datagram].concat())
}

#[test]
fn no_packet_finds_a_way_into_another_network() {
    let mut lab = Lab::new(1, false);
    let [first, second] = [1, 2].map(|number| lab.network(number));
    let [attacker, victim, client] =
        [(1, 11), (2, 11), (2, 12)].map(|(network, last)| lab.container(0, network, last));
    lab.reconcile(Pass::Changed);
    lab.in_container(attacker).reaches("10.1.0.1");
    let mac = |of| lab.snapshot.endpoints[&of].mac.0;
    let (own, gateway) = (mac(attacker), lab.hosts[0].node.bridge_mac().0);
    let marked = frame(mac(victim), mac(client), 0x0800, &udp([10, 2, 0, 12].into(), VICTIM, [7, 7], MARK));
    let [by, then] = ["fd1::1", "fd2::11"].map(|address| address.parse().expect("an address"));
    let packets = [
        ("by the gateway", 0x0800, udp(ATTACKER, VICTIM, [7, 7], b"by the gateway")),
        ("to everybody there", 0x0800, udp(ATTACKER, [10, 2, 0, 255].into(), [7, 7], b"to everybody there")),
        ("by a source route", 0x0800, source_routed(GATEWAY, VICTIM, b"by a source route")),
        ("by a routing header", 0x86dd, segment_routed(0, by, then, b"by a routing header")),
        ("by segments", 0x86dd, segment_routed(4, by, then, b"by segments")),
    ];
    // The victim's own gateway and its next hops are other machines to the attacker: it may address them all the same.
    let frames: Vec<Vec<u8>> = [gateway, mac(victim), [0x06, 0x6e, 0, 0, 0x10, 2]]
        .into_iter()
        .flat_map(|to| packets.iter().map(move |(_, ether_type, packet)| frame(to, own, *ether_type, packet)))
        .collect();
    let arrived = |lab: &Lab| -> Vec<&'static str> {
        let sniffer = Sniffer::start(lab.in_container(victim));
        send(lab.in_container(attacker), &frames);
        // What was let through is there before the mark is: over the host as well.
        lab.in_container(attacker).reaches("10.1.0.1");
        send(lab.in_container(client), std::slice::from_ref(&marked));
        let seen = sniffer.finish();
        let came = |word: &str| seen.iter().any(|frame| frame.contains(&hex(word)));
        packets.iter().map(|(word, ..)| *word).filter(|word| came(word)).collect()
    };
    assert_eq!(arrived(&lab), [""; 0]);
    // The attacks are real ones, as far as the kernel has anything to do with such headers at all.
    for network in [first, second] {
        open_to_source_routes(&lab, network);
    }
    lab.hosts[0].space.ok("nft flush chain ip meshd forward");
    wait_until("both get in", || arrived(&lab) == ["by the gateway", "by a source route"]);
    lab.reconcile(Pass::Full);
    assert_eq!(arrived(&lab), [""; 0]);
}

fn open_to_source_routes(lab: &Lab, network: NetworkId) {
    let host = &lab.hosts[0];
    for space in [&host.overlay(network), &host.space] {
        for link in ["all", "default", "br0", "up0", "up4097", "up4098"] {
            // Not each of them is everywhere.
            space.run(&format!("sysctl -qe net.ipv4.conf.{link}.accept_source_route=1"));
        }
    }
}
