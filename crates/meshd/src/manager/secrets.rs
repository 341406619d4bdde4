//! Secrets in the store: the CA with its key, join tokens. They are sealed with the store key, which is in a file of
//! each manager and never in the store: who reads the store, or a copy of it, learns nothing that lets it join or rule.
//!
//! ```text
//!  0        1        13           n-16      n
//!  version  nonce    ciphertext   tag
//! ```
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce: secrets are written a few times a day at most, far from the 2³²
//! that random nonces of one key allow. The record's name is the associated data, so that no sealed value can be passed
//! off as another's.

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_cluster::{read_private, write_private};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const VERSION: u8 = 1;
const HEADER: usize = 1 + NONCE_LEN;

/// The key that seals the store's secrets. Managers only. Its text is for its file and for a new manager, over mTLS.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct StoreKey([u8; 32]);

/// Why a sealed value was not opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "record '{0}' in the store can't be opened with this manager's store.key: restore that file, or cluster and key from one backup"
)]
pub(crate) struct Sealed(String);

impl StoreKey {
    /// A new key.
    pub(crate) fn generate() -> Self {
        Self(rand::random())
    }

    /// The key of this manager.
    pub(crate) fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let path = path(data_dir);
        let text = read_private(&path)?;
        let text = text.with_context(|| format!("{} is missing: a manager needs it", path.display()))?;
        Self::try_from(text).map_err(|why| {
            anyhow::anyhow!(
                "cannot use {}: {why}: restore it, or empty the data directory to start anew",
                path.display()
            )
        })
    }

    /// Keeps it, mode 0600.
    pub(crate) fn save(&self, data_dir: &Path) -> anyhow::Result<()> {
        Ok(write_private(&path(data_dir), &(String::from(self.clone()) + "\n"))?)
    }

    /// Seals the value of one record.
    pub(crate) fn seal(&self, record: &str, value: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = [&[VERSION][..], &nonce, value].concat();
        let body = &mut sealed[HEADER..];
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(record), body)
            .unwrap_or_else(|e| unreachable!("a secret is far below the cipher's limit: {e}"));
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what [`seal`](Self::seal) made of the same record.
    pub(crate) fn open(&self, record: &str, sealed: &[u8]) -> Result<Vec<u8>, Sealed> {
        self.try_open(record, sealed).ok_or_else(|| Sealed(record.to_owned()))
    }

    fn try_open(&self, record: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (header, body) = sealed.split_at_checked(HEADER)?;
        let (version, nonce) = header.split_first()?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok().filter(|_| *version == VERSION)?;
        let mut body = body.to_vec();
        let opened = self.cipher().open_in_place(nonce, Aad::from(record), &mut body).ok()?.len();
        body.truncate(opened);
        Some(body)
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.0);
        LessSafeKey::new(key.unwrap_or_else(|e| unreachable!("the key has the cipher's length: {e}")))
    }
}

/// Keeps the secret to itself.
impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

impl From<StoreKey> for String {
    fn from(key: StoreKey) -> Self {
        STANDARD.encode(key.0)
    }
}

impl TryFrom<String> for StoreKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "it is no store key (32 bytes in base64)".to_owned())
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("store.key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_same_key_and_record_open_it() {
        let key = StoreKey::generate();
        let sealed = key.seal("authority", b"secret");
        assert_eq!(key.open("authority", &sealed).unwrap(), b"secret");
        assert!(!sealed.windows(6).any(|bytes| bytes == b"secret"));
        assert_ne!(sealed, key.seal("authority", b"secret"), "a nonce is never used twice");

        let refusal = key.open("token/worker", &sealed).unwrap_err().to_string();
        assert!(refusal.contains("token/worker") && refusal.contains("store.key"), "{refusal}");
        assert!(StoreKey::generate().open("authority", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open("authority", &altered).is_err(), "byte {at}");
            assert!(key.open("authority", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_file_is_private_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let missing = StoreKey::load(directory.path()).unwrap_err().to_string();
        assert!(missing.contains("store.key is missing"), "{missing}");
        let key = StoreKey::generate();
        key.save(directory.path()).unwrap();
        let file = directory.path().join("store.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(StoreKey::load(directory.path()).unwrap().0, key.0);
        assert_eq!(format!("{key:?}"), "StoreKey(…)");

        std::fs::write(&file, &std::fs::read(&file).unwrap()[..20]).unwrap();
        let damaged = StoreKey::load(directory.path()).unwrap_err().to_string();
        assert!(damaged.contains("store.key") && damaged.contains("restore it"), "{damaged}");
    }
}
