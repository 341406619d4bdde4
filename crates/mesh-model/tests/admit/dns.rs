//! Resolvers of networks.

use crate::cluster::{Mesh, ip, name, net, network_spec, refused};
use mesh_model::{
    DNS_DOMAIN_RESOLVERS, DNS_DOMAINS, DNS_UPSTREAMS, Network, NetworkDns, NetworkSpec, NetworkUpdate,
    Refusal, Resolver, admit,
};

fn resolvers(texts: &[&str]) -> Vec<Resolver> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn dns(upstreams: &[&str], domains: &[(&str, &[&str])]) -> NetworkDns {
    let domain = |(domain, of): &(&str, &[&str])| (domain.parse().unwrap(), resolvers(of));
    NetworkDns { upstreams: resolvers(upstreams), domains: domains.iter().map(domain).collect() }
}

fn spec(dns: NetworkDns) -> NetworkSpec {
    NetworkSpec { dns, ..network_spec("blue", &["10.60.0.0/24", "fd60::/64"]) }
}

/// This many resolvers, all different.
fn many(count: usize) -> Vec<Resolver> {
    (0..count).map(|last| format!("10.1.0.{last}").parse().unwrap()).collect()
}

#[test]
fn resolvers_are_kept_in_order_and_each_once() {
    let mut mesh = Mesh::new();
    let wanted = dns(
        &["10.0.0.2", "10.0.0.1", "10.0.0.2:53", "10.0.0.2:5353"],
        &[("Corp.Example.", &["10.1.0.1", "::ffff:10.1.0.1"])],
    );
    let expected = dns(&["10.0.0.2", "10.0.0.1", "10.0.0.2:5353"], &[("corp.example", &["10.1.0.1"])]);
    assert_eq!(mesh.network(&spec(wanted)).unwrap().dns, expected);
    assert!(mesh.network(&network_spec("red", &["10.61.0.0/24"])).unwrap().dns.is_empty());
}

#[test]
fn there_is_a_most_of_everything() {
    let mut mesh = Mesh::new();
    let mut create = |dns| mesh.network(&spec(dns));
    let domains = |count: usize| {
        let domain = |number| (format!("d{number}.example").parse().unwrap(), many(1));
        NetworkDns { domains: (0..count).map(domain).collect(), ..NetworkDns::default() }
    };
    let of_one = |count: usize| NetworkDns {
        domains: [("corp.example".parse().unwrap(), many(count))].into(),
        ..NetworkDns::default()
    };
    refused(create(NetworkDns { upstreams: many(DNS_UPSTREAMS + 1), ..NetworkDns::default() }), "8 or fewer");
    refused(create(domains(DNS_DOMAINS + 1)), "64 or fewer");
    refused(create(of_one(DNS_DOMAIN_RESOLVERS + 1)), "9 resolvers of domain 'corp.example'");
    refused(create(of_one(0)), "no resolver");
    let all = NetworkDns { upstreams: [many(DNS_UPSTREAMS), many(1)].concat(), ..domains(DNS_DOMAINS) };
    assert_eq!(create(all).unwrap().dns.upstreams.len(), DNS_UPSTREAMS);
}

