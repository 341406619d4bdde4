//! The CNI plugin against the rules of the specification, with a real meshd behind it.

use std::fs;
use std::thread;

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Nginx, Plugin, host::binary, scenario, within};
use serde_json::json;

const SUBNETS: [&str; 4] = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];

/// Every version of the protocol, each with its format; the interface is what the result says, and works.
#[test]
fn attachments_in_every_version() {
    scenario("cni versions", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let peer = lab.container("peer")?;
        vm1.meshctl(&["network", "connect", "--name", "peer", "blue", &peer.target()]).ok()?;
        peer.resolver("10.50.0.1")?;
        let container = lab.container("c")?;
        let bare = container.shell("ip -brief link; ip route; ip -6 route").ok()?;

        for (number, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
            let plugin = Plugin::new(vm2, "blue", version)
                .with("runtimeConfig", json!({ "aliases": ["db", "mesh.service=web"] }));
            // Another address each time: the peer remembers for a while whose the last one was.
            let args = format!("IgnoreUnknown=1;K8S_POD_NAME=pod1;FOO=BAR;IP=10.50.0.{}", 50 + number);
            let args = [("CNI_ARGS", args.as_str())];
            let added = plugin.call_with("ADD", "c", &args)?;
            let result = added.ok()?;
            ensure!(result["cniVersion"] == version, "{result}");
            let interface = &result["interfaces"][0];
            ensure!(interface["name"] == "eth0" && interface["sandbox"] == "/run/netns/c", "{result}");
            ensure!(interface["mtu"].is_u64() == (version == "1.1.0"), "{result}");
            ensure!(result["ips"][0]["version"].is_string() == version.starts_with('0'), "{result}");
            ensure!(result["ips"].as_array().map(Vec::len) == Some(2), "{result}");
            ensure!(result["ips"][0]["gateway"] == "10.50.0.1", "{result}");
            ensure!(result["dns"]["nameservers"] == json!(["10.50.0.1", "fd00:50::1"]), "{result}");
            let address = container.address("eth0")?;
            ensure!(result["ips"][0]["address"] == format!("{address}/24"), "{result}");
            ensure!(result["routes"][0] == json!({ "dst": "0.0.0.0/0", "gw": "10.50.0.1" }), "{result}");
            within(CONVERGES, "the names are known on the other host", || {
                for name in ["pod1", "db", "tasks.web"] {
                    let found = peer.dig(&[name, "A"])?;
                    ensure!(found == [address.as_str()], "{name}: {found:?}");
                }
                Ok(())
            })?;
            peer.output(&["ping", "-c1", "-W2", &address]).ok()?;

            let checked = plugin.with("prevResult", result.clone()).call("CHECK", "c")?;
            if version.starts_with("0.3") {
                checked.failed(1, "CHECK")?;
            } else {
                ensure!(checked.ok()?.is_null(), "CHECK has no result: {}", checked.json);
            }
            let last = plugin.with("prevResult", result.clone());
            ensure!(last.call("DEL", "c")?.ok()?.is_null(), "DEL has no result");
            let after = container.shell("ip -brief link; ip route; ip -6 route").ok()?;
            ensure!(bare == after, "before:\n{bare}\nafter:\n{after}");
        }
        ensure!(cluster.list(&["endpoint", "ls"])?.len() == 1);
        Ok(())
    });
}

