//! Queries under way: how many there may be, of all clients together, of one network's and of one.
//!
//! A network may have three quarters of the places that the others leave. So one alone has most of them, whoever comes next
//! finds a quarter of what was left, and all come to have the same when places are given back; nothing is kept for networks that
//! ask nothing, however many there are, and all together are never more than [`Clients`] has places.

use super::Party;
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Debug)]
pub(super) struct Clients {
    under_way: Mutex<UnderWay>,
    most: usize,
    most_of_one: usize,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    of_party: HashMap<Party, usize>,
    of_one: HashMap<IpAddr, usize>,
}

/// The right to have one query under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Clients>,
    party: Party,
    client: IpAddr,
}

impl Clients {
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::default(), most, most_of_one })
    }

    /// None if there are too many.
    pub(super) fn admit(self: &Arc<Self>, party: Party, client: IpAddr) -> Option<Permit> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let of_party = under_way.of_party.get(&party).copied().unwrap_or_default();
        let of_one = under_way.of_one.get(&client).copied().unwrap_or_default();
        let left_by_others = self.most.saturating_sub(under_way.all - of_party);
        if under_way.all >= self.most || 4 * of_party >= 3 * left_by_others || of_one >= self.most_of_one {
            return None;
        }
        under_way.all += 1;
        under_way.of_party.insert(party, of_party + 1);
        under_way.of_one.insert(client, of_one + 1);
        Some(Permit { clients: Arc::clone(self), party, client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = self.clients.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.all -= 1;
        one_less(&mut under_way.of_party, &self.party);
        one_less(&mut under_way.of_one, &self.client);
    }
}

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn one_client_leaves_room_for_others_and_all_of_it_comes_back() {
        let (clients, party) = (Clients::new(8, 4), Party::new());
        let held: Vec<Permit> = (0..4).map(|_| clients.admit(party, client(1)).expect("room")).collect();
        assert!(clients.admit(party, client(1)).is_none());
        let others: Vec<Permit> = (0..2).map(|_| clients.admit(party, client(2)).expect("room")).collect();
        assert!(clients.admit(party, client(2)).is_none(), "all of the network together");
        drop((held, others));
        assert!(clients.admit(party, client(1)).is_some());
        let under_way = clients.under_way.lock().unwrap();
        assert!(under_way.of_one.is_empty() && under_way.of_party.is_empty() && under_way.all == 0);
    }

    #[test]
    fn networks_that_want_all_leave_some_for_the_next_and_come_to_have_the_same() {
        let clients = Clients::new(4096, 4096);
        let parties: [Party; 4] = std::array::from_fn(|_| Party::new());
        let mut held: [Vec<Permit>; 4] = Default::default();
        let fill = |held: &mut [Vec<Permit>; 4]| {
            for (party, held) in parties.iter().zip(held) {
                held.extend(std::iter::from_fn(|| clients.admit(*party, client(1))));
            }
        };
        fill(&mut held);
        assert_eq!(held.each_ref().map(Vec::len), [3072, 768, 192, 48]);
        // Each gives back some of its places and wants them again, all in turn.
        for _ in 0..1000 {
            held.iter_mut().for_each(|held| held.truncate(held.len() - held.len().div_ceil(50)));
            fill(&mut held);
        }
        let counts = held.each_ref().map(Vec::len);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 800 && *most < 1100, "{counts:?}");
        assert!(clients.admit(Party::new(), client(2)).is_some(), "a fifth still finds room");
    }
}
