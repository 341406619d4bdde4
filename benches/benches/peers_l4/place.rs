//! The machines of the LAN: one client, one server, and a host of its own for each contender in between, so that what one
//! of them has the kernel do costs no other.

use super::{Contender, rate, traffic};
use anyhow::{Context, Result};
use mesh_tests::{Background, Host, Lab, Namespace};
use std::{fs, net::Ipv4Addr};

/// Where iperf3 listens if nothing else is said.
const IPERF_PORT: u16 = 5201;
/// What a client asks for, at the server and wherever it is published.
pub(super) const PORTS: [u16; 3] = [IPERF_PORT, traffic::ECHO_PORT, rate::ONCE_PORT];
/// The one thread of a proxy shares it with the server, as the kernel forwards mostly on the sender's.
const PROXY_CPU: usize = traffic::SERVER_CPU;

pub(super) struct Place<'a> {
    lab: &'a Lab,
    pub(super) client: Namespace,
    server: Host,
}

impl<'a> Place<'a> {
    pub(super) fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self { lab, client: Clone::clone(&*lab.client("client")?), server: lab.host("server")? })
    }

    /// The server asked by its own address.
    pub(super) fn direct(&self) -> Contender {
        self.contender("direct, no ingress", self.server.ip(), None)
    }

    /// A host between client and server.
    pub(super) fn ingress(&self, name: &str) -> Result<Host> {
        self.lab.host(name)
    }

    /// Where the server is, for those who lead there.
    pub(super) fn server_address(&self) -> Ipv4Addr {
        self.server.ip()
    }

    pub(super) fn contender(
        &self,
        name: &'static str,
        address: Ipv4Addr,
        proxy: Option<Background>,
    ) -> Contender {
        let (client, server) = (self.client.clone(), Clone::clone(&**self.server));
        Contender { name, client, server, address, _proxy: proxy }
    }

    /// A proxy of one thread with this configuration, on a host of its own. `command` is given the file's path as the last
    /// argument.
    pub(super) fn proxy(
        &self,
        name: &'static str,
        host: &str,
        command: &[&str],
        config: &str,
    ) -> Result<Contender> {
        let host = self.ingress(host)?;
        let path = format!("/run/lab/{}.conf", host.name());
        fs::write(host.file(&path), config)?;
        let log = fs::File::create(host.file(format!("/run/lab/{}.log", host.name())))?;
        let cpu = PROXY_CPU.to_string();
        let line = [&["taskset", "--cpu-list", &cpu], command, &[&path]].concat();
        let proxy = host.spawn_into(&line, log.try_clone()?.into(), log.into()).with_context(|| name)?;
        Ok(self.contender(name, host.ip(), Some(proxy)))
    }
}
