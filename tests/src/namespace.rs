//! A place in a lab where commands run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use crate::lab::init::Init;
use crate::process::{Background, Outcome};

/// A network namespace of a lab, entered for each command.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub(crate) init: Arc<Init>,
    name: String,
    entry: Entry,
}

#[derive(Debug, Clone)]
enum Entry {
    /// `/run/netns/NAME`, with the lab's mounts.
    Named,
    /// `/run/netns/NAME`, with a resolv.conf of its own.
    Container,
    /// The network and the mounts of a process.
    Process(Pid),
}

impl Namespace {
    pub(crate) fn named(init: &Arc<Init>, name: &str) -> Self {
        Self { init: Arc::clone(init), name: name.to_owned(), entry: Entry::Named }
    }

    pub(crate) fn container(init: &Arc<Init>, name: &str) -> Self {
        Self { init: Arc::clone(init), name: name.to_owned(), entry: Entry::Container }
    }

    /// What a process sees: its network and, where it has mounts of its own, its resolv.conf.
    pub fn of_process(&self, name: &str, pid: Pid) -> Self {
        Self { init: Arc::clone(&self.init), name: name.to_owned(), entry: Entry::Process(pid) }
    }

    /// Where the LAN's switch is: the port of each machine bears its name.
    pub(crate) fn switch(&self) -> Self {
        Self::named(&self.init, "lan")
    }

    /// The name: of the namespace in `/run/netns`, but for [`Namespace::of_process`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file of the lab, seen from the test. What is under `/run` belongs to the lab alone and ends with it.
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.init.file(path)
    }

    /// Runs a command to its end, which is forced after a minute.
    pub fn output(&self, command: &[&str]) -> Outcome {
        let mut line = vec!["timeout", "--kill-after=1", "60"];
        line.extend(command);
        Outcome::of(self.command(&line), self.describe(command))
    }

    /// Runs a script of the shell to its end, which is forced after a minute.
    pub fn shell(&self, script: &str) -> Outcome {
        self.output(&["bash", "-c", script])
    }

    /// Starts a command in the background; what it prints is dropped.
    pub fn spawn(&self, command: &[&str]) -> Result<Background> {
        self.spawn_into(command, Stdio::null(), Stdio::null())
    }

    /// Starts a command in the background, with its output and errors going where told.
    pub fn spawn_into(&self, command: &[&str], stdout: Stdio, stderr: Stdio) -> Result<Background> {
        let mut process = self.command(command);
        process.stdout(stdout).stderr(stderr);
        Background::start(process, self.describe(command))
    }

    /// The body that a URL answers with; an error for anything but 2xx, or after 2 seconds.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.output(&["curl", "-fsS", "--max-time", "2", url]).ok()
    }

    /// Asks a URL `count` times, each on a connection of its own; how often each answer came. A request that fails
    /// counts as the answer `failed`.
    pub fn answers(&self, url: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        let asked =
            format!("for i in $(seq {count}); do curl -fsS --max-time 2 '{url}' || echo failed; done");
        let mut counts = BTreeMap::new();
        for answer in self.shell(&asked).ok()?.lines() {
            *counts.entry(answer.to_owned()).or_default() += 1;
        }
        Ok(counts)
    }

    /// The records that `dig +short` finds, sorted; an error if nothing answers.
    pub fn dig(&self, query: &[&str]) -> Result<Vec<String>> {
        let mut line = vec!["dig", "+short", "+time=2", "+tries=1"];
        line.extend(query);
        let answer = self.output(&line).ok()?;
        let mut records: Vec<String> = answer.lines().map(str::to_owned).collect();
        records.sort();
        Ok(records)
    }

    /// The address of an interface, without its prefix length.
    pub fn address(&self, interface: &str) -> Result<String> {
        let json = self.output(&["ip", "-json", "-4", "address", "show", "dev", interface]).json()?;
        let address = json[0]["addr_info"][0]["local"].as_str();
        Ok(address.with_context(|| format!("{interface} in {} has no IPv4 address", self.name))?.to_owned())
    }

    /// Does something of the test itself in this network, such as opening sockets.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = match self.entry {
            Entry::Process(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            Entry::Named | Entry::Container => self.init.file(format!("/run/netns/{}", self.name)),
        };
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        // A thread of its own, so that no other code of the test ends up there.
        let entered = thread::scope(|scope| {
            let entering = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            entering.join()
        });
        entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn describe(&self, command: &[&str]) -> String {
        format!("[{}] {}", self.name, command.join(" "))
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut entered = Command::new("nsenter");
        entered.args(self.nsenter_args()).arg("--").env("LC_ALL", "C");
        if let Entry::Container = self.entry {
            let resolv = format!("/run/lab/{}.resolv.conf", self.name);
            let bind = format!("mount --bind {resolv} /etc/resolv.conf && exec \"$@\"");
            entered.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", &bind, "sh"]);
        }
        entered.args(command);
        entered
    }

    /// The arguments with which `nsenter` gets here, from outside the lab.
    pub(crate) fn nsenter_args(&self) -> Vec<String> {
        let net = match self.entry {
            Entry::Process(pid) => {
                return vec![format!("--target={pid}"), "--mount".into(), "--pid".into(), "--net".into()];
            }
            Entry::Named | Entry::Container => self.init.file(format!("/run/netns/{}", self.name)),
        };
        let init = self.init.pid();
        vec![format!("--target={init}"), "--mount".into(), "--pid".into(), format!("--net={}", net.display())]
    }
}
