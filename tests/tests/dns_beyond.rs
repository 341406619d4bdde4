//! Names that are not the mesh's, and the mesh's names where no container asks.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Background, CONVERGES, Cluster, Container, Host, Lab, Namespace, scenario, within};
use serde_json::Value;

#[path = "dns_beyond/stub.rs"]
mod stub;

/// The gateway of `blue`.
const GATEWAY: &str = "192.168.100.1";
const GATEWAY6: &str = "fd00:100::1";

/// Connects a new container to a network, with its gateway as the name server.
fn connected(lab: &Lab, host: &Host, name: &str, network: &str, options: &[&str]) -> Result<Container> {
    let container = lab.container(name)?;
    let target = container.target();
    host.meshctl(&[&["network", "connect", "--name", name], options, &[network, &target]].concat()).ok()?;
    let gateway = match network {
        "blue" => GATEWAY,
        _ => "192.168.101.1",
    };
    container.resolver(gateway)?;
    Ok(container)
}

/// A network on its hosts, with options of its own.
fn network(host: &Host, name: &str, options: &[&str]) -> Result<()> {
    let subnet = if name == "blue" { "192.168.100.0/24" } else { "192.168.101.0/24" };
    host.meshctl(&[&["network", "create", "--subnet", subnet], options, &[name]].concat()).ok()?;
    Ok(())
}

/// A dnsmasq in a network namespace, with these options.
fn dnsmasq(place: &Namespace, options: &[&str]) -> Result<Background> {
    let own = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
    place.spawn(&[&own[..], &["--user=root", "--pid-file=", "--bind-interfaces"], options].concat())
}

/// A name has just this address, soon.
fn finds(container: &Namespace, name: &str, address: &str) -> Result<()> {
    within(CONVERGES, &format!("{name} is {address} in {}", container.name()), || {
        let found = container.dig(&[name])?;
        ensure!(found == [address], "{found:?}");
        Ok(())
    })
}

/// How a question fares, by its code.
fn status(container: &Namespace, question: &[&str]) -> Result<String> {
    let line = [&["dig", "+tries=1", "+time=6"], question].concat();
    let said = container.output(&line).ok()?;
    let status = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    Ok(status.unwrap_or("nothing").to_owned())
}

/// A host whose front process looks at its files and addresses again and again, of which it is seen that it did.
struct Looking<'a> {
    host: &'a Host,
    looks: Cell<u8>,
}

/// Where processes of the host are answered.
const OF_HOST: &str = "127.0.0.2";

impl Looking<'_> {
    /// Returns when it has looked after the call: who asks from an address that is new is answered then, and not before. The file
    /// of the resolvers is read first.
    fn has_looked(&self) -> Result<()> {
        self.looks.set(self.looks.get() + 1);
        let address = format!("10.77.1.{}", self.looks.get());
        self.host.output(&["ip", "address", "add", &format!("{address}/32"), "dev", "eth0"]).ok()?;
        within(CONVERGES, "it looked at the host", || {
            let said = self.host.output(&[
                "dig",
                "+tries=1",
                "+time=1",
                "-b",
                &address,
                &format!("@{OF_HOST}"),
                "nothing.mesh.internal",
            ]);
            ensure!(said.stdout.contains("status: NXDOMAIN"), "{said:?}");
            Ok(())
        })
    }
}

