//! How new connections are shared among replicas, and what a replica is told of how large packets may be.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Lab, Meshd, Namespace, Replica, ReplicaSpec, scenario, shares, within};
use std::collections::BTreeSet;

/// The service `web` with a replica on each node, published in the kernel at 80 and through the proxy at 81.
fn web(lab: &Lab) -> Result<(Cluster, Vec<Replica>)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
    vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    let published = ["--publish", "80:80", "--publish", "published=81,target=80,protocol=http"];
    let service = ["service", "create", "--name", "web", "--network", "blue"];
    vm1.meshctl(&[&service[..], &published[..]].concat()).ok()?;
    let mut replicas = Vec::new();
    for (host, name) in [(cluster.vm1(), "web1"), (cluster.vm2(), "web2"), (cluster.vm3(), "web3")] {
        let spec = ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        replicas.push(Replica::start(host, spec)?);
    }
    cluster.endpoints("web", "3/3")?;
    Ok((cluster, replicas))
}

#[test]
fn weights() {
    scenario("weights", |lab| {
        let (cluster, _replicas) = web(lab)?;
        let client = lab.client("client")?;
        let target = lab.container("inside")?;
        cluster.vm2().meshctl(&["network", "connect", "--name", "inside", "blue", &target.target()]).ok()?;
        target.resolver("192.168.100.1")?;
        let vip = cluster.vip("web")?;
        let weigh = |weight, name| cluster.vm1().meshctl(&["endpoint", "update", "--weight", weight, name]);
        weigh("257", "web1").refused("0 to 256")?;
        weigh("1", "nothing").refused("nothing")?;

        weigh("3", "web1").ok()?;
        let all = [("web1", 12), ("web2", 4), ("web3", 4)];
        // The command returned: every node does as it says.
        let urls = [cluster.urls(80)[2].clone(), format!("http://{vip}/"), "http://web/".to_owned()];
        shares(&client.answers(&urls[0], 20)?, &all)?;
        for url in &urls[1..] {
            shares(&target.answers(url, 20)?, &all)?;
        }
        // The proxy keeps to shares by chance.
        let of_proxy = client.answers(&cluster.urls(81)[0], 200)?;
        let first = of_proxy.get("web1").copied().unwrap_or_default();
        ensure!((90..150).contains(&first), "3 of 5: {of_proxy:?}");

        // From another node than its own; and none at all, which is no drain: it comes back.
        cluster.vm3().meshctl(&["endpoint", "update", "--weight", "0", "web3"]).ok()?;
        cluster.endpoints("web", "2/3")?;
        shares(&client.answers(&urls[0], 16)?, &[("web1", 12), ("web2", 4)])?;
        shares(&target.answers(&urls[1], 16)?, &[("web1", 12), ("web2", 4)])?;
        ensure!(target.dig(&["tasks.web"])?.len() == 2);
        let listed = cluster.vm1().meshctl(&["endpoint", "ls"]).ok()?;
        ensure!(listed.contains("unchecked, weight 3") && listed.contains("unchecked, weight 0"), "{listed}");
        for name in ["web1", "web3"] {
            weigh("1", name).ok()?;
        }
        shares(&client.answers(&urls[0], 12)?, &[("web1", 4), ("web2", 4), ("web3", 4)])?;

        // Given from the start.
        let late = lab.container("late")?;
        let weighted = ["network", "connect", "--service", "web", "--weight", "2", "--name", "late", "blue"];
        cluster.vm2().meshctl(&[&weighted[..], &[&late.target()]].concat()).ok()?;
        ensure!(cluster.endpoint("late")?["weight"] == 2);
        Ok(())
    });
}

