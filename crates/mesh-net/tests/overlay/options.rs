//! What networks may be: of several subnets, with the MTU that the underlay takes, internal.

use crate::lab::{Lab, Space, address, ask, prefix, serve};
use mesh_model::{NetworkId, Subnet};
use mesh_net::Pass;
use std::sync::Arc;

fn mtu_of(space: &Space, link: &str) -> u32 {
    let shown = space.ip(&format!("link show dev {link}"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|mtu| mtu.parse().ok()).unwrap_or_else(|| panic!("no MTU: {shown}"))
}

/// The MTU of every link of a network that a packet passes, on the first host.
fn mtus(lab: &Lab, container: mesh_model::EndpointId) -> Vec<u32> {
    let overlay = lab.hosts[0].overlay(NetworkId::from_bits(1));
    let port = mesh_net::desired::port(container);
    let mut mtus: Vec<u32> =
        ["br0", "vx4097", "up0", port.as_str()].iter().map(|link| mtu_of(&overlay, link)).collect();
    mtus.push(mtu_of(&lab.hosts[0].space, "up4097"));
    mtus.push(mtu_of(lab.in_container(container), "eth0"));
    mtus.dedup();
    mtus
}

#[test]
fn the_mtu_follows_links_and_routes_of_the_underlay_into_containers() {
    for (ipv6_underlay, overhead, peer) in [(false, 50, "10.77.0.12"), (true, 70, "fd77::12")] {
        let mut lab = Lab::new(2, ipv6_underlay);
        lab.network(1);
        let [one, _two] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
        lab.reconcile(Pass::Changed);
        assert_eq!(mtus(&lab, one), [1500 - overhead]);
        let route = format!("route add {peer} dev eth0 mtu 1400");
        let steps = [
            ("link set eth0 mtu 9000".to_owned(), 9000),
            ("link set eth0 mtu 1450".to_owned(), 1450),
            (route, 1400),
            (format!("route del {peer}"), 1450),
            ("link set eth0 mtu 1500".to_owned(), 1500),
        ];
        for (change, underlay) in steps {
            lab.hosts[0].space.ip(&change);
            lab.reconcile(Pass::Full);
            assert_eq!(mtus(&lab, one), [underlay - overhead], "{change}");
            assert_eq!(lab.reconcile(Pass::Full), 0);
            let fits = format!("ping -n -c 1 -W 2 -M do -s {} 10.1.0.12", underlay.min(1500) - overhead - 28);
            lab.in_container(one).ok(&fits);
        }
        // The user's own choice stands above that.
        Arc::make_mut(lab.snapshot.networks.values_mut().next().expect("a network")).mtu = Some(1300);
        lab.reconcile(Pass::Changed);
        assert_eq!(mtus(&lab, one), [1300]);
    }
}

/// Next hops of overlays are IPv6, of those for IPv4 too: they get their 1280 bytes, and it is said that these
/// do not pass in one piece.
#[test]
fn an_underlay_that_is_too_narrow_is_named() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let one = lab.container(0, 1, 11);
    lab.container(1, 1, 12);
    lab.reconcile(Pass::Changed);
    lab.hosts[0].space.ip("link set eth0 mtu 1300");
    let snapshot = lab.snapshot.clone();
    for pass in [Pass::Full, Pass::Changed] {
        let failures = lab.hosts[0].try_reconcile(&snapshot, pass).failures;
        assert!(matches!(failures[..], [_]), "{failures:?}");
        let said = failures[0].error.to_string();
        assert!(said.contains("leaves 1250 bytes") && said.ends_with("by 30"), "{said}");
        assert_eq!(mtus(&lab, one), [1280]);
    }
    lab.in_container(one).reaches("10.1.0.12");
    lab.hosts[0].space.ip("link set eth0 mtu 1330");
    lab.reconcile(Pass::Full);
    assert_eq!(mtus(&lab, one), [1280]);
}

#[test]
fn containers_of_all_subnets_reach_each_other_and_the_vips_of_all() {
    for internal in [false, true] {
        let mut lab = Lab::new(2, false);
        let network = lab.network(1);
        Arc::make_mut(lab.snapshot.networks.get_mut(&network).expect("a network")).internal = internal;
        let first = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
        lab.service(1, &[first[1]], None);
        lab.reconcile(Pass::Changed);
        serve(lab.in_container(first[1]));
        lab.in_container(first[0]).reaches("10.1.0.12");
        let (client, watch) = (lab.in_container(first[0]), |space: &Space| space.ip("-o link show eth0"));
        let before = watch(client);

        let grown = Arc::make_mut(lab.snapshot.networks.get_mut(&network).expect("a network"));
        for (cidr, gateway) in [("10.101.0.0/24", "10.101.0.254"), ("fda1::/64", "fda1::1")] {
            grown.subnets.push(Subnet { cidr: prefix(cidr), gateway: address(gateway), range: None });
        }
        lab.reconcile(Pass::Changed);
        assert_eq!(watch(lab.in_container(first[0])), before, "the container keeps its interface");
        let second = [lab.container(0, 1, 21), lab.container(1, 1, 22)];
        for (container, last) in second.into_iter().zip([21, 22]) {
            let addresses = vec![address(&format!("10.101.0.{last}")), address(&format!("fda1::{last}"))];
            lab.change(container, |endpoint| endpoint.addresses = addresses);
        }
        lab.reconcile(Pass::Changed);
        assert_eq!(lab.reconcile(Pass::Full), 0);
        serve(lab.in_container(second[0]));
        let everybody = [
            "10.1.0.11",
            "fd1::11",
            "10.1.0.12",
            "fd1::12",
            "10.101.0.21",
            "fda1::21",
            "10.101.0.22",
            "fda1::22",
        ];
        for from in first.into_iter().chain(second) {
            let from = lab.in_container(from);
            everybody.iter().for_each(|to| from.reaches(to));
            for to in ["10.1.0.100:80", "[fd1::100]:80", "10.1.0.12:80", "[fd1::12]:80", "10.101.0.21:80"] {
                ask(from, to).unwrap_or_else(|e| panic!("{} to {to}: {e}", from.name));
            }
            assert_eq!(from.pings("10.77.0.11"), !internal, "the way out");
        }
    }
}
