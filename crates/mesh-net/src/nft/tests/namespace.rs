//! A fresh network namespace for a test, and the `nft` program inside it.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::nft::{Batch, Nft, Table};

/// Runs `test` on a thread in a new network namespace, which ends with it.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root: it makes network namespaces");
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` in the thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("this test needs iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Commits tables to the thread's namespace, each replaced whole.
pub(crate) fn load(tables: &[&Table]) {
    let mut batch = Batch::default();
    for table in tables {
        batch.update(None, table);
    }
    Nft::open().and_then(|mut nft| nft.commit(&batch)).unwrap_or_else(|error| panic!("{error}"));
}

/// Loads text with the `nft` program.
pub(crate) fn load_text(text: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs the nft program");
    nft.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("nft reads its input");
    let output = nft.wait_with_output().expect("nft ends");
    assert!(output.status.success(), "nft -f: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}

/// All that `nft list ruleset` shows.
pub(crate) fn list() -> String {
    let output =
        Command::new("nft").args(["list", "ruleset"]).output().expect("this test needs the nft program");
    assert!(output.status.success(), "nft list: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("nft prints UTF-8")
}

/// The same by object (`table ip t`, `chain c`), as the order of objects depends on history.
pub(crate) fn listed() -> BTreeMap<(String, String), String> {
    let mut objects = BTreeMap::new();
    let (mut table, mut object) = (String::new(), String::new());
    for line in list().lines() {
        match line.strip_prefix('\t') {
            None if line.starts_with("table") => line.clone_into(&mut table),
            Some(line) if line.ends_with('{') && !line.starts_with('\t') => line.clone_into(&mut object),
            Some(line) if line.starts_with('\t') => {
                let body: &mut String = objects.entry((table.clone(), object.clone())).or_default();
                body.push_str(line.trim());
                body.push('\n');
            }
            _ => {
                objects.entry((table.clone(), object.clone())).or_default();
            }
        }
    }
    objects
}
