//! Identifiers: 64 random bits, written as 16 hexadecimal digits.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A text that is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no ID: 16 hexadecimal digits are expected")]
pub struct ParseIdError(pub String);

fn parse(text: &str) -> Result<u64, ParseIdError> {
    let hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let bits = if hex { u64::from_str_radix(text, 16).ok() } else { None };
    bits.ok_or_else(|| ParseIdError(text.to_owned()))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// The first in order.
            pub const MIN: Self = Self(0);
            /// The last in order.
            pub const MAX: Self = Self(u64::MAX);

            /// An identifier of these bits, which the caller draws at random.
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The 64 bits, for what is derived from an identity (a device name, a table number).
            pub const fn bits(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!("{:016x}", self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

id!(
    /// Identifies a cluster: drawn once, at `cluster init`.
    ClusterId
);
id!(
    /// Identifies a node for as long as it is a member.
    NodeId
);
id!(
    /// Identifies a network.
    NetworkId
);
id!(
    /// Identifies a service.
    ServiceId
);
id!(
    /// Identifies an endpoint: one interface of one container on one network.
    EndpointId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_nothing_else_is_one() {
        let id = NodeId::from_bits(0x00ab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", "00000000000000AB", "+0000000000000ab", "00000000000000abc"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
