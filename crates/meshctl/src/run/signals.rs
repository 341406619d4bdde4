//! Signals that are meant for the command.

use super::kernel;
use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use std::io;
use tokio::io::unix::AsyncFd;

/// What is passed on.
const FORWARDED: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];

/// The signals, blocked from now on, so that none is lost or ends this process before the command runs.
pub(super) struct Blocked {
    fd: SignalFd,
    before: SigSet,
}

/// The signals, one after the other.
pub(super) struct Signals {
    fd: AsyncFd<SignalFd>,
    /// The mask that the command gets.
    pub(super) before: SigSet,
}

/// One signal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) signal: Signal,
    /// Sent by the kernel to the whole foreground process group (a key on the terminal, its size, its end): the
    /// command has it already.
    pub(super) from_terminal: bool,
}

impl Blocked {
    pub(super) fn new() -> nix::Result<Self> {
        let set = SigSet::from_iter(FORWARDED);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?, before })
    }

    /// Must be called within the runtime.
    pub(super) fn listen(self) -> io::Result<Signals> {
        Ok(Signals { fd: kernel::registered(self.fd)?, before: self.before })
    }
}

impl Signals {
    pub(super) async fn next(&self) -> io::Result<Received> {
        let read = |fd: &AsyncFd<SignalFd>| {
            let info = fd.get_ref().read_signal()?.ok_or(io::ErrorKind::WouldBlock)?;
            let signal = Signal::try_from(info.ssi_signo.cast_signed())?;
            Ok(Received { signal, from_terminal: info.ssi_code == libc::SI_KERNEL })
        };
        loop {
            if let Ok(received) = self.fd.readable().await?.try_io(read) {
                return received;
            }
        }
    }

    /// Waits for a signal that would end this process.
    pub(super) async fn asked_to_end(&self) -> io::Result<Signal> {
        loop {
            let signal = self.next().await?.signal;
            if matches!(signal, Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM) {
                return Ok(signal);
            }
        }
    }
}
