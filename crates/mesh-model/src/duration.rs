//! Durations as people write them.

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no duration: write a number with ms, s, m, h or d, such as 500ms, 2s or 90d")]
pub struct ParseDurationError(pub String);

/// Milliseconds of `500ms`, `2s`, `5m`, `24h` or `90d`.
pub fn parse_millis(text: &str) -> Result<u64, ParseDurationError> {
    let bad = || ParseDurationError(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_needed_and_overflow_is_refused() {
        assert_eq!(parse_millis("500ms"), Ok(500));
        assert_eq!(parse_millis("2s"), Ok(2_000));
        assert_eq!(parse_millis("24h"), Ok(86_400_000));
        assert_eq!(parse_millis("90d"), Ok(7_776_000_000));
        for bad in ["", "2", "s", "-1s", "1.5s", "2 s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_millis(bad).is_err(), "{bad}");
        }
    }
}
