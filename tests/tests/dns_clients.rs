//! Names, as the programs and C libraries of containers ask for them: each must find what is there, and be told at once
//! what is not.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Background, CONVERGES, Cluster, Container, Lab, Namespace, scenario, within};

#[path = "dns_clients/engines.rs"]
mod engines;

const GATEWAY: &str = "192.168.100.1";
const GATEWAY6: &str = "fd00:100::1";
/// A name may be asked for like this, when its network is blue.
const SUFFIXES: [&str; 3] = ["", ".blue", ".blue.mesh.internal"];
/// What nobody knows: the host's resolver says so of the first two, the mesh of the third.
const NOWHERE: [&str; 3] = ["nothing", "nothing.example.test", "nothing.blue.mesh.internal"];
/// Well below the half minute that a client here waits for one answer: what is not told at once fails.
const AT_ONCE: [&str; 2] = ["timeout", "10"];
const LOOKUP: &str = include_str!("dns_clients/lookup.c");

/// Addresses, in any order.
type Addresses = BTreeSet<String>;

fn set<S: AsRef<str>>(addresses: impl IntoIterator<Item = S>) -> Addresses {
    addresses.into_iter().map(|address| address.as_ref().to_owned()).collect()
}

/// A network of both families with the service `web`, alias `www`, of two replicas; a container that asks; and the
/// host's resolver, which knows `www.example.test` and `intranet.corp.example`, and that there are no others.
struct Names {
    cluster: Cluster,
    asking: Container,
    /// Names of blue, with their IPv4 and IPv6 addresses.
    known: Vec<(&'static str, Addresses, Addresses)>,
    upstream: Background,
}

impl Names {
    fn new(lab: &Lab) -> Result<Self> {
        lab.hosts_resolv_conf("nameserver 10.77.0.1\nsearch corp.example\n")?;
        let records =
            ["--host-record=www.example.test,192.0.2.1", "--host-record=intranet.corp.example,192.0.2.7"];
        let upstream = lab.resolver_with(&[&records[..], &["--address=/#/"]].concat())?;
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--alias", "www"];
        vm1.meshctl(&[&service[..], &["--publish", "8080:80"]].concat()).ok()?;
        connected(
            lab,
            &cluster,
            "web1",
            "blue",
            &["--service", "web", "--ip", "192.168.100.51", "--ip", "fd00:100::51", "--alias", "first"],
        )?;
        connected(
            lab,
            &cluster,
            "web2",
            "blue",
            &["--service", "web", "--ip", "192.168.100.52", "--ip", "fd00:100::52"],
        )?;
        let asking = connected(lab, &cluster, "asking", "blue", &[])?;
        let (vips, vips6) = vips(&cluster, "web")?;
        ensure!(vips.len() == 1 && vips6.len() == 1, "{vips:?}, {vips6:?}");
        let known = vec![
            ("web", vips.clone(), vips6.clone()),
            ("WeB", vips.clone(), vips6.clone()),
            ("www", vips, vips6),
            ("tasks.web", set(["192.168.100.51", "192.168.100.52"]), set(["fd00:100::51", "fd00:100::52"])),
            ("web1", set(["192.168.100.51"]), set(["fd00:100::51"])),
            ("first", set(["192.168.100.51"]), set(["fd00:100::51"])),
        ];
        within(CONVERGES, "the names and the resolver beyond answer", || {
            ensure!(asking.dig(&["@192.168.100.1", "tasks.web"])?.len() == 2);
            ensure!(asking.dig(&["@192.168.100.1", "www.example.test"])? == ["192.0.2.1"]);
            Ok(())
        })?;
        Ok(Self { cluster, asking, known, upstream })
    }

