//! Attached and detached in random order, while commands, containers and daemons are killed: what is not killed works, and
//! nothing is left.

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{
    Background, CONVERGES, Cluster, Container, Host, Lab, Objects, Outcome, Plugin, Said, host::binary,
    scenario, unchanged, within,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// How many there are in the test suite.
const SHORT: u64 = 100;
/// Containers of the host that is worked on, at most.
const CONTAINERS: usize = 6;
/// What is to succeed, at least once in so many steps: else nothing was attached that could be left.
const KINDS: [&str; 5] = ["connect", "connect pid:", "disconnect", "ADD", "DEL"];
const SELDOM: u64 = 100;

/// `MESH_ATTACHES` and `MESH_SEED` change how many there are, and which (`scripts/soak attach`).
#[test]
fn attached_and_detached_in_random_order() {
    scenario("attach", |lab| {
        let count = number("MESH_ATTACHES").unwrap_or(SHORT);
        let seed = number("MESH_SEED").unwrap_or_else(rand::random);
        println!("{count} steps; MESH_SEED={seed} repeats them");
        let mut scene = Scene::new(lab)?;
        let before = scene.counted()?;
        println!("before: {}", summary(&before));
        let mut rng = StdRng::seed_from_u64(seed);
        // Chance may want some more steps until everything has succeeded.
        for step in 1..=count * 3 {
            if step > count && scene.lacks(count / SELDOM).is_none() {
                break;
            }
            let doing = scene.step(&mut rng).with_context(|| format!("step {step}, seed {seed}"))?;
            if count > SHORT && step % SHORT == 0 {
                println!("step {step}: {doing}");
            }
        }
        println!("succeeded: {:?}", scene.succeeded);
        if let Some(kind) = scene.lacks(count / SELDOM) {
            bail!("seed {seed}: '{kind}' hardly ever succeeded");
        }
        scene.tidy()?;
        // Endpoints whose commands were killed go when their namespaces do, and those that nobody heard of as well.
        within(CONVERGES * 2, "all is as before", || {
            let after = scene.counted()?;
            unchanged(&before, &after).with_context(|| format!("seed {seed}"))?;
            println!("after:  {}", summary(&after));
            Ok(())
        })
    });
}

fn summary(counted: &Objects) -> String {
    let counts: Vec<String> = counted.iter().map(|(what, lines)| format!("{what} {}", lines.len())).collect();
    counts.join(", ")
}

struct Scene<'a> {
    lab: &'a Lab,
    cluster: Cluster,
    plugin: Plugin,
    /// Containers that exist now, with what runs in them, if anything does.
    containers: BTreeMap<String, (Container, Option<Background>)>,
    made: usize,
    /// How often each kind of step succeeded.
    succeeded: BTreeMap<&'static str, u64>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
        vm1.meshctl(&service).ok()?;
        // One replica on each host that stays: the network exists on all, and its rules have something to keep.
        for daemon in &cluster.daemons {
            let host = daemon.host();
            let container = lab.container(&format!("stays-{}", host.name()))?;
            host.meshctl(&["network", "connect", "--service", "web", "blue", &container.target()]).ok()?;
        }
        cluster.endpoints("web", "3/3")?;
        let plugin = Plugin::new(cluster.vm2(), "blue", "1.1.0").with("service", "web".into());
        Ok(Self { lab, cluster, plugin, containers: BTreeMap::new(), made: 0, succeeded: BTreeMap::new() })
    }

    /// One random step on vm2; what it was.
    fn step(&mut self, rng: &mut StdRng) -> Result<String> {
        let vm2 = self.cluster.vm2().clone();
        if self.containers.len() < CONTAINERS {
            self.made += 1;
            let name = format!("c{}", self.made);
            let container = self.lab.container(&name)?;
            self.containers.insert(name, (container, None));
        }
        let number = rng.random_range(0..self.containers.len());
        let container = self.containers.keys().nth(number).cloned().context("a container")?;
        let target = format!("netns:/run/netns/{container}");
        let kill_after = Duration::from_millis(rng.random_range(1..40));
        let connect = ["network", "connect", "--service", "web", "blue", &target];
        let disconnect = ["network", "disconnect", "blue", &target];
        let doing = match rng.random_range(0..23) {
            0..5 => self.count("connect", was_connected(&vm2.meshctl(&connect))?),
            // What is not attached is detached: only what was attached counts.
            5..8 => {
                let attached = self.is_attached(&container);
                vm2.meshctl(&disconnect).ok()?;
                self.count("disconnect", attached)
            }
            8..11 => {
                let added = self.plugin.call("ADD", &container)?;
                self.count("ADD", was_added(&added)?)
            }
            11..13 => {
                let attached = self.is_attached(&container);
                self.plugin.call("DEL", &container)?.ok()?;
                self.count("DEL", attached)
            }
            13 => killed(&vm2, &connect, kill_after, "connect, meshctl killed")?,
            14 => killed(&vm2, &disconnect, kill_after, "disconnect, meshctl killed")?,
            15 => {
                let command = ["run", "--network", "blue", "--service", "web", "--", "sleep", "60"];
                killed(&vm2, &command, kill_after * 10, "run, meshctl killed")?
            }
            16 | 17 => {
                self.delete(&container)?;
                "the container is gone"
            }
            18 => {
                thread::scope(|scope| {
                    scope.spawn(|| vm2.meshctl(&connect));
                    self.delete(&container)
                })?;
                "connect, the container goes meanwhile"
            }
            19 | 20 => {
                let pid = format!("pid:{}", self.process(&container)?);
                let by_pid = ["network", "connect", "--service", "web", "blue", &pid];
                self.count("connect pid:", was_connected(&vm2.meshctl(&by_pid))?)
            }
            21 => {
                self.plugin.killed("ADD", &container, kill_after)?;
                "ADD, the plugin killed"
            }
            _ => {
                let daemon = if rng.random_bool(0.7) { 1 } else { 0 };
                let daemon = &mut self.cluster.daemons[daemon];
                thread::scope(|scope| {
                    scope.spawn(|| vm2.meshctl(&connect));
                    daemon.restart()
                })?;
                "connect, meshd killed"
            }
        };
        Ok(format!("{doing} ({container})"))
    }

    /// Notes whether a step of a kind succeeded.
    fn count(&mut self, kind: &'static str, succeeded: bool) -> &'static str {
        *self.succeeded.entry(kind).or_default() += u64::from(succeeded);
        kind
    }

    /// A kind of step that did not succeed so often.
    fn lacks(&self, often: u64) -> Option<&'static str> {
        let succeeded = |kind| self.succeeded.get(kind).copied().unwrap_or_default();
        KINDS.into_iter().find(|kind| succeeded(*kind) < often)
    }

    fn is_attached(&self, container: &str) -> bool {
        let shown = self.cluster.vm2().output(&["ip", "-netns", container, "link", "show", "eth0"]);
        shown.code == Some(0)
    }

    /// A process of a container, by its number in the lab.
    fn process(&mut self, container: &str) -> Result<String> {
        let (space, process) = self.containers.get_mut(container).context("a container")?;
        if process.is_none() {
            *process = Some(space.spawn(&["sleep", "infinity"])?);
        }
        let pids = self.cluster.vm2().output(&["ip", "netns", "pids", container]).ok()?;
        Ok(pids.lines().next().context("a process")?.to_owned())
    }

    /// The container ends: its processes, then its namespace.
    fn delete(&mut self, container: &str) -> Result<()> {
        self.containers.remove(container);
        self.cluster.vm2().output(&["ip", "netns", "delete", container]).ok().map(drop)
    }

    /// Every container goes; half of them are disconnected before.
    fn tidy(&mut self) -> Result<()> {
        let containers: Vec<String> = self.containers.keys().cloned().collect();
        for (number, container) in containers.into_iter().enumerate() {
            if number % 2 == 0 {
                let target = format!("netns:/run/netns/{container}");
                self.cluster.vm2().meshctl(&["network", "disconnect", "--force", "blue", &target]).ok()?;
            }
            self.delete(&container)?;
        }
        Ok(())
    }

    /// The objects of each kernel and of the cluster.
    fn counted(&self) -> Result<Objects> {
        let mut counted = Objects::new();
        let addresses = self.cluster.list(&["endpoint", "ls"])?;
        let addresses = addresses.iter().map(|endpoint| endpoint["addresses"].to_string()).collect();
        counted.insert("addresses".to_owned(), addresses);
        for daemon in &self.cluster.daemons {
            let host = daemon.host();
            let objects = host.all_objects()?.into_iter();
            counted.extend(objects.map(|(what, lines)| (format!("{} {what}", host.name()), lines)));
        }
        Ok(counted)
    }
}

/// Whether a container was connected. Only one that is attached already may be refused.
fn was_connected(outcome: &Outcome) -> Result<bool> {
    ensure!(outcome.code == Some(0) || outcome.stderr.contains("already"), "{outcome:?}");
    Ok(outcome.code == Some(0))
}

/// Whether the plugin added a container; else it is attached already.
fn was_added(said: &Said) -> Result<bool> {
    let refused = said.json["msg"].to_string() + &said.json["details"].to_string();
    ensure!(said.outcome.code == Some(0) || refused.contains("already"), "{said:?}");
    Ok(said.outcome.code == Some(0))
}

/// A command of meshctl that is killed on its way, unless it is faster.
fn killed(host: &Host, arguments: &[&str], after: Duration, what: &'static str) -> Result<&'static str> {
    let (meshctl, socket) = (binary("meshctl")?, host.socket());
    let script = "\"${@:2}\" & sleep \"$1\"; kill -KILL $!; wait $!; true";
    let after = after.as_secs_f64().to_string();
    let line = ["bash", "-c", script, "killed", &after, &meshctl, "--socket", &socket];
    host.output(&[&line[..], arguments].concat()).ok()?;
    Ok(what)
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}
