//! What is refused: one line that says what and what to do, exit code 1, and nothing half-made left behind.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Nginx, Replica, ReplicaSpec, scenario, within};

/// Records and kernel objects on every host, to compare before and after.
fn everything(cluster: &Cluster) -> Result<String> {
    let mut found = String::new();
    for kind in ["network", "service", "endpoint", "node"] {
        let records = cluster.vm1().meshctl(&["-o", "json", kind, "ls"]).json()?;
        found += &format!("{kind}: {records:#}\n");
    }
    for daemon in &cluster.daemons {
        found += &format!("{}: {:#?}\n", daemon.host().name(), daemon.host().all_objects()?);
    }
    Ok(found)
}

/// Runs each command and checks its refusal, then that nothing changed.
fn refused(cluster: &Cluster, host: &Host, commands: &[(&[&str], &str)]) -> Result<()> {
    let before = everything(cluster)?;
    for (command, text) in commands {
        host.meshctl(command).refused(text)?;
    }
    within(CONVERGES, "what was refused left nothing", || {
        let after = everything(cluster)?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })
}

#[test]
fn networks() {
    scenario("bad networks", |lab| {
        let cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        // A LAN that vm3 alone is on.
        let second = "ip link add lan2 type veth peer name lan2-end && ip address add 10.88.0.3/24 dev lan2";
        cluster.vm3().shell(second).ok()?;
        let create = |options: &[&'static str]| [&["network", "create"], options].concat();
        let grow = |subnet| ["network", "update", "--subnet-add", subnet, "blue"];
        let dns = |flag, value| ["network", "update", flag, value, "blue"];
        let resolvers: Vec<String> = (1..=9).map(|last| format!("--dns=10.9.0.{last}")).collect();
        let resolvers: Vec<&str> = ["network", "create"]
            .into_iter()
            .chain(resolvers.iter().map(String::as_str))
            .chain(["red"])
            .collect();
        refused(
            &cluster,
            vm1,
            &[
                (
                    &create(&["--subnet", "10.88.0.0/16", "red"]),
                    "node 'vm3': subnet 10.88.0.0/16 overlaps 10.88.0.0/24",
                ),
                (&grow("10.88.0.0/25"), "the network of this host's lan2"),
                (&grow("10.77.0.96/27"), "10.77.0.0/24"),
                (&grow("10.50.0.0/25"), "network 'blue'"),
                (&grow("10.60.0.1/24"), "host bits"),
                (&["network", "update", "--subnet-add", "10.60.0.0/24", "green"], "green"),
                (&create(&["--subnet", "10.50.0.0/16", "red"]), "overlaps"),
                (&create(&["--subnet", "10.50.0.128/25", "red"]), "overlaps"),
                (&create(&["--subnet", "10.60.0.0/33", "red"]), "10.60.0.0/33"),
                (&create(&["--subnet", "banana", "red"]), "banana"),
                (&create(&["--subnet", "10.60.1.7/24", "red"]), "10.60.1.0/24"),
                (&create(&["--subnet", "127.0.0.0/24", "red"]), "127.0.0.0/24"),
                (&create(&["--subnet", "10.60.0.0/24", "--gateway", "10.61.0.1", "red"]), "gateway"),
                (&create(&["--subnet", "10.60.0.0/24", "--ip-range", "10.61.0.0/25", "red"]), "range"),
                (&create(&["--subnet", "10.77.0.0/24", "red"]), "10.77.0"),
                (&create(&["--subnet", "10.77.0.96/27", "red"]), "10.77.0.0/24"),
                (&create(&["--subnet", "fd77::a:0:0/96", "red"]), "fd77::/64"),
                (&create(&["--subnet", "10.60.0.0/24", "--vni", "16777216", "red"]), "VNI"),
                (&create(&["--subnet", "10.60.0.0/24", "--vni", "0", "red"]), "VNI"),
                (&create(&["--subnet", "10.60.0.0/24", "--vni", "-1", "red"]), "1 to 16777215"),
                (&create(&["--subnet", "10.60.0.0/24", "--vni", "99999999999", "red"]), "1 to 16777215"),
                (&create(&["--subnet", "10.60.0.0/24", "--mtu", "100", "red"]), "MTU"),
                (&create(&["--encrypted", "red"]), "encrypted"),
                (&create(&["--dns", "banana", "red"]), "'banana' is no resolver"),
                (&create(&["--dns", "10.9.0.1:0", "red"]), "1 to 65535"),
                (&create(&["--dns", "224.0.0.251", "red"]), "no single host"),
                (&create(&["--subnet", "10.60.0.0/24", "--dns", "10.60.0.1", "red"]), "ask itself"),
                (&resolvers, "9 upstream resolvers are too many"),
                (&create(&["--dns-domain", "corp.example", "red"]), "DOMAIN=ADDR"),
                (&create(&["--dns-domain", "web.red.mesh.internal=10.9.0.1", "red"]), "the mesh's own"),
                (&dns("--dns-add", "10.50.0.1"), "ask itself"),
                (&dns("--dns-domain-add", "corp.example=10.9.0.1,10.50.0.1"), "ask itself"),
                (&dns("--dns-domain-rm", "a..b"), "'a..b' is no domain"),
                (&create(&["blue"]), "exists"),
                (&create(&[".red"]), ".red"),
                (&create(&["red/green"]), "red/green"),
                (&["network", "rm", "green"], "green"),
                (&["network", "inspect", "green"], "green"),
            ],
        )
    });
}

#[test]
fn endpoints() {
    scenario("bad endpoints", |lab| {
        let cluster = Cluster::three(lab)?;
        let vm2 = cluster.vm2();
        let (taken, free) = (lab.container("taken")?.target(), lab.container("free")?.target());
        let connect = |options: &[&str]| -> Vec<String> {
            let line = ["network", "connect"].iter().chain(options);
            line.map(|word| (*word).to_owned()).collect()
        };
        cluster.vm1().meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        cluster.vm1().meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        vm2.meshctl(&["network", "connect", "--ip", "10.50.0.50", "--name", "first", "blue", &taken]).ok()?;
        // Six usable addresses: the gateway's, and five VIPs.
        cluster.vm1().meshctl(&["network", "create", "--subnet", "10.60.0.0/29", "tiny"]).ok()?;
        for name in ["a", "b", "c", "d", "e"] {
            cluster.vm1().meshctl(&["service", "create", "--name", name, "--network", "tiny"]).ok()?;
        }
        vm2.shell("mkfifo /run/lab/pipe; ln -s /run/netns/none /run/lab/dangling").ok()?;
        let commands = [
            (connect(&["--ip", "10.99.0.5", "blue", &free]), "outside"),
            (connect(&["--ip", "10.50.0.50", "blue", &free]), "taken"),
            (connect(&["--ip", "10.50.0.1", "blue", &free]), "taken"),
            (connect(&["--ip", "10.50.0", "blue", &free]), "10.50.0"),
            (connect(&["--name", "first", "blue", &free]), "exists"),
            (connect(&["--name", "WEB", "blue", &free]), "service 'WEB' exists"),
            (connect(&["--service", "nothing", "blue", &free]), "nothing"),
            (connect(&["--ifname", "an-interface-name-too-long", "blue", &free]), "interface"),
            (connect(&["--ifname", "lo", "blue", &free]), "lo"),
            (connect(&["green", &free]), "green"),
            (connect(&["blue", &taken]), "already"),
            (connect(&["blue", "netns:/run/netns/nothing"]), "/run/netns/nothing"),
            (connect(&["blue", "netns:/etc/hostname"]), "/etc/hostname"),
            (connect(&["blue", "pid:4194300"]), "4194300"),
            (connect(&["blue", "balloon:red"]), "balloon"),
            (connect(&["blue", "netns:/proc/1/ns/mnt"]), "is no network namespace"),
            (connect(&["blue", "netns:/run/lab"]), "is no network namespace"),
            (connect(&["blue", "netns:/run/lab/pipe"]), "is no network namespace"),
            (connect(&["blue", &format!("netns:{}", vm2.socket())]), "is no network namespace"),
            (connect(&["blue", "netns:/run/lab/dangling"]), "there is no network namespace at"),
            (connect(&["blue", "netns:/proc/self/ns/net"]), "the host's own network namespace"),
            (
                connect(&["tiny", &free]),
                "network 'tiny' has no free address left in 10.60.0.0/29: add a subnet",
            ),
            (vec!["network".into(), "rm".into(), "blue".into()], "in use"),
        ];
        let lines: Vec<(Vec<&str>, &str)> =
            commands.iter().map(|(line, text)| (line.iter().map(String::as_str).collect(), *text)).collect();
        let lines: Vec<(&[&str], &str)> = lines.iter().map(|(line, text)| (line.as_slice(), *text)).collect();
        // A worker's socket answers for its own endpoints; the network is the manager's.
        refused(&cluster, vm2, &lines[..lines.len() - 1])?;
        refused(&cluster, cluster.vm1(), &lines[lines.len() - 1..])
    });
}

#[test]
fn services() {
    scenario("bad services", |lab| {
        let cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let web = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
        vm1.meshctl(&web).ok()?;
        let _replica = Replica::start(
            cluster.vm2(),
            ReplicaSpec { name: "web1", network: Some("blue"), service: Some("web"), port: 80 },
        )?;
        cluster.endpoints("web", "1/1")?;
        let create = |options: &[&'static str]| {
            [&["service", "create", "--name", "other", "--network", "blue"], options].concat()
        };
        refused(
            &cluster,
            vm1,
            &[
                (&web, "exists"),
                (&["service", "create", "--name", "other", "--network", "green"], "green"),
                (&["service", "create", "--name", "o/ther", "--network", "blue"], "o/ther"),
                (&create(&["--publish", "80:80"]), "published already"),
                (&create(&["--publish", "70000:80"]), "70000"),
                (&create(&["--publish", "0:80"]), "port"),
                (&create(&["--publish", "8080:80/sctp"]), "sctp"),
                (&create(&["--publish", "4789:53/udp"]), "VXLAN"),
                (&create(&["--publish", "9090-9092:80-81"]), "9090-9092"),
                (&create(&["--publish", "8081:80", "--publish", "8081:81"]), "twice"),
                (&create(&["--publish", "banana"]), "banana"),
                (&create(&["--health-tcp"]), "port"),
                (&create(&["--health-tcp", "--health-port", "-1"]), "1 to 65535"),
                (&create(&["--health-tcp", "--health-port", "80", "--health-fall", "0"]), "1 or more"),
                (&["network", "rm", "blue"], "in use"),
                (&["service", "rm", "nothing"], "nothing"),
                (&["service", "ps", "nothing"], "nothing"),
                (&["service", "update", "--publish-rm", "81", "web"], "81"),
            ],
        )?;
        // An address that no node has yet: some have theirs only when another host fails.
        let nowhere = vm1.meshctl(&create(&["--publish", "192.0.2.9:8090:80"]));
        nowhere.ok()?;
        ensure!(nowhere.stderr.contains("no node that answers has the address 192.0.2.9"), "{nowhere:?}");
        let here = vm1.meshctl(&["service", "update", "--publish-add", "10.77.0.12:8091:80", "other"]);
        here.ok()?;
        ensure!(!here.stderr.contains("no node"), "{here:?}");
        Ok(())
    });
}

/// A port that something on a host listens on already, on the manager and on a worker.
#[test]
fn ports_that_hosts_use() {
    scenario("used ports", |lab| {
        let cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let mut used = Vec::new();
        for (host, port) in [(cluster.vm1(), 8081), (cluster.vm2(), 8082)] {
            used.push(Nginx::new(host, &format!("own-{port}"), port, "of the host")?.start(host)?);
        }
        let create =
            |publish| ["service", "create", "--name", "web", "--network", "blue", "--publish", publish];
        refused(
            &cluster,
            cluster.vm1(),
            &[(&create("8081:80"), "8081"), (&create("8082:80"), "8082"), (&create("7443:80"), "7443")],
        )?;
        // The other hosts have let go of them.
        used.push(Nginx::new(cluster.vm3(), "late", 8081, "of vm3")?.start(cluster.vm3())?);
        let udp = [
            "python3",
            "-c",
            "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 8084)); print(flush=True); time.sleep(600)",
        ];
        used.push(cluster.vm2().spawn(&udp)?);
        within(CONVERGES, "a UDP port is used", || {
            ensure!(cluster.vm2().output(&["ss", "-Hlun", "sport = :8084"]).ok()?.contains("8084"));
            Ok(())
        })?;
        refused(
            &cluster,
            cluster.vm1(),
            &[
                (&create("8084:53/udp"), "8084/udp"),
                (&create("published=8082,target=80,protocol=http"), "8082"),
            ],
        )?;
        // The ports are as they were: free ones are still to be had, the host's own are served.
        cluster.vm1().meshctl(&create("8083:80")).ok()?;
        ensure!(cluster.vm3().curl(&cluster.urls(8082)[1])? == "of the host");
        // A port of hosts with a replica: refused where it is used when the replica comes.
        let on_hosts = ["service", "update", "--publish-add", "published=8082,target=80,mode=host", "web"];
        cluster.vm1().meshctl(&on_hosts).ok()?;
        let target = lab.container("c")?.target();
        let connect: &[&str] = &["network", "connect", "--service", "web", "blue", &target];
        refused(&cluster, cluster.vm2(), &[(connect, "8082")])?;
        cluster.vm3().meshctl(connect).ok()?;
        // From all addresses to one, and to the proxy: its own reservation is in nobody's way.
        let narrower = ["--publish-rm", "8083", "--publish-add", "10.77.0.12:8083:80"];
        cluster.vm1().meshctl(&[&["service", "update"], &narrower[..], &["web"]].concat()).ok()?;
        let to_http = ["--publish-rm", "8083", "--publish-add", "published=8083,target=80,protocol=http"];
        cluster.vm1().meshctl(&[&["service", "update"], &to_http[..], &["web"]].concat()).ok()?;
        Ok(())
    });
}

#[test]
fn joining() {
    scenario("bad joins", |lab| {
        let (first, second) = (lab.host("vm1")?.meshd()?, lab.host("vm2")?.meshd()?);
        let (vm1, vm2) = (first.host(), second.host());
        vm2.meshctl(&["network", "ls"]).refused("cluster init")?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", "10.77.0.99"]).refused("10.77.0.99")?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", "banana"]).refused("banana")?;
        for (port, text) in [("0", "1 to 65535"), ("-1", "1 to 65535"), ("65536", "65535"), ("7443", "7443")]
        {
            let init = ["cluster", "init", "--advertise-addr", "10.77.0.11", "--data-path-port", port];
            vm1.meshctl(&init).refused(text)?;
        }
        for (pools, text) in [
            (&["--default-addr-pool", "banana"][..], "banana"),
            (&["--default-addr-pool", "10.9.0.1/16"], "10.9.0.0/16"),
            (&["--default-addr-pool", "10.9.0.0/16", "--default-addr-pool", "10.9.1.0/24"], "given as well"),
            (&["--default-addr-pool", "10.9.0.0/16", "--node-addr-pool", "10.0.0.0/8"], "--node-addr-pool"),
        ] {
            let init = [&["cluster", "init", "--advertise-addr", "10.77.0.11"], pools].concat();
            vm1.meshctl(&init).refused(text)?;
        }
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).refused("cluster")?;

        let before = vm2.kernel_objects()?;
        let manager = format!("{}:7443", vm1.ip());
        let join = |token: &str, manager: &str| vm2.meshctl(&["cluster", "join", "--token", token, manager]);
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
        let last = token.len() - 1;
        let wrong = format!("{}{}", &token[..last], if token.ends_with('0') { '1' } else { '0' });
        join("banana", &manager).refused("token")?;
        join(&wrong, &manager).refused("token")?;
        join(&token, &format!("{}:7444", vm1.ip())).refused("7444")?;
        join(&token, "banana").refused("banana")?;
        let rotated = vm1.meshctl(&["-q", "cluster", "join-token", "worker", "--rotate"]).ok()?;
        ensure!(rotated != token);
        join(&token, &manager).refused("token")?;
        vm1.meshctl(&["cluster", "join-token", "worker", "--ttl", "1ms"]).refused("too short")?;
        let brief =
            vm1.meshctl(&["-q", "cluster", "join-token", "worker", "--rotate", "--ttl", "1s"]).ok()?;
        // The clock is all there is to wait for: a try that comes too early joins.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        join(&brief, &manager).refused("expired")?;

        vm2.meshctl(&["node", "ls"]).refused("cluster init")?;
        let nodes = vm1.meshctl(&["-o", "json", "node", "ls"]).json()?;
        ensure!(nodes.as_array().is_some_and(|nodes| nodes.len() == 1), "{nodes}");
        ensure!(vm2.kernel_objects()? == before, "a refused join left kernel objects");
        let last = vm1.meshctl(&["-q", "cluster", "join-token", "worker", "--rotate"]).ok()?;
        join(&last, &manager).ok()?;
        join(&last, &manager).refused("cluster")
    });
}

