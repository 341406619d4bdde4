//! Tables in nft's own syntax: `nft -f` takes what is printed here.

use std::fmt::{self, Display, Formatter};

use super::datum::{Datum, Type};
use super::rule::{
    CtDirection, Field, MarkKind, NatKind, RTN_LOCAL, Rule, Source, SourceHash, Statement, Verdict, ct_status,
};
use super::table::{Base, PerElement, Policy, Set, SetKind, Table, Value};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.name(), self.name)?;
        for (name, set) in &self.sets {
            named_set(f, name, set)?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(base) = chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        let (kind, hook) = (self.kind.name(), self.hook.name());
        write!(f, "type {kind} hook {hook} priority {}; policy {policy};", self.priority)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        joined(f, " ", &self.statements, |f, statement| statement.fmt(f))
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Statement::Compare { field, negated, value } => {
                let op = if *negated { "!= " } else { "" };
                write!(f, "{field} {op}")?;
                compared(f, *field, value)
            }
            Statement::Prefix { field, negated, prefix } => {
                let op = if *negated { "!= " } else { "" };
                write!(f, "{field} {op}\"{prefix}*\"")
            }
            Statement::Masked { field, mask, negated, value } => {
                let op = if *negated { "!=" } else { "==" };
                write!(f, "{field} & ")?;
                compared(f, *field, mask)?;
                write!(f, " {op} ")?;
                compared(f, *field, value)
            }
            Statement::Lookup { key, negated, set } => {
                let op = if *negated { "!= " } else { "" };
                fields(f, key)?;
                write!(f, " {op}@{set}")
            }
            Statement::Vmap { key, map } => {
                fields(f, key)?;
                write!(f, " vmap @{map}")
            }
            Statement::SetMark(MarkKind::Packet, source) => write!(f, "meta mark set {source}"),
            Statement::SetMark(MarkKind::Zone, source) => write!(f, "ct original zone set {source}"),
            Statement::SetMark(MarkKind::Connection, source) => write!(f, "ct mark set {source}"),
            Statement::SetEtherDaddr(mac) => write!(f, "ether daddr set {}", Datum::Ether(*mac)),
            Statement::SetSaddrAsked { ipv6: false } => f.write_str("ip saddr set ct original ip daddr"),
            Statement::SetSaddrAsked { ipv6: true } => f.write_str("ip6 saddr set ct original ip6 daddr"),
            Statement::SetForHost => f.write_str("meta pkttype set host"),
            Statement::Notrack => f.write_str("notrack"),
            Statement::Nat(NatKind::Dnat, source) => write!(f, "dnat to {}", Translation(source)),
            Statement::Nat(NatKind::Snat, source) => write!(f, "snat to {}", Translation(source)),
            Statement::Masquerade => f.write_str("masquerade"),
            Statement::MasqueradeFrom(ports) => {
                write!(f, "masquerade to :{}-{} fully-random", ports.start(), ports.end())
            }
            Statement::RejectTcpReset => f.write_str("reject with tcp reset"),
            Statement::RejectPortUnreachable => f.write_str("reject"),
            Statement::ClampMss => f.write_str("tcp option maxseg size set rt mtu"),
            Statement::Counter => f.write_str("counter"),
            Statement::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::Iifname => "iifname",
            Field::Oifname => "oifname",
            Field::L4proto => "meta l4proto",
            Field::Skuid => "meta skuid",
            Field::Mark => "meta mark",
            Field::IpSaddr => "ip saddr",
            Field::IpDaddr => "ip daddr",
            Field::Ip6Saddr => "ip6 saddr",
            Field::Ip6Daddr => "ip6 daddr",
            Field::EtherSaddr => "ether saddr",
            Field::EtherDaddr => "ether daddr",
            Field::EtherType => "ether type",
            Field::ArpSaddrEther => "arp saddr ether",
            Field::ArpSaddrIp => "arp saddr ip",
            Field::NdTarget => "@th,64,128",
            Field::Vni => "@th,96,24",
            Field::ThSport => "th sport",
            Field::ThDport => "th dport",
            Field::TcpFlags => "tcp flags",
            Field::Icmpv6Type => "icmpv6 type",
            Field::FibDaddrType => "fib daddr type",
            Field::CtState => "ct state",
            Field::CtDirection => "ct direction",
            Field::CtStatus => "ct status",
            Field::CtMark => "ct mark",
            Field::NumgenInc(modulus) => return write!(f, "numgen inc mod {modulus}"),
            Field::NumgenRandom(modulus) => return write!(f, "numgen random mod {modulus}"),
            Field::IpSaddrHash(hash) => return write!(f, "jhash ip saddr {hash}"),
            Field::Ip6SaddrHash(hash) => return write!(f, "jhash ip6 saddr {hash}"),
        })
    }
}

