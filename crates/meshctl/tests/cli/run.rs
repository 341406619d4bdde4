//! `meshctl run`: the command's surroundings, exit codes and signals. The daemon only says that it attached it.

use crate::{
    daemon::{Daemon, Ended},
    views,
};
use mesh_api::Disconnect;
use mesh_model::{EndpointSpec, Target};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use std::{
    fs,
    io::{BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

const CONNECT: &str = "POST /v1/endpoints";
const DISCONNECT: &str = "POST /v1/endpoints/disconnect";
const PATIENCE: Duration = Duration::from_secs(15);

fn daemon() -> Daemon {
    assert!(geteuid().is_root(), "these tests make namespaces: run them as root (CAP_SYS_ADMIN)");
    Daemon::start().says(CONNECT, &views::endpoint()).says(DISCONNECT, &views::removed(true))
}

fn run<'a>(command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--network", "blue", "--"], command].concat()
}

fn within(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A `meshctl run` in the background, killed when dropped.
struct Running {
    process: Child,
    /// What it prints, a byte each; its end is the end of the channel.
    stdout: mpsc::Receiver<u8>,
}

impl Running {
    fn start(daemon: &Daemon, command: &[&str]) -> Self {
        // A process group of its own, with its parent in another one of the session: the kernel ignores SIGTSTP in a
        // group that nobody outside could continue (an orphaned one), and tests may run in such.
        Self::spawn(daemon.command(&run(command)).process_group(0).stderr(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(process.stdout.take().unwrap()).bytes();
        let (sender, stdout) = mpsc::channel();
        thread::spawn(move || printed.map_while(Result::ok).try_for_each(|byte| sender.send(byte)));
        Self { process, stdout }
    }

    /// What it prints until a text comes, or to the end.
    fn until(&self, text: &str) -> String {
        let mut printed = Vec::new();
        while !printed.ends_with(text.as_bytes()) {
            match self.stdout.recv_timeout(PATIENCE) {
                Ok(byte) => printed.push(byte),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {text:?} in {:?}", String::from_utf8_lossy(&printed))
                }
            }
        }
        String::from_utf8(printed).unwrap()
    }

    fn line(&self) -> String {
        self.until("\n").trim_end().to_owned()
    }

    fn type_in(&mut self, text: &str) {
        self.process.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let mut code = None;
        within("meshctl ends", || {
            code = self.process.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn the_exit_code_is_kept_and_the_endpoint_removed() {
    let daemon = daemon();
    let options = ["--service", "web", "--name", "web1", "--ip", "192.0.2.9", "--alias", "www"];
    let line = [&["run", "--network", "blue"], &options[..], &["--", "sh", "-c", "exit 42"]].concat();
    let process = daemon.command(&line).spawn().unwrap();
    let pid = process.id().cast_signed();
    assert_eq!(process.wait_with_output().unwrap().status.code(), Some(42));

    let spec: EndpointSpec = daemon.asked_once(CONNECT).body();
    assert_eq!(spec.target, Target::Pid(pid));
    assert_eq!(
        (&*spec.network, spec.service.as_deref(), spec.name.as_deref()),
        ("blue", Some("web"), Some("web1"))
    );
    assert_eq!((spec.addresses.len(), spec.aliases.len(), &*spec.ifname), (1, 1, "eth0"));
    let left: Disconnect = daemon.asked_once(DISCONNECT).body();
    assert_eq!((&*left.network, &*left.endpoint, left.force), ("blue", "123456789abcdef0", true));
}

#[test]
fn a_command_ended_by_a_signal_is_told_as_a_shell_would() {
    assert_eq!(daemon().meshctl(&run(&["sh", "-c", "kill -KILL $$"])).code, Some(137));
}

#[test]
fn the_command_has_its_own_network_and_name_servers() {
    let before =
        fs::read_to_string("/etc/resolv.conf").expect("this test covers the host's /etc/resolv.conf");
    let looked = "readlink /proc/self/ns/net; grep -c : /proc/self/net/dev; grep -m1 -o 127.0.0.1 \
                  /proc/self/net/fib_trie; stat -L -c %a /etc/resolv.conf; cat /etc/resolv.conf";
    let said = daemon().meshctl(&run(&["sh", "-c", looked])).ok();
    let lines: Vec<&str> = said.lines().collect();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(lines[0].starts_with("net:[") && Path::new(lines[0]) != own, "{said}");
    assert_eq!(lines[1..4], ["1", "127.0.0.1", "644"], "only lo, and lo is up: {said}");
    assert_eq!(lines[4..6], ["nameserver 192.0.2.1", "nameserver 2001:db8::1"], "{said}");
    assert_eq!(lines.last(), Some(&"options ndots:0"), "{said}");

    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), before);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("meshctl."), "{mounts}");
}

#[test]
fn no_file_is_left_while_it_runs() {
    let daemon = daemon();
    let running = Running::start(&daemon, &["sh", "-c", "echo up; exec sleep 1000"]);
    assert_eq!(running.line(), "up");
    let name = format!("meshctl.{}.resolv.conf", running.process.id());
    assert!(!Path::new("/run").join(name).exists());
}

#[test]
fn what_cannot_be_run_is_said_before_anything_is_made() {
    let daemon = daemon();
    let ended = daemon.meshctl(&run(&["no-such-command"]));
    assert_eq!((ended.code, &*ended.stderr), (Some(127), "meshctl: no-such-command: command not found\n"));
    let ended = daemon.meshctl(&run(&["/etc/passwd"]));
    assert!(ended.code == Some(126) && ended.stderr.lines().count() == 1, "{ended:?}");
    assert!(daemon.asked().is_empty());
}

#[test]
fn an_interpreter_that_is_missing_is_found_out_late_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = daemon();
    let ended = daemon.meshctl(&run(&[script.to_str().unwrap()]));
    assert!(ended.code == Some(127) && ended.stderr.lines().count() == 1, "{ended:?}");
    daemon.asked_once(DISCONNECT);
}

#[test]
fn a_refused_attachment_runs_nothing() {
    let daemon = daemon().refuses(CONNECT, 404, "no network is called 'blue'");
    let ended = daemon.meshctl(&run(&["echo", "ran"]));
    assert_eq!(ended.stdout, "");
    assert_eq!(ended.refused(), "no network is called 'blue'");
}

#[test]
fn a_daemon_that_is_gone_at_the_end_changes_no_exit_code() {
    let ended = daemon().breaks_off(DISCONNECT).meshctl(&run(&["sh", "-c", "exit 3"]));
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(
        ended.stderr.starts_with("meshctl: warning: endpoint 'web1' is left for meshd to remove"),
        "{ended:?}"
    );
}

#[test]
fn signals_are_passed_on() {
    let daemon = daemon();
    let script = "for s in HUP INT QUIT USR1 USR2 ALRM WINCH; do trap \"echo $s\" $s; done; trap 'exit 7' TERM; \
                  echo up; while :; do sleep 0.01; done";
    // What the tests inherited as ignored (a job in the background ignores INT) a shell could not trap.
    let mut running = Running::start(&daemon, &["env", "--default-signal", "bash", "-c", script]);
    assert_eq!(running.line(), "up");
    for signal in ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "WINCH"] {
        running.signal(format!("SIG{signal}").parse().unwrap());
        assert_eq!(running.line(), signal);
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.code(), Some(7));
    daemon.asked_once(DISCONNECT);
}

/// Ctrl-C on a terminal reaches the whole foreground group, the command among it: it must not be passed on to be
/// met a second time. The command here has left the group, so that only what is passed on would reach it.
#[test]
fn a_key_on_the_terminal_is_not_passed_on() {
    let daemon = daemon();
    let counts = "n=0; trap 'n=$((n+1))' INT; trap 'echo count $n' USR1; trap 'exit 0' USR2; \
                  echo up $PPID; while :; do sleep 0.01; done";
    // A shell that stayed would be in the foreground group too, and die of the key.
    let line =
        format!("exec {} run --network blue -- setsid bash -c \"$COUNTS\"", env!("CARGO_BIN_EXE_meshctl"));
    let mut terminal = Command::new("script");
    terminal.env("MESH_SOCKET", daemon.socket()).env("COUNTS", counts).env("SHELL", "/bin/sh");
    terminal.args(["--echo", "always", "--quiet", "--return", "--command", &line, "/dev/null"]);
    let mut running = Running::spawn(&mut terminal);

    let up = running.line();
    let meshctl = up.strip_prefix("up ").and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{up}"));
    running.type_in("\x03");
    // The terminal shows the key once it has signalled it; what is passed on afterwards comes afterwards.
    assert_eq!(running.until("^C"), "^C");
    kill(Pid::from_raw(meshctl), Signal::SIGUSR1).unwrap();
    assert_eq!(running.line(), "count 0");
    // Only now: script(1) may lose what is printed as its child ends.
    kill(Pid::from_raw(meshctl), Signal::SIGUSR2).unwrap();
    assert_eq!(running.code(), Some(0));
}

#[test]
fn asked_to_end_before_it_runs() {
    let daemon = daemon().hangs(CONNECT);
    let mut running = Running::start(&daemon, &["echo", "ran"]);
    within("meshctl asks to be attached", || !daemon.asked().is_empty());
    running.signal(Signal::SIGTERM);
    assert_eq!(running.code(), Some(143));
    assert_eq!(running.line(), "");
}

#[test]
fn a_killed_meshctl_takes_the_command_along() {
    let daemon = daemon();
    let running = Running::start(&daemon, &["sh", "-c", "echo $$; exec sleep 1000"]);
    let command = running.line();
    assert!(Path::new("/proc").join(&command).exists());
    running.signal(Signal::SIGKILL);
    within("the command ends", || !Path::new("/proc").join(&command).exists());
}

/// Job control: a stop asked of meshctl stops both, and both go on together.
#[test]
fn stopped_and_continued_as_one() {
    let daemon = daemon();
    let script = "echo $$; read line; echo \"got $line\"";
    let mut running = Running::start(&daemon, &["bash", "-c", script]);
    let command = running.line();
    let stopped = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    let meshctl = running.process.id().to_string();

    running.signal(Signal::SIGTSTP);
    within("both stop", || stopped(&command) && stopped(&meshctl));
    running.signal(Signal::SIGCONT);
    within("both go on", || !stopped(&command) && !stopped(&meshctl));
    running.type_in("it\n");
    assert_eq!(running.line(), "got it");
    assert_eq!(running.code(), Some(0));
}

#[test]
fn standard_streams_are_the_commands() {
    let daemon = daemon();
    let mut process = daemon.command(&run(&["sh", "-c", "cat; echo err >&2"]));
    let mut process =
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let ended = Ended::from(process.wait_with_output().unwrap());
    assert_eq!((&*ended.stdout, &*ended.stderr), ("through\n", "err\n"));
}
