//! Commands that ran and processes that run, inside a lab.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::probe::within;

/// A command that ended: what it was, how it ended, what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` if a signal ended it, or if it could not be started.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error; the reason, if it could not be started.
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end. A command that can't be started is an outcome too, so that a test says what failed
    /// at the place where it looks.
    pub(crate) fn of(mut command: Command, line: String) -> Self {
        match command.stdin(Stdio::null()).output() {
            Ok(output) => Self {
                command: line,
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(err) => Self { command: line, code: None, stdout: String::new(), stderr: err.to_string() },
        }
    }

    /// Standard output without the final line end, of a command that must have exited 0.
    pub fn ok(&self) -> Result<String> {
        ensure!(self.code == Some(0), "{}", self.describe());
        Ok(self.stdout.trim_end().to_owned())
    }

    /// Standard output as JSON, of a command that must have exited 0.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.ok()?).with_context(|| format!("no JSON: {}", self.describe()))
    }

    /// The command was refused as the contract says: exit code 1, nothing on standard output, one line on standard
    /// error that contains `text` (letter case aside).
    pub fn refused(&self, text: &str) -> Result<()> {
        ensure!(self.code == Some(1), "expected exit code 1: {}", self.describe());
        ensure!(self.stdout.is_empty(), "expected no output: {}", self.describe());
        ensure!(self.stderr.trim_end().lines().count() == 1, "expected one line: {}", self.describe());
        let said = self.stderr.to_lowercase();
        ensure!(said.contains(&text.to_lowercase()), "expected `{text}`: {}", self.describe());
        Ok(())
    }

    fn describe(&self) -> String {
        let code = self.code.map_or("no exit code".to_owned(), |code| format!("exit code {code}"));
        format!("`{}`: {code}\n  stdout: {}\n  stderr: {}", self.command, self.stdout, self.stderr)
    }
}

/// A process in the background, killed when dropped.
#[derive(Debug)]
pub struct Background {
    /// `nsenter`, which waits for the process and passes on how it ended.
    entered: Child,
    pid: Pid,
    command: String,
}

impl Background {
    /// Starts `command`, an `nsenter` into a PID namespace.
    pub(crate) fn start(mut command: Command, line: String) -> Result<Self> {
        let mut entered = command.stdin(Stdio::null()).spawn().with_context(|| format!("start `{line}`"))?;
        let pid = match within(Duration::from_secs(10), "the process is entered", || {
            first_child(entered.id()).context("no child yet")
        }) {
            Ok(pid) => pid,
            Err(_) => {
                let _ = entered.kill();
                bail!("`{line}` could not be started: {:?}", entered.wait()?);
            }
        };
        Ok(Self { entered, pid, command: line })
    }

    /// The process, as the test sees it (the lab has numbers of its own).
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The process's only child, as the test sees it: the command of a `meshctl run`.
    pub fn child(&self) -> Result<Pid> {
        within(Duration::from_secs(10), "the process has a child", || {
            first_child(self.pid.as_raw().cast_unsigned())
                .with_context(|| format!("`{}` has none", self.command))
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("{signal} to `{}`", self.command))
    }

    /// Lets it go on after a SIGSTOP: itself, and `nsenter`, which stops with it.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        kill(Pid::from_raw(self.entered.id().cast_signed()), Signal::SIGCONT).context("SIGCONT to nsenter")
    }

    /// Waits for the end, at most as long as `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let Self { entered, command, .. } = self;
        within(deadline, "the process ends", || {
            entered.try_wait()?.with_context(|| format!("`{command}` runs"))
        })
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.entered.try_wait()?.is_none() {
            self.signal(Signal::SIGKILL)?;
            self.entered.wait()?;
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits, at most as long as `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.entered.try_wait()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(deadline)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Gone already, or the lab is: nothing to end.
        let _ = self.kill();
    }
}

/// The first child of a process, whichever of its threads started it.
pub(crate) fn first_child(pid: u32) -> Option<Pid> {
    fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().find_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    })
}

/// What a process holds in memory, in kilobytes; `process` is its number, or `self`.
pub fn resident(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