/// What `ADD`, `DEL`, `CHECK`, `GC` and `STATUS` are bound to, one after the other on one network.
#[test]
fn the_rules_of_each_command() {
    scenario("cni rules", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        vm1.meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
        let plugin = Plugin::new(&vm2, "blue", "1.1.0");
        let (c, d) = (lab.container("c")?, lab.container("d")?);
        // What stays from the first network on: forwarding.
        plugin.call("ADD", "c")?.ok()?;
        plugin.call("DEL", "c")?.ok()?;
        let before = vm2.kernel_objects()?;
        let names = || -> Result<Vec<String>> {
            let listed = vm2.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
            let owner = |e: &serde_json::Value| e["owner"].as_str().unwrap_or_default().to_owned();
            Ok(listed.as_array().into_iter().flatten().map(owner).collect())
        };

        // ADD: what is wrong is refused with its code, and nothing is left of it.
        let nowhere = [("CNI_NETNS", "/run/netns/none")];
        plugin.call_with("ADD", "c", &nowhere)?.failed(3, "/run/netns/none")?;
        vm2.shell("mkfifo /run/lab/pipe; ln -s /run/netns/none /run/lab/dangling").ok()?;
        plugin
            .call_with("ADD", "c", &[("CNI_NETNS", "/run/lab/dangling")])?
            .failed(3, "/run/lab/dangling")?;
        for wrong in [
            "/run/lab/resolv.conf",
            "/run/lab",
            "/run/lab/pipe",
            &vm2.socket(),
            "/proc/1/ns/mnt",
            "/proc/self/ns/net",
        ] {
            plugin.call_with("ADD", "c", &[("CNI_NETNS", wrong)])?.failed(4, "CNI_NETNS")?;
        }
        plugin.with("network", json!("red")).call("ADD", "c")?.failed(7, "red")?;
        plugin.with("service", json!("none")).call("ADD", "c")?.failed(7, "none")?;
        plugin.call_with("ADD", "c", &[("CNI_ARGS", "IP=10.99.0.1")])?.failed(100, "10.99.0.1")?;
        plugin.call_with("ADD", "c", &[("CNI_ARGS", "MAC=01:00:00:00:00:01")])?.failed(100, "unicast")?;
        c.output(&["ip", "link", "add", "eth0", "type", "bridge"]).ok()?;
        plugin.call("ADD", "c")?.failed(100, "eth0")?;
        c.output(&["ip", "link", "delete", "eth0"]).ok()?;
        ensure!(names()?.is_empty(), "{:?}", names()?);

        // ADD with a place of its own, and twice: the first is left alone.
        let wishes = json!({ "ips": ["10.50.0.77/24", "fd00:50::77"], "mac": "0a:11:22:33:44:55" });
        let added = plugin.with("runtimeConfig", wishes).call("ADD", "c")?;
        let result = added.ok()?.clone();
        ensure!(result["ips"][0]["address"] == "10.50.0.77/24", "{result}");
        ensure!(result["ips"][1]["address"] == "fd00:50::77/64", "{result}");
        ensure!(result["interfaces"][0]["mac"] == "0a:11:22:33:44:55", "{result}");
        plugin.call("ADD", "c")?.failed(100, "already")?;
        ensure!(names()? == ["cni:blue/c/eth0"], "{:?}", names()?);
        plugin.call("ADD", "d")?.ok()?;
        d.output(&["ping", "-c1", "-W2", "10.50.0.77"]).ok()?;

        // CHECK finds what is missing. meshd repairs it within seconds, maybe before the plugin looks.
        let check = plugin.with("prevResult", result.clone());
        check.call("CHECK", "c")?.ok()?;
        for (breakage, found) in [
            ("ip address delete 10.50.0.77/24 dev eth0", "has lost its address 10.50.0.77/24"),
            ("ip route delete default", "the route to 0.0.0.0/0"),
            ("ip -6 route delete default", "the route to ::/0"),
            ("ip link set eth0 down", "eth0 is down"),
            ("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99 up", "MAC address"),
            ("ip link delete eth0", "eth0 is gone"),
        ] {
            within(CONVERGES, breakage, || {
                let _ = c.shell(breakage);
                check.call("CHECK", "c")?.failed(101, found)
            })?;
            within(CONVERGES, "meshd repairs it", || check.call("CHECK", "c")?.ok().map(drop))?;
        }
        check.call("CHECK", "d")?.failed(7, "prevResult has no interface")?;
        plugin.call("CHECK", "c")?.failed(7, "prevResult")?;
        check.call_with("CHECK", "c", &nowhere)?.failed(7, "prevResult")?;
        let moved = check.with(
            "prevResult",
            serde_json::from_str(&result.to_string().replace("/netns/c", "/netns/none"))?,
        );
        moved.call_with("CHECK", "c", &nowhere)?.failed(3, "no network namespace")?;

        // Who may not talk to meshd, as a runtime without root.
        let unprivileged = "install -m 755 $0 /run/lab/mesh-cni && exec env -i CNI_COMMAND=DEL CNI_CONTAINERID=c \
            CNI_IFNAME=eth0 setpriv --reuid=65534 --regid=65534 --clear-groups /run/lab/mesh-cni <<<$1";
        let config = plugin.config.to_string();
        let refused = vm2.output(&["bash", "-c", unprivileged, &binary("mesh-cni")?, &config]);
        ensure!(
            refused.code == Some(1) && refused.stdout.contains("rootless containers can't join"),
            "{refused:?}"
        );

        // GC keeps what is listed, in each configuration for itself.
        let other = plugin.with("name", json!("other")).with("network", json!("blue"));
        let valid = |ids: &[&str]| {
            let list: Vec<_> = ids.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
            ("cni.dev/valid-attachments", json!(list))
        };
        let gc = |plugin: &Plugin, ids: &[&str]| {
            let (key, list) = valid(ids);
            plugin.with(key, list).call("GC", "")
        };
        gc(&plugin, &["c", "d"])?.ok()?;
        gc(&other, &[])?.ok()?;
        ensure!(names()?.len() == 2, "{:?}", names()?);
        plugin.call("GC", "")?.failed(7, "valid-attachments")?;
        ensure!(gc(&plugin, &["d"])?.ok()?.is_null());
        ensure!(names()? == ["cni:blue/d/eth0"], "{:?}", names()?);
        ensure!(!c.shell("ip -brief link").ok()?.contains("eth0"));

        // STATUS, and what the others do, while meshd does not run, and while it is no member.
        plugin.call("STATUS", "")?.ok()?;
        plugin.with("network", json!("red")).call("STATUS", "")?.failed(50, "red")?;
        // Each waits a while, so all at once.
        lab.container("late")?;
        let all_fail = |why: &str| {
            thread::scope(|scope| {
                let calls = [
                    scope.spawn(|| plugin.call("ADD", "late")?.failed(11, why)),
                    scope.spawn(|| plugin.call("DEL", "d")?.failed(11, why)),
                    scope.spawn(|| gc(&plugin, &[])?.failed(11, why)),
                ];
                calls.into_iter().try_for_each(|call| call.join().expect("a call does not panic"))
            })
        };
        cluster.daemons[1].kill()?;
        plugin.call("STATUS", "")?.failed(50, "meshd")?;
        all_fail("meshd")?;
        cluster.daemons[1].start()?;
        within(CONVERGES, "meshd is ready again", || plugin.call("STATUS", "")?.ok().map(drop))?;
        // No manager: as above, and what was asked for is not done later.
        cluster.daemons[0].kill()?;
        within(CONVERGES, "vm2 knows", || plugin.call("STATUS", "")?.failed(50, "no manager answers"))?;
        all_fail("no manager answers")?;
        ensure!(vm2.output(&["ip", "-netns", "late", "link", "show", "eth0"]).code != Some(0), "half made");
        cluster.daemons[0].start()?;
        within(CONVERGES, "a manager answers again", || plugin.call("STATUS", "")?.ok().map(drop))?;
        ensure!(names()? == ["cni:blue/d/eth0"], "{:?}", names()?);
        let stranger = lab.host("stranger")?;
        let _unclustered = stranger.meshd()?;
        let nowhere = Plugin::new(&stranger, "blue", "1.1.0");
        nowhere.call("STATUS", "")?.failed(50, "no cluster")?;
        nowhere.call("ADD", "c")?.failed(100, "no cluster")?;
        nowhere.call("DEL", "c")?.ok()?;

        // DEL, as often as one likes, with the namespace gone, and of what never was.
        vm2.output(&["ip", "netns", "delete", "d"]).ok()?;
        for container in ["d", "d", "never"] {
            plugin.call("DEL", container)?.ok()?;
            plugin.call_with("DEL", container, &[("CNI_NETNS", "")])?.ok()?;
        }
        within(CONVERGES, "nothing is left", || {
            ensure!(names()?.is_empty(), "{:?}", names()?);
            let after = vm2.kernel_objects()?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            Ok(())
        })
    });
}

