//! Bytes and messages.

use super::{Codec, Identity, MAX_HEADER, MEMBER, news_of_known};
use foca::{Codec as _, Header, Member, Message, State};
use mesh_model::NodeId;
use proptest::prelude::*;

fn identity() -> impl Strategy<Value = Identity> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(node, generation)| Identity { node: NodeId::from_bits(node), generation })
}

fn header() -> impl Strategy<Value = Header<Identity>> {
    let message = (0u8..10, any::<u8>(), identity()).prop_map(|(kind, probe_number, third)| match kind {
        0 => Message::Ping(probe_number),
        1 => Message::Ack(probe_number),
        2 => Message::PingReq { target: third, probe_number },
        3 => Message::IndirectPing { origin: third, probe_number },
        4 => Message::IndirectAck { target: third, probe_number },
        5 => Message::ForwardedAck { origin: third, probe_number },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        _ => Message::TurnUndead,
    });
    (identity(), any::<u16>(), identity(), message).prop_map(|(src, src_incarnation, dst, message)| Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

fn member() -> impl Strategy<Value = Member<Identity>> {
    let state = prop::sample::select(vec![State::Alive, State::Suspect, State::Down]);
    (identity(), any::<u16>(), state).prop_map(|(id, incarnation, state)| Member::new(id, incarnation, state))
}

proptest! {
    #[test]
    fn headers_and_members_come_back(header in header(), member in member()) {
        let mut bytes = Vec::new();
        Codec.encode_header(&header, &mut bytes).unwrap();
        prop_assert!(bytes.len() <= MAX_HEADER);
        let mut rest = &bytes[..];
        prop_assert_eq!(Codec.decode_header(&mut rest).unwrap(), header);
        prop_assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            prop_assert!(Codec.decode_header(&bytes[..cut]).is_err());
        }

        let mut bytes = Vec::new();
        Codec.encode_member(&member, &mut bytes).unwrap();
        prop_assert_eq!(bytes.len(), MEMBER);
        prop_assert_eq!(Codec.decode_member(&bytes[..]).unwrap(), member);
    }

    #[test]
    fn a_member_that_has_no_room_leaves_nothing(member in member(), room in 0..MEMBER) {
        let mut bytes = vec![0; room];
        prop_assert!(Codec.encode_member(&member, &mut bytes[..]).is_err());
        prop_assert_eq!(bytes, vec![0; room]);
    }

    #[test]
    fn news_of_strangers_is_cut_out(members in prop::collection::vec(member(), 0..20), odd: bool) {
        let mut news = (members.len() as u16).to_be_bytes().to_vec();
        for member in &members {
            Codec.encode_member(member, &mut news).unwrap();
        }
        let known = |node: NodeId| (node.bits() % 2 == 1) == odd;
        let kept = news_of_known(&news, known).unwrap();
        let mut rest = &kept[2..];
        let read: Vec<_> = std::iter::from_fn(|| Codec.decode_member(&mut rest).ok()).collect();
        let wanted: Vec<_> = members.iter().filter(|member| known(member.id().node)).cloned().collect();
        prop_assert_eq!(kept[..2].to_vec(), (wanted.len() as u16).to_be_bytes().to_vec());
        prop_assert_eq!(read, wanted);
        // A count that does not fit what follows is no news at all.
        news.push(0);
        prop_assert_eq!(news_of_known(&news, known), None);
    }
}
