//! Where in etcd a cluster's keys are.

use etcd_client::KeyValue;

use super::unsigned;
use crate::{Entry, Error};

/// `/meshd/<cluster>/`: put before every key that goes in, taken from every key that comes out.
#[derive(Clone, Debug)]
pub(super) struct Keyspace {
    root: String,
}

impl Keyspace {
    pub(super) fn new(cluster: &str) -> Result<Self, Error> {
        if cluster.is_empty() || cluster.contains('/') || cluster.chars().any(char::is_control) {
            return Err(Error::Options(format!("{cluster:?} can't be a cluster's name in etcd")));
        }
        Ok(Self { root: format!("/meshd/{cluster}/") })
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        [self.root.as_bytes(), key.as_bytes()].concat()
    }

    /// The first key after all that start with `prefix`.
    pub(super) fn end(&self, prefix: &str) -> Vec<u8> {
        let mut end = self.key(prefix);
        // UTF-8 has no byte 255, so the last one can always be raised.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    /// The name of a key as the store's user knows it.
    pub(super) fn name(&self, key: &[u8]) -> Result<String, Error> {
        let name = key.strip_prefix(self.root.as_bytes()).and_then(|name| str::from_utf8(name).ok());
        name.map(str::to_owned)
            .ok_or_else(|| Error::Foreign { key: String::from_utf8_lossy(key).into_owned() })
    }

    pub(super) fn entry(&self, pair: KeyValue) -> Result<Entry, Error> {
        let mod_revision = unsigned(pair.mod_revision());
        let (key, value) = pair.into_key_value();
        Ok(Entry { key: self.name(&key)?, value, mod_revision })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_comes_back_as_it_was(key in ".*") {
            let keyspace = Keyspace::new("blue").unwrap();
            prop_assert_eq!(keyspace.name(&keyspace.key(&key)).unwrap(), key);
        }

        #[test]
        fn a_range_holds_what_has_the_prefix_and_nothing_else(prefix in ".{0,3}", key in ".{0,6}") {
            let keyspace = Keyspace::new("blue").unwrap();
            let (from, end) = (keyspace.key(&prefix), keyspace.end(&prefix));
            for key in [key.clone(), format!("{prefix}{key}")] {
                let stored = keyspace.key(&key);
                prop_assert_eq!(from <= stored && stored < end, key.starts_with(&prefix), "{:?}", key);
            }
        }
    }

    #[test]
    fn clusters_do_not_overlap() {
        let (blue, bluer) = (Keyspace::new("blue").unwrap(), Keyspace::new("bluer").unwrap());
        assert!(
            blue.end("") <= bluer.key("") && matches!(blue.name(&bluer.key("a")), Err(Error::Foreign { .. }))
        );
        for name in ["", "a/b", "a\nb"] {
            assert!(matches!(Keyspace::new(name), Err(Error::Options(_))), "{name:?}");
        }
    }
}
