//! What came in, and why some of it was not taken.

use std::fmt;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Refusal {
    /// Too short or too long for one of ours.
    Size,
    /// Of a version this program does not speak.
    Version,
    /// Sealed with a key this node does not hold.
    Key,
    /// Forged or damaged: it does not open.
    Seal,
    /// It opened and holds no message.
    Malformed,
    /// From or about a node that is not in the cluster.
    Foreign,
    /// Not for this node, or not for this life of it; among these, what this node sent itself.
    Misdirected,
    /// From an earlier life of its sender.
    Stale,
    /// Came before, or so late that this can't be told.
    Replayed,
}

impl Refusal {
    /// All of them, in the order of [`Tally::refused`].
    pub const ALL: [Self; 9] = [
        Self::Size,
        Self::Version,
        Self::Key,
        Self::Seal,
        Self::Malformed,
        Self::Foreign,
        Self::Misdirected,
        Self::Stale,
        Self::Replayed,
    ];

    /// A short name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Version => "version",
            Self::Key => "key",
            Self::Seal => "seal",
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Misdirected => "misdirected",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams taken.
    pub taken: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Bytes sent, without IP and UDP headers.
    pub sent_bytes: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Tally {
    /// Datagrams dropped for this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize]
    }

    /// Datagrams dropped, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.refused.iter().sum()
    }

    pub(super) fn refuse(&mut self, why: Refusal) {
        self.refused[why as usize] += 1;
    }
}

/// The reasons that occurred: `seal 3, replayed 1`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for why in Refusal::ALL.into_iter().filter(|why| self.refused(*why) > 0) {
            write!(f, "{}{} {}", if first { "" } else { ", " }, why.name(), self.refused(why))?;
            first = false;
        }
        Ok(())
    }
}
