//! What upstreams said, for as long as they allow.

use super::reply;
use crate::{query::Query, wire::flag};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The longest that an answer is kept, in seconds, whatever its TTL (RFC 8767 suggests up to a week; hosts move
/// more often here).
const MAX_LIFETIME: u32 = 3600;
/// Longer answers are not kept, so that the number of entries bounds the memory.
const MAX_LEN: usize = 4096;

/// Answers by question. Bounded: a new one takes the place of those that have expired, else of any.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Box<[u8]>, Entry>>,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    reply: Box<[u8]>,
    since: Instant,
    until: Instant,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: Mutex::default(), capacity }
    }

    /// The answer to a query, as if it came just now.
    pub(super) fn get(&self, query: &Query<'_>, now: Instant) -> Option<Vec<u8>> {
        let (mut reply, since) = {
            let entries = self.lock();
            let entry = entries.get(&*key(query)).filter(|entry| now < entry.until)?;
            (entry.reply.to_vec(), entry.since)
        };
        reply::age(&mut reply, now.duration_since(since).as_secs() as u32);
        reply::address_to(&mut reply, query.header, query.question);
        Some(reply)
    }

    /// Remembers an answer, if it may be.
    pub(super) fn put(&self, query: &Query<'_>, reply: &[u8], now: Instant) {
        let Some(seconds) = reply::lifetime(reply).filter(|_| reply.len() <= MAX_LEN && self.capacity > 0)
        else {
            return;
        };
        let until = now + Duration::from_secs(seconds.min(MAX_LIFETIME).into());
        let key = key(query);
        let mut entries = self.lock();
        if entries.len() >= self.capacity && !entries.contains_key(&key) {
            entries.retain(|_, entry| now < entry.until);
            // The map's order is as good as random.
            if let Some(any) = entries.keys().next().filter(|_| entries.len() >= self.capacity).cloned() {
                entries.remove(&any);
            }
        }
        entries.insert(key, Entry { reply: reply.into(), since: now, until });
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whatever may make one answer differ from another.
fn key(query: &Query<'_>) -> Box<[u8]> {
    let flags =
        query.header.flags & (flag::RECURSION_DESIRED | flag::AUTHENTIC_DATA | flag::CHECKING_DISABLED);
    let edns = query.edns.map_or(0, |edns| 1 + u8::from(edns.dnssec_ok));
    [query.name.key(), &query.qtype.to_be_bytes(), &flags.to_be_bytes(), &[edns]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::{
        op::{Message, MessageType, Query as Question, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, SOA},
        },
    };
    use std::net::Ipv4Addr;

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn reply(query: &[u8], ttls: &[u32]) -> Message {
        let mut message = Message::from_vec(query).unwrap();
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name().clone();
        for ttl in ttls {
            message.add_answer(Record::from_rdata(name.clone(), *ttl, RData::A(A(Ipv4Addr::LOCALHOST))));
        }
        message
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_ages() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let (asked, again) = (question("www.example."), question("WWW.example."));
        let (asked, again) = (Query::parse(&asked).ok().unwrap(), Query::parse(&again).ok().unwrap());
        cache.put(&asked, &reply(&question("www.example."), &[60, 30]).to_vec().unwrap(), now);
        let found = Message::from_vec(&cache.get(&again, now + seconds(29)).unwrap()).unwrap();
        assert_eq!(found.metadata.id, again.header.id);
        assert_eq!(found.queries[0].name().to_ascii(), "WWW.example.");
        assert_eq!(found.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [31, 1]);
        assert!(cache.get(&again, now + seconds(30)).is_none());
    }

    #[test]
    fn an_absent_name_lives_as_its_soa_says() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let bytes = question("nowhere.example.");
        let asked = Query::parse(&bytes).ok().unwrap();
        let mut absent = reply(&bytes, &[]);
        absent.metadata.response_code = ResponseCode::NXDomain;
        cache.put(&asked, &absent.to_vec().unwrap(), now);
        assert!(cache.get(&asked, now).is_none(), "no SOA, so nothing to remember");
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 20);
        absent.add_authority(Record::from_rdata(root, 900, RData::SOA(soa)));
        cache.put(&asked, &absent.to_vec().unwrap(), now);
        assert!(cache.get(&asked, now + seconds(19)).is_some());
        assert!(cache.get(&asked, now + seconds(20)).is_none());
    }

    #[test]
    fn what_must_not_be_remembered_is_not_and_the_rest_is_bounded() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let bytes = question("a.example.");
        let asked = Query::parse(&bytes).ok().unwrap();
        let mut truncated = reply(&bytes, &[60]);
        truncated.metadata.truncation = true;
        let mut failed = reply(&bytes, &[60]);
        failed.metadata.response_code = ResponseCode::ServFail;
        for message in [truncated, failed, reply(&bytes, &[0]), reply(&bytes, &[u32::MAX])] {
            cache.put(&asked, &message.to_vec().unwrap(), now);
            assert!(cache.get(&asked, now).is_none(), "{message}");
        }
        for index in 0..100 {
            let bytes = question(&format!("n{index}.example."));
            let asked = Query::parse(&bytes).ok().unwrap();
            cache.put(&asked, &reply(&bytes, &[60]).to_vec().unwrap(), now);
            assert!(cache.get(&asked, now).is_some());
            assert!(cache.lock().len() <= 8);
        }
    }
}
