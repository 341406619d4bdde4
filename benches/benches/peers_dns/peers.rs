//! Name servers that people use, with a zone as their own data: nothing is forwarded, logged or validated.

use super::{
    place::{Contender, Place},
    zone::{REVERSE, Zone},
};
use anyhow::{Context, Result, ensure};
use mesh_tests::within;
use std::{collections::BTreeSet, fmt::Write, fs, time::Duration};

/// Debian's has no command.
pub(super) const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";
const UNBOUND_PORT: u16 = 5301;
const DNSMASQ_PORT: u16 = 5302;
const AARDVARK_PORT: u16 = 5303;
/// How long one may take to read its names.
const STARTS: Duration = Duration::from_secs(60);

pub(super) fn unbound(place: &Place, zone: &Zone) -> Result<Contender> {
    let (address, domain) = (place.address, &zone.domain);
    let mut config = format!(
        "server:
  interface: {address}@{UNBOUND_PORT}
  access-control: 0.0.0.0/0 allow
  num-threads: 1
  do-daemonize: no
  chroot: \"\"
  username: \"\"
  pidfile: \"\"
  use-syslog: no
  logfile: /dev/null
  verbosity: 0
  statistics-interval: 0
  module-config: iterator
  local-zone: {domain}. static
  local-data: '{domain}. 5 SOA mesh.internal. hostmaster.mesh.internal. 1 5 5 5 5'
  local-zone: {REVERSE}. static
  local-data: '{REVERSE}. 5 SOA mesh.internal. hostmaster.mesh.internal. 1 5 5 5 5'
"
    );
    config += &zone.lines(|name, address| format!("  local-data: '{name}. 5 A {address}'"));
    let mut named = BTreeSet::new();
    for (name, address) in zone.records().filter(|(_, address)| named.insert(*address)) {
        let _ = writeln!(config, "  local-data-ptr: '{address} 5 {name}.'");
    }
    fs::write(place.host.file("/run/lab/unbound.conf"), config)?;
    let running = place.spawn(&["unbound", "-d", "-c", "/run/lab/unbound.conf"], "/run/lab/unbound.log")?;
    answers(place, UNBOUND_PORT, zone)?;
    place.running("unbound", UNBOUND_PORT, running)
}

pub(super) fn dnsmasq(place: &Place, zone: &Zone) -> Result<Contender> {
    let (address, domain) = (place.address, &zone.domain);
    let config = format!(
        "port={DNSMASQ_PORT}
listen-address={address}
bind-interfaces
no-resolv
no-hosts
no-poll
addn-hosts=/run/lab/dnsmasq.hosts
local=/{domain}/
local=/{REVERSE}/
local-ttl=5
user=root
pid-file=
"
    );
    fs::write(place.host.file("/run/lab/dnsmasq.conf"), config)?;
    let hosts = zone.lines(|name, address| format!("{address} {name}"));
    fs::write(place.host.file("/run/lab/dnsmasq.hosts"), hosts)?;
    let line = ["dnsmasq", "--keep-in-foreground", "--conf-file=/run/lab/dnsmasq.conf", "--log-facility=-"];
    let running = place.spawn(&line, "/run/lab/dnsmasq.log")?;
    answers(place, DNSMASQ_PORT, zone)?;
    place.running("dnsmasq", DNSMASQ_PORT, running)
}

/// One that tells names to those only who have one themselves: the client is on its list.
pub(super) fn aardvark(place: &Place, zone: &Zone) -> Result<Contender> {
    let (address, client, domain) = (place.address, place.client.address("eth0")?, &zone.domain);
    let directory = place.host.file("/run/lab/aardvark");
    fs::create_dir_all(&directory)?;
    let mut config = format!("{address}\nclient {client}  client\n");
    for (at, (name, address)) in zone.names.iter().enumerate() {
        let _ = writeln!(config, "id{at} {address}  {name}");
    }
    fs::write(directory.join("bench"), config)?;
    // It goes into the background by itself.
    let line = format!(
        "{AARDVARK} --config /run/lab/aardvark --port {AARDVARK_PORT} --filter-search-domain .{domain} run >/dev/null 2>&1"
    );
    place.shell(&line)?;
    answers(place, AARDVARK_PORT, zone)?;
    let process = fs::read_to_string(directory.join("aardvark.pid"))?;
    place.contender("aardvark-dns", AARDVARK_PORT, process.trim().parse().context("a number")?)
}

/// Waits until a server knows its last name.
pub(super) fn answers(place: &Place, port: u16, zone: &Zone) -> Result<()> {
    let (name, address) = zone.records().last().context("no names")?;
    let (at, port, address) = (format!("@{}", place.address), port.to_string(), address.to_string());
    within(STARTS, "a name server answers", || {
        let found = place.client.dig(&[&at, "-p", &port, &name, "A"])?;
        ensure!(found == [address.clone()], "{name}: {found:?}, expected {address}");
        Ok(())
    })
}
