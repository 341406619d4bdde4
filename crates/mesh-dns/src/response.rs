//! Writing a response, into a buffer of the caller's.

use crate::{
    query::{Edns, Header, Query},
    wire::{
        CLASS_IN, DNSSEC_OK, EDNS_UDP_LEN, HEADER_LEN, MAX_MESSAGE, OPT_LEN, PLAIN_UDP_LEN, Rcode, flag,
        rtype,
    },
};

/// How a query came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// 512 octets, or what EDNS(0) allows, up to 1232.
    Udp,
    /// 65535 octets.
    Tcp,
}

impl Transport {
    /// The longest answer in octets.
    pub(crate) fn limit(self, edns: Option<Edns>) -> usize {
        match (self, edns) {
            (Self::Tcp, _) => MAX_MESSAGE,
            (Self::Udp, None) => PLAIN_UDP_LEN,
            (Self::Udp, Some(edns)) => usize::from(edns.udp_len).clamp(PLAIN_UDP_LEN, EDNS_UDP_LEN),
        }
    }
}

/// A section that records are added to; they come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// A compression pointer (RFC 1035, 4.1.4) into the question, `offset` octets from the start of its name.
pub(crate) fn pointer(offset: usize) -> [u8; 2] {
    (0xc000 | (HEADER_LEN + offset) as u16).to_be_bytes()
}

/// A response in the making. Room for the OPT record is kept from the start.
pub(crate) struct Response<'a> {
    out: &'a mut [u8],
    len: usize,
    limit: usize,
    counts: [u16; 3],
    header: Header,
    has_question: bool,
    edns: Option<Edns>,
}

impl<'a> Response<'a> {
    /// A response to a query; none if not even the question fits the buffer.
    pub(crate) fn to(query: &Query<'_>, limit: usize, out: &'a mut [u8]) -> Option<Self> {
        Self::start(query.header, query.question, query.edns, limit, out)
    }

    /// A response with this question, or with none if it is empty.
    pub(crate) fn start(
        header: Header,
        question: &[u8],
        edns: Option<Edns>,
        limit: usize,
        out: &'a mut [u8],
    ) -> Option<Self> {
        let copied = flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | header.flags & copied;
        let reserved = if edns.is_some() { OPT_LEN } else { 0 };
        let limit = limit.min(out.len()).checked_sub(reserved)?;
        let len = HEADER_LEN + question.len();
        out.get_mut(HEADER_LEN..len)?.copy_from_slice(question);
        Some(Self {
            out,
            len,
            limit,
            counts: [0; 3],
            header: Header { id: header.id, flags },
            has_question: !question.is_empty(),
            edns,
        })
        .filter(|response| response.len <= response.limit)
    }

    /// Sets more of the header's flags.
    pub(crate) fn set(&mut self, flags: u16) {
        self.header.flags |= flags;
    }

    /// Adds a record whose data is the concatenation of `data`. False, and nothing is added, if it does not fit.
    #[must_use]
    pub(crate) fn record(
        &mut self,
        section: Section,
        owner: &[u8],
        rtype: u16,
        ttl: u32,
        data: &[&[u8]],
    ) -> bool {
        let data_len = data.iter().map(|part| part.len()).sum::<usize>();
        let end = self.len + owner.len() + 10 + data_len;
        if end > self.limit {
            return false;
        }
        self.put(owner);
        self.put(&rtype.to_be_bytes());
        self.put(&CLASS_IN.to_be_bytes());
        self.put(&ttl.to_be_bytes());
        self.put(&(data_len as u16).to_be_bytes());
        for part in data {
            self.put(part);
        }
        self.counts[section as usize] += 1;
        true
    }

    /// Adds a record to the answers whose octets behind the owner are ready. False, and nothing is added, if it does not
    /// fit.
    #[must_use]
    pub(crate) fn ready(&mut self, owner: [u8; 2], record: &[u8]) -> bool {
        if self.len + owner.len() + record.len() > self.limit {
            return false;
        }
        self.put(&owner);
        self.put(record);
        self.counts[Section::Answer as usize] += 1;
        true
    }

    /// Completes the response and returns its length.
    pub(crate) fn finish(mut self, rcode: Rcode) -> usize {
        if let Some(edns) = self.edns {
            let extended = u32::from(rcode as u8 >> 4) << 24;
            let dnssec_ok = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
            self.put(&[0]);
            self.put(&rtype::OPT.to_be_bytes());
            self.put(&(EDNS_UDP_LEN as u16).to_be_bytes());
            self.put(&(extended | dnssec_ok).to_be_bytes());
            self.put(&[0, 0]);
            self.counts[Section::Additional as usize] += 1;
        }
        let [answers, authorities, additionals] = self.counts;
        let flags = self.header.flags | u16::from(rcode as u8) & flag::RCODE;
        let words = [self.header.id, flags, u16::from(self.has_question), answers, authorities, additionals];
        for (octets, word) in self.out.chunks_exact_mut(2).zip(words) {
            octets.copy_from_slice(&word.to_be_bytes());
        }
        self.len
    }

    /// Only called for what is known to fit.
    fn put(&mut self, octets: &[u8]) {
        let end = self.len + octets.len();
        self.out[self.len..end].copy_from_slice(octets);
        self.len = end;
    }
}
