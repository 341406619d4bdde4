//! wrk: as many requests as its connections take, running while something happens.

use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::namespace::Namespace;
use crate::probe::within;
use crate::process::Background;

/// Connections of one wrk.
pub const CONNECTIONS: u32 = 4;
/// A pause before each request, in milliseconds: the load is constant, and leaves the machine to others.
const PAUSE: u32 = 10;

/// How wrk uses its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Each for as many requests as the server takes.
    KeepAlive,
    /// Each for one request.
    Close,
}

/// A wrk that runs until it is stopped.
#[derive(Debug)]
pub struct Wrk {
    process: Background,
    output: PathBuf,
}

/// What a [`Wrk`] said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WrkCount {
    /// Requests that were answered.
    pub requests: u64,
    /// Connections that were not made, or broke.
    pub socket_errors: u64,
    /// Answers after more than [`PATIENCE`].
    pub timeouts: u64,
    /// Answers that were no success.
    pub refusals: u64,
}

/// How long an answer may take: a lost packet, or a host that comes back, is none that fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl Wrk {
    /// Starts it. One namespace has one for each URL and way.
    pub fn start(from: &Namespace, url: &str, reuse: Reuse) -> Result<Self> {
        let base = format!("/run/lab/wrk-{}-{}-{reuse:?}", from.name(), url.replace(['/', ':'], "_"));
        let script = format!("{base}.lua");
        fs::write(from.file(&script), format!("function delay() return {PAUSE} end\n"))?;
        let (connections, timeout) = (CONNECTIONS.to_string(), format!("{}s", PATIENCE.as_secs()));
        let mut line = vec!["wrk", "--threads", "1", "--connections", &connections, "--timeout", &timeout];
        line.extend(["--duration", "1h", "--script", &script]);
        if reuse == Reuse::Close {
            line.extend(["--header", "Connection: close"]);
        }
        line.push(url);
        let output = from.file(&base);
        let file = File::create(&output)?;
        let process = from.spawn_into(&line, file.try_clone()?.into(), Stdio::from(file))?;
        Ok(Self { process, output })
    }

    /// Ends it, and what it said. A request without an answer by then is not in it.
    pub fn stop(mut self) -> Result<WrkCount> {
        // It says how it went when it is interrupted.
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(10))?;
        let said = fs::read_to_string(&self.output)?;
        WrkCount::parse(&said).with_context(|| said.clone())
    }
}

impl WrkCount {
    fn parse(said: &str) -> Result<Self> {
        let numbers = |line: &str| -> Vec<u64> {
            line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
        };
        let line = |text: &str| said.lines().find(|line| line.contains(text)).map(numbers);
        let requests = line(" requests in ").and_then(|found| found.first().copied()).context("no count")?;
        let errors = line("Socket errors:").unwrap_or_else(|| vec![0; 4]);
        let [connect, read, write, timeouts] = errors[..] else { anyhow::bail!("another wrk") };
        let refusals = line("Non-2xx").and_then(|found| found.first().copied()).unwrap_or(0);
        Ok(Self { requests, socket_errors: connect + read + write, timeouts, refusals })
    }

    /// Fails if any request did, or if there were hardly any.
    pub fn none_failed(&self) -> Result<()> {
        let failed = self.socket_errors + self.timeouts + self.refusals;
        ensure!(failed == 0 && self.requests > u64::from(CONNECTIONS), "{self}");
        Ok(())
    }
}

impl fmt::Display for WrkCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, socket_errors, timeouts, refusals } = self;
        write!(
            f,
            "{requests} requests, {socket_errors} socket errors, {timeouts} timeouts, {refusals} not 2xx"
        )
    }
}

/// Both ways to use connections, to each of these URLs.
#[derive(Debug)]
pub struct Wrks {
    client: Namespace,
    running: Vec<(String, Wrk)>,
}

impl Wrks {
    /// Starts them.
    pub fn start(client: &Namespace, urls: &[String]) -> Result<Self> {
        let mut running = Vec::new();
        for url in urls {
            for reuse in [Reuse::KeepAlive, Reuse::Close] {
                running.push((format!("{reuse:?} {url}"), Wrk::start(client, url, reuse)?));
            }
        }
        Ok(Self { client: client.clone(), running })
    }

    /// Waits until none of their connections waits for an answer for longer than a second. wrk itself says nothing of
    /// those that never got one.
    pub fn none_hangs(&self, deadline: Duration) -> Result<()> {
        within(deadline, "all connections get answers", || {
            let held = self.client.output(&["ss", "-HtinO"]).ok()?;
            let silent = |line: &&str| {
                let last = line.split_whitespace().find_map(|word| word.strip_prefix("lastrcv:"));
                let waits = line.starts_with("SYN-SENT") || line.contains(" unacked:");
                waits && last.and_then(|last| last.parse::<u32>().ok()).is_none_or(|last| last > 1000)
            };
            let silent: Vec<_> = held.lines().filter(silent).collect();
            ensure!(silent.is_empty(), "{silent:#?}");
            Ok(())
        })
    }

    /// Ends them; what each said, and all together.
    pub fn stop(self) -> Result<WrkCount> {
        let mut all = WrkCount::default();
        for (name, wrk) in self.running {
            let count = wrk.stop().context(name)?;
            all.requests += count.requests;
            all.socket_errors += count.socket_errors;
            all.timeouts += count.timeouts;
            all.refusals += count.refusals;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::WrkCount;

    #[test]
    fn what_wrk_says() {
        let said = "  116 requests in 1.00s, 20.05KB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  \
            Non-2xx or 3xx responses: 5\nRequests/sec:    115.87\n";
        let expected = WrkCount { requests: 116, socket_errors: 6, timeouts: 4, refusals: 5 };
        assert_eq!(WrkCount::parse(said).ok(), Some(expected));
        let well = WrkCount::parse("  116 requests in 1.00s, 20.05KB read\n");
        assert_eq!(well.ok(), Some(WrkCount { requests: 116, ..WrkCount::default() }));
    }
}
