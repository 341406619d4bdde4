//! Containers of Docker and Podman on one host; their processes and the daemons are killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Cluster, Docker, Lab, Podman};
use rand::seq::IteratorRandom;
use rand::{Rng, rngs::StdRng};

use crate::walk::{self, Step};

/// Containers of each engine, at most.
const CONTAINERS: usize = 4;
const SLEEP: [&str; 2] = ["sleep", "infinity"];

/// Both engines on vm2.
pub(crate) struct Scene {
    cluster: Cluster,
    docker: Docker,
    podman: Podman,
    /// Docker's containers that it may have half made when it was killed: it can only remove them.
    halves: BTreeSet<String>,
    /// Podman's containers, and whether they run.
    of_podman: BTreeMap<String, bool>,
    made: usize,
}

/// A container as Docker shows it.
struct Shown {
    name: String,
    runs: bool,
    connected: bool,
}

impl Scene {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let cluster = walk::cluster(lab)?;
        let (docker, podman) = (Docker::start(cluster.vm2())?, Podman::new(cluster.vm2())?);
        docker.run(&["network", "create", "-d", "meshd", "--opt", "mesh.network=blue", "net1"]).ok()?;
        podman.network("blue")?;
        docker.let_pass()?;
        Ok(Self { cluster, docker, podman, halves: BTreeSet::new(), of_podman: BTreeMap::new(), made: 0 })
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("c{}", self.made)
    }

    fn shown(&self) -> Result<Vec<Shown>> {
        let format = "{{.Names}} {{.State}} {{.Networks}}";
        let listed = self.docker.run(&["ps", "--all", "--format", format]).ok()?;
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next().context("a name")?.to_owned();
            let runs = words.next() == Some("running");
            Ok(Shown { name, runs, connected: words.next() == Some("net1") })
        };
        listed.lines().map(parse).collect()
    }

    fn by_docker(&mut self, rng: &mut StdRng) -> Result<Step> {
        let containers = self.shown()?;
        let Some(one) =
            containers.iter().choose(rng).filter(|_| containers.len() >= rng.random_range(1..=CONTAINERS))
        else {
            return self.docker_run(rng);
        };
        let done = |kind, succeeded| Ok(Step { kind, container: one.name.clone(), succeeded });
        let docker = &self.docker;
        match rng.random_range(0..40) {
            _ if self.halves.contains(&one.name) => {
                docker.run(&["rm", "--force", &one.name]).ok()?;
                done("docker rm of what is half made", true)
            }
            _ if !one.runs && rng.random_bool(0.5) => {
                docker.run(&["start", &one.name]).ok()?;
                done("docker start", one.connected)
            }
            0..12 if one.connected => {
                docker.run(&["network", "disconnect", "net1", &one.name]).ok()?;
                done("docker network disconnect", one.runs)
            }
            0..30 if !one.connected => {
                docker.run(&["network", "connect", "net1", &one.name]).ok()?;
                done("docker network connect", one.runs)
            }
            12..20 if one.runs => {
                let pid = docker.inspect(&one.name)?["State"]["Pid"].to_string();
                docker.host().output(&["kill", "-KILL", &pid]).ok()?;
                docker.run(&["wait", &one.name]).ok()?;
                done("a process of Docker's is killed", true)
            }
            39 => {
                // Its containers end with the next.
                self.docker.kill()?;
                self.docker.restart()?;
                done("dockerd is killed", true)
            }
            _ => {
                docker.run(&["rm", "--force", &one.name]).ok()?;
                done("docker rm", one.runs && one.connected)
            }
        }
    }

    /// Now and then a daemon is killed meanwhile.
    fn docker_run(&mut self, rng: &mut StdRng) -> Result<Step> {
        let name = self.new_name();
        let options =
            ["run", "--detach", "--name", &name, "--network", "net1", "--label", "mesh.service=web", "box"];
        let run = [&options[..], &SLEEP].concat();
        let kind = match rng.random_range(0..48) {
            // Seldom: what Docker forgot is given half a minute.
            0 => {
                let (host, url) = (self.docker.host().clone(), self.docker.url());
                let pause = Duration::from_millis(rng.random_range(0..1500));
                let docker = &mut self.docker;
                thread::scope(|scope| {
                    scope.spawn(|| host.output(&[&["docker", "--host", &url], &run[..]].concat()));
                    thread::sleep(pause);
                    docker.kill()
                })?;
                self.docker.restart()?;
                self.halves.insert(name.clone());
                "docker run, dockerd killed"
            }
            1..6 => {
                let (daemon, docker) = (&mut self.cluster.daemons[1], &self.docker);
                thread::scope(|scope| {
                    scope.spawn(|| docker.run(&run));
                    daemon.restart()
                })?;
                "docker run, meshd killed"
            }
            _ => {
                self.docker.run(&run).ok()?;
                "docker run"
            }
        };
        Ok(Step { kind, container: name, succeeded: true })
    }

    fn by_podman(&mut self, rng: &mut StdRng) -> Result<Step> {
        let few = self.of_podman.len() < rng.random_range(1..=CONTAINERS);
        let one = self.of_podman.iter().choose(rng).map(|(name, runs)| (name.clone(), *runs));
        let Some((container, runs)) = one.filter(|_| !few) else {
            let container = self.new_name();
            self.podman.sleeper(&container, &["--network", "blue:alias=mesh.service=web"])?;
            self.of_podman.insert(container.clone(), true);
            return Ok(Step { kind: "podman run", container, succeeded: true });
        };
        let kind = match rng.random_range(0..5) {
            0 if runs => {
                self.podman.kill(&container, &["Pid"])?;
                self.of_podman.insert(container.clone(), false);
                "a process of Podman's is killed"
            }
            1 if runs => {
                self.podman.kill(&container, &["ConmonPid", "Pid"])?;
                self.of_podman.insert(container.clone(), false);
                "a process of Podman's and its monitor are killed"
            }
            _ => {
                self.podman.podman(&["rm", "--force", "--time", "0", &container]).ok()?;
                self.of_podman.remove(&container);
                "podman rm"
            }
        };
        Ok(Step { kind, container, succeeded: runs })
    }
}

impl walk::Scene for Scene {
    const KINDS: &'static [&'static str] = &[
        "docker run",
        "docker rm",
        "docker network connect",
        "docker network disconnect",
        "podman run",
        "podman rm",
    ];

    fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn step(&mut self, rng: &mut StdRng) -> Result<Step> {
        if rng.random_bool(0.7) { self.by_docker(rng) } else { self.by_podman(rng) }
    }

    fn tidy(&mut self) -> Result<()> {
        let names: Vec<String> = self.shown()?.into_iter().map(|shown| shown.name).collect();
        for name in names {
            self.docker.run(&["rm", "--force", &name]).ok()?;
        }
        ensure!(self.shown()?.is_empty());
        self.podman.remove_all()
    }
}
