//! `deltaconv explain-error`.

use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::code::{Code, Entry, Unknown};
use serde::Serialize;

use crate::args::Output;
use crate::error::Error;
use crate::{output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The code, such as DC0012 or 12 [default: all of them are listed]
    code: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// What is known of a code, for programs.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Explained {
    code: &'static str,
    group: &'static str,
    title: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Listing {
    errors: Vec<Explained>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let code = arguments.code.as_deref().map(read).transpose()?;
    match (code, arguments.output.data()) {
        (Some(code), None) => output::print(&describe(code.entry())),
        (Some(code), Some(data)) => data.print(&explained(code)),
        (None, None) => output::print(&list()),
        (None, Some(data)) => {
            data.print(&Listing { errors: Code::ALL.iter().map(|code| explained(*code)).collect() });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(text: &str) -> Result<Code, Error> {
    text.parse().map_err(|Unknown(text)| Error::UnknownCode { near: Code::nearest(&text), text })
}

fn explained(code: Code) -> Explained {
    let Entry { text: code, group, title, cause, remedy, .. } = *code.entry();
    Explained { code, group, title, cause, remedy }
}

fn describe(Entry { text, title, cause, remedy, .. }: &Entry) -> String {
    format!("{text}: {title}\n\ncause: {cause}\n\nwhat helps: {remedy}")
}

fn list() -> String {
    let mut listing = table::table(["code", "error"]);
    for code in Code::ALL {
        let Entry { text, title, .. } = *code.entry();
        listing.add_row([text, title]);
    }
    table::text(&listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_an_error_that_names_the_nearest() {
        assert_eq!(read("dc0012").expect("a code"), Code::OtherDemo);
        let error = read("DC0940").expect_err("no code");
        assert!(matches!(&error, Error::UnknownCode { near: Some(Code::NothingMeasured), .. }), "{error:?}");
        let help = miette::Diagnostic::help(&error).map(|help| help.to_string()).unwrap_or_default();
        assert!(help.contains("DC0905") && help.contains("`deltaconv explain-error`"), "{help}");
    }
}
