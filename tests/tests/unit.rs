//! The systemd unit: systemd takes it, and what it leaves to meshd is enough.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::host::binary;
use mesh_tests::{CONVERGES, Cluster, Host, Replica, ReplicaSpec, scenario, within};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/meshd.service");
const PROGRAM: &str = "/usr/local/bin/meshd";

#[test]
fn systemd_takes_the_unit() -> Result<()> {
    let unit = fs::read_to_string(UNIT)?;
    ensure!(unit.contains(&format!("ExecStart={PROGRAM}\n")), "{unit}");
    let directory = env::temp_dir().join(format!("meshd-unit-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let file = directory.join("meshd.service");
    // Not installed here.
    fs::write(&file, unit.replace(PROGRAM, &binary("meshd")?))?;
    let verified = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&file).output();
    fs::remove_dir_all(&directory)?;
    let verified = verified.context("systemd-analyze")?;
    let said = String::from_utf8_lossy(&verified.stderr);
    // Of other units of this machine it may say what it wants.
    let of_ours: Vec<_> = said.lines().filter(|line| line.contains("meshd.service")).collect();
    ensure!(verified.status.success() && of_ours.is_empty(), "{said}");
    Ok(())
}

/// The unit's line of capabilities, as `setpriv` has them.
fn bounding_set() -> Result<String> {
    let unit = fs::read_to_string(Path::new(UNIT))?;
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let kept = line.context("no bounding set")?.split(' ').map(|name| {
        let name = name.strip_prefix("CAP_").with_context(|| format!("{name} is no capability"))?;
        Ok(format!(",+{}", name.to_lowercase()))
    });
    Ok(format!("-all{}", kept.collect::<Result<String>>()?))
}

/// Networks, names, published ports, containers of others: with these capabilities and no way to get more.
#[test]
fn the_capabilities_of_the_unit_are_enough() {
    scenario("bounded", |lab| {
        let set = bounding_set()?;
        let bounding = format!("--bounding-set={set}");
        let under = ["setpriv", "--no-new-privs", &bounding, "--"];
        let start = |name| lab.host(name)?.meshd_under(&under);
        let mut cluster = Cluster::of(vec![start("vm1")?, start("vm2")?, start("vm3")?])?;
        let vm1 = cluster.vm1().clone();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "--subnet", "fd50::/64", "blue"])
            .ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
        let http = ["--publish", "published=8080,target=80,protocol=http"];
        let check = ["--health-http", "/"];
        vm1.meshctl(&[&service[..], &http, &check].concat()).ok()?;
        let replica = |host: &Host, name| {
            let spec = ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
            Replica::start(host, spec)
        };
        let replicas = [replica(&vm1, "web1")?, replica(cluster.vm2(), "web2")?];
        // Of a container that has all capabilities, by its process: looking it up takes more than being root.
        let waiting = vm1.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let client = lab.client("client")?;
        for port in [80, 8080] {
            cluster.answer_in_turn(&client, port, &["web1", "web2"])?;
        }
        let container = vm1.of_process("c", waiting.child()?);
        within(CONVERGES, "names are answered", || {
            ensure!(container.dig(&["web"])? == [cluster.vip("web")?.as_str()]);
            Ok(())
        })?;
        cluster.daemons[0].upgrade()?;
        within(CONVERGES, "vm1 is up to date and nothing is degraded", || {
            let status = vm1.meshctl(&["-o", "json", "status"]).json()?;
            ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        for port in [80, 8080] {
            cluster.answer_in_turn(&client, port, &["web1", "web2"])?;
        }
        drop(replicas);
        Ok(())
    });
}
