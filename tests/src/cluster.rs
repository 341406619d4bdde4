//! Hosts that are one cluster, three of them as a rule.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{Host, Meshd};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::probe::{shares, within};

/// How long the cluster may take to agree on a change.
pub const CONVERGES: Duration = Duration::from_secs(20);

/// vm1, vm2 and vm3, unless made otherwise; vm1 is a manager.
#[derive(Debug)]
pub struct Cluster {
    /// The daemons, that of vm1 first.
    pub daemons: Vec<Meshd>,
}

impl Cluster {
    /// Starts `meshd` on three new hosts and joins them, as the walk-through does.
    pub fn three(lab: &Lab) -> Result<Self> {
        Self::three_with(lab, &[])
    }

    /// vm1 alone, for what needs no others.
    pub fn one(lab: &Lab) -> Result<Self> {
        Self::alone(lab.host("vm1")?.meshd()?)
    }

    /// One host whose daemon runs.
    pub fn alone(daemon: Meshd) -> Result<Self> {
        let cluster = Self { daemons: vec![daemon] };
        let vm1 = cluster.vm1();
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        Ok(cluster)
    }

    /// Three managers with an etcd each.
    pub fn managers(lab: &Lab) -> Result<Self> {
        Self::managers_with(lab, &["--store", "etcd"])
    }

    /// Three managers, with these options for `cluster init`.
    pub fn managers_with(lab: &Lab, options: &[&str]) -> Result<Self> {
        Self::three_as(lab, "manager", options)
    }

    /// A manager and two workers, with more options for `cluster init`.
    pub fn three_with(lab: &Lab, options: &[&str]) -> Result<Self> {
        Self::three_as(lab, "worker", options)
    }

    fn three_as(lab: &Lab, role: &str, options: &[&str]) -> Result<Self> {
        let mut daemons = Vec::new();
        for name in ["vm1", "vm2", "vm3"] {
            daemons.push(lab.host(name)?.meshd()?);
        }
        Self::joined(daemons, role, options, |host| host.ip().into())
    }

    /// A manager and two workers that know each other by their IPv6 addresses only.
    pub fn three_over_ipv6(lab: &Lab) -> Result<Self> {
        let daemons = ["vm1", "vm2", "vm3"].map(|name| lab.host(name)?.meshd());
        Self::of_over_ipv6(daemons.into_iter().collect::<Result<_>>()?)
    }

    /// Three managers with an etcd each, of daemons that were started before.
    pub fn managers_of(daemons: Vec<Meshd>) -> Result<Self> {
        Self::joined(daemons, "manager", &["--store", "etcd"], |host| host.ip().into())
    }

    /// Joins three daemons, the first as the manager.
    pub fn of(daemons: Vec<Meshd>) -> Result<Self> {
        Self::joined(daemons, "worker", &[], |host| host.ip().into())
    }

    /// The same, by their IPv6 addresses only.
    pub fn of_over_ipv6(daemons: Vec<Meshd>) -> Result<Self> {
        Self::joined(daemons, "worker", &[], |host| host.ip6().into())
    }

    fn joined(
        daemons: Vec<Meshd>,
        role: &str,
        options: &[&str],
        advertised: fn(&Host) -> IpAddr,
    ) -> Result<Self> {
        let cluster = Self { daemons };
        let manager = advertised(cluster.vm1());
        let (manager, peer) = (manager.to_string(), SocketAddr::new(manager, 7443).to_string());
        let init = [&["cluster", "init", "--advertise-addr", &manager], options].concat();
        cluster.vm1().meshctl(&init).ok()?;
        let token = cluster.vm1().meshctl(&["-q", "cluster", "join-token", role]).ok()?;
        for host in [cluster.vm2(), cluster.vm3()] {
            let address = advertised(host).to_string();
            host.meshctl(&["cluster", "join", "--token", &token, "--advertise-addr", &address, &peer])
                .ok()?;
        }
        within(CONVERGES, "three nodes are Ready", || {
            let nodes = cluster.list(&["node", "ls"])?;
            let ready = nodes.iter().filter(|node| field(node, "status") == "ready").count();
            ensure!(ready == 3, "{nodes:?}");
            Ok(())
        })?;
        Ok(cluster)
    }

    /// The manager.
    pub fn vm1(&self) -> &Host {
        self.daemons[0].host()
    }

    /// A worker.
    pub fn vm2(&self) -> &Host {
        self.daemons[1].host()
    }

    /// A worker.
    pub fn vm3(&self) -> &Host {
        self.daemons[2].host()
    }

    /// What `meshctl -o json ARGUMENTS` lists on the manager.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut line = vec!["-o", "json"];
        line.extend(arguments);
        let listed = self.vm1().meshctl(&line).json()?;
        Ok(listed.as_array().cloned().unwrap_or_else(|| vec![listed]))
    }

    /// What `endpoint ls` tells of an endpoint.
    pub fn endpoint(&self, name: &str) -> Result<Value> {
        let endpoints = self.list(&["endpoint", "ls"])?;
        let found = endpoints.iter().find(|endpoint| endpoint["name"] == name).cloned();
        found.with_context(|| format!("no endpoint {name} in {endpoints:?}"))
    }

    /// The first address of an endpoint.
    pub fn address(&self, endpoint: &str) -> Result<String> {
        let endpoint = self.endpoint(endpoint)?;
        let address = endpoint["addresses"][0].as_str();
        Ok(address.with_context(|| format!("no address in {endpoint}"))?.to_owned())
    }

    /// The VIP of a service on its first network.
    pub fn vip(&self, service: &str) -> Result<String> {
        let service = self.list(&["service", "inspect", service])?;
        let vip = service[0]["networks"][0]["addresses"][0].as_str();
        Ok(vip.with_context(|| format!("no VIP in {service:?}"))?.to_owned())
    }

    /// The URL of each node, vm1 first.
    pub fn urls(&self, port: u16) -> Vec<String> {
        self.daemons.iter().map(|daemon| format!("http://{}:{port}/", daemon.host().ip())).collect()
    }

    /// Waits until a client meets these replicas on every node, each as often as the others.
    pub fn answer_in_turn(&self, client: &Namespace, port: u16, replicas: &[&str]) -> Result<()> {
        let each = 4;
        let expected: Vec<(&str, usize)> = replicas.iter().map(|&replica| (replica, each)).collect();
        for url in self.urls(port) {
            within(CONVERGES, &format!("{replicas:?} answer in turn on {url}"), || {
                shares(&client.answers(&url, each * replicas.len())?, &expected)
            })?;
        }
        Ok(())
    }

    /// Waits until `service ls` counts so many healthy endpoints of so many, like `2/3`.
    pub fn endpoints(&self, service: &str, count: &str) -> Result<()> {
        within(CONVERGES, "the service's endpoints are counted", || {
            let table = self.vm1().meshctl(&["service", "ls"]).ok()?;
            let row = table.lines().find(|line| line.split_whitespace().any(|word| word == service));
            let found = row.is_some_and(|row| row.split_whitespace().any(|word| word == count));
            ensure!(found, "no {count} for {service} in\n{table}");
            Ok(())
        })
    }
}

/// A string field of a JSON object, in lower case; empty if there is none.
pub fn field(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap_or_default().to_lowercase()
}
