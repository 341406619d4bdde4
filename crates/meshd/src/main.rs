//! `meshd`: overlay networks, DNS and ingress for this host.
//!
//! ```text
//! main ─► config ─► supervisor ─► daemon ─┬─► manager (on manager nodes): API, allocation, CA, store
//!                        ▲                └─► agent: link ─► snapshot ─► planes (net, checks, fronts)
//!                        └── every task           api (unix socket) reads from the agent, changes through both
//!                        └── engine::docker (its network driver) changes through the agent
//!
//! front: a process of its own, started and told by the agent: name servers and the L7 ingress
//! ```

mod agent;
mod api;
mod client;
mod clock;
mod config;
mod daemon;
mod data_dir;
mod doctor;
mod engine;
mod front;
mod identity;
mod lan;
mod manager;
mod noise;
mod role;
mod sockets;
mod supervisor;

use anyhow::Context;
use clap::Parser;
use config::{Args, Command, Config, LogFormat, LogLevel};
use mesh_wire as wire;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{os::unix::fs::DirBuilderExt, path::Path, process::ExitCode, sync::Arc};
use supervisor::{Spawner, Supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

fn main() -> ExitCode {
    let mut args = Args::parse();
    let ended = match args.command.take() {
        Some(Command::Front(args)) => front::run(args),
        None => Config::load(args).and_then(run),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("meshd: {}", format!("{e:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    log_to(config.log_level, config.log_format, std::io::stderr, terminal);
    check_kernel()?;
    // Keys and the API socket are nobody else's business, whatever the caller's umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    make_directory(&config.data_dir, 0o700)?;
    let _claim = data_dir::claim(&config.data_dir)?;
    make_directory(&config.run_dir, 0o755)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (supervisor, spawner) = Supervisor::new();
    let listener = api::bind(&config.socket())?;
    let metrics = match config.metrics {
        Some(address) => Some(api::metrics::bind(address).await?),
        None => None,
    };
    let end_fronts = CancellationToken::new();
    spawner.spawn("signals", signals(spawner.clone(), end_fronts.clone()));
    let daemon = daemon::Daemon::start(config.clone(), spawner.clone(), end_fronts).await?;
    spawner.spawn("Docker", engine::docker::run(config, Arc::clone(&daemon), spawner.cancel.clone()));
    if let Some(listener) = metrics {
        let serving = api::metrics::serve(listener, Arc::clone(&daemon), spawner.cancel.clone());
        spawner.spawn("metrics", serving);
    }
    spawner.spawn("local API", api::serve(listener, daemon, spawner.cancel.clone()));
    // Outside systemd there is nobody to tell.
    drop(sd_notify::notify(true, &[sd_notify::NotifyState::Ready]));
    supervisor.run().await
}

/// SIGTERM ends the daemon only: what runs goes on without it, for the next one to take over. SIGINT ends what serves
/// names and the L7 ingress too. The kernel's state stays in any case.
async fn signals(spawner: Spawner, end_fronts: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("ending: networks, names and published ports go on without it"),
        _ = interrupt.recv() => {
            tracing::info!("ending, names and the L7 ingress too: networks and ports in the kernel stay as they are");
            end_fronts.cancel();
        }
        () = spawner.cancel.cancelled() => {}
    }
    spawner.cancel.cancel();
    Ok(())
}

/// What is missing is said now, not when the first container is attached.
fn check_kernel() -> anyhow::Result<()> {
    let missing: Vec<String> = mesh_net::probe_kernel().iter().map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { anyhow::bail!("{}", missing.join("; ")) }
}

/// 1,024 files, the usual limit for processes that ask for no more, are soon used up by connections: of agents,
/// through the proxy, or by strangers who would then keep DNS and the data plane from opening anything.
pub(crate) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(err) = raised {
        tracing::warn!(%err, "the limit of open files stays as it is");
    }
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make directory {}", path.display()))
}

pub(crate) fn log_to<W>(level: LogLevel, format: LogFormat, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = level.name();
    // What the libraries below us do is of interest only when it goes wrong.
    let own = ["meshd", "mesh_net", "mesh_dns", "mesh_proxy", "mesh_store", "mesh_cluster", "access"];
    let filter = own.iter().fold("warn".to_owned(), |filter, target| format!("{filter},{target}={level}"));
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(true);
    match format {
        LogFormat::Text => log.with_ansi(colours).init(),
        LogFormat::Json => log.json().init(),
    }
}
