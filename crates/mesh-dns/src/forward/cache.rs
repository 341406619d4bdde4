//! What upstreams said, for as long as they allow.

use super::reply;
use crate::{
    query::Query,
    wire::{MAX_NAME, flag},
};
use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The longest that an answer is kept, in seconds, whatever its TTL (RFC 8767 suggests up to a week; hosts move
/// more often here).
const MAX_LIFETIME: u32 = 3600;
/// How long an answer that has expired is good for, should no upstream have another (RFC 8767).
const STALE: Duration = Duration::from_secs(3600);
/// The TTL of such an answer, in seconds (RFC 8767, 4).
const STALE_TTL: u32 = 30;
/// How long it is remembered that no upstream had an answer (RFC 9520, 3.2: a second at least).
const FAILURE: Duration = Duration::from_secs(1);
/// Longer answers are not kept, so that the number of entries bounds the memory.
const MAX_LEN: usize = 4096;

/// Answers by question. Bounded: there are two generations, and the older one goes when the younger has half of what there
/// may be; who is asked for becomes young again.
#[derive(Debug)]
pub(super) struct Cache {
    generations: Mutex<Generations>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<[u8]>, Entry>,
    old: HashMap<Box<[u8]>, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Empty: no upstream said anything.
    reply: Box<[u8]>,
    /// No upstream had an answer.
    is_failure: bool,
    since: Instant,
    until: Instant,
}

/// Whatever may make one answer differ from another.
#[derive(Clone, Copy)]
pub(super) struct CacheKey {
    octets: [u8; CacheKey::MAX],
    len: usize,
}

/// What is remembered of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// The answer, as if it came just now, of this many octets.
    Answer(usize),
    /// That there was none, a moment ago.
    Failure,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { generations: Mutex::default(), capacity }
    }

    /// Writes the answer to a query to `out`, if there is room for it.
    pub(super) fn get(
        &self,
        key: &CacheKey,
        query: &Query<'_>,
        now: Instant,
        out: &mut [u8],
    ) -> Option<Remembered> {
        let mut generations = self.lock();
        let entry = generations.find(key.octets(), self.capacity).filter(|entry| now < entry.until)?;
        if entry.reply.is_empty() {
            return Some(Remembered::Failure);
        }
        let Some(reply) = out.get_mut(..entry.reply.len()) else {
            return Some(Remembered::Answer(entry.reply.len()));
        };
        reply.copy_from_slice(&entry.reply);
        let age = now.duration_since(entry.since).as_secs() as u32;
        drop(generations);
        reply::change_ttls(reply, |ttl| ttl.saturating_sub(age));
        reply::address_to(reply, query.header, query.question);
        Some(Remembered::Answer(reply.len()))
    }

    /// The answer to a query that has expired lately.
    pub(super) fn stale(&self, key: &CacheKey, now: Instant) -> Option<Vec<u8>> {
        let mut generations = self.lock();
        let entry = generations.find(key.octets(), self.capacity)?;
        if entry.is_failure || now >= entry.until + STALE {
            return None;
        }
        let mut reply = entry.reply.to_vec();
        reply::change_ttls(&mut reply, |_| STALE_TTL);
        Some(reply)
    }

    /// Remembers an answer, if it may be.
    pub(super) fn put(&self, key: &CacheKey, reply: &[u8], now: Instant) {
        let lifetime = reply::lifetime(reply).filter(|_| reply.len() <= MAX_LEN);
        if let Some(seconds) = lifetime {
            let until = now + Duration::from_secs(seconds.min(MAX_LIFETIME).into());
            self.insert(key, Entry { reply: reply.into(), is_failure: false, since: now, until });
        }
    }

    /// Remembers that there was no answer, and what was said instead; what has expired is kept for [`Cache::stale`].
    pub(super) fn put_failure(&self, key: &CacheKey, said: &[u8], now: Instant) {
        if self.stale(key, now).is_none() && said.len() <= MAX_LEN {
            let (reply, until) = (said.into(), now + FAILURE);
            self.insert(key, Entry { reply, is_failure: true, since: now, until });
        }
    }

    fn insert(&self, key: &CacheKey, entry: Entry) {
        if self.capacity > 0 {
            self.lock().insert(key.octets().into(), entry, self.capacity);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn find(&mut self, key: &[u8], capacity: usize) -> Option<&Entry> {
        if let Some((key, entry)) = self.old.remove_entry(key) {
            self.insert(key, entry, capacity);
        }
        self.young.get(key)
    }

    fn insert(&mut self, key: Box<[u8]>, entry: Entry, capacity: usize) {
        self.old.remove(&key);
        if self.young.len() >= capacity.div_ceil(2) && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

impl CacheKey {
    const MAX: usize = MAX_NAME + 8 + 2 + 2 + 1;

    /// Of a query to the resolvers of a tag.
    pub(super) fn new(query: &Query<'_>, tag: u64) -> Self {
        let flags =
            query.header.flags & (flag::RECURSION_DESIRED | flag::AUTHENTIC_DATA | flag::CHECKING_DISABLED);
        let edns = query.edns.map_or(0, |edns| 1 + u8::from(edns.dnssec_ok));
        let mut key = Self { octets: [0; Self::MAX], len: 0 };
        let parts: [&[u8]; 5] =
            [query.name.key(), &query.qtype.to_be_bytes(), &flags.to_be_bytes(), &[edns], &tag.to_be_bytes()];
        for part in parts {
            key.octets[key.len..key.len + part.len()].copy_from_slice(part);
            key.len += part.len();
        }
        key
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
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

    fn put(cache: &Cache, asked: &Query<'_>, message: &Message, now: Instant) {
        cache.put(&CacheKey::new(asked, 1), &message.to_vec().unwrap(), now);
    }

    fn get(cache: &Cache, asked: &Query<'_>, now: Instant) -> Option<Message> {
        let mut out = [0; 512];
        match cache.get(&CacheKey::new(asked, 1), asked, now, &mut out)? {
            Remembered::Answer(len) => Some(Message::from_vec(&out[..len]).unwrap()),
            Remembered::Failure => panic!("a failure"),
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_ages() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let (asked, again) = (question("www.example."), question("WWW.example."));
        let (asked, again) = (Query::parse(&asked).ok().unwrap(), Query::parse(&again).ok().unwrap());
        put(&cache, &asked, &reply(&question("www.example."), &[60, 30]), now);
        let found = get(&cache, &again, now + seconds(29)).unwrap();
        assert_eq!(found.metadata.id, again.header.id);
        assert_eq!(found.queries[0].name().to_ascii(), "WWW.example.");
        assert_eq!(found.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [31, 1]);
        assert!(get(&cache, &again, now + seconds(30)).is_none());
        let stale = cache.stale(&CacheKey::new(&again, 1), now + seconds(3000)).unwrap();
        let stale = Message::from_vec(&stale).unwrap();
        assert_eq!(stale.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [30, 30]);
        assert!(cache.stale(&CacheKey::new(&again, 1), now + seconds(3630)).is_none());
        let others = CacheKey::new(&asked, 2);
        assert!(cache.get(&others, &asked, now, &mut [0; 512]).is_none(), "of other resolvers");
    }

    #[test]
    fn a_failure_is_remembered_for_a_second_and_never_in_place_of_an_answer() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let bytes = question("www.example.");
        let asked = Query::parse(&bytes).ok().unwrap();
        let key = CacheKey::new(&asked, 1);
        cache.put_failure(&key, &[], now);
        assert_eq!(cache.get(&key, &asked, now, &mut [0; 512]), Some(Remembered::Failure));
        assert_eq!(cache.get(&key, &asked, now + seconds(1), &mut [0; 512]), None);
        assert_eq!(cache.stale(&key, now), None);
        put(&cache, &asked, &reply(&bytes, &[10]), now);
        cache.put_failure(&key, &[], now + seconds(11));
        assert!(cache.stale(&key, now + seconds(11)).is_some());
    }

    #[test]
    fn who_is_asked_for_stays() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let bytes = question("kept.example.");
        let kept = Query::parse(&bytes).ok().unwrap();
        put(&cache, &kept, &reply(&bytes, &[60]), now);
        for index in 0..100 {
            let bytes = question(&format!("n{index}.example."));
            let asked = Query::parse(&bytes).ok().unwrap();
            put(&cache, &asked, &reply(&bytes, &[60]), now);
            assert!(get(&cache, &kept, now).is_some());
        }
    }

    #[test]
    fn an_absent_name_lives_as_its_soa_says() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let bytes = question("nowhere.example.");
        let asked = Query::parse(&bytes).ok().unwrap();
        let mut absent = reply(&bytes, &[]);
        absent.metadata.response_code = ResponseCode::NXDomain;
        put(&cache, &asked, &absent, now);
        assert!(get(&cache, &asked, now).is_none(), "no SOA, so nothing to remember");
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 20);
        let mut cut = absent.clone();
        cut.add_authority(Record::update0(root.clone(), 900, RecordType::SOA));
        put(&cache, &asked, &cut, now);
        assert!(get(&cache, &asked, now).is_none(), "an SOA without data says nothing either");
        absent.add_authority(Record::from_rdata(root, 900, RData::SOA(soa)));
        put(&cache, &asked, &absent, now);
        assert!(get(&cache, &asked, now + seconds(19)).is_some());
        assert!(get(&cache, &asked, now + seconds(20)).is_none());
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
            put(&cache, &asked, &message, now);
            assert!(get(&cache, &asked, now).is_none(), "{message}");
        }
        for index in 0..100 {
            let bytes = question(&format!("n{index}.example."));
            let asked = Query::parse(&bytes).ok().unwrap();
            put(&cache, &asked, &reply(&bytes, &[60]), now);
            assert!(get(&cache, &asked, now).is_some());
            let generations = cache.lock();
            assert!(generations.young.len() + generations.old.len() <= 8);
        }
    }
}
