//! Random steps, between two counts of all that hosts and cluster hold.

use std::collections::BTreeMap;
use std::env;

use anyhow::{Context, Result, bail};
use mesh_tests::{CONVERGES, Cluster, Lab, Objects, unchanged, within};
use rand::{SeedableRng, rngs::StdRng};

/// What is to succeed does so at least once in so many steps: else nothing was attached that could be left.
const SELDOM: u64 = 100;

/// A cluster on which something is attached and detached.
pub(crate) trait Scene {
    /// The kinds of steps that are to succeed now and then.
    const KINDS: &'static [&'static str];

    fn cluster(&self) -> &Cluster;

    fn step(&mut self, rng: &mut StdRng) -> Result<Step>;

    /// Everything goes that was attached.
    fn tidy(&mut self) -> Result<()>;
}

/// What was done, to which container, and whether it had its effect: what is attached already is not attached again.
pub(crate) struct Step {
    pub(crate) kind: &'static str,
    pub(crate) container: String,
    pub(crate) succeeded: bool,
}

/// Network `blue` with the service `web`. One replica on each host stays: the network exists on all, and its rules have
/// something to keep.
pub(crate) fn cluster(lab: &Lab) -> Result<Cluster> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
    vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
    vm1.meshctl(&service).ok()?;
    for daemon in &cluster.daemons {
        let host = daemon.host();
        let container = lab.container(&format!("stays-{}", host.name()))?;
        host.meshctl(&["network", "connect", "--service", "web", "blue", &container.target()]).ok()?;
    }
    cluster.endpoints("web", "3/3")?;
    Ok(cluster)
}

/// As many steps as asked for, `short` in the test suite, and the counts before and after.
pub(crate) fn through<S: Scene>(scene: &mut S, short: u64) -> Result<()> {
    let count = number("MESH_ATTACHES").unwrap_or(short);
    let seed = number("MESH_SEED").unwrap_or_else(rand::random);
    println!("{count} steps; MESH_SEED={seed} repeats them");
    let before = counted(scene.cluster())?;
    println!("before: {}", summary(&before));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut succeeded = BTreeMap::new();
    let often = (count / SELDOM).max(1);
    let lacks = |succeeded: &BTreeMap<&'static str, u64>| {
        S::KINDS.iter().find(|kind| succeeded.get(*kind).is_none_or(|times| *times < often))
    };
    // Chance may want some more steps until everything has succeeded.
    for number in 1..=count * 3 {
        if number > count && lacks(&succeeded).is_none() {
            break;
        }
        let step = scene.step(&mut rng).with_context(|| format!("step {number}, seed {seed}"))?;
        *succeeded.entry(step.kind).or_default() += u64::from(step.succeeded);
        if number % SELDOM == 0 {
            println!("step {number}: {} ({})", step.kind, step.container);
        }
    }
    println!("succeeded: {succeeded:?}");
    if let Some(kind) = lacks(&succeeded) {
        bail!("seed {seed}: '{kind}' hardly ever succeeded");
    }
    scene.tidy()?;
    // Endpoints whose commands were killed go when their namespaces do, and those that nobody heard of as well; what an engine
    // forgot is given half a minute.
    within(CONVERGES * 3, "all is as before", || {
        let after = counted(scene.cluster())?;
        unchanged(&before, &after).with_context(|| format!("seed {seed}"))?;
        println!("after:  {}", summary(&after));
        Ok(())
    })
}

/// The objects of each kernel and of the cluster.
fn counted(cluster: &Cluster) -> Result<Objects> {
    let mut counted = Objects::new();
    let addresses = cluster.list(&["endpoint", "ls"])?;
    let addresses = addresses.iter().map(|endpoint| endpoint["addresses"].to_string()).collect();
    counted.insert("addresses".to_owned(), addresses);
    for daemon in &cluster.daemons {
        let host = daemon.host();
        let objects = host.all_objects()?.into_iter();
        counted.extend(objects.map(|(what, lines)| (format!("{} {what}", host.name()), lines)));
        // A namespace that somebody holds open lives on, though no path leads to it.
        let held = daemon.namespaces()?.into_iter().map(|inode| inode.to_string()).collect();
        counted.insert(format!("{} held by meshd", host.name()), held);
    }
    Ok(counted)
}

fn summary(counted: &Objects) -> String {
    let counts: Vec<String> = counted.iter().map(|(what, lines)| format!("{what} {}", lines.len())).collect();
    counts.join(", ")
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}
