//! Amounts of storage as people write them.

/// Reads `200 GiB`, `50GB`, `1.5 TB` or `1048576`: a number of bytes, or with a unit of a thousand or of 1024 of the one before.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let bytes_of_unit: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000_u64.pow(2),
        "GB" => 1000_u64.pow(3),
        "TB" => 1000_u64.pow(4),
        "PB" => 1000_u64.pow(5),
        "KiB" | "kiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "PiB" => 1 << 50,
        _ => return Err("write a number of bytes, or one with a unit: 200 GiB, 50 GB or 1.5 TB".into()),
    };
    scale(number, bytes_of_unit)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text:?} is not a positive number of bytes that fits"))
}

/// Whole numbers exactly; of others what is less than a byte is dropped.
fn scale(number: &str, bytes_of_unit: u64) -> Option<u64> {
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(bytes_of_unit);
    }
    let bytes = number.parse::<f64>().ok()? * bytes_of_unit as f64;
    // 2⁶⁴: from there on a cast would stay at the largest number.
    (bytes < 18_446_744_073_709_551_616.0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_both_kinds_are_read_and_anything_else_is_refused() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("512 B", 512),
            ("50GB", 50_000_000_000),
            ("200 GiB", 200 << 30),
            (" 1.5 TB ", 1_500_000_000_000),
            ("0.5KiB", 512),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GB", "0", "0 GB", "-1 GB", "1e9", "1.2.3 GB", "5 gigabytes", "5 G", "99999999 PB", "16384 PiB"]
        {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