/// A disk that was copied to another host: the copy says what it is, and its origin goes on.
#[test]
fn a_copied_data_directory() {
    scenario("copied disk", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm3, other) = (cluster.vm3().clone(), lab.host("vm4")?);
        let copy = other.file(other.data_dir());
        let parent = copy.parent().map(std::path::Path::to_owned).unwrap_or_default();
        std::fs::create_dir_all(&parent)?;
        let copied =
            std::process::Command::new("cp").arg("-a").arg(vm3.file(vm3.data_dir())).arg(&copy).status()?;
        ensure!(copied.success(), "cp: {copied}");
        let before = cluster.list(&["node", "ls"])?;
        let mut daemon = other.meshd()?;
        let says = |what: &str| {
            within(CONVERGES, "the copy says what it is", || {
                let log = std::fs::read_to_string(other.file(other.log_path()))?;
                ensure!(log.contains(what), "{log}");
                let status = other.meshctl(&["status"]);
                ensure!(status.code == Some(1) && status.stdout.contains(what), "{status:?}");
                Ok(())
            })
        };
        says("a copy of another host's disk")?;
        let goes_on = |network: &str, count: usize| {
            cluster.vm1().meshctl(&["network", "create", network]).ok()?;
            within(CONVERGES, "its origin hears of changes", || {
                ensure!(vm3.meshctl(&["-q", "network", "ls"]).ok()?.lines().count() == count);
                ensure!(cluster.list(&["node", "ls"])? == before);
                Ok(())
            })
        };
        goes_on("blue", 1)?;

        // With the address as well, it is told by the manager that the node is connected already.
        daemon.terminate()?;
        // It must not answer who asks for the address of the other on the link.
        other.shell("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2").ok()?;
        other.shell(&format!("ip address add {}/32 dev lo", vm3.ip())).ok()?;
        let known = std::fs::read_to_string(vm3.file(vm3.log_path()))?.len();
        daemon.start()?;
        says("another host, at ")?;
        goes_on("red", 2)?;
        let log = std::fs::read_to_string(cluster.vm1().file(cluster.vm1().log_path()))?;
        let told = log.matches("two hosts say that they are one node").count();
        ensure!(told == 1, "the manager says it, and once: {told}");
        let log = std::fs::read_to_string(vm3.file(vm3.log_path()))?;
        ensure!(!log[known..].contains("no connection to a manager"), "its stream never ended: {log}");

        // One that starts again at once is no other host.
        daemon.kill()?;
        cluster.daemons[2].restart()?;
        within(CONVERGES, "the node is back", || vm3.meshctl(&["status"]).ok().map(drop))?;
        let log = std::fs::read_to_string(vm3.file(vm3.log_path()))?;
        ensure!(!log.contains("another host, at "), "{log}");
        Ok(())
    });
}

