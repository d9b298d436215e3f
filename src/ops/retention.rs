//! Which snapshots of one source a policy keeps, and why: pure, no repository.
//!
//! The rules are restic's (`internal/restic/snapshot_policy.go`), so that a policy brought along keeps its meaning: from the
//! newest backwards, each rule keeps the newest snapshot of each of the last so many hours, days, ISO weeks, months or years
//! in which there is one, and the oldest of all while its count is not used up. Three things differ. Hours are told apart by
//! their offset from UTC, so the hour that a change of clocks repeats is two. `within` counts from the newest snapshot, so a
//! source that is no longer backed up is not eaten away. A snapshot whose time lies in the future is kept and counts for
//! nothing: one host with a wrong clock must not push out the others' snapshots.

use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::metadata::FileTime;
use crate::repo::checkpoints::steps_in_words;
use crate::repo::snapshots::Snapshot;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use std::collections::BTreeSet;

/// How far ahead of the caller's clock a snapshot's time may be: two hosts' clocks never agree to the second.
const CLOCK_TOLERANCE_SECONDS: i64 = 24 * 3600;

/// What to keep. Everything that any rule keeps is kept.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each hour, for so many hours.
    pub hourly: Option<u32>,
    /// The newest of each day, for so many days.
    pub daily: Option<u32>,
    /// The newest of each ISO week, for so many weeks.
    pub weekly: Option<u32>,
    /// The newest of each month, for so many months.
    pub monthly: Option<u32>,
    /// The newest of each year, for so many years.
    pub yearly: Option<u32>,
    /// Everything that is no older than this, counted back from the newest.
    pub within: Option<Span>,
    /// Everything that carries one of these tags.
    pub tags: Vec<String>,
    /// The newest that holds each finished checkpoint whose step is a multiple of this.
    pub every_steps: Option<u64>,
}

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Which.
    pub id: SnapshotId,
    /// Why it is kept; empty if it is not.
    pub reasons: Vec<String>,
}

impl Policy {
    /// An error of [`Kind::Usage`] if the policy has no rule that could keep anything, or one that cannot be meant.
    pub fn check(&self) -> Result<()> {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        if self.within.is_some_and(|span| !span.is_positive()) {
            return Err(Error::new(Kind::Usage, "the time to keep everything within is not a positive one"));
        }
        let has_others = self.within.is_some() || !self.tags.is_empty() || self.every_steps.unwrap_or(0) > 0;
        if counts.iter().all(|count| count.unwrap_or(0) == 0) && !has_others {
            return Err(Error::new(Kind::Usage, "the policy keeps nothing")
                .with_hint("say what to keep, for example --keep-daily 7 --keep-weekly 4"));
        }
        Ok(())
    }
}

/// Decides about the snapshots of one source, which come in any order; the decisions come newest first.
pub fn decide(policy: &Policy, snapshots: &[&Snapshot], zone: &TimeZone, now: FileTime) -> Result<Vec<Decision>> {
    let mut sorted = snapshots.to_vec();
    sorted.sort_by_key(|s| std::cmp::Reverse((s.started, s.id)));
    let limit = now.seconds.saturating_add(CLOCK_TOLERANCE_SECONDS);
    let (future, past): (Vec<&Snapshot>, Vec<&Snapshot>) = sorted.into_iter().partition(|s| s.started.seconds > limit);
    let mut decisions: Vec<Decision> =
        future.iter().map(|s| Decision { id: s.id, reasons: vec!["its time lies in the future".to_owned()] }).collect();
    let times = past.iter().map(|s| local_time(s.started, zone)).collect::<Vec<_>>();
    let since = match (policy.within, times.first()) {
        (Some(span), Some(newest)) => Some(newest.checked_sub(span).map_err(|e| {
            Error::new(Kind::Usage, "the time to keep everything within is longer than any calendar").with_source(e)
        })?),
        _ => None,
    };
    let mut rules = rules(policy);
    let mut kept_checkpoints = BTreeSet::new();
    for (position, (snapshot, time)) in past.iter().zip(&times).enumerate() {
        let is_oldest = position + 1 == past.len();
        let mut reasons: Vec<String> =
            rules.iter_mut().filter_map(|rule| rule.reason_to_keep(position, time, is_oldest)).collect();
        if since.as_ref().is_some_and(|since| time >= since) {
            reasons.push("within".to_owned());
        }
        reasons.extend(policy.tags.iter().filter(|t| snapshot.tags.contains(*t)).map(|t| format!("tag {t}")));
        reasons.extend(reason_by_steps(policy, snapshot, &mut kept_checkpoints));
        decisions.push(Decision { id: snapshot.id, reasons });
    }
    Ok(decisions)
}

