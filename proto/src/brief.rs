//! What others wrote, in a message of ours: no more of it than is needed to recognise it, and nothing that a terminal obeys. An
//! error's text travels in a header of at most 16 KiB, and in a record of at most 64.

use std::fmt::{self, Display, Formatter, Write};

/// Characters that are shown.
const MOST: usize = 300;

/// At most 300 characters of what it holds, control characters escaped.
#[derive(Clone, Copy)]
pub struct Brief<'a, T: ?Sized>(pub &'a T);

impl<T: Display + ?Sized> Display for Brief<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut shown = Shown { f, left: MOST, is_cut: false };
        let written = write!(shown, "{}", self.0);
        match shown.is_cut {
            true => f.write_char('…'),
            false => written,
        }
    }
}

/// The same in quotes.
impl<T: Display + ?Sized> fmt::Debug for Brief<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Passes on what there is room for, and ends the rest by an error.
struct Shown<'a, 'f> {
    f: &'a mut Formatter<'f>,
    left: usize,
    is_cut: bool,
}

impl Write for Shown<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.is_cut = self.left == 0;
            if self.is_cut {
                return Err(fmt::Error);
            }
            self.left -= 1;
            match c.is_control() {
                true => write!(self.f, "{}", c.escape_default())?,
                false => self.f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_what_a_terminal_obeys_is_escaped() {
        assert_eq!(Brief("a tensor").to_string(), "a tensor");
        assert_eq!(Brief("\x1b[2J\n").to_string(), "\\u{1b}[2J\\n");
        let whole = "é".repeat(MOST);
        assert_eq!(Brief(whole.as_str()).to_string(), whole);
        assert_eq!(format!("{:?}", Brief(&"x".repeat(1000))).len(), 300 + "\"…\"".len());
        assert_eq!(Brief(&format_args!("{whole}{}", "x".repeat(1 << 20))).to_string(), format!("{whole}…"));
    }
}
