//! Options of networks, and an underlay of IPv6.

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Container, Host, Lab, Ping, Replica, ReplicaSpec, field, scenario, shares, within,
};
use serde_json::{Value, json};

fn connect(lab: &Lab, host: &Host, network: &str, name: &str) -> Result<Container> {
    let container = lab.container(name)?;
    host.meshctl(&["network", "connect", "--name", name, network, &container.target()]).ok()?;
    Ok(container)
}

fn reaches(from: &Container, to: &str) -> Result<()> {
    from.output(&["ping", "-n", "-c1", "-W2", to]).ok().map(drop)
}

fn out_of_reach(from: &Container, to: &str) -> Result<()> {
    let ping = from.output(&["ping", "-n", "-c1", "-W1", to]);
    ensure!(ping.code != Some(0), "{} reaches {to}", from.name());
    Ok(())
}

#[test]
fn a_network_is_as_it_was_asked_for_and_grows() {
    scenario("options", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        let options =
            ["--subnet", "10.60.0.0/29", "--gateway", "10.60.0.6", "--mtu", "1300", "--label", "tier=db"];
        let dns =
            ["--dns", "10.77.0.9", "--dns", "10.77.0.9:53", "--dns-domain", "Corp.example.=10.77.0.8:5353"];
        vm1.meshctl(&[&["network", "create"], &options[..], &dns, &["small"]].concat()).ok()?;
        let shown = &vm1.meshctl(&["-o", "json", "network", "inspect", "small"]).json()?[0];
        ensure!(shown["mtu"] == 1300 && shown["labels"]["tier"] == "db", "{shown}");
        ensure!(shown["subnets"][0]["gateway"] == "10.60.0.6", "{shown}");
        let dns = json!({ "upstreams": ["10.77.0.9"], "domains": { "corp.example": ["10.77.0.8:5353"] } });
        ensure!(shown["dns"] == dns, "{shown}");
        let change =
            ["--dns-rm", "10.77.0.9", "--dns-domain-add", "lan=10.77.0.7", "--dns-domain-rm", "corp.example"];
        vm1.meshctl(&[&["network", "update"], &change[..], &["small"]].concat()).ok()?;
        let shown = &vm1.meshctl(&["-o", "json", "network", "inspect", "small"]).json()?[0];
        ensure!(shown["dns"] == json!({ "upstreams": [], "domains": { "lan": ["10.77.0.7"] } }), "{shown}");
        vm1.meshctl(&["network", "update", "--dns-domain-rm", "lan", "--dns-rm", "10.77.0.9", "small"])
            .ok()?;
        let (c1, c2) = (connect(lab, vm1, "small", "c1")?, connect(lab, vm2, "small", "c2")?);
        let _c3 = connect(lab, vm3, "small", "c3")?;
        ensure!(
            ["c1", "c2", "c3"].map(|name| cluster.address(name).unwrap_or_default())
                == ["10.60.0.1", "10.60.0.2", "10.60.0.3"]
        );
        ensure!(c1.output(&["ip", "link", "show", "eth0"]).ok()?.contains("mtu 1300"));
        ensure!(c1.output(&["ip", "route", "show", "default"]).ok()?.contains("via 10.60.0.6"));

        // An address rests before somebody else gets it, unless nothing else is left.
        vm3.meshctl(&["network", "disconnect", "small", "c3"]).ok()?;
        for (name, address) in [("c4", "10.60.0.4"), ("c5", "10.60.0.5"), ("c6", "10.60.0.3")] {
            connect(lab, vm3, "small", name)?;
            ensure!(cluster.address(name)? == address, "{name}: {}", cluster.address(name)?);
        }
        let late = lab.container("c7")?;
        let connect_late = ["network", "connect", "--name", "c7", "small", &late.target()];
        vm3.meshctl(&connect_late).refused("network update --subnet-add")?;

        let ping = Ping::start(&c1, "10.60.0.2")?;
        let grow =
            ["--subnet-add", "10.61.0.0/24", "--gateway", "10.61.0.254", "--ip-range", "10.61.0.64/26"];
        vm1.meshctl(&[&["network", "update", "--label-rm", "tier"], &grow[..], &["small"]].concat()).ok()?;
        vm3.meshctl(&connect_late).ok()?;
        ensure!(cluster.address("c7")? == "10.61.0.64");
        for (from, to) in
            [(&c1, "10.61.0.64"), (&c2, "10.61.0.64"), (&late, "10.60.0.1"), (&late, "10.60.0.2")]
        {
            reaches(from, to)?;
        }
        ensure!(late.dig(&["@10.61.0.254", "c1"])? == ["10.60.0.1"]);
        ping.go_on(20)?;
        let count = ping.stop()?;
        ensure!(count.lost == 0, "{count:?}");

        vm1.meshctl(&["network", "create", "unused"]).ok()?;
        vm1.meshctl(&["network", "prune"]).refused("--force")?;
        ensure!(vm1.meshctl(&["network", "prune", "-f"]).ok()?.trim() == "unused");
        let left = vm1.meshctl(&["-o", "json", "network", "ls"]).json()?;
        ensure!(left.as_array().is_some_and(|left| left.len() == 1), "{left}");

        // An internal network: itself, in both families, and nothing else.
        let subnets = ["--subnet", "10.62.0.0/24", "--subnet", "fd62::/64", "--internal", "inner"];
        vm1.meshctl(&[&["network", "create"], &subnets[..]].concat()).ok()?;
        let (i1, _i2) = (connect(lab, vm1, "inner", "i1")?, connect(lab, vm2, "inner", "i2")?);
        for to in ["10.62.0.3", "fd62::3", "10.62.0.1", "fd62::1"] {
            reaches(&i1, to)?;
        }
        i1.shell("ip route replace default via 10.62.0.1; ip -6 route replace default via fd62::1").ok()?;
        for to in ["10.77.0.1", "fd77::1", "10.77.0.11", "fd77::11", "10.60.0.1", "10.60.0.6"] {
            out_of_reach(&i1, to)?;
        }
        Ok(())
    });
}

