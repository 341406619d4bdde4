//! What is printed: tables that can be published as they are.

use crate::{
    fleet::{Fleet, Told},
    manager::Manager,
};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// One phase of the run.
pub(crate) struct Row {
    name: String,
    began: Instant,
    processor: Duration,
    bytes: u64,
}

/// One that ended.
pub(crate) struct Phase {
    name: String,
    took: Duration,
    processor: Duration,
    memory: (u64, u64),
    bytes: u64,
}

impl Row {
    /// `bytes`: what agents were sent so far.
    pub(crate) fn begin(name: &str, manager: &Manager, bytes: u64) -> Result<Self> {
        Ok(Self { name: name.to_owned(), began: Instant::now(), processor: manager.processor()?, bytes })
    }

    /// Of a manager that was started for it.
    pub(crate) fn begin_anew(name: &str, began: Instant, bytes: u64) -> Self {
        Self { name: name.to_owned(), began, processor: Duration::ZERO, bytes }
    }

    pub(crate) fn end(self, manager: &Manager, bytes: u64) -> Result<Phase> {
        let took = self.began.elapsed();
        let processor = manager.processor()? - self.processor;
        Ok(Phase { name: self.name, took, processor, memory: manager.memory()?, bytes: bytes - self.bytes })
    }
}

/// What is aimed at, for 1,000 agents: the slowest hundredth of changes, a return of all, and the manager's memory.
const CHANGE: Duration = Duration::from_secs(1);
const STORM: Duration = Duration::from_secs(30);
const MEMORY: u64 = 1 << 30;

#[derive(Default)]
pub(crate) struct Report {
    phases: Vec<String>,
    changes: Vec<String>,
    slowest_change: Duration,
    slowest_storm: Duration,
    peak: u64,
}

impl Report {
    pub(crate) fn phase(&mut self, phase: &Phase) {
        let (now, peak) = phase.memory;
        self.peak = self.peak.max(peak);
        let line = format!(
            "| {} | {:.2} s | {:.2} s | {} | {} | {} |",
            phase.name,
            phase.took.as_secs_f64(),
            phase.processor.as_secs_f64(),
            size(phase.bytes),
            size(now),
            size(peak)
        );
        eprintln!("{line}");
        self.phases.push(line);
    }

    /// A phase in which all agents come back at once.
    pub(crate) fn storm(&mut self, phase: &Phase) {
        self.slowest_storm = self.slowest_storm.max(phase.took);
        self.phase(phase);
    }

    /// Whether all that is aimed at was reached.
    pub(crate) fn aims(&self) -> Result<()> {
        ensure!(self.slowest_change < CHANGE, "a change took {:?}", self.slowest_change);
        ensure!(self.slowest_storm < STORM, "agents came back in {:?}", self.slowest_storm);
        ensure!(self.peak < MEMORY, "the manager had {}", size(self.peak));
        Ok(())
    }

    pub(crate) fn changes(&mut self, who: &str, told: &[Told]) {
        let mut last: Vec<Duration> = told.iter().map(|t| t.last).collect();
        last.sort_unstable();
        let bytes = told.iter().map(|t| t.bytes).sum::<u64>() / told.len() as u64;
        let at = |part: f64| last[((last.len() - 1) as f64 * part).round() as usize];
        self.slowest_change = self.slowest_change.max(at(0.99));
        let at = |part: f64| at(part).as_secs_f64() * 1000.0;
        let line = format!(
            "| {who} | {:.1} ms | {:.1} ms | {:.1} ms | {} |",
            at(0.5),
            at(0.99),
            at(1.0),
            size(bytes)
        );
        eprintln!("{line}");
        self.changes.push(line);
    }

    pub(crate) fn print(&self, fleet: &Fleet) {
        println!(
            "\n| phase | time | manager's CPU | sent to agents | memory | peak |\n|---|---:|---:|---:|---:|---:|"
        );
        self.phases.iter().for_each(|line| println!("{line}"));
        println!(
            "\n| a change that | last agent p50 | p99 | max | bytes, all agents |\n|---|---:|---:|---:|---:|"
        );
        self.changes.iter().for_each(|line| println!("{line}"));
        println!("\nConnections that failed and were tried again: {}", fleet.failures());
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}
