//! A replica that goes while it has connections: it serves them until they end, for as long as its service says.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Container, Echo, Host, Lab, Leaks, Namespace, field, scenario, within};
use std::{
    io,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

const DRAIN: Duration = Duration::from_secs(4);

/// Echoes on two hosts, which are the service `echo` at port 7 of every node.
fn echoes(lab: &Lab) -> Result<(Cluster, [Container; 2])> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    let timeout = format!("{}s", DRAIN.as_secs());
    let service = ["service", "create", "--name", "echo", "--network", "blue", "--publish", "7:7"];
    vm1.meshctl(&[&service[..], &["--drain-timeout", &timeout]].concat()).ok()?;
    let containers = [lab.container("echo1")?, lab.container("echo2")?];
    for (host, container) in [cluster.vm1(), cluster.vm2()].into_iter().zip(&containers) {
        Echo::start(container, 7)?;
        let connect = ["network", "connect", "--name", container.name(), "--service", "echo", "blue"];
        host.meshctl(&[&connect[..], &[&container.target()]].concat()).ok()?;
    }
    cluster.endpoints("echo", "2/2")?;
    Ok((cluster, containers))
}

/// A container on vm3 that is none of the replicas.
fn inside(lab: &Lab, cluster: &Cluster) -> Result<Container> {
    let inside = lab.container("inside")?;
    cluster.vm3().meshctl(&["network", "connect", "--name", "inside", "blue", &inside.target()]).ok()?;
    Ok(inside)
}

/// Where the service is found from outside, by vm3, and from inside.
fn places(cluster: &Cluster) -> Result<[String; 2]> {
    Ok([format!("{}:7", cluster.vm3().ip()), format!("{}:7", cluster.vip("echo")?)])
}

/// Which of two connections is to the second replica, by that replica's own word.
fn at_second(second: &Namespace, streams: &[TcpStream; 2]) -> Result<usize> {
    let held = second.output(&["ss", "-Htn", "state", "established", "sport = :7"]).ok()?;
    let ports = streams.iter().map(TcpStream::local_addr).collect::<io::Result<Vec<_>>>()?;
    let peer = |port: u16| held.split_whitespace().any(|word| word.ends_with(&format!(":{port}")));
    let at = ports.iter().position(|own| peer(own.port()));
    at.with_context(|| format!("{ports:?} in {held}"))
}

fn begins(cluster: &Cluster) -> Result<()> {
    within(CONVERGES, "the drain begins", || {
        ensure!(cluster.endpoint("echo2")?["draining"] == true);
        Ok(())
    })
}

#[test]
fn connections_have_until_the_timeout() {
    scenario("drain", |lab| {
        let (cluster, [_, second]) = echoes(lab)?;
        let (client, vm2) = (lab.client("client")?, cluster.vm2());
        let leaks = Leaks::watch(lab, &["192.168.100.0/24"])?;
        let inside = inside(lab, &cluster)?;
        let [published, vip] = places(&cluster)?;
        let ways: [(&Namespace, &str); 2] = [(&client, &published), (&inside, &vip)];
        let mut held = Vec::new();
        for (from, to) in ways {
            let pair = [Echo::connect(from, to)?, Echo::connect(from, to)?];
            pair.iter().try_for_each(Echo::talk)?;
            let leaving = at_second(&second, &pair)?;
            held.push((to, pair, leaving));
        }
        let began = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let gone = scope.spawn(|| vm2.meshctl(&["network", "disconnect", "blue", "echo2"]));
            begins(&cluster)?;
            while began.elapsed() < DRAIN / 2 {
                ensure!(!gone.is_finished(), "the command ended after {:?}", began.elapsed());
                held.iter().flat_map(|(_, pair, _)| pair).try_for_each(Echo::talk)?;
                // New ones go to the other.
                for (from, to) in ways {
                    Echo::talk(&Echo::connect(from, to)?)?;
                }
            }
            gone.join().ok().context("the command panicked")?.ok()?;
            ensure!(began.elapsed() >= DRAIN, "it ended after {:?}", began.elapsed());
            Ok(())
        })?;
        for (to, pair, leaving) in &held {
            let ended = Echo::talk(&pair[*leaving]).err().map(|err| err.kind());
            ensure!(ended == Some(io::ErrorKind::ConnectionReset), "{to}: {ended:?}");
            Echo::talk(&pair[1 - leaving]).with_context(|| format!("{to}: the other replica's"))?;
        }
        leaks.none()
    });
}

