//! Names as the table keys them: labels in wire form, each behind its length, in lower case (RFC 4343), without
//! the root at the end. An octet of a key is at the same place as in the question that it was read from.

use crate::wire::MAX_NAME;

/// The name that a question asks for, as a key.
pub(crate) struct QueryName {
    octets: [u8; MAX_NAME],
    len: usize,
}

impl QueryName {
    /// Reads the name at `at` and returns where it ends. None if it is cut off, too long, or compressed: a first
    /// name has nothing to point to.
    pub(crate) fn parse(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self { octets: [0; MAX_NAME], len: 0 };
        loop {
            let start = at + name.len;
            let length = usize::from(*message.get(start)?);
            if length == 0 {
                return Some((name, start + 1));
            }
            let end = name.len + 1 + length;
            if length > 63 || end >= MAX_NAME {
                return None;
            }
            let label = &mut name.octets[name.len..end];
            label.copy_from_slice(message.get(start..start + 1 + length)?);
            // A length is below any letter, so that it is left as it is.
            label.make_ascii_lowercase();
            name.len = end;
        }
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// A dotted text in wire form without the root, its case kept. None if DNS can't express it (`a..b`).
pub(crate) fn encode(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len() + 1);
    for label in text.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        name.push(label.len() as u8);
        name.extend_from_slice(label.as_bytes());
    }
    (name.len() < MAX_NAME).then_some(name)
}

/// The labels of a name from the left, each with its place.
pub(crate) fn labels(name: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = usize::from(*name.get(at)?);
        let label = name.get(at + 1..at + 1 + length)?;
        let start = at;
        at += 1 + length;
        Some((start, label))
    })
}

/// What is left of `suffix` in a name that ends with these labels.
pub(crate) fn strip_suffix<'a>(name: &'a [u8], suffix: &[u8]) -> Option<&'a [u8]> {
    let rest = name.strip_suffix(suffix)?;
    // The same octets may also be the inside of a label.
    let at_label = rest.is_empty() || suffix.is_empty() || labels(name).any(|(at, _)| at == rest.len());
    at_label.then_some(rest)
}

/// The first label of a name and what follows it.
pub(crate) fn split_first(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = name.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_suffix_is_one_of_labels_not_of_octets() {
        let suffix = encode("mesh.internal").unwrap();
        assert_eq!(strip_suffix(&encode("web.mesh.internal").unwrap(), &suffix), encode("web").as_deref());
        assert_eq!(strip_suffix(&suffix, &suffix), Some(&[][..]));
        assert_eq!(strip_suffix(&suffix, &[]), Some(&suffix[..]));
        assert_eq!(strip_suffix(&encode("xmesh.internal").unwrap(), &suffix), None);
        // One label whose inside looks like the suffix.
        let inside = [&[15, b'x'][..], &suffix].concat();
        assert_eq!(strip_suffix(&inside, &suffix), None);
    }

    #[test]
    fn names_that_dns_cannot_say_are_not_encoded() {
        for bad in ["", ".", "a..b", "a.", &"x".repeat(64), &["x"; 128].join(".")] {
            assert_eq!(encode(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_cut_off_compressed_or_too_long_are_refused() {
        let long = [&[63; 64][..]; 4].concat();
        for bad in [&[][..], &[3, b'a'], &[1, b'a'], &[0xc0, 0], &[0x40, 0], &[&long[..], &[0]].concat()] {
            assert!(QueryName::parse(bad, 0).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_read_back_is_the_same_in_lower_case(text in "[A-Za-z0-9_-]{1,20}(\\.[A-Za-z0-9_-]{1,20}){0,6}") {
            let mut wire = encode(&text).unwrap();
            wire.push(0);
            let (name, end) = QueryName::parse(&wire, 0).unwrap();
            prop_assert_eq!(end, wire.len());
            prop_assert_eq!(name.key(), encode(&text.to_lowercase()).unwrap());
        }
    }
}
