//! How things are shown to a person at a terminal: times, durations, tables.

use std::io::IsTerminal as _;

use glidepath_domain::run::Moment;

/// Local time with its offset, to the second.
pub(super) fn time(at: Moment) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    let Ok(at) = jiff::Timestamp::from_millisecond(ms) else { return "at no known time".to_owned() };
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// For programs: UTC, to the millisecond.
pub(super) fn stamp(at: Moment) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
}

/// A duration in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// From one moment to another.
pub(super) fn between(from: Moment, to: Moment) -> String {
    span(to.since(from).as_secs())
}

/// A duration as operators write it: `90s`, `15min`, `2h`, `3d`.
pub(super) fn parse_span(raw: &str) -> Result<std::time::Duration, String> {
    let digits = raw.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &raw[digits.len()..] {
        "s" => 1,
        "min" | "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("must be a number with s, min, h or d, like 2h".to_owned()),
    };
    let count: u64 =
        digits.parse().map_err(|_| "must be a number with s, min, h or d, like 2h".to_owned())?;
    Ok(std::time::Duration::from_secs(count.saturating_mul(unit)))
}

/// Whether colours would be seen.
pub(super) fn in_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Text in a colour of the terminal, if it has one.
pub(super) fn coloured(text: &str, colour: &str, on: bool) -> String {
    if on { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Text from outside as it may go to a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Rows under a head, in columns.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_told_in_words() {
        for (seconds, told) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (192, "3 min 12 s"),
            (3600, "1 h"),
            (7860, "2 h 11 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), told);
        }
        for (raw, seconds) in [("90s", 90), ("15min", 900), ("2h", 7200), ("3d", 259_200)] {
            assert_eq!(parse_span(raw).unwrap().as_secs(), seconds);
        }
        for bad in ["", "2", "h", "2 h", "2w", "-2h", "zwei h", "2é"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["é".into(), "x".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&["A", "B"], &rows), "A     B\né     x\nlong\n");
    }

    #[test]
    fn what_comes_from_outside_moves_no_cursor() {
        assert_eq!(plain("a\u{1b}[31m\nb"), "a [31m b");
    }
}
