//! Rules: statements over packet fields, and a builder that reads like nft's own syntax.

use super::datum::{Data, Datum, Type};
use super::table::Set;
use std::ops::RangeInclusive;

/// Bits of `ct status` (`enum ip_conntrack_status`).
pub mod ct_status {
    /// `IPS_DST_NAT`: the connection's destination was rewritten.
    pub const DNAT: u32 = 1 << 5;
}

/// ICMPv6 message types (RFC 4443, RFC 4861).
pub mod icmpv6 {
    /// Multicast listener query (RFC 2710).
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener report (RFC 2710).
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener report of version 2 (RFC 3810).
    pub const MLD2_REPORT: u8 = 143;
    /// Router advertisement.
    pub const ND_ROUTER_ADVERT: u8 = 134;
    /// Neighbour solicitation.
    pub const ND_NEIGHBOUR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const ND_NEIGHBOUR_ADVERT: u8 = 136;
    /// Echo request (RFC 4443): a ping.
    pub const ECHO_REQUEST: u8 = 128;
    /// Redirect.
    pub const ND_REDIRECT: u8 = 137;
}

/// Something that a packet, its connection or a generator yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Name of the interface it came in by; on a bridge, of the port.
    Iifname,
    /// Name of the interface it leaves by.
    Oifname,
    /// Transport protocol.
    L4proto,
    /// User of the process whose socket sends it. What has no socket in this namespace meets no condition on it.
    Skuid,
    /// The packet's mark.
    Mark,
    /// IPv4 source.
    IpSaddr,
    /// IPv4 destination.
    IpDaddr,
    /// IPv6 source.
    Ip6Saddr,
    /// IPv6 destination.
    Ip6Daddr,
    /// MAC source.
    EtherSaddr,
    /// MAC destination.
    EtherDaddr,
    /// The frame's EtherType; that of a VLAN tag, if it has one.
    EtherType,
    /// Sender's MAC address in ARP.
    ArpSaddrEther,
    /// Sender's IPv4 address in ARP.
    ArpSaddrIp,
    /// Target address in a neighbour solicitation or advertisement.
    NdTarget,
    /// VXLAN network identifier, after a UDP header.
    Vni,
    /// Source port of TCP or UDP.
    ThSport,
    /// Destination port of TCP or UDP.
    ThDport,
    /// Flags of a TCP header.
    TcpFlags,
    /// Type of an ICMPv6 message.
    Icmpv6Type,
    /// Routing type of the destination address (`RTN_*`).
    FibDaddrType,
    /// State of the connection, a bit mask.
    CtState,
    /// Direction of the packet in its connection.
    CtDirection,
    /// Status of the connection, a bit mask.
    CtStatus,
    /// The connection's mark.
    CtMark,
    /// 0, 1, 2… below the modulus in turn, counted by this rule.
    NumgenInc(u32),
    /// A random number below the modulus.
    NumgenRandom(u32),
    /// Jenkins' hash of the IPv4 source, scaled to below the modulus.
    IpSaddrHash(SourceHash),
    /// The same of the IPv6 source.
    Ip6SaddrHash(SourceHash),
}

/// How an address is hashed (`jhash`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceHash {
    /// Numbers are below it.
    pub modulus: u32,
    /// Not 0: the kernel would take a random one.
    pub seed: u32,
}

impl Field {
    /// The type of what is yielded.
    pub fn kind(self) -> Type {
        match self {
            Field::Iifname | Field::Oifname => Type::Ifname,
            Field::L4proto | Field::TcpFlags | Field::Icmpv6Type | Field::CtDirection => Type::Proto,
            Field::IpSaddr | Field::IpDaddr | Field::ArpSaddrIp => Type::Ipv4,
            Field::Ip6Saddr | Field::Ip6Daddr | Field::NdTarget => Type::Ipv6,
            Field::EtherSaddr | Field::EtherDaddr | Field::ArpSaddrEther => Type::Ether,
            Field::EtherType => Type::EtherType,
            Field::Vni => Type::Vni,
            Field::ThDport | Field::ThSport => Type::Port,
            Field::Mark
            | Field::Skuid
            | Field::FibDaddrType
            | Field::CtState
            | Field::CtStatus
            | Field::CtMark => Type::Number,
            Field::NumgenInc(_) | Field::NumgenRandom(_) | Field::IpSaddrHash(_) | Field::Ip6SaddrHash(_) => {
                Type::Slot
            }
        }
    }
}

/// The direction of a packet in its connection (`enum ip_conntrack_dir`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtDirection {
    /// As the connection was opened.
    Original,
    /// The other way.
    Reply,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Let pass this hook's chain.
    Accept,
    /// Drop.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Go on in a chain and come back.
    Jump(String),
    /// Go on in a chain for good.
    Goto(String),
}

/// Where a mark or a translated address comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A constant.
    Constant(Data),
    /// A field of the packet.
    Field(Field),
    /// What a named map has for these fields; without an element the rule ends here.
    Map {
        /// The fields that make the key.
        key: Vec<Field>,
        /// The map's name.
        map: String,
    },
    /// The same, with a map that belongs to this rule.
    Inline {
        /// The field that is the key.
        key: Field,
        /// The map.
        map: Set,
    },
}

