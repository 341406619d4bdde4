//! What many published ports cost: one service, a range of them beside those that are asked.

use super::{
    mesh::Mesh,
    passes::{apart, backends_leave, config, timed},
    place::Place,
    rate,
    rounds::{self, Effort, Found},
};
use anyhow::Result;
use mesh_benches::{Size, grown, measure::Samples};
use mesh_model::{Balance, Change, NodeId, Object, Service, Snapshot, parse_publish};
use mesh_net::{DataPlane, Pass};
use mesh_tests::within;
use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};

const COUNTS: [u16; 4] = [1, 100, 1_000, 10_000];
const FIRST: u16 = 20_000;
/// Of the service, all on other nodes. One alone would need no balancing, which is what costs.
pub(super) const REPLICAS: u32 = 3;
/// Data planes alone, each in namespaces of its own.
const REPEATED: usize = 3;
/// With so many ports it is one only: it takes minutes.
const MANY: u16 = 10_000;
/// How long a port may take to lead to a replica after it was published.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures and prints; returns what is not as it should be.
pub(super) fn measure(mesh: &Mesh, place: &Place<'_>, effort: Effort) -> Result<Vec<String>> {
    println!(
        "\nPorts of one service, a range, with {REPLICAS} replicas on other nodes, beside those that are asked. A data plane alone:\n\
        milliseconds of a pass. The cluster: seconds until meshctl has published them, until the last of them leads to a\n\
        replica, and until meshctl has taken them back; {} rounds through a node without a replica in between.\n",
        effort.rounds
    );
    println!(
        "| {:<6} | {:<19} | {:<18} | {:<9} | {:<6} | {:<10} | {:<16} | {:<16} | {:<20} | {:<13} | {:<6} |",
        "ports",
        "first pass ms",
        "backend leaves ms",
        "published",
        "leads",
        "taken back",
        "Gbit/s",
        "CPU s a GiB",
        "connections a second",
        "connection µs",
        "failed"
    );
    println!("|{}", ["---|"; 11].concat());
    let mut misses = Vec::new();
    let counts = match env::var("BENCH_PORTS") {
        Ok(text) => text.split(',').map(str::parse).collect::<Result<_, _>>()?,
        Err(_) => COUNTS.to_vec(),
    };
    for count in counts {
        let [first, leaves] = alone(count)?.map(|samples| samples.to_string());
        let row = format!("| {count:<6} | {first:<19} | {leaves:<18}");
        match published(mesh, place, count, effort) {
            Ok(Published { times, found, complaints }) => {
                let [published, leads, taken_back] = times.map(|time| time.as_secs_f64());
                println!(
                    "{row} | {published:<9.2} | {leads:<6.2} | {taken_back:<10.2} | {:<16} | {:<16} | {:<20} | {:<13} | {:<6} |",
                    found.throughput.to_string(),
                    found.processor.to_string(),
                    found.per_second.to_string(),
                    found.connection.to_string(),
                    found.failed,
                );
                misses.extend(complaints.iter().map(|err| format!("{count} ports: {}", reason(err))));
                if found.failed > 0 {
                    misses.push(format!("{count} ports: {} connections failed", found.failed));
                }
            }
            Err(err) => {
                let reason = reason(&err);
                println!("{row} | not run: {reason} |");
                misses.push(format!("{count} ports not run: {reason}"));
            }
        }
    }
    Ok(misses)
}

/// Why there are no figures: not all of a command line with thousands of ports.
fn reason(err: &anyhow::Error) -> String {
    let text = format!("{err:#}").trim_end().replace('\n', " ");
    let skipped = text.chars().count().saturating_sub(300);
    text.chars().skip(skipped).collect()
}

fn range(count: u16) -> String {
    let last = FIRST + count - 1;
    format!("{FIRST}-{last}:{FIRST}-{last}")
}

/// The first pass of a data plane, and passes after a backend left, in milliseconds.
fn alone(count: u16) -> Result<[Samples; 2]> {
    let size = Size { networks: 1, services: 1, replicas: REPLICAS, on_all_nodes: false };
    let (mut snapshot, me) = grown(size, Balance::Roundrobin);
    let services: Vec<Arc<Service>> = snapshot.services.values().cloned().collect();
    for service in services {
        let service = Service { ports: parse_publish(&range(count))?, ..Service::clone(&service) };
        snapshot.apply(Change::Put(Object::Service(Arc::new(service))));
    }
    let (mut first, mut leaves) = (Samples::default(), Samples::default());
    for _ in 0..(if count < MANY { REPEATED } else { 1 }) {
        let [passed, left] = apart(|| living(snapshot.clone(), me))?;
        eprintln!("{count} ports, a data plane alone: {passed} {left}");
        first.push(passed.median());
        leaves.push(left.median());
    }
    Ok([first, leaves])
}

/// One data plane's first pass, and the others.
fn living(mut snapshot: Snapshot, me: NodeId) -> Result<[Samples; 2]> {
    let mut plane = DataPlane::new(config(me)?)?;
    let mut first = Samples::default();
    first.push(timed(&mut plane, &snapshot, Pass::Full)?[0]);
    let [left, _] = backends_leave(&mut plane, &mut snapshot, 1)?;
    Ok([first, left])
}

/// Ports of the cluster.
struct Published {
    /// Until meshctl has published them, until the last one leads to a replica, and until meshctl has taken them back.
    times: [Duration; 3],
    found: Found,
    /// What meshctl said when it did not wait for all of it.
    complaints: Vec<anyhow::Error>,
}

fn published(mesh: &Mesh, place: &Place<'_>, count: u16, effort: Effort) -> Result<Published> {
    let (contender, last) = (mesh.elsewhere(place), FIRST + count - 1);
    mesh.many.iter().try_for_each(|replica| rate::serve(replica, last))?;
    let mut complaints = Vec::new();
    let start = Instant::now();
    complaints.extend(mesh.update_many(&[format!("--publish-add={}", range(count))]).ok().err());
    let published = start.elapsed();
    within(PATIENCE, "the last port leads to a replica", || {
        contender.client.inside(|| rate::once(&contender, last))
    })?;
    let leads = start.elapsed();
    let mut found = Found::default();
    for _ in 0..effort.rounds {
        rounds::measure(&contender, effort, &mut found)?;
    }
    // One by one: a range is nothing that can be taken back.
    let ports = (FIRST..=last).map(|port| format!("--publish-rm={port}"));
    let start = Instant::now();
    complaints.extend(mesh.update_many(&ports.collect::<Vec<_>>()).ok().err());
    Ok(Published { times: [published, leads, start.elapsed()], found, complaints })
}
