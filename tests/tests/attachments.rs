//! Containers that are connected and disconnected, and what is left when everything is removed: nothing.

use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Background, CONVERGES, Cluster, Container, Echo, Host, Nginx, Replica, ReplicaSpec, comes_back, scenario,
    within,
};
use serde_json::{Value, json};

/// Addresses, routes and rules of a container, without the numbers of its interfaces.
fn inside(container: &Container) -> Result<String> {
    container
        .shell("ip -brief address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")
        .ok()
}

/// A container on two networks has what was asked for on each, and answers on both; disconnected, it is as it was.
#[test]
fn a_container_on_two_networks() {
    scenario("two networks", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm3) = (cluster.vm1(), cluster.vm3());
        let both = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &both[..], &["blue"]].concat()).ok()?;
        vm1.meshctl(&["network", "create", "--subnet", "10.51.0.0/24", "red"]).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "red", "--publish", "8080:80"];
        vm1.meshctl(&service).ok()?;
        let (container, peer, client) = (lab.container("c")?, lab.container("peer")?, lab.client("client")?);
        vm1.meshctl(&["network", "connect", "blue", &peer.target()]).ok()?;
        peer.resolver("10.50.0.1")?;

        // A route or an address of the kernel's own comes with the first link that is up: it stays out of the way.
        let before = inside(&container)?;
        let places = ["--ip", "10.50.0.77", "--ip", "fd00:50::77", "--name", "c", "--ifname", "blue0"];
        let names = ["--alias", "first", "--alias", "second", "blue"];
        let target = container.target();
        vm3.meshctl(&[&["network", "connect"], &places[..], &names[..], &[&target]].concat()).ok()?;
        vm3.meshctl(&["network", "connect", "--service", "web", "--name", "c-red", "red", &target]).ok()?;
        ensure!(container.address("blue0")? == "10.50.0.77");
        ensure!(container.address("eth0")? == cluster.address("c-red")?);
        for name in ["c", "first", "second"] {
            within(CONVERGES, "the names are known on vm1", || {
                let found = (peer.dig(&[name, "A"])?, peer.dig(&[name, "AAAA"])?);
                ensure!(found.0 == ["10.50.0.77"] && found.1 == ["fd00:50::77"], "{name}: {found:?}");
                Ok(())
            })?;
        }
        for address in ["10.50.0.77", "fd00:50::77"] {
            peer.output(&["ping", "-c1", "-W2", address]).ok()?;
        }
        ensure!(peer.dig(&["c-red"])?.is_empty(), "a name of another network");
        // The default route is that of the first network; answers leave by the one that was asked on.
        let _nginx = Nginx::new(&container, "c", 80, "c")?.start(&container)?;
        cluster.answer_in_turn(&client, 8080, &["c"])?;

        for _ in 0..2 {
            vm3.meshctl(&["network", "disconnect", "blue", "c"]).ok()?;
            vm3.meshctl(&["network", "disconnect", "red", &target]).ok()?;
        }
        let after = inside(&container)?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    });
}

/// Networks, services and containers of every kind, made and removed.
#[test]
fn what_is_removed_leaves_nothing() {
    scenario("removed", |lab| {
        let cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        let create = || -> Result<()> {
            let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
            vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
            let service = ["service", "create", "--name", "web", "--network", "blue", "--health-tcp"];
            let l4 = ["--publish", "80:80", "--publish", "53:53/udp", "--publish", "10.77.0.12:81:80"];
            let l7 = ["--publish", "published=82,target=80,protocol=http"];
            vm1.meshctl(&[&service[..], &l4[..], &l7[..]].concat()).ok().map(drop)
        };
        let remove = || -> Result<()> {
            vm1.meshctl(&["service", "rm", "web"]).ok()?;
            vm1.meshctl(&["network", "rm", "blue"]).ok().map(drop)
        };
        let kernels = || -> Result<Vec<String>> {
            cluster.daemons.iter().map(|daemon| daemon.host().kernel_objects()).collect()
        };
        // Forwarding, and the drop rule for the interfaces that did not forward before, stay from the first network on.
        create()?;
        remove()?;
        let before = kernels()?;
        ensure!(
            before.iter().all(|host| !host.contains("up4096") && !host.contains("/netns/")),
            "{before:#?}"
        );

        create()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let mut replica = Replica::start(vm1, spec("web1"))?;
        let container = lab.container("c")?;
        cluster.vm2().meshctl(&["network", "connect", "--name", "c", "blue", &container.target()]).ok()?;
        cluster.endpoints("web", "1/1")?;
        let client = lab.client("client")?;
        for port in [80, 82] {
            cluster.answer_in_turn(&client, port, &["web1"])?;
        }
        ensure!(kernels()?.iter().all(|host| host.contains("up4096") && host.contains("/netns/")));

        vm1.meshctl(&["network", "rm", "blue"]).refused("in use")?;
        replica.terminate()?;
        vm1.meshctl(&["network", "disconnect", "blue", "c"]).ok()?;
        cluster.endpoints("web", "0/0")?;
        remove()?;
        let after = kernels()?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        }
        Ok(())
    });
}

