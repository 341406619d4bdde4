//! The code under test. All that the targets know of its interface is here.

use crate::fixture;
use mesh_dns::{Names, Outcome, Published, Table, Transport, fuzzing::Relayed};
use mesh_model::NetworkId;
use rand::{SeedableRng, rngs::SmallRng};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

static OURS: LazyLock<Table> = LazyLock::new(|| table(fixture::OURS));
/// Those of both, for who is on both.
static ALL: LazyLock<[Published; 2]> = LazyLock::new(|| {
    [fixture::OURS, fixture::OTHER].map(|network| Arc::new(Arc::new(table(network)).into()))
});

fn table(network: NetworkId) -> Table {
    Table::new(&fixture::snapshot(), network).expect("the fixture has the network")
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A container on the fixture's network.
    Container,
    /// One that is on the other network as well.
    ContainerOnBoth,
    /// A process of the host.
    Host,
}

/// What became of a query.
pub(crate) enum Became {
    /// It was answered.
    Answered(Vec<u8>),
    /// It is for an upstream resolver.
    Forwarded,
    /// Nothing is sent.
    Dropped,
}

/// Has a query answered from the names of the fixture.
pub(crate) fn ask(client: Client, query: &[u8], tcp: bool, seed: u8) -> Became {
    let names = match client {
        Client::Container => Names::OfContainer(&OURS, &[]),
        Client::ContainerOnBoth => Names::OfContainer(&OURS, &ALL[1..]),
        Client::Host => Names::OfHost(&*ALL),
    };
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let mut out = vec![0xaa; if tcp { 65535 } else { 1232 }];
    let mut rng = SmallRng::seed_from_u64(seed.into());
    match mesh_dns::answer(names, query, transport, &mut rng, &mut out) {
        Outcome::Answer(len) | Outcome::Refuse(len) => {
            out.truncate(len);
            Became::Answered(out)
        }
        Outcome::Forward => Became::Forwarded,
        Outcome::Drop => Became::Dropped,
    }
}

/// What becomes of a message of an upstream that was asked a query under this ID, at once and so many seconds later. `exact`:
/// the letters of the question were given case by chance.
pub(crate) fn relayed(query: &[u8], id: u16, message: &[u8], exact: bool, later: u16) -> Option<Relayed> {
    mesh_dns::fuzzing::relayed(query, id, message, exact, later.into())
}

/// The messages of a connection whose octets come in pieces of this length.
pub(crate) fn framed(octets: &[u8], piece: usize) -> Vec<Vec<u8>> {
    mesh_dns::fuzzing::framed(octets, piece)
}

/// Whether a message looks like a question that tells a loop, and whether it is the one of this number.
pub(crate) fn probe(message: &[u8], number: u128) -> (bool, bool) {
    mesh_dns::fuzzing::probe(message, number)
}

/// Under what the answer to a query to the resolvers of a tag is remembered.
pub(crate) fn key(query: &[u8], tag: u64) -> Option<Vec<u8>> {
    mesh_dns::fuzzing::key(query, tag)
}

/// The upstreams of a `resolv.conf`.
pub(crate) fn upstreams(text: &str, skip: IpAddr) -> Vec<SocketAddr> {
    mesh_dns::parse_resolv_conf(text, &BTreeSet::from([skip]), |name| u32::try_from(name.len()).ok())
}
