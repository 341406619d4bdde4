//! iptables of the old kind, whose rules nf_tables does not show: only its own programs read them.

use crate::nft::{ForwardChain, Passage};
use std::{fs, process::Command};

/// The programs, and where the kernel says whether their tables are in use.
const PROGRAMS: [(&str, &str); 2] = [
    ("iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// What becomes of packets of published ports in the FORWARD chains of the calling thread's namespace. Without such tables
/// no program is run.
pub(super) fn forward_chains() -> Vec<ForwardChain> {
    let in_use = PROGRAMS.into_iter().filter(|(_, names)| {
        fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "filter"))
    });
    let chain = |(program, _): (&str, &str)| {
        let listed = Command::new(program).args(["-w", "1", "-S"]).output().ok();
        let passage = match listed.filter(|listed| listed.status.success()) {
            Some(listed) => passage(&String::from_utf8_lossy(&listed.stdout)),
            None => Passage::Unclear,
        };
        ForwardChain { name: format!("{program} filter FORWARD"), passage }
    };
    in_use.map(chain).collect()
}

/// Reads `iptables -S`.
fn passage(rules: &str) -> Passage {
    let end = rules.lines().position(stops_everything);
    if end.is_none() && !rules.lines().any(|line| line == "-P FORWARD DROP") {
        return Passage::Open;
    }
    // What follows such a rule is met by no packet.
    let is_met = |at: usize, line: &str| !line.starts_with("-A FORWARD ") || end.is_none_or(|end| at < end);
    let rules = rules.lines().enumerate().filter(|(at, line)| is_met(*at, line)).map(|(_, line)| line);
    let mut passage = Passage::Shut;
    for rule in rules.filter(|line| line.starts_with("-A ") && line.ends_with("-j ACCEPT")) {
        let words: Vec<&str> = rule.split(' ').collect();
        let of_uplinks = |pair: &[&str]| matches!(pair[0], "-i" | "-o") && is_uplinks(pair[1]);
        let of_dnat =
            |pair: &[&str]| matches!(pair[0], "--ctstate" | "--ctstatus") && pair[1].contains("DNAT");
        let ours = words.windows(2).any(|pair| of_uplinks(pair) || of_dnat(pair));
        // A chain of the user's may be reached from elsewhere; FORWARD's own rule without conditions may not.
        if ours || rule == "-A FORWARD -j ACCEPT" {
            return Passage::Open;
        }
        if !rule.starts_with("-A INPUT ") && !rule.starts_with("-A OUTPUT ") && rule.contains("--match-set") {
            passage = Passage::Unclear;
        }
    }
    passage
}

fn stops_everything(rule: &str) -> bool {
    rule.strip_prefix("-A FORWARD -j ").is_some_and(|to| to == "DROP" || to.starts_with("REJECT"))
}

/// `up+`, or one of them.
fn is_uplinks(interface: &str) -> bool {
    interface
        .strip_prefix("up")
        .is_some_and(|rest| rest == "+" || (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_drops_is_shut_unless_a_rule_opens_it() {
        let docker = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n\
            -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i docker0 -j ACCEPT\n";
        assert_eq!(passage(docker), Passage::Shut);
        assert_eq!(passage(&docker.replace("FORWARD DROP", "FORWARD ACCEPT")), Passage::Open);
        for opens in [
            "-A DOCKER-USER -o up+ -j ACCEPT",
            "-A FORWARD -o up4096 -m comment --comment \"published ports\" -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
            "-A FORWARD -j ACCEPT",
        ] {
            assert_eq!(passage(&format!("{docker}{opens}\n")), Passage::Open, "{opens}");
        }
        for shut in ["-A FORWARD -o uplink0 -j ACCEPT", "-A INPUT -j ACCEPT", "-A FORWARD -o up+ -j DROP"] {
            assert_eq!(passage(&format!("{docker}{shut}\n")), Passage::Shut, "{shut}");
        }
        // As Red Hat's are.
        let red_hat = "-P FORWARD ACCEPT\n-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n";
        let last = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        let opens = "-A FORWARD -o up+ -j ACCEPT\n";
        assert_eq!(passage(red_hat), Passage::Open);
        assert_eq!(passage(&format!("{red_hat}{last}")), Passage::Shut);
        assert_eq!(passage(&format!("{red_hat}{opens}{last}")), Passage::Open);
        assert_eq!(passage(&format!("{red_hat}{last}{opens}")), Passage::Shut);
        let set = format!("{docker}-A FORWARD -m set --match-set known dst -j ACCEPT\n");
        assert_eq!(passage(&set), Passage::Unclear);
    }
}
