//! The cluster's membership keys: 32 bytes that every node holds.

use crate::Error;
use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A key that seals membership datagrams: whoever holds it can speak as any node of the cluster. Its serialized form
/// has the secret in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    id: u32,
    secret: [u8; 32],
}

impl ClusterKey {
    /// The key of this number, from where it was kept.
    pub const fn new(id: u32, secret: [u8; 32]) -> Self {
        Self { id, secret }
    }

    /// A fresh key. `id` tells the cluster's keys apart: count up from the one before.
    ///
    /// # Errors
    /// [`Error::Random`] if the system gives no random numbers.
    pub fn generate(id: u32) -> Result<Self, Error> {
        let mut secret = [0; 32];
        OsRng.try_fill_bytes(&mut secret)?;
        Ok(Self { id, secret })
    }

    /// Its number, which every datagram carries in the clear.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The secret itself, to hand out over mTLS and to store.
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }
}

/// Names the key and hides the secret.
impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({}, …)", self.id)
    }
}

/// The keys that hold now: one seals, two open.
///
/// A change that nobody misses has three steps, each once all nodes have the one before: the new key is given out as
/// [`other`](Self::other); it becomes [`current`](Self::current) and the old one `other`; the old one is dropped.
/// A removed node never gets the new key, so it is deaf and mute from the second step on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKeys {
    /// Seals what this node sends.
    pub current: ClusterKey,
    /// Opens too: the next key or the previous one. Its id differs from that of `current`.
    pub other: Option<ClusterKey>,
}

impl ClusterKeys {
    /// One key only, as between two changes.
    pub const fn only(current: ClusterKey) -> Self {
        Self { current, other: None }
    }

    pub(super) fn by_id(&self, id: u32) -> Option<&ClusterKey> {
        std::iter::once(&self.current).chain(&self.other).find(|key| key.id == id)
    }
}
