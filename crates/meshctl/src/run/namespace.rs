//! Namespaces of the command.

use super::kernel;
use anyhow::Context;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Moves this thread, the only one, into a network namespace and a mount namespace of its own, with `lo` up.
///
/// What the host mounts later still arrives here; what is mounted here never leaves (`MS_SLAVE`).
pub(super) fn enter() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|error| match error {
        Errno::EPERM => anyhow::anyhow!("run makes namespaces: it needs root (CAP_SYS_ADMIN)"),
        error => anyhow::anyhow!("cannot make a network namespace: {error}"),
    })?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context("cannot keep mounts of the command to itself")?;
    kernel::loopback_up().context("cannot bring up the loopback interface")
}
