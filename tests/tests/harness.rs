//! The harness itself: no meshd, only labs.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Lab, Load, Nginx, Ping, Queries, scenario, within};
use nix::sys::signal::Signal;

/// Set for the child of [`dead_owner_leaves_nothing`].
const ORPHAN: &str = "MESH_TESTS_ORPHAN";

#[test]
fn machines_reach_each_other() {
    scenario("machines", |lab| {
        let hosts = [lab.host("vm1")?, lab.host("vm2")?, lab.host("vm3")?];
        let client = lab.client("client")?;
        for host in &hosts {
            for to in hosts.iter().map(|host| host.ip()).chain([client.ip()]) {
                host.output(&["ping", "-c1", "-W2", &to.to_string()]).ok()?;
            }
            for to in hosts.iter().map(|host| host.ip6()).chain([client.ip6()]) {
                host.output(&["ping", "-c1", "-W2", &to.to_string()]).ok()?;
            }
            client.output(&["ping", "-c1", "-W2", &host.ip().to_string()]).ok()?;
        }
        Ok(())
    });
}

/// Those that have met it go on to send to the address that they know.
#[test]
fn the_router_keeps_its_hardware_address_whoever_joins() {
    scenario("router", |lab| {
        let vm1 = lab.host("vm1")?;
        let ping = || vm1.output(&["ping", "-n", "-c1", "-W2", "10.77.0.1"]).ok().map(drop);
        // A bridge without an address of its own has that of the first, then that of the second.
        lab.client("low")?;
        lab.switch("ip link set low address 02:00:00:00:00:02")?;
        ping()?;
        lab.client("lower")?;
        lab.switch("ip link set lower address 02:00:00:00:00:01")?;
        ping()
    });
}

/// A server that is silent for a while, and one that ends: what waited is late or lost, and counted as such.
#[test]
fn queries_without_an_answer_are_counted() {
    scenario("queries", |lab| {
        let (client, server) = (lab.client("client")?, "10.77.0.1".parse()?);
        let mut resolver = lab.resolver_with(&["--address=/example.test/192.0.2.9"])?;
        within(Duration::from_secs(10), "the server answers", || {
            ensure!(client.dig(&["@10.77.0.1", "example.test"])? == ["192.0.2.9"]);
            Ok(())
        })?;
        let queries = Queries::start(&client, server, 100, &["n{}.example.test", "example.test", "nowhere"])?;
        let more_are_sent = |from: usize| {
            within(Duration::from_secs(30), "more are sent", || {
                ensure!(queries.asked() > from + 100, "{}", queries.asked() - from);
                Ok(())
            })
        };
        queries.go_on(100)?;
        resolver.signal(Signal::SIGSTOP)?;
        more_are_sent(queries.asked())?;
        resolver.resume()?;
        queries.go_on(100)?;
        resolver.kill()?;
        more_are_sent(queries.asked())?;
        let tally = queries.stop()?;
        let right: Vec<_> =
            tally.asked.iter().filter(|asked| asked.found(&["192.0.2.9".parse().unwrap()])).collect();
        ensure!(
            right.len() >= 130 && right.iter().all(|asked| asked.name.ends_with("example.test")),
            "{tally}"
        );
        ensure!(tally.all_right(|asked| asked.name != "nowhere").is_err(), "{tally}");
        ensure!(tally.slowest() > Duration::from_millis(500), "{tally}");
        let lost = tally.lost().len();
        ensure!((90..=300).contains(&lost) && tally.none_lost().is_err() && tally.strays == 0, "{tally}");
        Ok(())
    });
}

#[test]
fn nginx_tells_who_asked() {
    scenario("nginx", |lab| {
        let (host, client) = (lab.host("vm1")?, lab.client("client")?);
        let web = Nginx::new(&host, "web", 8080, "page of web")?;
        let _running = web.start(&host)?;
        let url = format!("http://{}:8080/", host.ip());
        ensure!(client.curl(&url)? == "page of web");
        ensure!(client.answers(&url, 5)?.get("page of web") == Some(&5));
        let logged = web.requests()?;
        ensure!(
            logged.len() == 6 && logged.iter().all(|line| line.client == client.ip().to_string()),
            "{logged:?}"
        );

        let health = format!("{url}health");
        client.curl(&health)?;
        web.set_healthy(false)?;
        ensure!(
            client.output(&["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", &health]).ok()? == "503"
        );
        ensure!(web.requests()?.len() == 6, "health checks are not logged");
        Ok(())
    });
}

#[test]
fn containers_have_their_own_resolver() {
    scenario("resolver", |lab| {
        let (_resolver, host, container) = (lab.resolver()?, lab.host("vm1")?, lab.container("c1")?);
        within(Duration::from_secs(10), "the lab's resolver answers", || {
            ensure!(host.dig(&["www.example.test"])? == ["192.0.2.1", "example.test."]);
            Ok(())
        })?;
        container.resolver("10.9.8.7")?;
        ensure!(container.shell("cat /etc/resolv.conf").ok()?.contains("nameserver 10.9.8.7"));
        ensure!(host.shell("cat /etc/resolv.conf").ok()? == "nameserver 10.77.0.1");
        Ok(())
    });
}

