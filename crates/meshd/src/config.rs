//! Configuration: flags over the file over defaults. A key of the file is named as its flag.

mod dns;

use crate::front;
use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use mesh_model::{Name, NodeId, Resolver};
use serde::Deserialize;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub(crate) use dns::{DnsConfig, DnsMode};

const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";

/// The daemon of a mesh: overlay networks, DNS and ingress for this host.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  meshd\n  meshd --name vm1 --log-level debug\n  meshd --data-dir /srv/meshd --run-dir /run/meshd2\n\nThen: meshctl cluster init --advertise-addr IP"
)]
pub(crate) struct Args {
    /// Configuration file [default: /etc/meshd/meshd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keys, state and the last snapshot [default: /var/lib/meshd]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The API socket and the network namespaces [default: /run/meshd]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NODE")]
    name: Option<String>,
    /// Where Docker finds this daemon as network driver "meshd"; empty: nowhere [default: /run/docker/plugins/meshd.sock]
    #[arg(long, value_name = "PATH")]
    docker_plugin: Option<PathBuf>,
    /// The API of Docker on this host [default: /run/docker.sock]
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<PathBuf>,
    #[command(flatten)]
    dns: dns::Args,
    /// Where Prometheus finds metrics, at /metrics: whoever reaches the address reads names and traffic of services [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// What is logged [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// How it is logged [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What meshd runs beside the daemon, and starts by itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(hide = true)]
    Front(front::Args),
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    name: Option<String>,
    docker_plugin: Option<PathBuf>,
    docker_socket: Option<PathBuf>,
    #[serde(default)]
    dns_upstream: Vec<Resolver>,
    dns_mode: Option<DnsMode>,
    #[serde(rename = "dns-0x20")]
    dns_random_case: Option<bool>,
    #[serde(default)]
    dns_listen: Vec<Resolver>,
    dns_limit: Option<u32>,
    metrics_listen: Option<SocketAddr>,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) name: Name,
    /// The socket of the network driver; nowhere if empty.
    pub(crate) docker_plugin: PathBuf,
    /// The socket of Docker's API.
    pub(crate) docker_socket: PathBuf,
    pub(crate) dns: DnsConfig,
    /// Where metrics are served over TCP, if anywhere.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log_level: LogLevel,
    pub(crate) log_format: LogFormat,
}

impl LogLevel {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl LogFormat {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Config {
    /// What the kernel's data plane of this node works with.
    pub(crate) fn data_plane(&self, me: NodeId) -> mesh_net::Config {
        mesh_net::Config { run_dir: self.run_dir.clone(), me, queries: self.dns.limit }
    }

    /// Flags over the file over defaults.
    pub(crate) fn load(args: Args) -> anyhow::Result<Self> {
        let file = read_file(args.config.as_deref())?;
        let name = match args.name.or(file.name) {
            Some(name) => name,
            None => host_name()?,
        };
        let dns_of_file = dns::Args {
            upstream: file.dns_upstream,
            mode: file.dns_mode,
            random_case: file.dns_random_case,
            listen: file.dns_listen,
            limit: file.dns_limit,
        };
        Ok(Self {
            data_dir: args.data_dir.or(file.data_dir).unwrap_or_else(|| "/var/lib/meshd".into()),
            run_dir: args.run_dir.or(file.run_dir).unwrap_or_else(|| "/run/meshd".into()),
            name: name.parse().context("node name")?,
            docker_plugin: args
                .docker_plugin
                .or(file.docker_plugin)
                .unwrap_or_else(|| "/run/docker/plugins/meshd.sock".into()),
            docker_socket: args
                .docker_socket
                .or(file.docker_socket)
                .unwrap_or_else(|| "/run/docker.sock".into()),
            dns: DnsConfig::new(args.dns, dns_of_file)?,
            metrics: args.metrics_listen.or(file.metrics_listen),
            log_level: args.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
        })
    }

    /// The API socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("meshd.sock")
    }
}

fn read_file(named: Option<&Path>) -> anyhow::Result<File> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(e) => bail!("cannot read {}: {e}", path.display()),
    };
    parse_file(&text).map_err(|reason| anyhow::anyhow!("{}: {reason}", path.display()))
}

