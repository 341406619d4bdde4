//! Statements as nf_tables expressions (`NFTA_RULE_EXPRESSIONS`), the same that nft makes of them.

use super::attr::Buffer;
use super::datum::{Data, Datum, Type, concatenated_bytes, concatenated_len};
use super::rule::{CtDirection, Field, MarkKind, NatKind, Rule, Source, SourceHash, Statement, Verdict};
use super::table::{Family, Limit, Set, SetKind, Table, Value};
use super::uapi::{FIRST_REGISTER, FIRST_WORD_REGISTER, LAST_REGISTER, VERDICT_REGISTER, nfta};
use std::ops::RangeInclusive;

/// The name a rule uses for an anonymous set; the kernel puts a number in.
pub(super) const ANONYMOUS_NAME: &str = "__map%d";

/// Writes the expressions of a rule. `inline_ids` are the batch's numbers for its inline maps.
pub(super) fn expressions(buffer: &mut Buffer, table: &Table, rule: &Rule, inline_ids: &[u32]) {
    let mut encoder = Encoder { buffer, table, inline_ids: inline_ids.iter() };
    for statement in &rule.statements {
        encoder.statement(statement);
    }
}

/// Writes one set element.
pub(super) fn element(buffer: &mut Buffer, key: &[Datum], value: &Value) {
    buffer.nested(nfta::LIST_ELEM, |b| {
        b.nested(nfta::SET_ELEM_KEY, |b| b.attr(nfta::DATA_VALUE, &concatenated_bytes(key)));
        match value {
            Value::Member => {}
            Value::Data(data) => {
                b.nested(nfta::SET_ELEM_DATA, |b| b.attr(nfta::DATA_VALUE, &concatenated_bytes(data)))
            }
            Value::Verdict(verdict) => b.nested(nfta::SET_ELEM_DATA, |b| verdict_data(b, verdict)),
        }
    });
}

/// Writes the expression that is true above a limit (`NFTA_LIMIT_*`).
pub(super) fn limit_over(buffer: &mut Buffer, limit: Limit) {
    const PACKETS: u32 = 0;
    const INVERTED: u32 = 1;
    buffer.text(nfta::EXPR_NAME, "limit");
    buffer.nested(nfta::EXPR_DATA, |b| {
        b.attr(1, &limit.rate.to_be_bytes());
        b.attr(2, &1u64.to_be_bytes());
        b.number(3, limit.burst);
        b.number(4, PACKETS);
        b.number(5, INVERTED);
    });
}

/// Writes a counter that starts at nothing.
pub(super) fn counter(buffer: &mut Buffer) {
    buffer.text(nfta::EXPR_NAME, "counter");
    buffer.nested(nfta::EXPR_DATA, |_| {});
}

/// `NFT_CMP_EQ` or `NFT_CMP_NEQ`; `NFT_LOOKUP_F_INV` likewise.
fn inverted(negated: bool) -> u32 {
    u32::from(negated)
}

fn verdict_data(buffer: &mut Buffer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    buffer.nested(nfta::DATA_VERDICT, |b| {
        b.attr(nfta::VERDICT_CODE, &i32::to_be_bytes(code));
        if let Some(chain) = chain {
            b.text(nfta::VERDICT_CHAIN, chain);
        }
    });
}

/// `NFT_PAYLOAD_LL_HEADER`, `NFT_PAYLOAD_NETWORK_HEADER`.
const LINK: u32 = 0;
const NETWORK: u32 = 1;

struct Encoder<'a> {
    buffer: &'a mut Buffer,
    table: &'a Table,
    inline_ids: std::slice::Iter<'a, u32>,
}