/// The steps for which this snapshot is kept: it is the newest that holds their checkpoints. `kept` has the paths of those
/// that a newer one holds: two runs of one source may have the same steps.
fn reason_by_steps(policy: &Policy, snapshot: &Snapshot, kept: &mut BTreeSet<(u64, Vec<u8>)>) -> Option<String> {
    let every = policy.every_steps.filter(|every| *every > 0)?;
    let finished = snapshot.checkpoints.iter().filter(|record| record.unfinished.is_none());
    let multiples = finished.filter_map(|record| Some((record.step.filter(|s| s.is_multiple_of(every))?, record)));
    let steps: BTreeSet<u64> = multiples
        .filter(|(step, record)| kept.insert((*step, record.absolute_path(snapshot))))
        .map(|(step, _)| step)
        .collect();
    (!steps.is_empty()).then(|| steps_in_words(&steps))
}

/// One counting rule on its way from the newest snapshot to the oldest.
struct Rule {
    name: &'static str,
    left: u32,
    bucket: fn(usize, &Zoned) -> [i64; 4],
    last: Option<[i64; 4]>,
}

impl Rule {
    fn reason_to_keep(&mut self, position: usize, time: &Zoned, is_oldest: bool) -> Option<String> {
        let bucket = (self.bucket)(position, time);
        let is_new = self.last != Some(bucket);
        if self.left == 0 || !(is_new || is_oldest) {
            return None;
        }
        self.left -= 1;
        self.last = Some(bucket);
        Some(if is_new { self.name.to_owned() } else { format!("oldest {}", self.name) })
    }
}

fn rules(policy: &Policy) -> Vec<Rule> {
    let rule = |name, count: Option<u32>, bucket| Rule { name, left: count.unwrap_or(0), bucket, last: None };
    vec![
        rule("last", policy.last, |position, _| [i64::try_from(position).unwrap_or(i64::MAX), 0, 0, 0]),
        rule("hourly", policy.hourly, |_, t| [day_number(t), i64::from(t.hour()), i64::from(t.offset().seconds()), 0]),
        rule("daily", policy.daily, |_, t| [day_number(t), 0, 0, 0]),
        rule("weekly", policy.weekly, |_, t| {
            let week = t.date().iso_week_date();
            [i64::from(week.year()), i64::from(week.week()), 0, 0]
        }),
        rule("monthly", policy.monthly, |_, t| [i64::from(t.year()), i64::from(t.month()), 0, 0]),
        rule("yearly", policy.yearly, |_, t| [i64::from(t.year()), 0, 0, 0]),
    ]
}

/// Different for different days of the calendar.
fn day_number(time: &Zoned) -> i64 {
    i64::from(time.year()) * 512 + i64::from(time.day_of_year())
}