/// Ports of a container are this host's, nobody else's, and go with it; a network that is full says so.
#[test]
fn ports_and_full_networks() {
    scenario("cni ports", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64", "blue"])
            .ok()?;
        vm1.meshctl(&["service", "create", "--name", "taken", "--network", "blue", "--publish", "81:80"])
            .ok()?;
        let client = lab.client("client")?;
        let (c, d) = (lab.container("c")?, lab.container("d")?);
        let mapped = |host: u16, more: serde_json::Value| {
            let mut mapping = json!({ "hostPort": host, "containerPort": 80, "protocol": "tcp" });
            mapping
                .as_object_mut()
                .into_iter()
                .for_each(|m| m.extend(more.as_object().cloned().unwrap_or_default()));
            Plugin::new(vm2, "blue", "1.0.0").with("runtimeConfig", json!({ "portMappings": [mapping] }))
        };
        let plain = json!({});
        let published = mapped(8080, plain.clone());
        published.call("ADD", "c")?.ok()?;
        let _nginx = Nginx::new(&c, "c", 80, "c")?.start(&c)?;
        for url in [format!("http://{}:8080/", vm2.ip()), format!("http://[{}]:8080/", vm2.ip6())] {
            within(CONVERGES, "the port leads to the container", || {
                let body = client.curl(&url)?;
                ensure!(body.contains('c'), "{body}");
                Ok(())
            })?;
        }
        ensure!(client.curl(&format!("http://{}:8080/", vm1.ip())).is_err(), "it is published on vm1 too");

        // Taken by another container, by a service, by a process, twice, or not to be had at all.
        published.call("ADD", "d")?.failed(100, "published already by endpoint")?;
        mapped(81, plain.clone()).call("ADD", "d")?.failed(100, "service 'taken'")?;
        let _held = Nginx::new(vm2, "held", 8088, "held")?.start(vm2)?;
        mapped(8088, plain.clone()).call("ADD", "d")?.failed(100, "nginx")?;
        mapped(8089, json!({ "hostIP": "127.0.0.1" })).call("ADD", "d")?.failed(100, "loopback")?;
        mapped(8089, json!({ "protocol": "sctp" })).call("ADD", "d")?.failed(2, "sctp")?;
        let service = ["service", "create", "--name", "late", "--network", "blue", "--publish", "8080:80"];
        vm1.meshctl(&service).refused("published already by endpoint")?;
        ensure!(!d.shell("ip -brief link").ok()?.contains("eth0"), "half made");
        ensure!(vm2.shell("nft list table ip meshd").ok()?.matches("8089").count() == 0);
        // Another host has the same port to give; the same host has it again after DEL.
        let elsewhere = Plugin::new(cluster.vm3(), "blue", "1.0.0")
            .with("runtimeConfig", published.config["runtimeConfig"].clone());
        elsewhere.call("ADD", "d")?.ok()?;
        elsewhere.call("DEL", "d")?.ok()?;
        published.call("DEL", "c")?.ok()?;
        ensure!(vm2.shell("nft list table ip meshd").ok()?.matches("8080").count() == 0);
        published.call("ADD", "d")?.ok()?;
        published.call("DEL", "d")?.ok()?;

        // Six usable addresses, of which one is the gateway's.
        vm1.meshctl(&["network", "create", "--subnet", "10.60.0.0/29", "tiny"]).ok()?;
        let tiny = Plugin::new(vm2, "tiny", "1.1.0");
        for number in 0..5 {
            let name = format!("t{number}");
            lab.container(&name)?;
            tiny.call("STATUS", "")?.ok()?;
            tiny.call("ADD", &name)?.ok()?;
        }
        let full = tiny.call("ADD", "c")?;
        full.failed(100, "tiny")?;
        full.failed(100, "add a subnet (meshctl network update --subnet-add CIDR tiny)")?;
        tiny.call("STATUS", "")?.failed(50, "tiny")?;
        tiny.call("DEL", "t3")?.ok()?;
        tiny.call("ADD", "c")?.ok()?;
        Ok(())
    });
}

