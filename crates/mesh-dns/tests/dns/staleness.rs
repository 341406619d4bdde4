//! A name whose address changes with each swap of its table, and for how long what is said of it had not been true any more.
//! Part of the suite and of the bench beside peers (`benches/benches/peers_dns`).

use mesh_dns::{Published, Zone};
use mesh_model::{Change, Endpoint, Key, Object, Snapshot};
use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How often the table is swapped, if it can be.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);
/// What an answer may be behind.
pub(crate) const MAX_AGE: Duration = Duration::from_millis(100);
/// The name that changes has this address and the ones behind it, in turn.
const CHANGING: Ipv4Addr = Ipv4Addr::new(10, 131, 0, 0);
/// Between an answer and the next question for the name that changes.
const PAUSE: Duration = Duration::from_millis(1);

/// What was said of the name that changes. The suite goes by one moment, the bench by the other.
#[allow(dead_code)]
pub(crate) struct Said {
    address: Ipv4Addr,
    pub(crate) asked: SystemTime,
    pub(crate) heard: SystemTime,
}

/// All that was said, and how many questions nobody answered.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) said: Vec<Said>,
    pub(crate) lost: u64,
}

/// Changes one record and swaps the table for one that has the change, again and again, while that is wanted, until it is over.
/// Says of each when the record changed.
pub(crate) fn keep_swapping(
    mut snapshot: Snapshot,
    changing: &Endpoint,
    table: &Published,
    is_wanted: impl Fn() -> bool,
    is_over: impl Fn() -> bool,
    mut swapped: impl FnMut(SystemTime),
) {
    let Some(mut names) = Zone::new(&snapshot, changing.network) else { return };
    let mut next = Instant::now();
    let mut addresses = (CHANGING.to_bits()..).map(Ipv4Addr::from_bits);
    while !is_over() {
        // One that takes too long is followed by the next at once, not by all that were left out.
        next = Instant::now().max(next + INTERVAL);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if !is_wanted() {
            continue;
        }
        let Some(address) = addresses.next() else { return };
        let at = SystemTime::now();
        let changed = Endpoint { addresses: vec![address.into()], ..changing.clone() };
        snapshot.apply(Change::Put(Object::Endpoint(Arc::new(changed))));
        names.update(&snapshot, &[Key::Endpoint(changing.id)]);
        table.store(Arc::new(names.table()));
        swapped(at);
    }
}

impl Heard {
    /// Asks for the name that changes until it is over. The socket is connected, and says by its limit when a question is lost.
    pub(crate) fn ask(&mut self, socket: &UdpSocket, query: &[u8], over: &AtomicBool) -> std::io::Result<()> {
        let mut answer = [0; 512];
        while !over.load(Ordering::Relaxed) {
            let asked = SystemTime::now();
            socket.send(query)?;
            match socket.recv(&mut answer) {
                Ok(len) => {
                    let heard = SystemTime::now();
                    // Without EDNS, an A record's address is the last that there is.
                    let address =
                        answer[..len].last_chunk::<4>().map_or(Ipv4Addr::UNSPECIFIED, |a| (*a).into());
                    self.said.push(Said { address, asked, heard });
                }
                Err(_) => self.lost += 1,
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Said {
    /// For how long it had not been true any more at a moment; none if it still was. `swaps` says when the record changed, which
    /// was before the table with it was there.
    pub(crate) fn age(&self, at: SystemTime, swaps: &[SystemTime]) -> Option<Duration> {
        // None had an address of these before the first.
        let next = self.address.to_bits().checked_sub(CHANGING.to_bits()).map_or(0, |number| number + 1);
        at.duration_since(*swaps.get(next as usize)?).ok()
    }
}

/// Asks for a name's IPv4 address.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
