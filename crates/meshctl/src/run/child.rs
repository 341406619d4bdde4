//! The command itself.

use super::{
    kernel,
    program::Program,
    signals::{Received, Signals},
};
use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill, raise},
    unistd::Pid,
};
use std::{io, os::unix::process::ExitStatusExt, process::ExitCode};
use tokio::process::Command;

/// A command that runs.
pub(super) struct Child(tokio::process::Child);

/// Starts it, in the namespaces of this thread.
pub(super) fn spawn(program: &Program<'_>, signals: &Signals) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command.arg0(program.name).args(program.arguments);
    kernel::end_with_parent(&mut command, signals.before);
    command.spawn().map(Child)
}

impl Child {
    /// Waits for its end and passes on signals until then.
    pub(super) async fn wait(mut self, signals: &Signals) -> anyhow::Result<ExitCode> {
        loop {
            // Its ID is free to name another process only once it was waited for.
            let pid = self.0.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
            tokio::select! {
                status = self.0.wait() => {
                    let status = status.context("cannot wait for the command")?;
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                    return Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)));
                }
                received = signals.next() => pass_on(received.context("cannot read signals")?, pid),
            }
        }
    }
}

fn pass_on(received: Received, command: Option<Pid>) {
    if let Some(command) = command.filter(|_| !received.from_terminal) {
        // A failure means that it has just ended: the next turn of the loop says how.
        let _ = kill(command, received.signal);
    }
    if received.signal == Signal::SIGTSTP {
        // A shell waits for the stop of every process of the job. Nothing refuses a signal to oneself.
        let _ = raise(Signal::SIGSTOP);
    }
}

/// The exit code of who was ended by a signal, as of a shell.
pub(super) fn code_of_signal(signal: Signal) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
}