impl Encoder<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Buffer)) {
        self.buffer.nested(nfta::LIST_ELEM, |b| {
            b.text(nfta::EXPR_NAME, name);
            b.nested(nfta::EXPR_DATA, fill);
        });
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Compare { field, negated, value } => {
                self.load(*field, FIRST_REGISTER);
                self.compare(*negated, &value.bytes());
            }
            Statement::Prefix { field, negated, prefix } => {
                self.load(*field, FIRST_REGISTER);
                self.compare(*negated, prefix.as_bytes());
            }
            Statement::Masked { field, mask, negated, value } => {
                self.load(*field, FIRST_REGISTER);
                self.bitwise_and(&mask.bytes());
                self.compare(*negated, &value.bytes());
            }
            Statement::Lookup { key, negated, set } => {
                self.load_key(key);
                self.lookup(set, None, None, *negated);
            }
            Statement::Vmap { key, map } => {
                self.load_key(key);
                self.lookup(map, None, Some(VERDICT_REGISTER), false);
            }
            Statement::SetMark(kind, source) => {
                self.load_source(source);
                self.store_mark(*kind);
            }
            Statement::SetEtherDaddr(mac) => self.set_ether_daddr(mac),
            Statement::SetSaddrAsked { ipv6 } => self.set_saddr_asked(*ipv6),
            Statement::SetForHost => self.set_for_host(),
            Statement::Notrack => self.expression("notrack", |_| {}),
            Statement::Nat(kind, source) => {
                self.load_source(source);
                self.nat(*kind, source);
            }
            Statement::Masquerade => self.expression("masq", |_| {}),
            Statement::MasqueradeFrom(ports) => self.masquerade_from(ports),
            Statement::RejectTcpReset => self.reject(1, 0),
            Statement::RejectPortUnreachable => self.reject_port_unreachable(),
            Statement::ClampMss => self.clamp_mss(),
            Statement::Counter => self.expression("counter", |_| {}),
            Statement::Verdict(verdict) => self.expression("immediate", |b| {
                b.number(1, VERDICT_REGISTER);
                b.nested(2, |b| verdict_data(b, verdict));
            }),
        }
    }

    /// `NFTA_META_*`, `NFTA_PAYLOAD_*`, `NFTA_FIB_*`, `NFTA_CT_*`, `NFTA_NG_*`.
    fn load(&mut self, field: Field, register: u32) {
        const TRANSPORT: u32 = 2;
        match field {
            Field::Mark => self.keyed_load("meta", 3, register),
            Field::Iifname => self.keyed_load("meta", 6, register),
            Field::Oifname => self.keyed_load("meta", 7, register),
            Field::Skuid => self.keyed_load("meta", 10, register),
            Field::L4proto => self.keyed_load("meta", 16, register),
            Field::CtState => self.keyed_load("ct", 0, register),
            Field::CtDirection => self.keyed_load("ct", 1, register),
            Field::CtStatus => self.keyed_load("ct", 2, register),
            Field::CtMark => self.keyed_load("ct", 3, register),
            Field::EtherDaddr => self.payload(LINK, 0, 6, register),
            Field::EtherSaddr => self.payload(LINK, 6, 6, register),
            Field::EtherType => self.payload(LINK, 12, 2, register),
            Field::ArpSaddrEther => self.payload(NETWORK, 8, 6, register),
            Field::ArpSaddrIp => self.payload(NETWORK, 14, 4, register),
            Field::IpSaddr => self.payload(NETWORK, 12, 4, register),
            Field::IpDaddr => self.payload(NETWORK, 16, 4, register),
            Field::Ip6Saddr => self.payload(NETWORK, 8, 16, register),
            Field::Ip6Daddr => self.payload(NETWORK, 24, 16, register),
            Field::ThSport => self.payload(TRANSPORT, 0, 2, register),
            Field::ThDport => self.payload(TRANSPORT, 2, 2, register),
            Field::NdTarget => self.payload(TRANSPORT, 8, 16, register),
            Field::Vni => self.payload(TRANSPORT, 12, 3, register),
            Field::TcpFlags => self.payload(TRANSPORT, 13, 1, register),
            Field::Icmpv6Type => self.payload(TRANSPORT, 0, 1, register),
            Field::FibDaddrType => self.expression("fib", |b| {
                b.number(1, register);
                b.number(2, 3); // NFT_FIB_RESULT_ADDRTYPE
                b.number(3, 1 << 1); // NFTA_FIB_F_DADDR
            }),
            Field::NumgenInc(modulus) => self.numgen(0, modulus, register),
            Field::NumgenRandom(modulus) => self.numgen(1, modulus, register),
            Field::IpSaddrHash(hash) => self.source_hash(Field::IpSaddr, hash, register),
            Field::Ip6SaddrHash(hash) => self.source_hash(Field::Ip6Saddr, hash, register),
        }
    }

    fn keyed_load(&mut self, expression: &str, key: u32, register: u32) {
        self.expression(expression, |b| {
            b.number(1, register);
            b.number(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |b| {
            b.number(1, register);
            b.number(2, base);
            b.number(3, offset);
            b.number(4, length);
        });
    }

    fn numgen(&mut self, kind: u32, modulus: u32, register: u32) {
        self.expression("numgen", |b| {
            b.number(1, register);
            b.number(2, modulus);
            b.number(3, kind);
            b.number(4, 0);
        });
    }

    /// `NFTA_HASH_*`, of type `NFT_HASH_JENKINS`. What is hashed lies in the highest registers, which no key reaches.
    fn source_hash(&mut self, address: Field, hash: SourceHash, register: u32) {
        self.load(address, LAST_REGISTER);
        let length = address.kind().len() as u32;
        self.expression("hash", |b| {
            b.number(1, LAST_REGISTER);
            b.number(2, register);
            b.number(3, length);
            b.number(4, hash.modulus);
            b.number(5, hash.seed);
            b.number(6, 0);
            b.number(7, 0);
        });
    }

    /// Loads the parts of a key one behind the other, each at the start of a 4-byte register.
    fn load_key(&mut self, key: &[Field]) {
        if let [one] = key {
            return self.load(*one, FIRST_REGISTER);
        }
        let mut register = FIRST_WORD_REGISTER;
        for field in key {
            self.load(*field, register);
            register += field.kind().len().div_ceil(4) as u32;
        }
    }

    /// Loads what a mark or NAT statement takes into the first register and those after it.
    fn load_source(&mut self, source: &Source) {
        match source {
            Source::Constant(data) => {
                let mut register = FIRST_WORD_REGISTER;
                for datum in data {
                    let bytes = datum.bytes();
                    self.immediate(&bytes, register);
                    register += bytes.len().div_ceil(4) as u32;
                }
            }
            Source::Field(field) => self.load(*field, FIRST_REGISTER),
            Source::Map { key, map } => {
                self.load_key(key);
                self.lookup(map, None, Some(FIRST_REGISTER), false);
            }
            Source::Inline { key, .. } => {
                self.load(*key, FIRST_REGISTER);
                let id = self.inline_ids.next().copied();
                self.lookup(ANONYMOUS_NAME, id, Some(FIRST_REGISTER), false);
            }
        }
    }

    /// `NFTA_LOOKUP_*`.
    fn lookup(&mut self, set: &str, id: Option<u32>, to: Option<u32>, negated: bool) {
        self.expression("lookup", |b| {
            b.text(1, set);
            b.number(2, FIRST_REGISTER);
            if let Some(register) = to {
                b.number(3, register);
            }
            if let Some(id) = id {
                b.number(4, id);
            }
            b.number(5, inverted(negated));
        });
    }

    /// `NFTA_CMP_*`.
    fn compare(&mut self, negated: bool, value: &[u8]) {
        self.expression("cmp", |b| {
            b.number(1, FIRST_REGISTER);
            b.number(2, inverted(negated));
            b.nested(3, |b| b.attr(nfta::DATA_VALUE, value));
        });
    }

    /// `NFTA_BITWISE_*`: and with the mask, exclusive or with nothing.
    fn bitwise_and(&mut self, mask: &[u8]) {
        self.expression("bitwise", |b| {
            b.number(1, FIRST_REGISTER);
            b.number(2, FIRST_REGISTER);
            b.number(3, mask.len() as u32);
            b.nested(4, |b| b.attr(nfta::DATA_VALUE, mask));
            b.nested(5, |b| b.attr(nfta::DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    /// The `SREG` attributes of `meta` and `ct`.
    fn store_mark(&mut self, kind: MarkKind) {
        let (expression, key, register_attr) = match kind {
            MarkKind::Packet => ("meta", 3, 3),
            MarkKind::Connection => ("ct", 3, 4),
            MarkKind::Zone => ("ct", 17, 4),
        };
        self.expression(expression, |b| {
            b.number(2, key);
            b.number(register_attr, FIRST_REGISTER);
            if kind == MarkKind::Zone {
                b.attr(3, &[CtDirection::Original as u8]);
            }
        });
    }

    /// Loads a constant (`NFTA_IMMEDIATE_*`).
    fn immediate(&mut self, value: &[u8], register: u32) {
        self.expression("immediate", |b| {
            b.number(1, register);
            b.nested(2, |b| b.attr(nfta::DATA_VALUE, value));
        });
    }

    /// `NFTA_PAYLOAD_*`, without a checksum to put right.
    fn set_ether_daddr(&mut self, mac: &[u8; 6]) {
        self.immediate(mac, FIRST_REGISTER);
        self.expression("payload", |b| {
            b.number(5, FIRST_REGISTER);
            b.number(2, LINK);
            b.number(3, 0);
            b.number(4, mac.len() as u32);
            b.number(6, 0);
            b.number(7, 0);
            b.number(8, 0);
        });
    }

    /// `NFT_CT_DST_IP` or `NFT_CT_DST_IP6` of the original direction, and `NFTA_PAYLOAD_*` with the checksums of the header and
    /// of what it carries (`NFT_PAYLOAD_CSUM_INET`, `NFT_PAYLOAD_L4CSUM_PSEUDOHDR`).
    fn set_saddr_asked(&mut self, ipv6: bool) {
        let (key, offset, length, checksum, checksum_at) =
            if ipv6 { (22, 8, 16, 0, 0) } else { (20, 12, 4, 1, 10) };
        self.expression("ct", |b| {
            b.number(1, FIRST_REGISTER);
            b.number(2, key);
            b.attr(3, &[CtDirection::Original as u8]);
        });
        self.expression("payload", |b| {
            b.number(5, FIRST_REGISTER);
            b.number(2, NETWORK);
            b.number(3, offset);
            b.number(4, length);
            b.number(6, checksum);
            b.number(7, checksum_at);
            b.number(8, 1);
        });
    }

    /// `NFT_META_PKTTYPE`.
    fn set_for_host(&mut self) {
        self.immediate(&[0], FIRST_REGISTER);
        self.expression("meta", |b| {
            b.number(2, 19);
            b.number(3, FIRST_REGISTER);
        });
    }

    /// `NFTA_NAT_*`. The address lies in the first register, the port, if any, behind it.
    fn nat(&mut self, kind: NatKind, source: &Source) {
        let family = self.table.family;
        let data = source_types(self.table, source);
        self.expression("nat", |b| {
            b.number(1, u32::from(kind == NatKind::Dnat));
            b.number(2, u32::from(family.number()));
            b.number(3, FIRST_REGISTER);
            // `NFTA_NAT_REG_PROTO_MIN` and, for a range of ports, `NFTA_NAT_REG_PROTO_MAX`.
            if let [address, ref ports @ ..] = data[..] {
                let first = FIRST_WORD_REGISTER + concatenated_len(&[address]) as u32 / 4;
                for (at, _) in (0..).zip(ports) {
                    b.number(5 + at, first + u32::from(at));
                }
            }
        });
    }

    /// `NFTA_MASQ_*`, with `NF_NAT_RANGE_PROTO_SPECIFIED` and `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    fn masquerade_from(&mut self, ports: &RangeInclusive<u16>) {
        let registers = [FIRST_WORD_REGISTER, FIRST_WORD_REGISTER + 1];
        for (port, register) in [ports.start(), ports.end()].into_iter().zip(registers) {
            self.immediate(&port.to_be_bytes(), register);
        }
        self.expression("masq", |b| {
            b.number(1, 1 << 1 | 1 << 4);
            b.number(2, registers[0]);
            b.number(3, registers[1]);
        });
    }

    /// `NFTA_REJECT_*`.
    fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", |b| {
            b.number(1, kind);
            b.attr(2, &[code]);
        });
    }

    fn reject_port_unreachable(&mut self) {
        match self.table.family {
            Family::Ip => self.reject(0, 3),
            Family::Ip6 => self.reject(0, 4),
            // NFT_REJECT_ICMPX_PORT_UNREACH, as a bridge carries both.
            Family::Bridge => self.reject(2, 1),
        }
    }

    /// The route's MSS, in network order, into the TCP option (`NFTA_RT_*`, `NFTA_BYTEORDER_*`,
    /// `NFTA_EXTHDR_*`). The kernel never raises the option.
    fn clamp_mss(&mut self) {
        self.expression("rt", |b| {
            b.number(1, FIRST_REGISTER);
            b.number(2, 3); // NFT_RT_TCPMSS
        });
        self.expression("byteorder", |b| {
            b.number(1, FIRST_REGISTER);
            b.number(2, FIRST_REGISTER);
            b.number(3, 1); // NFT_BYTEORDER_HTON
            b.number(4, 2);
            b.number(5, 2);
        });
        self.expression("exthdr", |b| {
            b.number(7, FIRST_REGISTER);
            b.attr(2, &[2]); // TCPOPT_MAXSEG
            b.number(3, 2);
            b.number(4, 2);
            b.number(6, 1); // NFT_EXTHDR_OP_TCPOPT
        });
    }
}

fn source_types(table: &Table, source: &Source) -> Vec<Type> {
    let of_map = |map: &Set| match &map.kind {
        SetKind::Map(data) => data.clone(),
        SetKind::Plain | SetKind::Verdicts => Vec::new(),
    };
    match source {
        Source::Constant(data) => data.iter().map(Datum::kind).collect(),
        Source::Field(field) => vec![field.kind()],
        Source::Map { map, .. } => table.sets.get(map).map(of_map).unwrap_or_default(),
        Source::Inline { map, .. } => of_map(map),
    }
}

/// A constant address, with its port.
impl From<Data> for Source {
    fn from(data: Data) -> Self {
        Source::Constant(data)
    }
}
