//! How names are forwarded, and who besides containers is answered.

use anyhow::ensure;
use clap::ValueEnum;
use mesh_model::{DNS_UPSTREAMS, Resolver};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, num::NonZeroU32};

/// The flags, and the keys of the file that are named as they are.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Resolver to forward names to, in place of those of /etc/resolv.conf (repeatable)
    #[arg(long = "dns-upstream", value_name = "ADDR[:PORT]")]
    pub(super) upstream: Vec<Resolver>,
    /// Ask resolvers one after the other, or all at once [default: ordered]
    #[arg(long = "dns-mode", value_name = "MODE")]
    pub(super) mode: Option<DnsMode>,
    /// Forward names with letters in random case, which forged answers would have to guess
    #[arg(
        long = "dns-0x20",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(super) random_case: Option<bool>,
    /// Answer processes of this host too, on this address (repeatable)
    #[arg(long = "dns-listen", value_name = "ADDR[:PORT]")]
    pub(super) listen: Vec<Resolver>,
    /// Queries a second that a container may ask by UDP, and at once after a pause; 0: any number [default: 20000]
    #[arg(long = "dns-limit", value_name = "QUERIES")]
    pub(super) limit: Option<u32>,
}

/// Far more than a resolver asks, and a fifth of what a name server answers.
const LIMIT: u32 = 20_000;
/// The kernel counts nanoseconds.
const MOST: u32 = 1_000_000;

/// In which order resolvers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DnsMode {
    // One after the other.
    Ordered,
    // All at once; the first answer counts.
    Parallel,
}

/// What the daemon's DNS runs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DnsConfig {
    /// In place of the resolvers of `/etc/resolv.conf`, if there are any.
    pub(crate) upstreams: Vec<Resolver>,
    pub(crate) mode: DnsMode,
    /// Whether questions go out with letters in random case (draft-vixie-dnsext-dns0x20).
    pub(crate) random_case: bool,
    /// Where processes of the host are answered.
    pub(crate) listen: Vec<SocketAddr>,
    /// Queries a second of one container, if they are limited.
    #[serde(default)]
    pub(crate) limit: Option<NonZeroU32>,
}

impl DnsConfig {
    /// Flags over the file over defaults: a list that is given takes the place of the other.
    pub(super) fn new(flags: Args, file: Args) -> anyhow::Result<Self> {
        let upstreams = once(if flags.upstream.is_empty() { file.upstream } else { flags.upstream });
        let listen = once(if flags.listen.is_empty() { file.listen } else { flags.listen });
        ensure!(
            upstreams.len() <= DNS_UPSTREAMS,
            "dns-upstream: {} resolvers are too many: give {DNS_UPSTREAMS} or fewer",
            upstreams.len()
        );
        if let Some(own) = upstreams.iter().find(|upstream| listen.contains(upstream)) {
            anyhow::bail!("{own} is both dns-upstream and dns-listen: meshd would ask itself: leave one out");
        }
        let limit = flags.limit.or(file.limit).unwrap_or(LIMIT);
        ensure!(
            limit <= MOST,
            "dns-limit: {limit} queries a second are too many to count: give {MOST} or fewer, or 0"
        );
        Ok(Self {
            upstreams,
            mode: flags.mode.or(file.mode).unwrap_or(DnsMode::Ordered),
            random_case: flags.random_case.or(file.random_case).unwrap_or(false),
            listen: listen.into_iter().map(Resolver::address).collect(),
            limit: NonZeroU32::new(limit),
        })
    }
}

fn once(given: Vec<Resolver>) -> Vec<Resolver> {
    let mut once = Vec::with_capacity(given.len());
    for resolver in given {
        if !once.contains(&resolver) {
            once.push(resolver);
        }
    }
    once
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolvers(texts: &[&str]) -> Vec<Resolver> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_said_is_the_hosts_resolvers_in_order() {
        let config = DnsConfig::new(Args::default(), Args::default()).unwrap();
        let expected = DnsConfig {
            upstreams: Vec::new(),
            mode: DnsMode::Ordered,
            random_case: false,
            listen: Vec::new(),
            limit: NonZeroU32::new(20_000),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn flags_go_over_the_file() {
        let file = || Args {
            upstream: resolvers(&["10.0.0.1"]),
            mode: Some(DnsMode::Parallel),
            random_case: Some(true),
            listen: resolvers(&["127.0.0.2"]),
            limit: Some(7),
        };
        let of_file = DnsConfig::new(Args::default(), file()).unwrap();
        assert_eq!((of_file.mode, of_file.random_case), (DnsMode::Parallel, true));
        assert_eq!(of_file.listen, ["127.0.0.2:53".parse().unwrap()]);
        assert_eq!(of_file.limit, NonZeroU32::new(7));
        let flags = Args {
            upstream: resolvers(&["10.0.0.2:5353", "10.0.0.3", "10.0.0.2:5353"]),
            mode: Some(DnsMode::Ordered),
            random_case: Some(false),
            listen: resolvers(&["[fd00::1]:5353"]),
            limit: Some(0),
        };
        let config = DnsConfig::new(flags, file()).unwrap();
        assert_eq!(config.upstreams, resolvers(&["10.0.0.2:5353", "10.0.0.3"]));
        assert_eq!((config.mode, config.random_case), (DnsMode::Ordered, false));
        assert_eq!(config.listen, ["[fd00::1]:5353".parse().unwrap()]);
        assert_eq!(config.limit, None);
    }

    #[test]
    fn what_can_not_work_is_refused() {
        let refusal = |flags: Args, file: Args| DnsConfig::new(flags, file).expect_err("refused").to_string();
        let own = || resolvers(&["127.0.0.2:5353"]);
        let both =
            refusal(Args { upstream: own(), ..Args::default() }, Args { listen: own(), ..Args::default() });
        assert!(both.starts_with("127.0.0.2:5353 is both") && !both.contains('\n'), "{both}");
        let many = (1..=9).map(|last| format!("10.0.0.{last}").parse().unwrap()).collect();
        let many = refusal(Args { upstream: many, ..Args::default() }, Args::default());
        let often = refusal(Args { limit: Some(1_000_001), ..Args::default() }, Args::default());
        assert!(often.starts_with("dns-limit: 1000001 queries a second are too many"), "{often}");
        assert_eq!(many, "dns-upstream: 9 resolvers are too many: give 8 or fewer");
    }
}