/// The manager's own port is taken: the daemon stays, and the command does once the port is free.
#[test]
fn the_port_of_the_manager_is_used() {
    scenario("manager's port", |lab| {
        let daemon = lab.host("vm1")?.meshd()?;
        let vm1 = daemon.host();
        let mut own = Nginx::new(vm1, "own", 7443, "of the host")?.start(vm1)?;
        let init = ["cluster", "init", "--advertise-addr", &vm1.ip().to_string()];
        vm1.meshctl(&init).refused("7443")?;
        vm1.meshctl(&["node", "ls"]).refused("cluster init")?;
        own.kill()?;
        vm1.meshctl(&init).ok()?;
        ensure!(vm1.meshctl(&["node", "ls"]).ok()?.contains("Leader"));
        Ok(())
    });
}

/// A worker answers for itself; other changes name the manager.
#[test]
fn changes_on_a_worker() {
    scenario("changes on a worker", |lab| {
        let cluster = Cluster::three(lab)?;
        let manager = cluster.vm1().ip().to_string();
        refused(
            &cluster,
            cluster.vm2(),
            &[
                (&["network", "create", "blue"], &manager),
                (&["service", "create", "--name", "web"], &manager),
                (&["cluster", "join-token", "worker"], &manager),
            ],
        )
    });
}

