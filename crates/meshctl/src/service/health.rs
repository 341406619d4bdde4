//! Flags of health checks.

use crate::value;
use anyhow::Context;
use mesh_model::{HealthCheck, HealthKind, parse_millis};

/// A check of which nothing but the kind is said.
const fn defaults(kind: HealthKind) -> HealthCheck {
    HealthCheck { kind, port: None, interval_ms: 2_000, timeout_ms: 1_000, rise: 2, fall: 3 }
}

/// The check of a service, as far as it is said.
#[derive(Debug, clap::Args)]
#[group(multiple = true)]
pub(crate) struct HealthArgs {
    /// A replica is healthy if GET of this path answers 2xx or 3xx
    #[arg(long, value_name = "PATH", conflicts_with = "health_tcp")]
    health_http: Option<String>,
    /// A replica is healthy if it accepts a connection
    #[arg(long)]
    health_tcp: bool,
    /// Port of the check; the first TCP target unless given
    #[arg(long, value_name = "PORT", value_parser = value::port, allow_negative_numbers = true)]
    health_port: Option<u16>,
    /// From one check to the next [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse_millis)]
    health_interval: Option<u64>,
    /// Successes in a row that bring a replica in [default: 2]
    #[arg(long, value_name = "COUNT", value_parser = value::count, allow_negative_numbers = true)]
    health_rise: Option<u32>,
    /// Failures in a row that take a replica out [default: 3]
    #[arg(long, value_name = "COUNT", value_parser = value::count, allow_negative_numbers = true)]
    health_fall: Option<u32>,
    /// How long one check may take [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_millis)]
    health_timeout: Option<u64>,
}

impl HealthArgs {
    /// Whether anything is said of a check.
    pub(crate) const fn given(&self) -> bool {
        self.health_http.is_some()
            || self.health_tcp
            || self.health_port.is_some()
            || self.health_interval.is_some()
            || self.health_rise.is_some()
            || self.health_fall.is_some()
            || self.health_timeout.is_some()
    }

    /// The check from now on: what is said, over what there is.
    pub(crate) fn check(&self, current: Option<&HealthCheck>) -> anyhow::Result<HealthCheck> {
        let said = match (&self.health_http, self.health_tcp) {
            (Some(path), _) => Some(HealthKind::Http(path.clone())),
            (None, true) => Some(HealthKind::Tcp),
            (None, false) => None,
        };
        let kind = said
            .or_else(|| current.map(|check| check.kind.clone()))
            .context("what is checked? Give --health-http PATH or --health-tcp")?;
        let base = match current {
            Some(check) => HealthCheck { kind, ..check.clone() },
            None => defaults(kind),
        };
        Ok(HealthCheck {
            port: self.health_port.or(base.port),
            interval_ms: self.health_interval.unwrap_or(base.interval_ms),
            timeout_ms: self.health_timeout.unwrap_or(base.timeout_ms),
            rise: self.health_rise.unwrap_or(base.rise),
            fall: self.health_fall.unwrap_or(base.fall),
            kind: base.kind,
        })
    }
}

/// One line on a check.
pub(super) fn described(check: &HealthCheck) -> String {
    let kind = match &check.kind {
        HealthKind::Http(path) => format!("GET {path}"),
        HealthKind::Tcp => "TCP connect".to_owned(),
    };
    let port = check.port.map(|port| format!(", port {port}")).unwrap_or_default();
    let (interval, timeout) = (duration(check.interval_ms), duration(check.timeout_ms));
    format!("{kind}{port}, every {interval}, timeout {timeout}, rise {}, fall {}", check.rise, check.fall)
}

/// Milliseconds as they are written on the command line.
pub(super) fn duration(millis: u64) -> String {
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}
