//! Debian's Podman with the CNI backend on a host of a lab: storage, state and configuration of its own, no systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::host::{Host, binary};
use crate::process::Outcome;

/// The name of the image that containers run.
pub const IMAGE: &str = "busybox:lab";
/// What the image has, each a link to busybox.
const APPLETS: [&str; 6] = ["sh", "sleep", "cat", "ip", "ping", "httpd"];

/// Podman on one host. Containers end with the lab.
#[derive(Debug)]
pub struct Podman {
    host: Host,
    directory: String,
}

impl Podman {
    /// Configures it and imports the image.
    pub fn new(host: &Host) -> Result<Self> {
        let podman = Self { host: host.clone(), directory: format!("/run/lab/{}/podman", host.name()) };
        let directory = &podman.directory;
        for part in ["net.d", "bin", "image/bin", "image/etc", "image/tmp", "image/www"] {
            fs::create_dir_all(host.file(format!("{directory}/{part}")))?;
        }
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{directory}/root\"\nrunroot = \"{directory}/run\"\n"
        );
        fs::write(host.file(format!("{directory}/storage.conf")), storage)?;
        // `static_dir` is where the monitors of containers, who are told of the storage only, look for what Podman knows.
        let containers = format!(
            "[containers]\nlog_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\n\
             events_logger = \"none\"\nruntime = \"runc\"\ntmp_dir = \"{directory}/tmp\"\n\
             static_dir = \"{directory}/root/libpod\"\nvolume_path = \"{directory}/volumes\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{directory}/bin\", \"/usr/lib/cni\"]\n\
             network_config_dir = \"{directory}/net.d\"\n"
        );
        fs::write(host.file(format!("{directory}/containers.conf")), containers)?;
        symlink(binary("mesh-cni")?, host.file(format!("{directory}/bin/mesh-cni")))?;
        podman.import()?;
        Ok(podman)
    }

    fn import(&self) -> Result<()> {
        let root = format!("{}/image", self.directory);
        let busybox = self.host.file(format!("{root}/bin/busybox"));
        // The machine's own, which must not need libraries.
        let found = self.host.shell("command -v busybox").ok()?;
        fs::copy(found, &busybox)?;
        fs::set_permissions(&busybox, Permissions::from_mode(0o755))?;
        for applet in APPLETS {
            symlink("busybox", self.host.file(format!("{root}/bin/{applet}")))?;
        }
        let script =
            format!("tar --directory={root} --create . | {} podman import - {IMAGE}", self.environment());
        self.host.shell(&script).ok()?;
        Ok(())
    }

    /// Makes a network of Podman out of a network of the mesh, as an administrator does.
    pub fn network(&self, network: &str) -> Result<()> {
        let conflist = json!({
            "cniVersion": "0.4.0",
            "name": network,
            "plugins": [{
                "type": "mesh-cni",
                "socket": self.host.socket(),
                "capabilities": { "portMappings": true, "aliases": true, "ips": true, "mac": true },
            }],
        });
        let path = format!("{}/net.d/{network}.conflist", self.directory);
        Ok(fs::write(self.host.file(path), conflist.to_string())?)
    }

    /// `podman ARGUMENTS`, to its end.
    pub fn podman(&self, arguments: &[&str]) -> Outcome {
        self.with_podman(&[&["podman"], arguments].concat())
    }

    /// Any command in the environment that Podman is run in: one that runs it itself.
    pub fn with_podman(&self, command: &[&str]) -> Outcome {
        let quoted: Vec<String> =
            command.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
        self.host.shell(&format!("{} {}", self.environment(), quoted.join(" ")))
    }

    /// A container in the background that does nothing until it is stopped.
    pub fn sleeper(&self, name: &str, options: &[&str]) -> Result<()> {
        let run = [&["run", "--detach", "--name", name][..], options, &[IMAGE, "sleep", "600"]].concat();
        self.podman(&run).ok().map(drop)
    }

    /// A container in the background that serves its own name on port 80.
    pub fn server(&self, name: &str, options: &[&str]) -> Result<()> {
        let serve = format!("echo {name} >/www/index.html && exec httpd -f -p 80 -h /www");
        let run = [
            &["run", "--detach", "--hostname", name, "--name", name][..],
            options,
            &[IMAGE, "sh", "-c", &serve],
        ];
        self.podman(&run.concat()).ok().map(drop)
    }

    /// What a command in a container prints.
    pub fn exec(&self, container: &str, command: &[&str]) -> Outcome {
        self.podman(&[&["exec", container], command].concat())
    }

    /// Kills processes of a container (SIGKILL): `Pid`, its own, and `ConmonPid`, the one that watches it for Podman.
    pub fn kill(&self, container: &str, which: &[&str]) -> Result<()> {
        let format: Vec<String> = which.iter().map(|which| format!("{{{{.State.{which}}}}}")).collect();
        let pids = self.podman(&["inspect", "--format", &format.join(" "), container]).ok()?;
        let pids: Vec<&str> = pids.split_whitespace().collect();
        self.host.output(&[&["kill", "-KILL"], &pids[..]].concat()).ok().map(drop)
    }

    /// Removes what Podman keeps in memory for as long as the host runs, after all processes of containers have ended.
    pub fn forget_what_a_reboot_takes(&self) -> Result<()> {
        let script = "for place in $(findmnt --noheadings --raw --output TARGET | grep -e ^$0/ -e ^/run/netns/netns-); do \
            umount --lazy $place; done; rm -rf $0/tmp $0/run /run/netns/netns-* /run/runc";
        self.host.output(&["bash", "-c", script, &self.directory]).ok().map(drop)
    }

    /// Forgets about every container.
    pub fn remove_all(&self) -> Result<()> {
        self.podman(&["rm", "--force", "--all", "--time", "0"]).ok()?;
        let left = self.podman(&["ps", "--all", "--quiet"]).ok()?;
        ensure!(left.is_empty(), "containers are left: {left}");
        Ok(())
    }

    fn environment(&self) -> String {
        let directory = &self.directory;
        format!(
            "CONTAINERS_CONF={directory}/containers.conf CONTAINERS_STORAGE_CONF={directory}/storage.conf \
             XDG_RUNTIME_DIR={directory}/xdg"
        )
    }
}
