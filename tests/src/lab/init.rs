//! The first process of a lab, which holds its PID and mount namespaces.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::process::{Outcome, first_child};

/// The script that makes a lab; `scripts/demo` uses the same.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib/lab.sh");

/// The running init of a lab. It reads from a pipe that only this process holds: when the test ends, however it ends,
/// the pipe closes, init exits, and the kernel ends every process of the lab.
#[derive(Debug)]
pub(crate) struct Init {
    unshare: Mutex<Child>,
    pid: Pid,
}

impl Init {
    pub(crate) fn start() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("labs need root (CAP_SYS_ADMIN and CAP_NET_ADMIN, for namespaces): run the tests as root");
        }
        let mut unshare = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
                "--",
            ])
            .args([SCRIPT, "init", "attached"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start unshare (util-linux)")?;
        let mut said = String::new();
        let stdout = unshare.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let pid = first_child(unshare.id());
        match (said.trim_end(), pid) {
            ("ready", Some(pid)) => Ok(Self { unshare: Mutex::new(unshare), pid }),
            _ => {
                drop(unshare.stdin.take());
                let mut why = String::new();
                unshare.stderr.take().context("stderr is piped")?.read_to_string(&mut why)?;
                unshare.wait()?;
                bail!(
                    "no lab without CAP_SYS_ADMIN and CAP_NET_ADMIN (run the tests as root): {}",
                    why.trim_end()
                );
            }
        }
    }

    /// The init process, as the test sees it.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// A file of the lab, seen from the test.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap_or(path))
    }

    /// One verb of the lab's script, inside.
    pub(crate) fn script(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.args([&format!("--target={}", self.pid), "--mount", "--pid", "--", SCRIPT]).args(arguments);
        Outcome::of(command, format!("lab.sh {}", arguments.join(" "))).ok()?;
        Ok(())
    }

    /// Ends every process of the lab and waits until they are gone.
    pub(crate) fn end(&self) {
        // Errors mean that it has ended already.
        let _ = kill(self.pid, Signal::SIGKILL);
        if let Ok(mut unshare) = self.unshare.lock() {
            let _ = unshare.wait();
        }
    }
}
