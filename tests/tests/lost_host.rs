//! A host that dies without notice: who begins a connection three seconds later does not notice.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Backend, Cluster, Flows, Namespace, Syns, Visits, scenario};

/// From then on no new connection goes to its replicas.
const KNOWN: Duration = Duration::from_secs(3);
/// For how long that is looked at.
const LOOK: Duration = Duration::from_secs(4);
/// An answer that waited for no packet that was lost: those are sent again after a second.
const PROMPT: Duration = Duration::from_millis(900);

#[test]
fn no_new_connection_goes_to_a_dead_host_after_three_seconds() {
    scenario("lost host", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        Backend::service(&cluster)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        let _replicas = [Backend::start(vm1, "web1")?, Backend::start(vm3, "web3")?];
        cluster.endpoints("web", "2/2")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web3"])?;
        let waiting = vm2.run(&["--network", "blue", "--name", "inside"], &["sleep", "infinity"])?;
        let inside = vm2.of_process("inside", waiting.child()?);
        let vip: Ipv4Addr = cluster.vip("web")?.parse()?;
        let lost = cluster.address("web3")?.parse()?;

        // From outside by both other hosts, of which one has no replica, and from a container by the VIP.
        let [web, datagrams] = Backend::places(&[vm1, vm2]);
        let from_inside: &Namespace = &inside;
        let visits = [Visits::start(&client, &web)?, Visits::start(from_inside, &[(vip, 80).into()])?];
        let flows = Flows::start(&client, &datagrams)?;
        let syns = [Syns::watch(vm1, lost)?, Syns::watch(vm2, lost)?];
        let began = Instant::now();
        let cut = vm3.cut()?;
        thread::sleep((KNOWN + LOOK).saturating_sub(began.elapsed()));
        let syns = syns.into_iter().map(Syns::stop).collect::<Result<Vec<_>>>()?.concat();
        let healed = Instant::now();
        cut.heal()?;
        // What waited for the lost host gets its answer now, late.
        flows.go_on(50)?;
        let flows = flows.stop()?;
        let [outside, inside] = visits.map(Visits::stop);

        let last =
            syns.iter().max().context("no connection was ever begun to it")?.saturating_duration_since(began);
        let late = |begun: Instant| begun >= began + KNOWN && begun < healed;
        println!("the last connection to it was begun after {last:.2?}; {flows}");
        ensure!(last < KNOWN, "one was begun after {last:?}");
        for (from, visits) in [("outside", outside?), ("inside", inside?)] {
            let (after, slowest) =
                (visits.0.iter().filter(|visit| late(visit.began)).count(), visits.slowest(late));
            println!(
                "from {from}: {visits}; {after} begun after {KNOWN:?}, the slowest answered after {slowest:.2?}"
            );
            // Whoever was connected to it meets a reset when it is known to be lost.
            visits.none_failed_but(|visit| {
                visit.server.as_deref() == Some("web3") && visit.began < began + KNOWN
            })?;
            ensure!(after > 20 && slowest < PROMPT, "{after}, {slowest:?}");
        }
        flows.none_failed()?;
        cluster.answer_in_turn(&client, 80, &["web1", "web3"])
    });
}
