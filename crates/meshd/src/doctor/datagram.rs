//! What probes say to each other over an overlay. Pure.
//!
//! ```text
//!  0        8      9       10         16      24      32            length - 8
//!  ├─ magic ┼ kind ┼ flags ┼ reserved ┼ nonce ┼ clock ┼ padding … ──┼ digest ┤
//! ```
//!
//! Numbers are in network order. The digest (SHA-256, its first eight bytes) covers all before it, so that what arrives is
//! what was sent, whether the datagram bore a checksum or not. The clock is in milliseconds since 1970.

use ring::digest::{SHA256, digest};

/// Length of a small datagram, and of the shortest that is one.
pub(super) const SMALL: usize = 64;

const MAGIC: &[u8; 8] = b"meshprb1";
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
/// In a question: let the answer have a UDP checksum; let it be as long as the question.
const SUMMED: u8 = 1;
const FULL: u8 = 2;
/// In an answer: it should have been as long as the question, which this node can't send.
const TOO_LONG: u8 = 4;
const DIGEST: usize = 8;

/// From the node that looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    /// Chosen by who asks; comes back.
    pub(super) nonce: u64,
    /// The answer is to have a UDP checksum.
    pub(super) summed: bool,
    /// The answer is to be as long as the question; small otherwise.
    pub(super) full: bool,
}

/// From the node that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// Of the question.
    pub(super) nonce: u64,
    /// The time of day there.
    pub(super) clock: u64,
    /// A full answer would have been longer than what that node sends.
    pub(super) too_long: bool,
}

impl Question {
    /// A datagram of a length, which is at least [`SMALL`].
    pub(super) fn encode(&self, length: usize) -> Vec<u8> {
        let flags = (u8::from(self.summed) * SUMMED) | (u8::from(self.full) * FULL);
        encode(QUESTION, flags, self.nonce, 0, length)
    }

    pub(super) fn decode(datagram: &[u8]) -> Option<Self> {
        let (flags, nonce, _) = decode(QUESTION, datagram)?;
        Some(Self { nonce, summed: flags & SUMMED != 0, full: flags & FULL != 0 })
    }
}

impl Answer {
    /// A datagram of a length, which is at least [`SMALL`].
    pub(super) fn encode(&self, length: usize) -> Vec<u8> {
        encode(ANSWER, u8::from(self.too_long) * TOO_LONG, self.nonce, self.clock, length)
    }

    pub(super) fn decode(datagram: &[u8]) -> Option<Self> {
        let (flags, nonce, clock) = decode(ANSWER, datagram)?;
        Some(Self { nonce, clock, too_long: flags & TOO_LONG != 0 })
    }
}

fn encode(kind: u8, flags: u8, nonce: u64, clock: u64, length: usize) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(length);
    datagram.extend(MAGIC);
    datagram.extend([kind, flags, 0, 0, 0, 0, 0, 0]);
    datagram.extend(nonce.to_be_bytes());
    datagram.extend(clock.to_be_bytes());
    // Not all alike: a checksum that is right for zeros says little.
    let padding = length.saturating_sub(datagram.len() + DIGEST);
    datagram.extend((0..padding).map(|at| (nonce.rotate_left(at as u32 & 63) ^ at as u64) as u8));
    datagram.extend(&digest(&SHA256, &datagram).as_ref()[..DIGEST]);
    datagram
}

fn decode(kind: u8, datagram: &[u8]) -> Option<(u8, u64, u64)> {
    if datagram.len() < SMALL || datagram[..8] != *MAGIC || datagram[8] != kind {
        return None;
    }
    let (said, sum) = datagram.split_at(datagram.len() - DIGEST);
    if digest(&SHA256, said).as_ref()[..DIGEST] != *sum {
        return None;
    }
    let number = |at: usize| Some(u64::from_be_bytes(datagram.get(at..at + 8)?.try_into().ok()?));
    Some((datagram[9], number(16)?, number(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_said_is_heard(nonce: u64, clock: u64, one: bool, two: bool, length in SMALL..2000) {
            let question = Question { nonce, summed: one, full: two };
            let datagram = question.encode(length);
            prop_assert_eq!(datagram.len(), length);
            prop_assert_eq!(Question::decode(&datagram), Some(question));
            prop_assert_eq!(Answer::decode(&datagram), None);
            let answer = Answer { nonce, clock, too_long: one };
            prop_assert_eq!(Answer::decode(&answer.encode(length)), Some(answer));
            prop_assert_eq!(Question::decode(&answer.encode(length)), None);
        }

        #[test]
        fn one_bit_is_noticed(nonce: u64, length in SMALL..300, at: prop::sample::Index, bit in 0..8u8) {
            let mut datagram = Question { nonce, summed: true, full: false }.encode(length);
            let at = at.index(datagram.len());
            datagram[at] ^= 1 << bit;
            prop_assert_eq!(Question::decode(&datagram), None);
        }

        #[test]
        fn no_datagram_is_too_strange(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Question::decode(&datagram), None);
            prop_assert_eq!(Answer::decode(&datagram), None);
        }
    }
}
