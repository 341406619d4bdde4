//! Writing and reading netlink messages and attributes (`struct nlmsghdr`, `nfgenmsg`, `nlattr`).

const HEADER: usize = 16;
const GENMSG: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: an attribute type without its nested and byte order flags.
const TYPE_MASK: u16 = 0x3fff;

/// The header of one netfilter netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// `nfgen_family`.
    pub(crate) family: u8,
    /// `res_id`, in host order.
    pub(crate) resource: u16,
}

/// A run of netlink messages under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a message whose attributes `fill` writes.
    pub(crate) fn message(&mut self, header: Header, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&0u32.to_ne_bytes());
        self.0.extend_from_slice(&header.kind.to_ne_bytes());
        self.0.extend_from_slice(&header.flags.to_ne_bytes());
        self.0.extend_from_slice(&header.sequence.to_ne_bytes());
        self.0.extend_from_slice(&0u32.to_ne_bytes());
        self.0.extend_from_slice(&[header.family, 0]);
        self.0.extend_from_slice(&header.resource.to_be_bytes());
        fill(self);
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends messages that were built elsewhere.
    pub(crate) fn extend(&mut self, other: &Buffer) {
        self.0.extend_from_slice(&other.0);
    }

    /// Sets `flags` in the header of the message that starts at `offset`.
    pub(crate) fn add_flags(&mut self, offset: usize, flags: u16) {
        self.0[offset + 6..offset + 8]
            .iter_mut()
            .zip(flags.to_ne_bytes())
            .for_each(|(byte, flag)| *byte |= flag);
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.0.extend_from_slice(&((payload.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
    }

    /// A string, terminated as nf_tables wants it.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.0.extend_from_slice(&((text.len() + 5) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.pad();
    }

    /// A number; nf_tables has all of them in network order.
    pub(crate) fn number(&mut self, kind: u16, number: u32) {
        self.attr(kind, &number.to_be_bytes());
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = self.0.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "a netlink attribute holds 64 KiB");
        self.0[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }

    /// A nested attribute whose content was read as it is.
    pub(crate) fn raw_nested(&mut self, kind: u16, content: &[u8]) {
        self.attr(kind | NESTED, content);
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows `struct nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes of a netfilter message, after its `struct nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENMSG..).unwrap_or_default())
    }
}

/// The messages in a received datagram; stops at the first malformed one.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let length = word(header, 0)? as usize;
        let message = Message {
            kind: half(header, 4)?,
            flags: half(header, 6)?,
            sequence: word(header, 8)?,
            payload: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in a byte string; stops at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of this type.
    pub(crate) fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// A string attribute without its terminator.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(half(self.0, 0)?);
        let kind = half(self.0, 2)? & TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32-bit number in host order at an offset.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
