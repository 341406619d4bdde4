//! Asking a name server, as a container would.

use crate::{
    forward::{Failure, Sockets, Upstream, exchange, exchange_over_tcp},
    query::Query as OwnQuery,
};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, Record, RecordType},
};
use std::{net::IpAddr, str::FromStr, time::Duration};

/// What a name server said.
#[derive(Debug)]
pub struct Reply {
    /// Whether the name is its own.
    pub authoritative: bool,
    /// How it fared, in words.
    pub code: ResponseCode,
    /// Records of the answer.
    pub records: Vec<Record>,
}

/// Why nothing was asked, or nothing answered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum ResolveError {
    #[error("'{0}' is no name: labels have 1 to 63 octets, and 255 together")]
    Name(String),
    #[error("'{0}' is no type of records: write A, AAAA, PTR, SRV, TXT or another")]
    Type(String),
    #[error("{0}")]
    Unanswered(String),
}

/// A question that can be asked.
#[derive(Debug)]
pub struct Question(Vec<u8>);

impl Question {
    /// About a name, or an address for a reverse look-up; of a type as zone files write it. Servers ask others for names that
    /// they do not know if `recursive`, and refuse to answer if not.
    ///
    /// Errors: a name or type that DNS can't express.
    pub fn new(name: &str, rtype: &str, recursive: bool) -> Result<Self, ResolveError> {
        let no_name = || ResolveError::Name(name.to_owned());
        let mut of = match name.parse::<IpAddr>() {
            Ok(address) => Name::from(address),
            Err(_) => Name::from_ascii(name).map_err(|_| no_name())?,
        };
        of.set_fqdn(true);
        let rtype = RecordType::from_str(&rtype.to_ascii_uppercase())
            .map_err(|_| ResolveError::Type(rtype.to_owned()))?;
        let mut message = Message::query();
        message.metadata.recursion_desired = recursive;
        message.add_query(Query::query(of, rtype));
        message.set_edns(Edns::new());
        let octets = message.to_vec().map_err(|_| no_name())?;
        OwnQuery::parse(&octets).map_err(|_| no_name())?;
        Ok(Self(octets))
    }

    /// Asks a server once, over UDP, and over TCP if the answer was cut.
    ///
    /// Errors: it can't be reached, says nothing within `limit`, or something that is no answer.
    pub async fn ask(
        &self,
        server: Upstream,
        sockets: &dyn Sockets,
        limit: Duration,
    ) -> Result<Reply, ResolveError> {
        read(exchange(server, &self.query()?, sockets, false, limit).await)
    }

    /// Asks a server once, over TCP alone.
    ///
    /// Errors: as [`Question::ask`].
    pub async fn ask_over_tcp(
        &self,
        server: Upstream,
        sockets: &dyn Sockets,
        limit: Duration,
    ) -> Result<Reply, ResolveError> {
        read(exchange_over_tcp(server, &self.query()?, sockets, limit).await)
    }

    fn query(&self) -> Result<OwnQuery<'_>, ResolveError> {
        OwnQuery::parse(&self.0).map_err(|_| ResolveError::Unanswered("no question".to_owned()))
    }
}

fn read(reply: Result<Vec<u8>, Failure>) -> Result<Reply, ResolveError> {
    let unanswered = |why: &dyn std::fmt::Display| ResolveError::Unanswered(why.to_string());
    let reply = reply.map_err(|why| unanswered(&why))?;
    let reply = Message::from_vec(&reply).map_err(|why| unanswered(&why))?;
    Ok(Reply {
        authoritative: reply.metadata.authoritative,
        code: reply.metadata.response_code,
        records: reply.answers,
    })
}
