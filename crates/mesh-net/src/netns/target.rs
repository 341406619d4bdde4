//! What endpoints are attached to: namespaces that belong to somebody else.

use super::{Namespace, says_gone, within};
use crate::{
    error::{Error, Result},
    netlink::{Netlink, link_named, read_links},
    object::Ifname,
};
use mesh_model::{MacAddr, Target};
use std::os::fd::{AsFd, BorrowedFd};

/// The network namespace of a target, checked. Hold it for a moment only: a namespace that is held open never ends,
/// and its interfaces with it.
#[derive(Debug)]
pub struct TargetNamespace {
    namespace: Namespace,
}

impl TargetNamespace {
    /// Opens a target's namespace.
    ///
    /// # Errors
    /// It does not exist, is no network namespace, or is the one that the calling thread is in, which is the host's.
    pub fn open(target: &Target) -> Result<Self> {
        let path = target.namespace_path();
        let namespace = match Namespace::open(&path) {
            Err(Error::Namespace { source, .. }) if says_gone(&source) => {
                return Err(Error::TargetGone { target: target.to_string(), path });
            }
            other => other?,
        };
        if namespace.inode() == Namespace::current()?.inode() {
            return Err(Error::HostNamespace { target: target.to_string() });
        }
        match within(&namespace, || ()) {
            // A namespace of another kind (of processes, of mounts) can't be entered as one of the network.
            Err(Error::Namespace { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::NotANamespace { path })
            }
            entered => entered.map(|()| Self { namespace }),
        }
    }

    /// The interface in it that has a MAC address, if one has and is up.
    ///
    /// # Errors
    /// It can't be entered, or netlink is out of reach.
    pub fn interface(&self, mac: MacAddr) -> Result<Option<String>> {
        let links = within(self, || read_links(&mut Netlink::open()?))??;
        let found = links.into_values().find(|link| link.up && link.link.mac == mac);
        Ok(found.map(|link| link.name.to_string()))
    }

    /// The first interface name of this prefix and a number that nothing in it has.
    ///
    /// # Errors
    /// It can't be entered, or netlink is out of reach.
    pub fn free_name(&self, prefix: &str) -> Result<String> {
        let mut netlink = within(self, Netlink::open)??;
        let mut names = (0..).map_while(|number: u32| Ifname::new(&format!("{prefix}{number}")));
        names
            .find_map(|name| match link_named(&mut netlink, name) {
                Ok(Some(_)) => None,
                Ok(None) => Some(Ok(name.to_string())),
                Err(error) => Some(Err(error)),
            })
            .unwrap_or_else(|| Err(Error::BadIfname(prefix.to_owned())))
    }

    /// Its inode number: what an endpoint's record remembers it by.
    pub fn inode(&self) -> u64 {
        self.namespace.inode()
    }
}

impl AsFd for TargetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