/// Nothing is waited for that nobody uses.
#[test]
fn a_drain_ends_with_the_last_connection() {
    scenario("drained", |lab| {
        let (cluster, [_, second]) = echoes(lab)?;
        let client = lab.client("client")?;
        cluster.vm1().meshctl(&["service", "update", "--drain-timeout", "10m", "echo"]).ok()?;
        let to = format!("{}:7", cluster.vm3().ip());
        let pair = [Echo::connect(&client, &to)?, Echo::connect(&client, &to)?];
        pair.iter().try_for_each(Echo::talk)?;
        let leaving = at_second(&second, &pair)?;
        thread::scope(|scope| -> Result<()> {
            let gone = scope.spawn(|| cluster.vm2().meshctl(&["network", "disconnect", "blue", "echo2"]));
            begins(&cluster)?;
            Echo::talk(&pair[leaving])?;
            ensure!(!gone.is_finished());
            pair[leaving].shutdown(std::net::Shutdown::Both)?;
            within(Duration::from_secs(20), "the command ends", || {
                ensure!(gone.is_finished());
                Ok(())
            })?;
            gone.join().ok().context("the command panicked")?.ok()?;
            Ok(())
        })?;
        Echo::talk(&pair[1 - leaving])?;
        // Whoever can't wait need not.
        let began = Instant::now();
        cluster.vm1().meshctl(&["network", "disconnect", "--force", "blue", "echo1"]).ok()?;
        ensure!(began.elapsed() < CONVERGES, "{:?}", began.elapsed());
        let ended = Echo::talk(&pair[1 - leaving]).err().map(|err| err.kind());
        ensure!(ended == Some(io::ErrorKind::ConnectionReset), "{ended:?}");
        Ok(())
    });
}

/// Of a host that is gone without a word nobody tells its clients; one whose daemon alone ended serves them.
#[test]
fn connections_to_a_lost_host_meet_a_reset() {
    scenario("lost host", |lab| {
        let (mut cluster, [_, second]) = echoes(lab)?;
        let client = lab.client("client")?;
        let inside = inside(lab, &cluster)?;
        let [published, vip] = places(&cluster)?;
        let ways: [(&Namespace, &str); 2] = [(&client, &published), (&inside, &vip)];
        let mut held = Vec::new();
        for (from, to) in ways {
            let pair = [Echo::connect(from, to)?, Echo::connect(from, to)?];
            pair.iter().try_for_each(Echo::talk)?;
            let leaving = at_second(&second, &pair)?;
            pair[leaving].set_read_timeout(Some(Duration::from_secs(40)))?;
            held.push((to, pair, leaving));
        }
        let leaks = Leaks::watch(lab, &["192.168.100.0/24", "100.127.0.0/16"])?;

        cluster.daemons[1].kill()?;
        sees_vm2(cluster.vm3(), "down")?;
        let down = Instant::now();
        while down.elapsed() < LOST {
            held.iter().flat_map(|(_, pair, _)| pair).try_for_each(Echo::talk)?;
            thread::yield_now();
        }
        cluster.daemons[1].start()?;
        sees_vm2(cluster.vm3(), "ready")?;

        lab.switch("ip link set vm2 down")?;
        let cut = Instant::now();
        for (to, pair, leaving) in &held {
            let ended = Echo::talk(&pair[*leaving]).err().map(|err| err.kind());
            ensure!(
                ended == Some(io::ErrorKind::ConnectionReset),
                "{to}: {ended:?} after {:?}",
                cut.elapsed()
            );
            eprintln!("{to}: reset {:?} after the host was lost", cut.elapsed());
            Echo::talk(&pair[1 - leaving]).with_context(|| format!("{to}: the other replica's"))?;
            Echo::talk(&Echo::connect(if to == &vip { &inside } else { &client }, to)?)?;
        }
        lab.switch("ip link set vm2 up")?;
        sees_vm2(cluster.vm3(), "ready")?;
        for (from, to) in ways {
            within(CONVERGES, "both replicas are reached again", || {
                let pair = [Echo::connect(from, to)?, Echo::connect(from, to)?];
                pair.iter().try_for_each(Echo::talk)?;
                at_second(&second, &pair).map(drop)
            })?;
        }
        leaks.none()
    });
}

/// Longer than it takes to find out that a host says nothing.
const LOST: Duration = Duration::from_secs(7);

fn sees_vm2(host: &Host, expected: &str) -> Result<()> {
    within(CONVERGES, &format!("vm2 is {expected}"), || {
        let nodes = host.meshctl(&["-o", "json", "node", "ls"]).json()?;
        let vm2 = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == "vm2"));
        ensure!(vm2.is_some_and(|node| field(node, "status") == expected), "{nodes}");
        Ok(())
    })
}
