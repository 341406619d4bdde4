//! Network namespaces: made on a plain thread, kept by a bind mount, entered and left by the calling thread.
//!
//! The files are `RUN_DIR/netns/<network ID>`, as `ip netns` keeps its own in `/run/netns`: the directory is a
//! shared mount of its own, so that a removal reaches mount namespaces that copied it (else those would pin
//! the network namespace).

mod reset;
mod sockets;
mod target;

pub use reset::reset;
pub use sockets::established;
pub use target::TargetNamespace;

use crate::error::{Error, Result};
use mesh_model::NetworkId;
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `f` on the calling thread inside a network namespace, and returns to where the thread was, also when `f`
/// panics. What `f` opens (a socket) belongs to that namespace for good and may be used anywhere.
///
/// Costs four system calls. Never hold it across an `await`: the whole closure runs on this thread.
///
/// # Errors
/// The namespace can't be entered: `namespace` is of another kind, or CAP_SYS_ADMIN is missing.
pub fn within<T>(namespace: impl AsFd, f: impl FnOnce() -> T) -> Result<T> {
    let failed = |doing| move |source: io::Error| Error::Namespace { doing, path: OWN.into(), source };
    let home = File::open(OWN).map_err(failed("opening"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|e| failed("entering a namespace from")(e.into()))?;
    let _way_back = WayBack(home);
    Ok(f())
}

struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
            // A thread left in a foreign namespace would run later work against the wrong kernel state.
            std::process::abort();
        }
    }
}

/// An open network namespace. It lives at least as long as this handle does.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    inode: u64,
}

impl Namespace {
    /// Opens the namespace kept at a path.
    ///
    /// # Errors
    /// Nothing is there, or something that is no namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Namespace { doing: "opening the namespace", path: path.into(), source };
        // A pipe would be waited for.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = file.map_err(|source| match source.raw_os_error() {
            // As a socket answers.
            Some(libc::ENXIO) => Error::NotANamespace { path: path.into() },
            _ => failed(source),
        })?;
        let kind = fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(Error::NotANamespace { path: path.into() });
        }
        let inode = file.metadata().map_err(failed)?.ino();
        Ok(Self { file, inode })
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// Its inode number, which tells it from every other namespace that lives now.
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where the namespaces of overlay networks are kept.
pub fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("netns")
}

/// Where the namespace of one overlay network is kept on this node.
pub fn namespace_of(run_dir: &Path, network: NetworkId) -> PathBuf {
    directory(run_dir).join(network.to_string())
}

/// The networks that have a file here, whether or not a namespace is mounted on it.
///
/// # Errors
/// The directory is there, but can't be read.
pub fn kept(run_dir: &Path) -> Result<Vec<NetworkId>> {
    let path = directory(run_dir);
    let entries = fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    match entries {
        Ok(entries) => {
            Ok(entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        }
        Err(error) if says_gone(&error) => Ok(Vec::new()),
        Err(source) => Err(Error::File { path, source }),
    }
}

/// Whether an error says that a namespace is not there (any more). All others, such as a full table of open files, say only
/// that it could not be looked at now, and what lives is no less alive for it. ESRCH is what `/proc/PID/ns/net` answers
/// once the process has ended but not yet been waited for.
fn says_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR))
}

/// The same of an error of [`Namespace::open`]: what is there may also be no namespace.
pub(crate) fn is_gone(error: &Error) -> bool {
    match error {
        Error::NotANamespace { .. } => true,
        Error::Namespace { source, .. } => says_gone(source),
        _ => false,
    }
}

/// Makes a network namespace and keeps it for a network.
pub(crate) fn create(run_dir: &Path, network: NetworkId) -> Result<Namespace> {
    prepare_directory(run_dir)?;
    let path = namespace_of(run_dir, network);
    let failed =
        |source: io::Error| Error::Namespace { doing: "making the namespace", path: path.clone(), source };
    File::create(&path).map_err(failed)?;
    let kept = on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    if let Err(errno) = kept {
        // Nothing is mounted here, so the file alone is what would be left.
        let _ = fs::remove_file(&path);
        return Err(failed(errno.into()));
    }
    Namespace::open(&path)
}

/// Forgets a namespace: it ends when nobody else (a socket, a process) is in it.
pub(crate) fn remove(run_dir: &Path, network: NetworkId) -> Result<()> {
    let path = namespace_of(run_dir, network);
    let failed =
        |source: io::Error| Error::Namespace { doing: "removing the namespace", path: path.clone(), source };
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file without a mount, ENOENT: neither.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
        _ => {}
    }
    if kept(run_dir)?.is_empty() {
        // The directory's own mount goes with the last namespace; it may be in use, and then it stays.
        let _ = umount2(&directory(run_dir), MntFlags::empty());
    }
    Ok(())
}

/// Makes the directory a shared mount of its own.
fn prepare_directory(run_dir: &Path) -> Result<()> {
    let dir = directory(run_dir);
    let failed = |source: io::Error| Error::Namespace { doing: "preparing", path: dir.clone(), source };
    fs::create_dir_all(&dir).map_err(failed)?;
    let share =
        || mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        // EINVAL: the directory is no mount point yet.
        Err(nix::Error::EINVAL) => {
            mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .and_then(|()| share())
                .map_err(|errno| failed(errno.into()))
        }
        other => other.map_err(|errno| failed(errno.into())),
    }
}

/// Runs `f` on a thread of its own, which ends afterwards in whatever namespace it is in then.
pub(crate) fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(f).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_gone() {
        let error = |errno| Error::Namespace {
            doing: "opening the namespace",
            path: OWN.into(),
            source: io::Error::from_raw_os_error(errno),
        };
        for errno in [libc::ENOENT, libc::ESRCH, libc::ENOTDIR] {
            assert!(is_gone(&error(errno)), "{errno}");
        }
        for errno in
            [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EACCES, libc::EPERM, libc::EINTR, libc::EIO]
        {
            assert!(!is_gone(&error(errno)), "{errno}");
        }
        assert!(is_gone(&Error::NotANamespace { path: "/etc/hostname".into() }));
        assert!(!is_gone(&Error::Socket(io::Error::from_raw_os_error(libc::ENOENT))));
    }

    #[test]
    fn a_directory_that_is_not_there_keeps_nothing_and_one_that_is_a_file_neither() {
        let run_dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(kept(run_dir.path()).expect("readable"), []);
        fs::write(directory(run_dir.path()), "").expect("a file");
        assert_eq!(kept(run_dir.path()).expect("readable"), []);
    }
}
