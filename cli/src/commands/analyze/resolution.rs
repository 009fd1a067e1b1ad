//! Sizes of pictures as people write them.

use deltaconv_coordinator::plan::cost::{FOUR_K, SIXTEEN_K};

/// Width and height of `512`, `1024x768`, `4K` or `16K`.
pub(super) fn parse(text: &str) -> Result<(usize, usize), String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("4k") {
        return Ok(FOUR_K);
    }
    if text.eq_ignore_ascii_case("16k") {
        return Ok(SIXTEEN_K);
    }
    let (width, height) = text.split_once(['x', '×']).unwrap_or((text, text));
    match (width.trim().parse(), height.trim().parse()) {
        (Ok(width), Ok(height)) if width > 0 && height > 0 => Ok((width, height)),
        _ => Err("write one side as 512, width and height as 1024x768, or 4K or 16K".to_owned()),
    }
}

/// As it is printed.
pub(super) fn name([width, height]: [usize; 2]) -> String {
    match (width, height) {
        FOUR_K => format!("{width}×{height} (4K)"),
        SIXTEEN_K => format!("{width}×{height} (16K)"),
        _ => format!("{width}×{height}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_width_times_height() {
        let cases = [("512", (512, 512)), ("1024x768", (1024, 768)), ("4k", FOUR_K), ("16K", SIXTEEN_K)];
        for (text, size) in cases {
            assert_eq!(parse(text), Ok(size));
        }
        for wrong in ["", "0", "512x", "x512", "-1x2", "8K", "1x2x3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
