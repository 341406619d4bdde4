//! What foca says, as bytes: fixed sizes, big-endian, nothing that a length from outside could make grow.

use bytes::{Buf, BufMut, TryGetError};
use foca::{Header, Member, Message, State};
use mesh_model::NodeId;

/// A life of a node. Its address is not part of it: that is the snapshot's word, not the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    /// Grows with every life; the higher one wins.
    pub(super) generation: u64,
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("cut short")]
    Short(#[from] TryGetError),
    #[error("no room")]
    NoRoom,
    #[error("unknown value {0}")]
    Unknown(u8),
}

/// Bytes of a [`Member`].
pub(super) const MEMBER: usize = IDENTITY + 2 + 1;
const IDENTITY: usize = 8 + 8;
/// The longest header: one that names a third node.
pub(super) const MAX_HEADER: usize = 3 * IDENTITY + 2 + 1 + 1;

/// The layout, version 1.
pub(super) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), WireError> {
        if buf.remaining_mut() < MAX_HEADER {
            return Err(WireError::NoRoom);
        }
        put_identity(header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_identity(header.dst, &mut buf);
        let (kind, probe, third) = match header.message {
            Message::Ping(probe) => (1, Some(probe), None),
            Message::Ack(probe) => (2, Some(probe), None),
            Message::PingReq { target, probe_number } => (3, Some(probe_number), Some(target)),
            Message::IndirectPing { origin, probe_number } => (4, Some(probe_number), Some(origin)),
            Message::IndirectAck { target, probe_number } => (5, Some(probe_number), Some(target)),
            Message::ForwardedAck { origin, probe_number } => (6, Some(probe_number), Some(origin)),
            Message::Announce => (7, None, None),
            Message::Feed => (8, None, None),
            Message::Gossip => (9, None, None),
            Message::Broadcast => (10, None, None),
            Message::TurnUndead => (11, None, None),
        };
        buf.put_u8(kind);
        if let Some(probe) = probe {
            buf.put_u8(probe);
        }
        if let Some(third) = third {
            put_identity(third, &mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, WireError> {
        let src = get_identity(&mut buf)?;
        let src_incarnation = buf.try_get_u16()?;
        let dst = get_identity(&mut buf)?;
        let message = match buf.try_get_u8()? {
            1 => Message::Ping(buf.try_get_u8()?),
            2 => Message::Ack(buf.try_get_u8()?),
            3 => Message::PingReq { probe_number: buf.try_get_u8()?, target: get_identity(&mut buf)? },
            4 => Message::IndirectPing { probe_number: buf.try_get_u8()?, origin: get_identity(&mut buf)? },
            5 => Message::IndirectAck { probe_number: buf.try_get_u8()?, target: get_identity(&mut buf)? },
            6 => Message::ForwardedAck { probe_number: buf.try_get_u8()?, origin: get_identity(&mut buf)? },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            11 => Message::TurnUndead,
            unknown => return Err(WireError::Unknown(unknown)),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<Identity>, mut buf: impl BufMut) -> Result<(), WireError> {
        if buf.remaining_mut() < MEMBER {
            return Err(WireError::NoRoom);
        }
        put_identity(*member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, WireError> {
        let id = get_identity(&mut buf)?;
        let incarnation = buf.try_get_u16()?;
        let state = match buf.try_get_u8()? {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            unknown => return Err(WireError::Unknown(unknown)),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

/// The node besides sender and receiver that a message makes the receiver write to or think of.
pub(super) fn third_party(message: &Message<Identity>) -> Option<NodeId> {
    match message {
        Message::PingReq { target: third, .. }
        | Message::IndirectPing { origin: third, .. }
        | Message::IndirectAck { target: third, .. }
        | Message::ForwardedAck { origin: third, .. } => Some(third.node),
        _ => None,
    }
}

/// The news after a header, less what is about nodes that are not `known`. `None` if `news` is no list of members.
pub(super) fn news_of_known(news: &[u8], known: impl Fn(NodeId) -> bool) -> Option<Vec<u8>> {
    if news.is_empty() {
        return Some(Vec::new());
    }
    let (count, members) = news.split_first_chunk()?;
    if usize::from(u16::from_be_bytes(*count)) * MEMBER != members.len() {
        return None;
    }
    let mut kept = vec![0; 2];
    for mut member in members.chunks_exact(MEMBER) {
        let bytes = member;
        if known(NodeId::from_bits(member.get_u64())) {
            kept.extend_from_slice(bytes);
        }
    }
    let count = u16::try_from((kept.len() - 2) / MEMBER).expect("no more than came");
    kept[..2].copy_from_slice(&count.to_be_bytes());
    Some(kept)
}

fn put_identity(identity: Identity, buf: &mut impl BufMut) {
    buf.put_u64(identity.node.bits());
    buf.put_u64(identity.generation);
}

fn get_identity(buf: &mut impl Buf) -> Result<Identity, WireError> {
    Ok(Identity { node: NodeId::from_bits(buf.try_get_u64()?), generation: buf.try_get_u64()? })
}

#[cfg(test)]
mod tests;
