//! Whether a socket's datagrams bear a UDP checksum: an option that the libraries in use have no wrapper for.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Turns the checksum of what is sent on or off (`SO_NO_CHECK`, for IPv6 `UDP_NO_CHECK6_TX`).
pub(super) fn send_summed(socket: impl AsFd, ipv6: bool, summed: bool) -> io::Result<()> {
    if ipv6 {
        set(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_TX, !summed)
    } else {
        set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, !summed)
    }
}

/// Takes datagrams without a checksum too, which IPv6 does not by itself (RFC 6935; `UDP_NO_CHECK6_RX`).
pub(super) fn take_unsummed(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 { set(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, true) } else { Ok(()) }
}

#[allow(unsafe_code)]
fn set(socket: impl AsFd, level: libc::c_int, option: libc::c_int, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed, and the pointer is to an integer of that length that lives
    // through the call.
    let done = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