/// A meshd that can't do its work says so and ends.
#[test]
fn missing_capability() {
    scenario("capabilities", |lab| {
        let host = lab.host("vm1")?;
        let meshd = mesh_tests::host::binary("meshd")?;
        let before = host.kernel_objects()?;
        for capability in ["net_admin", "sys_admin", "sys_ptrace", "net_bind_service"] {
            let without = format!("-{capability}");
            let bounding = format!("--bounding-set={without}");
            let directories = ["--data-dir", "/run/lab/bare/data", "--run-dir", "/run/lab/bare/run"];
            let mut line =
                vec!["timeout", "10", "setpriv", &bounding, "--inh-caps=-all", &meshd, "--name", "vm1"];
            line.extend(directories);
            let ended = host.output(&line);
            ensure!(ended.code == Some(1), "{ended:?}");
            let said = ended.stderr.trim_end().to_lowercase();
            ensure!(said.lines().count() == 1 && said.contains(&format!("cap_{capability}")), "{ended:?}");
        }
        ensure!(host.kernel_objects()? == before);
        Ok(())
    });
}

/// A kernel without IPv6, shown by a /proc/sys/net that lacks its settings.
#[test]
fn missing_kernel_feature() {
    scenario("kernel feature", |lab| {
        let host = lab.host("vm1")?;
        let meshd = mesh_tests::host::binary("meshd")?;
        let before = host.kernel_objects()?;
        let lacking = "set -e; settings=$(mktemp --directory --tmpdir=/run); mount --bind $settings /proc/sys/net; \
            exec timeout 10 \"$0\" --name vm1 --data-dir /run/lab/bare/data --run-dir /run/lab/bare/run";
        let private = ["unshare", "--mount", "--propagation", "private"];
        let ended = host.output(&[&private[..], &["bash", "-c", lacking, &meshd]].concat());
        ended.refused("IPv6 in the kernel is missing")?;
        ended.refused("remove ipv6.disable=1")?;
        ensure!(host.kernel_objects()? == before);
        ensure!(!host.file("/run/lab/bare").exists(), "a meshd that can't run made its directories");
        Ok(())
    });
}
