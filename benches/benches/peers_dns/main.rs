//! Name servers with the same names, asked over the same path: meshd's, unbound, dnsmasq and aardvark-dns. What a query
//! costs the server's process, how many it answers and how late, interleaved in rounds; the same once more with 100,000
//! names; and meshd's while its table is swapped all the time. `scripts/bench-peers dns` runs it.

mod asking;
mod mesh;
mod ours;
mod peers;
mod place;
mod rounds;
#[path = "../../../crates/mesh-dns/tests/dns/staleness.rs"]
mod staleness;
mod swaps;
mod zone;

use anyhow::{Result, ensure};
use mesh_tests::Lab;
use place::Place;
use rounds::{Effort, compare};
use std::{env, process::Command};

fn main() -> Result<()> {
    if let Ok(task) = env::var(ours::TASK) {
        return ours::run(&task);
    }
    let number = |name, default| env::var(name).map_or(Ok(default), |text| text.parse::<u64>());
    let rounds = usize::try_from(number("BENCH_ROUNDS", 5)?)?;
    let effort = Effort { rounds, seconds: number("BENCH_SECONDS", 3)? };
    println!("{}", versions());
    println!(
        "{rounds} interleaved rounds of {} s: median (least–most); ratios to unbound, round by round.",
        effort.seconds
    );
    println!(
        "Each server is kept on one processor, dnsperf on the other. CPU: of the server's process alone."
    );
    let misses = [beside_peers(effort)?, many_names(effort)?].concat();
    ensure!(misses.is_empty(), "not as it should be:\n{}", misses.join("\n"));
    Ok(())
}

/// The process that serves a real network's names.
fn beside_peers(effort: Effort) -> Result<Vec<String>> {
    let lab = Lab::new("peers-dns")?;
    let mesh = mesh::Mesh::start(&lab)?;
    let contenders = [
        mesh.contender(),
        peers::unbound(&mesh.place, &mesh.zone),
        peers::dnsmasq(&mesh.place, &mesh.zone),
        peers::aardvark(&mesh.place, &mesh.zone),
    ];
    compare("meshd front, at a network's gateway", &mesh.place, &mesh.zone, &contenders, effort)
}

/// The server alone, in a process of this bench: a real cluster of this size takes too long to make.
fn many_names(effort: Effort) -> Result<Vec<String>> {
    let lab = Lab::new("peers-dns-many")?;
    let place = Place::on_the_lan(&lab)?;
    let zone = ours::zone()?;
    let contenders =
        [ours::start(&place, &zone), peers::unbound(&place, &zone), peers::dnsmasq(&place, &zone)];
    let mut misses = compare("mesh-dns alone", &place, &zone, &contenders, effort)?;
    let [ours, ..] = contenders;
    misses.extend(swaps::measure(&place, &zone, &ours?, effort)?);
    Ok(misses)
}

/// Whose figures these are.
fn versions() -> String {
    let line_with = |program: &str, argument: &str, part: &str| {
        let output = Command::new(program).arg(argument).output();
        let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let line =
            output.ok().and_then(|text| text.lines().find(|line| line.contains(part)).map(str::to_owned));
        line.unwrap_or_default()
    };
    let dnsmasq = line_with("dnsmasq", "--version", "version");
    format!(
        "meshd {}, Linux {}, unbound {}, {}, {}, dnsperf {}",
        env!("CARGO_PKG_VERSION"),
        line_with("uname", "-r", ""),
        line_with("unbound", "-V", "Version").trim_start_matches("Version "),
        dnsmasq.split("  ").next().unwrap_or_default(),
        line_with(peers::AARDVARK, "--version", ""),
        line_with("dnsperf", "-h", "Version").trim_start_matches("Version "),
    )
}
