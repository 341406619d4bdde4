//! What opens and what does not.

use super::{ClusterKey, ClusterKeys, MAX_DATAGRAM, OVERHEAD, Opener, Refusal, Sealer};
use proptest::prelude::*;

fn key(id: u32) -> ClusterKey {
    ClusterKey::new(id, [id as u8; 32])
}

fn opener(known: bool) -> Opener {
    let mut opener = Opener::new(ClusterKeys::only(key(1)));
    if known {
        opener.remember([7; 16]);
    }
    opener
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=MAX_DATAGRAM - OVERHEAD)
}

proptest! {
    #[test]
    fn what_is_sealed_opens(messages in prop::collection::vec(message(), 1..8), known: bool) {
        let mut sealer = Sealer::new([7; 16], &key(1));
        for (index, message) in messages.iter().enumerate() {
            let mut datagram = sealer.seal(message);
            prop_assert_eq!(datagram.len(), message.len() + OVERHEAD);
            let opener = opener(known);
            let opened = opener.open(&mut datagram).unwrap();
            prop_assert_eq!(opened.plain, message);
            prop_assert_eq!((opened.session, opened.counter), ([7; 16], index as u64 + 1));
        }
    }

    #[test]
    fn one_bit_changed_and_it_does_not_open(message in message(), bit: prop::sample::Index, known: bool) {
        let mut datagram = Sealer::new([7; 16], &key(1)).seal(&message);
        let bit = bit.index(datagram.len() * 8);
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(opener(known).open(&mut datagram).is_err());
    }

    #[test]
    fn cut_or_lengthened_it_does_not_open(message in message(), cut: prop::sample::Index, more in 1usize..2000) {
        let whole = Sealer::new([7; 16], &key(1)).seal(&message);
        let mut short = whole[..cut.index(whole.len())].to_vec();
        prop_assert!(opener(true).open(&mut short).is_err());
        let mut long = whole;
        long.resize(long.len() + more, 0);
        prop_assert!(opener(true).open(&mut long).is_err());
    }

    #[test]
    fn noise_does_not_open(mut noise in prop::collection::vec(any::<u8>(), 0..2000), like_ours: bool) {
        if like_ours && noise.len() > 5 {
            noise[..5].copy_from_slice(&[1, 0, 0, 0, 1]);
        }
        prop_assert!(opener(true).open(&mut noise).is_err());
    }
}

#[test]
fn a_key_change_has_a_time_for_both() {
    let steps = [
        ClusterKeys::only(key(1)),
        ClusterKeys { current: key(1), other: Some(key(2)) },
        ClusterKeys { current: key(2), other: Some(key(1)) },
        ClusterKeys::only(key(2)),
    ];
    let mut sealer = Sealer::new([7; 16], &key(1));
    let mut opener = opener(true);
    // Nodes that are one step apart understand each other.
    for (behind, ahead) in steps.iter().zip(&steps[1..]) {
        for (seals, opens) in [(behind, ahead), (ahead, behind), (ahead, ahead)] {
            sealer.rekey(&seals.current);
            opener.rekey(opens.clone());
            assert_eq!(opener.open(&mut sealer.seal(b"hello")).unwrap().plain, b"hello");
        }
    }
    sealer.rekey(&key(1));
    assert_eq!(opener.open(&mut sealer.seal(b"removed")).unwrap_err(), Refusal::Key);
}

#[test]
fn another_secret_under_the_same_number_does_not_open() {
    let mut sealer = Sealer::new([7; 16], &ClusterKey::new(1, [9; 32]));
    assert_eq!(opener(false).open(&mut sealer.seal(b"foreign")).unwrap_err(), Refusal::Seal);
}

#[test]
fn only_known_senders_take_memory() {
    let opener = opener(false);
    for session in 0..100 {
        opener.open(&mut Sealer::new([session; 16], &key(1)).seal(b"who?")).unwrap();
    }
    assert!(opener.sessions.is_empty());
}
