//! Passes of a data plane alone, in network and mount namespaces of this process. Other benches take this file by its path.

use anyhow::{Context, Result, ensure};
use mesh_benches::measure::Samples;
use mesh_model::{Change, Endpoint, NodeId, Object, Snapshot};
use mesh_net::{Config, DataPlane, Pass};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{path::PathBuf, process::Command, sync::Arc, thread, time::Instant};

/// Runs something in namespaces that end with it.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Milliseconds of a pass, and of what follows it.
pub(super) fn timed(plane: &mut DataPlane, snapshot: &Snapshot, pass: Pass) -> Result<[f64; 2]> {
    let snapshot = Arc::new(snapshot.clone());
    let start = Instant::now();
    let report = plane.reconcile(&snapshot, pass);
    let reported = start.elapsed();
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    plane.settle();
    let settled = start.elapsed() - reported;
    Ok([reported, settled].map(|time| time.as_secs_f64() * 1e3))
}

/// Backends that leave one after the other: milliseconds of each pass, and of what follows them.
pub(super) fn backends_leave(
    plane: &mut DataPlane,
    snapshot: &mut Snapshot,
    count: usize,
) -> Result<[Samples; 2]> {
    let [mut changed, mut forgotten] = [(); 2].map(|()| Samples::default());
    let backends: Vec<Arc<Endpoint>> = snapshot.endpoints.values().take(count).cloned().collect();
    for backend in backends {
        let drained = Endpoint { draining: true, ..Endpoint::clone(&backend) };
        snapshot.apply(Change::Put(Object::Endpoint(Arc::new(drained))));
        let [reported, settled] = timed(plane, snapshot, Pass::Changed)?;
        changed.push(reported);
        forgotten.push(settled);
    }
    Ok([changed, forgotten])
}

/// Makes namespaces of the calling thread that stand for a host: an interface with the node's address, and a place for the
/// overlay's namespaces.
pub(super) fn config(me: NodeId) -> Result<Config> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .context("root is needed")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    // /proc/sys is that of the network namespace whoever looks is in.
    for line in
        ["link set lo up", "link add eth0 type veth peer name lan", "address add 192.0.2.1/24 dev eth0"]
            .into_iter()
            .chain(["link set eth0 up", "link set lan up"])
    {
        ensure!(Command::new("ip").args(line.split(' ')).status()?.success(), "ip {line}");
    }
    Ok(Config { run_dir: PathBuf::from("/run/mesh"), me, queries: None })
}
