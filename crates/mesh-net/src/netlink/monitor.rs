//! What the kernel says by itself when something changes in a namespace, like `ip monitor` (`linux/rtnetlink.h`,
//! `RTNLGRP_*`): of links, neighbours and forwarding entries, addresses, routes and rules. Not of sysctls.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;

const GROUPS: [u32; 8] = [
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_RULE,
];

/// Hears of all changes in one namespace, its own as well.
pub(crate) struct Monitor(Socket);

impl Monitor {
    /// Listens in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
        Ok(Self(socket))
    }

    /// Whether anything has changed since the last call. What was said is not looked at; more than there was room for is
    /// news as well.
    pub(crate) fn has_news(&mut self) -> bool {
        let mut has_news = false;
        loop {
            // Of each message the first byte: the kernel drops the rest.
            match self.0.recv(&mut &mut [0; 1][..], libc::MSG_DONTWAIT) {
                Ok(_) => has_news = true,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return has_news,
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => has_news = true,
                Err(_) => return true,
            }
        }
    }
}
