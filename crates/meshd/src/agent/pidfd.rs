//! Waits for the end of a process that is no child of ours (pidfd_open(2)).

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use tokio::io::{Interest, unix::AsyncFd};

/// Returns when a process has ended, at once if there is none. Should its number be another process's by now, the
/// data plane tells by the namespace.
pub(super) async fn process_end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    if let Some(fd) = register(fd) {
        // Readable means ended; an error means that nobody will ever tell.
        drop(fd.readable().await);
    }
}

#[allow(unsafe_code)]
fn register(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is an open descriptor for as long as it lives, and the AsyncFd owns it until both end.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
}
