//! Attached and detached in random order, while commands, containers and daemons are killed: nothing is left.

use std::collections::BTreeSet;
use std::env;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Lab, Plugin, host::binary, scenario, within};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// How many there are in the test suite.
const SHORT: u64 = 100;
/// Containers of the host that is worked on, at most.
const CONTAINERS: usize = 6;

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
        for step in 1..=count {
            let doing = scene.step(&mut rng).with_context(|| format!("step {step}, seed {seed}"))?;
            if count > SHORT && step % SHORT == 0 {
                println!("step {step}: {doing}");
            }
        }
        scene.tidy()?;
        // Endpoints whose commands were killed go when their namespaces do, and those that nobody heard of as well.
        within(CONVERGES * 2, "all is as before", || {
            let after = scene.counted()?;
            ensure!(before == after, "seed {seed}: before:\n{before:#?}\nafter:\n{after:#?}");
            println!("after:  {}", summary(&after));
            Ok(())
        })
    });
}

/// The objects of each kernel and of the cluster, to compare and to count.
type Counted = Vec<(String, Vec<String>)>;

fn summary(counted: &Counted) -> String {
    let counts: Vec<String> = counted.iter().map(|(what, lines)| format!("{what} {}", lines.len())).collect();
    counts.join(", ")
}

struct Scene<'a> {
    lab: &'a Lab,
    cluster: Cluster,
    plugin: Plugin,
    /// Containers that exist now.
    containers: BTreeSet<String>,
    made: usize,
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
        Ok(Self { lab, cluster, plugin, containers: BTreeSet::new(), made: 0 })
    }

    /// One random step on vm2; what it was.
    fn step(&mut self, rng: &mut StdRng) -> Result<String> {
        let vm2 = self.cluster.vm2().clone();
        if self.containers.len() < CONTAINERS {
            self.made += 1;
            let name = format!("c{}", self.made);
            self.lab.container(&name)?;
            self.containers.insert(name);
        }
        let number = rng.random_range(0..self.containers.len());
        let container = self.containers.iter().nth(number).cloned().context("a container")?;
        let target = format!("netns:/run/netns/{container}");
        let kill_after = Duration::from_millis(rng.random_range(1..40));
        let connect = ["network", "connect", "--service", "web", "blue", &target];
        let disconnect = ["network", "disconnect", "blue", &target];
        let doing = match rng.random_range(0..20) {
            // What is attached already is refused, what is not attached is detached: both are fine.
            0..5 => (vm2.meshctl(&connect).code, "connect").1,
            5..8 => (vm2.meshctl(&disconnect).code, "disconnect").1,
            8..11 => (self.plugin.call("ADD", &container)?.outcome.code, "ADD").1,
            11..13 => (self.plugin.call("DEL", &container)?.outcome.code, "DEL").1,
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

    fn delete(&mut self, container: &str) -> Result<()> {
        self.containers.remove(container);
        self.cluster.vm2().output(&["ip", "netns", "delete", container]).ok().map(drop)
    }

    /// Every container goes; half of them are disconnected before.
    fn tidy(&mut self) -> Result<()> {
        for (number, container) in self.containers.clone().into_iter().enumerate() {
            if number % 2 == 0 {
                let target = format!("netns:/run/netns/{container}");
                self.cluster.vm2().meshctl(&["network", "disconnect", "--force", "blue", &target]).ok()?;
            }
            self.delete(&container)?;
        }
        Ok(())
    }

    fn counted(&self) -> Result<Counted> {
        let mut counted = Counted::new();
        let addresses = self.cluster.list(&["endpoint", "ls"])?;
        let addresses = addresses.iter().map(|endpoint| endpoint["addresses"].to_string()).collect();
        counted.push(("addresses".to_owned(), addresses));
        for daemon in &self.cluster.daemons {
            let host = daemon.host();
            // Counters of the load balancing are no elements; what the kernel learns by itself is none of ours.
            for (what, look) in [
                ("links", "ip -brief link | awk '{print $1, $3}'"),
                ("addresses", "ip -brief address"),
                ("FDB entries", "bridge fdb show | grep -e permanent -e dst"),
                ("neighbours", "ip neigh show nud permanent"),
                (
                    "routes",
                    "ip route show table all; ip -6 route show table all type unicast; ip rule; ip -6 rule",
                ),
                ("nft lines", "nft --stateless list ruleset"),
            ] {
                let script = format!(
                    "for net in $(ls -d \"$0\"/netns/*); do nsenter --net=\"$net\" bash -c \"{}\"; done | sort",
                    look.replace('$', "\\$").replace('"', "\\\"")
                );
                let lines = host.output(&["bash", "-c", &script, &host.run_dir()]).ok()?;
                let lines = lines.lines().map(str::to_owned).collect();
                counted.push((format!("{} {what}", host.name()), lines));
            }
            let host_objects = host.kernel_objects()?.lines().map(str::to_owned).collect();
            counted.push((format!("{} objects of the host", host.name()), host_objects));
            let kept = host.shell(&format!("ls {}/netns /run/netns", host.run_dir())).ok()?;
            counted.push((format!("{} namespaces", host.name()), kept.lines().map(str::to_owned).collect()));
        }
        Ok(counted)
    }
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
