//! Disks that are full, files that are torn, directories that are somebody else's.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Background, CONVERGES, Cluster, Host, Lab, Meshd, Namespace, scenario, within};
use std::fs;

/// Gives a host a data directory with this much room, before its `meshd` starts.
fn small_disk(host: &Host, size: &str) -> Result<()> {
    let data = host.data_dir();
    host.shell(&format!("mkdir -p {data} && mount -t tmpfs -o mode=0700,size={size} tmpfs {data}")).ok()?;
    Ok(())
}

/// Takes all the room that is left there.
fn fill(host: &Host) -> Result<()> {
    let filler = format!("{}/filler", host.data_dir());
    let filled = host.shell(&format!("head -c 1G /dev/zero >>{filler}"));
    ensure!(filled.stderr.contains("No space left"), "{filled:?}");
    Ok(())
}

fn make_room(host: &Host) -> Result<()> {
    Ok(fs::remove_file(host.file(host.data_dir()).join("filler"))?)
}

fn log_says(host: &Host, text: &str) -> Result<()> {
    within(CONVERGES, &format!("the log says `{text}`"), || {
        let log = fs::read_to_string(host.file(host.log_path()))?;
        log.contains(text).then_some(()).with_context(|| format!("not in\n{log}"))
    })
}

/// The change that finds no room is refused and says why; the daemon lives on, also through a restart, and takes
/// changes again once there is room.
#[test]
fn a_full_disk() {
    scenario("full disk", |lab| {
        let host = lab.host("vm1")?;
        small_disk(&host, "16m")?;
        let mut daemon = host.meshd()?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        host.meshctl(&["network", "create", "before"]).ok()?;
        let networks = || host.meshctl(&["network", "ls"]).ok();
        let create = |name: &str| host.meshctl(&["network", "create", name]);

        fill(&host)?;
        let mut created = Vec::new();
        // The store's file has some room of its own.
        let refused = (0..2000).map(|number| format!("n{number}")).find_map(|name| {
            let made = create(&name);
            if made.code == Some(0) {
                created.push(name);
                return None;
            }
            Some(made)
        });
        let refused = refused.context("2000 networks found room on a full disk")?;
        refused.refused("no space left")?;
        create("during").refused("no space left")?;
        ensure!(networks()?.contains("before"));

        daemon.restart()?;
        within(CONVERGES, "it is ready on the full disk", || host.meshctl(&["status"]).ok())?;
        let listed = networks()?;
        ensure!(created.iter().all(|name| listed.contains(name.as_str())), "{created:?} in {listed}");
        ensure!(!listed.contains("during"), "what was refused is there: {listed}");
        create("during").refused("no space left")?;

        make_room(&host)?;
        create("after").ok()?;
        daemon.restart()?;
        within(CONVERGES, "it knows what it took since", || {
            ensure!(networks()?.contains("after"));
            Ok(())
        })
    });
}

/// The same with etcd, which ends when it can't write.
#[test]
fn a_full_disk_under_etcd() {
    scenario("full disk, etcd", |lab| {
        let host = lab.host("vm1")?;
        // 64 MB are etcd's own from the start.
        small_disk(&host, "80m")?;
        let mut daemon = host.meshd()?;
        let address = host.ip().to_string();
        host.meshctl(&["cluster", "init", "--advertise-addr", &address, "--store", "etcd"]).ok()?;
        host.meshctl(&["network", "create", "before"]).ok()?;
        fill(&host)?;
        // Each with a name of its own: one that was on its way when etcd ended may be made or not, and it says so.
        let (mut number, mut created) = (0, Vec::new());
        let mut create = || {
            number += 1;
            let made = host.meshctl(&["network", "create", &format!("n{number}")]);
            if made.code == Some(0) {
                created.push(format!("n{number}"));
            }
            made
        };
        let mut says_why = || {
            // A change that is made just before etcd ends is waited for until it is told of.
            within(2 * CONVERGES, "it says why it takes no changes", || {
                // What etcd gives up on the way is room again.
                fill(&host)?;
                create().refused("no space left")?;
                let status = host.meshctl(&["status"]);
                let said = status.stdout.to_lowercase();
                ensure!(status.code == Some(1) && said.contains("no space left"), "{status:?}");
                Ok(())
            })
        };
        says_why()?;
        ensure!(host.meshctl(&["network", "ls"]).ok()?.contains("before"));
        daemon.restart()?;
        says_why()?;
        make_room(&host)?;
        within(CONVERGES, "changes are taken again", || host.meshctl(&["network", "create", "after"]).ok())?;
        let listed = host.meshctl(&["network", "ls"]).ok()?;
        ensure!(created.iter().all(|name| listed.contains(name.as_str())), "{created:?} in {listed}");
        Ok(())
    })
}