/// Nodes that advertise IPv6 addresses: managers, agents, liveness, VXLAN and ingress go over those.
#[test]
fn an_underlay_of_ipv6() {
    scenario("ipv6 underlay", |lab| {
        let cluster = Cluster::three_over_ipv6(lab)?;
        let vm1 = cluster.vm1();
        for (name, subnets) in [
            ("four", &["--subnet", "10.60.0.0/24"][..]),
            ("six", &["--subnet", "fd61::/64"]),
            ("both", &["--subnet", "10.62.0.0/24", "--subnet", "fd62::/64"]),
        ] {
            vm1.meshctl(&[&["network", "create"], subnets, &[name]].concat()).ok()?;
        }
        let mut expected = vec![];
        let mut replicas = vec![];
        for (network, port) in [("four", "8004"), ("six", "8006"), ("both", "8000")] {
            let published = format!("{port}:80");
            vm1.meshctl(&[
                "service",
                "create",
                "--name",
                network,
                "--network",
                network,
                "--publish",
                &published,
            ])
            .ok()?;
            for host in [cluster.vm2(), cluster.vm3()] {
                let name = format!("{network}-{}", host.name());
                let spec =
                    ReplicaSpec { name: &name, network: Some(network), service: Some(network), port: 80 };
                replicas.push(Replica::start(host, spec)?);
                expected.push((network, name));
            }
            cluster.endpoints(network, "2/2")?;
        }
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            let host = daemon.host();
            for (network, url) in [
                ("four", format!("http://{}:8004/", host.ip())),
                ("six", format!("http://[{}]:8006/", host.ip6())),
                ("both", format!("http://{}:8000/", host.ip())),
                ("both", format!("http://[{}]:8000/", host.ip6())),
            ] {
                let shared: Vec<(&str, usize)> = expected
                    .iter()
                    .filter(|(on, _)| *on == network)
                    .map(|(_, name)| (name.as_str(), 3))
                    .collect();
                within(CONVERGES, &url, || shares(&client.answers(&url, 6)?, &shared))?;
            }
        }
        let both = replicas.iter().position(|replica| replica.name() == "both-vm2");
        let inside = replicas[both.unwrap_or_default()].namespace()?;
        ensure!(inside.output(&["ip", "link", "show", "eth0"]).ok()?.contains("mtu 1430"));
        within(CONVERGES, "the name leads to both replicas", || {
            shares(&inside.answers("http://both/", 6)?, &[("both-vm2", 3), ("both-vm3", 3)])
        })
    });
}