    /// A network of IPv4 alone with the service `api`, and a container that asks there.
    fn plain(&self, lab: &Lab) -> Result<(Container, Addresses)> {
        let vm1 = self.cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "192.168.101.0/24", "plain"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "api", "--network", "plain"]).ok()?;
        let asking = connected(lab, &self.cluster, "asking4", "plain", &[])?;
        let (vips, _) = vips(&self.cluster, "api")?;
        within(CONVERGES, "the name answers", || {
            ensure!(set(asking.dig(&["@192.168.101.1", "api"])?) == vips);
            Ok(())
        })?;
        Ok((asking, vips))
    }
}

fn connected(lab: &Lab, cluster: &Cluster, name: &str, network: &str, options: &[&str]) -> Result<Container> {
    let container = lab.container(name)?;
    let target = container.target();
    let line = [&["network", "connect", "--name", name], options, &[network, &target]].concat();
    cluster.vm1().meshctl(&line).ok()?;
    Ok(container)
}

/// The VIPs of a service on its first network, by family.
fn vips(cluster: &Cluster, service: &str) -> Result<(Addresses, Addresses)> {
    let service = cluster.list(&["service", "inspect", service])?;
    let addresses = service[0]["networks"][0]["addresses"].as_array().context("no VIPs")?;
    let (six, four) =
        addresses.iter().filter_map(|address| address.as_str()).partition::<Vec<_>, _>(|a| a.contains(':'));
    Ok((set(four), set(six)))
}

/// What a program that asks a name server by itself prints of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    rcode: String,
    /// The data of the answer's records.
    records: Addresses,
}

impl Said {
    fn records<S: AsRef<str>>(records: impl IntoIterator<Item = S>) -> Self {
        Self { rcode: "NOERROR".to_owned(), records: set(records) }
    }

    fn nothing(rcode: &str) -> Self {
        Self { rcode: rcode.to_owned(), records: Addresses::new() }
    }
}

/// One of dig, kdig and drill, which print alike.
#[derive(Debug, Clone, Copy)]
struct Program {
    name: &'static str,
    /// Tries once, for half a minute.
    patience: &'static [&'static str],
    tcp: &'static str,
}

const PROGRAMS: [Program; 3] = [
    Program { name: "dig", patience: &["+tries=1", "+time=30"], tcp: "+tcp" },
    Program { name: "kdig", patience: &["+retry=0", "+time=30"], tcp: "+tcp" },
    Program { name: "drill", patience: &[], tcp: "-t" },
];

impl Program {
    fn asks(self, from: &Namespace, question: &[&str]) -> Result<Said> {
        let line = [&AT_ONCE[..], &[self.name], self.patience, question].concat();
        let printed = from.output(&line).ok()?;
        let rcode = printed.lines().find_map(|line| {
            let (_, rcode) = line.split_once("rcode: ").or_else(|| line.split_once("status: "))?;
            Some(rcode.split([',', ';']).next()?.to_owned())
        });
        let answer = printed.lines().skip_while(|line| !line.contains("ANSWER SECTION")).skip(1);
        let answer = answer.take_while(|line| !line.is_empty() && !line.starts_with(';'));
        let data = |line: &str| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
        let rcode = rcode.with_context(|| format!("{line:?}: no code in {printed}"))?;
        Ok(Said { rcode, records: answer.map(data).collect() })
    }

    fn must_say(self, from: &Namespace, question: &[&str], expected: &Said) -> Result<()> {
        let said = self.asks(from, question)?;
        ensure!(said == *expected, "{} {question:?}: {said:?}, expected {expected:?}", self.name);
        Ok(())
    }
}

/// The addresses that busybox's nslookup prints after those of its server, or what it complains of.
fn nslookup(from: &Namespace, question: &[&str]) -> Result<std::result::Result<Addresses, String>> {
    let outcome = from.output(&[&AT_ONCE[..], &["busybox", "nslookup"], question].concat());
    let printed = format!("{}{}", outcome.stdout, outcome.stderr);
    let answer = printed.lines().skip_while(|line| !line.is_empty());
    let found: Addresses =
        answer.filter_map(|line| line.strip_prefix("Address: ")).map(str::to_owned).collect();
    match outcome.code {
        Some(0) => Ok(Ok(found)),
        Some(1) => Ok(Err(printed)),
        _ => outcome.ok().map(|_| Ok(found)),
    }
}

