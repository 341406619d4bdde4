//! A host that can run `meshd`, and the commands of its user.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::lab::Machine;
use crate::partition::Cut;
use crate::probe::within;
use crate::process::{Background, Outcome, resident};

/// How long a daemon may take to open its socket, or to end. Generous: two cores build and test at once.
const DAEMON_DEADLINE: Duration = Duration::from_secs(30);

/// What is in each network's own namespace, by kind. Counters of the load balancing are no elements; what the kernel learns
/// by itself is none of the mesh's.
const OF_NETWORKS: &str = r#"
look() {
  echo '# links'; ip -brief link
  echo '# addresses'; ip -brief address
  echo '# FDB entries'; bridge fdb show | grep -e permanent -e dst
  echo '# neighbours'; ip neigh show nud permanent
  echo '# routes'; ip route show table all; ip -6 route show table all type unicast; ip rule; ip -6 rule
  echo '# nft lines'; nft --stateless list ruleset
}
shopt -s nullglob
for net in "$0"/netns/*; do nsenter --net="$net" bash -c "$(declare -f look); look"; done
echo '# namespaces'; printf '%s\n' "$0"/netns/* /run/netns/*
"#;

/// What a kernel holds: a kind, and its lines in order.
pub type Objects = BTreeMap<String, Vec<String>>;

/// A machine of the cluster, with directories of its own for `meshd`.
#[derive(Debug, Clone)]
pub struct Host {
    machine: Machine,
}

impl Host {
    pub(crate) fn new(machine: Machine) -> Result<Self> {
        let host = Self { machine };
        fs::create_dir_all(host.file(host.run_dir()))?;
        Ok(host)
    }

    /// Starts `meshd` and waits until its socket answers.
    pub fn meshd(&self) -> Result<Meshd> {
        self.meshd_under(&[])
    }

    /// As [`Host::meshd`], started by a command such as `env NAME=VALUE`, now and again after each end.
    pub fn meshd_under(&self, command: &[&str]) -> Result<Meshd> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let (host, program) = (self.clone(), binary("meshd")?);
        let mut meshd = Meshd { host, command, program, versions: 0, process: None };
        meshd.start()?;
        Ok(meshd)
    }

    /// Runs `meshctl` with this host's socket, to its end.
    pub fn meshctl(&self, arguments: &[&str]) -> Outcome {
        let meshctl = match binary("meshctl") {
            Ok(path) => path,
            Err(err) => {
                let command = "meshctl".to_owned();
                return Outcome { command, code: None, stdout: String::new(), stderr: err.to_string() };
            }
        };
        let socket = self.socket();
        let mut line = vec![meshctl.as_str(), "--socket", &socket];
        line.extend(arguments);
        self.output(&line)
    }

    /// Starts `meshctl run OPTIONS -- COMMAND` in the background. Its errors go to [`Host::log_path`].
    pub fn run(&self, options: &[&str], command: &[&str]) -> Result<Background> {
        let meshctl = binary("meshctl")?;
        let socket = self.socket();
        let mut line = vec![meshctl.as_str(), "--socket", &socket, "run"];
        line.extend(options);
        line.push("--");
        line.extend(command);
        self.spawn_into(&line, Stdio::null(), self.log()?)
    }

    /// Links, rules, routes, nftables and kept namespaces, to compare before and after: what may differ without
    /// anything having changed, like counters, is left out.
    pub fn kernel_objects(&self) -> Result<String> {
        let looked = "ip -brief link; ip rule; ip -6 rule; ip route; ip -6 route; nft --stateless list ruleset; \
            ip neigh show nud permanent; findmnt --noheadings --raw --output TARGET --types nsfs | \
            { grep \"^$0/\" || true; } | sort";
        self.output(&["bash", "-c", looked, &self.run_dir()]).ok().map(|objects| without_indices(&objects))
    }

    /// [`Host::kernel_objects`] and what the networks' own namespaces hold, by kind: to compare, and to count.
    pub fn all_objects(&self) -> Result<Objects> {
        let mut objects = Objects::new();
        let of_host = self.kernel_objects()?.lines().map(str::to_owned).collect();
        objects.insert("objects of the host".to_owned(), of_host);
        let looked = self.output(&["bash", "-c", OF_NETWORKS, &self.run_dir()]).ok()?;
        let mut kind = "";
        for line in looked.lines() {
            match line.strip_prefix("# ") {
                Some(next) => kind = next,
                None => objects.entry(kind.to_owned()).or_default().push(without_indices(line)),
            }
        }
        objects.values_mut().for_each(|found| found.sort());
        Ok(objects)
    }

    /// Pulls the host's cable, without notice to anybody.
    pub fn cut(&self) -> Result<Cut> {
        Cut::new(self)
    }

    /// The directory of this host's sockets and namespaces, in the lab.
    pub fn run_dir(&self) -> String {
        format!("/run/lab/{}/run", self.name())
    }

    /// The API socket of this host's `meshd`, in the lab.
    pub fn socket(&self) -> String {
        format!("{}/meshd.sock", self.run_dir())
    }

    /// The directory of this host's Docker, in the lab.
    pub fn docker_dir(&self) -> String {
        format!("/run/lab/{}/docker", self.name())
    }

    /// Where this host's Docker looks for drivers, in the lab.
    pub fn docker_plugins(&self) -> String {
        format!("/run/lab/{}/plugins", self.name())
    }

    /// What `meshd` and background commands of this host print, in the lab.
    pub fn log_path(&self) -> String {
        format!("/run/lab/{}/log", self.name())
    }

    /// The data directory of this host's `meshd`, in the lab.
    pub fn data_dir(&self) -> String {
        format!("/run/lab/{}/data", self.name())
    }

    /// What `meshd` answers to a request of Docker's, and the status behind it.
    pub fn ask_plugin(&self, method: &str, body: &str) -> Result<String> {
        let socket = format!("{}/meshd.sock", self.docker_plugins());
        let url = format!("http://docker/{method}");
        let line = ["curl", "-sS", "-w", " %{http_code}", "--unix-socket", &socket, "-d", body, &url];
        self.output(&line).ok()
    }

    fn log(&self) -> Result<Stdio> {
        let path = self.file(self.log_path());
        let file = File::options().create(true).append(true).open(&path);
        Ok(file.with_context(|| format!("open {}", path.display()))?.into())
    }
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

/// A `meshd` process, which can be ended and started again with the same directories. Killed when dropped.
#[derive(Debug)]
pub struct Meshd {
    host: Host,
    /// What starts it, before its own command line.
    command: Vec<String>,
    program: String,
    versions: usize,
    process: Option<Background>,
}

impl Meshd {
    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it, if it does not run, and waits until its socket answers.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let host = &self.host;
        let (data_dir, run_dir) = (host.data_dir(), host.run_dir());
        let plugin = format!("{}/meshd.sock", host.docker_plugins());
        let docker = format!("{}/docker.sock", host.docker_dir());
        let mut line: Vec<&str> = self.command.iter().map(String::as_str).collect();
        line.extend([
            self.program.as_str(),
            "--data-dir",
            &data_dir,
            "--run-dir",
            &run_dir,
            "--name",
            host.name(),
            "--docker-plugin",
            &plugin,
            "--docker-socket",
            &docker,
            "--log-level",
            "debug",
        ]);
        let mut process = host.spawn_into(&line, host.log()?, host.log()?)?;
        let socket = host.file(host.socket());
        within(DAEMON_DEADLINE, "meshd answers on its socket", || {
            if let Ok(status) = process.wait(Duration::ZERO) {
                return Ok(Err(anyhow::anyhow!("meshd on {} ended: {status}", self.host.name())));
            }
            UnixStream::connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
            Ok(Ok(()))
        })??;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it (SIGKILL), as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Stops it (SIGSTOP) where it is, until [`Meshd::resume`].
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("meshd does not run")?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("meshd does not run")?.resume()
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("meshd does not run")?;
        process.terminate(DAEMON_DEADLINE)
    }

    /// Asks it to end with all that it runs (SIGINT) and waits.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("meshd does not run")?;
        process.signal(Signal::SIGINT)?;
        process.wait(DAEMON_DEADLINE)
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Asks it to end and starts a program with other bytes on the disk, as the update of a package does.
    pub fn upgrade(&mut self) -> Result<()> {
        self.terminate()?;
        self.versions += 1;
        let program = self.host.file(format!("/run/lab/{}/meshd-{}", self.host.name(), self.versions));
        fs::copy(binary("meshd")?, &program).with_context(|| format!("copy to {}", program.display()))?;
        self.program = format!("/run/lab/{}/meshd-{}", self.host.name(), self.versions);
        self.start()
    }

    /// The processes that serve names and the L7 ingress, by their numbers in the lab.
    pub fn fronts(&self) -> Result<Vec<u32>> {
        let entries = fs::read_dir(self.host.file(self.host.run_dir()))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let number = |name: String| name.strip_prefix("front.")?.strip_suffix(".sock")?.parse().ok();
        Ok(names.filter_map(number).collect())
    }

    /// The process, as the test sees it.
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Background::pid)
    }

    /// The network namespaces that the process has open, by inode, each as often as it has.
    pub fn namespaces(&self) -> Result<Vec<u64>> {
        let directory = format!("/proc/{}/fd", self.pid().context("meshd does not run")?);
        let of_namespaces = fs::metadata("/proc/self/ns/net")?.dev();
        let open = fs::read_dir(directory)?.flatten().filter_map(|entry| fs::metadata(entry.path()).ok());
        let mut inodes: Vec<u64> =
            open.filter(|file| file.dev() == of_namespaces).map(|file| file.ino()).collect();
        inodes.sort_unstable();
        Ok(inodes)
    }

    /// What the process holds in memory, in kilobytes.
    pub fn resident(&self) -> Result<u64> {
        resident(&self.pid().context("meshd does not run")?.to_string())
    }
}

/// The objects are the same; else an error with the lines that are gone, and those that are new.
pub fn unchanged(before: &Objects, now: &Objects) -> Result<()> {
    fn less<'a>(one: &'a Objects, other: &Objects) -> Vec<(&'a String, &'a String)> {
        let lacks = |kind: &String, line: &String| other.get(kind).is_none_or(|lines| !lines.contains(line));
        let lines = one.iter().flat_map(|(kind, lines)| lines.iter().map(move |line| (kind, line)));
        lines.filter(|(kind, line)| lacks(kind, line)).collect()
    }
    ensure!(now == before, "gone: {:#?}, new: {:#?}", less(before, now), less(now, before));
    Ok(())
}

/// Without the numbers of interfaces' other ends (`up4096@if4`), and the padding behind them: an interface that is made again
/// gets another.
fn without_indices(objects: &str) -> String {
    let mut parts = objects.split("@if");
    let first = parts.next().unwrap_or_default().to_owned();
    let behind =
        |part: &str| part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(' ').to_owned();
    parts.fold(first, |text, part| text + " " + &behind(part))
}

/// The path of a program of the workspace, built into the target directory of this test.
pub fn binary(name: &str) -> Result<String> {
    let test = env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("the test is not in a target directory")?;
    let path: PathBuf = profile.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: run `cargo build --bins` first (scripts/test does)",
        path.display()
    );
    Ok(path.to_string_lossy().into_owned())
}
