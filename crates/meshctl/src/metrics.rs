//! `meshctl metrics`.

use crate::session::Session;
use std::io::{self, ErrorKind, Write};

pub(crate) async fn metrics(session: &Session) -> anyhow::Result<()> {
    let text = session.wait("asking meshd", session.client.metrics()).await?;
    match io::stdout().lock().write_all(&text) {
        // Whoever reads has read enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}