#[test]
fn programs_that_ask_servers_find_every_name() {
    scenario("programs", |lab| {
        let names = Names::new(lab)?;
        let (server, server6) = (format!("@{GATEWAY}"), format!("@{GATEWAY6}"));
        for program in PROGRAMS {
            for (name, v4, v6) in &names.known {
                for suffix in SUFFIXES {
                    let name = format!("{name}{suffix}");
                    program.must_say(&names.asking, &[&server, &name, "A"], &Said::records(v4))?;
                    program.must_say(
                        &names.asking,
                        &[program.tcp, &server6, &name, "AAAA"],
                        &Said::records(v6),
                    )?;
                }
            }
            for name in NOWHERE {
                for kind in ["A", "AAAA", "SRV"] {
                    program.must_say(&names.asking, &[&server, name, kind], &Said::nothing("NXDOMAIN"))?;
                }
            }
            for address in ["192.168.100.51", "fd00:100::51"] {
                let found = Said::records(["web1.blue.mesh.internal."]);
                program.must_say(&names.asking, &[&server, "-x", address], &found)?;
            }
            program.must_say(
                &names.asking,
                &[&server, "-x", "192.168.100.99"],
                &Said::nothing("NXDOMAIN"),
            )?;
            let services = ["0 0 80 web1.blue.mesh.internal.", "0 0 80 web2.blue.mesh.internal."];
            program.must_say(&names.asking, &[&server, "_80._tcp.web", "SRV"], &Said::records(services))?;
        }
        Ok(())
    });
}

#[test]
fn busybox_finds_every_name() {
    scenario("busybox", |lab| {
        let names = Names::new(lab)?;
        for (name, v4, v6) in &names.known {
            for suffix in SUFFIXES {
                let name = format!("{name}{suffix}");
                for server in [GATEWAY, GATEWAY6] {
                    let found = nslookup(&names.asking, &[&name, server])?;
                    let expected: Addresses = v4.union(v6).cloned().collect();
                    ensure!(found.as_ref() == Ok(&expected), "{name}: {found:?}, expected {expected:?}");
                }
            }
        }
        for name in NOWHERE {
            let found = nslookup(&names.asking, &[name, GATEWAY])?;
            ensure!(matches!(&found, Err(said) if said.contains("NXDOMAIN")), "{name}: {found:?}");
        }
        let line = [&AT_ONCE[..], &["busybox", "nslookup"]].concat();
        let reverse = names.asking.output(&[&line[..], &["192.168.100.51", GATEWAY]].concat()).ok()?;
        ensure!(reverse.contains("web1.blue.mesh.internal"), "{reverse}");
        let services =
            names.asking.output(&[&line[..], &["-type=srv", "_80._tcp.web", GATEWAY]].concat()).ok()?;
        ensure!(services.contains("80 web1.blue.mesh.internal"), "{services}");

        let (asking, vips) = names.plain(lab)?;
        let found = nslookup(&asking, &["api", "192.168.101.1"])?;
        ensure!(found.as_ref() == Ok(&vips), "{found:?}, expected {vips:?}");
        Ok(())
    });
}

/// The program `lookup.c`, linked with a C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    Glibc,
    Musl,
}

const LIBRARIES: [Library; 2] = [Library::Glibc, Library::Musl];

