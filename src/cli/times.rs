//! Points in time and durations as people write them.
//!
//! The present is given by the caller, so that every rule here can be tested. A local time that a clock change makes
//! occur twice is an error that shows both instants; one that it leaves out stands for the moment of the change, as
//! nothing can have happened in between.

use ckpt::error::{Error, Kind, Result};
use ckpt::metadata::FileTime;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::AmbiguousOffset;
use jiff::{Span, Timestamp, Zoned};
use std::time::Duration;

const FORMS: &str = "write it like \"2026-11-19 14:00\" (local time), 2026-11-19 (the end of that day), \
                     2026-11-19T14:00:00Z, 2h (ago), yesterday, or \"yesterday 14:00\"";

/// The instant that `text` names, seen from `now`.
///
/// A day without a time (`2026-11-19`, `yesterday`) names its end: the newest snapshot at or before it is then the last one
/// of that day.
pub fn parse_instant(text: &str, now: &Zoned) -> Result<Timestamp> {
    let text = text.trim();
    if text == "now" {
        return Ok(now.timestamp());
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let (day, time) = match text.split_once([' ', 'T']) {
        Some((day, time)) => (day, Some(time.trim())),
        None => (text, None),
    };
    if let Some(date) = parse_day(day, now) {
        let time = time.map(|time| parse_time(time).ok_or_else(|| not_a_time(text))).transpose()?;
        return match time {
            Some(time) => local_instant(date.to_datetime(time), now),
            None => end_of_day(date, now).ok_or_else(|| not_a_time(text)),
        };
    }
    let span = parse_span(text.strip_suffix("ago").unwrap_or(text).trim_end()).map_err(|_| not_a_time(text))?;
    let then = now.checked_sub(span).map_err(|_| not_a_time(text))?;
    Ok(then.timestamp())
}

/// A duration of fixed length: `60s`, `10m`, `2h30m`, `7d`.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 60s, 10m or 2h30m");
    let mut seconds = 0u64;
    for (count, unit) in parse_parts(text).ok_or_else(wrong)? {
        let scale = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(wrong()),
        };
        seconds = count.checked_mul(scale).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    }
    if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

/// A duration that may be none: `60s`, `5m`, `0`.
pub fn parse_settle(text: &str) -> std::result::Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// A span of calendar time: `36h`, `7d`, `2w`, `6mo`, `1y6mo`.
pub fn parse_span(text: &str) -> std::result::Result<Span, String> {
    let wrong = || format!("{text:?} is not a span of time; write it like 36h, 7d, 2w, 6mo or 1y6mo");
    let mut span = Span::new();
    for (count, unit) in parse_parts(text).ok_or_else(wrong)? {
        let count = i64::try_from(count).map_err(|_| wrong())?;
        let added = match unit {
            "y" => span.try_years(span_part(i64::from(span.get_years()), count)),
            "mo" => span.try_months(span_part(i64::from(span.get_months()), count)),
            "w" => span.try_weeks(span_part(i64::from(span.get_weeks()), count)),
            "d" => span.try_days(span_part(i64::from(span.get_days()), count)),
            "h" => span.try_hours(span_part(i64::from(span.get_hours()), count)),
            "m" => span.try_minutes(span_part(span.get_minutes(), count)),
            "s" => span.try_seconds(span_part(span.get_seconds(), count)),
            _ => return Err(wrong()),
        };
        span = added.map_err(|_| wrong())?;
    }
    if span.is_zero() { Err(wrong()) } else { Ok(span) }
}

