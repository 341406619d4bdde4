//! The unsafe parts: an ioctl that nix has no wrapper for, a descriptor for the runtime to watch, and what happens
//! between fork and exec.

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::SignalFd,
        socket::{AddressFamily, SockFlag, SockType, socket},
    },
    unistd::{getpid, getppid},
};
use std::{io, os::fd::AsRawFd};
use tokio::{io::unix::AsyncFd, process::Command};

/// Brings `lo` of this network namespace up (netdevice(7), SIOCSIFFLAGS).
pub(super) fn loopback_up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as libc::c_short };
    let request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(done).map(drop)
}

/// A descriptor of signals that the runtime waits for.
pub(super) fn registered(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a SignalFd owns its descriptor, gives no way to change it, and closes it only when dropped.
    Ok(unsafe { AsyncFd::register(signals) }?)
}

/// The command ends (SIGTERM) when the thread that spawns it does, and gets this signal mask.
pub(super) fn end_with_parent(command: &mut Command, mask: SigSet) {
    let parent = getpid();
    let before_exec = move || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        mask.thread_set_mask()?;
        // Had the parent ended before the first line, nothing would tell.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: prctl, sigprocmask and getppid are async-signal-safe, and nothing allocates.
    unsafe { command.pre_exec(before_exec) };
}
