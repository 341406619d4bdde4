//! Entries made by real packets through a real translation, in a namespace of the test's own.

use super::*;
use crate::nft::{
    Base, ChainKind, Datum, Family, Field, Hook, Rule, Source, Table,
    tests::namespace::{in_namespace, load},
};
use std::{
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

const VIP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 100);
const BACKEND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);
const PORT: u16 = 5300;

fn one(address: Ipv4Addr) -> BTreeSet<IpAddr> {
    [address.into()].into()
}

/// What goes to the VIP is answered by a backend.
fn translate(backend: Ipv4Addr) {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is needed");
    assert!(status.success());
    let mut table = Table::new(Family::Ip, "test");
    let to = Source::Constant(vec![Datum::Ipv4(backend)]);
    table.hook(
        "output",
        Base::new(ChainKind::Nat, Hook::Output, -100),
        vec![Rule::new().eq(Field::IpDaddr, VIP).dnat(to)],
    );
    load(&[&table]);
}

#[test]
fn what_a_parting_takes_and_what_it_leaves() {
    in_namespace(|| {
        translate(BACKEND);
        let mut conntrack = Conntrack::open().expect("ctnetlink");
        let (udp, tcp) = (UdpSocket::bind((BACKEND, PORT)), TcpListener::bind((BACKEND, PORT)));
        let (udp, tcp) = (udp.expect("a socket"), tcp.expect("a listener"));
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let ask = || {
            client.send_to(b"?", (VIP, PORT)).expect("sent");
            let (_, from) = udp.recv_from(&mut [0; 8]).expect("it arrives");
            udp.send_to(b"!", from).expect("answered");
            client.recv_from(&mut [0; 8]).expect("the answer is translated");
        };
        ask();
        let connection = TcpStream::connect((VIP, PORT)).expect("a connection");
        let accepted = tcp.accept().expect("accepted");
        // Straight to the backend, without a translation.
        let direct = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        direct.send_to(b"?", (BACKEND, PORT)).expect("sent");
        udp.recv_from(&mut [0; 8]).expect("it arrives");

        let mut forget = |whom: &BTreeSet<IpAddr>, parting| {
            let partings = whom.iter().map(|whom| (*whom, parting)).collect();
            conntrack.forget(&partings).expect("ctnetlink answers")
        };
        assert_eq!(forget(&one(Ipv4Addr::new(127, 0, 0, 8)), Parting::Gone), 0, "nobody's");
        assert_eq!(forget(&one(BACKEND), Parting::Draining), 1, "the translated datagrams");
        assert_eq!(forget(&one(BACKEND), Parting::Draining), 0);
        assert_eq!(forget(&one(BACKEND), Parting::Failing), 0, "the connection was answered");
        ask();
        assert_eq!(forget(&one(BACKEND), Parting::Gone), 3, "both flows and the connection");
        ask();
        // Many at once are looked for in one go.
        let many: BTreeSet<IpAddr> = (1..=20).map(|n| Ipv4Addr::new(127, 0, 0, n).into()).collect();
        assert!(many.contains(&IpAddr::from(BACKEND)));
        assert_eq!(forget(&many, Parting::Draining), 1);
        drop((connection, accepted));
    });
}

/// A client whose flow was forgotten, and that has begun it anew, to another backend, before all are deleted that were found.
#[test]
fn a_flow_that_was_begun_anew_meanwhile_stays() {
    const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);
    in_namespace(|| {
        let mut conntrack = Conntrack::open().expect("ctnetlink");
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let ask = || client.send_to(b"?", (VIP, PORT)).expect("sent");
        let _backends = [BACKEND, OTHER].map(|backend| UdpSocket::bind((backend, PORT)).expect("a socket"));
        // Now and then the kernel makes the new one in the place of the old.
        for _ in 0..20 {
            translate(BACKEND);
            ask();
            let mut found = Vec::new();
            conntrack
                .dump(libc::AF_INET, None, |attributes| found.extend(entry(attributes)))
                .expect("a dump");
            assert_eq!(found.len(), 1);
            assert_eq!(conntrack.forget(&[(BACKEND.into(), Parting::Gone)].into()).expect("ctnetlink"), 1);
            translate(OTHER);
            ask();
            conntrack.delete_all(&found).expect("what is gone already is fine");
            assert_eq!(conntrack.backends().expect("a dump"), one(OTHER));
            assert_eq!(conntrack.forget(&[(OTHER.into(), Parting::Gone)].into()).expect("ctnetlink"), 1);
        }
    });
}
