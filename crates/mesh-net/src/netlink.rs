//! rtnetlink, synchronously: batches of requests with their acknowledgements, and dumps (RFC 3549,
//! `linux/rtnetlink.h`). A socket belongs to the namespace that its thread was in when it was opened.

mod decode;
mod encode;
mod monitor;

pub(crate) use decode::{RawLink, RawSpace, link_named, read_defaults, read_links};
pub(crate) use encode::{
    Place, add_pair, change_link, delete, get_configured_route, get_route, make, turn_switches,
};

pub(crate) use monitor::Monitor;

use crate::error::{Error, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// Requests sent at once: their acknowledgements (about 1 KiB of socket memory each) must fit the receive buffer,
/// whose default is 208 KiB.
const BATCH: usize = 100;
/// Room for a datagram: the kernel fills those of a dump up to 32 KiB if the reader takes as much.
pub(crate) const DATAGRAM_BYTES: usize = 64 * 1024;
/// Tries of a dump that the kernel says was not consistent, because of other changes meanwhile.
pub(crate) const DUMP_TRIES: u32 = 8;
/// The attribute of `linux/netlink.h` that holds the kernel's own words in a refusal.
pub(crate) const NLMSGERR_ATTR_MSG: u16 = 1;

const HEADER_BYTES: usize = 16;

/// One request: the message and its flags besides REQUEST and ACK.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

/// Why the kernel refused a request.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) source: io::Error,
    /// The kernel's own words, if it had any.
    pub(crate) text: Option<String>,
}

impl Refused {
    /// What was to be deleted is not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }
}

/// An rtnetlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            // Refusals need not repeat the request.
            socket.set_cap_ack(true)?;
            // Dumps hold what was asked for only. A kernel before 4.20 sends everything, which is looked through here.
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(socket)
        };
        let socket = open().map_err(Error::Socket)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// Sends requests; the answers are in their order. A refused one does not stop those after it.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Refused>>> {
        let mut answers = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for request in chunk {
                self.append(&mut bytes, request.message.clone(), request.flags | NLM_F_ACK);
            }
            self.socket.send(&bytes, 0).map_err(Error::Socket)?;
            let before = answers.len();
            answers.extend((0..chunk.len()).map(|_| None));
            let mut missing = chunk.len();
            while missing > 0 {
                self.receive()?;
                for message in Messages(&self.buffer) {
                    let at = message.sequence.wrapping_sub(first) as usize;
                    if let (NLMSG_ERROR, Some(slot)) = (message.kind, answers[before..].get_mut(at)) {
                        missing -= usize::from(slot.replace(message.outcome()).is_none());
                    }
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Asks for a route; `None` if the kernel has none, for whatever reason.
    pub(crate) fn get_route(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message)?.ok().flatten())
    }

    /// Asks for one object; `None` if the kernel has none such.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>> {
        match self.ask(message)? {
            Ok(found) => Ok(found),
            Err(refused) if refused.is_absent() => Ok(None),
            Err(refused) => Err(Error::Socket(refused.source)),
        }
    }

    fn ask(&mut self, message: RouteNetlinkMessage) -> Result<Result<Option<RouteNetlinkMessage>, Refused>> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, 0);
        self.socket.send(&bytes, 0).map_err(Error::Socket)?;
        loop {
            self.receive()?;
            if let Some(answer) = Messages(&self.buffer).find(|message| message.sequence == sequence) {
                let refused = if answer.kind == NLMSG_ERROR { answer.outcome() } else { Ok(()) };
                return Ok(refused.map(|()| answer.decode()));
            }
        }
    }

    /// Reads all objects of a kind. What can't be decoded is of a kind that is not made here, and left out.
    pub(crate) fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        self.dump_where(message, |_| true)
    }

    /// The same, of those that a look at the message's payload picks: the others are not even decoded.
    pub(crate) fn dump_where(
        &mut self,
        message: &RouteNetlinkMessage,
        pick: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            let (found, consistent) = self.dump_once(message.clone(), &pick)?;
            if consistent {
                return Ok(found);
            }
        }
        Err(Error::Socket(io::Error::new(
            io::ErrorKind::Interrupted,
            "the state kept changing while it was read",
        )))
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
        pick: impl Fn(&[u8]) -> bool,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_DUMP);
        self.socket.send(&bytes, 0).map_err(Error::Socket)?;
        let (mut found, mut consistent) = (Vec::new(), true);
        loop {
            self.receive()?;
            for message in Messages(&self.buffer).filter(|message| message.sequence == sequence) {
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    // Both bear an error number: a dump that fails half way ends, too.
                    NLMSG_DONE | NLMSG_ERROR => {
                        message.outcome().map_err(|refused| Error::Socket(refused.source))?;
                        if message.kind == NLMSG_DONE {
                            return Ok((found, consistent));
                        }
                    }
                    _ if pick(&message.bytes[HEADER_BYTES..]) => found.extend(message.decode()),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn receive(&mut self) -> Result<()> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop).map_err(Error::Socket),
            }
        }
    }
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let bytes = self.0.get(..length).filter(|bytes| bytes.len() >= HEADER_BYTES)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            bytes,
        })
    }
}

impl Message<'_> {
    /// What an NLMSG_ERROR or NLMSG_DONE says: zero is the acknowledgement.
    fn outcome(&self) -> Result<(), Refused> {
        let code = self.bytes.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|b| b.try_into().ok());
        match code.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(code) => {
                Err(Refused { source: io::Error::from_raw_os_error(-code), text: self.extended_text() })
            }
            None => Err(Refused { source: io::ErrorKind::UnexpectedEof.into(), text: None }),
        }
    }

    /// NLMSGERR_ATTR_MSG, which follows the capped header of the request.
    fn extended_text(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let mut rest = self.bytes.get(HEADER_BYTES + 4 + HEADER_BYTES..)?;
        loop {
            let length: usize = u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?).into();
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
            let value = rest.get(4..length)?;
            if kind == NLMSGERR_ATTR_MSG {
                return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }

    fn decode(&self) -> Option<RouteNetlinkMessage> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.bytes);
        match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(inner)) => Some(inner),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(kind = self.kind, %error, "a netlink message was left out");
                None
            }
        }
    }
}