impl Library {
    /// Where the program is, in the lab.
    fn path(self) -> &'static str {
        match self {
            Self::Glibc => "/run/lab/lookup-glibc",
            Self::Musl => "/run/lab/lookup-musl",
        }
    }

    /// Makes both programs.
    fn build(anywhere: &Namespace) -> Result<()> {
        fs::write(anywhere.file("/run/lab/lookup.c"), LOOKUP)?;
        for (compiler, library) in [(&["cc"][..], Self::Glibc), (&["musl-gcc", "-static"], Self::Musl)] {
            anywhere.output(&[compiler, &["-o", library.path(), "/run/lab/lookup.c"]].concat()).ok()?;
        }
        Ok(())
    }

    /// What it makes of each name: addresses, or the one word that says what is wrong.
    fn finds(self, from: &Namespace, options: &[&str], names: &[&str]) -> Result<Vec<Addresses>> {
        let printed = from.output(&[&AT_ONCE[..], &[self.path()], options, names].concat()).ok()?;
        let found: Vec<_> = printed.lines().map(|line| set(line.split_whitespace().skip(1))).collect();
        ensure!(found.len() == names.len(), "{names:?}: {printed}");
        Ok(found)
    }

    fn must_find(self, from: &Namespace, options: &[&str], name: &str, expected: &Addresses) -> Result<()> {
        let found = self.finds(from, options, &[name])?;
        ensure!(found[0] == *expected, "{self:?} {options:?} {name}: {:?}, expected {expected:?}", found[0]);
        Ok(())
    }
}

/// The addresses that `getent DATABASE NAME` prints; none if it says that there is no such name.
fn getent(from: &Namespace, database: &str, name: &str) -> Result<Addresses> {
    let outcome = from.output(&[&AT_ONCE[..], &["getent", database, name]].concat());
    if outcome.code == Some(2) {
        return Ok(Addresses::new());
    }
    Ok(set(outcome.ok()?.lines().filter_map(|line| line.split_whitespace().next())))
}

/// What C libraries find in a container of blue with this search list.
struct Expected<'a> {
    names: &'a Names,
    search: &'a str,
    ndots: u8,
}

impl Expected<'_> {
    /// With each name, written in each way, everything there is to find.
    fn known(&self) -> Vec<(String, Addresses)> {
        let mut all = Vec::new();
        for (name, v4, v6) in &self.names.known {
            let addresses: Addresses = v4.union(v6).cloned().collect();
            for suffix in ["", ".blue", ".blue.mesh.internal", ".blue.mesh.internal."] {
                all.push((format!("{name}{suffix}"), addresses.clone()));
            }
        }
        all.push(("www.example.test".to_owned(), set(["192.0.2.1"])));
        all.push(("www.example.test.".to_owned(), set(["192.0.2.1"])));
        all
    }

    /// A name that only the search list completes. musl goes through that for names with fewer dots than `ndots` alone,
    /// glibc for those too that were not found as they are.
    fn intranet(&self, library: Library) -> Addresses {
        let completed = self.search == "corp.example" && (library == Library::Glibc || self.ndots > 0);
        set([if completed { "192.0.2.7" } else { "NONAME" }])
    }

    fn is_found(&self, from: &Namespace) -> Result<()> {
        let (names, expected): (Vec<_>, Vec<_>) = self.known().into_iter().unzip();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let conf = format!("search {}, ndots {}", self.search, self.ndots);
        for library in LIBRARIES {
            let found = library.finds(from, &[], &names)?;
            for ((name, found), expected) in names.iter().zip(found).zip(&expected) {
                ensure!(found == *expected, "{conf}: {library:?}, {name}: {found:?}, expected {expected:?}");
            }
            let intranet = self.intranet(library);
            library.must_find(from, &[], "intranet", &intranet).with_context(|| conf.clone())?;
            for name in NOWHERE {
                library.must_find(from, &[], name, &set(["NONAME"])).with_context(|| conf.clone())?;
            }
        }
        for (name, v4, v6) in &self.names.known {
            let both: Addresses = v4.union(v6).cloned().collect();
            for (database, expected) in [("ahosts", &both), ("ahostsv4", v4), ("ahostsv6", v6)] {
                let found = getent(from, database, name)?;
                ensure!(
                    found == *expected,
                    "{conf}: getent {database} {name}: {found:?}, expected {expected:?}"
                );
            }
            let found = getent(from, "hosts", name)?;
            ensure!(!found.is_empty() && found.is_subset(&both), "{conf}: getent hosts {name}: {found:?}");
        }
        for name in NOWHERE {
            ensure!(getent(from, "ahosts", name)?.is_empty(), "{conf}: getent found {name}");
        }
        Ok(())
    }
}