/// Which mark is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkKind {
    /// The packet's.
    Packet,
    /// The connection's.
    Connection,
    /// The connection's zone, for its original direction. Its lower 16 bits count.
    Zone,
}

/// Which address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NatKind {
    /// The source.
    Snat,
    /// The destination.
    Dnat,
}

/// One statement of a rule: a condition that ends the rule if it does not hold, or an action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// A field has, or has not, this value.
    Compare {
        /// The field.
        field: Field,
        /// Whether the condition is that they differ.
        negated: bool,
        /// The value.
        value: Datum,
    },
    /// An interface name begins, or does not begin, so.
    Prefix {
        /// The field.
        field: Field,
        /// Whether the condition is that it does not.
        negated: bool,
        /// How it begins.
        prefix: String,
    },
    /// `field & mask` is, or is not, this value.
    Masked {
        /// The field.
        field: Field,
        /// The bits that count.
        mask: Datum,
        /// Whether the condition is that they differ.
        negated: bool,
        /// The value.
        value: Datum,
    },
    /// The fields are, or are not, in a named set.
    Lookup {
        /// The fields that make the key.
        key: Vec<Field>,
        /// Whether the condition is that they are not.
        negated: bool,
        /// The set's name.
        set: String,
    },
    /// The verdict that a named verdict map has for the fields; without an element the rule ends here.
    Vmap {
        /// The fields that make the key.
        key: Vec<Field>,
        /// The map's name.
        map: String,
    },
    /// Writes a mark.
    SetMark(MarkKind, Source),
    /// Writes the frame's destination.
    SetEtherDaddr([u8; 6]),
    /// Writes the packet's source: the address that its connection was opened to.
    SetSaddrAsked {
        /// Of which version.
        ipv6: bool,
    },
    /// Has the packet be one for this host, whatever the frame's destination was (`PACKET_HOST`).
    SetForHost,
    /// `notrack`.
    Notrack,
    /// Translates an address and, if the source has one, the port; with two, to one of those from the first to the last.
    Nat(NatKind, Source),
    /// Source NAT to the address of the interface the packet leaves by.
    Masquerade,
    /// The same, from one of these ports, picked at random.
    MasqueradeFrom(RangeInclusive<u16>),
    /// Answers TCP with a reset.
    RejectTcpReset,
    /// Answers with ICMP or ICMPv6 port unreachable.
    RejectPortUnreachable,
    /// Lowers the MSS of a SYN to what the route's MTU takes.
    ClampMss,
    /// Counts packets and bytes.
    Counter,
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

/// One rule: its statements in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
}

/// `RTN_LOCAL` of `linux/rtnetlink.h`.
pub(super) const RTN_LOCAL: u32 = 2;
/// TCP flags SYN and RST.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Conditions.
impl Rule {
    /// A rule that matches everything and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// `field value`.
    pub fn eq(self, field: Field, value: impl Into<Datum>) -> Self {
        self.with(Statement::Compare { field, negated: false, value: value.into() })
    }

    /// `field != value`.
    pub fn ne(self, field: Field, value: impl Into<Datum>) -> Self {
        self.with(Statement::Compare { field, negated: true, value: value.into() })
    }

    /// `iifname "prefix*"` and the like.
    pub fn begins(self, field: Field, prefix: &str) -> Self {
        self.with(Statement::Prefix { field, negated: false, prefix: prefix.to_owned() })
    }

    /// `iifname != "prefix*"` and the like.
    pub fn not_begins(self, field: Field, prefix: &str) -> Self {
        self.with(Statement::Prefix { field, negated: true, prefix: prefix.to_owned() })
    }

    /// `field & bits != 0`: at least one of the bits is set.
    pub fn any_bit(self, field: Field, bits: u32) -> Self {
        self.with(Statement::Masked {
            field,
            mask: Datum::Number(bits),
            negated: true,
            value: Datum::Number(0),
        })
    }

    /// `field & bits == 0`: none of the bits is set.
    pub fn no_bit(self, field: Field, bits: u32) -> Self {
        self.with(Statement::Masked {
            field,
            mask: Datum::Number(bits),
            negated: false,
            value: Datum::Number(0),
        })
    }

    /// `field == network`, the network given by address and mask.
    pub fn within(self, field: Field, address: impl Into<Datum>, mask: impl Into<Datum>) -> Self {
        self.with(Statement::Masked { field, mask: mask.into(), negated: false, value: address.into() })
    }

    /// `field != network`, the network given by address and mask.
    pub fn outside(self, field: Field, address: impl Into<Datum>, mask: impl Into<Datum>) -> Self {
        self.with(Statement::Masked { field, mask: mask.into(), negated: true, value: address.into() })
    }

    /// `meta l4proto protocol`.
    pub fn protocol(self, protocol: u8) -> Self {
        self.eq(Field::L4proto, Datum::Proto(protocol))
    }

