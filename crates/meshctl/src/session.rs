//! What every command gets: the client of the daemon and the way to answer.

use crate::{
    failure,
    output::{Format, Output},
    progress,
};
use clap::Args;
use mesh_api::{Client, Created};
use std::{future::Future, path::PathBuf};

/// What a command's own options are not mixed with.
const COMMON: &str = "Options of every command";

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// Socket of meshd
    #[arg(
        long,
        global = true,
        help_heading = COMMON,
        value_name = "PATH",
        env = "MESH_SOCKET",
        default_value = "/run/meshd/meshd.sock"
    )]
    socket: PathBuf,
    /// Form of the answer: table for people; json and yaml for programs, stable
    #[arg(
        short,
        long,
        global = true,
        help_heading = COMMON,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true,
        default_value_t
    )]
    output: Format,
    /// Print only IDs (join-token: only the token), or nothing
    #[arg(short, long, global = true, help_heading = COMMON)]
    quiet: bool,
}

/// One call of `meshctl`.
#[derive(Debug)]
pub(crate) struct Session {
    /// The daemon.
    pub(crate) client: Client,
    /// Where answers go.
    pub(crate) output: Output,
}

impl Session {
    pub(crate) fn new(globals: Globals) -> Self {
        Self { client: Client::new(globals.socket), output: Output::new(globals.output, globals.quiet) }
    }

    /// Runs a command's future on this thread; no other thread is started.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
    }

    /// Waits for the daemon, with a spinner on a terminal once it takes longer than a second.
    pub(crate) async fn wait<T>(
        &self,
        doing: &str,
        request: impl Future<Output = Result<T, mesh_api::Error>>,
    ) -> anyhow::Result<T> {
        let answer = progress::shown(doing, request).await?;
        for warning in self.client.take_warnings() {
            failure::complain(&format!("warning: {warning}"));
        }
        Ok(answer)
    }

    /// Asks for several things: all of them, or the first refusal.
    pub(crate) async fn each<T>(
        &self,
        names: &[String],
        find: impl AsyncFn(&str) -> Result<T, mesh_api::Error>,
    ) -> anyhow::Result<Vec<T>> {
        let mut found = Vec::new();
        for name in names {
            found.push(self.wait("asking meshd", find(name)).await?);
        }
        Ok(found)
    }

    /// Answers with the ID of what was created or changed; warnings go to stderr.
    pub(crate) fn created(&self, created: &Created) -> anyhow::Result<()> {
        for warning in &created.warnings {
            failure::complain(&format!("warning: {warning}"));
        }
        self.output.done(created, &created.id, &created.id)
    }
}
