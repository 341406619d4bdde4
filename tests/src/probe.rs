//! Probing until a deadline, and probes that run across events.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::namespace::Namespace;
use crate::process::Background;

/// The pause between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Tries `probe` until it succeeds and returns what it found; at the deadline, fails with its last error.
pub fn within<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(found) => return Ok(found),
            Err(err) if start.elapsed() >= deadline => {
                return Err(err.context(format!("not within {deadline:?}: {what}")));
            }
            Err(_) => thread::sleep(PROBE_INTERVAL),
        }
    }
}

/// Checks how often each answer came: exactly as told, and no other answers.
pub fn shares(answers: &BTreeMap<String, usize>, expected: &[(&str, usize)]) -> Result<()> {
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|&(answer, count)| (answer.to_owned(), count)).collect();
    ensure!(*answers == expected, "answers {answers:?}, expected {expected:?}");
    Ok(())
}

/// Checks that only these answers came, however often.
pub fn only(answers: &BTreeMap<String, usize>, allowed: &[&str]) -> Result<()> {
    let others = answers.keys().filter(|answer| !allowed.contains(&answer.as_str())).count();
    ensure!(others == 0, "answers {answers:?}, expected only {allowed:?}");
    Ok(())
}

/// A `ping` every 10 ms, running while something happens.
#[derive(Debug)]
pub struct Ping {
    process: Background,
    output: PathBuf,
}

/// What a [`Ping`] saw.
#[derive(Debug, Clone, Copy)]
pub struct PingCount {
    /// Requests sent.
    pub sent: u32,
    /// Replies that came.
    pub received: u32,
    /// Requests without a reply. The very last one is left out if it was still under way.
    pub lost: u32,
}

impl Ping {
    /// Starts it and waits for the first reply.
    pub fn start(from: &Namespace, target: &str) -> Result<Self> {
        let output = from.file(format!("/run/lab/ping-{}-{target}", from.name()));
        let line = ["ping", "-n", "-i", "0.01", target];
        let process = from.spawn_into(&line, File::create(&output)?.into(), Stdio::null())?;
        let ping = Self { process, output };
        within(Duration::from_secs(10), "the first ping is answered", || ping.last_reply().map(|_| ()))?;
        Ok(ping)
    }

    /// Lets at least `count` more requests be answered.
    pub fn go_on(&self, count: u32) -> Result<()> {
        let from = self.last_reply()?;
        within(Duration::from_secs(60), "pings go on", || {
            let last = self.last_reply()?;
            ensure!(last >= from + count, "{} of {count}", last - from);
            Ok(())
        })
    }

    /// Ends it and counts.
    pub fn stop(mut self) -> Result<PingCount> {
        // SIGINT makes ping print its count.
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(10))?;
        let last = self.last_reply()?;
        let said = fs::read_to_string(&self.output)?;
        let count = said
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .context("ping printed no count")?;
        let numbers: Vec<u32> = count.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (sent, received) = (numbers[0], numbers[1]);
        let under_way = u32::from(last + 1 == sent);
        Ok(PingCount { sent, received, lost: sent.saturating_sub(received + under_way) })
    }

    /// The highest sequence number that was answered. ping counts from 1.
    fn last_reply(&self) -> Result<u32> {
        let said = fs::read_to_string(&self.output)?;
        let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
        said.lines().filter_map(sequence).max().with_context(|| format!("no reply: {said}"))
    }
}

/// Requests one after the other, running while something happens.
#[derive(Debug)]
pub struct Load {
    process: Background,
    output: PathBuf,
    stop: PathBuf,
}

impl Load {
    /// Starts asking `url`, each time on a new connection, and waits for the first answer.
    pub fn start(from: &Namespace, url: &str) -> Result<Self> {
        // An answer that is lost never comes; on a machine that reads programs from a busy disk, some come late.
        Self::repeat(from, &url.replace(['/', ':'], "_"), &format!("curl -fsS --max-time 20 '{url}'"))
    }

    /// Starts a command of the shell again and again, each time to print an answer, and waits for the first.
    pub fn repeat(from: &Namespace, name: &str, command: &str) -> Result<Self> {
        let base = format!("/run/lab/load-{}-{name}", from.name());
        let script = format!(
            "while [[ ! -e {base}.stop ]]; do {command} 2>&1 || echo \"failed at $(date +%T.%N)\"; done"
        );
        let (output, stop) = (from.file(&base), from.file(format!("{base}.stop")));
        if stop.exists() {
            fs::remove_file(&stop)?;
        }
        let process =
            from.spawn_into(&["bash", "-c", &script], File::create(&output)?.into(), Stdio::null())?;
        let load = Self { process, output, stop };
        within(Duration::from_secs(10), "the first request is answered", || {
            ensure!(load.answered()? > 0, "no answer yet");
            Ok(())
        })?;
        Ok(load)
    }

    /// How many requests have been answered so far, failures among them.
    pub fn answered(&self) -> Result<usize> {
        Ok(fs::read_to_string(&self.output)?.lines().count())
    }

    /// Lets at least `count` more requests be answered.
    pub fn go_on(&self, count: usize) -> Result<()> {
        let from = self.answered()?;
        within(Duration::from_secs(60), "requests go on", || {
            let answered = self.answered()? - from;
            ensure!(answered >= count, "{answered} of {count}");
            Ok(())
        })
    }

    /// Ends it after the request under way; how often each answer came. What failed is an answer like
    /// `curl: (7) …`.
    pub fn stop(mut self) -> Result<BTreeMap<String, usize>> {
        File::create(&self.stop)?;
        self.process.wait(Duration::from_secs(10))?;
        let mut counts = BTreeMap::new();
        for answer in fs::read_to_string(&self.output)?.lines() {
            *counts.entry(answer.to_owned()).or_default() += 1;
        }
        Ok(counts)
    }
}
