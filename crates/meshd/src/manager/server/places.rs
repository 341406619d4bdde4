//! Places at the managers' port, so many for each who comes: whoever takes too many loses its own oldest ones.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of one holder. One more ends its oldest.
    pub(super) each: usize,
    /// Altogether. One more ends the oldest of whoever holds most.
    pub(super) all: usize,
}

/// The places, by who holds them.
#[derive(Debug)]
pub(super) struct Places<K: Ord + Copy> {
    limits: Limits,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    next: u64,
    taken: usize,
    /// What ends each connection, the oldest first.
    holders: BTreeMap<K, BTreeMap<u64, CancellationToken>>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<K: Ord + Copy> {
    among: Arc<Places<K>>,
    holder: K,
    number: u64,
    end: CancellationToken,
}

/// Who is counted as one stranger: an IPv4 address, or a network of IPv6, in which anybody has as many addresses as he
/// wants (RFC 4291, 2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }
}

impl<K: Ord + Copy> Places<K> {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let table = Table { next: 0, taken: 0, holders: BTreeMap::new() };
        Arc::new(Self { limits, table: Mutex::new(table) })
    }

    /// Takes one in; somebody has to go if there are too many.
    pub(super) fn admit(self: &Arc<Self>, holder: K) -> Place<K> {
        let end = CancellationToken::new();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.taken += 1;
        let own = table.holders.entry(holder).or_default();
        own.insert(number, end.clone());
        if own.len() > self.limits.each {
            table.end_oldest(holder);
        } else if table.taken > self.limits.all
            && let Some(largest) = table.largest()
        {
            table.end_oldest(largest);
        }
        drop(table);
        Place { among: Arc::clone(self), holder, number, end }
    }

    /// Ends all that somebody holds.
    pub(super) fn end_all(&self, holder: K) {
        self.lock()
            .holders
            .get(&holder)
            .into_iter()
            .flat_map(BTreeMap::values)
            .for_each(CancellationToken::cancel);
    }

    fn lock(&self) -> MutexGuard<'_, Table<K>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Copy> Table<K> {
    /// Who holds most; of several, who has come first.
    fn largest(&self) -> Option<K> {
        let oldest = |held: &BTreeMap<u64, _>| held.keys().next().copied();
        let largest = self.holders.iter().max_by_key(|(_, held)| (held.len(), Reverse(oldest(held))));
        largest.map(|(holder, _)| *holder)
    }

    fn end_oldest(&mut self, holder: K) {
        let oldest = self.holders.get(&holder).and_then(|held| held.first_key_value());
        if let Some((number, end)) = oldest {
            let number = *number;
            end.cancel();
            self.remove(holder, number);
        }
    }

    fn remove(&mut self, holder: K, number: u64) {
        let Some(held) = self.holders.get_mut(&holder) else { return };
        if held.remove(&number).is_some() {
            self.taken -= 1;
        }
        if held.is_empty() {
            self.holders.remove(&holder);
        }
    }
}

impl<K: Ord + Copy> Place<K> {
    /// Does something for as long as the place is kept; `None` if that was not long enough.
    pub(super) async fn while_kept<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.end.run_until_cancelled(work).await
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        self.among.lock().remove(self.holder, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended<K: Ord + Copy>(places: &[Place<K>]) -> Vec<bool> {
        places.iter().map(|place| place.end.is_cancelled()).collect()
    }

    #[tokio::test]
    async fn who_takes_too_many_loses_the_oldest() {
        let places = Places::new(Limits { each: 2, all: 9 });
        let others: Vec<_> = (1..=3).map(|holder| places.admit(holder)).collect();
        let own: Vec<_> = (0..4).map(|_| places.admit(0)).collect();
        assert_eq!(ended(&own), [true, true, false, false]);
        assert_eq!(ended(&others), [false; 3]);
        assert_eq!(own[0].while_kept(std::future::pending::<()>()).await, None);
        drop(own);
        assert_eq!(places.lock().taken, 3);
        assert_eq!(places.lock().holders.len(), 3, "who has left holds nothing");
    }

    #[test]
    fn when_all_are_taken_whoever_has_most_makes_room() {
        let places = Places::new(Limits { each: 4, all: 6 });
        let first = [places.admit("agent")];
        let crowd: Vec<_> = (0..4).map(|_| places.admit("crowd")).collect();
        let rest: Vec<_> = ["b", "c", "d"].into_iter().map(|holder| places.admit(holder)).collect();
        assert_eq!(ended(&crowd), [true, true, false, false]);
        assert_eq!((ended(&first), ended(&rest)), (vec![false], vec![false; 3]));
        drop(crowd);
        let more: Vec<_> = ["e", "f", "g"].into_iter().map(|holder| places.admit(holder)).collect();
        assert_eq!(ended(&first), [true], "of equals the oldest");
        assert_eq!((ended(&rest), ended(&more)), (vec![false; 3], vec![false; 3]));
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        let origin = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(origin("2001:db8:1:2::3"), origin("2001:db8:1:2:ffff::1"));
        assert_ne!(origin("2001:db8:1:2::3"), origin("2001:db8:1:3::3"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
    }
}
