//! Docker sets the policy of the host's FORWARD chain to DROP, which no table of another's can overrule: what goes to and
//! from networks is accepted in `DOCKER-USER`, the chain that Docker keeps for others. What must not pass is dropped in
//! the mesh's own tables all the same.
//!
//! The chain may live in iptables-legacy, out of netlink's reach: here, and only here, the host's `iptables` is run.

use crate::{
    error::{Error, Result},
    kernel::Kernel,
    object::{Ifname, Space},
};
use std::{collections::BTreeSet, fs, path::Path, process::Command};

const CHAIN: &str = "DOCKER-USER";
/// Tells the mesh's rules from others.
const COMMENT: &str = "meshd";
/// The program of each family, and where its legacy kind shows that it is in use.
const FAMILIES: [(&str, &str); 2] = [
    ("/usr/sbin/iptables", "/proc/thread-self/net/ip_tables_names"),
    ("/usr/sbin/ip6tables", "/proc/thread-self/net/ip6_tables_names"),
];

/// Keeps the chain of the host as it should be.
#[derive(Default)]
pub(crate) struct DockerUser {
    /// The rules that were found in place, and the count of nftables' transactions then.
    settled: Option<(BTreeSet<Ifname>, u32)>,
}

impl DockerUser {
    /// Accepts what goes to and from these uplinks, and nothing of earlier ones, wherever Docker has its chain.
    pub(crate) fn ensure(&mut self, kernel: &mut Kernel, uplinks: &BTreeSet<Ifname>) -> Result<()> {
        let count = |kernel: &mut Kernel| kernel.nft(Space::Host)?.generation().map_err(firewall);
        let legacy = FAMILIES.iter().any(|(_, names)| fs::read_to_string(names).is_ok_and(|n| !n.is_empty()));
        let now = count(kernel)?;
        if !legacy && self.settled.as_ref().is_some_and(|(of, at)| of == uplinks && *at == now) {
            return Ok(());
        }
        self.settled = None;
        for (program, _) in FAMILIES.iter().filter(|(program, _)| Path::new(program).exists()) {
            // Without the chain there is no Docker, or none that uses this family.
            let Ok(listed) = run(program, &["-S", CHAIN]) else { continue };
            for change in changes(&listed, uplinks) {
                let words: Vec<&str> = change.iter().map(String::as_str).collect();
                run(program, &words)?;
            }
        }
        self.settled = Some((uplinks.clone(), count(kernel)?));
        Ok(())
    }
}

fn firewall(source: crate::nft::NftError) -> Error {
    Error::Firewall { place: Space::Host.to_string(), source: Box::new(source) }
}

/// The commands that lead from a listing (`iptables -S`) to what should be. The user's own rules come first.
fn changes(listed: &str, uplinks: &BTreeSet<Ifname>) -> Vec<Vec<String>> {
    let rules: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("-A ")).collect();
    let words = |rule: &str| rule.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let ours: Vec<&&str> =
        rules.iter().filter(|rule| rule.contains(&format!("--comment {COMMENT} "))).collect();
    let wanted: Vec<String> = uplinks
        .iter()
        .flat_map(|uplink| ["-i", "-o"].map(|way| (way, uplink)))
        .map(|(way, uplink)| format!("{CHAIN} {way} {uplink} -m comment --comment {COMMENT} -j ACCEPT"))
        .collect();
    let stale = ours.iter().filter(|rule| wanted.iter().all(|wanted| wanted != **rule));
    let mut changes: Vec<Vec<String>> =
        stale.clone().map(|rule| [vec!["-D".to_owned()], words(rule)].concat()).collect();
    // Docker of old ends the chain with a rule that returns: behind it nothing counts.
    let end = rules.iter().position(|rule| *rule == format!("{CHAIN} -j RETURN"));
    let mut at =
        end.map(|end| end + 1 - rules[..end].iter().filter(|rule| stale.clone().any(|s| s == rule)).count());
    for rule in wanted.iter().filter(|wanted| ours.iter().all(|rule| **rule != wanted.as_str())) {
        let spec = words(rule);
        changes.push(match &mut at {
            Some(at) => {
                *at += 1;
                [vec!["-I".to_owned(), CHAIN.to_owned(), (*at - 1).to_string()], spec[1..].to_vec()].concat()
            }
            None => [vec!["-A".to_owned()], spec].concat(),
        });
    }
    changes
}

/// Runs the program in the calling thread's network namespace. It waits a moment for others who change rules.
fn run(program: &str, words: &[&str]) -> Result<String> {
    let failed = |why: String| Error::Iptables { command: format!("{program} {}", words.join(" ")), why };
    let output = Command::new(program).args(["-w", "2"]).args(words).output();
    let output = output.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplinks(names: &[&str]) -> BTreeSet<Ifname> {
        names.iter().map(|name| Ifname::new(name).unwrap()).collect()
    }

    fn lines(listed: &str, names: &[&str]) -> Vec<String> {
        changes(listed, &uplinks(names)).iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn rules_come_after_the_users_and_before_the_end() {
        let listed = "-N DOCKER-USER\n-A DOCKER-USER -s 10.0.0.1/32 -j DROP\n-A DOCKER-USER -j RETURN\n";
        assert_eq!(
            lines(listed, &["up1"]),
            [
                "-I DOCKER-USER 2 -i up1 -m comment --comment meshd -j ACCEPT",
                "-I DOCKER-USER 3 -o up1 -m comment --comment meshd -j ACCEPT",
            ]
        );
        assert_eq!(
            lines("-N DOCKER-USER\n", &["up1"])[0],
            "-A DOCKER-USER -i up1 -m comment --comment meshd -j ACCEPT"
        );
    }

    #[test]
    fn what_is_right_stays_and_what_is_stale_goes() {
        let listed = "-N DOCKER-USER\n\
            -A DOCKER-USER -i up1 -m comment --comment meshd -j ACCEPT\n\
            -A DOCKER-USER -o up1 -m comment --comment meshd -j ACCEPT\n\
            -A DOCKER-USER -i up2 -m comment --comment meshd -j ACCEPT\n\
            -A DOCKER-USER -j RETURN\n";
        assert_eq!(lines(listed, &["up1"]), ["-D DOCKER-USER -i up2 -m comment --comment meshd -j ACCEPT"]);
        assert_eq!(lines(listed, &["up1", "up2"]).len(), 1);
        assert_eq!(lines(listed, &[]).len(), 3);
    }
}
