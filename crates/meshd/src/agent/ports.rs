//! Published ports of this node: held, so that nobody else can have them.
//!
//! A port that the kernel forwards is held by a bound socket that does not listen: others are refused the port, and
//! local clients are refused rather than left hanging. A port of the L7 proxy is held by its listener. Before a
//! publish is committed the managers ask for the port to be held; it is kept once the snapshot has it.

use crate::front::{self, Descriptors, Held};
use mesh_model::{NodeId, Protocol, PublishedPort, Snapshot};
use mesh_net::ports::{HostPort, Transport, reserve};
use socket2::{Domain, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a port is held for a publish that is never heard of again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    ip: Option<IpAddr>,
    port: u16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Forwarded by the kernel.
    Tcp,
    /// Forwarded by the kernel.
    Udp,
    /// Accepted by the proxy.
    Http,
}

#[derive(Debug)]
enum Holder {
    Socket {
        _fd: OwnedFd,
    },
    /// Where it is bound, and its socket.
    Listener(SocketAddr, Descriptors),
    /// The address is none of this host's: nothing to hold here.
    Elsewhere,
}

/// The ports that this node holds.
#[derive(Debug, Default)]
pub(super) struct Ports {
    held: BTreeMap<Place, Holder>,
    /// Listeners of an earlier life, until the first pass.
    adopted: BTreeMap<SocketAddr, Descriptors>,
    asked: BTreeMap<u64, (Instant, BTreeMap<Place, Holder>)>,
}

impl Ports {
    /// Ports of which some are held already.
    pub(super) fn new(adopted: &Held) -> Self {
        let adopted = adopted.iter().filter_map(|(place, descriptors)| match place {
            front::Place::Http(at) => Some((*at, Arc::clone(descriptors))),
            front::Place::Names(_) | front::Place::HostNames(_) => None,
        });
        Self { adopted: adopted.collect(), ..Self::default() }
    }

    /// Holds ports for a publish that is about to be committed; says which can't be had, and holds none then. Returns the
    /// addresses that are none of this host's.
    ///
    /// What is held in another way already is a port of the same service: it changes hands when the publish is committed.
    pub(super) fn reserve(&mut self, id: u64, ports: &[PublishedPort]) -> Result<BTreeSet<IpAddr>, String> {
        let mut got = BTreeMap::new();
        for place in ports.iter().map(Place::of) {
            if !self.held.keys().any(|held| held.is_in_the_way_of(&place)) {
                let holder = place.hold().map_err(|e| place.refusal(&e))?;
                got.insert(place, holder);
            }
        }
        let elsewhere = got.iter().filter(|(_, holder)| matches!(holder, Holder::Elsewhere));
        let elsewhere = elsewhere.filter_map(|(place, _)| place.ip).collect();
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
        let hold = |place: Place| match place.hold() {
            Err(_) if owner.is_some_and(|owner| place.is_held_for(owner)) => Ok(Holder::Elsewhere),
            Ok(Holder::Elsewhere) => Err(place.refusal(&io::ErrorKind::AddrNotAvailable.into())),
            held => held.map_err(|e| place.refusal(&e)),
        };
        ports.iter().map(Place::of).map(hold).collect::<Result<Vec<Holder>, String>>()
    }

    /// Whether ports that a service publishes where it has a replica can be had here. What this node holds, as another
    /// replica comes or goes, is for the service; on an address of another node there is nothing to have. They are not
    /// held: the next pass does that.
    pub(super) fn are_free(ports: &[PublishedPort]) -> Result<(), String> {
        ports.iter().map(Place::of).try_for_each(|place| match place.hold() {
            Err(e) if !place.is_held_by_meshd() => Err(place.refusal(&e)),
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
        let wanted: BTreeSet<Place> = wanted(snapshot, me);
        self.held.retain(|place, holder| wanted.contains(place) && !matches!(holder, Holder::Elsewhere));
        let mut problems = BTreeMap::new();
        for place in wanted {
            if self.held.contains_key(&place) {
                continue;
            }
            let asked = self.asked.values_mut().find_map(|(_, places)| places.remove(&place));
            let ready = asked.or_else(|| place.adopt(&mut self.adopted));
            match ready.map_or_else(|| place.hold(), Ok) {
                Ok(holder) => drop(self.held.insert(place, holder)),
                Err(e) => drop(problems.insert(place.host_port(), place.refusal(&e))),
            }
        }
        self.adopted.clear();
        let now = Instant::now();
        self.asked.retain(|_, (until, places)| *until > now && !places.is_empty());
        problems
    }

    /// The listeners of the L7 ingress, for the front process.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (front::Place, Descriptors)> {
        self.held.values().filter_map(|holder| match holder {
            Holder::Listener(at, socket) => Some((front::Place::Http(*at), Arc::clone(socket))),
            Holder::Socket { .. } | Holder::Elsewhere => None,
        })
    }
}

fn wanted(snapshot: &Snapshot, me: NodeId) -> BTreeSet<Place> {
    let services = snapshot.services.values();
    services.flat_map(|service| snapshot.published_on(service, me)).map(Place::of).collect()
}

impl Place {
    fn of(port: &PublishedPort) -> Self {
        let kind = match port.protocol {
            Protocol::Tcp => Kind::Tcp,
            Protocol::Udp => Kind::Udp,
            Protocol::Http => Kind::Http,
        };
        Self { ip: port.ip, port: port.published, kind }
    }