/// A worker without room goes on, says what that means for a restart, and writes again once there is room.
#[test]
fn a_full_disk_of_a_worker() {
    scenario("full disk of a worker", |lab| {
        let mut daemons = vec![lab.host("vm1")?.meshd()?];
        let host = lab.host("vm2")?;
        small_disk(&host, "16m")?;
        daemons.push(host.meshd()?);
        daemons.push(lab.host("vm3")?.meshd()?);
        let cluster = Cluster::of(daemons)?;
        fill(&host)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let _process = host.run(&["--network", "blue", "--name", "late"], &["sleep", "inf"])?;
        within(CONVERGES, "it is attached", || cluster.address("late"))?;
        let complains = |wanted: bool| {
            within(CONVERGES, "status says what is wrong, as long as it is", || {
                let said = host.meshctl(&["status"]).stdout;
                ensure!(said.contains("the snapshot can't be written") == wanted, "{said}");
                Ok(())
            })
        };
        complains(true)?;
        make_room(&host)?;
        complains(false)?;
        ensure!(fs::read_to_string(host.file(host.data_dir()).join("snapshot.json"))?.contains("\"late\""));
        Ok(())
    });
}

/// A worker without room for what a manager keeps can't be one: that is said at once, and the secrets that there was room
/// for don't stay. With room it becomes one.
#[test]
fn a_disk_too_full_for_a_manager() {
    scenario("too full for a manager", |lab| {
        let mut daemons = vec![lab.host("vm1")?.meshd()?];
        let host = lab.host("vm2")?;
        // 64 MB are etcd's own from the start.
        small_disk(&host, "128m")?;
        daemons.push(host.meshd()?);
        daemons.push(lab.host("vm3")?.meshd()?);
        let cluster = Cluster::of(daemons)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["cluster", "migrate", "--to", "etcd"]).ok()?;
        let left = || {
            let kept = ["store.key", "etcd"].map(|name| host.file(host.data_dir()).join(name).exists());
            ensure!(kept == [false, false], "secrets are left: {kept:?}");
            Ok(())
        };
        // For the first of the files only, the first two, and so on.
        for room in ["4K", "8K", "12K"] {
            fill(&host)?;
            host.shell(&format!("truncate --size=-{room} {}/filler", host.data_dir())).ok()?;
            vm1.meshctl(&["node", "promote", "vm2"]).refused("no space left")?;
            within(CONVERGES, "no secrets are left", left)?;
            vm1.meshctl(&["network", "create", &format!("after-{room}").to_lowercase()]).ok()?;
        }
        make_room(&host)?;
        vm1.meshctl(&["node", "promote", "vm2"]).ok()?;
        Ok(())
    });
}

/// `cluster init` without room for a cluster: refused, nothing of it stays, and it works once there is room.
#[test]
fn a_disk_too_full_to_begin() {
    scenario("too full", |lab| {
        let host = lab.host("vm1")?;
        small_disk(&host, "16m")?;
        let _daemon = host.meshd()?;
        fill(&host)?;
        let init = ["cluster", "init", "--advertise-addr", &host.ip().to_string()];
        let refused = |line: &[&str]| -> Result<()> {
            host.meshctl(line).refused("no space left")?;
            host.meshctl(&["node", "ls"]).refused("cluster init")?;
            let left = host.shell(&format!("ls {}", host.data_dir())).ok()?;
            ensure!(left == "filler", "{left}");
            Ok(())
        };
        refused(&init)?;
        // Room for the first of its files only.
        host.shell(&format!("truncate --size=-4K {}/filler", host.data_dir())).ok()?;
        refused(&[&init[..], &["--store", "etcd"]].concat())?;
        make_room(&host)?;
        host.meshctl(&init).ok()?;
        Ok(())
    });
}