#[test]
fn c_libraries_find_every_name_with_any_search_list() {
    scenario("libraries", |lab| {
        let names = Names::new(lab)?;
        Library::build(&names.asking)?;
        for search in ["", "blue.mesh.internal", "corp.example"] {
            for ndots in [0, 1, 5] {
                // In turn by one family, the other, and both.
                let servers = [&[GATEWAY][..], &[GATEWAY6], &[GATEWAY, GATEWAY6]][usize::from(ndots) % 3];
                let mut conf: String =
                    servers.iter().map(|server| format!("nameserver {server}\n")).collect();
                if !search.is_empty() {
                    conf += &format!("search {search}\n");
                }
                conf += &format!("options ndots:{ndots} timeout:30 attempts:1\n");
                names.asking.resolv_conf(&conf)?;
                Expected { names: &names, search, ndots }.is_found(&names.asking)?;
            }
        }
        for library in LIBRARIES {
            for address in ["192.168.100.51", "fd00:100::51"] {
                library.must_find(&names.asking, &["-x"], address, &set(["web1.blue.mesh.internal"]))?;
            }
            library.must_find(&names.asking, &["-x"], "192.168.100.99", &set(["NONAME"]))?;
        }
        let found = names.asking.output(&["getent", "hosts", "192.168.100.51"]).ok()?;
        ensure!(found.ends_with(" web1.blue.mesh.internal"), "{found}");
        Ok(())
    });
}

/// With the resolv.conf that `meshctl run` writes: the network's servers, the host's search list, `ndots:0`.
#[test]
fn c_libraries_find_every_name_in_what_meshctl_runs() {
    scenario("run", |lab| {
        let mut names = Names::new(lab)?;
        let vm1 = names.cluster.vm1();
        Library::build(vm1)?;
        let waiting = vm1.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm1.of_process("c", waiting.child()?);
        let conf = container.output(&["cat", "/etc/resolv.conf"]).ok()?;
        let expected =
            format!("nameserver {GATEWAY}\nnameserver {GATEWAY6}\nsearch corp.example\noptions ndots:0");
        ensure!(conf == expected, "{conf}");
        Expected { names: &names, search: "corp.example", ndots: 0 }.is_found(&container)?;
        // The own names do not depend on the resolver beyond.
        names.upstream.kill()?;
        for (name, v4, v6) in &names.known {
            for library in LIBRARIES {
                library.must_find(&container, &[], name, &v4.union(v6).cloned().collect())?;
            }
        }
        Ok(())
    });
}

/// There is the name but not this type: no reason not to give what there is.
#[test]
fn without_ipv6_the_ipv4_addresses_are_found() {
    scenario("nodata", |lab| {
        let names = Names::new(lab)?;
        let (asking, vips) = names.plain(lab)?;
        Library::build(&asking)?;
        let server = "@192.168.101.1";
        for program in PROGRAMS {
            program.must_say(&asking, &[server, "api", "AAAA"], &Said::nothing("NOERROR"))?;
            program.must_say(&asking, &[server, "api.plain.mesh.internal", "A"], &Said::records(&vips))?;
        }
        for search in ["", "search corp.example\n", "search plain.mesh.internal\n"] {
            for ndots in [0, 1, 5] {
                let options = format!("options ndots:{ndots} timeout:30 attempts:1\n");
                asking.resolv_conf(&format!("nameserver 192.168.101.1\n{search}{options}"))?;
                for name in ["api", "api.plain", "api.plain.mesh.internal", "www.example.test"] {
                    let expected = if name.starts_with("api") { vips.clone() } else { set(["192.0.2.1"]) };
                    for library in LIBRARIES {
                        library.must_find(&asking, &[], name, &expected)?;
                        library.must_find(&asking, &["-4"], name, &expected)?;
                        let [none] = &library.finds(&asking, &["-6"], &[name])?[..] else { continue };
                        ensure!(
                            none.is_subset(&set(["NONAME", "NODATA"])),
                            "{library:?}, {search}, ndots {ndots}: {name} has IPv6: {none:?}"
                        );
                    }
                    let found = getent(&asking, "ahosts", name)?;
                    ensure!(found == expected, "getent {name}: {found:?}, expected {expected:?}");
                }
            }
        }
        Ok(())
    });
}