/// One line for what is wrong, with the number of the line it is in.
fn parse_file(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().replace('\n', " "))
    })
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("host name")?;
    let name = name.into_string().map_err(|_| anyhow::anyhow!("the host name is no text: give --name"))?;
    // A fully qualified name would make every node's name long and say no more.
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse_file("name = \"vm1\"\nnmae = \"vm2\"\n").unwrap_err();
        assert!(error.starts_with("line 2: unknown field `nmae`"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn every_flag_has_a_key() {
        let text = "data-dir = '/d'\nrun-dir = '/r'\nname = 'n'\nlog-level = 'debug'\nlog-format = 'json'\n\
            docker-plugin = ''\ndocker-socket = '/run/docker.sock'\ndns-upstream = ['10.0.0.1', '[fd00::1]:5353']\n\
            dns-mode = 'parallel'\ndns-0x20 = true\ndns-listen = ['127.0.0.2']\ndns-limit = 5000\n\
            metrics-listen = '127.0.0.1:9469'\n";
        let file = parse_file(text).unwrap();
        assert_eq!(file.docker_plugin, Some("".into()));
        assert_eq!(file.run_dir, Some("/r".into()));
        assert!(matches!((file.log_level, file.log_format), (Some(LogLevel::Debug), Some(LogFormat::Json))));
        assert_eq!(file.dns_upstream, ["10.0.0.1".parse().unwrap(), "[fd00::1]:5353".parse().unwrap()]);
        assert_eq!((file.dns_mode, file.dns_random_case), (Some(DnsMode::Parallel), Some(true)));
        assert_eq!(file.dns_listen, ["127.0.0.2".parse().unwrap()]);
        assert_eq!(file.dns_limit, Some(5000));
        assert_eq!(file.metrics_listen, Some(([127, 0, 0, 1], 9469).into()));
        for flag in Args::command().get_arguments().filter_map(clap::Arg::get_long) {
            let named = text.lines().any(|line| line.starts_with(&format!("{flag} = ")));
            assert!(named || matches!(flag, "config" | "help" | "version"), "--{flag} has no key here");
        }
        assert!(parse_file("log-level = 'loud'").unwrap_err().starts_with("line 1: "));
    }

    fn flags(line: &str) -> Result<dns::Args, String> {
        let args = Args::try_parse_from(line.split_whitespace());
        args.map(|args| args.dns).map_err(|e| e.to_string())
    }

    #[test]
    fn dns_flags() {
        let args = flags(
            "meshd --dns-upstream 10.0.0.1 --dns-upstream [fd00::1]:5353 --dns-mode parallel --dns-0x20 --dns-listen 127.0.0.2",
        )
        .unwrap();
        assert_eq!(args.upstream, ["10.0.0.1".parse().unwrap(), "[fd00::1]:5353".parse().unwrap()]);
        assert_eq!((args.mode, args.random_case), (Some(DnsMode::Parallel), Some(true)));
        assert_eq!(args.listen, ["127.0.0.2:53".parse().unwrap()]);
        assert_eq!(flags("meshd --dns-0x20=false").unwrap().random_case, Some(false));
        assert_eq!(flags("meshd").unwrap().random_case, None);
        for (line, text) in [
            ("meshd --dns-upstream banana", "'banana' is no resolver"),
            ("meshd --dns-upstream 10.0.0.1:0", "1 to 65535"),
            ("meshd --dns-mode both", "ordered, parallel"),
            ("meshd --dns-0x20=maybe", "maybe"),
            ("meshd --dns-listen 0.0.0.0", "no single host"),
        ] {
            assert!(flags(line).is_err_and(|e| e.contains(text)), "{line}: {:?}", flags(line));
        }
        for (text, expected) in [
            ("name = 'vm1'\ndns-upstream = ['10.0.0']", "line 2: '10.0.0' is no resolver"),
            ("dns-mode = 'both'", "line 1: unknown variant `both`"),
            ("dns-0x20 = 'yes'", "line 1: invalid type"),
        ] {
            assert!(parse_file(text).is_err_and(|e| e.starts_with(expected)), "{:?}", parse_file(text));
        }
    }
}
