//! The one file that knows how `mesh-dns` is run: a process of this bench that serves 100,000 names, and swaps its table
//! while a file is there.

use super::{
    peers,
    place::{Contender, Place},
    staleness::keep_swapping,
    zone::Zone,
};
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use mesh_benches::{Size, grown};
use mesh_dns::{Forwarder, ForwarderOptions, HostSockets, Server, Table, View};
use mesh_model::{Balance, Change, Endpoint, Network, Object, Snapshot, Subnet};
use std::{
    env, fs,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

/// Tells a process of this bench where to serve.
pub(super) const TASK: &str = "BENCH_SERVE";
/// 100,000 names that are asked; those of the services' tasks are there as well.
const SIZE: Size = Size { networks: 1, services: 10_000, replicas: 9, on_all_nodes: true };
const PORT: u16 = 53;
/// The file that is there while it is.
const WANTED: &str = "/run/lab/swap";
/// A line for each swap: when its record changed, in microseconds.
const SWAPS: &str = "/run/lab/swaps";
/// Starts the process.
pub(super) fn start(place: &Place, zone: &Zone) -> Result<Contender> {
    let task = format!("{TASK}={}", SocketAddr::from((place.address, PORT)));
    let program = env::current_exe()?;
    let running = place.spawn(&["env", &task, program.to_str().context("this program's path")?], SWAPS)?;
    peers::answers(place, PORT, zone)?;
    place.running("meshd", PORT, running)
}

/// Swaps the table from now on, or no more.
pub(super) fn swap(place: &Place, wanted: bool) -> Result<()> {
    let path = place.host.file(WANTED);
    Ok(if wanted { fs::File::create(path).map(drop) } else { fs::remove_file(path) }?)
}

/// When the record was changed that each swap so far brought.
pub(super) fn swaps(place: &Place) -> Result<Vec<SystemTime>> {
    let text = fs::read_to_string(place.host.file(SWAPS))?;
    let at = |line: &str| Some(UNIX_EPOCH + Duration::from_micros(line.parse().ok()?));
    Ok(text.lines().filter_map(at).collect())
}

/// The names that are asked: services and endpoints.
pub(super) fn zone() -> Result<Zone> {
    let (snapshot, network) = cluster()?;
    let services = snapshot.services.values().map(|s| (&s.name, s.vips(network.id)));
    let endpoints = snapshot.endpoints.values().map(|e| (&e.name, &e.addresses[..]));
    let names = services.chain(endpoints).filter_map(|(name, addresses)| match addresses {
        [IpAddr::V4(address)] => Some((name.to_string(), *address)),
        _ => None,
    });
    Ok(Zone { domain: format!("{}.mesh.internal", network.name), names: names.collect() })
}

/// The name whose address changes with each swap.
pub(super) fn changing() -> Result<String> {
    let (snapshot, network) = cluster()?;
    Ok(format!("{}.{}.mesh.internal", endpoint(&snapshot)?.name, network.name))
}

fn endpoint(snapshot: &Snapshot) -> Result<Arc<Endpoint>> {
    snapshot.endpoints.values().next().cloned().context("no endpoints")
}

/// The same in each process.
fn cluster() -> Result<(Snapshot, Arc<Network>)> {
    let (mut snapshot, _) = grown(SIZE, Balance::Roundrobin);
    let network = snapshot.networks.values().next().context("no network")?;
    // As many addresses as are in use, and those that the changing name will have.
    let cidr = format!("{}/14", network.subnets[0].cidr.network()).parse()?;
    let subnets = vec![Subnet { cidr, ..network.subnets[0].clone() }];
    let network = Arc::new(Network { subnets, ..Network::clone(network) });
    snapshot.apply(Change::Put(Object::Network(network.clone())));
    Ok((snapshot, network))
}

/// Serves until it is killed. Threads and tasks are those of `meshd front`.
pub(super) fn run(task: &str) -> Result<()> {
    let address: SocketAddr = task.parse().context("an address to serve at")?;
    let (snapshot, network) = cluster()?;
    let names = Table::new(&snapshot, network.id).context("the network is there")?;
    let table = Arc::new(ArcSwap::from_pointee(names));
    let server = Server {
        udp: UdpSocket::bind(address)?,
        tcp: TcpListener::bind(address)?,
        view: Arc::new(View::of_network(table.clone())),
        forwarder: Arc::new(Forwarder::new(HostSockets, ForwarderOptions::default())),
        idle: Server::IDLE,
    };
    let changing = endpoint(&snapshot)?;
    let is_wanted = || Path::new(WANTED).exists();
    let swapped = |at: SystemTime| {
        println!("{}", at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros());
    };
    thread::spawn(move || keep_swapping(snapshot, &changing, &table, is_wanted, || false, swapped));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { tokio::spawn(server.run(CancellationToken::new())).await })??;
    Ok(())
}
