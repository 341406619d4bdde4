//! Answers: tables for people, JSON and YAML of the API's own types for programs.

mod age;
mod bytes;
pub(crate) mod table;
mod time;

pub(crate) use age::ago;
pub(crate) use bytes::bytes;
pub(crate) use time::utc;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};
use yaml_serde::with::singleton_map_recursive;

/// Digits of an ID that tables show; meshd takes any prefix that is unique.
const ID_DIGITS: usize = 12;

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; stable
    Json,
    /// For programs; stable
    Yaml,
}

/// One column of a table: its head and what a row shows there.
pub(crate) type Column<T> = (&'static str, fn(&T, &Style) -> String);

/// How values are written into a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// IDs and texts whole.
    pub(crate) whole: bool,
    /// Seconds since 1970, for ages.
    pub(crate) now: u64,
}

impl Style {
    /// An ID, cut unless whole ones were asked for.
    pub(crate) fn id(&self, id: impl ToString) -> String {
        let mut id = id.to_string();
        if !self.whole {
            id.truncate(ID_DIGITS);
        }
        id
    }
}

/// Where answers go.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    pub(crate) const fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Records, a row each; with `-q` their IDs.
    pub(crate) fn list<T: Serialize>(
        &self,
        records: &[T],
        id: fn(&T) -> String,
        columns: &[Column<T>],
        whole: bool,
    ) -> anyhow::Result<()> {
        let style = Style { whole, now: now() };
        self.answer(
            &records,
            || records.iter().map(|r| style.id(id(r)) + "\n").collect(),
            || table::rows(records, columns, &style),
        )
    }

    /// Records in full, a block each; with `-q` their IDs. Always a list for programs, as with Docker's `inspect`.
    pub(crate) fn inspect<T: Serialize>(
        &self,
        records: &[T],
        id: fn(&T) -> String,
        fields: &[Column<T>],
    ) -> anyhow::Result<()> {
        let style = Style { whole: true, now: now() };
        self.answer(
            &records,
            || records.iter().map(|r| id(r) + "\n").collect(),
            || {
                let blocks: Vec<String> = records.iter().map(|r| table::fields(r, fields, &style)).collect();
                blocks.join("\n")
            },
        )
    }

    /// One thing that was done: the API's answer for programs, `text` for people, `quiet` with `-q`.
    pub(crate) fn done(&self, answer: &impl Serialize, text: &str, quiet: &str) -> anyhow::Result<()> {
        let line = |text: &str| if text.is_empty() { String::new() } else { format!("{text}\n") };
        self.answer(answer, || line(quiet), || line(text))
    }

    /// One record in full; nothing with `-q`.
    pub(crate) fn show<T: Serialize>(&self, record: &T, fields: &[Column<T>]) -> anyhow::Result<()> {
        let style = Style { whole: true, now: now() };
        self.answer(record, String::new, || table::fields(record, fields, &style))
    }

    /// A record with a text of its own for people; nothing with `-q`.
    pub(crate) fn report(
        &self,
        record: &impl Serialize,
        text: impl FnOnce(&Style) -> String,
    ) -> anyhow::Result<()> {
        let style = Style { whole: true, now: now() };
        self.answer(record, String::new, || text(&style))
    }

    /// One record of a stream: a line, for programs a JSON object or a YAML document; with `-q` its ID. False when
    /// nobody reads any more.
    pub(crate) fn line(&self, record: &impl Serialize, id: &str, line: &str) -> anyhow::Result<bool> {
        let text = match self.format {
            Format::Json => serde_json::to_string(record).context("cannot write JSON")?,
            Format::Yaml => format!("---\n{}", yaml(record).context("cannot write YAML")?.trim_end()),
            Format::Table if self.quiet => id.to_owned(),
            Format::Table => line.to_owned(),
        };
        print(&(text + "\n"))
    }

    fn answer(
        &self,
        answer: &impl Serialize,
        quiet: impl FnOnce() -> String,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(answer).context("cannot write JSON")? + "\n",
            Format::Yaml => yaml(answer).context("cannot write YAML")?,
            Format::Table if self.quiet => quiet(),
            Format::Table => table(),
        };
        print(&text).map(drop)
    }
}

/// False if the reader went away (`meshctl node ls | head -1`): it has what it wanted.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write the answer"),
    }
}

/// The same as the JSON: a variant is a map, not a tag of its own (`!pid 7`), which most readers of YAML refuse.
fn yaml(answer: &impl Serialize) -> yaml_serde::Result<String> {
    let mut text = Vec::new();
    singleton_map_recursive::serialize(answer, &mut yaml_serde::Serializer::new(&mut text))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Values of a list in one cell.
pub(crate) fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
