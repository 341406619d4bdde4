//! The CA as managers keep it: one record of the store, sealed.

use super::secrets::StoreKey;
use anyhow::Context;
use mesh_cluster::Authority;

/// Name of the record.
pub(super) const RECORD: &str = "authority";

/// The record's value.
pub(super) fn seal(key: &StoreKey, authority: &Authority) -> Vec<u8> {
    key.seal(RECORD, authority.to_pem().as_bytes())
}

/// The CA from its record's value.
pub(super) fn open(key: &StoreKey, sealed: &[u8]) -> anyhow::Result<Authority> {
    let text = String::from_utf8(key.open(RECORD, sealed)?).context("the CA in the store is no text")?;
    Authority::from_pem(&text).context("the CA in the store is damaged")
}
