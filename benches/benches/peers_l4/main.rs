//! A published TCP port: from a client on the LAN through a host to a server on another. meshd's ports, beside the server
//! asked directly, containers on meshd's overlay, HAProxy, Envoy, nginx and iptables. Throughput, processor time of the whole
//! machine for each GiB, connections and round trips, interleaved in rounds; and what 1 to 10,000 published ports cost.
//! `scripts/bench-peers l4` runs it.

mod envoy;
mod haproxy;
mod mesh;
mod netfilter;
mod nginx;
#[path = "../kernel/passes.rs"]
mod passes;
mod place;
mod ports;
mod rate;
mod rounds;
#[path = "../peers_overlay/traffic.rs"]
mod traffic;

use anyhow::{Result, ensure};
use mesh_tests::{Background, Lab, Namespace};
use place::Place;
use rounds::Effort;
use std::{env, net::Ipv4Addr};
use traffic::first_line;

/// A client and a server, and where the client finds it.
struct Contender {
    name: &'static str,
    client: Namespace,
    server: Namespace,
    address: Ipv4Addr,
    /// What is between them, unless it is the kernel. Ends when this is dropped.
    _proxy: Option<Background>,
}

fn main() -> Result<()> {
    let number = |name, default| env::var(name).map_or(Ok(default), |text| text.parse::<u64>());
    let rounds = usize::try_from(number("BENCH_ROUNDS", 5)?)?;
    let effort = Effort { rounds, seconds: number("BENCH_SECONDS", 3)? };
    println!("{}", versions());
    let lab = Lab::new("peers-l4")?;
    let place = Place::new(&lab)?;
    let mesh = mesh::Mesh::start(&lab)?;
    let mut contenders = vec![place.direct()];
    contenders.extend(mesh.contenders(&place)?);
    contenders.push(haproxy::start(&place, haproxy::Splice::Never)?);
    contenders.push(haproxy::start(&place, haproxy::Splice::Auto)?);
    contenders.push(envoy::start(&place)?);
    contenders.push(nginx::start(&place)?);
    contenders.push(netfilter::start(&place)?);
    let _servers = rounds::serve(&contenders)?;
    let mut misses = rounds::compare(&contenders, effort)?;
    // The proxies end.
    drop(contenders);
    misses.extend(ports::measure(&mesh, &place, effort)?);
    ensure!(misses.is_empty(), "not as it should be:\n{}", misses.join("\n"));
    Ok(())
}

/// Whose figures these are.
fn versions() -> String {
    let envoy = first_line("envoy", "--version");
    format!(
        "meshd {}, Linux {}, {}, {}, Envoy {}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        first_line("uname", "-r"),
        first_line("iperf3", "--version"),
        first_line("haproxy", "-v"),
        // COMMIT/1.40.0/Clean/RELEASE/BoringSSL
        envoy
            .split('/')
            .find(|part| part.starts_with(|c: char| c.is_ascii_digit()) && part.contains('.'))
            .unwrap_or_default(),
        first_line("nginx", "-v"),
        first_line("iptables", "--version"),
    )
}
