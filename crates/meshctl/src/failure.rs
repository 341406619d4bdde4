//! How an error ends the program: what it says and the exit code.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::{error::Error as _, io, process::ExitCode};

/// Refused or failed.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;

/// What was asked could not be done: one line, exit code 1.
pub(crate) fn of_action(error: &anyhow::Error) -> ExitCode {
    complain(&one_line(error));
    ExitCode::from(FAILED)
}

/// An error and its causes, each said once: some errors name their cause themselves.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line += &format!(": {cause}");
        }
    }
    line
}

/// The command line is wrong: clap's text and exit code 2, or 0 for `--help` and `--version`.
///
/// A value that is malformed (a subnet, a port, a name) is refused as meshd itself would refuse it: one line, exit
/// code 1. Where the line is drawn between the two programs is not the user's business.
pub(crate) fn of_usage(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::ValueValidation
        && let (Some(ContextValue::String(argument)), Some(reason)) =
            (error.get(ContextKind::InvalidArg), error.source())
    {
        let argument = argument.split(' ').next().unwrap_or(argument).trim_matches(['<', '>', '[', ']', '.']);
        complain(&format!("{argument}: {reason}"));
        return ExitCode::from(FAILED);
    }
    // Nobody is left to read it: the exit code still tells.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// One line on stderr that leaves the exit code alone.
pub(crate) fn complain(text: &str) {
    use io::Write as _;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // As above.
    drop(writeln!(io::stderr(), "meshctl: {line}"));
}
