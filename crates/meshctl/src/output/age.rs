//! Ages as people say them.

/// How long ago something was, both in seconds since 1970: `5 seconds ago`, `3 hours ago`.
pub(crate) fn ago(then: u64, now: u64) -> String {
    let age = now.saturating_sub(then);
    let (count, unit) = match age {
        0..60 => (age, "second"),
        60..3_600 => (age / 60, "minute"),
        3_600..86_400 => (age / 3_600, "hour"),
        _ => (age / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::ago;

    #[test]
    fn the_largest_unit_is_named() {
        for (age, text) in [
            (0, "0 seconds ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (7_199, "1 hour ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(ago(1_000, 1_000 + age), text);
        }
    }

    #[test]
    fn a_clock_behind_is_no_panic() {
        assert_eq!(ago(2_000, 1_000), "0 seconds ago");
    }
}
