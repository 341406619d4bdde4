//! The command's own `/etc/resolv.conf`.

use crate::failure::complain;
use anyhow::Context;
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Puts a file that names these servers over the host's, in this mount namespace alone.
pub(super) fn install(nameservers: &[IpAddr]) -> anyhow::Result<()> {
    // Where it is a symbolic link, a mount goes over what it leads to.
    let target = match fs::canonicalize(RESOLV_CONF) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            complain("warning: the host has no /etc/resolv.conf to cover: the command does not ask the mesh");
            return Ok(());
        }
        Err(error) => return Err(error).context(RESOLV_CONF),
    };
    let host = fs::read(&target).with_context(|| format!("cannot read {}", target.display()))?;
    let file = Temporary::new(&text(&String::from_utf8_lossy(&host), nameservers))?;
    mount(Some(&file.0), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot cover {}", target.display()))
}

/// The servers, and the search list of the host, as in Docker's containers.
///
/// Names of the mesh have no dots or are complete: `ndots:0` asks for them as they are first.
fn text(host: &str, nameservers: &[IpAddr]) -> String {
    let mut text = String::new();
    for server in nameservers {
        text += &format!("nameserver {server}\n");
    }
    // The last one counts (resolv.conf(5)).
    let search = |line: &&str| matches!(line.split_whitespace().next(), Some("search" | "domain"));
    if let Some(line) = host.lines().rfind(search) {
        text += &format!("{}\n", line.trim());
    }
    text + "options ndots:0\n"
}

/// A file whose name is gone when this is dropped; a mount of it stays.
struct Temporary(PathBuf);

impl Temporary {
    fn new(text: &str) -> anyhow::Result<Self> {
        let path = Path::new("/run").join(format!("meshctl.{}.resolv.conf", std::process::id()));
        let write = || {
            let mut file = File::create_new(&path)?;
            // Whatever the umask: the command may run as another user.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())
        };
        // A process of the same ID may have been killed while it had one.
        drop(fs::remove_file(&path));
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Left behind at worst, and replaced by the next of this name.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn servers_are_the_networks_and_the_search_list_is_the_hosts() {
        let servers = ["192.168.100.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let host = "# made by hand\nnameserver 9.9.9.9\ndomain old.example\nsearch a.example b.example\noptions ndots:5\n";
        assert_eq!(
            text(host, &servers),
            "nameserver 192.168.100.1\nnameserver fd00::1\nsearch a.example b.example\noptions ndots:0\n"
        );
    }

    #[test]
    fn a_host_without_a_search_list_adds_none() {
        let servers = ["10.0.0.1".parse().unwrap()];
        assert_eq!(text("#search x\n", &servers), "nameserver 10.0.0.1\noptions ndots:0\n");
    }
}