/// One whose daemon answers its processes, too, at [`OF_HOST`].
fn that_listens(host: &Host) -> Result<Cluster> {
    let listen = format!(r#"exec "$@" --dns-listen {OF_HOST}"#);
    Cluster::alone(host.meshd_under(&["sh", "-c", &listen, "sh"])?)
}

#[test]
fn the_hosts_resolvers_are_followed() {
    scenario("resolvers change", |lab| {
        let _router = lab.resolver_with(&[&format!("--address=/example.test/{OF_ROUTER}")])?;
        let cluster = that_listens(&lab.host("vm1")?)?;
        let vm1 = cluster.vm1();
        network(vm1, "blue", &[])?;
        let asking = connected(lab, vm1, "asking", "blue", &[])?;
        finds(&asking, "example.test", OF_ROUTER)?;
        // As behind systemd's stub: an address of the host alone.
        let stub = ["--listen-address=127.0.0.53", &format!("--address=/example.test/{OF_STUB}")];
        let stub = dnsmasq(vm1, &stub)?;
        lab.hosts_resolv_conf("# Managed\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n")?;
        finds(&asking, "example.test", OF_STUB)?;
        // Somebody writes the file: for a moment it is empty. What it said holds.
        lab.hosts_resolv_conf("")?;
        Looking { host: vm1, looks: Cell::new(0) }.has_looked()?;
        ensure!(asking.dig(&["other.example.test"])? == [OF_STUB]);
        // One that is not there comes first: the next one answers.
        drop(stub);
        lab.hosts_resolv_conf("nameserver 127.0.0.53\nnameserver 10.77.0.1\n")?;
        finds(&asking, "example.test", OF_ROUTER)?;
        within(CONVERGES, "the dead one is told", || {
            let view = vm1.meshctl(&["-o", "json", "dns", "status"]).json()?;
            let states = states(&view);
            let expected = [("127.0.0.53:53", "silent"), ("10.77.0.1:53", "good")];
            ensure!(states == expected.map(|(a, s)| (a.to_owned(), s.to_owned())), "{states:?}");
            Ok(())
        })
    });
}

/// What the resolvers say of names below `example.test`: that of the router, and that of the host.
const OF_ROUTER: &str = "192.0.2.1";
const OF_STUB: &str = "198.51.100.7";

/// As NetworkManager, resolvconf, systemd-resolved and administrators write the file.
#[test]
fn the_file_of_the_hosts_resolvers_is_replaced() {
    scenario("resolv.conf", |lab| {
        let _router = lab.resolver_with(&[&format!("--address=/example.test/{OF_ROUTER}")])?;
        let host = lab.host("vm1")?;
        // An /etc of the lab's own, in which files can come and go.
        let etc = "mkdir -p /run/lab/etc /run/lab/etc.work /run/systemd/resolve && mount -t overlay \
            -o lowerdir=/etc,upperdir=/run/lab/etc,workdir=/run/lab/etc.work etc /etc && rm -f /etc/resolv.conf";
        host.shell(etc).ok()?;
        let write = |path: &str, server: &str| host.shell(&format!("echo nameserver {server} >{path}")).ok();
        write("/etc/resolv.conf", "10.77.0.1")?;
        let cluster = that_listens(&host)?;
        let _stub =
            dnsmasq(&host, &["--listen-address=127.0.0.53", &format!("--address=/example.test/{OF_STUB}")])?;
        let looking = Looking { host: cluster.vm1(), looks: Cell::new(0) };
        let asked = Cell::new(0);
        // Each name is a new one: what was said before is no evidence.
        let finds_now = |address: &str| -> Result<()> {
            looking.has_looked()?;
            asked.set(asked.get() + 1);
            let found = host.dig(&[&format!("@{OF_HOST}"), &format!("n{}.example.test", asked.get())])?;
            ensure!(found == [address], "{found:?}");
            Ok(())
        };
        write("/etc/resolv.conf.new", "127.0.0.53")?;
        host.shell("mv /etc/resolv.conf.new /etc/resolv.conf").ok()?;
        finds_now(OF_STUB).context("renamed over it")?;
        write("/run/systemd/resolve/resolv.conf", "10.77.0.1")?;
        host.shell("ln -sf ../run/systemd/resolve/resolv.conf /etc/resolv.conf").ok()?;
        finds_now(OF_ROUTER).context("a link to another file")?;
        write("/run/systemd/resolve/stub-resolv.conf", "127.0.0.53")?;
        host.shell("mv /run/systemd/resolve/stub-resolv.conf /run/systemd/resolve/resolv.conf").ok()?;
        finds_now(OF_STUB).context("the other file is replaced")?;
        host.shell("rm /run/systemd/resolve/resolv.conf").ok()?;
        finds_now(OF_STUB).context("a link to nowhere: what it said holds")?;
        host.shell("rm /etc/resolv.conf").ok()?;
        write("/etc/resolv.conf", "10.77.0.1")?;
        finds_now(OF_ROUTER).context("it is there again")
    });
}

fn states(view: &Value) -> Vec<(String, String)> {
    let upstreams = view["upstreams"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    upstreams.map(|upstream| (text(&upstream["address"]), text(&upstream["state"]))).collect()
}

/// By the network, by domain, on the LAN and in the network itself: a container that filters names, as a Pi-hole does, and
/// asks its gateway in turn for what it lets pass.
#[test]
fn networks_have_resolvers_of_their_own() {
    scenario("resolvers of networks", |lab| {
        let _router = lab.resolver()?;
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let corp = lab.client("corp")?;
        let corp_ip = corp.ip().to_string();
        let _corp =
            dnsmasq(&corp, &["--address=/corp.example/10.9.9.9", "--address=/example.test/10.9.9.8"])?;
        network(
            vm1,
            "blue",
            &["--dns", "192.168.100.53", "--dns-domain", &format!("corp.example={corp_ip}")],
        )?;
        network(vm1, "red", &[])?;
        let filter = connected(lab, vm1, "filter", "blue", &["--ip", "192.168.100.53"])?;
        let server = format!("--server={GATEWAY}");
        let _filter = dnsmasq(&filter, &["--address=/ads.test/192.0.2.66", &server])?;
        // On the filter's node, and on another.
        let (near, far) =
            (connected(lab, vm1, "near", "blue", &[])?, connected(lab, vm2, "far", "blue", &[])?);
        let other = connected(lab, vm2, "other", "red", &[])?;
        for asking in [&near, &far] {
            finds(asking, "ads.test", "192.0.2.66")?;
            finds(asking, "example.test", "192.0.2.1")?;
            finds(asking, "www.corp.example", "10.9.9.9")?;
            // The mesh's own names are nobody else's.
            finds(asking, "near", &cluster.address("near")?)?;
        }
        ensure!(other.dig(&["ads.test"])?.is_empty(), "another network has its own resolvers");
        // What it wants to know itself comes from the host's resolvers, not from itself.
        finds(&filter, "example.test", "192.0.2.1")?;
        // Changed while it is asked.
        let update = ["network", "update", "--dns-rm", "192.168.100.53", "--dns-add", &corp_ip, "blue"];
        vm1.meshctl(&update).ok()?;
        for asking in [&near, &far] {
            finds(asking, "example.test", "10.9.9.8")?;
        }
        vm1.meshctl(&["network", "update", "--dns-rm", &corp_ip, "--dns-domain-rm", "corp.example", "blue"])
            .ok()?;
        finds(&far, "example.test", "192.0.2.1")
    });
}

/// It asks its other network's gateway, and its own by the other family. Both are taken for its own questions, which others
/// are asked, and not for a loop.
#[test]
fn a_resolver_in_a_network_may_ask_from_all_its_addresses() {
    scenario("a resolver of two networks", |lab| {
        let _router = lab.resolver()?;
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        let v6 = ["--subnet", "fd00:50::/64", "--dns", "192.168.100.53"];
        network(vm1, "blue", &v6)?;
        network(vm1, "red", &[])?;
        let filter = connected(lab, vm1, "filter", "blue", &["--ip", "192.168.100.53"])?;
        vm1.meshctl(&["network", "connect", "--ifname", "eth1", "red", &filter.target()]).ok()?;
        let log = "/run/lab/filter.log";
        let facility = format!("--log-facility={log}");
        let servers = ["--server=192.168.101.1", "--server=fd00:50::1", "--all-servers"];
        let own = ["--address=/ads.test/192.0.2.66", "--log-queries", &facility];
        let _filter = dnsmasq(&filter, &[&servers[..], &own].concat())?;
        let asking = connected(lab, vm1, "asking", "blue", &[])?;
        finds(&asking, "ads.test", "192.0.2.66")?;
        // A change has it tried out whether it loops, and the next one only when that has ended.
        for other in ["first", "second"] {
            let probes = || {
                Ok::<_, std::io::Error>(
                    std::fs::read_to_string(vm1.file(log))?.matches("mesh-loop.internal from").count(),
                )
            };
            let before = probes()?;
            let _other = connected(lab, vm1, other, "blue", &[])?;
            within(CONVERGES, "it is tried out", || {
                ensure!(probes()? > before);
                Ok(())
            })?;
        }
        let view = vm1.meshctl(&["-o", "json", "dns", "status"]).json()?;
        ensure!(states(&view).contains(&("192.168.100.53:53".to_owned(), "good".to_owned())), "{view}");
        finds(&asking, "more.ads.test", "192.0.2.66")?;
        finds(&asking, "example.test", "192.0.2.1")?;
        finds(&filter, "example.test", "192.0.2.1")
    });
}

#[test]
fn no_name_leaves_an_internal_network() {
    scenario("internal names", |lab| {
        let log = "/run/lab/router.log";
        let facility = format!("--log-facility={log}");
        let router = lab.resolver_with(&["--address=/example.test/192.0.2.1", "--log-queries", &facility])?;
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        network(vm1, "blue", &["--internal"])?;
        network(vm1, "red", &[])?;
        let inside = connected(lab, vm1, "inside", "blue", &[])?;
        let other = connected(lab, vm1, "other", "blue", &[])?;
        finds(&inside, "other", &cluster.address("other")?)?;
        for transport in ["+notcp", "+tcp"] {
            let code = status(&inside, &[transport, "secret.example.test"])?;
            ensure!(code == "NXDOMAIN", "{transport}: {code}");
        }
        // Nor who has an address of it, whoever asks.
        let outside = connected(lab, vm1, "outside", "red", &[])?;
        finds(&outside, "example.test", "192.0.2.1")?;
        within(CONVERGES, "nobody else is asked", || {
            ensure!(status(&outside, &["-x", &cluster.address("inside")?])? == "NXDOMAIN");
            Ok(())
        })?;
        // A container with a way out by another network has names there too, whichever network it asks in.
        vm1.meshctl(&["network", "connect", "--ifname", "eth1", "red", &other.target()]).ok()?;
        finds(&other, "open.example.test", "192.0.2.1")?;
        ensure!(status(&inside, &["secret.example.test"])? == "NXDOMAIN");
        // Who gives the network a resolver wants it to be asked.
        vm1.meshctl(&["network", "update", "--dns-add", "10.77.0.1", "blue"]).ok()?;
        finds(&inside, "allowed.example.test", "192.0.2.1")?;
        let asked = std::fs::read_to_string(vm1.file(log))?;
        ensure!(asked.contains("open.example.test") && asked.contains("allowed.example.test"), "{asked}");
        ensure!(!asked.contains("secret.") && !asked.contains(".in-addr.arpa"), "it got out: {asked}");
        drop(router);
        Ok(())
    });
}

#[test]
fn the_hosts_own_processes_are_answered_and_nobody_else() {
    scenario("the host's names", |lab| {
        let _router = lab.resolver()?;
        let host = lab.host("vm1")?;
        let listen = r#"exec "$@" --dns-listen 127.0.0.2 --dns-listen 10.77.0.11:5300"#;
        let meshd = host.meshd_under(&["sh", "-c", listen, "sh"])?;
        ensure!(host.ip().to_string() == "10.77.0.11", "{}", host.ip());
        let cluster = Cluster::alone(meshd)?;
        let vm1 = cluster.vm1();
        // As on hosts with keepalived: any address can be bound there, which says nothing of whose it is.
        vm1.output(&["sysctl", "--quiet", "--write", "net.ipv4.ip_nonlocal_bind=1"]).ok()?;
        network(vm1, "blue", &["--subnet", "fd00:100::/64"])?;
        network(vm1, "red", &[])?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let web1 = connected(lab, vm1, "web1", "blue", &["--service", "web"])?;
        let _red1 = connected(lab, vm1, "red1", "red", &[])?;
        let (vip, address) = (cluster.vip("web")?, cluster.address("web1")?);
        within(CONVERGES, "the host is answered", || {
            ensure!(vm1.dig(&["@127.0.0.2", "web.blue.mesh.internal"])? == [vip.as_str()]);
            Ok(())
        })?;
        let at = ["@10.77.0.11", "-p", "5300"];
        for server in [&["@127.0.0.2"][..], &at] {
            for transport in ["+notcp", "+tcp"] {
                let ask = |question: &[&str]| vm1.dig(&[server, &[transport], question].concat());
                ensure!(ask(&["tasks.web.blue.mesh.internal"])? == [address.as_str()]);
                ensure!(ask(&["red1.red.mesh.internal"])? == [cluster.address("red1")?]);
                ensure!(ask(&["-x", &address])? == ["web1.blue.mesh.internal."]);
                ensure!(ask(&["example.test"])? == ["192.0.2.1"]);
                // A short name may be anybody's.
                ensure!(ask(&["web"])?.is_empty());
            }
        }
        ensure!(status(vm1, &["@127.0.0.2", "nothing.mesh.internal"])? == "NXDOMAIN");
        // From outside, and from inside a network, nothing is heard of it: no answer that could be turned on somebody.
        let outside = lab.client("outside")?;
        for asking in [&outside as &Namespace, &web1] {
            for question in [["+notcp", "web.blue.mesh.internal"], ["+tcp", "web.blue.mesh.internal"]] {
                let line = [&["dig", "+tries=1", "+time=1"], &at[..], &question].concat();
                let said = asking.output(&line);
                ensure!(
                    said.code != Some(0) && !said.stdout.contains("status:"),
                    "{}: {said:?}",
                    asking.name()
                );
            }
        }
        // Nor from outside of the name servers in networks, whatever route somebody has. Inside they do answer.
        for (gateway, subnet, via) in [
            (GATEWAY, "192.168.100.0/24", vm1.ip().to_string()),
            (GATEWAY6, "fd00:100::/64", vm1.ip6().to_string()),
        ] {
            outside.output(&["ip", "route", "add", subnet, "via", &via]).ok()?;
            let route = outside.output(&["ip", "route", "get", gateway]).ok()?;
            ensure!(route.contains(&format!("via {via} ")), "{route}");
            let server = format!("@{gateway}");
            ensure!(web1.dig(&[&server, "web"])? == [vip.as_str()]);
            for transport in ["+notcp", "+tcp"] {
                let said = outside.output(&["dig", "+tries=1", "+time=1", transport, &server, "web"]);
                ensure!(said.code != Some(0) && !said.stdout.contains("status:"), "{said:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn names_are_resolved_on_the_command_line() {
    scenario("dns resolve", |lab| {
        let _router = lab.resolver()?;
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        let early = vm1.meshctl(&["dns", "resolve", "web"]);
        ensure!(early.code == Some(1) && early.stderr.contains("no network is on this node"), "{early:?}");
        network(vm1, "blue", &[])?;
        network(vm1, "red", &[])?;
        vm1.meshctl(&[
            "service",
            "create",
            "--name",
            "web",
            "--network",
            "blue",
            "--network",
            "red",
            "--publish",
            "80:80",
        ])
        .ok()?;
        let _web1 = connected(lab, vm1, "web1", "blue", &["--service", "web"])?;
        let _red1 = connected(lab, vm1, "red1", "red", &[])?;
        let address = cluster.address("web1")?;
        within(CONVERGES, "the name is found", || vm1.meshctl(&["dns", "resolve", "web"]).ok().map(drop))?;
        let all = vm1.meshctl(&["-o", "json", "dns", "resolve", "web"]).json()?;
        let networks: Vec<&str> = all["answers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|answer| answer["network"].as_str())
            .collect();
        ensure!(networks == ["blue", "red"], "{all}");
        let quiet = |line: &[&str]| vm1.meshctl(&[&["-q", "dns", "resolve"], line].concat()).ok();
        ensure!(quiet(&["--network", "blue", "tasks.web"])?.trim() == address);
        ensure!(quiet(&[&address])?.trim() == "web1.blue.mesh.internal.");
        let srv = quiet(&["--network", "blue", "-t", "srv", "_80._tcp.web"])?;
        ensure!(srv.trim() == "0 0 80 web1.blue.mesh.internal.", "{srv}");
        ensure!(quiet(&["--network", "blue", "example.test"])?.trim() == "192.0.2.1");
        let table = vm1.meshctl(&["dns", "resolve", "tasks.web"]).ok()?;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        ensure!(rows[0] == ["NETWORK", "NAME", "TYPE", "TTL", "DATA"], "{table}");
        ensure!(rows[1] == ["blue", "tasks.web.", "A", "5", address.as_str()], "{table}");
        ensure!(table.contains("such records are not"), "no task on red: {table}");
        for (line, code, text) in [
            (&["dns", "resolve", "nobody"][..], 1, "no network on this node has the name 'nobody'"),
            (
                &["dns", "resolve", "--network", "blue", "nobody.mesh.internal"],
                1,
                "nothing on network 'blue' is called",
            ),
            (&["dns", "resolve", "--network", "green", "web"], 1, "green"),
            (&["dns", "resolve", "--type", "banana", "web"], 1, "'banana' is no type of records"),
            (&["dns", "resolve", "a..b"], 1, "'a..b' is no name"),
            (&["dns", "resolve"], 2, "NAME"),
        ] {
            let said = vm1.meshctl(line);
            ensure!(said.code == Some(code) && said.stderr.contains(text), "{line:?}: {said:?}");
            ensure!(code == 2 || said.stderr.trim().lines().count() == 1, "{line:?}: {said:?}");
        }
        within(CONVERGES, "what was asked is counted", || {
            let view = vm1.meshctl(&["-o", "json", "dns", "status"]).json()?;
            let blue = &view["servers"][0];
            ensure!(blue["network"] == "blue" && blue["addresses"][0] == format!("{GATEWAY}:53"), "{view}");
            ensure!(blue["counts"]["answered"].as_u64() >= Some(5), "{view}");
            ensure!(blue["counts"]["forwarded"].as_u64() >= Some(1), "{view}");
            ensure!(states(&view) == [("10.77.0.1:53".to_owned(), "good".to_owned())], "{view}");
            Ok(())
        })?;
        let shown = vm1.meshctl(&["dns", "status"]).ok()?;
        ensure!(
            shown.contains("RESOLVER") && shown.contains("this host") && shown.contains("good"),
            "{shown}"
        );
        Ok(())
    });
}

/// The host's resolver forwards to meshd, and meshd to the host's resolver.
#[test]
fn a_loop_through_the_hosts_resolver_is_found_and_named() {
    scenario("loop", |lab| {
        let _router = lab.resolver()?;
        let host = lab.host("vm1")?;
        let meshd = host.meshd_under(&["sh", "-c", r#"exec "$@" --dns-listen 127.0.0.2"#, "sh"])?;
        let cluster = Cluster::alone(meshd)?;
        let vm1 = cluster.vm1();
        network(vm1, "blue", &[])?;
        let asking = connected(lab, vm1, "asking", "blue", &[])?;
        finds(&asking, "example.test", "192.0.2.1")?;
        let stub = dnsmasq(vm1, &["--listen-address=127.0.0.53", "--server=127.0.0.2"])?;
        within(CONVERGES, "the stub answers", || {
            ensure!(vm1.dig(&["@127.0.0.53", "asking.blue.mesh.internal"])? == [cluster.address("asking")?]);
            Ok(())
        })?;
        lab.hosts_resolv_conf("nameserver 127.0.0.53\nnameserver 10.77.0.1\n")?;
        within(CONVERGES, "the loop is named", || {
            let shown = vm1.meshctl(&["dns", "status"]).ok()?;
            ensure!(shown.contains("asks this host in turn"), "{shown}");
            Ok(())
        })?;
        // The other one is asked, and names that nobody has asked for yet are found.
        let found = asking.dig(&["www.example.test"])?;
        ensure!(found == ["192.0.2.1", "example.test."], "{found:?}");
        drop(stub);
        // One that sends the mesh's names here, and no others, is none.
        let stub = ["--listen-address=127.0.0.53", "--server=/mesh.internal/127.0.0.2", "--server=10.77.0.1"];
        let _stub = dnsmasq(vm1, &stub)?;
        lab.hosts_resolv_conf("nameserver 127.0.0.53\n")?;
        within(CONVERGES, "the stub is asked", || {
            let view = vm1.meshctl(&["-o", "json", "dns", "status"]).json()?;
            ensure!(states(&view) == [("127.0.0.53:53".to_owned(), "good".to_owned())], "{view}");
            Ok(())
        })?;
        finds(&asking, "example.test", "192.0.2.1")?;
        ensure!(vm1.dig(&["@127.0.0.53", "asking.blue.mesh.internal"])? == [cluster.address("asking")?]);
        Ok(())
    });
}
