//! Tables without borders, as Docker's.

use super::{Column, Style};
use comfy_table::{ContentArrangement, Table, presets};

/// Blanks between two columns.
const GAP: u16 = 3;

/// A head and a row for each record.
pub(crate) fn rows<T>(records: &[T], columns: &[Column<T>], style: &Style) -> String {
    let mut table = plain();
    table.set_header(columns.iter().map(|(head, _)| *head));
    for record in records {
        table.add_row(columns.iter().map(|(_, show)| show(record, style)));
    }
    text(table)
}

/// A line for each field of one record that has something to say.
pub(crate) fn fields<T>(record: &T, fields: &[Column<T>], style: &Style) -> String {
    let mut table = plain();
    for (name, show) in fields {
        let value = show(record, style);
        if !value.is_empty() {
            table.add_row([format!("{name}:"), value]);
        }
    }
    text(table)
}

fn plain() -> Table {
    let mut table = Table::new();
    // Lines are left to the terminal to break: a table that is cut can't be searched.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.trim_fmt() + "\n"
}
