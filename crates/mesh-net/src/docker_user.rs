//! Docker sets the policy of the host's FORWARD chain to DROP, which no table of another's can overrule: what goes to and
//! from networks is accepted in `DOCKER-USER`, the chain that Docker keeps for others, unless it goes to Docker's own bridges.
//! What must not pass is dropped in the mesh's own tables all the same. Docker before 23 has the chain for IPv4 only, though
//! it drops IPv6 as well where it is told to filter it: there the chain is made, as later ones do.
//!
//! The chain may live in iptables-legacy, out of netlink's reach: here, and only here, the host's `iptables` is run.

use crate::{
    error::{Error, Result},
    host,
    kernel::Kernel,
    object::{Ifname, Space},
};
use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
};

const CHAIN: &str = "DOCKER-USER";
/// The chain that shows that Docker filters a family.
const DOCKER: &str = "DOCKER-ISOLATION-STAGE-1";
/// The way there, which Docker before 23 makes for IPv4 only.
const WAY: [&str; 3] = ["FORWARD", "-j", CHAIN];
/// What iptables ends with if there is no such chain or rule; that it could not look has another code.
const NONE_SUCH: i32 = 1;
/// The bridges that Docker makes, as iptables matches them: one of a network has twelve digits of its ID.
const DOCKERS: [&str; 2] = ["docker0", "br-+"];
const DIGITS: usize = 12;
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
    settled: Option<(Vec<String>, u32)>,
}

impl DockerUser {
    /// Accepts what goes to and from these uplinks, and nothing of earlier ones, wherever Docker has its chain.
    pub(crate) fn ensure(&mut self, kernel: &mut Kernel, uplinks: &BTreeSet<Ifname>) -> Result<()> {
        let count = |kernel: &mut Kernel| kernel.nft(Space::Host)?.generation().map_err(firewall);
        let legacy = FAMILIES.iter().any(|(_, names)| fs::read_to_string(names).is_ok_and(|n| !n.is_empty()));
        let now = count(kernel)?;
        let hosts_own = kernel.within(Space::Host, host::interfaces)?.and_then(io::Result::ok);
        let hosts_own = hosts_own.into_iter().flatten().filter(|name| is_hosts_own(name));
        let wanted = wanted(uplinks, &hosts_own.collect());
        if !legacy && self.settled.as_ref().is_some_and(|(of, at)| *of == wanted && *at == now) {
            return Ok(());
        }
        self.settled = None;
        for (program, _) in FAMILIES.iter().filter(|(program, _)| Path::new(program).exists()) {
            let listed = look(program, &["-S", CHAIN])?;
            let filters = !wanted.is_empty() && look(program, &["-S", DOCKER])?.is_some();
            if listed.is_none() && !filters {
                // There is no Docker, or none that uses this family.
                continue;
            }
            if listed.is_none() {
                run(program, &["-N", CHAIN])?;
            }
            for change in changes(listed.as_deref().unwrap_or_default(), &wanted) {
                let words: Vec<&str> = change.iter().map(String::as_str).collect();
                run(program, &words)?;
            }
            if filters && look(program, &[&["-C"], &WAY[..]].concat())?.is_none() {
                run(program, &[&["-I"], &WAY[..]].concat())?;
            }
        }
        self.settled = Some((wanted, count(kernel)?));
        Ok(())
    }
}

fn firewall(source: crate::nft::NftError) -> Error {
    Error::Firewall { place: Space::Host.to_string(), source: Box::new(source) }
}

/// Whether a bridge that is called as Docker might call one is the host's own: Docker's have an ID for the rest of the name. One
/// of Docker's that its user has named is taken for the host's own.
fn is_hosts_own(name: &str) -> bool {
    let is_id = |id: &str| id.len() == DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    name.strip_prefix("br-").is_some_and(|rest| !is_id(rest))
}

/// The mesh's rules. What goes to containers behind Docker's bridges is Docker's to judge: it lets published ports and
/// answers pass.
fn wanted(uplinks: &BTreeSet<Ifname>, hosts_own: &BTreeSet<String>) -> Vec<String> {
    let rule = |what: String, verdict| format!("{CHAIN} {what} -m comment --comment {COMMENT} -j {verdict}");
    let of_uplink = |uplink: &Ifname| {
        let mut rules = Vec::new();
        rules.extend(hosts_own.iter().map(|link| rule(format!("-i {uplink} -o {link}"), "ACCEPT")));
        rules.extend(DOCKERS.map(|bridges| rule(format!("-i {uplink} -o {bridges}"), "RETURN")));
        rules.extend(["-i", "-o"].map(|way| rule(format!("{way} {uplink}"), "ACCEPT")));
        rules
    };
    uplinks.iter().flat_map(of_uplink).collect()
}

/// The commands that lead from a listing (`iptables -S`) to what should be, in its order. The user's own rules come first.
fn changes(listed: &str, wanted: &[String]) -> Vec<Vec<String>> {
    let words = |rule: &str| rule.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_ours = |rule: &str| rule.contains(&format!("--comment {COMMENT} "));
    let mut changes = Vec::new();
    let mut rules: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("-A ")).collect();
    let mut delete = |rule: &str| changes.push([vec!["-D".to_owned()], words(rule)].concat());
    rules.retain(|rule| {
        let stale = is_ours(rule) && wanted.iter().all(|wanted| wanted != rule);
        if stale {
            delete(rule);
        }
        !stale
    });
    // Docker of old ends the chain with a rule that returns: behind it nothing counts.
    let end = rules.iter().position(|rule| *rule == format!("{CHAIN} -j RETURN")).unwrap_or(rules.len());
    let mut at = rules.iter().position(|rule| is_ours(rule)).unwrap_or(end);
    for rule in wanted {
        match rules.iter().position(|listed| listed == rule) {
            Some(found) if found >= at => at = found,
            found => {
                if let Some(found) = found {
                    changes.push([vec!["-D".to_owned()], words(rule)].concat());
                    rules.remove(found);
                    at -= 1;
                }
                let place = ["-I".to_owned(), CHAIN.to_owned(), (at + 1).to_string()];
                changes.push([&place[..], &words(rule)[1..]].concat());
                rules.insert(at, rule);
            }
        }
        at += 1;
    }
    changes
}