/// Two subnets of each family from the beginning, and one more of each later: addresses are taken from all, VIPs too, and
/// everybody reaches everybody.
#[test]
fn subnets_of_both_families_are_filled_one_after_the_other() {
    scenario("subnets", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let options = [
            &["--subnet", "10.65.0.0/29", "--subnet", "10.66.0.0/24"][..],
            &["--subnet", "fd65::/125", "--subnet", "fd66::/64"],
            &[
                "--gateway",
                "10.65.0.6",
                "--gateway",
                "10.66.0.254",
                "--gateway",
                "fd65::7",
                "--gateway",
                "fd66::ff",
            ],
            &["--ip-range", "10.66.0.64/30", "--ip-range", "fd66::8000/126"],
            &["--label", "tier=db", "--mtu", "1350", "many"],
        ];
        vm1.meshctl(&[&["network", "create"], &options.concat()[..]].concat()).ok()?;
        let shown = || -> Result<Value> {
            Ok(vm1.meshctl(&["-o", "json", "network", "inspect", "many"]).json()?[0].clone())
        };
        let is_shown = |expected: &[[&str; 3]]| -> Result<()> {
            let shown = shown()?;
            ensure!(
                shown["mtu"] == 1350 && shown["labels"]["tier"] == "db" && shown["internal"] == false,
                "{shown}"
            );
            let subnets: Vec<[String; 3]> = shown["subnets"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|subnet| ["cidr", "gateway", "range"].map(|part| field(subnet, part)))
                .collect();
            ensure!(subnets == expected, "{shown:#}");
            Ok(())
        };
        let mut expected = vec![
            ["10.65.0.0/29", "10.65.0.6", ""],
            ["10.66.0.0/24", "10.66.0.254", "10.66.0.64/30"],
            ["fd65::/125", "fd65::7", ""],
            ["fd66::/64", "fd66::ff", "fd66::8000/126"],
        ];
        is_shown(&expected)?;

        // Five addresses of the first subnet, then four of the second one's range; six and four by IPv6.
        let service = ["service", "create", "--name", "web", "--network", "many", "--publish", "8065:80"];
        vm1.meshctl(&service).ok()?;
        let vips = |service: &str| -> Result<Vec<String>> {
            let shown = cluster.list(&["service", "inspect", service])?;
            let vips = shown[0]["networks"][0]["addresses"].clone();
            Ok(vips.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        ensure!(vips("web")? == ["10.65.0.1", "fd65::1"], "{:?}", vips("web")?);
        let mut containers = vec![];
        for number in 1..=8 {
            let host = if number % 2 == 0 { vm1 } else { vm2 };
            containers.push(connect(lab, host, "many", &format!("m{number}"))?);
        }
        let taken = |name: &str| -> Result<Vec<String>> {
            let addresses = cluster.endpoint(name)?["addresses"].clone();
            Ok(addresses
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect())
        };
        for (name, addresses) in [
            ("m1", ["10.65.0.2", "fd65::2"]),
            ("m4", ["10.65.0.5", "fd65::5"]),
            ("m5", ["10.66.0.64", "fd65::6"]),
            ("m6", ["10.66.0.65", "fd66::8000"]),
            ("m8", ["10.66.0.67", "fd66::8002"]),
        ] {
            ensure!(taken(name)? == addresses, "{name}: {:?}", taken(name)?);
        }
        let full = lab.container("full")?;
        let connect_full = ["network", "connect", "--name", "full", "many", &full.target()];
        let refused = vm2.meshctl(&connect_full);
        refused.refused(
            "network 'many' has no free address left in 10.65.0.0/29, 10.66.0.64/30 of 10.66.0.0/24",
        )?;
        refused.refused("meshctl network update --subnet-add")?;

        // Live, while two of them talk.
        let ping = Ping::start(&containers[0], "fd66::8001")?;
        let more = ["--subnet-add", "10.67.0.0/29", "--gateway", "10.67.0.5"];
        let more6 = ["--subnet-add", "fd67::/125", "--ip-range", "fd67::4/126"];
        vm1.meshctl(&[&["network", "update"], &more[..], &more6, &["many"]].concat()).ok()?;
        expected.extend([["10.67.0.0/29", "10.67.0.5", ""], ["fd67::/125", "fd67::1", "fd67::4/126"]]);
        is_shown(&expected)?;
        vm2.meshctl(&connect_full).ok()?;
        ensure!(taken("full")? == ["10.67.0.1", "fd66::8003"], "{:?}", taken("full")?);
        let second = ["service", "create", "--name", "second", "--network", "many"];
        vm1.meshctl(&second).ok()?;
        ensure!(vips("second")? == ["10.67.0.2", "fd67::4"], "{:?}", vips("second")?);
        let own = lab.container("own")?;
        let (ip, ip6) = (["--ip", "10.67.0.4"], ["--ip", "fd67::7"]);
        let line = [&["network", "connect", "--service", "second", "--name", "own"], &ip[..], &ip6].concat();
        vm1.meshctl(&[&line[..], &["many", &own.target()]].concat()).ok()?;
        ping.go_on(20)?;
        let count = ping.stop()?;
        ensure!(count.lost == 0, "{count:?}");
        let spec = |name| ReplicaSpec { name, network: Some("many"), service: Some("web"), port: 80 };
        let replica = Replica::start(vm2, spec("web1"))?;
        cluster.endpoints("web", "1/1")?;
        let everybody = containers.iter().chain([&full, &own]);
        for from in everybody {
            for to in
                ["10.65.0.2", "fd65::6", "10.66.0.67", "fd66::8002", "10.67.0.4", "fd67::7", "10.77.0.1"]
            {
                reaches(from, to)?;
            }
            for to in ["10.65.0.1", "[fd65::1]"] {
                within(CONVERGES, "the VIP answers", || from.curl(&format!("http://{to}/")))?;
            }
        }
        ensure!(replica.namespace()?.dig(&["@10.67.0.5", "second"])? == ["10.67.0.2"]);
        ensure!(own.dig(&["@fd66::ff", "m6", "AAAA"])? == ["fd66::8000"]);

        // An MTU is the user's own choice. One that the underlay does not carry is said to be so by every node that has it.
        for refused in ["1279", "65536"] {
            vm1.meshctl(&["network", "create", "--mtu", refused, "no"]).refused("from 1280 to 65535")?;
        }
        vm1.meshctl(&["network", "create", "--mtu", "1451", "--subnet", "10.68.0.0/24", "wide"]).ok()?;
        let (wide, _) = (connect(lab, vm1, "wide", "w1")?, connect(lab, vm2, "wide", "w2")?);
        ensure!(wide.output(&["ip", "link", "show", "eth0"]).ok()?.contains("mtu 1451"));
        within(CONVERGES, "the doctor warns", || {
            let said = vm1.meshctl(&["doctor", "--network", "wide"]).stdout;
            let told = "its MTU is 1451, but the underlay leaves 1450";
            ensure!(said.contains(told) && said.contains("--mtu 1450 or less"), "{said}");
            Ok(())
        })
    });
}

/// What networks of IPv6 may be made of, over an underlay of IPv4.
#[test]
fn networks_with_and_of_ipv6() {
    scenario("ipv6 options", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let made = |options: &[&str]| -> Result<Value> {
            vm1.meshctl(&[&["network", "create"], options].concat()).ok()?;
            let name = options.last().copied().unwrap_or_default();
            Ok(vm1.meshctl(&["-o", "json", "network", "inspect", name]).json()?[0]["subnets"].clone())
        };
        let pair = |network: &str| -> Result<[Container; 2]> {
            let [one, two] = ["1", "2"].map(|number| format!("{network}{number}"));
            Ok([connect(lab, vm1, network, &one)?, connect(lab, vm2, network, &two)?])
        };
        let addresses = |name: &str| -> Result<Vec<String>> {
            let addresses = cluster.endpoint(name)?["addresses"].clone();
            Ok(addresses
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|a| a.as_str())
                .map(str::to_owned)
                .collect())
        };
        // From the pools.
        let subnets = made(&["--ipv6", "pool"])?;
        let cidrs = [0, 1].map(|at| field(&subnets[at], "cidr"));
        ensure!(
            cidrs[0].ends_with("/24") && cidrs[1].starts_with("fd") && cidrs[1].ends_with("/64"),
            "{subnets}"
        );
        let [one, _two] = pair("pool")?;
        let both = addresses("pool2")?;
        let of_pool = |at: usize, end: &str| both[at].starts_with(cidrs[at].trim_end_matches(end));
        ensure!(both.len() == 2 && of_pool(0, "0/24") && of_pool(1, "/64"), "{both:?}");
        both.iter().try_for_each(|to| reaches(&one, to))?;

        // Ranges and a gateway in both families.
        let (range, range6) = ("10.63.0.64/26", "fd63::8000/113");
        let subnets = ["--subnet", "10.63.0.0/24", "--subnet", "fd63::/64", "--gateway", "fd63::ff"];
        let ranges = ["--ip-range", range, "--ip-range", range6, "part"];
        let shown = made(&[&subnets[..], &ranges].concat())?;
        ensure!(shown[0]["range"] == range && shown[1]["range"] == range6, "{shown}");
        ensure!(shown[0]["gateway"] == "10.63.0.1" && shown[1]["gateway"] == "fd63::ff", "{shown}");
        let [one, two] = pair("part")?;
        let both = addresses("part2")?;
        ensure!(both == ["10.63.0.65", "fd63::8001"], "{both:?}");
        both.iter().try_for_each(|to| reaches(&one, to))?;
        ensure!(two.output(&["ip", "-6", "route", "show", "default"]).ok()?.contains("via fd63::ff"));
        ensure!(two.dig(&["@fd63::ff", "part1", "AAAA"])? == [addresses("part1")?[1].as_str()]);
        reaches(&two, "fd77::1")?;

        // Nothing but IPv6.
        let shown = made(&["--subnet", "fd64::/64", "six"])?;
        ensure!(shown.as_array().map(Vec::len) == Some(1), "{shown}");
        let [one, two] = pair("six")?;
        ensure!(
            one.output(&["ip", "-4", "-brief", "address", "show", "dev", "eth0"]).ok()?.trim().is_empty()
        );
        let there = addresses("six2")?;
        ensure!(there.len() == 1 && there[0].starts_with("fd64::"), "{there:?}");
        reaches(&one, &there[0])?;
        ensure!(two.dig(&["@fd64::1", "six1", "AAAA"])? == addresses("six1")?);
        ensure!(two.dig(&["@fd64::1", "six1", "A"])?.is_empty());
        let service = ["service", "create", "--name", "web", "--network", "six", "--publish", "8006:80"];
        vm1.meshctl(&service).ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("six"), service: Some("web"), port: 80 };
        let _replicas = [Replica::start(vm1, spec("web1"))?, Replica::start(vm2, spec("web2"))?];
        cluster.endpoints("web", "2/2")?;
        let (client, vip) = (lab.client("client")?, cluster.vip("web")?);
        let expected = [("web1", 3), ("web2", 3)];
        within(CONVERGES, "the VIP leads to both", || {
            shares(&one.answers(&format!("http://[{vip}]/"), 6)?, &expected)
        })?;
        for daemon in &cluster.daemons {
            let url = format!("http://[{}]:8006/", daemon.host().ip6());
            within(CONVERGES, &url, || shares(&client.answers(&url, 6)?, &expected))?;
        }
        Ok(())
    });
}
