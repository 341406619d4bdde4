//! Texts of `resolv.conf`.

use crate::subject;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// One that may not be asked.
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 100, 1));

/// The input is the text.
pub fn resolv_conf(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let upstreams = subject::upstreams(&text, OURS);
    let lines = text.lines().filter(|line| line.contains("nameserver")).count();
    assert!(upstreams.len() <= lines, "{upstreams:?} of {lines} lines");
    assert_eq!(upstreams.iter().collect::<BTreeSet<_>>().len(), upstreams.len(), "{upstreams:?}");
    assert!(upstreams.iter().all(|upstream| upstream.port() == 53 && upstream.ip() != OURS));
    let line = |upstream: &std::net::SocketAddr| match upstream {
        std::net::SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            format!("nameserver {}%{}\n", v6.ip(), v6.scope_id())
        }
        other => format!("nameserver {}\n", other.ip()),
    };
    let written: String = upstreams.iter().map(line).collect();
    assert_eq!(subject::upstreams(&written, OURS), upstreams, "written anew");
}