/// A container that vanishes at any moment of `ADD` leaves nothing, and `ADD` says what happened.
#[test]
fn containers_that_vanish_half_way() {
    scenario("cni vanishing", |lab| {
        let host = lab.host("vm1")?;
        let mut meshd = host.meshd()?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        host.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let plugin = Plugin::new(&host, "blue", "1.1.0");
        lab.container("c")?;
        plugin.call("ADD", "c")?.ok()?;
        let before = host.kernel_objects()?;
        for round in 0..10 {
            lab.container("gone")?;
            let pause = format!("sleep 0.0{round}; ip netns delete gone; sleep 60");
            let _deleting = host.spawn(&["bash", "-c", &pause])?;
            let added = plugin.call("ADD", "gone")?;
            within(CONVERGES, "the container is gone", || {
                ensure!(!host.file("/run/netns/gone").exists());
                Ok(())
            })?;
            if added.outcome.code != Some(0) {
                let code = added.json["code"].as_u64();
                // 4: for a moment the path is a file like any other.
                ensure!(matches!(code, Some(3 | 4 | 5 | 11 | 100 | 101)), "{added:?}");
            }
            // Every other time the runtime does not even ask: meshd sees it by itself.
            if round % 2 == 0 {
                plugin.call("DEL", "gone")?.ok()?;
            }
        }
        // As after a restart of the host: nobody asked for DEL, and the namespace that the container has now has another
        // path, and may well have the number of the one of before.
        let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        let published = plugin.with("runtimeConfig", json!({ "portMappings": mapping }));
        let number = |name: &str| host.output(&["stat", "--dereference", "--format=%i", name]).ok();
        lab.container("first")?;
        published.call("ADD", "first")?.ok()?;
        let of_first = number("/run/netns/first")?;
        meshd.terminate()?;
        let _seldom_another = host.shell(&format!(
            "ip netns delete first; for try in {{1..60}}; do ip netns add second; \
             [[ $(stat -L -c %i /run/netns/second) != {of_first} ]] || exit 0; \
             [[ $try == 60 ]] || ip netns delete second; sleep 0.05; done"
        ));
        meshd.start()?;
        let second = [("CNI_NETNS", "/run/netns/second")];
        published.call_with("ADD", "first", &second)?.ok()?;
        published.call_with("DEL", "first", &second)?.ok()?;
        host.output(&["ip", "netns", "delete", "second"]).ok()?;
        within(CONVERGES, "only the first is left", || {
            let left = host.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
            ensure!(left.as_array().map(Vec::len) == Some(1), "{left}");
            let after = host.kernel_objects()?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            Ok(())
        })
    });
}

