//! A hash over a table as the kernel has it.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::attr::Attributes;
use super::error::NftError;
use super::socket::Nft;
use super::table::Family;
use super::uapi::{message, nfta, set_flag};

impl Nft {
    /// A hash over a table's chains, rules, sets and elements as the kernel has them, without
    /// what changes by itself (counters, the order of elements); nothing if there is no such table.
    /// Only good to compare with another one taken by the same process, with no commit in between.
    pub fn fingerprint(&mut self, family: Family, table: &str) -> Result<Option<u64>, NftError> {
        if !self.exists(message::GETTABLE, family.number(), |b| b.text(nfta::TABLE_NAME, table))? {
            return Ok(None);
        }
        let chains = self.chains(family, table)?;
        let rules = self.rules(family, table)?;
        let sets = self.sets(family, table)?;
        // The maps of rules can't be changed, only go with their rules; and each dump searches for its set.
        let elements = sets
            .iter()
            .filter(|set| !set.anonymous)
            .map(|set| self.elements(family, table, &set.name))
            .collect::<Result<Vec<u64>, NftError>>()?;
        let mut hasher = DefaultHasher::new();
        (chains, rules, sets, elements).hash(&mut hasher);
        Ok(Some(hasher.finish()))
    }

    fn chains(&mut self, family: Family, table: &str) -> Result<Vec<Vec<u8>>, NftError> {
        const KEPT: [u16; 5] =
            [nfta::CHAIN_NAME, nfta::CHAIN_HOOK, nfta::CHAIN_POLICY, nfta::CHAIN_TYPE, nfta::CHAIN_FLAGS];
        self.dump(
            message::GETCHAIN,
            family,
            |_| {},
            |found: &mut Vec<Vec<u8>>, chain| {
                if chain.text(nfta::CHAIN_TABLE) == Some(table) {
                    found.push(kept(chain, &KEPT));
                }
            },
        )
    }

    fn rules(&mut self, family: Family, table: &str) -> Result<Vec<u64>, NftError> {
        self.dump(
            message::GETRULE,
            family,
            |b| b.text(nfta::RULE_TABLE, table),
            |found: &mut Vec<u64>, rule| {
                if rule.text(nfta::RULE_TABLE) == Some(table) {
                    found.push(rule_hash(rule));
                }
            },
        )
    }

    fn sets(&mut self, family: Family, table: &str) -> Result<Vec<SetSeen>, NftError> {
        const KEPT: [u16; 5] =
            [nfta::SET_FLAGS, nfta::SET_KEY_TYPE, nfta::SET_KEY_LEN, nfta::SET_DATA_TYPE, nfta::SET_DATA_LEN];
        self.dump(
            message::GETSET,
            family,
            |b| b.text(nfta::SET_TABLE, table),
            |found: &mut Vec<SetSeen>, set| {
                if let (Some(of), Some(name)) = (set.text(nfta::SET_TABLE), set.text(nfta::SET_NAME))
                    && of == table
                {
                    let flags = set.get(nfta::SET_FLAGS).and_then(|flags| flags.try_into().ok());
                    let flags = flags.map_or(0, u32::from_be_bytes);
                    found.push(SetSeen {
                        name: name.to_owned(),
                        anonymous: flags & set_flag::ANONYMOUS != 0,
                        description: kept(set, &KEPT),
                    });
                }
            },
        )
    }

    /// Elements come in any order: their hashes are added up.
    fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<u64, NftError> {
        self.dump(
            message::GETSETELEM,
            family,
            |b| {
                b.text(nfta::SET_ELEM_LIST_TABLE, table);
                b.text(nfta::SET_ELEM_LIST_SET, set);
            },
            |sum: &mut u64, list| {
                let elements = list.get(nfta::SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                for (_, element) in Attributes(elements) {
                    let bytes = kept(Attributes(element), &[nfta::SET_ELEM_KEY, nfta::SET_ELEM_DATA]);
                    *sum = sum.wrapping_add(hash_of(&bytes));
                }
            },
        )
    }
}

/// A set in a dump.
#[derive(Hash)]
struct SetSeen {
    name: String,
    anonymous: bool,
    description: Vec<u8>,
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The attributes of these types with their lengths, in the kernel's order.
fn kept(attributes: Attributes<'_>, kinds: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, payload) in attributes.filter(|(kind, _)| kinds.contains(kind)) {
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&payload.len().to_ne_bytes());
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// A rule's chain, handle and expressions; of a counter only that it is there. The handle tells it from one put in its place.
fn rule_hash(rule: Attributes<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    rule.get(nfta::RULE_CHAIN).hash(&mut hasher);
    rule.get(nfta::RULE_HANDLE).hash(&mut hasher);
    for (_, expression) in Attributes(rule.get(nfta::RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes(expression);
        let name = expression.text(nfta::EXPR_NAME);
        name.hash(&mut hasher);
        if name != Some("counter") {
            expression.get(nfta::EXPR_DATA).hash(&mut hasher);
        }
    }
    hasher.finish()
}
