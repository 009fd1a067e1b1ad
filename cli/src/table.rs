//! Tables as the commands print them: columns and nothing else, so that they can be cut and searched.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table with these headings.
pub(crate) fn table<const N: usize>(headings: [&str; N]) -> Table {
    with_headings(headings.map(str::to_uppercase))
}

/// As [`table`], of headings as they stand.
pub(crate) fn with_headings(headings: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Aligns these columns to the right, as numbers are read.
pub(crate) fn numbers(table: &mut Table, columns: &[usize]) {
    for &index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table as text, without blanks at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The text on one line, without what a terminal takes for a command: workers and stores say all sorts of things.
pub(crate) fn one_line(text: &str) -> String {
    let words = text.split(char::is_control).filter(|part| !part.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// A figure, or a dash while it isn't known.
pub(crate) fn figure(value: f64, spelled: impl FnOnce(f64) -> String) -> String {
    if value.is_finite() && value > 0.0 { spelled(value) } else { "–".into() }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let count = count as f64;
    match units.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", count / size),
        None => format!("{count} B"),
    }
}

/// A number of operations, to four digits and in the unit that suits it.
pub(crate) fn operations(count: f64) -> String {
    let units = [(" P", 1e15), (" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3)];
    let (unit, size) = units.into_iter().find(|(_, size)| count >= *size).unwrap_or(("", 1.0));
    let scaled = count / size;
    let decimals = match scaled {
        ..10.0 => 3,
        ..100.0 => 2,
        _ => 1,
    };
    if unit.is_empty() { format!("{count}") } else { format!("{scaled:.decimals$}{unit}") }
}
