//! What the kernel data plane costs a node as the cluster grows: the first pass of a daemon that finds nothing, one
//! backend that leaves, a pass that repairs what others changed, and memory. In network and mount namespaces of this
//! process; needs root.
//!
//! `cargo bench --package mesh-benches --bench kernel`

use anyhow::{Context, Result, ensure};
use mesh_benches::{cluster, measure::Samples};
use mesh_model::{Change, Endpoint, EndpointId, Key, MacAddr, NodeId, Object, Service, ServiceId, Snapshot};
use mesh_net::{Config, DataPlane, Pass};
use mesh_tests::process::resident;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    thread,
    time::Instant,
};

/// Services, each with so many replicas on other nodes.
const SIZES: [u32; 3] = [100, 1_000, 10_000];
const REPLICAS: u32 = 3;
const CHANGES: usize = 20;

fn main() -> Result<()> {
    println!(
        "one network, {REPLICAS} replicas a service, all on other nodes; milliseconds: median (least–most)"
    );
    println!(
        "| services | endpoints | first pass | {:<22} | {:<22} | memory of the process |",
        "one backend leaves", "full pass, no change"
    );
    println!("|---|---|---|---|---|---|");
    for services in SIZES {
        // Each in namespaces of its own, which end with the thread.
        let row = thread::spawn(move || row(services)).join();
        println!("{}", row.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    Ok(())
}

fn row(services: u32) -> Result<String> {
    let run_dir = host()?;
    let (mut snapshot, me) = grown(services)?;
    let mut plane = DataPlane::new(Config { run_dir, me })?;
    let mut pass = |snapshot: &Snapshot, pass| {
        let start = Instant::now();
        let report = plane.reconcile(snapshot, pass);
        ensure!(report.failures.is_empty(), "{:?}", report.failures);
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let first = pass(&snapshot, Pass::Full)?;
    let (mut changed, mut full) = (Samples::default(), Samples::default());
    let backends: Vec<Arc<Endpoint>> = snapshot.endpoints.values().take(CHANGES).cloned().collect();
    for backend in backends {
        let drained = Endpoint { draining: true, ..Endpoint::clone(&backend) };
        snapshot.apply(Change::Put(Object::Endpoint(Arc::new(drained))));
        changed.push(pass(&snapshot, Pass::Changed)?);
    }
    for _ in 0..5 {
        full.push(pass(&snapshot, Pass::Full)?);
    }
    let (changed, full) = (changed.to_string(), full.to_string());
    let (endpoints, memory) = (snapshot.endpoints.len(), resident("self")?);
    Ok(format!(
        "| {services} | {endpoints} | {first:.0} | {changed:<22} | {full:<22} | {:.0} MB |",
        memory as f64 / 1024.0
    ))
}

/// Namespaces that stand for a host: an interface with the node's address, and a place for the overlay's namespaces.
fn host() -> Result<std::path::PathBuf> {
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
    Ok("/run/mesh".into())
}

/// A cluster of so many services. What the rules of a manager made of one is repeated: to ask them for thousands takes
/// long, and they are not what is measured.
fn grown(services: u32) -> Result<(Snapshot, NodeId)> {
    let (mut snapshot, me) = cluster(1);
    let one = snapshot.services.values().next().cloned().context("a service")?;
    let replica = snapshot.endpoints.values().find(|e| e.node != me).cloned().context("a replica")?;
    let others: Vec<NodeId> = snapshot.nodes.keys().copied().filter(|node| *node != me).collect();
    let endpoints = snapshot.endpoints.keys().map(|id| Key::Endpoint(*id));
    let all: Vec<Key> = endpoints.chain([Key::Service(one.id)]).collect();
    all.into_iter().for_each(|key| snapshot.apply(Change::Delete(key)));
    let mut address = u32::from(Ipv4Addr::new(10, 128, 1, 0));
    let mut next = || {
        address += 1;
        IpAddr::from(Ipv4Addr::from_bits(address))
    };
    for number in 0..services {
        let mut service = Service { id: ServiceId::from_bits(u64::from(number) + 1), ..Service::clone(&one) };
        service.name = format!("service{number}").parse().map_err(|e| anyhow::anyhow!("{e}"))?;
        service.networks[0].vips = vec![next()];
        if number > 0 {
            service.ports.clear();
        }
        for replica_number in 0..REPLICAS {
            let bits = u64::from(number * REPLICAS + replica_number) + 1;
            let endpoint = Endpoint {
                id: EndpointId::from_bits(bits.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                name: format!("web{bits}").parse().map_err(|e| anyhow::anyhow!("{e}"))?,
                node: others[replica_number as usize % others.len()],
                addresses: vec![next()],
                mac: MacAddr::endpoint(bits),
                service: Some(service.id),
                ..Endpoint::clone(&replica)
            };
            snapshot.apply(Change::Put(Object::Endpoint(Arc::new(endpoint))));
        }
        snapshot.apply(Change::Put(Object::Service(Arc::new(service))));
    }
    Ok((snapshot, me))
}
