//! The log of an attempt as it lies under a job's output: a line of JSON for each line.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::v1::LogLine;

/// The largest that is read: 2000 lines of 2000 characters, and their names.
pub const MAX_BYTES: u64 = 32 << 20;

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    /// Its number, counted from 0 over the whole attempt.
    number: u64,
    unix_ms: u64,
    #[serde(borrow)]
    level: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    message: std::borrow::Cow<'a, str>,
}

/// Lines that follow each other, the first of this number.
pub fn write(first: u64, lines: &VecDeque<LogLine>) -> String {
    let mut text = String::new();
    for (number, line) in (first..).zip(lines) {
        let LogLine { unix_ms, level, message } = line;
        let line = Line { number, unix_ms: *unix_ms, level: level.into(), message: message.into() };
        // Numbers and text are always JSON.
        text.push_str(&serde_json::to_string(&line).unwrap_or_default());
        text.push('\n');
    }
    text
}

/// The number of the first line, and the lines. What is no line is passed over: a log is for people.
pub fn read(text: &str) -> (u64, Vec<LogLine>) {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let mut first = None;
    let lines = lines.map(|line| {
        first.get_or_insert(line.number);
        LogLine { unix_ms: line.unix_ms, level: line.level.into(), message: line.message.into() }
    });
    let lines = lines.collect();
    (first.unwrap_or(0), lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_rubbish_is_passed_over() {
        let line = |message: &str| LogLine { unix_ms: 17, level: "info".into(), message: message.into() };
        let lines = VecDeque::from([line("one \"quoted\"\nand broken"), line("two")]);
        let text = write(5, &lines);
        assert_eq!(text.lines().count(), 2);
        let text = format!("{text}{{\"number\": 7, \"uni\n");
        assert_eq!(read(&text), (5, Vec::from(lines)));
        assert_eq!(read(""), (0, Vec::new()));
    }
}
