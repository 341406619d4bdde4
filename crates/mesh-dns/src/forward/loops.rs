//! Upstreams that ask us in turn: a host's resolver that forwards to our own address, say. A question that nobody else asks
//! goes to each; if it arrives, that upstream is not asked. Its name is beside our domain, not below it: hosts send that one
//! to us on purpose.

use super::{Sockets, Upstream, exchange};
use crate::{
    query::Query,
    wire::{HEADER_LEN, flag, rtype},
};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tracing::{error, info};

/// How long a question may take to come back.
const LIMIT: Duration = Duration::from_secs(2);
/// Hexadecimal digits of the first label.
const DIGITS: usize = 32;
/// What follows it.
const REST: &[u8] = b"\x09mesh-loop\x08internal\x00";

/// What is known of loops.
#[derive(Debug, Default)]
pub(super) struct Loops {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Questions that may come back, by their number.
    awaited: HashMap<u128, Probed>,
    /// Those that came back this time.
    seen: HashSet<Upstream>,
    looping: HashSet<Upstream>,
}

/// Whom a question goes to.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) upstream: Upstream,
    /// The addresses that it may ask from itself: what comes from them is sent to others.
    pub(super) asking: Vec<IpAddr>,
}

/// Whether a message may be a question of [`Loops::look`].
pub(crate) fn is_probe(message: &[u8]) -> bool {
    let rest = HEADER_LEN + 1 + DIGITS;
    message.get(HEADER_LEN) == Some(&(DIGITS as u8))
        && message.get(rest..rest + REST.len()).is_some_and(|found| found.eq_ignore_ascii_case(REST))
}

impl Loops {
    pub(super) fn has(&self, upstream: &Upstream) -> bool {
        self.lock().looping.contains(upstream)
    }

    /// Notes a question that has come back. From a resolver in a network it may: what that asks is asked of others
    /// ([`super::Routes`]), not of itself. Returns whether it is one of ours.
    pub(super) fn note(&self, message: &[u8], client: IpAddr) -> bool {
        let Some(number) = number(message) else { return false };
        let mut state = self.lock();
        let State { awaited, seen, .. } = &mut *state;
        let probed = awaited.get(&number);
        seen.extend(probed.filter(|probed| !probed.asking.contains(&client)).map(|probed| probed.upstream));
        probed.is_some()
    }

    /// Has these come back from now on, and no others.
    pub(super) fn expect(&self, questions: impl Iterator<Item = (u128, Probed)>) {
        let mut state = self.lock();
        state.seen.clear();
        state.awaited = questions.collect();
    }

    /// Asks each of these, and waits until the question has come back or nothing more is to be expected.
    pub(super) async fn look(&self, probed: Vec<Probed>, sockets: &dyn Sockets) {
        let numbered: Vec<(u128, Upstream)> =
            probed.iter().map(|probed| (rand::random(), probed.upstream)).collect();
        self.expect(numbered.iter().map(|(number, _)| *number).zip(probed));
        let questions: Vec<Vec<u8>> = numbered.iter().map(|(number, _)| question(*number)).collect();
        let asked = numbered.iter().zip(&questions).map(|((_, upstream), question)| async move {
            if let Ok(query) = Query::parse(question) {
                // What it answers, if at all, is of no interest.
                drop(exchange(*upstream, &query, sockets, false, LIMIT).await);
            }
        });
        futures_util::future::join_all(asked).await;
        let mut state = self.lock();
        let State { awaited, seen, looping } = &mut *state;
        awaited.clear();
        for upstream in seen.difference(looping) {
            error!(
                upstream = %upstream.address,
                "an upstream resolver asks this node in turn: it is not asked until that ends"
            );
        }
        for upstream in looping.difference(seen) {
            info!(upstream = %upstream.address, "an upstream resolver does not ask this node any more");
        }
        *looping = std::mem::take(seen);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of a question; none if it has none as [`question`] writes it, whatever the case.
fn number(message: &[u8]) -> Option<u128> {
    let digits = message.get(HEADER_LEN + 1..HEADER_LEN + 1 + DIGITS)?;
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u128::from_str_radix(digits, 16).ok()
}

fn question(number: u128) -> Vec<u8> {
    let mut message = Vec::new();
    for word in [0, flag::RECURSION_DESIRED, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    message.push(DIGITS as u8);
    message.extend(format!("{number:032x}").into_bytes());
    message.extend(REST);
    message.extend(rtype::A.to_be_bytes());
    message.extend([0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_known_again_whatever_its_letters() {
        let loops = Loops::default();
        let upstream = Upstream { address: ([192, 0, 2, 1], 53).into(), network: None };
        let number = 0xfeed << 100;
        loops.lock().awaited.insert(number, Probed { upstream, asking: Vec::new() });
        let mut ours = question(number);
        ours[HEADER_LEN + 1..].make_ascii_uppercase();
        let client = [192, 0, 2, 1].into();
        let others = question(number + 1);
        assert!(!loops.note(&others, client));
        assert!(is_probe(&others) && loops.lock().seen.is_empty());
        assert!(loops.note(&ours, client));
        assert!(is_probe(&ours) && loops.lock().seen.contains(&upstream));
        assert!(!is_probe(&ours[..ours.len() - 8]) && !is_probe(&[]));
    }

    #[test]
    fn a_resolver_may_ask_from_any_of_its_addresses() {
        let loops = Loops::default();
        let upstream = Upstream {
            address: ([10, 0, 0, 53], 53).into(),
            network: Some(mesh_model::NetworkId::from_bits(1)),
        };
        let asking: Vec<IpAddr> = vec![[10, 0, 0, 53].into(), "fd00::53".parse().unwrap()];
        loops.lock().awaited.insert(7, Probed { upstream, asking: asking.clone() });
        for client in asking {
            assert!(loops.note(&question(7), client), "it goes no further");
            assert!(loops.lock().seen.is_empty(), "{client}");
        }
        assert!(loops.note(&question(7), [10, 0, 0, 1].into()));
        assert!(loops.lock().seen.contains(&upstream), "somebody else's question is a loop");
    }
}
