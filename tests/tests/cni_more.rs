//! The CNI plugin among others: real clients of mapped ports, chains with plugins that are not the mesh's, several attachments
//! of one container and of many at once, and what a runtime hands on in `args`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Container, Echo, Host, Lab, Meshd, Nginx, Plugin, Said, comes_back, field, scenario,
    within,
};
use serde_json::{Value, json};

const SUBNETS: [&str; 4] = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];

/// A cluster of one host, with network `blue`.
fn alone(lab: &Lab) -> Result<(Host, Meshd)> {
    let host = lab.host("vm1")?;
    let meshd = host.meshd()?;
    host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
    host.meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
    Ok((host, meshd))
}

/// UDP in both families, and ports at one of the host's addresses.
#[test]
fn mapped_ports_lead_real_clients_to_the_container() {
    scenario("cni clients", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2, client) = (cluster.vm1(), cluster.vm2(), lab.client("client")?);
        vm1.meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
        let second = "10.77.0.212";
        vm2.output(&["ip", "address", "add", &format!("{second}/24"), "dev", "eth0"]).ok()?;
        let container = lab.container("c")?;
        let mappings = json!([
            { "hostPort": 5300, "containerPort": 53, "protocol": "udp" },
            { "hostPort": 5301, "containerPort": 53, "protocol": "udp", "hostIP": vm2.ip6().to_string() },
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": second },
        ]);
        let plugin =
            Plugin::new(vm2, "blue", "1.0.0").with("runtimeConfig", json!({ "portMappings": mappings }));
        plugin.call("ADD", "c")?.ok()?;
        Echo::datagrams(&container, 53)?;
        let _nginx = Nginx::new(&container, "c", 80, "of c")?.start(&container)?;
        let (ip, ip6): (IpAddr, IpAddr) = (vm2.ip().into(), vm2.ip6().into());
        for to in [(ip, 5300), (ip6, 5300), (ip6, 5301)].map(SocketAddr::from) {
            within(CONVERGES, &format!("{to} leads to the container"), || {
                ensure!(comes_back(&client, to)?);
                Ok(())
            })?;
        }
        let url = |address: &str| format!("http://{address}:8080/");
        within(CONVERGES, "the port at the second address leads to the container", || {
            ensure!(client.curl(&url(second))? == "of c");
            Ok(())
        })?;
        // Not at the host's other addresses, nor on other hosts.
        ensure!(
            client.curl(&url(&ip.to_string())).is_err() && client.curl(&url(&format!("[{ip6}]"))).is_err()
        );
        for to in [(ip, 5301), (vm1.ip().into(), 5300)].map(SocketAddr::from) {
            ensure!(!comes_back(&client, to)?, "{to} leads somewhere");
        }
        plugin.call("DEL", "c")?.ok()?;
        within(CONVERGES, "the ports are gone", || {
            ensure!(!comes_back(&client, (ip, 5300).into())? && client.curl(&url(second)).is_err());
            Ok(())
        })
    });
}

/// A list of plugins, each called as a runtime does: with the result of those before.
#[test]
fn a_chain_with_other_plugins() {
    scenario("cni chain", |lab| {
        let (host, _meshd) = alone(lab)?;
        let container = lab.container("c")?;
        let setting = "net.ipv4.conf.eth0.arp_announce";
        for version in ["0.4.0", "1.0.0"] {
            let mesh = Plugin::new(&host, "blue", version);
            let tuning = mesh.with("type", json!("tuning")).with("sysctl", json!({ setting: "2" }));
            let chain = [mesh.with("type", json!("loopback")), mesh, tuning];
            let mut result = Value::Null;
            for plugin in &chain {
                let told = if result.is_null() { plugin.clone() } else { plugin.with("prevResult", result) };
                result = told.call("ADD", "c")?.ok()?.clone();
            }
            let names: Vec<String> = result["interfaces"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|link| field(link, "name"))
                .collect();
            ensure!(names == ["lo", "eth0"], "{result}");
            let own = result["ips"].as_array().into_iter().flatten().filter(|ip| ip["interface"] == 1);
            ensure!(own.count() == 2, "{result}");
            ensure!(result["dns"]["nameservers"] == json!(["10.50.0.1", "fd00:50::1"]), "{result}");
            ensure!(container.output(&["sysctl", "-n", setting]).ok()? == "2");
            for to in ["127.0.0.1", "10.50.0.1", "fd00:50::1"] {
                container.output(&["ping", "-c1", "-W2", to]).ok()?;
            }
            for plugin in &chain {
                plugin.with("prevResult", result.clone()).call("CHECK", "c")?.ok()?;
            }
            container.output(&["sysctl", "-qw", &format!("{setting}=0")]).ok()?;
            let changed = chain[2].with("prevResult", result.clone()).call("CHECK", "c")?;
            ensure!(changed.outcome.code != Some(0), "the other plugin looks at nothing: {changed:?}");
            for plugin in chain.iter().rev() {
                plugin.with("prevResult", result.clone()).call("DEL", "c")?.ok()?;
            }
            ensure!(!container.shell("ip -brief link").ok()?.contains("eth0"));
            ensure!(host.meshctl(&["-o", "json", "endpoint", "ls"]).json()? == json!([]));
        }
        Ok(())
    });
}

