//! stdout is data, stderr is chatter.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::process;

use miette::Diagnostic;
use serde::Serialize;

use crate::error::Error;

/// The version of everything that is written for programs.
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

/// How programs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// An object a line.
    Json,
    /// Documents.
    Yaml,
}

impl Data {
    /// Writes `content`, which serialises as an object, to stdout with the format's version in front.
    pub(crate) fn print(self, content: &impl Serialize) {
        self.write("", content);
    }

    /// The same of one that others follow.
    pub(crate) fn print_one(self, content: &impl Serialize) {
        let begin = if self == Self::Yaml { "---\n" } else { "" };
        self.write(begin, content);
    }

    /// Writes what is JSON already, as it is.
    pub(crate) fn print_written(self, json: &str) {
        self.put("", self.form(json.to_owned()));
    }

    fn write(self, begin: &str, content: &impl Serialize) {
        self.put(begin, self.text(content));
    }

    fn put(self, begin: &str, text: io::Result<String>) {
        let text = text.map(|text| format!("{begin}{}\n", text.trim_end()));
        let mut stdout = io::stdout().lock();
        let written = text.and_then(|text| stdout.write_all(text.as_bytes())).and_then(|()| stdout.flush());
        end_unless_written(written);
    }

    fn text(self, content: &impl Serialize) -> io::Result<String> {
        let versioned = Versioned { version: JSON_VERSION, content };
        self.form(serde_json::to_string(&versioned)?)
    }

    fn form(self, json: String) -> io::Result<String> {
        match self {
            Self::Json => Ok(json),
            Self::Yaml => {
                // What has no value in JSON, such as NaN, has none here either.
                let mut fields = serde_json::Deserializer::from_str(&json);
                serde_saphyr::to_string(&serde_transcode::Transcoder::new(&mut fields)).map_err(io::Error::other)
            }
        }
    }
}

/// Asks something on stderr, and stays on that line.
pub(crate) fn ask(question: &str) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
}

/// Whether what is shown stands on a terminal, where it can be drawn over.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether what is shown on a terminal may have colours.
pub(crate) fn paints() -> bool {
    !refuses_colours()
}

/// Empties the terminal for what is shown next.
pub(crate) fn clear() {
    let mut stdout = io::stdout().lock();
    // To the upper left, and away with what is below ("ECMA-48", CUP and ED).
    end_unless_written(write!(stdout, "\x1b[H\x1b[2J"));
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
    io::stderr().is_terminal() && !refuses_colours()
}

/// What <https://no-color.org> asks for.
fn refuses_colours() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
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
        let content = Content { held_out_error: f64::NAN };
        let text = Data::Json.text(&content).expect("serialises");
        assert_eq!(text, r#"{"version":1,"held_out_error":null}"#);
        let text = Data::Yaml.text(&content).expect("serialises");
        assert_eq!(text.trim(), "version: 1\nheld_out_error: null");
    }
}
