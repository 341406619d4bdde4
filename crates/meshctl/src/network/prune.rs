//! `meshctl network prune`.

use crate::session::Session;
use anyhow::{Context, bail};
use std::io::{self, BufRead, Write};

/// `network prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        if !self.force {
            confirm()?;
        }
        let pruned = session.wait("removing networks", session.client.network_prune()).await?;
        session.output.done(&pruned, &pruned.removed.join("\n"), &pruned.removed.join("\n"))
    }
}

/// Asks on stderr, so that the answer of the command stays alone on stdout.
fn confirm() -> anyhow::Result<()> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "This removes all networks that no endpoint and no service is on. Go on? [y/N] ")
        .and_then(|()| stderr.flush())
        .context("cannot ask: give --force")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer: give --force")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was removed: answer y, or give --force"),
    }
}
