//! `mesh-cni`: the CNI plugin of meshd (CNI specification 1.1.0, and what it was from 0.3.0 on).
//!
//! A thin client of the daemon's local socket: a runtime asks for an attachment, and meshd makes an endpoint of it. No
//! state is kept here; what the runtime calls the attachment is the endpoint's owner (`cni:NETWORK/CONTAINER/INTERFACE`), and
//! by that `DEL`, `CHECK` and `GC` find it again, whether or not the namespace is still there.
//!
//! ```text
//! environment ─► Request ─┐
//! stdin ───────► Config ──┴─► Wishes ─► meshd ─► look into the namespace ─► result on stdout
//! ```
//!
//! Everything is parsed before meshd is asked for anything. Errors are JSON on stdout with the specification's codes.

mod add;
mod args;
mod check;
mod config;
mod daemon;
mod failure;
mod namespace;
mod release;
mod request;
mod result;
mod routes;
mod status;
mod version;
mod wishes;

use config::Config;
use daemon::Daemon;
use failure::{Code, Failure};
use request::{Command, Request};
use serde_json::Value;
use std::{
    env,
    io::{self, Read, Write},
    process::ExitCode,
    time::Duration,
};
use version::Version;

/// How long one call may take: a runtime holds locks meanwhile.
const LIMIT: Duration = Duration::from_secs(120);
/// What is read of a configuration. The largest part is the list of attachments of `GC`.
const MAX_CONFIG: u64 = 64 * 1024 * 1024;

fn main() -> ExitCode {
    let (version, outcome) = answer();
    let (text, code) = match &outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.json(version).to_string(), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that the answer is in, and what is to be printed.
fn answer() -> (Version, Result<Option<Value>, Failure>) {
    let request = match Request::read(|name| env::var_os(name)) {
        Ok(request) => request,
        Err(failure) => return (Version::LATEST, Err(failure)),
    };
    let mut text = Vec::new();
    if let Err(error) = io::stdin().take(MAX_CONFIG).read_to_end(&mut text) {
        let failure = Failure::new(Code::Io, "the network configuration can't be read").because(error);
        return (Version::LATEST, Err(failure));
    }
    if request.command == Command::Version {
        return version::answer(&text);
    }
    match Config::parse(&text) {
        Ok(config) => (config.version, run(&request, &config)),
        Err(failure) => (config::version_of(&text).unwrap_or(Version::LATEST), Err(failure)),
    }
}

fn run(request: &Request, config: &Config) -> Result<Option<Value>, Failure> {
    request.command.check_version(config.version)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Code::Io, "no runtime").because(e))?;
    let daemon = Daemon::new(config);
    let work = async {
        match &request.command {
            Command::Add(attachment) => add::add(&daemon, config, attachment).await.map(Some),
            Command::Del(attachment) => release::del(&daemon, config, attachment).await.map(|()| None),
            Command::Check(attachment) => check::check(&daemon, config, attachment).await.map(|()| None),
            Command::Gc => release::gc(&daemon, config).await.map(|()| None),
            Command::Status => status::status(&daemon, config).await.map(|()| None),
            Command::Version => Ok(None),
        }
    };
    let slow = || Failure::new(Code::TryAgain, "meshd takes too long: see its log and 'meshctl status'");
    runtime.block_on(async { tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err(slow())) })
}
