//! meshd on three hosts: a service with one replica, published; two plain containers; and a service of several replicas that
//! many ports can lead to.

use super::{
    Contender,
    place::{PORTS, Place},
    ports,
};
use anyhow::Result;
use mesh_tests::{Cluster, Container, Lab, Namespace, Outcome};

/// Its ports are published on every node, its replica is on vm2.
const SERVICE: &str = "bench";
/// Where many ports lead to. Of iperf3's connections both have to meet the same replica, so that it is another service.
const MANY: &str = "many";
/// What the rounds ask ours for, by this name.
pub(super) const ELSEWHERE: &str = "meshd, port, replica elsewhere";
pub(super) const HERE: &str = "meshd, port, replica here";
pub(super) const CONTAINERS: &str = "meshd, container to container";

pub(super) struct Mesh {
    // Ends the daemons when dropped.
    cluster: Cluster,
    client: Container,
    server: Container,
    replica: Container,
    /// Asks the replica's node. The replica would see the same client's ports by both ways, and refuse for a second those that it
    /// remembers (TIME_WAIT) with the other way's timestamps.
    other_client: Namespace,
    pub(super) many: Vec<Container>,
}

impl Mesh {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        let ports = PORTS.map(|port| format!("--publish={port}:{port}"));
        let ports = ports.each_ref().map(String::as_str);
        cluster.vm1().meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "bench"]).ok()?;
        let create = ["service", "create", "--name", SERVICE, "--network", "bench"];
        cluster.vm1().meshctl(&[&create[..], &ports].concat()).ok()?;
        let (client, server) = (lab.container("mesh-client")?, lab.container("mesh-server")?);
        let replica = lab.container("mesh-replica")?;
        cluster.vm1().meshctl(&["network", "connect", "--name", "client", "bench", &client.target()]).ok()?;
        cluster.vm2().meshctl(&["network", "connect", "--name", "server", "bench", &server.target()]).ok()?;
        let connect = |name: &str, service: &str, container: &Container| {
            let line = ["network", "connect", "--name", name, "--service", service, "bench"];
            cluster.vm2().meshctl(&[&line[..], &[&container.target()]].concat()).ok()
        };
        connect("replica", SERVICE, &replica)?;
        cluster.vm1().meshctl(&["service", "create", "--name", MANY, "--network", "bench"]).ok()?;
        let names = (1..=ports::REPLICAS).map(|number| format!("many{number}"));
        let many = names.map(|name| {
            let container = lab.container(&name)?;
            connect(&name, MANY, &container)?;
            Ok(container)
        });
        let many = many.collect::<Result<Vec<_>>>()?;
        cluster.endpoints(SERVICE, "1/1")?;
        cluster.endpoints(MANY, &format!("{0}/{0}", ports::REPLICAS))?;
        let other_client = Clone::clone(&*lab.client("other-client")?);
        Ok(Self { cluster, client, server, replica, other_client, many })
    }

    pub(super) fn contenders(&self, place: &Place<'_>) -> Result<[Contender; 3]> {
        let containers = Contender {
            name: CONTAINERS,
            client: Clone::clone(&*self.client),
            server: Clone::clone(&*self.server),
            address: self.cluster.address("server")?.parse()?,
            _proxy: None,
        };
        let (client, address) = (self.other_client.clone(), self.cluster.vm2().ip());
        let here = Contender { name: HERE, client, address, ..self.elsewhere(place) };
        Ok([containers, self.elsewhere(place), here])
    }

    /// A client that asks a node without the replica.
    pub(super) fn elsewhere(&self, place: &Place<'_>) -> Contender {
        Contender {
            name: ELSEWHERE,
            client: place.client.clone(),
            server: Clone::clone(&*self.replica),
            address: self.cluster.vm1().ip(),
            _proxy: None,
        }
    }

    /// Publishes many ports, or takes them back.
    pub(super) fn update_many(&self, options: &[String]) -> Outcome {
        let options = options.iter().map(String::as_str);
        let line: Vec<&str> = ["service", "update"].into_iter().chain(options).chain([MANY]).collect();
        self.cluster.vm1().meshctl(&line)
    }
}
