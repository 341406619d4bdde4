//! How much of a service's traffic an endpoint is to have.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// New connections of an endpoint relative to the others of its service, as HAProxy's `weight`: one of weight 2 gets twice
/// as many as one of weight 1, and one of weight 0 none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Weight(u16);

impl Weight {
    /// None.
    pub const ZERO: Self = Self(0);
    /// The largest.
    pub const MAX: Self = Self(256);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// Whether it is what an endpoint has unless told otherwise.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u32> for Weight {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        match u16::try_from(number) {
            Ok(weight) if weight <= Self::MAX.0 => Ok(Self(weight)),
            _ => Err(refused(&number)),
        }
    }
}

impl FromStr for Weight {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u32>().map_err(|_| refused(&text))?.try_into()
    }
}

fn refused(wanted: &dyn fmt::Display) -> String {
    format!("'{wanted}' is no weight: write a number from 0 to {}", Weight::MAX)
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
