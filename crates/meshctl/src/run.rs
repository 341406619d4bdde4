//! `meshctl run`: a command in a fresh network namespace on a network.
//!
//! ```text
//! find the command ─► block signals ─► unshare, `lo` up ─► attach pid:SELF ─► private resolv.conf ─► spawn
//!                                                                   │                                  │
//!     exit with its code ◄─ endpoint removed ◄──────────────────────┴──────── signals passed on, wait ◄┘
//! ```
//!
//! meshd watches this process: should it be killed, its endpoint goes, and the kernel ends the command
//! (PR_SET_PDEATHSIG) and the namespaces. Nothing else is left behind.

mod child;
#[allow(unsafe_code)]
mod kernel;
mod namespace;
mod program;
mod resolv;
mod signals;

use crate::{
    failure::{complain, one_line},
    session::Session,
    value,
};
use mesh_api::{Disconnect, EndpointView};
use mesh_model::{EndpointSpec, Name, Target, Weight};
use program::Program;
use signals::{Blocked, Signals};
use std::{ffi::OsString, net::IpAddr, process::ExitCode, time::Duration};

/// How long meshd may take to remove the endpoint of a command that ended; it does so later by itself.
const LEAVE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  meshctl run --network blue -- ping -c 2 web
  meshctl run --network blue --service web --name web1 -- nginx -g 'daemon off;'

The command sees the network through eth0 and asks its name server; everything
else is as on the host. Signals are passed on to it. Its exit code is kept: 128
and the signal's number if a signal ended it, 127 if it was not found, 126 if it
can't be executed.";

/// `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name, ID or unique prefix of the ID
    #[arg(long)]
    network: String,
    /// Make it a replica of this service
    #[arg(long)]
    service: Option<String>,
    /// Name of the endpoint; made up unless given
    #[arg(long)]
    name: Option<Name>,
    /// Address, at most one of each family; free ones unless given
    #[arg(long, value_name = "IP", value_parser = value::address)]
    ip: Vec<IpAddr>,
    /// Another name for it on the network (repeatable)
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
    /// Share of the service's new connections relative to its other replicas, 0 to 256
    #[arg(long, default_value_t)]
    weight: Weight,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command to its end and returns its exit code.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    // Before anything is made.
    let program = match Program::find(&args.command) {
        Ok(program) => program,
        Err(reason) => return Ok(reason.told()),
    };
    let signals = Blocked::new()?;
    namespace::enter()?;
    session.block_on(on_network(session, args, &program, signals))
}

async fn on_network(
    session: &Session,
    args: &Args,
    program: &Program<'_>,
    signals: Blocked,
) -> anyhow::Result<ExitCode> {
    let signals = signals.listen()?;
    let spec = args.endpoint();
    let endpoint = tokio::select! {
        endpoint = session.wait("connecting", session.client.connect(&spec)) => endpoint?,
        // meshd sees that nobody is left to be connected.
        signal = signals.asked_to_end() => return Ok(child::code_of_signal(signal?)),
    };
    let ended = command(program, &signals, &endpoint).await;
    leave(session, &endpoint).await;
    ended
}

async fn command(
    program: &Program<'_>,
    signals: &Signals,
    endpoint: &EndpointView,
) -> anyhow::Result<ExitCode> {
    resolv::install(&endpoint.nameservers)?;
    match child::spawn(program, signals) {
        Ok(child) => child.wait(signals).await,
        Err(error) => Ok(program.refused(&error).told()),
    }
}

async fn leave(session: &Session, endpoint: &EndpointView) {
    // Nothing is in flight to a process that has ended: no drain.
    let request =
        Disconnect { network: endpoint.network.clone(), endpoint: endpoint.id.to_string(), force: true };
    let removal = session.wait("disconnecting", session.client.disconnect(&request));
    let reason = match tokio::time::timeout(LEAVE, removal).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => one_line(&error),
        Err(_) => format!("no answer within {} s", LEAVE.as_secs()),
    };
    complain(&format!("warning: endpoint '{}' is left for meshd to remove: {reason}", endpoint.name));
}

impl Args {
    fn endpoint(&self) -> EndpointSpec {
        let target = Target::Pid(nix::unistd::getpid().as_raw());
        EndpointSpec {
            service: self.service.clone(),
            name: self.name.clone(),
            addresses: self.ip.clone(),
            aliases: self.alias.clone(),
            weight: self.weight,
            ..EndpointSpec::new(&self.network, target, "eth0")
        }
    }
}
