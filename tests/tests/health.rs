//! Health checks: who fails them leaves DNS, VIP and ingress, and returns.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Namespace, Nginx, Replica, ReplicaSpec, scenario, shares, within};

const CHECK: [&str; 8] =
    ["--health-interval", "200ms", "--health-timeout", "200ms", "--health-rise", "2", "--health-fall", "2"];

fn service(cluster: &Cluster, check: &[&str]) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
    vm1.meshctl(&[&service[..], check, &CHECK[..]].concat()).ok()?;
    Ok(())
}

const fn spec(name: &str) -> ReplicaSpec<'_> {
    ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 }
}

/// Whether whoever sends a datagram is told that nobody takes it.
fn refuses_datagrams(client: &Namespace, to: SocketAddr) -> Result<bool> {
    client.inside(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"?")?;
        Ok(socket.recv(&mut [0]).is_err_and(|err| err.kind() == ErrorKind::ConnectionRefused))
    })
}

#[test]
fn an_unhealthy_replica_leaves_and_returns() {
    scenario("http check", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster, &["--health-http", "/health"])?;
        let web1 = Replica::start(cluster.vm1(), spec("web1"))?;
        let web2 = Replica::start(cluster.vm2(), spec("web2"))?;
        let waiting = cluster.vm3().run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = cluster.vm3().of_process("c", waiting.child()?);
        let offered = |replicas: &[&Replica]| -> Result<()> {
            let names: Vec<&str> = replicas.iter().map(|replica| replica.name()).collect();
            cluster.endpoints("web", &format!("{}/2", names.len()))?;
            cluster.answer_in_turn(&client, 80, &names)?;
            within(CONVERGES, &format!("inside, {names:?} are offered"), || {
                let expected: Vec<_> = names.iter().map(|name| (*name, 3)).collect();
                shares(&container.answers("http://web/", 3 * names.len())?, &expected)?;
                let mut addresses =
                    names.iter().map(|name| cluster.address(name)).collect::<Result<Vec<_>>>()?;
                addresses.sort();
                let listed = container.dig(&["tasks.web"])?;
                ensure!(listed == addresses, "tasks.web is {listed:?}, expected {addresses:?}");
                Ok(())
            })
        };
        offered(&[&web1, &web2])?;
        web2.nginx.set_healthy(false)?;
        offered(&[&web1])?;
        ensure!(cluster.endpoint("web2")?["health"] == "unhealthy");
        web2.nginx.set_healthy(true)?;
        offered(&[&web1, &web2])?;
        // Health comes from the node beside the replica: also for the one on the manager.
        web1.nginx.set_healthy(false)?;
        offered(&[&web2])
    });
}

#[test]
fn a_replica_is_out_until_its_first_success() {
    scenario("tcp check", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster, &["--health-tcp", "--publish", "5300:5300/udp"])?;
        let options = ["--network", "blue", "--service", "web", "--name", "web1"];
        let waiting = cluster.vm2().run(&options, &["sleep", "infinity"])?;
        let inside = cluster.vm2().of_process("web1", waiting.child()?);
        cluster.endpoints("web", "0/1")?;
        // Nobody is healthy: refused at once, not left hanging.
        let started = std::time::Instant::now();
        let asked = client.output(&["curl", "-sS", "--max-time", "5", &cluster.urls(80)[0]]);
        ensure!(
            asked.code == Some(7) && started.elapsed().as_secs() < 2,
            "{asked:?} after {:?}",
            started.elapsed()
        );
        ensure!(refuses_datagrams(&client, (cluster.vm3().ip(), 5300).into())?);
        // By the VIP as well; its name is known, and that of its tasks.
        let vip: Ipv4Addr = cluster.vip("web")?.parse()?;
        let asked = inside.output(&["curl", "-sS", "--max-time", "5", &format!("http://{vip}/")]);
        ensure!(asked.code == Some(7), "{asked:?}");
        ensure!(refuses_datagrams(&inside, (vip, 53).into())?);
        for (name, addresses) in [("web", 1), ("tasks.web", 0)] {
            let said = inside.output(&["dig", "@192.168.100.1", name]).ok()?;
            ensure!(said.contains("NOERROR") && said.contains(&format!("ANSWER: {addresses},")), "{said}");
        }
        let nginx = Nginx::new(cluster.vm2(), "web1", 80, "web1")?;
        let mut running = nginx.start(&inside)?;
        cluster.endpoints("web", "1/1")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        running.kill()?;
        cluster.endpoints("web", "0/1")
    });
}

/// A node's own verdicts count on the node at once, though no manager hears of them until it is back.
#[test]
fn without_a_manager_a_node_minds_its_own_checks() {
    scenario("own checks", |lab| {
        let (mut cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(
            &cluster,
            &["--health-http", "/health", "--publish", "published=8080,target=80,protocol=http"],
        )?;
        let vm2 = cluster.vm2().clone();
        let web2 = Replica::start(&vm2, spec("web2"))?;
        let _web3 = Replica::start(cluster.vm3(), spec("web3"))?;
        let waiting = vm2.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm2.of_process("c", waiting.child()?);
        cluster.endpoints("web", "2/2")?;
        let [address2, address3] = ["web2", "web3"].map(|name| cluster.address(name));
        let (address2, address3) = (address2?, address3?);
        let urls = [80, 8080].map(|port| cluster.urls(port).remove(1));
        let offered = |names: &[&str], addresses: &[&String]| {
            within(CONVERGES, &format!("vm2 offers {names:?}"), || {
                let expected: Vec<_> = names.iter().map(|name| (*name, 3)).collect();
                shares(&container.answers("http://web/", 3 * names.len())?, &expected)?;
                for url in &urls {
                    shares(&client.answers(url, 3 * names.len())?, &expected)?;
                }
                let (mut listed, mut wanted) = (container.dig(&["tasks.web"])?, addresses.to_vec());
                listed.sort();
                wanted.sort();
                ensure!(listed.iter().eq(wanted), "tasks.web is {listed:?}");
                Ok(())
            })
        };
        offered(&["web2", "web3"], &[&address2, &address3])?;
        cluster.daemons[0].kill()?;
        web2.nginx.set_healthy(false)?;
        offered(&["web3"], &[&address3])?;
        web2.nginx.set_healthy(true)?;
        offered(&["web2", "web3"], &[&address2, &address3])?;
        // What the manager missed it is told when it is back.
        web2.nginx.set_healthy(false)?;
        offered(&["web3"], &[&address3])?;
        cluster.daemons[0].start()?;
        cluster.endpoints("web", "1/2")?;
        offered(&["web3"], &[&address3])
    });
}