/// What no runtime should send: the plugin says what is wrong with the specification's code, without any daemon.
#[test]
fn malformed_requests() {
    scenario("cni malformed", |lab| {
        let host = lab.host("vm1")?;
        lab.container("c")?;
        let plugin = Plugin::new(&host, "blue", "1.1.0");
        let valid = plugin.config.to_string();
        let env = |command: &str, without: &str, more: &[&str]| -> Vec<String> {
            let all = ["CNI_CONTAINERID=c", "CNI_NETNS=/run/netns/c", "CNI_IFNAME=eth0", "CNI_PATH=/opt"];
            let kept = all.iter().filter(|pair| without.is_empty() || !pair.starts_with(without));
            let command = format!("CNI_COMMAND={command}");
            kept.copied().chain(more.iter().copied()).map(str::to_owned).chain([command]).collect()
        };
        let run = |variables: &[String], stdin: &str| {
            plugin.run(&variables.iter().map(String::as_str).collect::<Vec<_>>(), stdin)
        };
        for (command, needed) in [
            ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
            ("GC", &["CNI_PATH"]),
        ] {
            for name in needed {
                run(&env(command, name, &[]), &valid)?.failed(4, name)?;
                run(&env(command, name, &[&format!("{name}=")]), &valid)?.failed(4, name)?;
            }
        }
        plugin.run(&["CNI_CONTAINERID=c"], &valid)?.failed(4, "CNI_COMMAND")?;
        run(&env("FLY", "", &[]), &valid)?.failed(4, "CNI_COMMAND")?;
        for wrong in ["CNI_CONTAINERID=../c", "CNI_IFNAME=a/b", "CNI_NETNS=c", "CNI_ARGS=x", "CNI_ARGS=FOO=1"]
        {
            let (name, _) = wrong.split_once('=').unwrap_or_default();
            run(&env("ADD", name, &[wrong]), &valid)?.failed(4, name)?;
        }
        for (stdin, code) in [
            (String::new(), 6),
            ("{".to_owned(), 6),
            ("[]".to_owned(), 6),
            ("{}".to_owned(), 1),
            (valid.replace("1.1.0", "2.0.0"), 1),
            (valid.replace("\"blue\"", "\"b/lue\""), 7),
            (valid.replace("\"name\"", "\"nam\""), 2),
            (plugin.with("prevResult", json!("x")).config.to_string(), 6),
            (plugin.with("runtimeConfig", json!({ "ips": ["x"] })).config.to_string(), 7),
        ] {
            for command in ["ADD", "DEL", "CHECK"] {
                if command == "ADD" || code != 7 || stdin.contains("b/lue") {
                    run(&env(command, "", &[]), &stdin)?.failed(code, "")?;
                }
            }
        }
        for (version, command) in [("0.4.0", "GC"), ("1.0.0", "STATUS"), ("0.3.1", "CHECK")] {
            run(&env(command, "", &[]), &valid.replace("1.1.0", version))?.failed(1, command)?;
        }
        // VERSION needs nothing but its command, and answers those whose version it does not speak.
        for stdin in [r#"{"cniVersion":"9.9.9"}"#, ""] {
            let version = plugin.run(&["CNI_COMMAND=VERSION"], stdin)?;
            let expected = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
            ensure!(version.ok()?["supportedVersions"] == expected, "{version:?}");
            ensure!(stdin.is_empty() || version.json["cniVersion"] == "9.9.9", "{version:?}");
        }
        plugin.run(&["CNI_COMMAND=VERSION"], "{")?.failed(6, "JSON")?;
        ensure!(fs::metadata(host.file("/run/netns/c")).is_ok());
        Ok(())
    });
}