    /// Whether the sockets of both can't be there at once.
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        self.port == other.port
            && self.transport() == other.transport()
            && (self.ip == other.ip || self.ip.is_none() || other.ip.is_none())
    }

    fn hold(&self) -> io::Result<Holder> {
        let held = match self.kind {
            Kind::Tcp => reserve(self.ip, self.port, Transport::Tcp).map(|fd| Holder::Socket { _fd: fd }),
            Kind::Udp => reserve(self.ip, self.port, Transport::Udp).map(|fd| Holder::Socket { _fd: fd }),
            Kind::Http => listen(self.ip, self.port).and_then(|listener| {
                Ok(Holder::Listener(listener.local_addr()?, Arc::new(vec![listener.into()])))
            }),
        };
        match held {
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Ok(Holder::Elsewhere),
            held => held,
        }
    }

    /// The listener of an earlier life, if there is one.
    fn adopt(&self, adopted: &mut BTreeMap<SocketAddr, Descriptors>) -> Option<Holder> {
        if self.kind != Kind::Http {
            return None;
        }
        let anywhere = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        let addresses = self.ip.map_or(anywhere.to_vec(), |ip| vec![ip]);
        let mut addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port));
        addresses.find_map(|at| adopted.remove(&at).map(|socket| Holder::Listener(at, socket)))
    }

    fn host_port(&self) -> HostPort {
        HostPort { ip: self.ip, port: self.port, transport: self.transport() }
    }

    fn transport(&self) -> Transport {
        if self.kind == Kind::Udp { Transport::Udp } else { Transport::Tcp }
    }

    /// Whether it is held by this daemon or its front process.
    fn is_held_by_meshd(&self) -> bool {
        let name = mesh_net::ports::holder_pid(self.port, self.transport())
            .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        name.is_some_and(|name| name.trim_end() == "meshd")
    }

    /// Whether it is held by a process that has the ID of the owner's container on its command line, as conmon has.
    fn is_held_for(&self, owner: &str) -> bool {
        let command = mesh_net::ports::holder_pid(self.port, self.transport())
            .and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok())
            .unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
        // What is shorter is no container's ID.
        words.any(|word| word.len() >= 12 && owner.split('/').any(|part| part == word))
    }

    fn refusal(&self, error: &io::Error) -> String {
        let transport = self.transport();
        let by =
            mesh_net::ports::holder(self.port, transport).map(|by| format!(" by {by}")).unwrap_or_default();
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!(
                    "port {}/{transport} is in use{by}: choose another published port, or stop it",
                    self.port
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                let ip = self.ip.map(|ip| ip.to_string()).unwrap_or_default();
                format!(
                    "{ip} is no address of this host: publish {}/{transport} on one that it has, or on all",
                    self.port
                )
            }
            _ => format!("port {}/{transport} can't be held: {error}", self.port),
        }
    }
}

/// Listens on one address, or on every address of both families.
fn listen(ip: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match ip {
        Some(ip) => listen_at(SocketAddr::new(ip, port)),
        None => match listen_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            // A kernel without IPv6.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                listen_at(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            listener => listener,
        },
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of an earlier life may still be in TIME_WAIT; a socket that listens is in the way all the same.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_port_of_the_proxy_listens() {
        let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut ports = Ports::default();
        let http = port(&format!("published={free},target=80,protocol=http"));
        assert_eq!(ports.reserve(1, std::slice::from_ref(&http)), Ok(BTreeSet::new()));
        assert!(std::net::TcpStream::connect(("127.0.0.1", free)).is_ok());
        assert_eq!(ports.listeners().count(), 0, "not before it is committed");
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
        let place = |text: &str| Place::of(&port(text));
        let everywhere = place("80:80");
        for same in ["80:8080", "10.0.0.1:80:80", "published=80,target=80,protocol=http"] {
            assert!(everywhere.is_in_the_way_of(&place(same)), "{same}");
        }
        for other in ["81:80", "80:80/udp"] {
            assert!(!everywhere.is_in_the_way_of(&place(other)), "{other}");
        }
        assert!(!place("10.0.0.1:80:80").is_in_the_way_of(&place("10.0.0.2:80:80")));
    }
}
