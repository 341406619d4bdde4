//! Queries under way: how many there may be, of all clients together and of one.

use std::{
    collections::HashMap,
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
    of_one: HashMap<IpAddr, usize>,
}

/// The right to have one query under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::default(), most, most_of_one })
    }

    /// None if there are too many.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = under_way.of_one.get(&client).copied().unwrap_or_default();
        if under_way.all >= self.most || of_one >= self.most_of_one {
            return None;
        }
        under_way.all += 1;
        under_way.of_one.insert(client, of_one + 1);
        Some(Permit { clients: Arc::clone(self), client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = self.clients.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.all -= 1;
        if let Some(count) = under_way.of_one.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                under_way.of_one.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_room_for_others_and_all_of_it_comes_back() {
        let clients = Clients::new(5, 3);
        let [one, two]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let held: Vec<Permit> = (0..3).map(|_| clients.admit(one).expect("room")).collect();
        assert!(clients.admit(one).is_none());
        let others: Vec<Permit> = (0..2).map(|_| clients.admit(two).expect("room")).collect();
        assert!(clients.admit(two).is_none(), "all together");
        drop((held, others));
        assert!(clients.admit(one).is_some());
        assert!(clients.under_way.lock().unwrap().of_one.is_empty());
    }
}
