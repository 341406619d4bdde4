//! iptables of the old kind, whose rules nf_tables does not show: only its own programs read them.

use crate::{
    nft::{ForwardChain, Passage},
    ports::HostPort,
};
use std::{fs, process::Command};

/// The programs, and where the kernel says whether their tables are in use.
const PROGRAMS: [(&str, &str); 2] = [
    ("iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// What becomes of packets of published ports in the FORWARD chains of the calling thread's namespace. Without such tables
/// no program is run.
pub(super) fn forward_chains() -> Vec<ForwardChain> {
    let chain = |(program, listed): (&str, Option<String>)| {
        let passage = listed.map_or(Passage::Unclear, |listed| passage(&listed));
        ForwardChain { name: format!("{program} filter FORWARD"), passage }
    };
    listed("filter").into_iter().map(chain).collect()
}

/// Which of these ports a rule translates, and the chain that has it.
pub(super) fn translators(ports: &[HostPort]) -> Vec<(HostPort, String)> {
    let mut found = Vec::new();
    for (program, listed) in listed("nat") {
        for rule in listed.iter().flat_map(|listed| listed.lines()) {
            let translated = ports.iter().filter(|port| translates(rule, **port));
            let chain = rule.split(' ').nth(1).unwrap_or_default();
            found.extend(translated.map(|port| (*port, format!("{program} nat {chain}"))));
        }
    }
    found
}

/// What the programs list of a table that is in use; nothing if they can't.
fn listed(table: &str) -> Vec<(&'static str, Option<String>)> {
    let in_use = PROGRAMS.into_iter().filter(|(_, names)| {
        fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == table))
    });
    let list = |(program, _): (&'static str, &str)| {
        let listed = Command::new(program).args(["-w", "1", "-t", table, "-S"]).output().ok();
        let listed = listed.filter(|listed| listed.status.success());
        (program, listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()))
    };
    in_use.map(list).collect()
}

/// Whether a line of `iptables -t nat -S` translates a port, and names it.
fn translates(rule: &str, HostPort { ip, port, transport }: HostPort) -> bool {
    let words: Vec<&str> = rule.split(' ').collect();
    let given = |option: &str| words.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1]);
    let negated = |option: &str| words.windows(2).any(|pair| pair == ["!", option]);
    let is_in = |ranges: &str| {
        ranges.split(',').any(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            first.parse().is_ok_and(|first| port >= first) && last.parse().is_ok_and(|last| port <= last)
        })
    };
    let ports = ["--dport", "--dports"]
        .into_iter()
        .find_map(|option| given(option).map(|ranges| is_in(ranges) != negated(option)));
    let to_address = given("-d").is_none_or(|to| {
        let to = to.split('/').next().and_then(|to| to.parse().ok());
        negated("-d") || ip.is_none() || ip == to
    });
    words.first() == Some(&"-A")
        && matches!(given("-j"), Some("DNAT" | "REDIRECT"))
        && given("-p").is_none_or(|protocol| protocol == transport.to_string())
        && ports == Some(true)
        && to_address
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
    fn a_rule_that_translates_a_port_is_found() {
        let port = |ip: Option<&str>, port| HostPort {
            ip: ip.map(|ip| ip.parse().unwrap()),
            port,
            transport: mesh_model::Transport::Tcp,
        };
        let docker =
            "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
        assert!(translates(docker, port(None, 8080)) && translates(docker, port(Some("10.0.0.1"), 8080)));
        assert!(!translates(docker, port(None, 8081)));
        let bound = docker.replace("-p tcp", "-d 10.0.0.1/32 -p tcp");
        assert!(translates(&bound, port(None, 8080)) && translates(&bound, port(Some("10.0.0.1"), 8080)));
        assert!(!translates(&bound, port(Some("10.0.0.2"), 8080)));
        for other in
            [docker.replace("tcp", "udp"), docker.replace("DNAT", "ACCEPT"), docker.replace("-A", "-N")]
        {
            assert!(!translates(&other, port(None, 8080)), "{other}");
        }
        let many = "-A PREROUTING -p tcp -m multiport --dports 80,8080:8089 -j REDIRECT --to-ports 1";
        assert!(translates(many, port(None, 80)) && translates(many, port(None, 8085)));
        assert!(!translates(many, port(None, 81)));
        assert!(
            !translates("-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1", port(None, 80)),
            "of all ports"
        );
    }

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
