//! What happens is told, in order and once, wherever one asks.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Background, CONVERGES, Cluster, Host, scenario, within};
use serde_json::Value;
use std::fs::{self, File};
use std::path::PathBuf;

/// `meshctl -o json events` in the background.
struct Follower {
    process: Background,
    output: PathBuf,
}

impl Follower {
    fn start(host: &Host, options: &[&str]) -> Result<Self> {
        let output = host.file(format!("/run/lab/{}/events", host.name()));
        let meshctl = mesh_tests::host::binary("meshctl")?;
        let socket = host.socket();
        let line = [&[&meshctl, "--socket", &socket, "-o", "json", "events"], options].concat();
        let file = File::create(&output)?;
        let process = host.spawn_into(&line, file.try_clone()?.into(), file.into())?;
        Ok(Self { process, output })
    }

    /// All it has printed so far.
    fn events(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.output)?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Those of one kind of record, as `ACTION NAME: DETAIL`, once so many have come.
    fn of(&self, kind: &str, count: usize) -> Result<Vec<String>> {
        within(CONVERGES, &format!("{count} events of kind {kind}"), || {
            let events = self.events()?;
            let texts: Vec<String> = events.iter().filter(|e| e["kind"] == kind).map(text).collect();
            ensure!(texts.len() >= count, "{events:#?}");
            Ok(texts)
        })
    }
}

fn text(event: &Value) -> String {
    let field = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}: {}", field("action"), field("name"), field("detail"))
}

/// A worker's socket tells everything, also what happens around the manager's death; so does the history afterwards.
#[test]
fn everything_is_told_once() {
    scenario("events", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        let revision = vm1.meshctl(&["-o", "json", "status"]).json()?["revision"].to_string();
        let follower = Follower::start(&vm2, &["--since", &revision])?;

        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let target = lab.container("c")?.target();
        let connect = ["network", "connect", "--name", "c", "--service", "web", "blue", &target];
        vm2.meshctl(&connect).ok()?;
        vm1.meshctl(&["endpoint", "drain", "c"]).ok()?;
        follower.of("endpoint", 2)?;

        cluster.daemons[0].kill()?;
        cluster.daemons[0].start()?;
        within(CONVERGES, "a manager answers again", || {
            vm2.meshctl(&["network", "disconnect", "--force", "blue", "c"]).ok()
        })?;
        vm1.meshctl(&["service", "rm", "web"]).ok()?;
        vm1.meshctl(&["network", "rm", "blue"]).ok()?;

        let expected = ["created c: 10.50.0.3 on vm2", "updated c: draining=true (was false)", "removed c: "];
        ensure!(follower.of("endpoint", 3)? == expected, "{:?}", follower.of("endpoint", 3)?);
        ensure!(follower.of("network", 2)? == ["created blue: 10.50.0.0/24", "removed blue: "]);
        let services = follower.of("service", 2)?;
        ensure!(services[0].starts_with("created web: ") && services[0].contains("80"), "{services:?}");
        // Stored nowhere, and told all the same.
        cluster.daemons[2].kill()?;
        within(CONVERGES, "the loss of a node is told", || {
            let nodes = follower.of("node", 1)?;
            ensure!(nodes.iter().any(|text| text.starts_with("updated vm3: status=")), "{nodes:?}");
            Ok(())
        })?;

        // The stored part is the same, in the same order, for who asks the manager later.
        let history = Follower::start(&vm1, &["--since", &revision])?;
        let stored = |follower: &Follower| -> Result<Vec<Value>> {
            let events = follower.events()?;
            Ok(events.into_iter().filter(|e| e["kind"] != "node" && e["kind"] != "cluster").collect())
        };
        within(CONVERGES, "the history is the same", || {
            let (live, later) = (stored(&follower)?, stored(&history)?);
            ensure!(live.len() == 7 && live == later, "{live:#?}\n{later:#?}");
            let order = live.iter().map(|event| event["revision"].as_u64()).collect::<Vec<_>>();
            ensure!(order.is_sorted(), "{order:?}");
            Ok(())
        })
    });
}

/// What can't be told: said in one line. The end of the daemon as well.
#[test]
fn what_cannot_be_told() {
    scenario("no events", |lab| {
        let mut daemon = lab.host("vm1")?.meshd()?;
        let host = daemon.host().clone();
        host.meshctl(&["events"]).refused("cluster init")?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        host.meshctl(&["events", "--since", "0"]).refused("--since 1 or later")?;
        host.meshctl(&["events", "--since", "1000000"]).refused("yet to come")?;
        let mut follower = Follower::start(&host, &[])?;
        // It follows from when it is connected: one of these is told.
        let mut number = 0;
        within(CONVERGES, "it follows", || {
            number += 1;
            host.meshctl(&["network", "create", &format!("n{number}")]).ok()?;
            ensure!(!follower.events()?.is_empty());
            Ok(())
        })?;
        daemon.terminate()?;
        let ended = follower.process.wait(CONVERGES)?;
        ensure!(ended.code() == Some(1), "{ended}");
        let said = fs::read_to_string(&follower.output)?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(last.starts_with("meshctl: ") && last.contains("this meshd ends"), "{said}");
        Ok(())
    });
}