/// How many endpoints: their addresses do not fit 512 octets, nor the IPv6 ones 1232.
const MANY: u8 = 60;

/// A client of the old size takes the whole over TCP, or as many as there was room for.
#[test]
fn answers_of_any_length_reach_every_client() {
    scenario("long", |lab| {
        let names = Names::new(lab)?;
        let vm1 = names.cluster.vm1();
        Library::build(vm1)?;
        vm1.meshctl(&[
            "service",
            "create",
            "--name",
            "many",
            "--network",
            "blue",
            "--endpoint-mode",
            "dnsrr",
        ])
        .ok()?;
        let numbers = 100..100 + MANY;
        for number in numbers.clone() {
            let (v4, v6) = (format!("192.168.100.{number}"), format!("fd00:100::{number}"));
            let options = ["--service", "many", "--ip", &v4, "--ip", &v6];
            connected(lab, &names.cluster, &format!("m{number}"), "blue", &options)?;
        }
        let all4: Addresses = numbers.clone().map(|number| format!("192.168.100.{number}")).collect();
        let all6: Addresses = numbers.map(|number| format!("fd00:100::{number}")).collect();
        let both: Addresses = all4.union(&all6).cloned().collect();
        let (asking, server) = (&names.asking, format!("@{GATEWAY}"));
        within(CONVERGES, "all are known", || {
            PROGRAMS[0].must_say(asking, &["+tcp", &server, "tasks.many", "A"], &Said::records(&all4))
        })?;
        asking.resolv_conf(&format!("nameserver {GATEWAY}\noptions ndots:0 timeout:30 attempts:1\n"))?;
        let is_part = |found: &Addresses| found.len() >= 15 && found.is_subset(&both);
        for name in ["many", "tasks.many", "tasks.many.blue.mesh.internal"] {
            for (size, program) in [
                (&["+bufsize=512"][..], PROGRAMS[0]),
                (&["+noedns"], PROGRAMS[0]),
                (&["+noedns"], PROGRAMS[1]),
            ] {
                for (kind, all) in [("A", &all4), ("AAAA", &all6)] {
                    program.must_say(
                        asking,
                        &[size, &[&server, name, kind]].concat(),
                        &Said::records(all),
                    )?;
                }
            }
            PROGRAMS[2].must_say(asking, &["-a", &server, name, "AAAA"], &Said::records(&all6))?;
            Library::Glibc.must_find(asking, &[], name, &both)?;
            for (database, all) in [("ahosts", &both), ("ahostsv4", &all4), ("ahostsv6", &all6)] {
                let found = getent(asking, database, name)?;
                ensure!(found == *all, "getent {database} {name}: {} of {}", found.len(), all.len());
            }
            // musl has no TCP before 1.2.4 and takes 48 addresses at most; busybox has none.
            let found = Library::Musl.finds(asking, &[], &[name])?;
            ensure!(is_part(&found[0]), "musl, {name}: {found:?}");
            let found = nslookup(asking, &[name, GATEWAY])?;
            ensure!(found.as_ref().is_ok_and(is_part), "busybox, {name}: {found:?}");
        }
        Ok(())
    });
}
