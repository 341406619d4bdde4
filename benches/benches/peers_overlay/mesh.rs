//! meshd on three hosts: plain containers, a replica of a service directly, and through the service's VIP.

use super::Contender;
use anyhow::Result;
use mesh_tests::{Cluster, Container, Lab};

pub(super) struct Mesh {
    // Ends the daemons when dropped.
    cluster: Cluster,
    client: Container,
    server: Container,
    replica: Container,
}

impl Mesh {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "bench"]).ok()?;
        cluster.vm1().meshctl(&["service", "create", "--name", "iperf", "--network", "bench"]).ok()?;
        let (client, server) = (lab.container("mesh-client")?, lab.container("mesh-server")?);
        let replica = lab.container("mesh-replica")?;
        cluster.vm1().meshctl(&["network", "connect", "--name", "client", "bench", &client.target()]).ok()?;
        cluster.vm2().meshctl(&["network", "connect", "--name", "server", "bench", &server.target()]).ok()?;
        let connect = ["network", "connect", "--name", "replica", "--service", "iperf", "bench"];
        cluster.vm2().meshctl(&[&connect[..], &[&replica.target()]].concat()).ok()?;
        cluster.endpoints("iperf", "1/1")?;
        Ok(Self { cluster, client, server, replica })
    }

    pub(super) fn contenders(&self) -> Result<[Contender; 3]> {
        let contender = |name, server: &Container, address: String| {
            let (client, server) = (Clone::clone(&*self.client), Clone::clone(&**server));
            Ok::<_, anyhow::Error>(Contender { name, client, server, address: address.parse()? })
        };
        Ok([
            contender("meshd", &self.server, self.cluster.address("server")?)?,
            contender("meshd, to a replica", &self.replica, self.cluster.address("replica")?)?,
            contender("meshd, through the VIP", &self.replica, self.cluster.vip("iperf")?)?,
        ])
    }
}
