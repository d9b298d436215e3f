//! Who else is at work: open transactions and other collectors, judged, and ended where they are dead.
//!
//! Nothing here decides safety: a writer that is taken for dead and lives has lost its name, and its backup fails whole.
//! Dead for certain is a process of this host that is gone. Of another host's, only signs of life tell: who gave none between
//! two runs of prune, a while apart, counts as dead.

use super::{PruneReport, Run};
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::repo::condemned::{OpenList, RunState, Seen};
use crate::repo::records::{self, WriterRecord};
use crate::repo::{condemned, names, transaction};
use crate::sabotage::is_planted;
use crate::storage::Owner;
use rustix::process::{Pid, test_kill_process};
use std::collections::{BTreeMap, HashMap};

const DAY_SECONDS: i64 = 24 * 3600;

/// An open transaction, and why it is waited for.
#[derive(Debug)]
pub(super) struct Waited {
    pub(super) seen: Seen,
    reason: String,
    /// When it began, seconds since 1970; none if its announcement cannot be read.
    started: Option<i64>,
    /// When it counts as dead if it gives no sign, seconds since 1970.
    until: i64,
}

/// The error of a prune that has to wait; `number` is the list that stays open.
pub(super) fn busy(waiting: &[Waited], number: u64) -> Error {
    let shown: Vec<&str> = waiting.iter().take(3).map(|waited| waited.reason.as_str()).collect();
    let more = waiting.len().saturating_sub(shown.len());
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let until = waiting.iter().map(|waited| waited.until).max().unwrap_or(0);
    Error::new(Kind::Busy, format!("{}{more}; what is to be deleted is recorded (condemned/{number})", shown.join("; ")))
        .with_hint(format!(
            "prune again when it has ended: the next prune goes on from here; one on another host that gives no sign of life \
             until {} counts as dead then",
            instant(until)
        ))
}

