//! What is inside a container's network namespace.

use crate::{
    failure::{Code, Failure},
    request::invalid,
    routes::{self, Route},
};
use ipnetwork::IpNetwork;
use mesh_model::MacAddr;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
    sys::{
        socket::SockaddrStorage,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};
use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
};

const OWN: &str = "/proc/self/ns/net";

/// An interface as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) up: bool,
    pub(crate) mac: Option<MacAddr>,
    /// In bytes, if the kernel tells.
    pub(crate) mtu: Option<u32>,
    /// With the prefix lengths of their subnets.
    pub(crate) addresses: Vec<IpNetwork>,
    /// Of the main tables, those that have a gateway.
    pub(crate) routes: Vec<Route>,
}

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Opens a container's.
    ///
    /// A path where nothing is means that the container is gone; the host's own namespace is no container's.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        // A pipe would be waited for.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let none = || invalid("CNI_NETNS", &format!("{shown} is no network namespace"));
        let file = file.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => Failure::new(
                Code::UnknownContainer,
                format!("the container has no network namespace at {shown}"),
            ),
            // As a socket answers.
            Some(Errno::ENXIO) => none(),
            _ => Failure::new(Code::Io, format!("cannot open {shown}")).because(error),
        })?;
        let failed =
            |error: io::Error| Failure::new(Code::Io, format!("cannot look at {shown}")).because(error);
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(none());
        }
        let own = fs::metadata(OWN).map_err(failed)?.ino();
        if file.metadata().map_err(failed)?.ino() == own {
            return Err(invalid("CNI_NETNS", &format!("{shown} is the host's own namespace")));
        }
        let namespace = Self(file);
        match namespace.within(|| Ok(())) {
            // A namespace of another kind, of mounts or processes.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Err(none()),
            entered => entered.map(|()| namespace).map_err(failed),
        }
    }

    /// Looks at one interface; `None` if there is none of this name.
    pub(crate) fn interface(&self, name: &str) -> Result<Option<Interface>, Failure> {
        self.within(|| look(name)).map_err(|error| {
            Failure::new(Code::Io, format!("cannot look at {name} in the container")).because(error)
        })
    }

    /// Works inside it, on a thread of its own.
    fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let worked = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread.join()
        });
        worked.unwrap_or_else(|_| Err(io::Error::other("the look failed")))
    }
}

fn look(name: &str) -> io::Result<Option<Interface>> {
    let mut found: Option<Interface> = None;
    for entry in getifaddrs()?.filter(|entry| entry.interface_name == name) {
        let interface = found.get_or_insert_default();
        interface.up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interface.mac = link.addr().map(MacAddr);
        } else if let (Some(ip), Some(mask)) = (ip(&address), entry.netmask.as_ref().and_then(ip))
            && let Ok(address) = IpNetwork::with_netmask(ip, mask)
        {
            interface.addresses.push(address);
        }
    }
    if let Some(interface) = &mut found {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        interface.mtu = read(&format!("/proc/sys/net/ipv6/conf/{name}/mtu")).trim().parse().ok();
        interface.routes = routes::ipv4(&read("/proc/thread-self/net/route"), name);
        interface.routes.extend(routes::ipv6(&read("/proc/thread-self/net/ipv6_route"), name));
    }
    Ok(found)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
