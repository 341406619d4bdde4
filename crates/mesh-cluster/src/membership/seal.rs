//! Datagrams that only holders of the cluster key can make and read.
//!
//! ```text
//!  0        1         5            21          29              n-16      n
//!  version  key id    session      counter     ciphertext      tag
//!  └─────────── associated data ──────────┘
//! ```
//!
//! ChaCha20-Poly1305 (RFC 8439). The key of a datagram is HKDF-SHA256 (RFC 5869) of the cluster key with the session as
//! salt: 16 random bytes drawn when the daemon starts. The nonce is the counter, which only grows within a session. So
//! no nonce is used twice with one key, however many nodes share the cluster key and however often they restart.

use super::{ClusterKey, ClusterKeys, Refusal};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use std::collections::HashMap;

/// 16 random bytes: one life of one daemon.
pub(super) type Session = [u8; 16];

/// The largest datagram sent or taken: fits an IPv6 packet of the smallest MTU, 1280.
pub(super) const MAX_DATAGRAM: usize = 1200;
/// What sealing adds to a message.
pub(super) const OVERHEAD: usize = HEADER + TAG;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 16 + 8;
const TAG: usize = 16;

/// Seals what this node sends.
pub(super) struct Sealer {
    session: Session,
    counter: u64,
    key_id: u32,
    key: LessSafeKey,
}

impl Sealer {
    /// `session` must never have been used before.
    pub(super) fn new(session: Session, key: &ClusterKey) -> Self {
        Self { session, counter: 0, key_id: key.id(), key: session_key(key, &session) }
    }

    /// From now on seals with `key`; the counter goes on.
    pub(super) fn rekey(&mut self, key: &ClusterKey) {
        self.key_id = key.id();
        self.key = session_key(key, &self.session);
    }

    pub(super) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        // Half a million years at a million datagrams a second.
        self.counter += 1;
        let mut datagram = Vec::with_capacity(plain.len() + OVERHEAD);
        datagram.push(VERSION);
        datagram.extend_from_slice(&self.key_id.to_be_bytes());
        datagram.extend_from_slice(&self.session);
        datagram.extend_from_slice(&self.counter.to_be_bytes());
        datagram.extend_from_slice(plain);
        let (header, body) = datagram.split_at_mut(HEADER);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.counter), Aad::from(&*header), body)
            .expect("a datagram is far below the cipher's limit");
        datagram.extend_from_slice(tag.as_ref());
        datagram
    }
}

/// A datagram that some holder of the cluster key made.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    pub(super) session: Session,
    pub(super) counter: u64,
    pub(super) plain: &'a [u8],
}

/// Opens what comes in.
pub(super) struct Opener {
    keys: ClusterKeys,
    /// Keys of the sessions of known senders, so that a stranger's datagrams can't make this grow.
    sessions: HashMap<Session, Vec<(u32, LessSafeKey)>>,
}

impl Opener {
    pub(super) fn new(keys: ClusterKeys) -> Self {
        Self { keys, sessions: HashMap::new() }
    }

    /// From now on opens with these keys and no others.
    pub(super) fn rekey(&mut self, keys: ClusterKeys) {
        self.keys = keys;
        let sessions: Vec<_> = self.sessions.drain().map(|(session, _)| session).collect();
        for session in sessions {
            self.remember(session);
        }
    }

    /// Keeps the keys of a known sender's session at hand.
    pub(super) fn remember(&mut self, session: Session) {
        let keys = std::iter::once(&self.keys.current).chain(&self.keys.other);
        self.sessions.insert(session, keys.map(|key| (key.id(), session_key(key, &session))).collect());
    }

    pub(super) fn forget(&mut self, session: &Session) {
        self.sessions.remove(session);
    }

    /// Opens `datagram` in place. What it says of its sender is the holder's word, not proven.
    pub(super) fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Refusal> {
        if datagram.len() < OVERHEAD || datagram.len() > MAX_DATAGRAM {
            return Err(Refusal::Size);
        }
        let (header, body) = datagram.split_at_mut(HEADER);
        if header[0] != VERSION {
            return Err(Refusal::Version);
        }
        let id = u32::from_be_bytes(header[1..5].try_into().expect("4 bytes"));
        let session: Session = header[5..21].try_into().expect("16 bytes");
        let counter = u64::from_be_bytes(header[21..HEADER].try_into().expect("8 bytes"));
        let key = self.keys.by_id(id).ok_or(Refusal::Key)?;
        let fresh;
        let kept = self.sessions.get(&session).and_then(|keys| keys.iter().find(|(of, _)| *of == id));
        let key = match kept {
            Some((_, kept)) => kept,
            None => {
                fresh = session_key(key, &session);
                &fresh
            }
        };
        let plain =
            key.open_in_place(nonce(counter), Aad::from(&*header), body).map_err(|_| Refusal::Seal)?;
        Ok(Opened { session, counter, plain })
    }
}

fn session_key(key: &ClusterKey, session: &Session) -> LessSafeKey {
    let derived = Salt::new(HKDF_SHA256, session).extract(key.secret());
    let material = derived
        .expand(&[b"mesh membership 1"], &CHACHA20_POLY1305)
        .expect("32 bytes are within what HKDF gives");
    LessSafeKey::new(UnboundKey::from(material))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests;
