//! What upstreams said, for as long as they allow.

use super::{Party, reply};
use crate::{
    query::Query,
    wire::{MAX_NAME, flag, rtype},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// Answers by question, of all networks together: what one has asked for is there for the others too. Bounded: when it is full,
/// the network goes short that has brought in most, of what it has not asked for lately. So one alone has all of the room, and
/// a flood of names costs nobody else more than that all come to have the same.
#[derive(Debug)]
pub(super) struct Cache {
    kept: Mutex<Kept>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The keys of all entries by whose they are, in the order in which it is seen whether they have been asked for.
    by_party: HashMap<Party, VecDeque<Arc<[u8]>>>,
}

#[derive(Debug)]
struct Entry {
    /// Empty: no upstream said anything.
    reply: Box<[u8]>,
    /// No upstream had an answer.
    is_failure: bool,
    since: Instant,
    until: Instant,
    /// Since it was last seen whether it is.
    is_asked_for: bool,
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
        Self { kept: Mutex::default(), capacity }
    }

    /// Writes the answer to a query to `out`, if there is room for it. That there is no such name holds for all types
    /// (RFC 2308, 5).
    pub(super) fn get(
        &self,
        key: &CacheKey,
        query: &Query<'_>,
        now: Instant,
        out: &mut [u8],
    ) -> Option<Remembered> {
        let mut kept = self.lock();
        let is_fresh =
            |kept: &mut Kept, key: &CacheKey| kept.find(key).is_some_and(|entry| now < entry.until);
        let key = [*key, key.of_all_types()].into_iter().find(|key| is_fresh(&mut kept, key))?;
        let entry = kept.find(&key)?;
        if entry.reply.is_empty() {
            return Some(Remembered::Failure);
        }
        let Some(reply) = out.get_mut(..entry.reply.len()) else {
            return Some(Remembered::Answer(entry.reply.len()));
        };
        reply.copy_from_slice(&entry.reply);
        let age = now.duration_since(entry.since).as_secs() as u32;
        drop(kept);
        reply::change_ttls(reply, |ttl| ttl.saturating_sub(age));
        reply::address_to(reply, query.header, query.question);
        Some(Remembered::Answer(reply.len()))
    }

    /// The answer to a query that has expired lately.
    pub(super) fn stale(&self, key: &CacheKey, now: Instant) -> Option<Vec<u8>> {
        let mut kept = self.lock();
        let found = [*key, key.of_all_types()].map(|key| kept.find(&key).map(|entry| entry.since));
        let newest = if found[1] > found[0] { key.of_all_types() } else { *key };
        let entry = kept.find(&newest).filter(|entry| !entry.is_failure && now < entry.until + STALE)?;
        let mut reply = entry.reply.to_vec();
        reply::change_ttls(&mut reply, |_| STALE_TTL);
        Some(reply)
    }

    /// Remembers an answer that a network's client has asked for, if it may be.
    pub(super) fn put(&self, party: Party, key: &CacheKey, reply: &[u8], now: Instant) {
        let lifetime = reply::lifetime(reply).filter(|_| reply.len() <= MAX_LEN);
        if let Some(seconds) = lifetime {
            let until = now + Duration::from_secs(seconds.min(MAX_LIFETIME).into());
            let all_types = key.of_all_types();
            // Some that have an A record say of AAAA that there is no such name (RFC 4074, 4.2). Who has just said otherwise is
            // taken at his word.
            let mut kept = self.lock();
            let is_absent = reply::is_absence_of_all_types(reply) && !kept.has_an_address(key, now);
            if !is_absent && let Some(absent) = kept.entries.get_mut(all_types.octets()) {
                absent.until = absent.until.min(now);
            }
            drop(kept);
            let key = if is_absent { all_types } else { *key };
            self.insert(party, &key, Entry::new(reply, false, now, until));
        }
    }

    /// Remembers that there was no answer, and what was said instead; what has expired is kept for [`Cache::stale`].
    pub(super) fn put_failure(&self, party: Party, key: &CacheKey, said: &[u8], now: Instant) {
        if self.stale(key, now).is_none() && said.len() <= MAX_LEN {
            self.insert(party, key, Entry::new(said, true, now, now + FAILURE));
        }
    }

    fn insert(&self, party: Party, key: &CacheKey, entry: Entry) {
        if self.capacity > 0 {
            self.lock().insert(party, key.octets(), entry, self.capacity);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, key: &CacheKey) -> Option<&Entry> {
        let entry = self.entries.get_mut(key.octets())?;
        entry.is_asked_for = true;
        Some(entry)
    }

    fn insert(&mut self, party: Party, key: &[u8], entry: Entry, capacity: usize) {
        // It stays whose it was: who brings it in anew has not made it more.
        if let Some(known) = self.entries.get_mut(key) {
            *known = entry;
            return;
        }
        if self.entries.len() >= capacity && !self.remove_useless(entry.since) {
            self.make_room(party);
        }
        let key: Arc<[u8]> = key.into();
        self.entries.insert(Arc::clone(&key), entry);
        self.by_party.entry(party).or_default().push_back(key);
    }

    /// Whether there is an answer with an address, whatever else was asked.
    fn has_an_address(&self, key: &CacheKey, now: Instant) -> bool {
        let answers = [rtype::A, rtype::AAAA].map(|rtype| self.entries.get(key.of_type(rtype).octets()));
        answers.into_iter().flatten().any(|entry| now < entry.until && reply::has_answers(&entry.reply))
    }

    /// Removes an entry that is good for nothing any more, if one is the next of its network's; those of a network that is gone
    /// end so. Whether there was one.
    fn remove_useless(&mut self, now: Instant) -> bool {
        let is_useless = |key: &Arc<[u8]>| self.entries.get(key).is_none_or(|entry| entry.is_useless(now));
        let found = self.by_party.iter().find(|(_, keys)| keys.front().is_none_or(is_useless));
        let Some(party) = found.map(|(party, _)| *party) else { return false };
        let keys = self.by_party.get_mut(&party);
        let key = keys.and_then(VecDeque::pop_front);
        if self.by_party.get(&party).is_some_and(VecDeque::is_empty) {
            self.by_party.remove(&party);
        }
        key.is_some_and(|key| self.entries.remove(&key).is_some())
    }

    /// Removes an entry for one more of a network's: of this network if nobody has more.
    fn make_room(&mut self, wanted_by: Party) {
        let most = self.by_party.iter_mut().max_by_key(|(party, keys)| (keys.len(), **party == wanted_by));
        let Some((&party, keys)) = most else { return };
        while let Some(key) = keys.pop_front() {
            match self.entries.get_mut(&key) {
                // A second chance, and no third.
                Some(entry) if entry.is_asked_for => {
                    entry.is_asked_for = false;
                    keys.push_back(key);
                }
                _ => {
                    self.entries.remove(&key);
                    break;
                }
            }
        }
        if keys.is_empty() {
            self.by_party.remove(&party);
        }
    }
}

impl Entry {
    fn new(reply: &[u8], is_failure: bool, since: Instant, until: Instant) -> Self {
        Self { reply: reply.into(), is_failure, since, until, is_asked_for: false }
    }

    /// Not even to be told for want of another.
    fn is_useless(&self, now: Instant) -> bool {
        now >= self.until + if self.is_failure { Duration::ZERO } else { STALE }
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
        // The type last: see [`CacheKey::of_all_types`].
        let parts: [&[u8]; 5] =
            [query.name.key(), &flags.to_be_bytes(), &[edns], &tag.to_be_bytes(), &query.qtype.to_be_bytes()];
        for part in parts {
            key.octets[key.len..key.len + part.len()].copy_from_slice(part);
            key.len += part.len();
        }
        key
    }

    /// The same, whatever the type: no question has the type 0.
    fn of_all_types(&self) -> Self {
        self.of_type(0)
    }

    fn of_type(&self, rtype: u16) -> Self {
        let mut key = *self;
        key.octets[key.len - 2..key.len].copy_from_slice(&rtype.to_be_bytes());
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

    fn party(number: u64) -> Party {
        Party(number)
    }

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
        cache.put(party(1), &CacheKey::new(asked, 1), &message.to_vec().unwrap(), now);
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
        cache.put_failure(party(1), &key, &[], now);
        assert_eq!(cache.get(&key, &asked, now, &mut [0; 512]), Some(Remembered::Failure));
        assert_eq!(cache.get(&key, &asked, now + seconds(1), &mut [0; 512]), None);
        assert_eq!(cache.stale(&key, now), None);
        put(&cache, &asked, &reply(&bytes, &[10]), now);
        cache.put_failure(party(1), &key, &[], now + seconds(11));
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
    fn what_a_network_that_is_gone_has_brought_in_makes_room() {
        let (cache, now) = (Cache::new(12), Instant::now());
        let put = |of: u64, name: &str, at: Instant| {
            let bytes = question(name);
            let asked = Query::parse(&bytes).ok().unwrap();
            let message = reply(&bytes, &[60]).to_vec().unwrap();
            cache.put(party(of), &CacheKey::new(&asked, 1), &message, at);
        };
        for of in 0..6 {
            (0..2).for_each(|index| put(of, &format!("n{index}.of{of}.example."), now));
        }
        // When nothing of that is of use any more.
        let later = now + seconds(60) + STALE;
        (0..12).for_each(|index| put(7, &format!("n{index}.example."), later));
        let kept = (0..12).filter(|index| {
            let bytes = question(&format!("n{index}.example."));
            get(&cache, &Query::parse(&bytes).ok().unwrap(), later).is_some()
        });
        assert_eq!(kept.count(), 12, "the one that is left has all of it");
        assert_eq!(cache.lock().by_party.len(), 1);
    }

    /// RFC 4074, 4.2: servers that say of AAAA that there is no such name, though it has an A record.
    #[test]
    fn an_absence_does_not_hide_an_address_that_is_known() {
        let (cache, now) = (Cache::new(8), Instant::now());
        let mut aaaa = Message::query();
        let name = Name::from_ascii("www.example.").unwrap();
        aaaa.add_query(Question::query(name.clone(), RecordType::AAAA));
        let (a, aaaa) = (question("www.example."), aaaa.to_vec().unwrap());
        let (a_asked, aaaa_asked) = (Query::parse(&a).ok().unwrap(), Query::parse(&aaaa).ok().unwrap());
        let mut absent = reply(&aaaa, &[]);
        absent.metadata.response_code = ResponseCode::NXDomain;
        let data = SOA::new(name.clone(), name.clone(), 1, 60, 60, 60, 60);
        absent.add_authority(Record::from_rdata(name, 60, RData::SOA(data)));
        put(&cache, &a_asked, &reply(&a, &[60]), now);
        put(&cache, &aaaa_asked, &absent, now);
        assert!(!get(&cache, &a_asked, now).unwrap().answers.is_empty());
        assert_eq!(get(&cache, &aaaa_asked, now).unwrap().metadata.response_code, ResponseCode::NXDomain);
        // The other way round: who says now that there is one is right about other types, too.
        let cache = Cache::new(8);
        put(&cache, &aaaa_asked, &absent, now);
        assert_eq!(get(&cache, &a_asked, now).unwrap().metadata.response_code, ResponseCode::NXDomain);
        put(&cache, &a_asked, &reply(&a, &[60]), now);
        assert!(!get(&cache, &a_asked, now).unwrap().answers.is_empty());
        assert!(get(&cache, &aaaa_asked, now).is_none());
    }

    #[test]
    fn a_flood_of_one_network_takes_no_more_of_the_others_than_its_share() {
        let (cache, now) = (Cache::new(12), Instant::now());
        let put = |of: u64, name: &str| {
            let bytes = question(name);
            let asked = Query::parse(&bytes).ok().unwrap();
            let message = reply(&bytes, &[60]).to_vec().unwrap();
            cache.put(party(of), &CacheKey::new(&asked, 1), &message, now);
        };
        let has = |name: &str| {
            let bytes = question(name);
            get(&cache, &Query::parse(&bytes).ok().unwrap(), now).is_some()
        };
        let flood = |of: u64| (0..100).for_each(|number| put(of, &format!("n{number}.of{of}.example.")));
        flood(1);
        assert_eq!((0..100).filter(|number| has(&format!("n{number}.of1.example."))).count(), 12, "all");
        for number in 0..4 {
            put(2, &format!("kept{number}.example."));
        }
        flood(1);
        flood(3);
        for number in 0..4 {
            assert!(has(&format!("kept{number}.example.")), "{number}");
        }
        let sizes: Vec<usize> = (1..=3).map(|of| cache.lock().by_party[&party(of)].len()).collect();
        assert_eq!(sizes, [4, 4, 4]);
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
            let kept = cache.lock();
            let keys: usize = kept.by_party.values().map(VecDeque::len).sum();
            assert!(kept.entries.len() <= 8 && keys == kept.entries.len());
        }
    }
}
