//! HAProxy in tcp mode, with and without splice(2).

use super::{
    Contender,
    place::{PORTS, Place},
};
use anyhow::Result;
use std::fmt::Write;

/// What others are held against.
pub(super) const TCP: &str = "HAProxy, tcp";

pub(super) enum Splice {
    Never,
    /// `option splice-auto`: where HAProxy itself finds that it pays.
    Auto,
}

pub(super) fn start(place: &Place<'_>, splice: Splice) -> Result<Contender> {
    let (name, host, option) = match splice {
        Splice::Never => (TCP, "haproxy", ""),
        Splice::Auto => ("HAProxy, splice-auto", "haproxy-splice", "  option splice-auto\n"),
    };
    let mut config = format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
{option}  timeout connect 5s
  timeout client 60s
  timeout server 60s
"
    );
    for port in PORTS {
        let server = place.server_address();
        let _ = write!(config, "listen port{port}\n  bind :{port}\n  server one {server}:{port}\n");
    }
    place.proxy(name, host, &["haproxy", "-db", "-f"], &config)
}
