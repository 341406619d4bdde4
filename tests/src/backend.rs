//! A replica for loads of every kind: nginx, and an echo of datagrams beside it.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::Cluster;
use crate::echo::Echo;
use crate::host::Host;
use crate::nginx::{Replica, ReplicaSpec};
use crate::probe::within;

/// Its port for datagrams; that of nginx is 80. Both are published as they are.
const DATAGRAMS: u16 = 7;
/// How long its connections may take to end; the service's drain timeout is longer. nginx ends those that are used after two
/// seconds.
const DRAINS: Duration = Duration::from_secs(8);
/// The network and the service.
const NETWORK: &str = "blue";
const SERVICE: &str = "web";

/// A replica of the service `web`.
#[derive(Debug)]
pub struct Backend {
    /// The replica.
    pub replica: Replica,
    host: Host,
    echo: Option<Echo>,
}

impl Backend {
    /// Makes the service, which checks its replicas' health.
    pub fn service(cluster: &Cluster) -> Result<()> {
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", NETWORK]).ok()?;
        let (name, datagrams) =
            (["--name", SERVICE, "--network", NETWORK], format!("{DATAGRAMS}:{DATAGRAMS}/udp"));
        let check = ["--health-http", "/health", "--health-interval", "100ms"];
        let publish = ["--publish", "80:80", "--publish", &datagrams];
        vm1.meshctl(&[&["service", "create"], &name[..], &publish, &check].concat()).ok().map(drop)
    }

    /// Where a host takes requests, and where datagrams.
    pub fn places(hosts: &[&Host]) -> [Vec<SocketAddr>; 2] {
        [80, DATAGRAMS].map(|port| hosts.iter().map(|host| (host.ip(), port).into()).collect())
    }

    /// Starts one on a host.
    pub fn start(host: &Host, name: &str) -> Result<Self> {
        let spec = ReplicaSpec { name, network: Some(NETWORK), service: Some(SERVICE), port: 80 };
        let mut backend = Self { replica: Replica::new(host, spec)?, host: host.clone(), echo: None };
        backend.restart()?;
        Ok(backend)
    }

    /// Starts it again. It is healthy when all of it is there.
    pub fn restart(&mut self) -> Result<()> {
        self.replica.nginx.set_healthy(false)?;
        self.replica.restart()?;
        self.echo = Some(Echo::datagrams(&self.replica.namespace()?, DATAGRAMS)?);
        self.replica.nginx.set_healthy(true)
    }

    /// Kills it (SIGKILL): whoever has a connection to it meets a reset, or silence.
    pub fn kill(&mut self) -> Result<()> {
        let killed = self.replica.kill();
        self.end_echo();
        killed
    }

    /// Drains it, and ends it when it has no connections any more. Fails if it still has some when those would be reset.
    pub fn drain(&mut self) -> Result<()> {
        let Self { replica, host, .. } = self;
        let namespace = replica.namespace()?;
        let drained = thread::scope(|scope| {
            let gone = scope.spawn(|| host.meshctl(&["network", "disconnect", NETWORK, replica.name()]));
            let in_time = within(DRAINS, "its connections end", || {
                ensure!(gone.is_finished());
                Ok(())
            });
            let in_time = in_time.or_else(|err| Err(err.context(namespace.output(&["ss", "-tanoi"]).ok()?)));
            gone.join().map_err(|_| anyhow!("panicked"))?.ok()?;
            in_time
        });
        drained.with_context(|| replica.name().to_owned())?;
        self.end_echo();
        self.replica.terminate()
    }

    fn end_echo(&mut self) {
        self.echo.take().into_iter().for_each(Echo::end);
    }
}
