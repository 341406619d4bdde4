//! A map whose copies share what they have in common: one that differs in an entry costs a pointer a part and one part.
//! Tables are made from each other a hundred times a second, and read by others meanwhile.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::{borrow::Borrow, fmt, hash::BuildHasher, hash::Hash, sync::Arc};

/// Entries a part, on average, above which there are to be more parts: of each change one is copied, and of each copy of
/// the map there is a pointer to each.
const PART: usize = 64;

/// Entries, which copies share until they differ.
type Part<K, V> = Arc<HashTable<(K, V)>>;

/// A map in parts by hash.
#[derive(Clone)]
pub(super) struct Shards<K, V> {
    parts: Box<[Part<K, V>]>,
    len: usize,
    hasher: RandomState,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { parts: [Arc::default()].into(), len: 0, hasher: RandomState::default() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let found = self.parts[self.part(hash)].find(hash, |(own, _)| own.borrow() == key);
        found.map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.len >= self.parts.len() * PART {
            self.grow();
        }
        let hash = self.hasher.hash_one(&key);
        let (part, hasher) = (self.part(hash), self.hasher);
        let entries = Arc::make_mut(&mut self.parts[part]);
        match entries.find_mut(hash, |(own, _)| *own == key) {
            Some((_, own)) => *own = value,
            None => {
                entries.insert_unique(hash, (key, value), |(own, _)| hasher.hash_one(own));
                self.len += 1;
            }
        }
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let part = self.part(hash);
        if self.parts[part].find(hash, |(own, _)| own.borrow() == key).is_none() {
            return;
        }
        let entries = Arc::make_mut(&mut self.parts[part]);
        if let Ok(entry) = entries.find_entry(hash, |(own, _)| own.borrow() == key) {
            entry.remove();
            self.len -= 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The low bits and the highest are what a part's own buckets go by.
    fn part(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.parts.len() - 1)
    }

    fn grow(&mut self) {
        let parts = self.parts.len() * 4;
        let mut grown =
            Self { parts: (0..parts).map(|_| Arc::default()).collect(), len: 0, hasher: self.hasher };
        self.iter().cloned().for_each(|(key, value)| grown.insert(key, value));
        *self = grown;
    }
}

impl<K: Hash + Eq + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(key, value)| (key, value))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_is_a_map_and_its_copies_stay_as_they_were(
            changes in prop::collection::vec((0u16..400, any::<Option<u8>>()), 0..600),
        ) {
            let (mut ours, mut theirs) = (Shards::default(), HashMap::new());
            let mut before = Vec::new();
            for (index, (key, value)) in changes.into_iter().enumerate() {
                match value {
                    Some(value) => {
                        ours.insert(key, value);
                        theirs.insert(key, value);
                    }
                    None => {
                        ours.remove(&key);
                        theirs.remove(&key);
                    }
                }
                if index % 100 == 0 {
                    before.push((ours.clone(), theirs.clone()));
                }
            }
            before.push((ours, theirs));
            for (ours, theirs) in before {
                prop_assert_eq!(ours.iter().copied().collect::<HashMap<_, _>>(), theirs.clone());
                for key in 0..400 {
                    prop_assert_eq!(ours.get(&key), theirs.get(&key));
                }
            }
        }
    }
}