#[test]
fn a_network_does_not_ask_itself() {
    let mut mesh = Mesh::new();
    for wanted in [
        dns(&["10.0.0.1", "10.60.0.1"], &[]),
        dns(&["[fd60::1]:5353"], &[]),
        dns(&["10.0.0.1"], &[("corp.example", &["10.60.0.1"])]),
    ] {
        refused(mesh.network(&spec(wanted)), "network 'blue', which would ask itself");
    }
    let elsewhere = NetworkSpec { gateways: vec![ip("10.60.0.254")], ..spec(dns(&["10.60.0.1"], &[])) };
    let blue = mesh.network(&elsewhere).unwrap();
    // The gateway of a subnet that the pool gives is as good as any.
    let of_pool = NetworkSpec { dns: dns(&["10.200.0.1"], &[]), ..NetworkSpec::named(name("red")) };
    refused(mesh.network(&of_pool), "10.200.0.1 is a gateway");

    let update = |update: &NetworkUpdate| admit::network_update(&mesh.snapshot, &blue, update);
    let add = |upstream| NetworkUpdate { dns_add: resolvers(&[upstream]), ..NetworkUpdate::default() };
    refused(update(&add("10.60.0.254")), "ask itself");
    let of_domain = NetworkUpdate {
        dns_domain_add: dns(&[], &[("corp.example", &["fd60::1"])]).domains,
        ..NetworkUpdate::default()
    };
    refused(update(&of_domain), "ask itself");
    let grow = |upstream, gateways: &[&str]| NetworkUpdate {
        subnet_add: vec![net("10.61.0.0/24")],
        gateways: gateways.iter().map(|gateway| ip(gateway)).collect(),
        ..add(upstream)
    };
    refused(update(&grow("10.61.0.1", &[])), "--gateway");
    assert_eq!(update(&grow("10.61.0.1", &["10.61.0.9"])).unwrap().dns.upstreams.len(), 2);

    // It was there first.
    let asks = Network { dns: dns(&["10.61.0.1"], &[]), ..Network::clone(&blue) };
    let subnet = NetworkUpdate { subnet_add: vec![net("10.61.0.0/24")], ..NetworkUpdate::default() };
    let itself = Refusal::DnsItself { resolver: "10.61.0.1".parse().unwrap(), network: "blue".to_owned() };
    assert_eq!(admit::network_update(&mesh.snapshot, &asks, &subnet), Err(itself));
}

#[test]
fn an_update_changes_what_it_names() {
    let mut mesh = Mesh::new();
    let first = dns(&["10.0.0.1", "10.0.0.2"], &[("a.example", &["10.1.0.1"]), ("b.example", &["10.1.0.2"])]);
    let blue = mesh.network(&spec(first)).unwrap();
    let update = NetworkUpdate {
        dns_add: resolvers(&["10.0.0.3", "10.0.0.2"]),
        dns_rm: resolvers(&["10.0.0.1", "10.0.0.9"]),
        dns_domain_add: dns(&[], &[("a.example", &["10.1.0.8"]), ("c.example", &["10.1.0.3"])]).domains,
        dns_domain_rm: vec!["b.example".parse().unwrap(), "x.example".parse().unwrap()],
        ..NetworkUpdate::default()
    };
    let updated = admit::network_update(&mesh.snapshot, &blue, &update).unwrap();
    let expected =
        dns(&["10.0.0.2", "10.0.0.3"], &[("a.example", &["10.1.0.8"]), ("c.example", &["10.1.0.3"])]);
    assert_eq!(updated.dns, expected);
    let nothing = admit::network_update(&mesh.snapshot, &updated, &NetworkUpdate::default()).unwrap();
    assert_eq!(nothing, updated);
    let full = NetworkUpdate { dns_add: many(DNS_UPSTREAMS), ..NetworkUpdate::default() };
    refused(admit::network_update(&mesh.snapshot, &updated, &full), "10 upstream resolvers");
}

#[test]
fn records_from_before_there_were_resolvers_are_read() {
    let mut mesh = Mesh::with_network("red", &["10.61.0.0/24"]);
    let red = mesh.snapshot.find_network("red").unwrap();
    let text = serde_json::to_string(red).unwrap();
    assert!(!text.contains("dns"), "{text}");
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), **red);

    let blue = mesh.network(&spec(dns(&["10.0.0.1:5353"], &[("corp.example", &["fd00::1"])]))).unwrap();
    let json = serde_json::to_value(&*blue).unwrap();
    let expected =
        serde_json::json!({ "upstreams": ["10.0.0.1:5353"], "domains": { "corp.example": ["fd00::1"] } });
    assert_eq!(json["dns"], expected);
    assert_eq!(serde_json::from_value::<Network>(json).unwrap(), *blue);
    let bad = serde_json::json!({ "upstreams": ["0.0.0.0"] });
    let error = serde_json::from_value::<NetworkDns>(bad).unwrap_err().to_string();
    assert!(error.starts_with("'0.0.0.0' is no resolver"), "{error}");
}
