//! `deltaconv reference`: pages of the documentation that are made from the program, so that they say what it does.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use deltaconv_proto::code::{Code, Entry};

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which page
    #[arg(value_enum)]
    page: Page,
}

/// Each is a file of docs/.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Page {
    /// docs/errors.md
    Errors,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match arguments.page {
        Page::Errors => output::print(&errors()),
    }
    ExitCode::SUCCESS
}

const ABOUT_ERRORS: &str = "\
# Errors

<!-- Made by `deltaconv reference errors > docs/errors.md` of proto/src/code/table.rs. -->

Every error carries a code: on stderr as `error[DC0012]: …`, in front of what is said of a task or a job that failed, and in the
metadata of gRPC statuses as `deltaconv-code`. `deltaconv explain-error DC0012` says what stands here. A code keeps its meaning in
later versions.
";

/// All codes with causes and remedies, in Markdown.
fn errors() -> String {
    let mut page = ABOUT_ERRORS.to_owned();
    let mut last = "";
    for code in Code::ALL {
        let Entry { text, group, title, cause, remedy, .. } = *code.entry();
        if group != last {
            _ = write!(page, "\n## {group}\n");
            last = group;
        }
        let anchor = text.to_lowercase();
        _ = write!(page, "\n<a id=\"{anchor}\"></a>\n### {text}: {title}\n\n{cause}\n\n**What helps:** {remedy}\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_each_code_once() {
        let page = errors();
        for code in Code::ALL {
            let heading = format!("\n### {code}: {}\n", code.entry().title);
            assert_eq!(page.matches(&heading).count(), 1, "{code}");
        }
    }
}