/// An attachment is a configuration, a container and an interface: what is said of one changes no other. A network that went
/// meanwhile is in nobody's way.
#[test]
fn attachments_of_one_container_are_told_apart() {
    scenario("cni attachments", |lab| {
        let (host, _meshd) = alone(lab)?;
        host.meshctl(&["network", "create", "--subnet", "10.51.0.0/24", "red"]).ok()?;
        let (blue, red) = (Plugin::new(&host, "blue", "1.1.0"), Plugin::new(&host, "red", "1.1.0"));
        let other = blue.with("name", json!("other")).with("network", json!("blue"));
        let container = lab.container("c")?;
        let on = |ifname| [("CNI_IFNAME", ifname)];

        // Both at once.
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| blue.call("ADD", "c"));
            let second = red.call_with("ADD", "c", &on("eth10"));
            (first.join().expect("ADD does not panic"), second)
        });
        let (first, second) = (first?.ok()?.clone(), second?.ok()?.clone());
        for (result, ifname, count) in [(&first, "eth0", 2), (&second, "eth10", 1)] {
            ensure!(result["interfaces"].as_array().map(Vec::len) == Some(1), "{result}");
            ensure!(result["interfaces"][0]["name"] == ifname, "{result}");
            ensure!(result["ips"].as_array().map(Vec::len) == Some(count), "{result}");
        }
        for gateway in ["10.50.0.1", "fd00:50::1", "10.51.0.1"] {
            container.output(&["ping", "-c1", "-W2", gateway]).ok()?;
        }
        let (blue, red) = (blue.with("prevResult", first), red.with("prevResult", second));
        let checked = |plugin: &Plugin, ifname| plugin.call_with("CHECK", "c", &on(ifname));
        let both = || {
            checked(&blue, "eth0")?.ok()?;
            checked(&red, "eth10")?.ok().map(drop)
        };
        both()?;
        checked(&red, "eth0")?.failed(7, "prevResult has no interface eth0")?;

        // A second interface on a network: refused, and the first stays.
        blue.call_with("ADD", "c", &on("eth2"))?.failed(100, "already on network 'blue'")?;
        ensure!(container.output(&["ip", "link", "show", "eth2"]).code != Some(0), "half made");
        // DEL of another interface, by another configuration, of another container; GC of another configuration.
        for (plugin, name, ifname) in [
            (&blue, "c", "eth2"),
            (&blue, "c", "eth10"),
            (&red, "c", "eth0"),
            (&red, "c", "eth1"),
            (&other, "c", "eth0"),
            (&blue, "c0", "eth0"),
        ] {
            plugin.call_with("DEL", name, &on(ifname))?.ok()?;
        }
        other.with("cni.dev/valid-attachments", json!([])).call("GC", "")?.ok()?;
        both()?;
        // GC looks at the interface too.
        let kept = json!([{ "containerID": "c", "ifname": "eth10" }]);
        blue.with("cni.dev/valid-attachments", kept).call("GC", "")?.ok()?;
        checked(&blue, "eth0")?.failed(101, "eth0 is gone")?;
        checked(&red, "eth10")?.ok()?;

        // The administrator removes the endpoint and its network.
        let id = field(&host.meshctl(&["-o", "json", "endpoint", "ls"]).json()?[0], "id");
        host.meshctl(&["endpoint", "rm", &id]).ok()?;
        checked(&red, "eth10")?.failed(101, "eth10 is gone")?;
        host.meshctl(&["network", "rm", "red"]).ok()?;
        red.call("STATUS", "")?.failed(50, "red")?;
        red.call_with("ADD", "c", &on("eth10"))?.failed(7, "red")?;
        red.with("cni.dev/valid-attachments", json!([])).call("GC", "")?.ok()?;
        for _ in 0..2 {
            red.call_with("DEL", "c", &on("eth10"))?.ok()?;
        }
        let left = container.shell("ip -brief link; ip route; ip -6 route").ok()?;
        ensure!(left.lines().count() == 1, "{left}");
        Ok(())
    });
}

