//! What sets have counted.

use super::{
    attr::Attributes,
    error::NftError,
    socket::Nft,
    table::Family,
    uapi::{message, nfta},
};
use std::ops::AddAssign;

/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`.
const BYTES: u16 = 1;
const PACKETS: u16 = 2;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; what the kernel handles together counts as one.
    pub packets: u64,
    /// Bytes, with their IP headers.
    pub bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Nft {
    /// The elements of a set that counts ([`Set::counted`](super::Set::counted)): their keys, as the kernel has them (each
    /// part is followed by zeros up to four bytes), with what was counted since they were added. None if there is no such set.
    pub fn counts(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Vec<(Vec<u8>, Count)>, NftError> {
        let found = self.dump(
            message::GETSETELEM,
            family,
            |b| {
                b.text(nfta::SET_ELEM_LIST_TABLE, table);
                b.text(nfta::SET_ELEM_LIST_SET, set);
            },
            |found: &mut Vec<(Vec<u8>, Count)>, list| {
                let elements = list.get(nfta::SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                found.extend(Attributes(elements).filter_map(|(_, element)| counted(Attributes(element))));
            },
        );
        match found {
            Err(NftError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Vec::new())
            }
            found => found,
        }
    }
}

fn counted(element: Attributes<'_>) -> Option<(Vec<u8>, Count)> {
    let key = Attributes(element.get(nfta::SET_ELEM_KEY)?).get(nfta::DATA_VALUE)?;
    let expression = Attributes(element.get(nfta::SET_ELEM_EXPR)?);
    let data = Attributes(expression.get(nfta::EXPR_DATA)?);
    let number = |kind| data.get(kind)?.try_into().ok().map(u64::from_be_bytes);
    Some((key.to_vec(), Count { packets: number(PACKETS)?, bytes: number(BYTES)? }))
}
