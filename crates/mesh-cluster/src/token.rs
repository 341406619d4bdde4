//! Join tokens: `MESH-1-<fingerprint of the CA>-<secret>`, all hexadecimal.
//!
//! The fingerprint lets the node verify the manager, the secret lets the manager admit the node.

use std::fmt;
use std::str::FromStr;

use mesh_model::Role;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::fingerprint::{parse_hex, write_hex};
use crate::{AuthorityCertificate, Error, Fingerprint};

const NAME: &str = "MESH";
const VERSION: u32 = 1;

/// 128 random bits: not to be guessed, so that a plain hash of it can be kept.
type Secret = [u8; 16];

/// What a person carries from a manager to a node that is to join. `Display` gives the whole token, `Debug` keeps the
/// secret to itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    authority: Fingerprint,
    secret: Secret,
}

/// What managers keep of a token: enough to know it again, not enough to join with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Fingerprint of the token's secret.
    pub secret: Fingerprint,
    /// What a node that shows the token becomes.
    pub role: Role,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// From when on it is refused, in seconds since 1970; `None`: when it is rotated.
    pub expires: Option<u64>,
}

impl JoinToken {
    /// A new token to join the cluster of `authority` as `role`, and the record to keep of it. Times are in seconds
    /// since 1970.
    pub fn issue(
        authority: &AuthorityCertificate,
        role: Role,
        created: u64,
        expires: Option<u64>,
    ) -> Result<(Self, TokenRecord), Error> {
        let mut secret = Secret::default();
        OsRng.try_fill_bytes(&mut secret)?;
        let record = TokenRecord { secret: Fingerprint::of(&secret), role, created, expires };
        Ok((Self { authority: authority.fingerprint(), secret }, record))
    }

    /// The CA that the token vouches for: see [`pinned_client_config`](crate::pinned_client_config).
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// The role that the token gives, by the records that the managers of `authority` keep.
    ///
    /// All records are compared, each in constant time: how long it takes tells nothing about them. Errors:
    /// [`Error::TokenOfAnotherCluster`], [`Error::TokenUnknown`], [`Error::TokenExpired`].
    pub fn verify<'a>(
        &self,
        authority: &AuthorityCertificate,
        records: impl IntoIterator<Item = &'a TokenRecord>,
        now: u64,
    ) -> Result<Role, Error> {
        if self.authority != authority.fingerprint() {
            return Err(Error::TokenOfAnotherCluster);
        }
        let shown = Fingerprint::of(&self.secret);
        let mut known = None;
        for record in records {
            if record.secret.ct_eq(&shown).into() {
                known = Some(record);
            }
        }
        let record = known.ok_or(Error::TokenUnknown)?;
        match record.expires {
            Some(expires) if expires <= now => Err(Error::TokenExpired),
            _ => Ok(record.role),
        }
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(NAME) {
            return Err(Error::NotAToken);
        }
        let version = parts.next().and_then(|version| version.parse().ok()).ok_or(Error::NotAToken)?;
        if version != VERSION {
            return Err(Error::TokenVersion(version));
        }
        let authority = parts.next().and_then(|part| part.parse().ok());
        let authority = authority.ok_or(Error::TokenDamaged("CA fingerprint"))?;
        let secret = parts.next().and_then(parse_hex).ok_or(Error::TokenDamaged("secret"))?;
        match parts.next() {
            None => Ok(Self { authority, secret }),
            Some(_) => Err(Error::TokenDamaged("end")),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}-{VERSION}-{}-", self.authority)?;
        write_hex(&self.secret, f)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}-{VERSION}-{}-…", self.authority)
    }
}
