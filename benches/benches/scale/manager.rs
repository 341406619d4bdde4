//! The `meshd` that is measured.

use anyhow::{Context, Result, ensure};
use mesh_api::Client;
use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::sleep;

/// Ticks of the processor times in `/proc/PID/stat` a second (`USER_HZ`, 100 on Linux's own ABI).
const TICKS: f64 = 100.0;

/// A running `meshd`; killed when dropped.
pub(crate) struct Manager {
    program: String,
    directory: PathBuf,
    process: Child,
}

impl Manager {
    pub(crate) async fn start(program: &str, directory: &str) -> Result<Self> {
        let directory = PathBuf::from(directory);
        let process = spawn(program, &directory)?;
        let manager = Self { program: program.to_owned(), directory, process };
        manager.answers().await?;
        Ok(manager)
    }

    /// Kills it as a crash would, and starts it again.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.program, &self.directory)?;
        self.answers().await
    }

    pub(crate) fn api(&self) -> Client {
        Client::new(self.directory.join("run/meshd.sock"))
    }

    async fn answers(&self) -> Result<()> {
        for _ in 0..1000 {
            if self.api().status().await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("meshd does not answer: see {}", self.directory.join("log").display())
    }

    /// Memory in bytes: now, and the most so far.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Processor time used so far.
    pub(crate) fn processor(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name in parentheses may hold anything; after it comes field 3. User and system time are 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        ensure!(fields.len() > 12, "too few fields in {stat}");
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.process.kill());
    }
}

fn spawn(program: &str, directory: &std::path::Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(directory.join("data")).arg("--run-dir").arg(directory.join("run"));
    command.args(["--name", "vm1", "--log-level", "warn"]);
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}
