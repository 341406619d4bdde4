//! What other people's tables do with packets that the host forwards: the base chains at the forward hook, and whether
//! what goes into or out of the networks passes them.
//!
//! An `accept` ends one base chain only, a `drop` ends all: a chain that drops what is left, by its policy or by a rule for
//! everything, must let our packets through by a rule before that. Rules are anybody's; what is looked for are those that
//! people and their firewalls write: an interface named `up…`, `ct status dnat`, or no condition at all.

use std::collections::BTreeMap;

use super::attr::Attributes;
use super::error::NftError;
use super::socket::Nft;
use super::uapi::{message, nfta};
use crate::rules::HOST_TABLE;

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`, `NF_ACCEPT` and `NFT_RETURN`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const RETURN: u32 = -5i32 as u32;
/// `NFTA_IMMEDIATE_DATA`, `NFTA_CMP_OP`, `NFTA_CMP_DATA`, `NFTA_CT_KEY`, `NFTA_TARGET_NAME`.
const IMMEDIATE_DATA: u16 = 2;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const CT_KEY: u16 = 2;
const TARGET_NAME: u16 = 1;
/// `NFT_CMP_EQ`.
const EQUAL: u32 = 0;
/// `NFT_CT_STATE` and `NFT_CT_STATUS`.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;

/// A base chain at the forward hook of the host that is not meshd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// As nft names it: `ip filter FORWARD`.
    pub name: String,
    /// What becomes of packets of published ports there.
    pub passage: Passage,
}

/// Whether packets of published ports pass a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// They do.
    Open,
    /// They are dropped or refused.
    Shut,
    /// They are, unless a rule lets them through whose effect only packets can tell.
    Unclear,
}

/// A table: the number of its family (`NFPROTO_*`) and its name.
type TableKey = (u8, String);

/// One rule, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RuleSeen {
    verdict: Option<u32>,
    leads_to: Option<String>,
    /// Refuses packets instead of dropping them.
    refuses: bool,
    /// Values that fields have to equal.
    compared: Vec<Vec<u8>>,
    /// Looks something up in a set or map.
    looks_up: bool,
    /// Expressions that make the rule apply to some packets only.
    conditions: usize,
    ct_keys: Vec<u32>,
}

impl Nft {
    /// The base chains at the forward hook, meshd's own left out. Of the families ip, ip6 and inet.
    pub fn forward_chains(&mut self) -> Result<Vec<ForwardChain>, NftError> {
        type Found = Vec<(TableKey, String, u32)>;
        let chains: Found = self.dump_all(message::GETCHAIN, |found: &mut Found, family, chain| {
            let hook = Attributes(chain.get(nfta::CHAIN_HOOK).unwrap_or_default());
            let texts = (chain.text(nfta::CHAIN_TABLE), chain.text(nfta::CHAIN_NAME));
            if let ((Some(table), Some(name)), Some(FORWARD)) = (texts, number(hook, nfta::HOOK_NUM))
                && family_name(family).is_some()
                && table != HOST_TABLE
            {
                let policy = number(chain, nfta::CHAIN_POLICY).unwrap_or(ACCEPT);
                found.push(((family, table.to_owned()), name.to_owned(), policy));
            }
        })?;
        if chains.is_empty() {
            return Ok(Vec::new());
        }
        type Rules = BTreeMap<(TableKey, String), Vec<RuleSeen>>;
        let rules: Rules = self.dump_all(message::GETRULE, |found: &mut Rules, family, rule| {
            if let (Some(table), Some(chain)) = (rule.text(nfta::RULE_TABLE), rule.text(nfta::RULE_CHAIN)) {
                let key = ((family, table.to_owned()), chain.to_owned());
                found.entry(key).or_default().push(seen(rule));
            }
        })?;
        let describe = |((family, table), chain, policy): (TableKey, String, u32)| {
            let name = format!("{} {table} {chain}", family_name(family).unwrap_or_default());
            let of = |chain: &str| {
                let key = ((family, table.clone()), chain.to_owned());
                rules.get(&key).map_or(&[][..], Vec::as_slice)
            };
            ForwardChain { name, passage: passage(policy, &chain, of) }
        };
        Ok(chains.into_iter().map(describe).collect())
    }
}

/// The families that packets are forwarded in.
pub(super) fn family_name(number: u8) -> Option<&'static str> {
    match number {
        1 => Some("inet"),
        2 => Some("ip"),
        10 => Some("ip6"),
        _ => None,
    }
}

fn passage<'a>(policy: u32, chain: &str, rules: impl Fn(&str) -> &'a [RuleSeen]) -> Passage {
    let mut walk = Walk { rules, known: BTreeMap::new(), unclear: false };
    match walk.chain(chain) {
        Some(Passage::Open) => Passage::Open,
        None if policy != DROP => Passage::Open,
        _ if walk.unclear => Passage::Unclear,
        _ => Passage::Shut,
    }
}

/// Follows our packets through chains, rule by rule.
struct Walk<F> {
    rules: F,
    /// What chains do with them. Chains do not lead back to themselves; if they did, it would be seen as no end.
    known: BTreeMap<String, Option<Passage>>,
    /// A rule on the way may let them through.
    unclear: bool,
}

impl<'a, F: Fn(&str) -> &'a [RuleSeen]> Walk<F> {
    /// Where packets end: let through by the base chain, or stopped; nowhere, if they come out of the chain again.
    fn chain(&mut self, chain: &str) -> Option<Passage> {
        if let Some(known) = self.known.get(chain) {
            return *known;
        }
        self.known.insert(chain.to_owned(), None);
        let end = self.rules(chain);
        self.known.insert(chain.to_owned(), end);
        end
    }

    fn rules(&mut self, chain: &str) -> Option<Passage> {
        for rule in (self.rules)(chain) {
            match rule.lets_through() {
                Passage::Open => return Some(Passage::Open),
                Passage::Unclear => self.unclear = true,
                Passage::Shut => {}
            }
            let led_to = rule.leads_to.as_deref().and_then(|next| self.chain(next));
            match led_to {
                Some(Passage::Open) => return led_to,
                Some(_) if rule.is_for_ours() => return led_to,
                _ if rule.is_for_ours() && rule.stops() => return Some(Passage::Shut),
                _ if rule.conditions == 0 && rule.verdict == Some(RETURN) => return None,
                _ => {}
            }
        }
        None
    }
}

/// The expressions of a condition on an interface's name: to load it, and to compare it.
const ONE_COMPARISON: usize = 2;

impl RuleSeen {
    /// Whether it lets new connections into the networks through.
    fn lets_through(&self) -> Passage {
        // Established connections were let through by another rule.
        if self.ct_keys.contains(&CT_STATE) {
            return Passage::Shut;
        }
        let accepts = self.verdict == Some(ACCEPT);
        let ours = self.names_uplinks() || self.ct_keys.contains(&CT_STATUS);
        match (accepts, ours || self.conditions == 0) {
            (true, true) => Passage::Open,
            _ if self.looks_up && (accepts || self.verdict.is_none()) => Passage::Unclear,
            _ => Passage::Shut,
        }
    }

    fn names_uplinks(&self) -> bool {
        self.compared.iter().any(|value| is_uplink(value))
    }

    /// Whether all packets of ours meet it, or all that come or go.
    fn is_for_ours(&self) -> bool {
        self.conditions == 0 || self.conditions == ONE_COMPARISON && self.names_uplinks()
    }

    fn stops(&self) -> bool {
        self.refuses || self.verdict == Some(DROP)
    }
}

/// An interface name, padded with zeros or cut to a prefix, that uplinks have.
fn is_uplink(value: &[u8]) -> bool {
    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
    name.strip_prefix(b"up").is_some_and(|rest| rest.iter().all(u8::is_ascii_digit))
}

fn seen(rule: Attributes<'_>) -> RuleSeen {
    let mut seen = RuleSeen::default();
    for (_, expression) in Attributes(rule.get(nfta::RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes(expression);
        let data = Attributes(expression.get(nfta::EXPR_DATA).unwrap_or_default());
        let name = expression.text(nfta::EXPR_NAME).unwrap_or_default();
        match name {
            "immediate" => seen.verdict(data),
            "cmp" => {
                let value = Attributes(data.get(CMP_DATA).unwrap_or_default()).get(nfta::DATA_VALUE);
                let equal = number(data, CMP_OP) == Some(EQUAL);
                seen.compared.extend(value.filter(|_| equal).map(<[u8]>::to_vec));
            }
            "reject" => seen.refuses = true,
            // As iptables writes it.
            "target" if data.text(TARGET_NAME) == Some("REJECT") => seen.refuses = true,
            "lookup" => seen.looks_up = true,
            "ct" => seen.ct_keys.extend(number(data, CT_KEY)),
            _ => {}
        }
        let is_condition = !matches!(name, "immediate" | "counter" | "log" | "reject" | "target");
        seen.conditions += usize::from(is_condition);
    }
    seen
}

impl RuleSeen {
    fn verdict(&mut self, data: Attributes<'_>) {
        let value = Attributes(data.get(IMMEDIATE_DATA).unwrap_or_default());
        let Some(verdict) = value.get(nfta::DATA_VERDICT).map(Attributes) else { return };
        self.verdict = number(verdict, nfta::VERDICT_CODE);
        self.leads_to = verdict.text(nfta::VERDICT_CHAIN).map(str::to_owned);
    }
}

/// A 32-bit number in network order.
pub(super) fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.get(kind)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::tests::namespace::{in_namespace, load_text};

    /// What becomes of packets in `inet other forward` with these rules.
    fn with(policy: &str, rules: &str) -> Passage {
        in_namespace(|| {
            load_text(&format!(
                "table inet other {{
                   chain user {{
                     {rules}
                   }}
                   chain forward {{
                     type filter hook forward priority 0; policy {policy};
                     ct state established,related accept
                     iifname eth0 oifname eth1 accept
                     jump user
                   }}
                 }}
                 table ip meshd {{ chain forward {{ type filter hook forward priority 0; policy drop; }}
                 }}"
            ));
            let found = Nft::open().and_then(|mut nft| nft.forward_chains()).unwrap();
            assert_eq!(found.len(), 1, "meshd's own is left out: {found:?}");
            assert_eq!(found[0].name, "inet other forward");
            found[0].passage
        })
    }

    #[test]
    fn a_policy_that_drops_is_shut_unless_a_rule_opens_it() {
        assert_eq!(with("accept", ""), Passage::Open);
        assert_eq!(with("drop", ""), Passage::Shut);
        assert_eq!(with("drop", "oifname docker0 accept"), Passage::Shut);
        assert_eq!(with("drop", "oifname \"up*\" drop"), Passage::Shut);
        for opens in
            ["oifname \"up*\" accept", "oifname up4096 accept", "ct status dnat accept", "counter accept"]
        {
            assert_eq!(with("drop", opens), Passage::Open, "{opens}");
        }
        assert_eq!(with("drop", "oifname { eth7, up4096 } accept"), Passage::Unclear);
        assert_eq!(with("drop", "oifname != \"up*\" accept"), Passage::Shut);
    }

    #[test]
    fn a_rule_for_everything_shuts_unless_one_before_it_opens() {
        for stops in ["drop", "counter drop", "reject", "log prefix \"no: \" reject", "iifname \"up*\" drop"]
        {
            assert_eq!(with("accept", stops), Passage::Shut, "{stops}");
            let opened = format!("oifname \"up*\" accept; {stops}");
            assert_eq!(with("accept", &opened), Passage::Open, "{opened}");
            let late = format!("{stops}; oifname \"up*\" accept");
            assert_eq!(with("accept", &late), Passage::Shut, "{late}");
            let unclear = format!("oifname {{ eth7, up4096 }} accept; {stops}");
            assert_eq!(with("accept", &unclear), Passage::Unclear, "{unclear}");
        }
        for of_others in [
            "oifname docker0 drop",
            "ct state invalid drop",
            "oifname != \"up*\" drop",
            "iifname \"up*\" tcp dport 25 reject",
            "return; drop",
        ] {
            assert_eq!(with("accept", of_others), Passage::Open, "{of_others}");
        }
    }

    #[test]
    fn a_host_without_a_firewall_has_no_chains() {
        let found = in_namespace(|| Nft::open().and_then(|mut nft| nft.forward_chains()).unwrap());
        assert_eq!(found, []);
    }

    #[test]
    fn only_whole_names_of_uplinks_count() {
        for (value, ours) in
            [(&b"up4096\0\0"[..], true), (b"up", true), (b"uplink0\0", false), (b"eth0", false)]
        {
            assert_eq!(is_uplink(value), ours);
        }
    }
}
