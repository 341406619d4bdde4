//! Whether somebody else's rules translate a port of the host: then they and ours would lead its clients to different places,
//! and which of the two is first is chance.

use super::{
    attr::Attributes,
    datum::Datum,
    error::NftError,
    forwarding::{family_name, number},
    socket::Nft,
    uapi::{message, nfta},
};
use crate::{ports::HostPort, rules::HOST_TABLE};
use mesh_model::Transport;
use std::{collections::BTreeMap, net::IpAddr};

/// `NFTA_CMP_*`, `NFTA_RANGE_*`, `NFTA_LOOKUP_*`, `NFTA_PAYLOAD_*`, `NFTA_META_*`, `NFTA_NAT_TYPE`, `NFTA_TARGET_NAME`.
const SREG: u16 = 1;
const OP: u16 = 2;
const CMP_DATA: u16 = 3;
const RANGE_FROM: u16 = 3;
const RANGE_TO: u16 = 4;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
const DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const META_KEY: u16 = 2;
const NAT_TYPE: u16 = 1;
const TARGET_NAME: u16 = 1;
/// `NFT_META_L4PROTO`, `NFT_NAT_DNAT`, `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const META_L4PROTO: u32 = 16;
const NAT_DNAT: u32 = 1;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// What a register was loaded with, of what matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Port,
    Protocol,
    Address,
    Other,
}

/// One condition of a rule.
#[derive(Debug, Clone)]
enum Condition {
    /// `NFT_CMP_EQ` and the like, with the value.
    Compare(Loaded, u32, Vec<u8>),
    Range(Loaded, u32, Vec<u8>, Vec<u8>),
    /// In a set, or not in it.
    Set(Loaded, String, bool),
}

/// A rule that translates destinations.
#[derive(Debug, Clone)]
struct Translating {
    family: u8,
    table: String,
    chain: String,
    conditions: Vec<Condition>,
}

impl Nft {
    /// Which of these ports a rule translates, and the chain that has it, as nft names it: `ip nat DOCKER`. Rules for all
    /// ports are not meant: they have exceptions more often than not.
    pub fn translators(&mut self, ports: &[HostPort]) -> Result<BTreeMap<HostPort, String>, NftError> {
        type Rules = Vec<Translating>;
        let rules: Rules = self.dump_all(message::GETRULE, |found: &mut Rules, family, rule| {
            if let (Some(table), Some(chain)) = (rule.text(nfta::RULE_TABLE), rule.text(nfta::RULE_CHAIN))
                && family_name(family).is_some()
                && table != HOST_TABLE
                && let Some(conditions) = translates(rule)
            {
                found.push(Translating {
                    family,
                    table: table.to_owned(),
                    chain: chain.to_owned(),
                    conditions,
                });
            }
        })?;
        let mut found = BTreeMap::new();
        for rule in rules {
            for port in ports {
                if !found.contains_key(port) && self.is_about(&rule, *port)? {
                    let family = family_name(rule.family).unwrap_or_default();
                    found.insert(*port, format!("{family} {} {}", rule.table, rule.chain));
                }
            }
        }
        Ok(found)
    }

    fn is_about(&mut self, rule: &Translating, port: HostPort) -> Result<bool, NftError> {
        let mut names_port = false;
        for condition in &rule.conditions {
            let loaded = condition.loaded();
            let Some(value) = value(loaded, port) else { continue };
            let holds = match condition {
                Condition::Compare(_, op, to) => compares(*op, &value, to),
                Condition::Range(_, op, from, to) => (*op == 0) == (*from <= value && value <= *to),
                Condition::Set(_, set, inside) => match self.is_in(rule, set, loaded, port)? {
                    Some(found) => found == *inside,
                    // A set of more than this: only packets can tell.
                    None => continue,
                },
            };
            if !holds {
                return Ok(false);
            }
            names_port |= loaded == Loaded::Port;
        }
        Ok(names_port)
    }

