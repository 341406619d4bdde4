//! Servers on loopback, and the client that everybody uses to ask them.

use arc_swap::ArcSwap;
use mesh_dns::{Error, Forwarder, ForwarderOptions, HostSockets, Published, Server, Table, View};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A server in this process, on a port of its own on 127.0.0.1, until it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) table: Published,
    pub(crate) view: Arc<View>,
    pub(crate) forwarder: Arc<Forwarder>,
    task: JoinHandle<Result<(), Error>>,
    cancel: DropGuard,
}

impl Running {
    /// A server of these names that forwards the others to `upstreams`.
    pub(crate) fn start(table: Table, upstreams: &[SocketAddr]) -> Self {
        Self::with(table, upstreams, options())
    }

    pub(crate) fn with(table: Table, upstreams: &[SocketAddr], options: ForwarderOptions) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(table));
        let mut running = Self::of(View::of_network(table.clone()), upstreams, options);
        running.table = table;
        running
    }

    pub(crate) fn of(view: View, upstreams: &[SocketAddr], options: ForwarderOptions) -> Self {
        let forwarder = Arc::new(Forwarder::new(HostSockets, options));
        forwarder.set_host(upstreams);
        Self::by(view, forwarder, Server::IDLE)
    }

    /// A server whose connections end when they have been idle for this long.
    pub(crate) fn with_idle(table: Table, upstreams: &[SocketAddr], idle: Duration) -> Self {
        let forwarder = Arc::new(Forwarder::new(HostSockets, options()));
        forwarder.set_host(upstreams);
        Self::by(View::of_network(Arc::new(ArcSwap::from_pointee(table))), forwarder, idle)
    }

    /// A server of another network on the same node.
    pub(crate) fn beside(&self, table: Table) -> Self {
        Self::by(
            View::of_network(Arc::new(ArcSwap::from_pointee(table))),
            self.forwarder.clone(),
            Server::IDLE,
        )
    }

    fn by(view: View, forwarder: Arc<Forwarder>, idle: Duration) -> Self {
        let (udp, tcp) = bind();
        let address = udp.local_addr().unwrap();
        let view = Arc::new(view);
        let server = Server { udp, tcp, view: view.clone(), forwarder: forwarder.clone(), idle };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(server.run(cancel.clone()));
        let table = Arc::new(ArcSwap::from_pointee(crate::fixture::Mesh::new().table()));
        Self { address, table, view, forwarder, task, cancel: cancel.drop_guard() }
    }

    /// Ends the server and waits until it has.
    pub(crate) async fn stop(self) {
        drop(self.cancel);
        self.task.await.expect("the server's task").expect("the server ends well");
    }
}

/// Faster than for people.
pub(crate) fn options() -> ForwarderOptions {
    ForwarderOptions {
        patience: Duration::from_millis(200),
        timeout: Duration::from_millis(400),
        deadline: Duration::from_millis(1000),
        ..ForwarderOptions::default()
    }
}

/// Both sockets on one free port.
pub(crate) fn bind() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

/// What `dig` prints, having asked once and waited for 3 s at most.
pub(crate) async fn dig(server: SocketAddr, arguments: &str) -> String {
    let output = Command::new("dig")
        .arg(format!("@{}", server.ip()))
        .arg(format!("-p{}", server.port()))
        .args(["+tries=1", "+time=3", "+nosearch"])
        .args(arguments.split_whitespace())
        .output()
        .await
        .expect("dig runs (Debian: bind9-dnsutils)");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("WARNING"), "{arguments}: {text}");
    text
}

/// The sorted lines of `dig +short`.
pub(crate) async fn short(server: SocketAddr, arguments: &str) -> Vec<String> {
    let text = dig(server, &format!("+short {arguments}")).await;
    let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// With all the time there is for upstreams that say nothing.
pub(crate) fn unhurried() -> ForwarderOptions {
    let all = Duration::from_secs(60);
    ForwarderOptions { patience: all, timeout: all, deadline: all, ..options() }
}
