//! stdout is data, stderr is chatter.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::process;

use miette::Diagnostic;
use serde::Serialize;

use crate::error::Error;

/// The version of everything that `-o json` writes.
const JSON_VERSION: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T: Serialize> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Writes text to stdout, with a line end.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
    end_unless_written(written);
}

/// Writes `content`, which serialises as an object, to stdout as one line of JSON with the format's version in front.
pub(crate) fn print_json(content: &impl Serialize) {
    let mut stdout = io::stdout().lock();
    let written = serde_json::to_writer(&mut stdout, &Versioned { version: JSON_VERSION, content })
        .map_err(io::Error::from)
        .and_then(|()| writeln!(stdout))
        .and_then(|()| stdout.flush());
    end_unless_written(written);
}

/// A reader that has seen enough (`| head`) is no failure; a full disk is one.
fn end_unless_written(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        Err(error) => {
            say(&format!("cannot write to stdout: {error}"));
            process::exit(i32::from(crate::ERROR));
        }
    }
}

/// Writes one line to stderr. If that fails there is nobody left to tell.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes an error to stderr: drawn on a terminal, in plain lines elsewhere. The last line says where there is more.
pub(crate) fn report(error: &Error) {
    let mut text = String::new();
    let drawn = io::stderr().is_terminal() && drawing().render_report(&mut text, &Coded(error)).is_ok();
    let code = error.code();
    if drawn {
        say(text.trim_end());
        return say(&format!("  more: deltaconv explain-error {code}"));
    }
    say(&format!("error[{code}]: {error}"));
    if let Some(help) = error.help() {
        say(&format!("help: {help}"));
    }
    say(&format!("more: deltaconv explain-error {code}"));
}

/// An error as it is drawn: what is derived knows no code that comes from another process.
#[derive(Debug)]
struct Coded<'e>(&'e Error);

impl Display for Coded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Coded<'_> {}

impl Diagnostic for Coded<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.0.code()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        self.0.help()
    }
}

fn drawing() -> miette::GraphicalReportHandler {
    let theme = if colours() { miette::GraphicalTheme::unicode() } else { miette::GraphicalTheme::unicode_nocolor() };
    // The message is one line already, and values in it must stay whole to be copied.
    miette::GraphicalReportHandler::new_themed(theme).without_cause_chain().with_wrap_lines(false)
}

/// Whether stderr may carry colours.
pub(crate) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_shows_the_code_and_the_help() {
        let error = Error::Plaintext { address: ([0, 0, 0, 0], 7433).into() };
        let mut text = String::new();
        drawing().render_report(&mut text, &Coded(&error)).expect("drawn");
        assert!(text.contains("DC0602") && text.contains("--listen 0.0.0.0:7433") && text.contains("help:"), "{text}");
    }

    #[test]
    fn json_carries_its_version_and_no_nan() {
        #[derive(Serialize)]
        struct Content {
            held_out_error: f64,
        }
        let versioned = Versioned { version: JSON_VERSION, content: &Content { held_out_error: f64::NAN } };
        let text = serde_json::to_string(&versioned).expect("serialises");
        assert_eq!(text, r#"{"version":1,"held_out_error":null}"#);
    }
}
