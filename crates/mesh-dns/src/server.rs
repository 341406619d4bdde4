//! The sockets of one address.

mod mmsg;
pub(crate) mod tcp;
mod udp;

use crate::{
    Error, Forwarder, Outcome, View, answer,
    counters::Counts,
    forward::{Group, Permit, Remembered, without_records},
    query::Query,
    response::Transport,
    wire::{PLAIN_UDP_LEN, Rcode, flag},
};
use rand::rngs::SmallRng;
use std::{
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Answers on one address, over UDP and TCP. The sockets belong to whatever network namespace they were opened
/// in; nothing else here depends on it.
#[derive(Debug)]
pub struct Server {
    /// Bound to a given address, so that answers leave from it.
    pub udp: UdpSocket,
    /// Bound to the same address and port.
    pub tcp: TcpListener,
    /// What is answered; several servers may share it.
    pub view: Arc<View>,
    /// By which other names are asked for; likewise.
    pub forwarder: Arc<Forwarder>,
    /// How long a connection's client may take for its next query, or to read an answer: [`Server::IDLE`].
    pub idle: Duration,
}

/// What every query needs.
#[derive(Debug, Clone)]
struct Shared {
    view: Arc<View>,
    forwarder: Arc<Forwarder>,
    idle: Duration,
}

/// What becomes of a message.
enum Reaction {
    /// The answer is this many octets at the start of `out`.
    Answer(usize),
    /// These have to be asked.
    Ask(Arc<Group>, Permit),
    /// There is no answer.
    Nothing,
}

impl Server {
    /// A few seconds are enough (RFC 7766, 6.2.3): clients that come later connect again.
    pub const IDLE: Duration = Duration::from_secs(10);

    /// Answers until it is cancelled, and then what was asked before that.
    ///
    /// Errors: a socket that can't be used or read. Trouble with one client or upstream is none.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        self.tcp.set_nonblocking(true).map_err(Error::Socket)?;
        let tcp = tokio::net::TcpListener::from_std(self.tcp).map_err(Error::Socket)?;
        let shared = Shared { view: self.view, forwarder: self.forwarder, idle: self.idle };
        // One that fails takes the other along: dropping it aborts the tasks that it owns.
        let served = tokio::try_join!(
            udp::serve(self.udp, shared.clone(), cancel.clone()),
            tcp::serve(tcp, shared, cancel),
        );
        served.map(drop)
    }
}

impl Shared {
    /// Answers a message from the tables or from memory, or says whom to ask.
    fn react(
        &self,
        message: &[u8],
        transport: Transport,
        client: IpAddr,
        rng: &mut SmallRng,
        counts: &mut Counts,
        out: &mut [u8],
    ) -> Reaction {
        // The names are loaded for each: whoever asks after a change must not be told what was before it.
        let outcome = if self.forwarder.has_come_back(message, client) {
            Outcome::Drop
        } else {
            self.view.with_names(client, |names| answer(names, message, transport, rng, out))
        };
        match outcome {
            Outcome::Answer(len) => {
                counts.answered += 1;
                Reaction::Answer(len)
            }
            Outcome::Refuse(len) => {
                counts.refused += 1;
                Reaction::Answer(len)
            }
            Outcome::Forward => {
                let Ok(query) = Query::parse(message) else { return Reaction::Nothing };
                match self.view.routes.load().withhold(&query, message, transport, rng, out) {
                    Some(len) => {
                        counts.answered += 1;
                        Reaction::Answer(len)
                    }
                    None => self.beyond(&query, transport, client, counts, out),
                }
            }
            Outcome::Drop => {
                counts.dropped += 1;
                Reaction::Nothing
            }
        }
    }

    /// Answers from memory, or says whom to ask.
    fn beyond(
        &self,
        query: &Query<'_>,
        transport: Transport,
        client: IpAddr,
        counts: &mut Counts,
        out: &mut [u8],
    ) -> Reaction {
        let forwarder = &self.forwarder;
        let Some(group) = forwarder.group(&self.view.routes.load(), query, client) else {
            // There is no world beyond an internal network. A failure would have clients ask again, or leave out the rest of
            // their search list.
            counts.answered += 1;
            return Reaction::Answer(without_records(query, 0, Rcode::NxDomain, out));
        };
        match forwarder.remembered(&group, query, transport, out) {
            Some(Remembered::Answer(len)) => {
                counts.cached += 1;
                return Reaction::Answer(len);
            }
            Some(Remembered::Failure) => {
                counts.failed += 1;
                return Reaction::Answer(without_records(query, 0, Rcode::ServFail, out));
            }
            // RFC 1034, 4.3.1: nobody else is asked unless that is desired.
            None if query.header.flags & flag::RECURSION_DESIRED == 0 => {
                counts.refused += 1;
                return Reaction::Answer(without_records(query, 0, Rcode::Refused, out));
            }
            None => {}
        }
        match forwarder.admit(self.view.party, client) {
            Some(permit) => {
                counts.forwarded += 1;
                Reaction::Ask(group, permit)
            }
            None => {
                counts.limited += 1;
                Reaction::Answer(without_records(query, 0, Rcode::ServFail, out))
            }
        }
    }

    /// Asks, and returns what the client is told.
    async fn ask(&self, group: Arc<Group>, message: &[u8], transport: Transport) -> Vec<u8> {
        if let Some(reply) = self.forwarder.resolve(self.view.party, group, message, transport).await {
            return reply;
        }
        self.view.counters.add(&Counts { failed: 1, ..Counts::default() });
        let mut out = vec![0; PLAIN_UDP_LEN];
        let len =
            Query::parse(message).map_or(0, |query| without_records(&query, 0, Rcode::ServFail, &mut out));
        out.truncate(len);
        out
    }
}
