//! Published ports of this node: held, so that nobody else can have them.
//!
//! The kernel forwards most of what comes for a port before it reaches a socket. What it can't forward reaches the one that
//! holds the port, which the front process serves: by the L7 ingress, or by the relay. Before a publish is committed the
//! managers ask for the port to be held; it is kept once the snapshot has it.

mod sockets;

use crate::front::{self, Descriptors, Held};
use mesh_model::{NodeId, Protocol, PublishedPort, Snapshot, Transport};
use mesh_net::{
    ports::{HostPort, holder, holder_pid},
    survey,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a port is held for a publish that is never heard of again.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Holder {
    /// Where it is bound, and its socket.
    Socket(SocketAddr, Descriptors),
    /// The address is none of this host's: nothing to hold here.
    Elsewhere,
}

/// The ports that this node holds.
#[derive(Debug, Default)]
pub(super) struct Ports {
    held: BTreeMap<HostPort, Holder>,
    /// What is published on them. Ports change from one to another with their sockets.
    protocols: BTreeMap<HostPort, Protocol>,
    /// Sockets of an earlier life, until the first pass.
    adopted: BTreeMap<(SocketAddr, Transport), Descriptors>,
    asked: BTreeMap<u64, (Instant, BTreeMap<HostPort, Holder>)>,
    /// What others' rules do with them, and what nftables' generation was then.
    translated: Vec<(HostPort, String)>,
    looked_at: Option<u32>,
}

impl Ports {
    /// Ports of which some are held already.
    pub(super) fn new(adopted: &Held) -> Self {
        let adopted = adopted.iter().filter_map(|(place, descriptors)| match place {
            front::Place::Http(at) | front::Place::Stream(at) => Some((*at, Transport::Tcp, descriptors)),
            front::Place::Datagrams(at) => Some((*at, Transport::Udp, descriptors)),
            front::Place::Names(_) | front::Place::HostNames(_) => None,
        });
        let adopted = adopted.map(|(at, transport, sockets)| ((at, transport), Arc::clone(sockets)));
        Self { adopted: adopted.collect(), ..Self::default() }
    }

    /// Holds ports for a publish that is about to be committed; says which can't be had, and holds none then. Returns the
    /// addresses that are none of this host's.
    ///
    /// What is held in another way already is a port of the same service: it changes hands when the publish is committed.
    pub(super) fn reserve(&mut self, id: u64, ports: &[PublishedPort]) -> Result<BTreeSet<IpAddr>, String> {
        let mut got = BTreeMap::new();
        for port in ports.iter().map(HostPort::from) {
            if !self.held.keys().any(|held| is_in_the_way(*held, port)) {
                let holder = hold(port).map_err(|e| refusal(port, &e))?;
                got.insert(port, holder);
            }
        }
        let new: Vec<HostPort> = got.keys().copied().collect();
        if let Some((_, line)) = translated(&new).into_iter().next() {
            return Err(line);
        }
        let elsewhere = got.iter().filter(|(_, holder)| matches!(holder, Holder::Elsewhere));
        let elsewhere = elsewhere.filter_map(|(port, _)| port.ip).collect();
        self.asked.insert(id, (Instant::now() + PATIENCE, got));
        Ok(elsewhere)
    }

    /// Whether ports can be had for a container: then nobody has them but what its engine runs for it. They are held no
    /// longer than the answer is kept: Podman binds them itself when the container starts, and has them already when a
    /// running container is connected.
    pub(super) fn try_hold(
        ports: &[PublishedPort],
        owner: Option<&str>,
    ) -> Result<impl Send + use<>, String> {
        let hold = |port: HostPort| match hold(port) {
            Err(_) if owner.is_some_and(|owner| is_held_for(port, owner)) => Ok(Holder::Elsewhere),
            Ok(Holder::Elsewhere) => Err(refusal(port, &io::ErrorKind::AddrNotAvailable.into())),
            held => held.map_err(|e| refusal(port, &e)),
        };
        ports.iter().map(HostPort::from).map(hold).collect::<Result<Vec<Holder>, String>>()
    }

    /// Whether ports that a service publishes where it has a replica can be had here. What this node holds, as another
    /// replica comes or goes, is for the service; on an address of another node there is nothing to have. They are not
    /// held: the next pass does that.
    pub(super) fn are_free(ports: &[PublishedPort]) -> Result<(), String> {
        ports.iter().map(HostPort::from).try_for_each(|port| match hold(port) {
            Err(e) if !is_held_by_meshd(port) => Err(refusal(port, &e)),
            _ => Ok(()),
        })
    }

    /// Lets go of ports whose publish was not committed.
    pub(super) fn release(&mut self, id: u64) {
        self.asked.remove(&id);
    }

    /// Holds what the snapshot publishes on this node, and nothing else. Returns the ports that can't be had, each with a line
    /// that says why: they are degraded here, and tried again by the next pass.
    pub(super) fn apply(&mut self, snapshot: &Snapshot, me: NodeId) -> BTreeMap<HostPort, String> {
        self.protocols = wanted(snapshot, me);
        let wanted = &self.protocols;
        self.held.retain(|port, holder| wanted.contains_key(port) && !matches!(holder, Holder::Elsewhere));
        let mut problems = BTreeMap::new();
        for port in wanted.keys() {
            if self.held.contains_key(port) {
                continue;
            }
            let asked = self.asked.values_mut().find_map(|(_, ports)| ports.remove(port));
            let ready = asked.or_else(|| adopt(*port, &mut self.adopted));
            match ready.map_or_else(|| hold(*port), Ok) {
                Ok(holder) => drop(self.held.insert(*port, holder)),
                Err(e) => drop(problems.insert(*port, refusal(*port, &e))),
            }
        }
        self.adopted.clear();
        let now = Instant::now();
        self.asked.retain(|_, (until, ports)| *until > now && !ports.is_empty());
        problems
    }

    /// Whose clients somebody else's rules lead away, a line each: looked for again when anybody has changed the rules. Too much
    /// work for each change of state.
    pub(super) fn look_at_rules(&mut self) {
        let generation = survey::generation();
        if self.looked_at.is_none() || self.looked_at != generation {
            self.translated = translated(&self.held.keys().copied().collect::<Vec<_>>());
            self.looked_at = generation;
        }
    }

    /// As of the last look.
    pub(super) fn translated(&self) -> &[(HostPort, String)] {
        &self.translated
    }

    /// What the front process serves of them, with the sockets.
    pub(super) fn places(&self) -> impl Iterator<Item = (front::Place, Descriptors)> {
        self.held.iter().filter_map(|(port, holder)| {
            let Holder::Socket(at, sockets) = holder else { return None };
            let place = match self.protocols.get(port)? {
                Protocol::Http => front::Place::Http(*at),
                Protocol::Tcp => front::Place::Stream(*at),
                Protocol::Udp => front::Place::Datagrams(*at),
            };
            Some((place, Arc::clone(sockets)))
        })
    }
}

/// A line for each that somebody else's rules translate.
fn translated(ports: &[HostPort]) -> Vec<(HostPort, String)> {
    if ports.is_empty() {
        return Vec::new();
    }
    let found = survey::translators(ports).unwrap_or_else(|err| {
        tracing::warn!(%err, "others' rules can't be read");
        BTreeMap::new()
    });
    let line = |(at, chain): (HostPort, String)| {
        let HostPort { port, transport, .. } = at;
        let line = format!(
            "port {port}/{transport} is led elsewhere by a rule in '{chain}': remove the rule, or choose another published port"
        );
        (at, line)
    };
    found.into_iter().map(line).collect()
}

fn wanted(snapshot: &Snapshot, me: NodeId) -> BTreeMap<HostPort, Protocol> {
    let services = snapshot.services.values();
    let published = services.flat_map(|service| snapshot.published_on(service, me));
    published.map(|port| (port.into(), port.protocol)).collect()
}

/// Whether the sockets of both can't be there at once.
fn is_in_the_way(held: HostPort, wanted: HostPort) -> bool {
    held.port == wanted.port
        && held.transport == wanted.transport
        && (held.ip == wanted.ip || held.ip.is_none() || wanted.ip.is_none())
}

fn hold(port: HostPort) -> io::Result<Holder> {
    match sockets::open(port) {
        Ok((at, socket)) => Ok(Holder::Socket(at, Arc::new(vec![socket]))),
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Ok(Holder::Elsewhere),
        Err(e) => Err(e),
    }
}

/// The socket of an earlier life, if there is one.
fn adopt(port: HostPort, adopted: &mut BTreeMap<(SocketAddr, Transport), Descriptors>) -> Option<Holder> {
    let anywhere = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let addresses = port.ip.map_or(anywhere.to_vec(), |ip| vec![ip]);
    let mut addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port.port));
    addresses.find_map(|at| adopted.remove(&(at, port.transport)).map(|sockets| Holder::Socket(at, sockets)))
}

