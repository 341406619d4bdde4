//! The netlink socket: transactions and dumps.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

use super::attr::{self, Attributes, Buffer, Header};
use super::batch::Batch;
use super::datum::Datum;
use super::encode;
use super::error::NftError;
use super::table::{Family, Value};
use super::uapi::{SUBSYSTEM, message, nfta};
use crate::netlink::{DATAGRAM_BYTES, DUMP_TRIES, NLMSGERR_ATTR_MSG};

/// Where attributes begin in a capped `struct nlmsgerr` (`linux/netlink.h`).
const ERROR_ATTRIBUTES: usize = 20;
/// `NFPROTO_UNSPEC`.
const UNSPECIFIED: u8 = 0;

/// nf_tables of one network namespace: that of the thread which opened it. The value may then be
/// used on any thread.
pub struct Nft {
    socket: Socket,
    received: Vec<u8>,
}

impl Nft {
    /// Opens nf_tables of the calling thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Ok(Nft { socket, received: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// Applies a batch: all of it, or nothing and an error that names the first object refused.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let sealed = batch.sealed();
        // The whole transaction is one datagram, which has to fit the send buffer.
        setsockopt(&self.socket, SndBufForce, &(sealed.len() + DATAGRAM_BYTES)).map_err(io::Error::from)?;
        self.socket.send(sealed.bytes(), 0)?;
        self.answers(batch)
    }

    /// Removes a table; one that is not there is fine.
    pub fn delete_table(&mut self, family: Family, name: &str) -> Result<(), NftError> {
        let mut batch = Batch::default();
        batch.remove(family, name);
        self.commit(&batch)
    }

    /// The kernel's count of transactions in this network namespace, by anyone. As long as it
    /// stays, no table has changed: far cheaper than a fingerprint.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        let mut generation = 0;
        self.request(message::GETGEN, 0, Family::Ip.number(), |_| {})?;
        self.replies(|message| {
            let bytes = message.attributes().get(nfta::GEN_ID).and_then(|id| id.try_into().ok());
            generation = bytes.map_or(0, u32::from_be_bytes);
        })?;
        Ok(generation)
    }

    /// The kernel has answered everything by the time `send` returns, so that answers are read until
    /// there are none. Acknowledgements come for an aborted batch too: only errors decide.
    fn answers(&mut self, batch: &Batch) -> Result<(), NftError> {
        let mut first_error: Option<(u32, NftError)> = None;
        let mut acknowledged = false;
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in attr::messages(&self.received).filter(|message| message.kind == NLMSG_ERROR) {
                match refusal(&message) {
                    None => acknowledged = true,
                    Some((source, hint)) => {
                        let object = batch.object(message.sequence).to_owned();
                        if first_error.as_ref().is_none_or(|(sequence, _)| message.sequence < *sequence) {
                            let error = NftError::Refused { object, source, hint };
                            first_error = Some((message.sequence, error));
                        }
                    }
                }
            }
        }
        match first_error {
            Some((_, error)) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NftError::Unanswered(batch.len())),
        }
    }

    /// Dumps one kind of object; `request` narrows it down. A dump that others disturb starts anew.
    pub(super) fn dump<T: Default>(
        &mut self,
        kind: u16,
        family: Family,
        request: impl Fn(&mut Buffer),
        mut each: impl FnMut(&mut T, Attributes<'_>),
    ) -> Result<T, NftError> {
        for _ in 0..DUMP_TRIES {
            let mut collected = T::default();
            self.request(kind, NLM_F_DUMP, family.number(), &request)?;
            let whole = self.replies(|message| each(&mut collected, message.attributes()))?;
            if whole {
                return Ok(collected);
            }
        }
        Err(NftError::Interrupted(DUMP_TRIES))
    }

    /// Dumps one kind of object of all families, whose numbers (`NFPROTO_*`) are told with it.
    pub(super) fn dump_all<T: Default>(
        &mut self,
        kind: u16,
        mut each: impl FnMut(&mut T, u8, Attributes<'_>),
    ) -> Result<T, NftError> {
        for _ in 0..DUMP_TRIES {
            let mut collected = T::default();
            self.request(kind, NLM_F_DUMP, UNSPECIFIED, |_| {})?;
            let whole = self.replies(|message| {
                let family = message.payload.first().copied().unwrap_or(UNSPECIFIED);
                each(&mut collected, family, message.attributes());
            })?;
            if whole {
                return Ok(collected);
            }
        }
        Err(NftError::Interrupted(DUMP_TRIES))
    }

    /// Whether a set or map has an element of this key; if there is no such set, it has not.
    pub fn has_element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[Datum],
    ) -> Result<bool, NftError> {
        self.has_element_of(family.number(), table, set, key)
    }

    /// The same for a table of any family (`NFPROTO_*`).
    pub(super) fn has_element_of(
        &mut self,
        family: u8,
        table: &str,
        set: &str,
        key: &[Datum],
    ) -> Result<bool, NftError> {
        self.exists(message::GETSETELEM, family, |b| {
            b.text(nfta::SET_ELEM_LIST_TABLE, table);
            b.text(nfta::SET_ELEM_LIST_SET, set);
            b.nested(nfta::SET_ELEM_LIST_ELEMENTS, |b| encode::element(b, key, &Value::Member));
        })
    }

    /// Whether an object that is asked for by name exists.
    pub(super) fn exists(
        &mut self,
        kind: u16,
        family: u8,
        name: impl Fn(&mut Buffer),
    ) -> Result<bool, NftError> {
        self.request(kind, 0, family, name)?;
        match self.replies(|_| {}) {
            Ok(_) => Ok(true),
            Err(NftError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Buffer),
    ) -> Result<(), NftError> {
        let header = Header {
            kind: SUBSYSTEM << 8 | kind,
            flags: NLM_F_REQUEST | flags,
            sequence: 0,
            family,
            resource: 0,
        };
        let mut buffer = Buffer::default();
        buffer.message(header, fill);
        self.socket.send(buffer.bytes(), 0)?;
        Ok(())
    }

    /// Reads the replies to a request; whether they end a dump that nothing interrupted.
    fn replies(&mut self, mut each: impl FnMut(attr::Message<'_>)) -> Result<bool, NftError> {
        let (mut done, mut interrupted) = (false, false);
        let mut refused = None;
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in attr::messages(&self.received) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => refused = refusal(&message).or(refused),
                    _ => each(message),
                }
            }
        }
        match refused {
            Some((source, hint)) => Err(NftError::Refused { object: "query".to_owned(), source, hint }),
            None => Ok(done && !interrupted),
        }
    }

    /// Receives one datagram; false if there is none now.
    fn receive(&mut self, flags: i32) -> Result<bool, NftError> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The error in an `NLMSG_ERROR` message, with the kernel's words for it; nothing in an acknowledgement.
fn refusal(message: &attr::Message<'_>) -> Option<(io::Error, String)> {
    let number = attr::word(message.payload, 0)? as i32;
    if number == 0 {
        return None;
    }
    let attributes = Attributes(message.payload.get(ERROR_ATTRIBUTES..).unwrap_or_default());
    let hint = attributes.text(NLMSGERR_ATTR_MSG).map(|text| format!(": {text}")).unwrap_or_default();
    Some((io::Error::from_raw_os_error(-number), hint))
}
