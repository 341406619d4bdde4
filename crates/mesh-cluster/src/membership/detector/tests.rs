//! What holders of the key may send without harm.

use super::super::{ClusterKey, ClusterKeys, Liveness, Timings};
use super::super::{seal::Sealer, wire::Codec};
use super::{Detector, Identity, Life};
use foca::{Codec as _, Header, Message};
use mesh_model::NodeId;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Instant;

proptest! {
    #[test]
    fn sealed_nonsense_is_dropped(
        nonsense in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
        headed: bool,
    ) {
        let key = ClusterKey::new(1, [1; 32]);
        let (me, peer) = (NodeId::from_bits(1), NodeId::from_bits(2));
        let life = Life { node: me, generation: 5, session: [1; 16], seed: 1 };
        let now = Instant::now();
        let mut detector = Detector::new(life, ClusterKeys::only(key.clone()), Timings::default(), now);
        let address = |port| ([127, 0, 0, 1], port).into();
        detector.set_nodes(Arc::new([(me, address(1)), (peer, address(2))].into()), now);
        let mut sealer = Sealer::new([2; 16], &key);
        let header = Header {
            src: Identity { node: peer, generation: 1 },
            src_incarnation: 0,
            dst: Identity { node: me, generation: 5 },
            message: Message::Gossip,
        };
        for tail in &nonsense {
            let mut plain = Vec::new();
            if headed {
                Codec.encode_header(&header, &mut plain).unwrap();
            }
            plain.extend_from_slice(tail);
            detector.receive(&mut sealer.seal(&plain), now);
        }
        let tally = detector.tally();
        prop_assert_eq!(tally.taken + tally.dropped(), nonsense.len() as u64);
        prop_assert_eq!(detector.verdicts()[&me], Liveness::Alive);
    }
}
