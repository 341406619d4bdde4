//! Docker's own overlay: a swarm of two, and an attachable network without services.

use super::Contender;
use anyhow::{Context, Result};
use mesh_tests::{Docker, Lab, Namespace};

pub(super) struct Swarm {
    // They end when this is dropped.
    dockers: [Docker; 2],
    client: Namespace,
    server: Namespace,
}

impl Swarm {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let [one, two] = [Docker::start(&lab.host("swarm1")?)?, Docker::start(&lab.host("swarm2")?)?];
        let own = one.host().ip().to_string();
        one.run(&["swarm", "init", "--advertise-addr", &own]).ok()?;
        let token = one.run(&["swarm", "join-token", "--quiet", "worker"]).ok()?;
        two.run(&["swarm", "join", "--token", &token, &format!("{own}:2377")]).ok()?;
        one.run(&["network", "create", "--driver", "overlay", "--attachable", "bench"]).ok()?;
        one.container("swarm-client", &["--network", "bench"], &["sleep", "infinity"])?;
        two.container("swarm-server", &["--network", "bench"], &["sleep", "infinity"])?;
        let (client, server) = (one.namespace("swarm-client")?, two.namespace("swarm-server")?);
        Ok(Self { dockers: [one, two], client, server })
    }

    pub(super) fn contender(&self) -> Result<Contender> {
        let server = self.dockers[1].inspect("swarm-server")?;
        let address = server["NetworkSettings"]["Networks"]["bench"]["IPAddress"].as_str();
        let address = address.context("swarm-server has no address")?.parse()?;
        Ok(Contender {
            name: "Docker's overlay",
            client: self.client.clone(),
            server: self.server.clone(),
            address,
        })
    }
}