impl Display for SourceHash {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "mod {} seed {:#x}", self.modulus, self.seed)
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Source::Constant(data) => concatenated(f, data),
            Source::Field(field) => field.fmt(f),
            Source::Map { key, map } => {
                fields(f, key)?;
                write!(f, " map @{map}")
            }
            Source::Inline { key, map } => {
                write!(f, "{key} map ")?;
                elements(f, map)
            }
        }
    }
}

/// A NAT target: a constant address and port are joined by a colon.
struct Translation<'a>(&'a Source);

impl Display for Translation<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Source::Constant(data) => match &data[..] {
                [Datum::Ipv6(address), Datum::Port(port)] => write!(f, "[{address}]:{port}"),
                [address, Datum::Port(port)] => write!(f, "{address}:{port}"),
                [Datum::Ipv6(address), Datum::Port(first), Datum::Port(last)] => {
                    write!(f, "[{address}]:{first}-{last}")
                }
                [address, Datum::Port(first), Datum::Port(last)] => write!(f, "{address}:{first}-{last}"),
                data => concatenated(f, data),
            },
            source => source.fmt(f),
        }
    }
}

/// A value as nft names it beside this field.
fn compared(f: &mut Formatter<'_>, field: Field, value: &Datum) -> fmt::Result {
    const ORIGINAL: u8 = CtDirection::Original as u8;
    match (field, value) {
        (Field::FibDaddrType, Datum::Number(RTN_LOCAL)) => f.write_str("local"),
        (Field::CtDirection, Datum::Proto(ORIGINAL)) => f.write_str("original"),
        (Field::CtDirection, _) => f.write_str("reply"),
        (Field::CtStatus, Datum::Number(ct_status::DNAT)) => f.write_str("dnat"),
        (Field::TcpFlags | Field::Icmpv6Type, Datum::Proto(number)) => number.fmt(f),
        _ => value.fmt(f),
    }
}

fn named_set(f: &mut Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let keyword = if set.kind == SetKind::Plain { "set" } else { "map" };
    write!(f, "\t{keyword} {name} {{\n\t\ttype ")?;
    types(f, &set.key)?;
    match &set.kind {
        SetKind::Plain => {}
        SetKind::Verdicts => f.write_str(" : verdict")?,
        SetKind::Map(data) => {
            f.write_str(" : ")?;
            types(f, data)?;
        }
    }
    match set.each {
        Some(PerElement::Above(limit)) => {
            write!(f, "\n\t\tlimit rate over {}/second burst {} packets", limit.rate, limit.burst)?;
        }
        Some(PerElement::Counter) => f.write_str("\n\t\tcounter")?,
        None => {}
    }
    if !set.elements.is_empty() {
        f.write_str("\n\t\telements = ")?;
        elements(f, set)?;
    }
    f.write_str("\n\t}\n")
}

fn elements(f: &mut Formatter<'_>, set: &Set) -> fmt::Result {
    f.write_str("{ ")?;
    joined(f, ", ", &set.elements, |f, (key, value)| {
        concatenated(f, key)?;
        match value {
            Value::Member => Ok(()),
            Value::Data(data) => {
                f.write_str(" : ")?;
                concatenated(f, data)
            }
            Value::Verdict(verdict) => write!(f, " : {verdict}"),
        }
    })?;
    f.write_str(" }")
}

fn types(f: &mut Formatter<'_>, types: &[Type]) -> fmt::Result {
    joined(f, " . ", types, |f, kind| f.write_str(kind.name()))
}

fn fields(f: &mut Formatter<'_>, fields: &[Field]) -> fmt::Result {
    joined(f, " . ", fields, |f, field| field.fmt(f))
}

fn concatenated(f: &mut Formatter<'_>, data: &[Datum]) -> fmt::Result {
    joined(f, " . ", data, |f, datum| datum.fmt(f))
}

fn joined<T>(
    f: &mut Formatter<'_>,
    separator: &str,
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(&mut Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        each(f, item)?;
    }
    Ok(())
}

/// A key or value, for messages.
pub(super) fn data(data: &[Datum]) -> impl Display + '_ {
    fmt::from_fn(move |f| concatenated(f, data))
}
