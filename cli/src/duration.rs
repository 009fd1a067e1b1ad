//! Durations as people write and read them.

use std::time::Duration;

/// Reads `250ms`, `10s`, `2m`, `1h` or `30d`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds_of_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write a whole number with a unit: 250ms, 10s, 2m, 1h or 30d".into()),
    };
    let duration = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds_of_unit));
    match duration {
        Some(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => Err(format!("{number:?} is not a positive number of {unit} that fits")),
    }
}

/// Writes it as [`parse`] reads it.
pub(crate) fn flag(duration: Duration) -> String {
    match duration.as_millis() {
        milliseconds if milliseconds % 60_000 == 0 => format!("{}m", milliseconds / 60_000),
        milliseconds if milliseconds % 1000 == 0 => format!("{}s", milliseconds / 1000),
        milliseconds => format!("{milliseconds}ms"),
    }
}

/// Writes `4.2 s`, `36 s` or `2 min 5 s`.
pub(crate) fn spell(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_anything_else_is_refused() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "1w",
            "99999999999999999999s",
            "18446744073709551615m",
            "999999999999d",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn what_is_written_for_another_process_is_read_again() {
        for (text, written) in [("250ms", "250ms"), ("10s", "10s"), ("120s", "2m"), ("2000ms", "2s"), ("1m", "1m")] {
            assert_eq!(parse(text).map(flag), Ok(written.to_owned()));
        }
    }

    #[test]
    fn durations_are_spelled_for_people() {
        assert_eq!(spell(0.24), "0.2 s");
        assert_eq!(spell(9.99), "10 s");
        assert_eq!(spell(125.4), "2 min 5 s");
        assert_eq!(spell(3725.0), "1 h 2 min");
        assert_eq!(spell(f64::NAN), "?");
    }
}
