//! Numbers of the wire format (RFC 1035 unless said otherwise).

/// Octets of a message's header.
pub(crate) const HEADER_LEN: usize = 12;
/// The largest message over TCP, whose length prefix has 16 bits.
pub(crate) const MAX_MESSAGE: usize = u16::MAX as usize;
/// Octets of a name with its root label (RFC 1035, 3.1).
pub(crate) const MAX_NAME: usize = 255;
/// What a client takes over UDP that does not say otherwise.
pub(crate) const PLAIN_UDP_LEN: usize = 512;
/// The most that is sent over UDP, and that peers are told: no fragments on any sane path (DNS flag day 2020).
pub(crate) const EDNS_UDP_LEN: usize = 1232;
/// Octets of an OPT record without options (RFC 6891, 6.1.2).
pub(crate) const OPT_LEN: usize = 11;
/// The DO bit within the TTL of an OPT record (RFC 6891, 6.1.4).
pub(crate) const DNSSEC_OK: u32 = 1 << 15;

/// How long, in seconds, anybody may keep what we say of our own names.
pub(crate) const TTL: u32 = 5;

/// Bits of a header's second word.
pub(crate) mod flag {
    pub(crate) const RESPONSE: u16 = 1 << 15;
    pub(crate) const OPCODE: u16 = 0b1111 << 11;
    pub(crate) const AUTHORITATIVE: u16 = 1 << 10;
    pub(crate) const TRUNCATED: u16 = 1 << 9;
    pub(crate) const RECURSION_DESIRED: u16 = 1 << 8;
    pub(crate) const RECURSION_AVAILABLE: u16 = 1 << 7;
    pub(crate) const AUTHENTIC_DATA: u16 = 1 << 5;
    pub(crate) const CHECKING_DISABLED: u16 = 1 << 4;
    pub(crate) const RCODE: u16 = 0b1111;
}

/// Record types and those that only a question can have.
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    /// TKEY, TSIG, IXFR, AXFR, MAILB and MAILA: they ask for something other than the records of a name.
    pub(crate) const META: std::ops::RangeInclusive<u16> = 249..=254;
    pub(crate) const ANY: u16 = 255;
}

/// The Internet, the only class that is answered.
pub(crate) const CLASS_IN: u16 = 1;

/// How a query fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    /// Does not fit the header: its upper bits are in the OPT record (RFC 6891, 6.1.3).
    BadVers = 16,
}

/// The 16-bit number at `at`, in network order.
pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..at + 2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]))
}

/// The 32-bit number at `at`, in network order.
pub(crate) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..at + 4).map(|o| u32::from_be_bytes([o[0], o[1], o[2], o[3]]))
}

/// Where a possibly compressed name that starts at `at` ends; what a pointer leads to is not looked at.
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            64..=191 => return None,
        }
    }
}