/// A worker with a container on it, and a container elsewhere to talk to.
struct Talk {
    worker: Meshd,
    manager: Meshd,
    container: Namespace,
    address: String,
    _processes: Vec<Background>,
}

impl Talk {
    fn new(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let run =
            |host: &Host, name: &str| host.run(&["--network", "blue", "--name", name], &["sleep", "inf"]);
        let processes = vec![run(cluster.vm2(), "near")?, run(cluster.vm3(), "far")?];
        let container = cluster.vm2().of_process("near", processes[0].child()?);
        within(CONVERGES, "both are attached", || cluster.address("near").and(cluster.address("far")))?;
        let address = cluster.address("far")?;
        let mut daemons = cluster.daemons.into_iter();
        let manager = daemons.next().context("vm1")?;
        let worker = daemons.next().context("vm2")?;
        // vm3's daemon ends here: its part of the kernel stays.
        let talk = Self { worker, manager, container, address, _processes: processes };
        within(CONVERGES, "they talk", || talk.ping())?;
        Ok(talk)
    }

    fn ping(&self) -> Result<()> {
        self.container.output(&["ping", "-c1", "-W1", &self.address]).ok()?;
        Ok(())
    }

    fn resolve(&self) -> Result<()> {
        ensure!(self.container.dig(&["far"])? == [self.address.as_str()]);
        Ok(())
    }

    /// Overwrites files of the worker's data directory while its daemon is dead, and starts that again.
    fn tear(&mut self, files: &[&str]) -> Result<()> {
        self.worker.kill()?;
        for file in files {
            let path = self.worker.host().file(self.worker.host().data_dir()).join(file);
            let whole = fs::read(&path)?;
            fs::write(&path, &whole[..whole.len() / 2])?;
        }
        self.worker.start()
    }
}

/// A torn snapshot and no manager: the copy is used, and names are answered from it. Both torn: the log says so, the
/// kernel's state is left alone, and the manager's snapshot replaces them when it is back.
#[test]
fn torn_snapshots() {
    scenario("torn snapshots", |lab| {
        let mut talk = Talk::new(lab)?;
        let host = talk.worker.host().clone();
        within(CONVERGES, "the snapshot is on disk", || {
            let copy = fs::read_to_string(host.file(host.data_dir()).join("snapshot.json.copy"))?;
            ensure!(copy.contains("\"far\"") && copy.contains("\"near\""));
            Ok(())
        })?;
        talk.manager.kill()?;

        talk.tear(&["snapshot.json"])?;
        log_says(&host, "using the copy of the last snapshot")?;
        within(CONVERGES, "names are answered", || talk.resolve())?;
        talk.ping()?;

        let before = host.kernel_objects()?;
        talk.tear(&["snapshot.json", "snapshot.json.copy"])?;
        log_says(&host, "no snapshot on disk is whole")?;
        talk.ping()?;
        ensure!(host.kernel_objects()? == before, "the kernel's state did not stay");

        talk.manager.start()?;
        within(CONVERGES, "names are answered", || talk.resolve())?;
        talk.ping()
    });
}

/// A second `meshd` on one data directory is refused; so is a directory that can't be written to.
#[test]
fn a_data_directory_has_one_owner() {
    scenario("data directory", |lab| {
        let daemon = lab.host("vm1")?.meshd()?;
        let host = daemon.host();
        let meshd = mesh_tests::host::binary("meshd")?;
        let start = |data: &str| {
            let line =
                ["timeout", "10", &meshd, "--name", "vm1", "--run-dir", "/run/lab/other", "--data-dir", data];
            host.output(&line)
        };
        start(&host.data_dir()).refused("another meshd uses")?;
        let read_only = "/run/lab/read-only";
        host.shell(&format!("mkdir {read_only} && mount -t tmpfs -o ro tmpfs {read_only}")).ok()?;
        start(read_only).refused("cannot write to")?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        Ok(())
    });
}