/// A host whose firewall can't be written is attached to by nobody: who asks is told so, and no record is left.
#[test]
fn a_host_that_can_do_nothing_says_so() {
    scenario("nothing works", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let first = lab.container("first")?;
        vm2.meshctl(&["network", "connect", "--name", "first", "blue", &first.target()]).ok()?;
        // A table with an owner is nobody else's to change.
        let take = "echo 'delete table ip meshd; add table ip meshd { flags owner; }'; sleep infinity";
        let owner = vm2.spawn(&["bash", "-c", &format!("exec nft -i < <({take})")])?;
        within(CONVERGES, "the node says what is wrong", || {
            let status = vm2.meshctl(&["status"]).stdout;
            ensure!(status.contains("firewall of the host"), "{status}");
            Ok(())
        })?;
        let late = lab.container("late")?;
        let connect = ["network", "connect", "--name", "late", "blue", &late.target()];
        vm2.meshctl(&connect)
            .refused("this node can attach nothing at present: host: firewall of the host")?;
        ensure!(cluster.endpoint("late").is_err(), "its record is left");
        ensure!(late.address("eth0").is_err(), "an interface is left");
        first.output(&["ping", "-c1", "-W2", "10.50.0.1"]).ok()?;
        drop(owner);
        within(CONVERGES, "what was refused is done", || vm2.meshctl(&connect).ok())?;
        late.output(&["ping", "-c1", "-W2", &cluster.address("first")?]).ok().map(drop)
    });
}

/// Starts `sleep` in a network namespace of its own, with this number of a process if one is given; the number.
fn process(host: &Host, number: Option<u32>) -> Result<(Background, u32)> {
    // The kernel gives the next process the number after the last, unless somebody else comes first.
    let again = "while sleep 0.01; do echo $(($0 - 1)) >/proc/sys/kernel/ns_last_pid; unshare --net sleep 600 & \
        [[ $! != $0 ]] || wait; kill $!; wait $!; done";
    let (mut started, own) = match number {
        None => (host.spawn(&["unshare", "--net", "sleep", "600"])?, None),
        Some(number) => (host.spawn(&["bash", "-c", again, &number.to_string()])?, Some(number)),
    };
    let number = match own {
        Some(number) => number,
        None => {
            let status = fs::read_to_string(format!("/proc/{}/status", started.pid()))?;
            let line = status.lines().find(|line| line.starts_with("NSpid:")).context("no NSpid")?;
            line.split_whitespace().last().context("no number")?.parse()?
        }
    };
    let namespace = |process: &str| host.output(&["readlink", &format!("/proc/{process}/ns/net")]).ok();
    within(CONVERGES, "the process has a namespace of its own", || {
        ensure!(started.wait(Duration::ZERO).is_err(), "it has ended");
        ensure!(namespace(&number.to_string())? != namespace("self")?);
        Ok(())
    })?;
    Ok((started, number))
}

