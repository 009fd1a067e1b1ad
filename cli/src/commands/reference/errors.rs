//! docs/errors.md.

use std::fmt::Write as _;

use deltaconv_proto::code::{Code, Entry};

const ABOUT: &str = "\
# Errors

<!-- Made by `deltaconv reference errors > docs/errors.md` of proto/src/code/table.rs. -->

Every error carries a code: on stderr as `error[DC0012]: …`, in front of what is said of a task or a job that failed, and in the
metadata of gRPC statuses as `deltaconv-code`. `deltaconv explain-error DC0012` says what stands here. A code keeps its meaning in
later versions.
";

/// All codes with causes and remedies, in Markdown.
pub(super) fn page() -> String {
    let mut page = ABOUT.to_owned();
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
        let page = page();
        for code in Code::ALL {
            let heading = format!("\n### {code}: {}\n", code.entry().title);
            assert_eq!(page.matches(&heading).count(), 1, "{code}");
        }
    }
}
