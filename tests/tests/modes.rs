//! A service that has its replicas' addresses for its name, and changes to a VIP and back while it has connections.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Container, Echo, Lab, Namespace, scenario, within};
use std::net::TcpStream;

const REPLICAS: [[&str; 2]; 2] = [["10.60.0.51", "10.60.0.52"], ["fd60::51", "fd60::52"]];

/// A network of both families, the service `echo` with `dnsrr` on it, port 7 of every node, and its two replicas.
fn echoes(lab: &Lab) -> Result<Cluster> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    let subnets = ["--subnet", "10.60.0.0/24", "--subnet", "fd60::/64"];
    vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    let service = ["service", "create", "--name", "echo", "--network", "blue", "--publish", "7:7"];
    vm1.meshctl(&[&service[..], &["--endpoint-mode", "dnsrr"]].concat()).ok()?;
    for (at, host) in [vm1, cluster.vm2()].into_iter().enumerate() {
        let container = lab.container(&format!("echo{}", at + 1))?;
        Echo::start(&container, 7)?;
        let addresses = REPLICAS.map(|of_family| of_family[at]);
        let ips = ["--ip", addresses[0], "--ip", addresses[1]];
        let connect = ["network", "connect", "--name", container.name(), "--service", "echo"];
        host.meshctl(&[&connect[..], &ips, &["blue", &container.target()]].concat()).ok()?;
    }
    cluster.endpoints("echo", "2/2")?;
    Ok(cluster)
}

fn names(from: &Container, v4: &[&str], v6: &[&str]) -> Result<()> {
    within(CONVERGES, "the name has these addresses", || {
        let [mut a, mut aaaa] = [from.dig(&["echo", "A"])?, from.dig(&["echo", "AAAA"])?];
        [&mut a, &mut aaaa].into_iter().for_each(|found| found.sort());
        ensure!(a == v4 && aaaa == v6, "{a:?}, {aaaa:?}");
        Ok(())
    })
}

fn open(from: &Namespace, ip: &str) -> Result<TcpStream> {
    let to = if ip.contains(':') { format!("[{ip}]:7") } else { format!("{ip}:7") };
    let stream = Echo::connect(from, &to)?;
    talk(&stream)?;
    Ok(stream)
}

fn talk(stream: &TcpStream) -> Result<()> {
    Echo::talk(stream).with_context(|| format!("{:?}", stream.peer_addr()))
}

#[test]
fn a_mode_changes_under_connections() {
    scenario("modes", |lab| {
        let cluster = echoes(lab)?;
        let (vm1, vm3) = (cluster.vm1(), cluster.vm3());
        let client = lab.client("client")?;
        let inside = lab.container("inside")?;
        vm3.meshctl(&["network", "connect", "--name", "inside", "blue", &inside.target()]).ok()?;
        inside.resolver("10.60.0.1")?;
        let [v4, v6] = REPLICAS;
        names(&inside, &v4, &v6)?;
        let nodes = [vm3.ip().to_string(), vm3.ip6().to_string()];
        let mut held = Vec::new();
        for ip in &nodes {
            held.push(open(&client, ip)?);
            held.push(open(&client, ip)?);
        }
        for ip in v4.iter().chain(&v6) {
            held.push(open(&inside, ip)?);
        }
        let turn_to = |mode: &str| vm1.meshctl(&["service", "update", "--endpoint-mode", mode, "echo"]).ok();
        turn_to("vip")?;
        let shown = &vm1.meshctl(&["-o", "json", "service", "inspect", "echo"]).json()?[0];
        let vips = &shown["networks"][0]["addresses"];
        let vips = [0, 1].map(|at| vips[at].as_str().unwrap_or_default().to_owned());
        ensure!(vips[1].starts_with("fd60::"), "{shown}");
        names(&inside, &[&vips[0]], &[&vips[1]])?;
        for ip in &vips {
            held.push(open(&inside, ip)?);
            held.push(open(&inside, ip)?);
        }
        held.iter().try_for_each(talk)?;

        turn_to("dnsrr")?;
        names(&inside, &v4, &v6)?;
        // Whoever has the VIP, or heard of it, goes on with it.
        inside.shell("ip neigh flush dev eth0; ip -6 neigh flush dev eth0").ok()?;
        held.iter().try_for_each(talk)?;
        vips.iter().try_for_each(|ip| open(&inside, ip).map(drop))?;
        turn_to("vip")?;
        names(&inside, &[&vips[0]], &[&vips[1]])
    });
}
