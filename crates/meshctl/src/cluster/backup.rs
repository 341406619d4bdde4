//! `meshctl cluster backup` and `restore`.

use crate::{output::utc, session::Session};
use anyhow::{Context, bail};
use serde::Serialize;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// `cluster backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// File to write, readable by its owner only; '-' is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// `cluster restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// File that 'cluster backup' wrote; '-' is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct Saved<'a> {
    file: &'a Path,
    bytes: usize,
}

pub(super) async fn backup(session: &Session, args: &BackupArgs) -> anyhow::Result<()> {
    let file = args.file.as_path();
    let to_stdout = file == Path::new("-");
    // Said before the daemon is asked for its secrets.
    if !to_stdout && !args.force && file.exists() {
        bail!("{} exists: choose another name, or --force to replace it", file.display());
    }
    let backup = session.wait("making the backup", session.client.cluster_backup()).await?;
    if to_stdout {
        return io::stdout().write_all(&backup).context("cannot write the backup");
    }
    write(file, &backup, args.force).with_context(|| format!("cannot write {}", file.display()))?;
    let text = format!(
        "The cluster's state is in {}. It holds the cluster's keys: keep it as safe as those.",
        file.display()
    );
    session.output.done(&Saved { file, bytes: backup.len() }, &text, "")
}

/// Under another name first: the file is whole, or as it was.
fn write(file: &Path, content: &[u8], replace: bool) -> io::Result<()> {
    let mut draft = file.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = file.with_file_name(draft);
    let written = write_new(&draft, content).and_then(|()| {
        // A link, unlike a rename, replaces nothing: not what came there meanwhile either.
        if replace { fs::rename(&draft, file) } else { fs::hard_link(&draft, file) }
    });
    // It has its other name now, or is not wanted.
    let _ = fs::remove_file(&draft);
    written?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

pub(super) async fn restore(session: &Session, args: &RestoreArgs) -> anyhow::Result<()> {
    let read = if args.file == Path::new("-") {
        let mut backup = Vec::new();
        io::stdin().read_to_end(&mut backup).map(|_| backup)
    } else {
        fs::read(&args.file)
    };
    let backup = read.with_context(|| format!("cannot read {}", args.file.display()))?;
    let restored =
        session.wait("restoring the cluster", session.client.cluster_restore(backup.into())).await?;
    let mut text = format!(
        "This node is manager {} again, with the state of {} (revision {}).",
        restored.name,
        utc(restored.time * 1000),
        restored.revision
    );
    if !restored.demoted.is_empty() {
        text += &format!(
            "\nWorkers now: {}. Those that kept their disks follow by themselves; one that lost its own is removed \
             ('meshctl node rm') and joins anew. For several managers: 'meshctl cluster migrate --to etcd', then \
             'meshctl node promote'.",
            restored.demoted.join(", ")
        );
    }
    session.output.done(&restored, &text, &restored.node.to_string())
}
