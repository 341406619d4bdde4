//! The packet path: one query in, one answer out, without I/O, clock or allocation.

use crate::{
    query::{Query, Rejection},
    response::{Response, Section, Transport, pointer},
    spread::Spread,
    table::{Found, Lookup, Records, Table, Task},
    view::Published,
    wire::{Rcode, TTL, flag, rtype},
};
use rand::Rng;
use std::{net::IpAddr, sync::LazyLock};

/// The answer to ANY: an HINFO record that says why there is nothing else (RFC 8482, 4.2).
const ANY_REFUSED: &[u8] = b"\x07RFC8482\x00";

/// What becomes of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is this many octets at the start of `out`.
    Answer(usize),
    /// So is what it says to a query that can't be answered: malformed, or of a kind that is not known here.
    Refuse(usize),
    /// The name is none of ours: the question is for an upstream resolver.
    Forward,
    /// Nothing is to be sent: not a query at all.
    Drop,
}

/// Whose names are to be found, and by whom.
#[derive(Debug, Clone, Copy)]
pub enum Names<'t> {
    /// By a container that asks in the network of this table, and is on these others too: the first one's names come first.
    OfContainer(&'t Table, &'t [Published]),
    /// By the host: those of all these networks, each by its whole name. A short one might be anybody's.
    OfHost(&'t [Published]),
}

/// Answers one query.
///
/// `out` is where the answer is written; answers are never longer than it. 1232 octets suffice for UDP, 65535 for
/// TCP; a buffer below 512 may have no room for the question, and then the query is dropped.
pub fn answer(
    names: Names<'_>,
    query: &[u8],
    transport: Transport,
    rng: &mut impl Rng,
    out: &mut [u8],
) -> Outcome {
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(Rejection::Ignore) => return Outcome::Drop,
        Err(Rejection::Reply { header, question, rcode }) => {
            let response = Response::start(header, question, None, transport.limit(None), out);
            return refused(response, rcode);
        }
    };
    let limit = transport.limit(query.edns);
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return refused(Response::to(&query, limit, out), Rcode::BadVers);
    }
    names.find(query.name.key(), |found| match found {
        None => Outcome::Forward,
        Some((table, lookup)) => match Response::to(&query, limit, out) {
            Some(response) => Outcome::Answer(
                Authority { table, qtype: query.qtype, lookup, transport, response }.answer(rng),
            ),
            None => Outcome::Drop,
        },
    })
}

fn refused(response: Option<Response<'_>>, rcode: Rcode) -> Outcome {
    response.map_or(Outcome::Drop, |response| Outcome::Refuse(response.finish(rcode)))
}

/// Whole names are known here without any network, too: nobody else is asked for them.
static NO_NETWORK: LazyLock<Table> = LazyLock::new(|| Table::empty(&[]));