/// What iptables shows; nothing if there is no such thing.
fn look(program: &str, words: &[&str]) -> Result<Option<String>> {
    let output = output(program, words)?;
    if output.status.code() == Some(NONE_SUCH) {
        return Ok(None);
    }
    printed(program, words, &output).map(Some)
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    printed(program, words, &output(program, words)?).map(drop)
}

fn printed(program: &str, words: &[&str], output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(Error::Iptables { command: format!("{program} {}", words.join(" ")), why })
}

/// Runs the program in the calling thread's network namespace. It waits a moment for others who change rules.
fn output(program: &str, words: &[&str]) -> Result<Output> {
    let output = Command::new(program).args(["-w", "2"]).args(words).stdin(Stdio::null()).output();
    output.map_err(|e| Error::Iptables {
        command: format!("{program} {}", words.join(" ")),
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplinks(names: &[&str]) -> BTreeSet<Ifname> {
        names.iter().map(|name| Ifname::new(name).unwrap()).collect()
    }

    fn of(names: &[&str]) -> Vec<String> {
        wanted(&uplinks(names), &BTreeSet::new())
    }

    fn lines(listed: &str, names: &[&str]) -> Vec<String> {
        changes(listed, &of(names)).iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn rules_come_after_the_users_and_before_the_end() {
        let listed = "-N DOCKER-USER\n-A DOCKER-USER -s 10.0.0.1/32 -j DROP\n-A DOCKER-USER -j RETURN\n";
        assert_eq!(
            lines(listed, &["up1"]),
            [
                "-I DOCKER-USER 2 -i up1 -o docker0 -m comment --comment meshd -j RETURN",
                "-I DOCKER-USER 3 -i up1 -o br-+ -m comment --comment meshd -j RETURN",
                "-I DOCKER-USER 4 -i up1 -m comment --comment meshd -j ACCEPT",
                "-I DOCKER-USER 5 -o up1 -m comment --comment meshd -j ACCEPT",
            ]
        );
        assert_eq!(
            lines("-N DOCKER-USER\n", &["up1"])[0],
            "-I DOCKER-USER 1 -i up1 -o docker0 -m comment --comment meshd -j RETURN"
        );
    }

    #[test]
    fn what_is_right_stays_and_what_is_stale_goes() {
        let ours: String = of(&["up1", "up2"]).iter().map(|rule| format!("-A {rule}\n")).collect();
        let listed = format!("-N DOCKER-USER\n{ours}-A DOCKER-USER -j RETURN\n");
        assert!(lines(&listed, &["up1", "up2"]).is_empty());
        assert_eq!(lines(&listed, &["up1"])[2], "-D DOCKER-USER -i up2 -m comment --comment meshd -j ACCEPT");
        assert_eq!(lines(&listed, &["up1"]).len(), 4);
        assert_eq!(lines(&listed, &[]).len(), 8);
        let between = lines(&listed, &["up1", "up15", "up2"]);
        assert_eq!(between.len(), 4);
        assert!(between[0].starts_with("-I DOCKER-USER 5 -i up15 -o docker0"), "{between:?}");
    }

    #[test]
    fn bridges_of_the_hosts_own_are_no_dockers() {
        let names = ["br-lan", "br-0123456789ab", "br-0123456789abc", "docker0", "eth0", "br0"];
        assert_eq!(names.map(is_hosts_own), [true, false, true, false, false, false]);
        let rules = wanted(&uplinks(&["up1"]), &BTreeSet::from(["br-lan".to_owned()]));
        assert_eq!(rules[0], "DOCKER-USER -i up1 -o br-lan -m comment --comment meshd -j ACCEPT");
        assert_eq!(rules.len(), 5);
    }

    /// Rules of earlier versions accept everything: what returns comes before them.
    #[test]
    fn what_is_in_the_wrong_order_is_put_right() {
        let accept = "-A DOCKER-USER -i up1 -m comment --comment meshd -j ACCEPT\n\
            -A DOCKER-USER -o up1 -m comment --comment meshd -j ACCEPT\n";
        let listed = format!(
            "-N DOCKER-USER\n-A DOCKER-USER -s 10.0.0.1/32 -j DROP\n{accept}-A DOCKER-USER -j RETURN\n"
        );
        assert_eq!(
            lines(&listed, &["up1"]),
            [
                "-I DOCKER-USER 2 -i up1 -o docker0 -m comment --comment meshd -j RETURN",
                "-I DOCKER-USER 3 -i up1 -o br-+ -m comment --comment meshd -j RETURN",
            ]
        );
        let mixed = "-N DOCKER-USER\n\
            -A DOCKER-USER -i up1 -m comment --comment meshd -j ACCEPT\n\
            -A DOCKER-USER -i up1 -o docker0 -m comment --comment meshd -j RETURN\n";
        assert_eq!(
            lines(mixed, &["up1"]),
            [
                "-I DOCKER-USER 3 -i up1 -o br-+ -m comment --comment meshd -j RETURN",
                "-D DOCKER-USER -i up1 -m comment --comment meshd -j ACCEPT",
                "-I DOCKER-USER 3 -i up1 -m comment --comment meshd -j ACCEPT",
                "-I DOCKER-USER 4 -o up1 -m comment --comment meshd -j ACCEPT",
            ]
        );
    }
}