impl Run<'_> {
    /// Ends open transactions whose writers are dead, removes the leftovers of those that have ended, and returns the rest.
    /// `seen` is what an earlier prune saw. A dry run judges and leaves everything.
    pub(super) fn settle(&self, seen: &[Seen], report: &mut PruneReport) -> Result<Vec<Waited>> {
        let storage = self.repo.storage();
        let listed = if self.options.dry_run {
            storage.list(names::TRANSACTIONS)?
        } else {
            storage.list_fresh(names::TRANSACTIONS)?
        };
        // The announcement is number 0; a sign without one is a leftover, or its writer has just ended.
        let mut open: BTreeMap<SnapshotId, Vec<u64>> = BTreeMap::new();
        for (id, sign) in listed.iter().filter_map(|l| names::announced(&l.name)) {
            open.entry(id).or_default().push(sign);
        }
        let seen: HashMap<SnapshotId, Seen> = seen.iter().map(|s| (s.id, *s)).collect();
        let mut waiting = Vec::new();
        for (id, signs) in open {
            if self.has_ended(id)? {
                self.tidy(id, &signs)?;
                continue;
            }
            let sign = signs.iter().copied().max().filter(|_| !is_planted("signs-of-life-unseen")).unwrap_or(0);
            let now = Seen { id, sign, since: self.options.now.seconds };
            let now = match seen.get(&id) {
                Some(before) if before.sign == sign && before.since <= now.since => *before,
                _ => now,
            };
            match self.reason_to_wait(now, seen.contains_key(&id))? {
                Some((reason, started)) => {
                    let until = now.since.saturating_add(self.silence_seconds());
                    waiting.push(Waited { seen: now, reason, started, until });
                }
                None => {
                    report.transactions_ended += 1;
                    if !self.options.dry_run {
                        transaction::revoke(self.repo, id, 0)?;
                        self.tidy(id, &signs)?;
                    }
                }
            }
        }
        Ok(waiting)
    }

    /// What is known of the owner of an unfinished object.
    pub(super) fn owner(&self, id: SnapshotId) -> Result<Owner> {
        if self.has_ended(id)? {
            return Ok(Owner::Ended);
        }
        let is_announced = self.repo.storage().size(&names::transaction(id)?)?.is_some();
        Ok(if is_announced { Owner::Open } else { Owner::Unknown })
    }

    fn has_ended(&self, id: SnapshotId) -> Result<bool> {
        Ok(self.repo.storage().size(&names::snapshot(id)?)?.is_some())
    }

    /// Removes what announced a transaction that has ended.
    fn tidy(&self, id: SnapshotId, signs: &[u64]) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        // The announcement may only go once the end is durable, whoever created that.
        if !is_planted("end-of-writer-unsynced") {
            self.repo.storage().sync_folder(names::SNAPSHOTS)?;
        }
        for sign in signs.iter().filter(|sign| **sign > 0) {
            self.repo.storage().delete(&names::sign_of_life(id, *sign)?)?;
        }
        transaction::remove_announcement(self.repo, id, 0)
    }

    /// Why the transaction has to be waited for, and when it began; none if it may be ended.
    fn reason_to_wait(&self, now: Seen, was_seen: bool) -> Result<Option<(String, Option<i64>)>> {
        if self.options.assume_alone {
            return Ok(None);
        }
        let record = match records::read_transaction(self.repo, now.id) {
            Ok(record) => Some(record),
            // It has just ended, or only a sign of it is left: its end decides.
            Err(error) if error.kind() == Kind::Missing => return Ok(None),
            Err(error) if error.kind() == Kind::Damaged => None,
            Err(error) => return Err(error),
        };
        let life = record.as_ref().map_or(Life::Unknown, |record| self.life_of(record));
        let silent = self.options.now.seconds.saturating_sub(now.since) >= self.silence_seconds();
        let is_silent = life == Life::Unknown && was_seen && silent;
        if life == Life::Dead || is_silent || is_planted("living-writer-revoked") {
            return Ok(None);
        }
        let started = record.as_ref().map(|record| record.started);
        let reason = match record {
            Some(record) if life == Life::Alive => {
                format!("a run on this host, process {}, began {} and has not ended", record.process, began(&record))
            }
            Some(record) => format!(
                "a run on the host {}, process {}, that began {} has not ended",
                record.host,
                record.process,
                began(&record)
            ),
            None => format!("an open transaction cannot be read (transactions/{})", now.id),
        };
        Ok(Some((reason, started)))
    }

    /// What is to be noted of open transactions where no list waits for them: a writer that died must be ended some day.
    /// Nothing of those that began less than a day ago, or of which nothing is new.
    pub(super) fn worth_noting(&self, waiting: &[Waited], seen: &[Seen]) -> Option<Vec<Seen>> {
        let is_old = |waited: &&Waited| {
            waited.started.is_none_or(|started| self.options.now.seconds.saturating_sub(started) >= DAY_SECONDS)
        };
        let old: Vec<Seen> = waiting.iter().filter(is_old).map(|waited| waited.seen).collect();
        old.iter().any(|waited| !seen.contains(waited)).then_some(old)
    }

    fn silence_seconds(&self) -> i64 {
        i64::try_from(self.options.silence.as_secs()).unwrap_or(i64::MAX)
    }

    /// Whether the process of a record is still there, as far as this host can tell.
    fn life_of(&self, record: &WriterRecord) -> Life {
        let own = &self.options.writer;
        if record.host != own.host {
            return Life::Unknown;
        }
        // This very process has no other transaction: a record with its number was made by an earlier one.
        let process = i32::try_from(record.process).ok().and_then(Pid::from_raw);
        let is_gone = record.boot != own.boot
            || record.process == own.process
            || process.is_none_or(|process| test_kill_process(process) == Err(rustix::io::Errno::SRCH));
        if is_gone { Life::Dead } else { Life::Alive }
    }

    /// Makes this run the one that is at work on a list without an end; [`Kind::Busy`] if another one is.
    ///
    /// Were both at it, nothing would be lost: the first end wins. This only saves the work.
    pub(super) fn take_over(&self, list: &mut OpenList) -> Result<()> {
        if let Some(newest) = &list.newest
            && !self.options.assume_alone
        {
            let waited = self.options.now.seconds.saturating_sub(newest.seconds);
            let is_free = match (newest.state, self.life_of(&newest.collector)) {
                (RunState::Left, _) | (_, Life::Dead) => true,
                (RunState::Met, Life::Unknown) => waited >= self.silence_seconds(),
                _ => false,
            };
            if !is_free {
                if newest.state == RunState::AtWork || waited < 0 {
                    let met =
                        condemned::Run { seconds: self.options.now.seconds, state: RunState::Met, ..newest.clone() };
                    condemned::append_run(self.repo, list.number, list.runs, &met)?;
                }
                let who = &newest.collector;
                return Err(another_prune(&format!(
                    "host {}, process {}, since {}",
                    who.host,
                    who.process,
                    began(who)
                )));
            }
        }
        self.record_run(list, RunState::AtWork, list.newest.as_ref().and_then(|run| run.waiting.clone()));
        Ok(())
    }

    /// Records a run of this collector at a list. That there is no room for it is no error: it decides nothing.
    pub(super) fn record_run(&self, list: &mut OpenList, state: RunState, waiting: Option<Vec<Seen>>) {
        let collector = self.options.writer.clone();
        let run = condemned::Run { seconds: self.options.now.seconds, collector, state, waiting };
        if let Ok(number) = condemned::append_run(self.repo, list.number, list.runs, &run) {
            list.runs = number;
        }
        list.newest = Some(run);
    }
}

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
    Unknown,
}

/// The error of a prune that another one is in the way of.
pub(super) fn another_prune(who: &str) -> Error {
    let text = if who.is_empty() {
        "another prune is at work".to_owned()
    } else {
        format!("another prune is at work ({who})")
    };
    Error::new(Kind::Busy, text)
        .with_hint("wait for it and prune again; one that has died is taken over by a later prune")
}

fn began(record: &WriterRecord) -> String {
    format!("at {}", instant(record.started))
}

fn instant(seconds: i64) -> String {
    jiff::Timestamp::new(seconds, 0).map_or_else(|_| "an unknown time".to_owned(), |t| t.to_string())
}