    fn is_in(
        &mut self,
        rule: &Translating,
        set: &str,
        loaded: Loaded,
        port: HostPort,
    ) -> Result<Option<bool>, NftError> {
        let key = match (loaded, port.ip) {
            (Loaded::Port, _) => Datum::Port(port.port),
            (Loaded::Address, Some(ip)) => ip.into(),
            _ => return Ok(None),
        };
        match self.has_element_of(rule.family, &rule.table, set, &[key]) {
            Ok(found) => Ok(Some(found)),
            Err(NftError::Refused { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Condition {
    fn loaded(&self) -> Loaded {
        match self {
            Self::Compare(loaded, ..) | Self::Range(loaded, ..) | Self::Set(loaded, ..) => *loaded,
        }
    }
}

/// What a client's packet to the port has there; none if it may be anything.
fn value(loaded: Loaded, port: HostPort) -> Option<Vec<u8>> {
    match (loaded, port.ip) {
        (Loaded::Port, _) => Some(port.port.to_be_bytes().to_vec()),
        (Loaded::Protocol, _) => Some(vec![match port.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }]),
        (Loaded::Address, Some(IpAddr::V4(ip))) => Some(ip.octets().to_vec()),
        (Loaded::Address, Some(IpAddr::V6(ip))) => Some(ip.octets().to_vec()),
        (Loaded::Address, None) | (Loaded::Other, _) => None,
    }
}

/// `enum nft_cmp_ops`, on values in network order.
fn compares(op: u32, value: &[u8], to: &[u8]) -> bool {
    match op {
        0 => value == to,
        1 => value != to,
        2 => value < to,
        3 => value <= to,
        4 => value > to,
        5 => value >= to,
        _ => true,
    }
}

/// The conditions under which a rule translates destinations; none if it does not.
fn translates(rule: Attributes<'_>) -> Option<Vec<Condition>> {
    let mut registers: BTreeMap<u32, Loaded> = BTreeMap::new();
    let mut conditions = Vec::new();
    for (_, expression) in Attributes(rule.get(nfta::RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes(expression);
        let data = Attributes(expression.get(nfta::EXPR_DATA).unwrap_or_default());
        let of = |register: u16, registers: &BTreeMap<u32, Loaded>| {
            number(data, register).and_then(|at| registers.get(&at).copied()).unwrap_or(Loaded::Other)
        };
        let bytes = |kind: u16| {
            let value = Attributes(data.get(kind).unwrap_or_default()).get(nfta::DATA_VALUE);
            value.unwrap_or_default().to_vec()
        };
        let op = number(data, OP).unwrap_or(0);
        match expression.text(nfta::EXPR_NAME).unwrap_or_default() {
            "payload" => load(&mut registers, data, payload(data)),
            "meta" => {
                let is_protocol = number(data, META_KEY) == Some(META_L4PROTO);
                load(&mut registers, data, if is_protocol { Loaded::Protocol } else { Loaded::Other });
            }
            "cmp" => conditions.push(Condition::Compare(of(SREG, &registers), op, bytes(CMP_DATA))),
            "range" => {
                let (from, to) = (bytes(RANGE_FROM), bytes(RANGE_TO));
                conditions.push(Condition::Range(of(SREG, &registers), op, from, to));
            }
            "lookup" => {
                let set = data.text(LOOKUP_SET).unwrap_or_default().to_owned();
                let inside = number(data, LOOKUP_FLAGS).unwrap_or(0) & 1 == 0;
                conditions.push(Condition::Set(of(LOOKUP_SREG, &registers), set, inside));
            }
            "nat" if number(data, NAT_TYPE) == Some(NAT_DNAT) => return Some(conditions),
            "redir" | "tproxy" => return Some(conditions),
            // As iptables writes it.
            "target" if matches!(data.text(TARGET_NAME), Some("DNAT" | "REDIRECT" | "TPROXY")) => {
                return Some(conditions);
            }
            _ => {}
        }
    }
    None
}

fn load(registers: &mut BTreeMap<u32, Loaded>, data: Attributes<'_>, loaded: Loaded) {
    if let Some(register) = number(data, DREG) {
        registers.insert(register, loaded);
    }
}

fn payload(data: Attributes<'_>) -> Loaded {
    let at = [PAYLOAD_BASE, PAYLOAD_OFFSET, PAYLOAD_LEN].map(|kind| number(data, kind).unwrap_or(0));
    match at {
        [TRANSPORT, 2, 2] => Loaded::Port,
        [NETWORK, 9, 1] | [NETWORK, 6, 1] => Loaded::Protocol,
        [NETWORK, 16, 4] | [NETWORK, 24, 16] => Loaded::Address,
        _ => Loaded::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::tests::namespace::{in_namespace, load_text};

    fn port(ip: Option<&str>, port: u16, transport: Transport) -> HostPort {
        HostPort { ip: ip.map(|ip| ip.parse().unwrap()), port, transport }
    }

    fn translator(rules: &str, of: HostPort) -> Option<String> {
        in_namespace(|| {
            load_text(&format!(
                "table inet theirs {{
                   set many {{ type inet_service; flags interval; elements = {{ 7000-7009 }}; }}
                   chain leads {{
                     {rules}
                   }}
                   chain prerouting {{ type nat hook prerouting priority -100; jump leads; }}
                 }}
                 table ip meshd {{
                   chain published {{
                     tcp dport 80 dnat to 10.0.0.9:80
                   }}
                 }}"
            ));
            Nft::open().and_then(|mut nft| nft.translators(&[of])).unwrap().remove(&of)
        })
    }

    #[test]
    fn rules_for_the_port_are_found_however_they_are_written() {
        let web = port(None, 80, Transport::Tcp);
        for rule in [
            "tcp dport 80 dnat ip to 10.0.0.1:8080",
            "meta l4proto tcp th dport 80 redirect to :8080",
            "iifname eth0 tcp dport { 80, 443 } counter dnat ip to 10.0.0.1",
            "tcp dport 79-81 dnat ip6 to fd00::1",
            "tcp dport != 81 dnat ip to 10.0.0.1",
            "ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.1",
            "dnat ip to tcp dport map { 80 : 10.0.0.1, 81 : 10.0.0.2 }",
        ] {
            assert_eq!(translator(rule, web).as_deref(), Some("inet theirs leads"), "{rule}");
        }
        assert_eq!(
            translator("tcp dport @many redirect to :1", port(None, 7005, Transport::Tcp)).as_deref(),
            Some("inet theirs leads")
        );
    }

    #[test]
    fn rules_for_something_else_are_not() {
        let web = port(Some("192.0.2.2"), 80, Transport::Tcp);
        for rule in [
            "",
            "tcp dport 81 dnat ip to 10.0.0.1:80",
            "udp dport 80 dnat ip to 10.0.0.1",
            "tcp dport { 81, 443 } dnat ip to 10.0.0.1",
            "tcp dport 81-90 redirect to :1",
            "tcp dport != 80 redirect to :1",
            "tcp dport @many redirect to :1",
            "tcp sport 80 redirect to :1",
            "ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.1",
            "tcp dport 80 accept",
            "dnat ip to 10.0.0.1",
        ] {
            assert_eq!(translator(rule, web), None, "{rule}");
        }
    }

    /// Both kinds of iptables on Debian write through nf_tables unless told otherwise.
    #[test]
    fn rules_of_iptables_are_found() {
        let found = in_namespace(|| {
            let rule = "-t nat -A PREROUTING ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
            let done = std::process::Command::new("iptables-nft").args(rule.split(' ')).status().unwrap();
            assert!(done.success());
            let ports = [8080, 8081].map(|number| port(None, number, Transport::Tcp));
            Nft::open().and_then(|mut nft| nft.translators(&ports)).unwrap().into_iter().collect::<Vec<_>>()
        });
        assert_eq!(found, [(port(None, 8080, Transport::Tcp), "ip nat PREROUTING".to_owned())]);
    }
}