#[test]
fn probes_count_what_is_lost() {
    scenario("probes", |lab| {
        let (host, client) = (lab.host("vm1")?, lab.client("client")?);
        let web = Nginx::new(&host, "web", 80, "web")?;
        let mut running = web.start(&host)?;
        let (ping, load) = (
            Ping::start(&client, &host.ip().to_string())?,
            Load::start(&client, &format!("http://{}/", host.ip()))?,
        );
        load.go_on(10)?;
        ping.go_on(10)?;
        let calm = ping.stop()?;
        ensure!(calm.lost == 0 && calm.received >= 10, "{calm:?}");

        let ping = Ping::start(&client, &host.ip().to_string())?;
        host.output(&["ip", "link", "set", "eth0", "down"]).ok()?;
        host.output(&["sleep", "0.3"]).ok()?;
        host.output(&["ip", "link", "set", "eth0", "up"]).ok()?;
        load.go_on(3)?;
        ping.go_on(1)?;
        let cut = ping.stop()?;
        ensure!(cut.lost > 0, "{cut:?}");

        running.kill()?;
        load.go_on(3)?;
        let answers = load.stop()?;
        ensure!(
            answers["web"] >= 10 && answers.keys().any(|answer| answer.starts_with("curl: (7)")),
            "{answers:?}"
        );
        Ok(())
    });
}

#[test]
fn background_processes_take_signals_and_keep_their_status() {
    scenario("processes", |lab| {
        let host = lab.host("vm1")?;
        let mut process =
            host.spawn(&["bash", "-c", "trap 'exit 7' TERM; while :; do read -t 0.05 < <(:); done"])?;
        // The id is the process's own, once nsenter has become it.
        within(Duration::from_secs(10), "the process runs", || {
            let looked = fs::read_to_string(format!("/proc/{}/cmdline", process.pid()))?;
            ensure!(looked.starts_with("bash"), "{looked}");
            Ok(())
        })?;
        // bash may not have set its trap yet: then SIGTERM ends it all the same, with no exit code.
        let status = process.terminate(Duration::from_secs(10))?;
        ensure!(!status.success(), "{status}");
        ensure!(!fs::exists(format!("/proc/{}", process.pid()))?);

        let mut process = host.spawn(&["sleep", "1000"])?;
        process.signal(Signal::SIGKILL)?;
        process.wait(Duration::from_secs(10))?;
        Ok(())
    });
}

#[test]
fn labs_run_side_by_side() -> Result<()> {
    let (one, other) = (Lab::new("one")?, Lab::new("other")?);
    for (lab, page) in [(&one, "in one"), (&other, "in the other")] {
        let (host, client) = (lab.host("vm1")?, lab.client("client")?);
        let web = Nginx::new(&host, "web", 80, page)?;
        let running = web.start(&host)?;
        ensure!(client.curl(&format!("http://{}/", host.ip()))? == page);
        // Left running: the next lab has the same names and addresses.
        std::mem::forget(running);
    }
    let other_host = other.host("vm2")?;
    drop(one);
    ensure!(other_host.curl("http://10.77.0.11/")? == "in the other");
    Ok(())
}

#[test]
fn without_privilege_a_lab_says_so() -> Result<()> {
    let test = ["--exact", "orphan_owner", "--nocapture"];
    let mut child = Command::new("setpriv");
    child.args([
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
    ]);
    let copy = env::temp_dir().join(format!("mesh-tests-unprivileged-{}", std::process::id()));
    fs::copy(env::current_exe()?, &copy)?;
    let output = child.arg(&copy).args(test).env(ORPHAN, "1").output();
    fs::remove_file(&copy)?;
    let output = output.context("start setpriv (util-linux)")?;
    ensure!(!output.status.success(), "a lab without root must fail");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("run the tests as root"), "{said}");
    Ok(())
}

#[test]
fn dead_owner_leaves_nothing() -> Result<()> {
    let mut owner = Command::new(env::current_exe()?)
        .args(["--exact", "orphan_owner", "--nocapture"])
        .env(ORPHAN, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = BufReader::new(owner.stdout.take().context("stdout is piped")?);
    let init = stdout
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("lab of ").map(|(_, pid)| pid.to_owned()))
        .context("the owner made no lab")?;

    let namespaces = ["pid", "mnt"].map(|kind| format!("/proc/{init}/ns/{kind}"));
    let namespaces = namespaces.map(|link| fs::read_link(link).unwrap_or_default());
    ensure!(processes_in(&namespaces[0]) >= 2, "init and nginx run in {namespaces:?}");
    owner.kill()?;
    owner.wait()?;
    // A network namespace lives as long as a process in it or a mount of it: with neither processes nor the mount
    // namespace, none is left.
    within(Duration::from_secs(10), "the lab is gone", || {
        let left: usize = namespaces.iter().map(|namespace| processes_in(namespace)).sum();
        ensure!(left == 0, "{left} processes are left in {namespaces:?}");
        Ok(())
    })?;
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains("/run/netns/vm1"), "a mount is left");
    Ok(())
}

/// Not a test of its own: the owner of the lab that [`dead_owner_leaves_nothing`] kills.
#[test]
fn orphan_owner() -> Result<()> {
    if env::var_os(ORPHAN).is_none() {
        return Ok(());
    }
    let lab = Lab::new("orphan")?;
    let host = lab.host("vm1")?;
    let web = Nginx::new(&host, "web", 80, "web")?;
    let _running = web.start(&host)?;
    println!("\nlab of {}", lab.pid());
    host.output(&["sleep", "60"]).ok()?;
    Ok(())
}

/// How many processes are in a PID or mount namespace.
fn processes_in(namespace: &std::path::Path) -> usize {
    let kind = namespace.to_string_lossy().split(':').next().unwrap_or_default().to_owned();
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let links =
        processes.flatten().filter_map(|process| fs::read_link(process.path().join("ns").join(&kind)).ok());
    links.filter(|link| link == namespace).count()
}
