//! `meshctl`: the command line of meshd.
//!
//! ```text
//! main ─► one module a noun (arguments and action) ─► mesh_api::Client ─► meshd's socket
//!                                                └─► output (table, JSON, YAML)
//! ```
//!
//! Everything runs on the main thread: `run` changes the namespaces of the thread it is on.

mod cluster;
mod dns;
mod doctor;
mod endpoint;
mod events;
mod failure;
mod metrics;
mod network;
mod node;
mod output;
mod progress;
mod removal;
mod run;
mod service;
mod session;
mod status;
mod value;

use clap::{Parser, Subcommand};
use session::{Globals, Session};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  meshctl cluster init --advertise-addr 10.0.0.1
  meshctl network create --subnet 192.168.100.0/24 blue
  meshctl service create --name web --network blue --publish 80:80 --health-http /
  meshctl run --network blue --service web -- nginx -g 'daemon off;'
  meshctl service ps web

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 wrong usage.";

/// Container networking for plain hosts: networks, services and published ports of a mesh
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Form a cluster of hosts
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Show where this host's meshd stands; exits 0 if it is ready
    Status,
    /// Find what is wrong with this host and its links to the others; exits 0 if nothing is
    Doctor(doctor::Args),
    /// Show the versions of meshctl and meshd
    Version,
    /// Show the hosts of the cluster
    #[command(subcommand)]
    Node(node::Command),
    /// Manage networks and what is connected to them
    #[command(subcommand)]
    Network(network::Command),
    /// Manage services: a name, a virtual address and published ports over replicas
    #[command(subcommand)]
    Service(service::Command),
    /// Manage endpoints: what is connected to a network
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Ask this host's name servers, and see what they do
    #[command(subcommand)]
    Dns(dns::Command),
    /// Print this host's metrics in Prometheus' text format
    Metrics,
    /// Follow what happens in the cluster, a line a change
    Events(events::Args),
    /// Run a command in a fresh network namespace on a network
    Run(run::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::of_usage(&error),
    };
    let session = Session::new(cli.globals);
    let done = match cli.command {
        Command::Run(args) => run::run(&session, &args),
        command => session.block_on(act(&session, command)).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| failure::of_action(&error))
}

async fn act(session: &Session, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Cluster(command) => command.act(session).await,
        Command::Status => status::status(session).await,
        Command::Doctor(args) => doctor::doctor(session, args).await,
        Command::Version => status::version(session).await,
        Command::Node(command) => command.act(session).await,
        Command::Network(command) => command.act(session).await,
        Command::Service(command) => command.act(session).await,
        Command::Endpoint(command) => command.act(session).await,
        Command::Dns(command) => command.act(session).await,
        Command::Metrics => metrics::metrics(session).await,
        Command::Events(args) => events::follow(session, &args).await,
        Command::Run(_) => unreachable!("run has no runtime until its namespaces are made"),
    }
}

#[cfg(test)]
mod tests;