/// The MSS that a peer has told (RFC 9293, 3.7.1), as the client's kernel goes by it: less what timestamps take.
const TOLD_MSS: &str = "
import socket, sys
peer = socket.create_connection((sys.argv[1], 80), timeout=5)
print(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
";

/// A replica that takes its interface for a larger one has clients send what does not fit into the overlay: the MSS of
/// its answer is lowered on the way.
#[test]
fn the_mss_is_clamped_to_the_path() {
    scenario("mss", |lab| {
        let (cluster, replicas) = web(lab)?;
        let client = lab.client("client")?;
        // Nobody mends it meanwhile.
        cluster.daemons.iter().try_for_each(Meshd::pause)?;
        for replica in &replicas {
            replica.namespace()?.output(&["ip", "link", "set", "eth0", "mtu", "1500"]).ok()?;
        }
        for (host, overhead) in [(cluster.vm3().ip().to_string(), 40), (cluster.vm3().ip6().to_string(), 60)]
        {
            // One after the other: local and on other nodes.
            for _ in 0..3 {
                let told = client.output(&["python3", "-c", TOLD_MSS, &host]).ok()?;
                let mss: u32 = told.trim().parse().context("a number")?;
                let fits = 1450 - overhead - 12;
                ensure!(mss <= fits, "{host}: {mss} does not fit into {fits}");
                ensure!(mss > fits - 100, "{host}: {mss} is less than it need be");
            }
        }
        cluster.daemons.iter().try_for_each(Meshd::resume)?;
        // What is large passes whole, also to a container by the VIP.
        let large = "x".repeat(200_000);
        replicas.iter().try_for_each(|replica| replica.nginx.set_page(&large))?;
        let target = lab.container("inside")?;
        cluster.vm1().meshctl(&["network", "connect", "--name", "inside", "blue", &target.target()]).ok()?;
        let by_vip = format!("http://{}/", cluster.vip("web")?);
        let ways: [(&Namespace, &str); 2] = [(&client, &cluster.urls(80)[2]), (&target, &by_vip)];
        for (from, url) in ways {
            for _ in 0..3 {
                ensure!(from.curl(url)?.trim_end() == large, "{url} does not come whole");
            }
        }
        Ok(())
    });
}

/// By `source` a client has one replica, whichever node it asks, by the kernel as through the proxy; and if that goes, others
/// keep theirs.
/// Through the kernel, the proxy, the relay and VIPs alike.
#[test]
fn local_replicas_are_preferred_on_request() {
    scenario("local replicas", |lab| {
        let (cluster, mut replicas) = web(lab)?;
        let (client, inside) = (lab.client("client")?, lab.container("inside")?);
        let vm2 = cluster.vm2();
        vm2.meshctl(&["network", "connect", "--name", "inside", "blue", &inside.target()]).ok()?;
        let vip = format!("http://{}/", cluster.vip("web")?);
        let of_vm2 = [&cluster.urls(80)[1], &cluster.urls(81)[1]];
        let in_turn = |count| [("web1", count), ("web2", count), ("web3", count)];
        cluster.vm1().meshctl(&["service", "update", "--prefer-local", "true", "web"]).ok()?;
        for url in of_vm2 {
            shares(&client.answers(url, 6)?, &[("web2", 6)])?;
        }
        shares(&vm2.answers("http://127.0.0.1/", 6)?, &[("web2", 6)])?;
        shares(&inside.answers(&vip, 6)?, &[("web2", 6)])?;
        let inspected = cluster.vm1().meshctl(&["service", "inspect", "web"]).ok()?;
        ensure!(inspected.contains("roundrobin, local replicas preferred"), "{inspected}");

        drop(replicas.remove(1));
        cluster.endpoints("web", "2/2")?;
        for url in of_vm2 {
            shares(&client.answers(url, 6)?, &[("web1", 3), ("web3", 3)])?;
        }
        let spec = ReplicaSpec { name: "web2", network: Some("blue"), service: Some("web"), port: 80 };
        replicas.push(Replica::start(vm2, spec)?);
        cluster.endpoints("web", "3/3")?;
        cluster.vm1().meshctl(&["service", "update", "--prefer-local", "false", "web"]).ok()?;
        shares(&client.answers(of_vm2[0], 6)?, &in_turn(2))
    });
}

#[test]
fn a_client_has_the_same_replica_from_every_node() {
    scenario("source", |lab| {
        let (cluster, mut replicas) = web(lab)?;
        let update = ["service", "update", "--balance", "source", "web"];
        cluster.vm1().meshctl(&update).ok()?;
        let clients =
            (0..6).map(|number| lab.client(&format!("client{number}"))).collect::<Result<Vec<_>>>()?;
        let urls = [cluster.urls(80), cluster.urls(81)].concat();
        let replica_of = |client: &Namespace| -> Result<String> {
            let mut of_all = BTreeSet::new();
            for url in &urls {
                of_all.extend(client.answers(url, 3)?.into_keys());
            }
            ensure!(of_all.len() == 1, "{of_all:?}");
            of_all.pop_first().context("nobody answers")
        };
        // The other nodes may hear of a change a moment later.
        let all = || clients.iter().map(|client| replica_of(client)).collect::<Result<Vec<_>>>();
        let before = within(CONVERGES, "each client has one replica", all)?;
        let gone = before[0].clone();
        replicas.retain(|replica| replica.name() != gone);
        cluster.endpoints("web", "2/2")?;
        within(CONVERGES, "only clients of the replica that is gone have another", || {
            for (now, before) in all()?.iter().zip(&before) {
                ensure!((now == before) == (*before != gone), "{before}, then {now}, without {gone}");
            }
            Ok(())
        })
    });
}
