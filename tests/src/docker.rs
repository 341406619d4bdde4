//! Debian's Docker on a host of the lab: a real `dockerd` with its own directories, and containers of busybox.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::CONVERGES;
use crate::host::Host;
use crate::namespace::Namespace;
use crate::probe::within;
use crate::process::{Background, Outcome};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib/docker-lab.sh");
/// The image: busybox and nothing else.
pub const IMAGE: &str = "box";
/// How long a daemon may take to answer, or to end. It waits up to half a minute for a driver of a network it knows.
const DEADLINE: Duration = Duration::from_secs(90);

/// A `dockerd`, which can be ended and started again. Killed when dropped.
#[derive(Debug)]
pub struct Docker {
    host: Host,
    options: Vec<String>,
    process: Option<Background>,
}

impl Docker {
    /// Starts it on a host, and imports the image.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, &[])
    }

    /// The same with more options, now and again after each end.
    pub fn start_with(host: &Host, options: &[&str]) -> Result<Self> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut docker = Self { host: host.clone(), options, process: None };
        docker.restart()?;
        let import = "root=$(mktemp -d /run/lab/box.XXXXXX) && mkdir $root/bin && cp \"$(command -v busybox)\" $root/bin/ &&
            for name in $($root/bin/busybox --list); do [[ $name == busybox ]] || ln -s busybox $root/bin/$name; done &&
            tar -C $root -c . | docker --host \"$0\" import - box";
        docker.host.output(&["bash", "-c", import, &docker.url()]).ok()?;
        Ok(docker)
    }

    /// Starts it again, if it does not run, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.begin()?;
        within(DEADLINE, "dockerd answers", || self.run(&["version"]).ok().map(drop))
    }

    /// Starts it again, if it does not run.
    pub fn begin(&mut self) -> Result<()> {
        if self.process.is_none() {
            let path = self.host.file(format!("/run/lab/{}/dockerd.log", self.host.name()));
            let log = fs::File::options().create(true).append(true).open(path)?;
            let (directory, plugins) = (self.host.docker_dir(), self.host.docker_plugins());
            let mut line = vec![SCRIPT, &directory, &plugins];
            line.extend(self.options.iter().map(String::as_str));
            self.process = Some(self.host.spawn_into(&line, log.try_clone()?.into(), log.into())?);
        }
        Ok(())
    }

    /// Waits until meshd has put all its rules where Docker drops what the host forwards: for both ways through the uplink, and
    /// for two names of Docker's bridges. For IPv6 there is such a place only if Docker filters it.
    pub fn let_pass(&self) -> Result<()> {
        let rules = |program| self.host.output(&[program, "-S", "DOCKER-USER"]).ok();
        let filters_ipv6 = rules("ip6tables").is_ok();
        let programs = ["iptables"].into_iter().chain(filters_ipv6.then_some("ip6tables"));
        within(CONVERGES, "meshd has its rules in Docker's chain", || {
            for program in programs.clone() {
                let rules = rules(program)?;
                ensure!(rules.matches("--comment meshd").count() == 4, "{program}: {rules}");
            }
            Ok(())
        })
    }

    /// Kills it (SIGKILL). Its containers go on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks it to end (SIGTERM), and its containers with it.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("dockerd does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(DEADLINE).map(drop)
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// `docker ARGUMENTS`, to its end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let url = self.url();
        let mut line = vec!["docker", "--host", &url];
        line.extend(arguments);
        self.host.output(&line)
    }

    /// `docker ARGUMENTS`, in the background.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Background> {
        let url = self.url();
        self.host.spawn(&[&["docker", "--host", &url], arguments].concat())
    }

    /// `docker run --detach --name NAME OPTIONS box COMMAND`.
    pub fn container(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        let line = [&["run", "--detach", "--name", name], options, &[IMAGE], command].concat();
        self.run(&line).ok().map(drop)
    }

    /// A container that serves a page with its name, as a replica does.
    pub fn web(&self, name: &str, options: &[&str]) -> Result<()> {
        let serve = format!("mkdir -p /www && echo {name} >/www/index.html && exec httpd -f -p 80 -h /www");
        self.container(name, options, &["sh", "-c", &serve])
    }

    /// `docker exec CONTAINER COMMAND`.
    pub fn exec(&self, container: &str, command: &[&str]) -> Outcome {
        self.run(&[&["exec", container], command].concat())
    }

    /// Asks the web server at an address `count` times from inside a container, as [`Namespace::answers`] does elsewhere.
    ///
    /// [`Namespace::answers`]: crate::Namespace::answers
    pub fn answers(&self, container: &str, address: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        // Not by busybox's wget: linked statically, it crashes on some hosts.
        let ask = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80 | grep . | tail -n 1 | grep . || echo failed"
        );
        let asked = format!("for i in $(seq {count}); do {ask}; done");
        let mut counts = BTreeMap::new();
        for answer in self.exec(container, &["sh", "-c", &asked]).ok()?.lines() {
            *counts.entry(answer.to_owned()).or_default() += 1;
        }
        Ok(counts)
    }

    /// The network of a container, as a place of the lab.
    pub fn namespace(&self, container: &str) -> Result<Namespace> {
        let sandbox = self.inspect(container)?["NetworkSettings"]["SandboxKey"].clone();
        let sandbox = sandbox.as_str().context("the container has no network")?;
        let name = format!("docker-{container}");
        let bind = "touch /run/netns/$0 && mount --bind $1 /run/netns/$0";
        self.host.output(&["bash", "-c", bind, &name, sandbox]).ok()?;
        Ok(Namespace::named(&self.host.init, &name))
    }

    /// `docker-compose` with a file: everything up or down.
    pub fn compose(&self, file: &str, arguments: &[&str]) -> Outcome {
        let docker = format!("DOCKER_HOST={}", self.url());
        self.host.output(&[&["env", &docker, "docker-compose", "--file", file], arguments].concat())
    }

    /// Whether a container runs.
    pub fn runs(&self, container: &str) -> Result<bool> {
        Ok(self.inspect(container)?["State"]["Running"] == true)
    }

    /// `docker inspect OBJECT`.
    pub fn inspect(&self, object: &str) -> Result<Value> {
        let found = self.run(&["inspect", object]).json()?;
        Ok(found[0].clone())
    }

    /// Nothing of containers is left in the host's network: no interface that waits for one.
    pub fn leaves_nothing_waiting(&self) -> Result<()> {
        let links = self.host.output(&["ip", "-brief", "link"]).ok()?;
        let waits = |line: &&str| {
            let name = line.split(['@', ' ']).next().unwrap_or_default();
            name.len() == 15 && name.starts_with('m')
        };
        ensure!(links.lines().all(|line| !waits(&line)), "{links}");
        Ok(())
    }

    /// What `docker --host` is given.
    pub fn url(&self) -> String {
        format!("unix://{}/docker.sock", self.host.docker_dir())
    }
}
