//! A network of hosts, clients and containers for one test.

pub(crate) mod diagnosis;
pub(crate) mod init;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::namespace::Namespace;
use crate::process::Background;
use init::Init;

/// Runs a test in a lab of its own.
///
/// # Panics
///
/// When `test` fails or panics; what every host looks like is printed first.
pub fn scenario(name: &str, test: impl FnOnce(&Lab) -> Result<()>) {
    let lab = Lab::new(name).unwrap_or_else(|err| panic!("{name}: {err:#}"));
    if let Err(err) = test(&lab) {
        panic!("{name}: {err:#}");
    }
}

/// A small network in a PID and a mount namespace of its own; all of it goes when this is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    init: Arc<Init>,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    hosts: Vec<Host>,
    clients: u8,
}

impl Lab {
    /// A lab with a LAN and nobody on it.
    ///
    /// # Errors
    ///
    /// Without root, or without the capabilities for namespaces.
    pub fn new(name: &str) -> Result<Self> {
        let init = Arc::new(Init::start().with_context(|| format!("lab {name}"))?);
        Ok(Self { name: name.to_owned(), init, members: Mutex::default() })
    }

    /// A new host on the LAN; the Nth has 10.77.0.(10+N) and `fd77::(10+N)`.
    pub fn host(&self, name: &str) -> Result<Host> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let number = u8::try_from(members.hosts.len() + 1)?;
        self.init.script(&["host", name, &number.to_string()])?;
        let machine = Machine::new(&self.init, name, 10 + number);
        let host = Host::new(machine)?;
        members.hosts.push(host.clone());
        Ok(host)
    }

    /// A new machine on the LAN outside the cluster; the Nth has 10.77.0.(100+N) and `fd77::(100+N)`.
    pub fn client(&self, name: &str) -> Result<Machine> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.clients += 1;
        self.init.script(&["client", name, &members.clients.to_string()])?;
        Ok(Machine::new(&self.init, name, 100 + members.clients))
    }

    /// A new network namespace with nothing but loopback.
    pub fn container(&self, name: &str) -> Result<Container> {
        self.init.script(&["container", name])?;
        let container = Container { namespace: Namespace::container(&self.init, name) };
        container.resolver("127.0.0.1")?;
        Ok(container)
    }

    /// Starts a DNS server outside the cluster, on the LAN's router, which all hosts have as their resolver:
    /// `example.test` is 192.0.2.1 and `www.example.test` an alias of it.
    pub fn resolver(&self) -> Result<Background> {
        self.resolver_with(&["--host-record=example.test,192.0.2.1", "--cname=www.example.test,example.test"])
    }

    /// The same with other names: those that these options of dnsmasq's give it.
    pub fn resolver_with(&self, options: &[&str]) -> Result<Background> {
        let lan = Namespace::named(&self.init, "lan");
        let server =
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
        lan.spawn(&[&server[..], &["--user=root", "--pid-file="], options].concat())
    }

    /// Writes the resolv.conf of all hosts, in place of the one that names the LAN's router.
    pub fn hosts_resolv_conf(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.init.file("/run/lab/resolv.conf"), text)?)
    }

    /// Runs a script of the shell where the LAN's switch is: the port of each machine bears its name.
    pub fn switch(&self, script: &str) -> Result<()> {
        self.on_switch(script).map(drop)
    }

    /// The same, and what it prints.
    pub(crate) fn on_switch(&self, script: &str) -> Result<String> {
        Namespace::named(&self.init, "lan").shell(script).ok()
    }

    /// A process of the lab to look at from outside: its first.
    pub fn pid(&self) -> nix::unistd::Pid {
        self.init.pid()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            diagnosis::print(&self.name, &members.hosts);
        }
        self.init.end();
    }
}

/// A machine on the LAN.
#[derive(Debug, Clone)]
pub struct Machine {
    namespace: Namespace,
    address: Ipv4Addr,
    address6: Ipv6Addr,
}

impl Machine {
    fn new(init: &Arc<Init>, name: &str, number: u8) -> Self {
        Self {
            namespace: Namespace::named(init, name),
            address: Ipv4Addr::new(10, 77, 0, number),
            // The script writes the decimal number, which reads as hexadecimal digits.
            address6: format!("fd77::{number}").parse().unwrap_or(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Its address on the LAN.
    pub fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// Its IPv6 address on the LAN.
    pub fn ip6(&self) -> Ipv6Addr {
        self.address6
    }
}

impl Deref for Machine {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// A network namespace as a container engine makes them: commands in it have a resolv.conf of their own.
#[derive(Debug, Clone)]
pub struct Container {
    namespace: Namespace,
}

impl Container {
    /// What `meshctl network connect` takes: `netns:/run/netns/NAME`.
    pub fn target(&self) -> String {
        format!("netns:/run/netns/{}", self.name())
    }

    /// Writes its resolv.conf, as an engine does.
    pub fn resolver(&self, nameserver: &str) -> Result<()> {
        self.resolv_conf(&format!("nameserver {nameserver}\noptions timeout:2 attempts:1\n"))
    }

    /// Writes its resolv.conf, with this text.
    pub fn resolv_conf(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.file(format!("/run/lab/{}.resolv.conf", self.name())), text)?)
    }
}

impl Deref for Container {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}