/// An endpoint of a process goes with it: at any moment, though its namespace stays, and whoever has its number next.
#[test]
fn an_endpoint_goes_with_its_process() {
    scenario("processes", |lab| {
        let host = lab.host("vm1")?;
        let mut meshd = host.meshd()?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        host.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let connect = |number: u32| host.meshctl(&["network", "connect", "blue", &format!("pid:{number}")]);
        let nobody = || {
            within(CONVERGES, "its endpoint is gone", || {
                let listed = host.meshctl(&["-q", "endpoint", "ls"]).ok()?;
                ensure!(listed.is_empty(), "{listed}");
                Ok(())
            })
        };
        let container = lab.container("c")?;
        let mut inside = container.spawn(&["sleep", "600"])?;
        let number = host.output(&["ip", "netns", "pids", "c"]).ok()?.parse()?;
        connect(number).ok()?;
        container.address("eth0")?;
        inside.kill()?;
        nobody()?;
        within(CONVERGES, "its interface is gone", || {
            ensure!(container.address("eth0").is_err());
            Ok(())
        })?;
        let before = host.kernel_objects()?;

        for pause in 0..10 {
            let (mut started, number) = process(&host, None)?;
            let connected = thread::scope(|scope| {
                let connecting = scope.spawn(|| connect(number));
                thread::sleep(Duration::from_millis(3 * pause));
                started.kill()?;
                connecting.join().map_err(|_| anyhow::anyhow!("a call does not panic"))
            })?;
            // Too early, or too late.
            ensure!(connected.code == Some(0) || connected.refused("").is_ok(), "{connected:?}");
        }
        nobody()?;
        within(CONVERGES, "nothing is left", || {
            let after = host.kernel_objects()?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            Ok(())
        })?;

        // While meshd does not run, another process gets the number.
        let (mut first, number) = process(&host, None)?;
        connect(number).ok()?;
        meshd.kill()?;
        first.kill()?;
        let (_second, _) = process(&host, Some(number))?;
        meshd.start()?;
        nobody()?;
        let target = number.to_string();
        let look = ["nsenter", "--target", &target, "--net", "ip", "-brief", "link"];
        let links = host.output(&look).ok()?;
        ensure!(links.lines().count() == 1, "it was taken for the first: {links}");
        connect(number).ok()?;
        ensure!(host.output(&look).ok()?.contains("eth0"));
        Ok(())
    });
}

/// A server of UDP with a socket for all addresses would answer by a default route of somebody else's: it sees the gateway
/// instead of its clients, and people are told so.
#[test]
fn datagrams_to_a_container_with_its_default_route_elsewhere() {
    scenario("default route elsewhere", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "echo", "--network", "blue", "--publish", "7:7/udp"])
            .ok()?;
        let container = lab.container("echo1")?;
        container
            .shell(
                "ip link add docker0 type bridge && ip addr add 172.18.0.2/16 dev docker0 && \
                 ip link set docker0 up && ip route add default via 172.18.0.1",
            )
            .ok()?;
        let _echo = Echo::datagrams(&container, 7)?;
        let connect = ["network", "connect", "--name", "echo1", "--service", "echo", "blue"];
        vm2.meshctl(&[&connect[..], &[&container.target()]].concat()).ok()?;
        let client = lab.client("client")?;
        let answers = || {
            for host in [vm1, vm2] {
                let to = (IpAddr::from(host.ip()), 7).into();
                within(CONVERGES, &format!("{to} answers"), || {
                    ensure!(comes_back(&client, to)?);
                    Ok(())
                })?;
            }
            Ok(())
        };
        let told = |service: Value, endpoint: Value| {
            within(CONVERGES, "it is told", || {
                let said = |kind, name| -> Result<Value> {
                    Ok(vm1.meshctl(&["-o", "json", kind, "inspect", name]).json()?[0]["source_nat"].clone())
                };
                let (of_service, of_endpoint) = (said("service", "echo")?, said("endpoint", "echo1")?);
                ensure!(of_service == service && of_endpoint == endpoint, "{of_service}, {of_endpoint}");
                Ok(())
            })
        };
        answers()?;
        let address = cluster.address("echo1")?;
        told(json!([{ "endpoint": "echo1", "node": "vm2", "addresses": [address] }]), json!([address]))?;
        let table = vm1.meshctl(&["service", "inspect", "echo"]).ok()?;
        ensure!(table.contains("UDP to echo1 on vm2"), "{table}");
        // Without it, the network's takes its place.
        container.shell("ip route del default via 172.18.0.1").ok()?;
        told(Value::Null, Value::Null)?;
        answers()
    });
}