/// Whether it is held by this daemon or its front process.
fn is_held_by_meshd(port: HostPort) -> bool {
    let name = holder_pid(port.port, port.transport)
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    name.is_some_and(|name| ["meshd", "meshd-front"].contains(&name.trim_end()))
}

/// Whether it is held by a process that has the ID of the owner's container on its command line, as conmon has.
fn is_held_for(port: HostPort, owner: &str) -> bool {
    let command = holder_pid(port.port, port.transport)
        .and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok())
        .unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    // What is shorter is no container's ID.
    words.any(|word| word.len() >= 12 && owner.split('/').any(|part| part == word))
}

fn refusal(HostPort { ip, port, transport }: HostPort, error: &io::Error) -> String {
    let by = holder(port, transport).map(|by| format!(" by {by}")).unwrap_or_default();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {port}/{transport} is in use{by}: choose another published port, or stop it")
        }
        io::ErrorKind::AddrNotAvailable => {
            let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
            format!(
                "{ip} is no address of this host: publish {port}/{transport} on one that it has, or on all"
            )
        }
        _ => format!("port {port}/{transport} can't be held: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn port(text: &str) -> PublishedPort {
        mesh_model::parse_publish(text).unwrap().remove(0)
    }

    #[test]
    fn a_port_in_use_is_refused_and_nothing_is_held() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let used = taken.local_addr().unwrap().port();
        let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut ports = Ports::default();
        let both = [port(&format!("{free}:80")), port(&format!("{used}:80"))];
        let refusal = ports.reserve(1, &both).unwrap_err();
        assert!(refusal.contains(&format!("port {used}/tcp is in use")), "{refusal}");
        drop(TcpListener::bind(("0.0.0.0", free)).unwrap());
        assert_eq!(ports.reserve(2, &both[..1]), Ok(BTreeSet::new()));
        assert!(TcpListener::bind(("0.0.0.0", free)).is_err(), "held now");
        ports.release(2);
        drop(TcpListener::bind(("0.0.0.0", free)).unwrap());
    }

    #[test]
    fn what_is_held_listens() {
        let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut ports = Ports::default();
        let http = port(&format!("published={free},target=80,protocol=http"));
        assert_eq!(ports.reserve(1, std::slice::from_ref(&http)), Ok(BTreeSet::new()));
        assert!(std::net::TcpStream::connect(("127.0.0.1", free)).is_ok());
        assert_eq!(ports.places().count(), 0, "not before it is committed");
    }

    #[test]
    fn a_port_on_an_address_of_another_host_is_told() {
        let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let there = port(&format!("192.0.2.7:{free}:80"));
        let mut ports = Ports::default();
        assert_eq!(ports.reserve(1, std::slice::from_ref(&there)), Ok(["192.0.2.7".parse().unwrap()].into()));
        let refusal = Ports::try_hold(&[there], None).map(drop).unwrap_err();
        assert!(refusal.starts_with("192.0.2.7 is no address of this host"), "{refusal}");
    }

    #[test]
    fn a_port_that_is_held_in_another_way_changes_hands() {
        let place = |text: &str| HostPort::from(&port(text));
        let everywhere = place("80:80");
        for same in ["80:8080", "10.0.0.1:80:80", "published=80,target=80,protocol=http"] {
            assert!(is_in_the_way(everywhere, place(same)), "{same}");
        }
        for other in ["81:80", "80:80/udp"] {
            assert!(!is_in_the_way(everywhere, place(other)), "{other}");
        }
        assert!(!is_in_the_way(place("10.0.0.1:80:80"), place("10.0.0.2:80:80")));
    }
}
