//! Bare namespaces, attached by `meshctl` and by the CNI plugin; commands, namespaces and daemons are killed meanwhile.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Background, Cluster, Container, Host, Lab, Outcome, Plugin, Said, host::binary};
use rand::{Rng, rngs::StdRng};

use crate::walk::{self, Step};

/// Containers of the host that is worked on, at most.
const CONTAINERS: usize = 6;

/// Namespaces that `meshctl` and the CNI plugin attach on vm2.
pub(crate) struct Scene<'a> {
    lab: &'a Lab,
    cluster: Cluster,
    plugin: Plugin,
    /// Containers that exist now, with what runs in them, if anything does.
    containers: BTreeMap<String, (Container, Option<Background>)>,
    made: usize,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Result<Self> {
        let cluster = walk::cluster(lab)?;
        let plugin = Plugin::new(cluster.vm2(), "blue", "1.1.0").with("service", "web".into());
        Ok(Self { lab, cluster, plugin, containers: BTreeMap::new(), made: 0 })
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
}

impl walk::Scene for Scene<'_> {
    const KINDS: &'static [&'static str] = &["connect", "connect pid:", "disconnect", "ADD", "DEL"];

    fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn step(&mut self, rng: &mut StdRng) -> Result<Step> {
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
        let (kind, succeeded) = match rng.random_range(0..23) {
            0..5 => ("connect", was_connected(&vm2.meshctl(&connect))?),
            // What is not attached is detached: only what was attached counts.
            5..8 => {
                let attached = self.is_attached(&container);
                vm2.meshctl(&disconnect).ok()?;
                ("disconnect", attached)
            }
            8..11 => {
                let added = self.plugin.call("ADD", &container)?;
                ("ADD", was_added(&added)?)
            }
            11..13 => {
                let attached = self.is_attached(&container);
                self.plugin.call("DEL", &container)?.ok()?;
                ("DEL", attached)
            }
            13 => {
                killed(&vm2, &connect, kill_after)?;
                ("connect, meshctl killed", true)
            }
            14 => {
                killed(&vm2, &disconnect, kill_after)?;
                ("disconnect, meshctl killed", true)
            }
            15 => {
                let command = ["run", "--network", "blue", "--service", "web", "--", "sleep", "60"];
                killed(&vm2, &command, kill_after * 10)?;
                ("run, meshctl killed", true)
            }
            16 | 17 => {
                self.delete(&container)?;
                ("the container is gone", true)
            }
            18 => {
                thread::scope(|scope| {
                    scope.spawn(|| vm2.meshctl(&connect));
                    self.delete(&container)
                })?;
                ("connect, the container goes meanwhile", true)
            }
            19 | 20 => {
                let pid = format!("pid:{}", self.process(&container)?);
                let by_pid = ["network", "connect", "--service", "web", "blue", &pid];
                ("connect pid:", was_connected(&vm2.meshctl(&by_pid))?)
            }
            21 => {
                self.plugin.killed("ADD", &container, kill_after)?;
                ("ADD, the plugin killed", true)
            }
            _ => {
                let daemon = if rng.random_bool(0.7) { 1 } else { 0 };
                let daemon = &mut self.cluster.daemons[daemon];
                thread::scope(|scope| {
                    scope.spawn(|| vm2.meshctl(&connect));
                    daemon.restart()
                })?;
                ("connect, meshd killed", true)
            }
        };
        Ok(Step { kind, container, succeeded })
    }

    /// Half of the containers are disconnected before they go.
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
fn killed(host: &Host, arguments: &[&str], after: Duration) -> Result<()> {
    let (meshctl, socket) = (binary("meshctl")?, host.socket());
    let script = "\"${@:2}\" & sleep \"$1\"; kill -KILL $!; wait $!; true";
    let after = after.as_secs_f64().to_string();
    let line = ["bash", "-c", script, "killed", &after, &meshctl, "--socket", &socket];
    host.output(&[&line[..], arguments].concat()).ok().map(drop)
}
