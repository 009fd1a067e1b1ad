//! Codes of errors: each names one cause that has a remedy of its own, and both are written down in [`table`].

mod table;

use std::fmt;
use std::str::FromStr;

use tonic::Status;
use tonic::metadata::MetadataValue;

pub use table::Code;

use crate::brief::Brief;

/// Where a gRPC status carries the code.
pub const METADATA: &str = "deltaconv-code";

/// What is known of a code, in sentences for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose entry it is.
    pub code: Code,
    /// The code as people write it: `DC0012`.
    pub text: &'static str,
    /// What the operator deals with.
    pub group: &'static str,
    /// What is wrong, in a few words.
    pub title: &'static str,
    /// How it comes to that.
    pub cause: &'static str,
    /// What to do next.
    pub remedy: &'static str,
}

/// Text that is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{:?} is not the code of an error", Brief(.0))]
pub struct Unknown(pub String);

impl Code {
    /// The number behind `DC`.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The code as people write it: `DC0012`.
    pub const fn as_str(self) -> &'static str {
        self.entry().text
    }

    /// A message for who sees nothing but its text: `DC0012: …`.
    pub fn before(self, message: impl fmt::Display) -> String {
        format!("{self}: {message}")
    }

    /// A status that carries this code.
    pub fn status(self, of_call: tonic::Code, message: impl Into<String>) -> Status {
        let mut status = Status::new(of_call, message);
        status.metadata_mut().insert(METADATA, MetadataValue::from_static(self.as_str()));
        status
    }

    /// The code that a status carries. Nothing where it has none, or one that this version doesn't know.
    pub fn of_status(status: &Status) -> Option<Self> {
        status.metadata().get(METADATA)?.to_str().ok()?.parse().ok()
    }

    /// The code whose number is nearest to the one in `text`; nothing where there is no number in it.
    pub fn nearest(text: &str) -> Option<Self> {
        let number = number(text)?;
        Self::ALL.iter().copied().min_by_key(|code| code.number().abs_diff(number))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Code {
    type Err = Unknown;

    /// Takes `DC0012`, `dc0012` and `12`.
    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = number(text).and_then(|number| Self::ALL.iter().find(|code| code.number() == number));
        found.copied().ok_or_else(|| Unknown(text.to_owned()))
    }
}

fn number(text: &str) -> Option<u16> {
    let text = text.trim();
    let digits = match text.get(..2) {
        Some(prefix) if prefix.eq_ignore_ascii_case("DC") => &text[2..],
        _ => text,
    };
    // Else a sign would do.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_they_are_written() {
        for code in Code::ALL {
            assert_eq!(code.to_string(), format!("DC{:04}", code.number()));
            assert_eq!(code.to_string().parse(), Ok(*code));
            assert_eq!(code.to_string().to_lowercase().parse(), Ok(*code));
            assert_eq!(code.number().to_string().parse(), Ok(*code));
        }
        for wrong in ["", "DC", "DC9999", "0", "-1", "+1", "DC-1", "DC 1", "1.0", "é", "€€", "70000", "DCDC0001"] {
            assert_eq!(wrong.parse::<Code>(), Err(Unknown(wrong.to_owned())));
        }
    }

    #[test]
    fn every_entry_says_what_is_wrong_and_what_to_do() {
        assert!(Code::ALL.is_sorted(), "the table is in order of its numbers");
        for code in Code::ALL {
            let Entry { code: of, group, title, cause, remedy, .. } = *code.entry();
            assert_eq!(of, *code);
            let is_of_hundred = |other: &&Code| other.number() / 100 == code.number() / 100;
            assert!(Code::ALL.iter().filter(is_of_hundred).all(|other| other.entry().group == group), "{code}");
            assert!(!title.is_empty() && !title.ends_with('.'), "{code}: {title}");
            for text in [cause, remedy] {
                assert!(text.len() > 20 && text.ends_with('.') && !text.contains("  "), "{code}: {text}");
            }
        }
    }

    #[test]
    fn the_nearest_code_is_that_of_the_nearest_number() {
        assert_eq!(Code::nearest("DC9999"), Code::ALL.last().copied());
        assert_eq!(Code::nearest("0"), Code::ALL.first().copied());
        assert_eq!(Code::nearest("disk full"), None);
    }

    #[test]
    fn a_status_carries_a_code_and_unknown_ones_are_dropped() {
        let status = Code::OutputTaken.status(tonic::Code::InvalidArgument, "there is a thesis");
        assert_eq!((status.code(), status.message()), (tonic::Code::InvalidArgument, "there is a thesis"));
        assert_eq!(Code::of_status(&status), Some(Code::OutputTaken));

        let headers = status.into_http::<()>().into_parts().0.headers;
        assert_eq!(headers[METADATA], Code::OutputTaken.as_str());
        let arrived = Status::from_header_map(&headers).expect("a status");
        assert_eq!(Code::of_status(&arrived), Some(Code::OutputTaken));

        let mut other = Status::unknown("");
        assert_eq!(Code::of_status(&other), None);
        for unknown in ["DC9999", "rm -rf", ""] {
            other.metadata_mut().insert(METADATA, MetadataValue::from_static(unknown));
            assert_eq!(Code::of_status(&other), None);
        }
    }
}