/// The instant as the library counts it.
pub fn file_time(instant: Timestamp) -> FileTime {
    let nanoseconds = instant.subsec_nanosecond();
    // Before 1970 the fraction is negative, while a file's time counts it upwards from the second below.
    let (seconds, nanoseconds) = if nanoseconds < 0 {
        (instant.as_second() - 1, nanoseconds + 1_000_000_000)
    } else {
        (instant.as_second(), nanoseconds)
    };
    FileTime { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

/// The library's time as an instant; none if it lies outside the years that calendars here cover.
pub fn instant(time: FileTime) -> Option<Timestamp> {
    Timestamp::new(time.seconds, i32::try_from(time.nanoseconds).ok()?).ok()
}

fn not_a_time(text: &str) -> Error {
    Error::new(Kind::Usage, format!("{text:?} is not a point in time")).with_hint(FORMS)
}

fn span_part(before: i64, more: i64) -> i64 {
    before.saturating_add(more)
}

fn parse_day(text: &str, now: &Zoned) -> Option<Date> {
    match text {
        "today" => Some(now.date()),
        "yesterday" => now.date().yesterday().ok(),
        _ => {
            let shape_is_right = text.len() == 10
                && text.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
            if shape_is_right { text.parse().ok() } else { None }
        }
    }
}

/// `9:00`, `14:00`, `14:00:30`.
fn parse_time(text: &str) -> Option<Time> {
    let mut fields = text.split(':');
    let mut field = || -> Option<Option<i8>> {
        match fields.next() {
            None => Some(None),
            Some(digits) if matches!(digits.len(), 1 | 2) && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Some(digits.parse().ok()?))
            }
            Some(_) => None,
        }
    };
    let (hour, minute, second, rest) = (field()??, field()??, field()?, field()?);
    if rest.is_some() {
        return None;
    }
    Time::new(hour, minute, second.unwrap_or(0), 0).ok()
}

fn local_instant(local: DateTime, now: &Zoned) -> Result<Timestamp> {
    let outside = |_| not_a_time(&local.to_string());
    let zone = now.time_zone();
    let ambiguous = zone.to_ambiguous_zoned(local);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => Ok(ambiguous.compatible().map_err(outside)?.timestamp()),
        AmbiguousOffset::Gap { .. } => {
            let before = ambiguous.earlier().map_err(outside)?.timestamp();
            Ok(zone.following(before).next().map_or(before, |change| change.timestamp()))
        }
        AmbiguousOffset::Fold { .. } => {
            let first = ambiguous.clone().earlier().map_err(outside)?;
            let second = ambiguous.later().map_err(outside)?;
            let shown = |time: &Zoned| time.timestamp().display_with_offset(time.offset()).to_string();
            Err(Error::new(Kind::Usage, format!("the local time {local} occurred twice when the clocks were set back"))
                .with_hint(format!("write {} or {}", shown(&first), shown(&second))))
        }
    }
}

fn end_of_day(date: Date, now: &Zoned) -> Option<Timestamp> {
    let next = date.tomorrow().ok()?.to_zoned(now.time_zone().clone()).ok()?;
    next.timestamp().checked_sub(Span::new().nanoseconds(1)).ok()
}

