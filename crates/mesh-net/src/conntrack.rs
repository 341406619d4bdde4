//! Connection tracking entries of one network namespace, as ctnetlink has them
//! (`linux/netfilter/nfnetlink_conntrack.h`): what is left of connections to backends that take no more.

use crate::{
    netlink::DATAGRAM_BYTES,
    nft::attr::{self, Attributes, Buffer, Header},
    ports::HostPort,
};
use mesh_model::Transport;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`, `IPCTNL_MSG_CT_GET_STATS`.
const GET_STATS_CPU: u16 = SUBSYSTEM | 4;
const GET_STATS: u16 = SUBSYSTEM | 5;

/// `CTA_*`.
mod cta {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    pub(super) const FILTER_REPLY_FLAGS: u16 = 2;
    pub(super) const STATS_GLOBAL_ENTRIES: u16 = 1;
    pub(super) const STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
    pub(super) const STATS_DROP: u16 = 10;
    pub(super) const STATS_EARLY_DROP: u16 = 11;
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const IP_V4_SRC: u16 = 1;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_SRC: u16 = 3;
    pub(super) const IP_V6_DST: u16 = 4;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_SRC_PORT: u16 = 2;
    pub(super) const PROTO_DST_PORT: u16 = 3;
}

/// Bit of `CTA_FILTER_REPLY_FLAGS`: the source address has to match (Linux 5.8).
const FILTER_SOURCE: u32 = 1;
/// `IPS_SEEN_REPLY`, `IPS_DST_NAT`.
const SEEN_REPLY: u32 = 1 << 1;
const DST_NAT: u32 = 1 << 5;
/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why a backend takes no more, the worst last: which entries of it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parting {
    /// It goes on with the connections that it has. All but TCP has none, so that a flow would stay with it for ever.
    Draining,
    /// It goes on with what it can; what TCP asked and it has not answered is asked of another.
    Failing,
    /// It is gone, and everything with it.
    Gone,
}

/// The socket of one namespace: that of the thread which opened it. The value may then be used on any thread.
pub(crate) struct Conntrack {
    socket: Socket,
    received: Vec<u8>,
    /// Of the last request. What is left of the answer to one that was given up has another.
    sequence: u32,
}

/// How full a namespace's connection tracking is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occupancy {
    pub(crate) entries: u32,
    /// How many there can be.
    pub(crate) most: u32,
}

/// An address and a port of datagrams.
pub(crate) type At = (IpAddr, u16);

/// What was lost for want of room since the namespace was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Packets of new connections.
    pub dropped: u64,
    /// Connections that nobody had answered, forgotten to make room.
    pub forgotten: u64,
}

/// What deletes an entry. It is named by what the backend answers: a client that uses its port again meanwhile has another
/// entry, to another backend, of the same original tuple; and of the same number if the kernel has made it in the place of the
/// old one, as the number is drawn from that place and the original tuple.
struct Entry {
    family: u8,
    /// Attributes as the kernel dumped them: the tuple of the reply, the zone, the entry's number.
    reply: Vec<u8>,
    zone: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

impl Conntrack {
    /// Opens ctnetlink of the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, received: Vec::with_capacity(DATAGRAM_BYTES), sequence: 0 })
    }

    /// Deletes the entries of connections that one of these addresses answers, whatever they were sent to; how many.
    ///
    /// The kernel goes through all buckets of its table for that, those of other namespaces as well: once a family.
    pub(crate) fn forget(&mut self, backends: &BTreeMap<IpAddr, Parting>) -> io::Result<usize> {
        if self.occupancy()?.entries == 0 {
            return Ok(0);
        }
        let mut found = Vec::new();
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = backends.keys().partition(|address| address.is_ipv4());
        for (family, addresses) in [(libc::AF_INET, v4), (libc::AF_INET6, v6)] {
            // Asked for one IPv6 address, kernels of today show the entries of all others.
            let only = addresses.first().filter(|first| first.is_ipv4() && addresses.len() == 1);
            if !addresses.is_empty() {
                self.dump(family, only.copied(), |attributes| {
                    found.extend(matching(attributes, backends).then(|| entry(attributes)).flatten());
                })?;
            }
        }
        self.delete_all(&found)
    }

    /// The addresses that datagrams to these ports were sent to.
    pub(crate) fn asked_at(&mut self, ports: &BTreeSet<HostPort>) -> io::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        if self.occupancy()?.entries > 0 {
            self.dump(libc::AF_UNSPEC, None, |attributes| {
                found.extend(asked_port(attributes).filter(|at| is_of(*at, ports)).map(|(ip, _)| ip));
            })?;
        }
        Ok(found)
    }

    /// Deletes the entries of datagrams that were sent to these ports of these addresses, and were or were not translated; how
    /// many.
    pub(crate) fn forget_datagrams(
        &mut self,
        ports: &BTreeSet<HostPort>,
        addresses: &BTreeSet<IpAddr>,
        only_untranslated: bool,
    ) -> io::Result<usize> {
        let mut found = Vec::new();
        self.dump(libc::AF_UNSPEC, None, |attributes| {
            let is_meant = !only_untranslated || status(attributes) & DST_NAT == 0;
            if is_meant
                && asked_port(attributes).is_some_and(|at| addresses.contains(&at.0) && is_of(at, ports))
            {
                found.extend(entry(attributes));
            }
        })?;
        self.delete_all(&found)
    }

    fn delete_all(&mut self, entries: &[Entry]) -> io::Result<usize> {
        for entry in entries {
            self.delete(entry)?;
        }
        Ok(entries.len())
    }

    /// Who answers connections that were sent to another address: backends of VIPs and published ports.
    pub(crate) fn backends(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        if self.occupancy()?.entries == 0 {
            return Ok(found);
        }
        self.dump(libc::AF_UNSPEC, None, |entry| {
            if status(entry) & DST_NAT != 0 {
                found.extend(answering(entry));
            }
        })?;
        Ok(found)
    }

    /// Datagrams that were sent to an address and port and translated, by those, and by whom and which port answers.
    pub(crate) fn led_datagrams(&mut self) -> io::Result<Vec<(At, At)>> {
        let mut found = Vec::new();
        if self.occupancy()?.entries == 0 {
            return Ok(found);
        }
        self.dump(libc::AF_UNSPEC, None, |entry| {
            if status(entry) & DST_NAT != 0 {
                let led = asked_port(entry)
                    .and_then(|asked| Some((asked, (answering(entry)?, answering_port(entry)?))));
                found.extend(led);
            }
        })?;
        Ok(found)
    }

    /// How many entries there are.
    pub(crate) fn occupancy(&mut self) -> io::Result<Occupancy> {
        self.send(GET_STATS, 0, 0, |_| {})?;
        self.receive()?;
        let mut messages = attr::messages(&self.received);
        let message = messages.next().ok_or(io::ErrorKind::InvalidData)?;
        if let Some(error) = refusal(&message) {
            return Err(error);
        }
        let number = |kind| number(message.attributes(), kind).ok_or(io::ErrorKind::InvalidData);
        Ok(Occupancy {
            entries: number(cta::STATS_GLOBAL_ENTRIES)?,
            most: number(cta::STATS_GLOBAL_MAX_ENTRIES)?,
        })
    }

    /// What was lost for want of room, of all processors together.
    pub(crate) fn losses(&mut self) -> io::Result<Losses> {
        let mut losses = Losses::default();
        self.send(GET_STATS_CPU, NLM_F_DUMP, libc::AF_UNSPEC as u8, |_| {})?;
        self.replies(|of_one| {
            losses.dropped += u64::from(number(of_one, cta::STATS_DROP).unwrap_or(0));
            losses.forgotten += u64::from(number(of_one, cta::STATS_EARLY_DROP).unwrap_or(0));
        })?;
        Ok(losses)
    }

    /// Who has asked for how many of the connections.
    pub(crate) fn askers(&mut self) -> io::Result<HashMap<IpAddr, u32>> {
        let mut askers = HashMap::new();
        self.dump(libc::AF_UNSPEC, None, |entry| {
            if let Some(asker) = source(entry, cta::TUPLE_ORIG) {
                *askers.entry(asker).or_default() += 1;
            }
        })?;
        Ok(askers)
    }

    /// Goes through the entries of a family, or those that one address answers.
    fn dump(
        &mut self,
        family: i32,
        only: Option<IpAddr>,
        each: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        self.send(GET, NLM_F_DUMP, family as u8, |b| {
            if let Some(source) = only {
                b.nested(cta::TUPLE_REPLY, |b| b.nested(cta::TUPLE_IP, |b| source_attribute(b, source)));
                b.nested(cta::FILTER, |b| b.attr(cta::FILTER_REPLY_FLAGS, &FILTER_SOURCE.to_ne_bytes()));
            }
        })?;
        self.replies(each)
    }

    /// Reads a dump to its end.
    fn replies(&mut self, mut each: impl FnMut(Attributes<'_>)) -> io::Result<()> {
        loop {
            self.receive()?;
            for message in attr::messages(&self.received) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(refusal(&message).unwrap_or(io::ErrorKind::InvalidData.into())),
                    _ => each(message.attributes()),
                }
            }
        }
    }

    /// One that has ended by itself meanwhile is fine.
    fn delete(&mut self, entry: &Entry) -> io::Result<()> {
        self.send(DELETE, NLM_F_ACK, entry.family, |b| {
            b.raw_nested(cta::TUPLE_REPLY, &entry.reply);
            if let Some(zone) = &entry.zone {
                b.attr(cta::ZONE, zone);
            }
            if let Some(id) = &entry.id {
                b.attr(cta::ID, id);
            }
        })?;
        self.receive()?;
        let refused = attr::messages(&self.received).find_map(|message| refusal(&message));
        match refused {
            Some(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, fill: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = NLM_F_REQUEST | flags;
        let mut request = Buffer::default();
        request.message(Header { kind, flags, sequence: self.sequence, family, resource: 0 }, fill);
        self.socket.send(request.bytes(), 0).map(drop)
    }

    /// The next datagram of the answer to the last request.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    if attr::messages(&self.received)
                        .next()
                        .is_none_or(|first| first.sequence == self.sequence)
                    {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn source_attribute(buffer: &mut Buffer, source: IpAddr) {
    match source {
        IpAddr::V4(source) => buffer.attr(cta::IP_V4_SRC, &source.octets()),
        IpAddr::V6(source) => buffer.attr(cta::IP_V6_SRC, &source.octets()),
    }
}

/// Whether an entry is of a connection to one of these backends that is to go. The source of the reply is who answers,
/// after all translation.
fn matching(entry: Attributes<'_>, backends: &BTreeMap<IpAddr, Parting>) -> bool {
    let Some(parting) = answering(entry).and_then(|source| backends.get(&source)) else { return false };
    let reply = entry.get(cta::TUPLE_REPLY).map(Attributes);
    let proto = reply.and_then(|reply| reply.get(cta::TUPLE_PROTO));
    let proto = proto.and_then(|proto| Attributes(proto).get(cta::PROTO_NUM));
    let status = status(entry);
    // What was sent to the living one itself has nothing translated, but may hold which node it came by.
    let goes = |unless: bool| status & DST_NAT != 0 && (proto != Some(&[TCP]) || !unless);
    match parting {
        Parting::Draining => goes(true),
        Parting::Failing => goes(status & SEEN_REPLY != 0),
        Parting::Gone => true,
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv6() { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

/// `IPS_*`.
fn status(entry: Attributes<'_>) -> u32 {
    number(entry, cta::STATUS).unwrap_or(0)
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.get(kind)?.try_into().ok().map(u32::from_be_bytes)
}

fn answering(entry: Attributes<'_>) -> Option<IpAddr> {
    source(entry, cta::TUPLE_REPLY)
}

/// Whether a port of an address is one of these.
fn is_of((ip, port): At, ports: &BTreeSet<HostPort>) -> bool {
    let at = |ip| HostPort { ip, port, transport: Transport::Udp };
    ports.contains(&at(None)) || ports.contains(&at(Some(ip)))
}

/// What a datagram was sent to, before all translation.
fn asked_port(entry: Attributes<'_>) -> Option<At> {
    let port = datagram_port(entry, cta::TUPLE_ORIG, cta::PROTO_DST_PORT)?;
    let tuple = Attributes(entry.get(cta::TUPLE_ORIG)?);
    Some((address(Attributes(tuple.get(cta::TUPLE_IP)?), cta::IP_V4_DST, cta::IP_V6_DST)?, port))
}

/// The port that answers datagrams, after all translation.
fn answering_port(entry: Attributes<'_>) -> Option<u16> {
    datagram_port(entry, cta::TUPLE_REPLY, cta::PROTO_SRC_PORT)
}

fn datagram_port(entry: Attributes<'_>, tuple: u16, port: u16) -> Option<u16> {
    let tuple = Attributes(entry.get(tuple)?);
    let proto = Attributes(tuple.get(cta::TUPLE_PROTO)?);
    if proto.get(cta::PROTO_NUM)? != [UDP] {
        return None;
    }
    Some(u16::from_be_bytes(proto.get(port)?.try_into().ok()?))
}

/// Who sends in one direction.
fn source(entry: Attributes<'_>, tuple: u16) -> Option<IpAddr> {
    let tuple = entry.get(tuple).map(Attributes)?;
    source_of(Attributes(tuple.get(cta::TUPLE_IP)?))
}

fn source_of(ip: Attributes<'_>) -> Option<IpAddr> {
    address(ip, cta::IP_V4_SRC, cta::IP_V6_SRC)
}

fn address(ip: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let v4 = ip.get(v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
    v4.or_else(|| ip.get(v6).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).map(IpAddr::from))
}

fn entry(attributes: Attributes<'_>) -> Option<Entry> {
    let copy = |kind| attributes.get(kind).map(<[u8]>::to_vec);
    Some(Entry {
        family: family(answering(attributes)?),
        reply: copy(cta::TUPLE_REPLY)?,
        zone: copy(cta::ZONE),
        id: copy(cta::ID),
    })
}

/// The error of an `NLMSG_ERROR`; nothing in an acknowledgement.
fn refusal(message: &attr::Message<'_>) -> Option<io::Error> {
    if message.kind != NLMSG_ERROR {
        return None;
    }
    let number = attr::word(message.payload, 0)? as i32;
    (number != 0).then(|| io::Error::from_raw_os_error(-number))
}

#[cfg(test)]
mod tests;