/// The time in the zone; one outside of all calendars becomes the first or last there is.
fn local_time(time: FileTime, zone: &TimeZone) -> Zoned {
    let nanoseconds = i32::try_from(time.nanoseconds).unwrap_or(0);
    let outside = if time.seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(time.seconds, nanoseconds).unwrap_or(outside).to_zoned(zone.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::checkpoints::CheckpointRecord;
    use std::collections::BTreeMap;

    fn snapshot(number: usize, zone: &TimeZone, local: &str) -> Snapshot {
        let time: Zoned = match local.parse::<Timestamp>() {
            Ok(instant) => instant.to_zoned(zone.clone()),
            Err(_) => local
                .parse::<jiff::civil::DateTime>()
                .expect("a time in a test")
                .to_zoned(zone.clone())
                .expect("in range"),
        };
        let (local, tag) = (time.timestamp().as_second(), format!("t{number}"));
        Snapshot {
            id: SnapshotId::from_bytes([u8::try_from(number).expect("few"); 16]),
            started: FileTime { seconds: local, nanoseconds: 0 },
            finished: FileTime { seconds: local, nanoseconds: 0 },
            host: "h".into(),
            source: None,
            roots: vec![],
            tags: BTreeSet::from([tag]),
            meta: BTreeMap::new(),
            tree: None,
            parent: None,
            totals: Default::default(),
            problems: 0,
            program: String::new(),
            checkpoints: Vec::new(),
            audit: None,
        }
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a time zone of the bundled or the system's database")
    }

    const NOW: FileTime = FileTime { seconds: 4_000_000_000, nanoseconds: 0 };

    /// The positions, as given, of what is kept.
    fn kept(policy: &Policy, zone: &TimeZone, times: &[&str]) -> Vec<usize> {
        reasons(policy, zone, times).into_iter().filter(|(_, r)| !r.is_empty()).map(|(n, _)| n).collect()
    }

    fn reasons(policy: &Policy, zone: &TimeZone, times: &[&str]) -> Vec<(usize, Vec<String>)> {
        let snapshots: Vec<_> = times.iter().enumerate().map(|(n, t)| snapshot(n, zone, t)).collect();
        let all: Vec<&Snapshot> = snapshots.iter().collect();
        let decided = decide(policy, &all, zone, NOW).expect("sound");
        assert_eq!(decided.len(), times.len());
        let mut found: Vec<_> = decided.into_iter().map(|d| (usize::from(d.id.as_bytes()[0]), d.reasons)).collect();
        found.sort();
        found
    }

    fn policy(change: impl FnOnce(&mut Policy)) -> Policy {
        let mut policy = Policy::default();
        change(&mut policy);
        policy
    }

    #[test]
    fn the_newest_of_each_bucket_is_kept_as_often_as_counted() {
        let utc = TimeZone::UTC;
        let days = [
            "2026-01-01T10:00",
            "2026-01-01T22:00",
            "2026-01-02T10:00",
            "2026-01-04T09:00",
            "2026-01-04T10:00",
            "2026-01-05T00:00",
        ];
        assert_eq!(kept(&policy(|p| p.last = Some(2)), &utc, &days), [4, 5]);
        assert_eq!(kept(&policy(|p| p.daily = Some(1)), &utc, &days), [5]);
        assert_eq!(kept(&policy(|p| p.daily = Some(3)), &utc, &days), [2, 4, 5]);
        // A count that is not used up keeps the oldest as well.
        assert_eq!(kept(&policy(|p| p.daily = Some(4)), &utc, &days), [1, 2, 4, 5]);
        assert_eq!(kept(&policy(|p| p.daily = Some(5)), &utc, &days), [0, 1, 2, 4, 5]);
        assert_eq!(kept(&policy(|p| p.hourly = Some(2)), &utc, &days), [4, 5]);
        assert_eq!(kept(&policy(|p| p.monthly = Some(1)), &utc, &days), [5]);
        assert_eq!(kept(&policy(|p| p.last = Some(100)), &utc, &days).len(), 6);
        assert_eq!(kept(&policy(|p| p.tags = vec!["t2".into(), "t9".into()]), &utc, &days), [2]);
    }

    #[test]
    fn weeks_are_iso_weeks_and_cross_the_year() {
        let utc = TimeZone::UTC;
        // Monday 2025-12-29 to Sunday 2026-01-04 is the first week of 2026.
        let times = ["2025-12-28T12:00", "2025-12-29T12:00", "2026-01-04T12:00", "2026-01-05T12:00"];
        assert_eq!(kept(&policy(|p| p.weekly = Some(2)), &utc, &times), [2, 3]);
        assert_eq!(kept(&policy(|p| p.weekly = Some(3)), &utc, &times), [0, 2, 3]);
        assert_eq!(kept(&policy(|p| p.yearly = Some(2)), &utc, &times), [1, 3]);
        // 2021-01-03 still belongs to week 53 of 2020.
        let times = ["2020-12-28T12:00", "2021-01-03T12:00", "2021-01-04T12:00", "2021-12-31T12:00"];
        assert_eq!(kept(&policy(|p| p.weekly = Some(2)), &utc, &times), [2, 3]);
        assert_eq!(kept(&policy(|p| p.weekly = Some(3)), &utc, &times), [1, 2, 3]);
    }

    #[test]
    fn days_and_years_are_those_of_the_time_zone() {
        let times = ["2025-12-31T22:30:00Z", "2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z"];
        let yearly = policy(|p| p.yearly = Some(2));
        assert_eq!(kept(&yearly, &TimeZone::UTC, &times), [1, 2]);
        assert_eq!(kept(&yearly, &zone("Europe/Berlin"), &times), [0, 2]);
        assert_eq!(kept(&yearly, &zone("America/New_York"), &times), [0, 2], "the oldest, not a second year");
        let daily = policy(|p| p.daily = Some(1));
        assert_eq!(kept(&daily, &zone("America/New_York"), &times), [2]);
    }

    #[test]
    fn the_hour_that_a_change_of_clocks_repeats_is_two_hours() {
        let berlin = zone("Europe/Berlin");
        // 2026-10-25: 02:30 summer time, then 02:30 winter time, then 03:30.
        let times = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"];
        assert_eq!(kept(&policy(|p| p.hourly = Some(2)), &berlin, &times), [1, 2]);
        assert_eq!(kept(&policy(|p| p.hourly = Some(3)), &berlin, &times), [0, 1, 2]);
        // A day of 25 hours is one day.
        let times = ["2026-10-24T22:00:00Z", "2026-10-25T22:59:00Z", "2026-10-25T23:00:00Z"];
        assert_eq!(kept(&policy(|p| p.daily = Some(2)), &berlin, &times), [1, 2]);
    }

    #[test]
    fn within_counts_from_the_newest_and_knows_the_calendar() {
        let berlin = zone("Europe/Berlin");
        let within = |span: Span| policy(|p| p.within = Some(span));
        // One calendar day back over the change of clocks is 25 hours back.
        let times = ["2026-10-24T11:59", "2026-10-24T12:00", "2026-10-25T12:00"];
        assert_eq!(kept(&within(Span::new().days(1)), &berlin, &times), [1, 2]);
        assert_eq!(kept(&within(Span::new().hours(24)), &berlin, &times), [2]);
        let times = ["2026-02-27T12:00", "2026-02-28T12:00", "2026-03-31T12:00"];
        assert_eq!(kept(&within(Span::new().months(1)), &berlin, &times), [1, 2]);
        // However long ago the newest is: nothing is eaten away by time alone.
        let times = ["1999-01-01T12:00", "1999-01-05T12:00", "1999-01-06T12:00"];
        assert_eq!(kept(&within(Span::new().days(2)), &berlin, &times), [1, 2]);
    }

    #[test]
    fn a_snapshot_from_the_future_is_kept_and_pushes_nothing_out() {
        let utc = TimeZone::UTC;
        let times = ["2026-01-01T10:00", "2026-01-02T10:00", "2196-01-02T10:00"];
        assert_eq!(kept(&policy(|p| p.last = Some(1)), &utc, &times), [1, 2]);
        let one_day = policy(|p| p.within = Some(Span::new().days(1)));
        assert_eq!(kept(&one_day, &utc, &times), [0, 1, 2]);
        assert_eq!(reasons(&one_day, &utc, &times)[2].1, ["its time lies in the future"]);
    }

    #[test]
    fn the_newest_snapshot_of_each_multiple_of_steps_is_kept() {
        let utc = TimeZone::UTC;
        let holding = |number: usize, checkpoints: &[(&str, u64, bool)]| {
            let record = |&(path, step, is_finished): &(&str, u64, bool)| CheckpointRecord {
                root: 0,
                path: path.as_bytes().to_vec(),
                step: Some(step),
                framework: "hf-trainer".into(),
                shards: 1,
                tensors: 1,
                bytes: 1,
                unfinished: (!is_finished).then(|| "torn".to_owned()),
            };
            let checkpoints = checkpoints.iter().map(record).collect();
            Snapshot { checkpoints, ..snapshot(number, &utc, &format!("2026-01-0{}T10:00", number + 1)) }
        };
        let all = [
            holding(0, &[("a/checkpoint-1000", 1000, true), ("a/checkpoint-1500", 1500, true)]),
            holding(1, &[("a/checkpoint-1000", 1000, true), ("a/checkpoint-2000", 2000, true)]),
            holding(2, &[("b/checkpoint-1000", 1000, true), ("a/checkpoint-2000", 2000, false)]),
            holding(3, &[("a/checkpoint-2500", 2500, true)]),
        ];
        let list: Vec<&Snapshot> = all.iter().collect();
        let policy = policy(|p| p.every_steps = Some(1000));
        assert!(policy.check().is_ok());
        let decided = decide(&policy, &list, &utc, NOW).expect("sound");
        let reasons: Vec<Vec<String>> = decided.into_iter().map(|d| d.reasons).collect();
        assert_eq!(reasons, [vec![], vec!["step 1000".to_owned()], vec!["steps 1000, 2000".to_owned()], vec![]]);
    }

    #[test]
    fn every_reason_is_given() {
        let all = Policy {
            last: Some(1),
            hourly: Some(1),
            daily: Some(1),
            weekly: Some(1),
            monthly: Some(1),
            yearly: Some(2),
            within: Some(Span::new().hours(1)),
            tags: vec!["t1".into()],
            every_steps: None,
        };
        let found = reasons(&all, &TimeZone::UTC, &["2026-01-01T10:00", "2026-01-02T10:00"]);
        assert_eq!(found[0].1, ["oldest yearly"]);
        assert_eq!(found[1].1, ["last", "hourly", "daily", "weekly", "monthly", "yearly", "within", "tag t1"]);
    }

    #[test]
    fn times_outside_of_all_calendars_do_no_harm() {
        let mut ancient = snapshot(0, &TimeZone::UTC, "2026-01-01T10:00");
        ancient.started.seconds = i64::MIN;
        let recent = snapshot(1, &TimeZone::UTC, "2026-01-01T10:00");
        let decided = decide(&policy(|p| p.last = Some(1)), &[&ancient, &recent], &TimeZone::UTC, NOW).expect("sound");
        assert_eq!(decided.iter().map(|d| d.reasons.len()).collect::<Vec<_>>(), [1, 0]);
        let forever = policy(|p| p.within = Some(Span::new().years(19_000)));
        let refused = decide(&forever, &[&recent], &TimeZone::UTC, NOW);
        assert_eq!(refused.map_err(|e| e.kind()).err(), Some(Kind::Usage));
    }

    #[test]
    fn a_policy_without_rules_is_refused() {
        assert_eq!(Policy::default().check().map_err(|e| e.kind()), Err(Kind::Usage));
        assert!(policy(|p| p.daily = Some(0)).check().is_err());
        assert!(policy(|p| p.within = Some(Span::new().days(-1))).check().is_err());
        assert!(policy(|p| p.tags = vec!["x".into()]).check().is_ok());
    }
}
