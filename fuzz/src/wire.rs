//! The wire format once more (RFC 1035), written down without a look at the code under test.

pub(crate) const HEADER: usize = 12;

pub(crate) mod rtype {
    pub(crate) const SOA: u16 = 6;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

/// The first two words of a header, in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) response: bool,
    pub(crate) opcode: u8,
    pub(crate) authoritative: bool,
    pub(crate) truncated: bool,
    pub(crate) recursion_desired: bool,
    pub(crate) recursion_available: bool,
    pub(crate) reserved: bool,
    pub(crate) authentic: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) rcode: u8,
    /// Questions, answers, authorities, additional records.
    pub(crate) counts: [u16; 4],
}

impl Header {
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = message.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let bit = |at: usize, bit: u8| bytes[at] >> bit & 1 == 1;
        Some(Self {
            id: word(0),
            response: bit(2, 7),
            opcode: bytes[2] >> 3 & 15,
            authoritative: bit(2, 2),
            truncated: bit(2, 1),
            recursion_desired: bit(2, 0),
            recursion_available: bit(3, 7),
            reserved: bit(3, 6),
            authentic: bit(3, 5),
            checking_disabled: bit(3, 4),
            rcode: bytes[3] & 15,
            counts: [word(4), word(6), word(8), word(10)],
        })
    }
}

/// A question whose name is written out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    /// Name, type and class.
    pub(crate) octets: &'a [u8],
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
}

impl<'a> Question<'a> {
    /// The first question of a message.
    pub(crate) fn read(message: &'a [u8]) -> Option<Self> {
        let mut at = HEADER;
        while let length @ 1..64 = usize::from(*message.get(at)?) {
            at += 1 + length;
        }
        let octets = message.get(HEADER..at + 5).filter(|_| message[at] == 0)?;
        let [.., t1, t0, c1, c0] = octets else { return None };
        Some(Self { octets, qtype: u16::from_be_bytes([*t1, *t0]), qclass: u16::from_be_bytes([*c1, *c0]) })
    }

    /// The labels of its name in lower case, the last one first.
    pub(crate) fn labels(&self) -> Vec<Vec<u8>> {
        let mut labels = Vec::new();
        let mut rest = self.octets;
        while let Some((length, behind)) = rest.split_first().filter(|(length, _)| **length != 0) {
            let (label, behind) = behind.split_at((*length).into());
            labels.insert(0, label.to_ascii_lowercase());
            rest = behind;
        }
        labels
    }

    /// Whether its name is this one or below it.
    pub(crate) fn is_in(&self, domain: &str) -> bool {
        let labels = self.labels();
        let mut domain = domain.rsplit('.').map(str::as_bytes);
        let mut labels = labels.iter();
        domain.all(|label| labels.next().is_some_and(|own| own == label))
    }
}

/// A record behind the questions.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) rtype: u16,
    /// Class, or what stands in its place.
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where the TTL is.
    pub(crate) ttl_at: usize,
    /// Where its data is.
    pub(crate) data: std::ops::Range<usize>,
    /// 0 to 2: answer, authority, additional.
    pub(crate) section: usize,
}

/// The records of a message; none if it is malformed. Names that are compressed are not followed.
pub(crate) fn records(message: &[u8]) -> Option<Vec<Record>> {
    let [questions, sections @ ..] = Header::read(message)?.counts;
    let mut at = HEADER;
    for _ in 0..questions {
        at = after_name(message, at)? + 4;
    }
    let mut records = Vec::new();
    for (section, count) in sections.into_iter().enumerate() {
        for _ in 0..count {
            let fixed = after_name(message, at)?;
            let octets: &[u8; 10] = message.get(fixed..)?.first_chunk()?;
            let [t1, t0, c1, c0, ttl @ .., l1, l0] = *octets;
            let data = fixed + 10..fixed + 10 + usize::from(u16::from_be_bytes([l1, l0]));
            message.get(data.clone())?;
            at = data.end;
            records.push(Record {
                rtype: u16::from_be_bytes([t1, t0]),
                class: u16::from_be_bytes([c1, c0]),
                ttl: u32::from_be_bytes(ttl),
                ttl_at: fixed + 4,
                data,
                section,
            });
        }
    }
    Some(records)
}

fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..64 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            64..192 => return None,
        }
    }
}
