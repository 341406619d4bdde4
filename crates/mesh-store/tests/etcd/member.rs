//! Real `etcd` processes, each on a loopback address of its own, gone with the test that started them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use mesh_store::{EtcdOptions, EtcdStore};
use tempfile::TempDir;

/// How long an etcd may take to be there on a busy machine.
const START: Duration = Duration::from_secs(60);

/// One member of an etcd cluster.
pub(crate) struct Member {
    dir: TempDir,
    address: Ipv4Addr,
    scheme: &'static str,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Member {
    /// An etcd of one member that answers.
    pub(crate) async fn start() -> Self {
        let mut member = Self::new();
        member.run().await;
        member
    }

    /// A member that does not run yet, alone in its cluster.
    pub(crate) fn new() -> Self {
        Self {
            dir: TempDir::new().expect("temporary directory"),
            address: free_address(),
            scheme: "http",
            arguments: Vec::new(),
            process: None,
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}:2379", self.scheme, self.address)
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions::new([self.url()], "test")
    }

    /// Runs the process and waits until etcd answers as a store.
    pub(crate) async fn run(&mut self) {
        self.spawn();
        answers(&self.options()).await;
    }

    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let (peer, client) = (format!("http://{}:2380", self.address), self.url());
        let log = File::options().create(true).append(true).open(self.log()).expect("log file");
        let mut command = Command::new("setpriv");
        // The kernel ends it with the thread of the test, also when that is killed.
        command.args(["--pdeathsig", "KILL", "etcd", "--heartbeat-interval=50", "--election-timeout=500"]);
        command.args(["--name", &self.address.to_string(), "--logger=zap", "--data-dir"]);
        command.arg(self.dir.path().join("data"));
        for (flag, url) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
        ] {
            command.args([flag, url]);
        }
        if !self.arguments.iter().any(|argument| argument.starts_with("--initial-cluster")) {
            command.arg(format!("--initial-cluster={}={peer}", self.address));
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("setpriv and etcd are installed (see scripts/test)"));
    }

    /// Has the kernel end the process at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill etcd");
            process.wait().expect("wait for etcd");
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(status.success());
    }

    pub(crate) fn with_arguments(mut self, scheme: &'static str, arguments: Vec<String>) -> Self {
        (self.scheme, self.arguments) = (scheme, arguments);
        self
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            eprintln!("--- etcd {}:\n{}", self.address, tail.join("\n"));
        }
    }
}

/// Waits until an etcd answers.
pub(crate) async fn answers(options: &EtcdOptions) {
    let deadline = Instant::now() + START;
    loop {
        match EtcdStore::open(options.clone()).await {
            Ok(_) => return,
            Err(err) => assert!(Instant::now() < deadline, "{err}"),
        }
    }
}

/// An address of 127.0.0.0/8 that nobody else uses: the ports are etcd's usual ones, out of reach of the ephemeral
/// ports that other tests are given.
fn free_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id().to_be_bytes();
    loop {
        let last = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, process[2] | 0x80, process[3], last);
        let free =
            |port| TcpListener::bind((address, port)).is_ok() && TcpStream::connect((address, port)).is_err();
        if last != 0 && free(2379) && free(2380) {
            return address;
        }
    }
}
