//! Real Podman on two hosts of a cluster, its containers on a network of the mesh through the CNI plugin.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Podman, field, host::binary, podman::IMAGE, scenario, within};
use serde_json::json;

#[test]
fn containers_of_podman() {
    scenario("podman", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["net1"]].concat()).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "net1", "--publish", "80:80"];
        vm1.meshctl(&service).ok()?;
        let client = lab.client("client")?;
        let (here, there) = (Podman::new(&vm1)?, Podman::new(&vm2)?);
        here.network("net1")?;
        there.network("net1")?;
        let namespaces = |host: &mesh_tests::Host| host.shell("ls /run/netns | sort").ok();
        // What stays from the first network on: forwarding.
        there.podman(&["run", "--rm", "--network", "net1", IMAGE, "ip", "link"]).ok()?;
        let before = (vm2.kernel_objects()?, namespaces(&vm2)?);

        // Replicas on two hosts; Podman keeps what a plugin is to know as aliases.
        here.server("web1", &["--network", "net1:alias=mesh.service=web"])?;
        let options = ["--network", "net1", "--network-alias", "mesh.service=web", "--network-alias", "db"];
        there.server("web2", &[&options[..], &["--ip", "10.50.0.77", "--publish", "8081:80"]].concat())?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        ensure!(cluster.address("web2")? == "10.50.0.77");
        // Names, without --dns.
        for name in ["web", "web2", "db", "tasks.web"] {
            within(CONVERGES, name, || here.exec("web1", &["ping", "-c1", "-W2", name]).ok().map(drop))?;
        }
        let resolv = here.exec("web1", &["cat", "/etc/resolv.conf"]).ok()?;
        let first = resolv.lines().find(|line| line.starts_with("nameserver"));
        ensure!(first == Some("nameserver 10.50.0.1"), "{resolv}");

        // A published port is this host's; taken, it is refused in words, and no container is left half-made.
        within(CONVERGES, "the port leads to web2", || {
            let body = client.curl(&format!("http://{}:8081/", vm2.ip()))?;
            ensure!(body == "web2", "{body}");
            Ok(())
        })?;
        let twice = ["run", "--rm", "--network", "net1", "--publish", "8081:80", IMAGE, "sleep", "1"];
        let refused = there.podman(&twice);
        ensure!(
            refused.code != Some(0) && refused.stderr.contains("published already by endpoint 'web2'"),
            "{refused:?}"
        );
        ensure!(cluster.list(&["endpoint", "ls"])?.len() == 2);

        // Off the network and on again, and a restart: as it was.
        there.podman(&["network", "disconnect", "net1", "web2"]).ok()?;
        cluster.endpoints("web", "1/1")?;
        let again =
            ["network", "connect", "--alias", "mesh.service=web", "--ip", "10.50.0.78", "net1", "web2"];
        there.podman(&again).ok()?;
        cluster.endpoints("web", "2/2")?;
        ensure!(cluster.address("web2")? == "10.50.0.78");
        there.podman(&["restart", "--time", "0", "web2"]).ok()?;
        cluster.endpoints("web", "2/2")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        ensure!(client.curl(&format!("http://{}:8081/", vm2.ip()))? == "web2");

        // A container that has no network of Podman's is connected by name, as its labels say.
        let labels = ["--network", "none", "--label", "mesh.service=web", "--label", "mesh.aliases=a,b"];
        there.server("web3", &labels)?;
        let (meshctl, socket) = (binary("meshctl")?, vm2.socket());
        let by_name = |verb: &str, name: &str| {
            there.with_podman(&[
                &meshctl,
                "--socket",
                &socket,
                "network",
                verb,
                "net1",
                &format!("podman:{name}"),
            ])
        };
        by_name("connect", "web3").ok()?;
        cluster.endpoints("web", "3/3")?;
        let endpoint = cluster.endpoint("web3")?;
        ensure!(field(&endpoint, "service") == "web" && endpoint["aliases"][1] == "b", "{endpoint}");
        by_name("connect", "none").refused("no container is called 'none'")?;
        by_name("connect", "web3").refused("already on network")?;
        by_name("disconnect", "web3").ok()?;
        by_name("disconnect", "web3").ok()?;
        by_name("disconnect", "none").ok()?;
        cluster.endpoints("web", "2/2")?;
        by_name("connect", "web3").ok()?;

        // Two containers of one name on two hosts: both are found by it.
        here.sleeper("twin", &["--network", "net1"])?;
        there.sleeper("twin", &["--network", "net1"])?;
        within(CONVERGES, "both twins have the name", || {
            here.exec("web1", &["ping", "-c1", "-W2", "twin"]).ok()?;
            let listed = cluster.list(&["endpoint", "ls"])?;
            let of_twins = listed.iter().filter(|e| {
                e["name"] == "twin"
                    || e["aliases"].as_array().is_some_and(|names| names.iter().any(|n| n == "twin"))
            });
            ensure!(of_twins.count() == 2, "{listed:?}");
            Ok(())
        })?;

        // A network that is full: Podman says which, and what to do.
        vm1.meshctl(&["network", "create", "--subnet", "10.60.0.0/29", "tiny"]).ok()?;
        there.network("tiny")?;
        for number in 0..5 {
            there.sleeper(&format!("t{number}"), &["--network", "tiny"])?;
        }
        let full = there.podman(&["run", "--rm", "--network", "tiny", IMAGE, "sleep", "1"]);
        ensure!(
            full.code != Some(0) && full.stderr.contains("network 'tiny' has no free address"),
            "{full:?}"
        );

        // While meshd does not run, Podman keeps what it could not take off the network for the next start, and meshd sees
        // by itself what was removed.
        cluster.daemons[1].kill()?;
        there.podman(&["kill", "web2"]).ok()?;
        let _refused_by_the_plugin = there.podman(&["rm", "--force", "--time", "0", "t0"]);
        cluster.daemons[1].start()?;
        within(CONVERGES, "what went meanwhile is noticed", || {
            let names: Vec<String> =
                cluster.list(&["endpoint", "ls"])?.iter().map(|e| field(e, "name")).collect();
            ensure!(names.contains(&"t1".to_owned()) && !names.contains(&"t0".to_owned()), "{names:?}");
            Ok(())
        })?;
        there.podman(&["start", "web2"]).ok()?;
        cluster.endpoints("web", "3/3")?;

        here.remove_all()?;
        there.remove_all()?;
        within(CONVERGES, "the small network is in nobody's use", || {
            vm1.meshctl(&["network", "rm", "tiny"]).ok()
        })?;
        within(CONVERGES, "nothing is left", || {
            let listed = cluster.list(&["endpoint", "ls"])?;
            ensure!(listed.is_empty(), "{listed:?}");
            let after = (vm2.kernel_objects()?, namespaces(&vm2)?);
            ensure!(before == after, "before:\n{}\n{}\nafter:\n{}\n{}", before.0, before.1, after.0, after.1);
            Ok(())
        })
    });
}