impl Names<'_> {
    /// Has `use_found` see what is known of a name, and by which table: the first that has it, else one that says that it is not
    /// there. One table at a time is held, however many there are.
    fn find<R>(self, name: &[u8], use_found: impl FnOnce(Option<(&Table, Lookup<'_>)>) -> R) -> R {
        let look = match self {
            Self::OfContainer(..) => Table::find,
            Self::OfHost(_) => Table::find_whole,
        };
        let (first, others, last) = match self {
            Self::OfContainer(own, others) => (Some(own), others, None),
            Self::OfHost(all) => (None, all, Some(&*NO_NETWORK)),
        };
        let in_first = first.and_then(|table| Some((table, look(table, name)?)));
        if in_first.is_some_and(|(_, lookup)| lookup.found.is_something()) {
            return use_found(in_first);
        }
        let mut absent = None;
        for published in others {
            let table = published.load();
            match look(&table, name) {
                Some(lookup) if lookup.found.is_something() => return use_found(Some((&table, lookup))),
                Some(_) if absent.is_none() => absent = Some(table),
                _ => {}
            }
        }
        let teller = absent.as_ref().map(|table| &***table).or(last);
        use_found(in_first.or_else(|| teller.and_then(|table| Some((table, look(table, name)?)))))
    }
}

/// The answer to a question about a name of ours.
struct Authority<'a, 'o> {
    table: &'a Table,
    qtype: u16,
    lookup: Lookup<'a>,
    transport: Transport,
    response: Response<'o>,
}

impl Authority<'_, '_> {
    fn answer(mut self, rng: &mut impl Rng) -> usize {
        self.response.set(flag::AUTHORITATIVE);
        let answered = match (self.lookup.found, self.qtype) {
            (Found::Missing, _) => return self.negative(Rcode::NxDomain),
            (_, rtype::ANY) => self.single(rtype::HINFO, ANY_REFUSED),
            (_, rtype::SOA) if self.lookup.apex == 0 => self.single(rtype::SOA, self.table.soa()),
            (Found::Records(records), rtype::A | rtype::AAAA) => self.addresses(records, rng),
            (Found::Tasks(port, tasks), rtype::SRV) => self.services(port, tasks, rng),
            (Found::Pointer(name), rtype::PTR) => self.single(rtype::PTR, name),
            _ => false,
        };
        if answered { self.response.finish(Rcode::NoError) } else { self.negative(Rcode::NoError) }
    }

    /// No such data, or no such name: the zone's SOA says how long that holds (RFC 2308).
    fn negative(mut self, rcode: Rcode) -> usize {
        let owner = pointer(self.lookup.apex);
        if !self.response.record(Section::Authority, &owner, rtype::SOA, TTL, &[self.table.soa()]) {
            self.response.set(flag::TRUNCATED);
        }
        self.response.finish(rcode)
    }

    fn single(&mut self, rtype: u16, data: &[u8]) -> bool {
        self.add(rtype, &[data]);
        true
    }

    fn addresses(&mut self, records: &Records, rng: &mut impl Rng) -> bool {
        if self.qtype == rtype::A {
            Spread::new(records.v4.len(), rng).all(|i| self.ready(&records.v4[i]));
            !records.v4.is_empty()
        } else {
            Spread::new(records.v6.len(), rng).all(|i| self.ready(&records.v6[i]));
            !records.v6.is_empty()
        }
    }

    /// One SRV record a task (RFC 2782), all of the same priority and weight, and the tasks' addresses as far as
    /// there is room for them.
    fn services(&mut self, port: u16, tasks: &[Task], rng: &mut impl Rng) -> bool {
        let port = port.to_be_bytes();
        let mut order = Spread::new(tasks.len(), rng);
        let glue = order.clone();
        if order.all(|i| self.add(rtype::SRV, &[&[0; 4], &port, &tasks[i].name])) {
            for task in glue.map(|i| &tasks[i]) {
                task.addresses.iter().all(|address| self.glue(&task.name, *address));
            }
        }
        !tasks.is_empty()
    }

    fn ready(&mut self, record: &[u8]) -> bool {
        let fits = self.response.ready(pointer(0), record);
        self.cut_unless(fits)
    }

    fn add(&mut self, rtype: u16, data: &[&[u8]]) -> bool {
        let fits = self.response.record(Section::Answer, &pointer(0), rtype, TTL, data);
        self.cut_unless(fits)
    }

    /// Says so in the header if an answer is left out, so that it is asked for over TCP. What is too long for that has to do:
    /// a client that was told so again would have nothing else to try, and the rest is in answers to come, as they rotate.
    fn cut_unless(&mut self, fits: bool) -> bool {
        if !fits && self.transport == Transport::Udp {
            self.response.set(flag::TRUNCATED);
        }
        fits
    }

    /// What does not fit here may be left out without saying so (RFC 2181, 9).
    fn glue(&mut self, owner: &[u8], address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                self.response.record(Section::Additional, owner, rtype::A, TTL, &[&v4.octets()])
            }
            IpAddr::V6(v6) => {
                self.response.record(Section::Additional, owner, rtype::AAAA, TTL, &[&v6.octets()])
            }
        }
    }
}