/// Many containers at once, added and deleted: each has an address of its own, and nothing is left.
#[test]
fn many_containers_at_once() {
    scenario("cni at once", |lab| {
        let (host, _meshd) = alone(lab)?;
        let plugin = Plugin::new(&host, "blue", "1.1.0");
        let containers: Vec<Container> =
            (0..16).map(|number| lab.container(&format!("c{number}"))).collect::<Result<_>>()?;
        let all = |command: &'static str| -> Result<Vec<Said>> {
            thread::scope(|scope| {
                let call = |container: &Container| {
                    let (plugin, name) = (plugin.clone(), container.name().to_owned());
                    scope.spawn(move || plugin.call(command, &name))
                };
                let calls: Vec<_> = containers.iter().map(call).collect();
                calls.into_iter().map(|call| call.join().expect("a call does not panic")).collect()
            })
        };
        // What stays from the first network on: forwarding.
        plugin.call("ADD", "c0")?.ok()?;
        plugin.call("DEL", "c0")?.ok()?;
        let before = host.kernel_objects()?;
        let mut addresses = BTreeSet::new();
        for added in all("ADD")? {
            let ips = added.ok()?["ips"].as_array().cloned().unwrap_or_default();
            addresses.extend(ips.iter().map(|ip| field(ip, "address")));
        }
        ensure!(addresses.len() == 2 * containers.len(), "{addresses:?}");
        for container in &containers {
            container.output(&["ping", "-c1", "-W2", "10.50.0.1"]).ok()?;
        }
        // Each twice at once: one of the two finds nothing to do.
        let (one, other) = thread::scope(|scope| {
            let one = scope.spawn(|| all("DEL"));
            let other = all("DEL");
            (one.join().expect("a call does not panic"), other)
        });
        for deleted in one?.iter().chain(&other?) {
            deleted.ok()?;
        }
        ensure!(host.meshctl(&["-o", "json", "endpoint", "ls"]).json()? == json!([]));
        let after = host.kernel_objects()?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    });
}

/// Addresses and labels in `args.cni`, and the mesh's own variables in `CNI_ARGS`.
#[test]
fn what_is_said_in_args() {
    scenario("cni args", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let (peer, container) = (lab.container("peer")?, lab.container("c")?);
        vm1.meshctl(&["network", "connect", "--name", "peer", "blue", &peer.target()]).ok()?;
        peer.resolver("10.50.0.1")?;
        let label = |key: &str, value: &str| json!({ "key": key, "value": value });
        let labels = [label("mesh.service", "web"), label("mesh.name", "named"), label("other", "thing")];
        let said = json!({ "cni": { "ips": ["10.50.0.66/24", "fd00:50::66"], "labels": labels } });
        let plugin = Plugin::new(vm2, "blue", "1.0.0").with("args", said);
        let added = plugin.call("ADD", "c")?;
        let ips = &added.ok()?["ips"];
        ensure!(ips[0]["address"] == "10.50.0.66/24" && ips[1]["address"] == "fd00:50::66/64", "{ips}");
        ensure!(container.address("eth0")? == "10.50.0.66");
        cluster.endpoints("web", "1/1")?;
        within(CONVERGES, "the names are known on the other host", || {
            for (name, kind, address) in [
                ("named", "A", "10.50.0.66"),
                ("tasks.web", "A", "10.50.0.66"),
                ("named", "AAAA", "fd00:50::66"),
            ] {
                let found = peer.dig(&[name, kind])?;
                ensure!(found == [address], "{name}: {found:?}");
            }
            Ok(())
        })?;
        for to in ["named", "web", "fd00:50::66"] {
            peer.output(&["ping", "-c1", "-W2", to]).ok()?;
        }
        plugin.call("DEL", "c")?.ok()?;

        lab.container("d")?;
        let said = "MESH_SERVICE=web;MESH_NAME=heavy;MESH_ALIASES=big,large;MESH_WEIGHT=3";
        let plugin = Plugin::new(vm2, "blue", "1.0.0");
        plugin.call_with("ADD", "d", &[("CNI_ARGS", said)])?.ok()?;
        let endpoint = cluster.endpoint("heavy")?;
        ensure!(field(&endpoint, "service") == "web" && endpoint["weight"] == 3, "{endpoint}");
        let address = cluster.address("heavy")?;
        within(CONVERGES, "the aliases are known on the other host", || {
            for name in ["big", "large"] {
                let found = peer.dig(&[name, "A"])?;
                ensure!(found == [address.as_str()], "{name}: {found:?}");
            }
            Ok(())
        })?;
        plugin.call("DEL", "d")?.ok()?;
        cluster.endpoints("web", "0/0")
    });
}