    /// `fib daddr type local`: the destination is an address of this host.
    pub fn daddr_is_local(self) -> Self {
        self.eq(Field::FibDaddrType, Datum::Number(RTN_LOCAL))
    }

    /// `fib daddr type != local`.
    pub fn daddr_is_not_local(self) -> Self {
        self.ne(Field::FibDaddrType, Datum::Number(RTN_LOCAL))
    }

    /// `ct direction …`.
    pub fn direction(self, direction: CtDirection) -> Self {
        self.eq(Field::CtDirection, Datum::Proto(direction as u8))
    }

    /// `key @set`.
    pub fn is_in(self, key: &[Field], set: &str) -> Self {
        self.with(Statement::Lookup { key: key.to_vec(), negated: false, set: set.to_owned() })
    }

    /// `key != @set`.
    pub fn not_in(self, key: &[Field], set: &str) -> Self {
        self.with(Statement::Lookup { key: key.to_vec(), negated: true, set: set.to_owned() })
    }
}

/// Actions.
impl Rule {
    /// `key vmap @map`.
    pub fn vmap(self, key: &[Field], map: &str) -> Self {
        self.with(Statement::Vmap { key: key.to_vec(), map: map.to_owned() })
    }

    /// `meta mark set …`.
    pub fn set_mark(self, source: Source) -> Self {
        self.with(Statement::SetMark(MarkKind::Packet, source))
    }

    /// `ct mark set …`.
    pub fn set_ct_mark(self, source: Source) -> Self {
        self.with(Statement::SetMark(MarkKind::Connection, source))
    }

    /// `ct original zone set …`: connections of several zones may look alike as they are opened. Before conntrack only
    /// (priority −200). nft lists a zone that is a mark, but refuses to read it.
    pub fn set_zone(self, source: Source) -> Self {
        self.with(Statement::SetMark(MarkKind::Zone, source))
    }

    /// `meta pkttype set host ether daddr set …`: a bridge gives the frame to its own interface, which has this MAC address.
    pub fn hand_up(self, bridge: [u8; 6]) -> Self {
        self.with(Statement::SetForHost).with(Statement::SetEtherDaddr(bridge))
    }

    /// `notrack`: connection tracking leaves the packet alone. Before it has looked, and before a zone is set.
    pub fn notrack(self) -> Self {
        self.with(Statement::Notrack)
    }

    /// `dnat to …`.
    pub fn dnat(self, to: Source) -> Self {
        self.with(Statement::Nat(NatKind::Dnat, to))
    }

    /// `snat to …`.
    pub fn snat(self, to: Source) -> Self {
        self.with(Statement::Nat(NatKind::Snat, to))
    }

    /// `ip saddr set ct original ip daddr`.
    pub fn set_saddr_asked(self, ipv6: bool) -> Self {
        self.with(Statement::SetSaddrAsked { ipv6 })
    }

    /// `masquerade`.
    pub fn masquerade(self) -> Self {
        self.with(Statement::Masquerade)
    }

    /// `masquerade to :… fully-random`.
    pub fn masquerade_from(self, ports: RangeInclusive<u16>) -> Self {
        self.with(Statement::MasqueradeFrom(ports))
    }

    /// `meta l4proto tcp reject with tcp reset`.
    pub fn reject_tcp_reset(self) -> Self {
        self.protocol(TCP).with(Statement::RejectTcpReset)
    }

    /// `reject`, with port unreachable.
    pub fn reject_port_unreachable(self) -> Self {
        self.with(Statement::RejectPortUnreachable)
    }

    /// `tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu`.
    pub fn clamp_mss_to_path(self) -> Self {
        self.protocol(TCP)
            .with(Statement::Masked {
                field: Field::TcpFlags,
                mask: Datum::Proto(SYN | RST),
                negated: false,
                value: Datum::Proto(SYN),
            })
            .with(Statement::ClampMss)
    }

    /// `counter`.
    pub fn counter(self) -> Self {
        self.with(Statement::Counter)
    }

    /// `accept`.
    pub fn accept(self) -> Self {
        self.with(Statement::Verdict(Verdict::Accept))
    }

    /// `drop`.
    pub fn drop(self) -> Self {
        self.with(Statement::Verdict(Verdict::Drop))
    }

    /// `return`.
    pub fn back(self) -> Self {
        self.with(Statement::Verdict(Verdict::Return))
    }

    /// `goto chain`.
    pub fn goto(self, chain: &str) -> Self {
        self.with(Statement::Verdict(Verdict::Goto(chain.to_owned())))
    }

    /// `jump chain`.
    pub fn jump(self, chain: &str) -> Self {
        self.with(Statement::Verdict(Verdict::Jump(chain.to_owned())))
    }

    /// The maps that belong to this rule, in the order of its statements.
    pub(super) fn inline_maps(&self) -> impl Iterator<Item = &Set> {
        self.statements.iter().filter_map(|statement| match statement {
            Statement::SetMark(_, Source::Inline { map, .. })
            | Statement::Nat(_, Source::Inline { map, .. }) => Some(map),
            _ => None,
        })
    }
}
