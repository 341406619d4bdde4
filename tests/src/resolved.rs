//! Debian's systemd-resolved on the only host of a lab that has one: without systemd, with the rights that its unit gives it.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::process::Background;

/// Where the lab has the program, as not only root can read it.
const PLACE: &str = "/run/lab/systemd-resolved";
/// The file that `/etc/resolv.conf` links to where it runs.
pub const STUB_CONF: &str = "/run/systemd/resolve/stub-resolv.conf";
const RUN: &str = "mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d && chown nobody: /run/systemd/resolve && \
    printf '[Resolve]\\nDNS=%s\\nLLMNR=no\\nMulticastDNS=no\\n' $1 >/run/systemd/resolved.conf.d/lab.conf && \
    export LD_LIBRARY_PATH=$0 && rights=+net_raw,+net_bind_service,+setpcap && exec setpriv --reuid nobody \
    --regid nogroup --clear-groups --inh-caps $rights --ambient-caps $rights $0/systemd-resolved";

/// Starts it with one server to ask. It ends when dropped.
///
/// # Errors
///
/// When it is not where `scripts/test` puts it.
pub fn resolved(host: &Host, server: &str) -> Result<Background> {
    let test = env::current_exe()?;
    let target = test.ancestors().nth(3).context("the test is not in a target directory")?;
    let program = target.join("systemd-resolved");
    copy(&program, &host.file(PLACE))
        .with_context(|| format!("{}: scripts/test fetches what is there", program.display()))?;
    host.spawn(&["bash", "-c", RUN, PLACE, server])
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let copied = to.join(file.file_name());
        if !copied.exists() {
            fs::copy(file.path(), copied)?;
        }
    }
    Ok(())
}
