//! Where servers run, and from where they are asked.

use anyhow::{Context, Result};
use mesh_tests::{Background, Host, Lab, Namespace};
use std::{fs, net::Ipv4Addr, process::Stdio, time::Duration};

pub(super) const CLIENT_CPU: usize = 0;
const SERVER_CPU: &str = "1";

/// All contenders share it: the same network namespace, address and client, so that nothing but the server differs.
pub(super) struct Place {
    pub(super) host: Host,
    /// How the servers' network is entered from the host.
    enter: Vec<String>,
    pub(super) client: Namespace,
    pub(super) address: Ipv4Addr,
}

/// A server that runs.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) port: u16,
    /// The process's number in the lab.
    process: u32,
    /// Ends when this is dropped, if it does not end with the lab.
    _running: Option<Background>,
}

impl Place {
    /// Two machines on the lab's LAN.
    pub(super) fn on_the_lan(lab: &Lab) -> Result<Self> {
        let (host, client) = (lab.host("names")?, lab.client("asker")?);
        Ok(Self { address: host.ip(), enter: Vec::new(), client: Clone::clone(&*client), host })
    }

    /// A network namespace of a host, by its file.
    pub(super) fn within(host: &Host, namespace: &str, client: Namespace, address: Ipv4Addr) -> Self {
        let enter = vec!["nsenter".to_owned(), format!("--net={namespace}"), "--".to_owned()];
        Self { host: host.clone(), enter, client, address }
    }

    /// Starts a server. What it prints goes to a file of the lab.
    pub(super) fn spawn(&self, line: &[&str], prints: &str) -> Result<Background> {
        let output = fs::File::create(self.host.file(prints))?;
        self.host.spawn_into(&self.entered(line), output.into(), Stdio::null())
    }

    /// Runs a line of the shell where the servers are, to its end.
    pub(super) fn shell(&self, line: &str) -> Result<()> {
        self.host.output(&self.entered(&["bash", "-c", line])).ok().map(drop)
    }

    fn entered<'a>(&'a self, line: &[&'a str]) -> Vec<&'a str> {
        self.enter.iter().map(String::as_str).chain(line.iter().copied()).collect()
    }

    /// A process that was started before, by its number in the lab.
    pub(super) fn contender(&self, name: &'static str, port: u16, process: u32) -> Result<Contender> {
        // All its threads, whichever of them it has use for.
        let line = ["taskset", "--all-tasks", "--cpu-list", "--pid", SERVER_CPU, &process.to_string()];
        self.host.output(&line).ok()?;
        Ok(Contender { name, port, process, _running: None })
    }

    /// A process in the background.
    pub(super) fn running(&self, name: &'static str, port: u16, running: Background) -> Result<Contender> {
        let process = number_in_lab(&running)?;
        Ok(Contender { _running: Some(running), ..self.contender(name, port, process)? })
    }

    /// How long a server's threads have run.
    pub(super) fn worked(&self, contender: &Contender) -> Result<Duration> {
        let threads = self.host.file(format!("/proc/{}/task", contender.process));
        let mut nanoseconds = 0;
        for thread in fs::read_dir(threads).with_context(|| format!("{} has ended", contender.name))? {
            // The time on the processor comes first: Documentation/scheduler/sched-stats.rst. One that ends is gone.
            let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanoseconds +=
                text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// As the processes of the lab see it.
fn number_in_lab(running: &Background) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
    Ok(numbers.split_whitespace().last().context("no number")?.parse()?)
}