/// `2h30m` as `[(2, "h"), (30, "m")]`; none if it is not a sequence of numbers with units.
fn parse_parts(text: &str) -> Option<Vec<(u64, &str)>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        parts.push((number.parse().ok()?, unit));
        rest = after;
    }
    if parts.is_empty() { None } else { Some(parts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-20T10:30:00+01:00[Europe/Berlin]".parse().expect("a fixed time")
    }

    fn at(text: &str) -> String {
        parse_instant(text, &now()).map_or_else(|e| format!("error: {e}"), |t| t.to_string())
    }

    #[test]
    fn every_form_names_its_instant() {
        assert_eq!(at("now"), "2026-11-20T09:30:00Z");
        assert_eq!(at("2026-11-19T14:00:00Z"), "2026-11-19T14:00:00Z");
        assert_eq!(at("2026-11-19T14:00:00.25+02:00"), "2026-11-19T12:00:00.25Z");
        assert_eq!(at("2026-11-19 14:00:00-05:00"), "2026-11-19T19:00:00Z");
        assert_eq!(at("2026-11-19 14:00"), "2026-11-19T13:00:00Z");
        assert_eq!(at("2026-11-19T14:00"), "2026-11-19T13:00:00Z");
        assert_eq!(at("2026-07-01 14:00:30"), "2026-07-01T12:00:30Z");
        assert_eq!(at("2h"), "2026-11-20T07:30:00Z");
        assert_eq!(at("2h ago"), "2026-11-20T07:30:00Z");
        assert_eq!(at("30m"), "2026-11-20T09:00:00Z");
        assert_eq!(at("1d2h30m"), "2026-11-19T07:00:00Z");
        assert_eq!(at("today 9:00"), "2026-11-20T08:00:00Z");
        assert_eq!(at("yesterday 14:00"), "2026-11-19T13:00:00Z");
    }

    #[test]
    fn a_day_alone_names_its_end() {
        assert_eq!(at("2026-11-19"), "2026-11-19T22:59:59.999999999Z");
        assert_eq!(at("yesterday"), "2026-11-19T22:59:59.999999999Z");
        assert_eq!(at("today"), "2026-11-20T22:59:59.999999999Z");
        assert_eq!(at("2026-03-29"), "2026-03-29T21:59:59.999999999Z", "a day of 23 hours");
    }

    #[test]
    fn days_are_calendar_days_across_a_clock_change() {
        // Clocks went back on 25 October: 30 days before 10:30 is 10:30, an hour more than 720 hours ago.
        assert_eq!(at("30d"), "2026-10-21T08:30:00Z");
        assert_eq!(at("720h"), "2026-10-21T09:30:00Z");
    }

    #[test]
    fn a_local_time_that_never_was_is_the_moment_of_the_change() {
        assert_eq!(at("2026-03-29 02:00"), "2026-03-29T01:00:00Z");
        assert_eq!(at("2026-03-29 02:30"), "2026-03-29T01:00:00Z");
        assert_eq!(at("2026-03-29 01:59"), "2026-03-29T00:59:00Z");
        assert_eq!(at("2026-03-29 03:00"), "2026-03-29T01:00:00Z");
    }

    #[test]
    fn a_local_time_that_was_twice_must_be_told_apart() {
        let error = parse_instant("2026-10-25 02:30", &now()).expect_err("ambiguous");
        assert_eq!(error.kind(), Kind::Usage);
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("2026-10-25T02:30:00+02:00") && hint.contains("2026-10-25T02:30:00+01:00"), "{hint}");
        assert_eq!(at("2026-10-25T02:30:00+01:00"), "2026-10-25T01:30:00Z");
    }

    #[test]
    fn a_zone_whose_midnight_is_left_out_still_has_an_end_of_day() {
        // Cuba sets its clocks forward at midnight: 8 March 2026 begins at 01:00.
        let now: Zoned = "2026-03-10T12:00[America/Havana]".parse().expect("a fixed time");
        let end = parse_instant("2026-03-07", &now).expect("a day");
        assert_eq!(end.to_string(), "2026-03-08T04:59:59.999999999Z");
        let gap = parse_instant("2026-03-08 00:30", &now).expect("a gap");
        assert_eq!(gap.to_string(), "2026-03-08T05:00:00Z");
    }

    #[test]
    fn what_is_not_a_time_is_a_usage_error_with_the_forms() {
        for text in [
            "",
            "soon",
            "2026-13-01",
            "2026-02-30",
            "26-11-19",
            "2026-11-19 25:00",
            "2026-11-19 14",
            "14:00",
            "2x",
            "h",
            "0h",
            "yesterday noon",
            "2026-11-19 14:00:00:00",
            "-2h",
            "99999999999999999999d",
            "9999999y",
            "1é2h",
            "2026-11-é 14:00",
        ] {
            let error = parse_instant(text, &now()).expect_err(text);
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.hint().is_some(), "{text}");
        }
    }

    #[test]
    fn durations_and_spans() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("2h30m"), Ok(Duration::from_secs(9_000)));
        assert_eq!(parse_duration("1w"), Ok(Duration::from_secs(604_800)));
        for text in ["", "0s", "60", "s", "10M", "1y", "1.5h", "18446744073709551615w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_span("1y6mo").map(|s| s.to_string()), Ok("P1Y6M".to_owned()));
        assert_eq!(parse_span("1d1d").map(|s| s.to_string()), Ok("P2D".to_owned()));
        assert!(parse_span("0d").is_err());
        assert!(parse_span("5").is_err());
    }

    #[test]
    fn file_times_round_trip_before_1970_too() {
        for text in ["2026-11-19T14:00:00.000000001Z", "1969-12-31T23:59:59.25Z", "1960-01-01T00:00:00Z"] {
            let given: Timestamp = text.parse().expect("a fixed time");
            assert_eq!(instant(file_time(given)), Some(given));
        }
        assert_eq!(instant(FileTime { seconds: i64::MAX, nanoseconds: 0 }), None);
        assert_eq!(
            file_time("1969-12-31T23:59:59.25Z".parse().expect("a fixed time")),
            FileTime { seconds: -1, nanoseconds: 250_000_000 }
        );
    }
}
