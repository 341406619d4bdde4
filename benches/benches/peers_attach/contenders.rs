//! Who attaches, and how each is asked to.

use anyhow::{Context, Result};
use mesh_tests::{Cluster, Docker, Host, Lab, host::binary};
use std::fs;

/// Runs a line of the shell and prints how many microseconds it took.
const TIMED: &str =
    r#"start=${EPOCHREALTIME/./}; eval "$0" >/dev/null || exit 1; echo $((${EPOCHREALTIME/./} - start))"#;
/// Debian's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// One way to attach a container and to detach it again, as lines of the shell on its host.
pub(super) struct Contender {
    pub(super) name: &'static str,
    host: Host,
    attach: String,
    detach: String,
}

impl Contender {
    /// Attaches and detaches; the milliseconds of both.
    pub(super) fn once(&self) -> Result<[f64; 2]> {
        let timed = |line: &str| -> Result<f64> {
            let printed = self.host.output(&["bash", "-c", TIMED, line]).ok().context(self.name)?;
            Ok(printed.trim().parse::<f64>().context("a number of microseconds")? / 1000.0)
        };
        Ok([timed(&self.attach)?, timed(&self.detach)?])
    }
}

/// Three nodes of a cluster, the first with a Docker; and a host with a Docker that is a swarm of its own.
pub(super) struct Scene {
    cluster: Cluster,
    docker: Docker,
    swarm: Docker,
}

impl Scene {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "bench"]).ok()?;
        for container in ["of-meshctl", "of-mesh-cni", "of-cni-bridge", "elsewhere"] {
            lab.container(container)?;
        }
        // The network is there on another node, which has to be told of each attachment.
        cluster.vm2().meshctl(&["network", "connect", "bench", "netns:/run/netns/elsewhere"]).ok()?;
        let (docker, swarm) = (Docker::start(vm1)?, Docker::start(&lab.host("swarm")?)?);
        docker.run(&["network", "create", "-d", "meshd", "--opt", "mesh.network=bench", "of-meshd"]).ok()?;
        docker.run(&["network", "create", "of-bridge"]).ok()?;
        let own = swarm.host().ip().to_string();
        swarm.run(&["swarm", "init", "--advertise-addr", &own]).ok()?;
        swarm.run(&["network", "create", "--driver", "overlay", "--attachable", "of-swarm"]).ok()?;
        for docker in [&docker, &swarm] {
            // A container without a network can't be connected to one.
            docker.container("bridged", &[], &["sleep", "infinity"])?;
        }
        Ok(Self { cluster, docker, swarm })
    }

    pub(super) fn contenders(&self) -> Result<Vec<Contender>> {
        let vm1 = self.cluster.vm1();
        let (meshctl, socket) = (binary("meshctl")?, vm1.socket());
        let by_meshctl = |verb: &str| {
            format!("{meshctl} --socket {socket} network {verb} bench netns:/run/netns/of-meshctl")
        };
        let mesh_cni = serde_json::json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "mesh-cni", "socket": socket,
        });
        let bridge = serde_json::json!({
            "cniVersion": "1.0.0", "name": "of-cni", "type": "bridge", "bridge": "cni-bench",
            "ipMasq": false, "isGateway": true,
            "ipam": { "type": "host-local", "subnet": "10.99.0.0/24", "dataDir": "/run/lab/cni-bench" },
        });
        let by_cni = |name: &str, plugin: String, config: serde_json::Value| -> Result<[String; 2]> {
            let path = format!("/run/lab/{name}.conf");
            fs::write(vm1.file(&path), config.to_string())?;
            Ok(["ADD", "DEL"].map(|command| {
                format!(
                    "CNI_COMMAND={command} CNI_CONTAINERID={name} CNI_NETNS=/run/netns/{name} CNI_IFNAME=eth0 \
                     CNI_PATH={PLUGINS} {plugin} <{path}"
                )
            }))
        };
        let by_docker = |docker: &Docker, network: &str| {
            ["connect", "disconnect"]
                .map(|verb| format!("docker --host {} network {verb} {network} bridged", docker.url()))
        };
        let contender = |name, host: &Host, [attach, detach]: [String; 2]| Contender {
            name,
            host: host.clone(),
            attach,
            detach,
        };
        Ok(vec![
            contender("meshd: meshctl network connect", vm1, ["connect", "disconnect"].map(by_meshctl)),
            contender("meshd: CNI, mesh-cni", vm1, by_cni("of-mesh-cni", binary("mesh-cni")?, mesh_cni)?),
            contender(
                "CNI's bridge plugin",
                vm1,
                by_cni("of-cni-bridge", format!("{PLUGINS}/bridge"), bridge)?,
            ),
            contender("meshd: docker network connect", vm1, by_docker(&self.docker, "of-meshd")),
            contender("Docker's bridge: docker network connect", vm1, by_docker(&self.docker, "of-bridge")),
            contender(
                "Docker's overlay: docker network connect",
                self.swarm.host(),
                by_docker(&self.swarm, "of-swarm"),
            ),
        ])
    }

    pub(super) fn versions(&self) -> Result<String> {
        let docker = self.docker.run(&["version", "--format", "{{.Server.Version}}"]).ok()?;
        let plugins = "dpkg-query --show --showformat='${Version}' containernetworking-plugins";
        let plugins = self.cluster.vm1().shell(plugins).ok()?;
        let meshd = env!("CARGO_PKG_VERSION");
        Ok(format!("meshd {meshd}; Docker {docker}; containernetworking-plugins {plugins}"))
    }
}