/// What Podman is asked for beside the everyday: both families, addresses and MACs, two networks, pods; and its containers'
/// processes, monitors and namespaces vanish as they do in a crash.
#[test]
fn containers_of_podman_in_both_families_and_after_crashes() {
    scenario("podman crashes", |lab| {
        let vm1 = lab.host("vm1")?;
        let mut meshd = vm1.meshd()?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["net1"]].concat()).ok()?;
        vm1.meshctl(&["network", "create", "--subnet", "fd00:51::/64", "six"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "net1"]).ok()?;
        let podman = Podman::new(&vm1)?;
        podman.network("net1")?;
        podman.network("six")?;
        let client = lab.client("client")?;
        let names = || -> Result<Vec<String>> {
            let listed = vm1.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
            Ok(listed.as_array().into_iter().flatten().map(|e| field(e, "name")).collect())
        };
        let are = |expected: &[&str]| {
            within(CONVERGES, &format!("{expected:?} are the endpoints"), || {
                let found = names()?;
                ensure!(found == expected, "{found:?}");
                Ok(())
            })
        };
        let namespaces = || vm1.shell("ls /run/netns | sort").ok();
        podman.podman(&["run", "--rm", "--network", "net1", "--network", "six", IMAGE, "ip", "link"]).ok()?;
        let before = (vm1.kernel_objects()?, namespaces()?);

        let server = || {
            let places = ["--ip", "10.50.0.77", "--ip6", "fd00:50::77", "--mac-address", "0a:11:22:33:44:55"];
            let more = ["--network", "net1", "--network-alias", "db", "--network-alias", "mesh.service=web"];
            podman.server("web1", &[&places[..], &more[..], &["--publish", "8080:80"]].concat())
        };
        server()?;
        // On two networks, one of them of IPv6 alone.
        podman.sleeper("both", &["--network", "net1:alias=mesh.name=first", "--network", "six"])?;
        are(&["first", "web1", "both"])?;
        let addresses = podman.exec("web1", &["ip", "address", "show", "eth0"]).ok()?;
        for place in ["10.50.0.77/24", "fd00:50::77/64", "0a:11:22:33:44:55"] {
            ensure!(addresses.contains(place), "{addresses}");
        }
        for url in [format!("http://{}:8080/", vm1.ip()), format!("http://[{}]:8080/", vm1.ip6())] {
            within(CONVERGES, &url, || {
                ensure!(client.curl(&url)? == "web1");
                Ok(())
            })?;
        }
        for (family, name) in
            [("-4", "web"), ("-6", "web"), ("-6", "db"), ("-6", "web1"), ("-6", "fd00:51::1")]
        {
            within(CONVERGES, name, || {
                podman.exec("both", &["ping", family, "-c1", "-W2", name]).ok().map(drop)
            })?;
        }
        podman.podman(&["network", "disconnect", "six", "both"]).ok()?;
        podman.exec("both", &["ping", "-6", "-c1", "-W2", "web"]).ok()?;
        are(&["first", "web1"])?;
        podman.podman(&["network", "connect", "--ip6", "fd00:51::9", "six", "both"]).ok()?;
        podman.exec("both", &["ping", "-6", "-c1", "-W2", "fd00:51::1"]).ok()?;
        podman.podman(&["rm", "--force", "--time", "0", "both"]).ok()?;

        // A pod is one endpoint, whatever its containers do.
        let pod = ["pod", "create", "--name", "pod", "--infra-image", IMAGE, "--infra-command", "sleep 600"];
        podman.podman(&[&pod[..], &["--network", "net1"]].concat()).ok()?;
        podman.sleeper("member", &["--pod", "pod"])?;
        are(&["pod", "web1"])?;
        podman.exec("web1", &["ping", "-c1", "-W2", "pod"]).ok()?;
        podman.podman(&["restart", "--time", "0", "member"]).ok()?;
        podman.exec("web1", &["ping", "-c1", "-W2", "pod"]).ok()?;
        podman.podman(&["pod", "rm", "--force", "--time", "0", "pod"]).ok()?;
        are(&["web1"])?;

        // Its process is killed; with its monitor, after which Podman can only remove it; and all that a reboot takes along.
        let answers = || -> Result<()> {
            are(&["web1"])?;
            within(CONVERGES, "it answers as before", || {
                ensure!(client.curl(&format!("http://{}:8080/", vm1.ip()))? == "web1");
                Ok(())
            })?;
            let listed = vm1.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
            ensure!(listed[0]["addresses"] == json!(["10.50.0.77", "fd00:50::77"]), "{listed}");
            Ok(())
        };
        podman.kill("web1", &["Pid"])?;
        are(&[])?;
        // Podman may not be done yet with what ended.
        within(CONVERGES, "it starts again", || podman.podman(&["start", "web1"]).ok())?;
        answers()?;
        podman.kill("web1", &["ConmonPid", "Pid"])?;
        podman.podman(&["rm", "--force", "--time", "0", "web1"]).ok()?;
        are(&[])?;
        server()?;
        answers()?;
        meshd.terminate()?;
        podman.kill("web1", &["ConmonPid", "Pid"])?;
        podman.forget_what_a_reboot_takes()?;
        meshd.start()?;
        podman.podman(&["start", "web1"]).ok()?;
        answers()?;

        podman.remove_all()?;
        within(CONVERGES, "nothing is left", || {
            ensure!(names()?.is_empty(), "{:?}", names()?);
            let after = (vm1.kernel_objects()?, namespaces()?);
            ensure!(before == after, "before:\n{}\n{}\nafter:\n{}\n{}", before.0, before.1, after.0, after.1);
            Ok(())
        })
    });
}
