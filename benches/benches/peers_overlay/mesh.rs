//! meshd on three hosts: containers directly, and through the VIP of a service.

use super::Contender;
use anyhow::Result;
use mesh_tests::{Cluster, Container, Lab};

pub(super) struct Mesh {
    // Ends the daemons when dropped.
    cluster: Cluster,
    client: Container,
    server: Container,
}

impl Mesh {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "bench"]).ok()?;
        cluster.vm1().meshctl(&["service", "create", "--name", "iperf", "--network", "bench"]).ok()?;
        let (client, server) = (lab.container("mesh-client")?, lab.container("mesh-server")?);
        cluster.vm1().meshctl(&["network", "connect", "--name", "client", "bench", &client.target()]).ok()?;
        let connect = ["network", "connect", "--name", "server", "--service", "iperf", "bench"];
        cluster.vm2().meshctl(&[&connect[..], &[&server.target()]].concat()).ok()?;
        cluster.endpoints("iperf", "1/1")?;
        Ok(Self { cluster, client, server })
    }

    pub(super) fn contenders(&self) -> Result<[Contender; 2]> {
        let contender = |name, address: String| {
            let (client, server) = (Clone::clone(&*self.client), Clone::clone(&*self.server));
            Ok::<_, anyhow::Error>(Contender { name, client, server, address: address.parse()? })
        };
        Ok([
            contender("meshd", self.cluster.address("server")?)?,
            contender("meshd, through the VIP", self.cluster.vip("iperf")?)?,
        ])
    }
}
