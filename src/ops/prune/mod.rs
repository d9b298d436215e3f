//! Deletes what no live snapshot needs: the collector's side of the commit fence.
//!
//! Nothing has to stand still for it, on any host. What is to go is condemned first, in a numbered list that every writer who
//! begins later respects; then whoever was at work before has to end; then everything is looked at again, and only what
//! nothing live needs is decided on; and only what was decided is deleted, after a delay. Each step is recorded
//! (`docs/FORMAT.md`, "Write order"), so a run that was killed, or had to leave because a backup has not ended, is gone on
//! with by the next one, on any host.
//!
//! What nothing needs takes no room to decide on but two small records. What is sparse is copied together, no more of it than
//! brings the unused bytes under the limit. If anything that a live snapshot needs cannot be read, nothing is decided.

mod collect;
mod delete;
mod live;
mod merge;
mod plan;
mod repack;
mod report;
mod writers;

pub use report::{PackVerdict, PruneReport, Verdict};

use super::Resources;
use crate::bytes::ByteCount;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{IndexId, PackId};
use crate::metadata::FileTime;
use crate::repo::condemned::Condemned;
use crate::repo::index::survey::Survey;
use crate::repo::records::WriterRecord;
use crate::repo::{Repo, names};
use crate::sabotage::is_planted;
use crate::storage::ObjectName;
use collect::{Collector, Ended};
use plan::{Plan, Surroundings};
use std::time::Duration;

/// How often a prune begins anew because another one was faster.
const ROUNDS_MAX: usize = 5;

/// How to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Reports what would be done and changes nothing.
    pub dry_run: bool,
    /// How much unused data may stay in packs that also hold used data.
    pub max_unused: MaxUnused,
    /// How much of the machine to use.
    pub resources: Resources,
    /// The time now, for the records, the delay and the silence.
    pub now: FileTime,
    /// This run, as other hosts are to know it; its host and boot also tell which open transactions are dead.
    pub writer: WriterRecord,
    /// The user's word that nothing else uses the repository: every open transaction is revoked.
    pub assume_alone: bool,
    /// How long what was decided to go stays for restores that run.
    pub delete_delay: Duration,
    /// How long a writer of another host must have given no sign of life between two prunes to count as dead.
    pub silence: Duration,
}

/// A limit on unused bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxUnused {
    /// Of all the bytes in packs.
    Percent(f64),
    /// As such.
    Bytes(u64),
    /// Only packs without any use go.
    Unlimited,
}

/// What all parts of a run share.
#[derive(Clone, Copy)]
struct Run<'a> {
    repo: &'a Repo,
    options: &'a PruneOptions,
    observer: &'a dyn Observer,
}

/// How a round ended.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Done,
    /// Another run was faster, or an earlier list has been ended: everything has to be looked at anew.
    Again,
}

/// Prunes.
///
/// [`Kind::Busy`] if a writer has to end first, or another prune is at work: what was begun is gone on with by the next run;
/// [`Kind::Damaged`] if anything needed cannot be read; [`Kind::NoSpace`] if even the small records of the decision find no
/// room. In all cases no snapshot loses anything.
pub fn prune(repo: &Repo, options: &PruneOptions, observer: &dyn Observer) -> Result<PruneReport> {
    repo.keys().require_deleting()?;
    if !repo.config().exclusive_create && !options.assume_alone {
        return Err(Error::new(
            Kind::Usage,
            "this storage does not create names exclusively, so other writers cannot be seen",
        )
        .with_hint("make sure that nothing else uses the repository and say so"));
    }
    let run = Run { repo, options, observer };
    let mut report = PruneReport::default();
    // What was decided earlier needs no room, and makes some.
    run.carry_out(&mut report)?;
    let mut seen: Option<(Vec<ObjectName>, String)> = None;
    for _ in 0..ROUNDS_MAX {
        match run.round(&mut report) {
            Ok(Round::Done) => return Ok(report),
            Ok(Round::Again) => {}
            // One look proves nothing: what was listed first may have been forgotten, or moved by another prune, before the
            // rest was. It is damage if it is met again, or where nothing has changed.
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing) => {
                let (now, text) = (run.names_that_decide()?, error.to_string());
                if seen.as_ref().is_some_and(|(then, met)| *then == now || *met == text) {
                    return Err(error);
                }
                seen = Some((now, text));
            }
            Err(error) => return Err(error),
        }
    }
    Err(writers::another_prune(""))
}

impl Run<'_> {
    /// The names by which others change what is live and where it lies.
    fn names_that_decide(&self) -> Result<Vec<ObjectName>> {
        let folders = [names::SNAPSHOTS, names::FORGOTTEN, names::INDEX, names::CONDEMNED, names::PACKS];
        let listed: Vec<_> = folders.iter().map(|folder| self.repo.storage().list(folder)).collect::<Result<_>>()?;
        Ok(listed.into_iter().flatten().map(|listed| listed.name).collect())
    }

    fn round(&self, report: &mut PruneReport) -> Result<Round> {
        // What is there, who writes, what is live, what is listed: each is looked at after the one before it, so that a pack
        // belongs to an open writer or to a snapshot that is seen, and what a snapshot needs is listed.
        let candidates = self.packs_present()?.into_keys().collect();
        let is_dry = self.options.dry_run;
        let condemned = match is_dry {
            true => Condemned::read(self.repo)?,
            false => Condemned::read_fresh(self.repo).map_err(no_room_for_records)?,
        };
        let waited = self.settle(&condemned.seen, report).map_err(no_room_for_records)?;
        if !is_dry {
            report.temporary_bytes_freed += self.repo.storage().delete_abandoned(&mut |id| self.owner(id))?;
        }
        let snapshots = match is_dry {
            true => live::snapshots_roughly(self.repo)?,
            false => live::snapshots_now(self.repo).map_err(no_room_for_records)?,
        };
        self.repo.refresh(self.observer)?;
        self.refuse_vanished()?;
        self.repo.learn_unlisted_packs()?;
        let survey = self.repo.index().survey()?;
        let mut collector = Collector::new(*self, &survey);
        let writers = waited.iter().map(|waited| waited.seen.id).collect();
        let surroundings = Surroundings { candidates, writers, condemned: &condemned };
        if self.options.dry_run {
            let plan = collector.plan(&snapshots, surroundings)?;
            return self.describe(&plan, report).map(|()| Round::Done);
        }
        if let Some(mut list) = condemned.open.clone() {
            self.take_over(&mut list)?;
            let merged = merge::candidates(self.repo, &list.packs.iter().copied().collect::<Vec<_>>())?;
            if let Ended::Final(_) = collector.collect(list, &condemned.seen, &[], report)? {
                self.carry_out(report)?;
                self.merge(&merged, report)?;
            }
            return Ok(Round::Again);
        }
        let plan = collector.plan(&snapshots, surroundings)?;
        self.tell(&plan);
        plan.describe(report);
        plan.list_unlisted(self.repo).map_err(no_room_for_records)?;
        if plan.all_victims().is_empty()
            && let Some(old) = self.worth_noting(&waited, &condemned.seen)
        {
            collector.note(old)?;
        }
        self.sweep(&mut collector, &survey, &plan, &condemned, report)
    }

    /// An error if a snapshot is gone that nobody forgot: its packs may be all that is left of it.
    fn refuse_vanished(&self) -> Result<()> {
        let vanished = self.repo.vanished().first().copied();
        let Some(id) = vanished.filter(|_| !is_planted("vanished-snapshot-passed-over")) else { return Ok(()) };
        Err(Error::new(Kind::Damaged, format!("snapshots/{id} is gone, and nobody forgot it")).with_hint(
            "put it back from a copy of the repository, or say with `ckpt forget` and its id that it may go",
        ))
    }

    /// Condemns and decides, in one list, or in two where the first makes room for copying.
    fn sweep(
        &self,
        collector: &mut Collector<'_>,
        survey: &Survey<'_>,
        plan: &Plan,
        condemned: &Condemned,
        report: &mut PruneReport,
    ) -> Result<Round> {
        // Asked before any victim is gone.
        let merged = merge::candidates(self.repo, &plan.all_victims())?;
        let mut ending = Ending { run: self, seen: &condemned.seen, plan, report };
        let mut victims: Vec<PackId> = plan.unneeded().iter().map(|(id, _)| *id).collect();
        let preferred: Vec<PackId> = plan.staying.iter().map(|pack| pack.id).collect();
        if self.options.delete_delay.is_zero() && !plan.sparse.is_empty() {
            if ending.end(collector, &std::mem::take(&mut victims), &preferred)? == Round::Again {
                return Ok(Round::Again);
            }
            survey.set_usable(&plan.staying_and_sparse())?;
        }
        let mut failure = None;
        if !plan.sparse.is_empty() {
            let repacked = repack::repack(self, survey, plan).map_err(out_of_room)?;
            match repacked.failure {
                None => {
                    collector.trust(&repacked.written);
                    victims.extend(plan.sparse.iter().map(|pack| pack.id));
                }
                // Someone took this run for dead.
                Some(error) if error.kind() == Kind::Busy => return Ok(Round::Again),
                Some(error) if error.kind() == Kind::NoSpace => {
                    // What was copied for nothing goes with the rest.
                    victims.extend(repacked.written);
                    failure = Some(out_of_room(error));
                }
                Some(error) => return Err(error),
            }
        }
        if ending.end(collector, &victims, &preferred)? == Round::Again && failure.is_none() {
            return Ok(Round::Again);
        }
        match failure {
            Some(error) => Err(error),
            None => self.merge(&merged, report).map(|()| Round::Done),
        }
    }

    fn merge(&self, old: &[IndexId], report: &mut PruneReport) -> Result<()> {
        match merge::merge(self.repo, old) {
            Ok(count) => report.index_objects_merged += count,
            // Entries of deleted packs are passed over by every reader, so this only costs room.
            Err(error) if error.kind() == Kind::NoSpace => {
                let text = format!("index objects are not merged: {error}");
                self.observer.on_event(&Event::Warning { text: &text });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The report of a dry run.
    fn describe(&self, plan: &Plan, report: &mut PruneReport) -> Result<()> {
        plan.describe(report);
        self.tell(plan);
        report.verdicts = plan.verdicts();
        for verdict in &report.verdicts {
            let used = ByteCount(verdict.bytes_used);
            let text = format!(
                "pack {}, {}, {used} needed: {}",
                verdict.id.short(),
                ByteCount(verdict.bytes),
                verdict.verdict.text()
            );
            self.observer.on_event(&Event::Detail { text: &text });
        }
        report.index_objects_merged = merge::candidates(self.repo, &plan.all_victims())?.len() as u64;
        Ok(())
    }

    fn tell(&self, plan: &Plan) {
        let unneeded: u64 = plan.unneeded().iter().map(|(_, bytes)| bytes).sum();
        let text = format!(
            "{} packs stay, {} hold nothing that is needed ({}), {} are sparse",
            plan.staying.len(),
            plan.unneeded().len(),
            ByteCount(unneeded),
            plan.sparse.len()
        );
        self.observer.on_event(&Event::Detail { text: &text });
        if plan.unopened > 0 {
            let text =
                format!("{} sparse packs stay, because this key cannot open contents to copy them", plan.unopened);
            self.observer.on_event(&Event::Warning { text: &text });
        }
    }
}

/// What ending a list takes.
struct Ending<'a> {
    run: &'a Run<'a>,
    seen: &'a [crate::repo::condemned::Seen],
    plan: &'a Plan,
    report: &'a mut PruneReport,
}

impl Ending<'_> {
    /// Condemns `victims`, decides about them and deletes what is due. No victims, nothing done.
    fn end(&mut self, collector: &mut Collector<'_>, victims: &[PackId], preferred: &[PackId]) -> Result<Round> {
        if victims.is_empty() {
            return Ok(Round::Done);
        }
        let Some(list) = collector.condemn(victims)? else { return Ok(Round::Again) };
        match collector.collect(list, self.seen, preferred, self.report)? {
            Ended::Taken => Ok(Round::Again),
            Ended::Final(dead) => {
                self.plan.describe_rescued(victims, &dead, self.report);
                self.run.carry_out(self.report)?;
                Ok(Round::Done)
            }
        }
    }
}

/// The records of a decision take a few kilobytes, and without them nothing may be deleted.
fn no_room_for_records(error: Error) -> Error {
    if error.kind() != Kind::NoSpace {
        return error;
    }
    error
        .while_doing("prune deletes only what it has recorded first, and there is no room even for that record")
        .with_hint("free a few kilobytes on the file system of the repository, then prune again")
}

fn out_of_room(error: Error) -> Error {
    if error.kind() != Kind::NoSpace {
        return error;
    }
    error
        .while_doing(
            "copying what is needed out of sparse packs (packs without any use have been deleted, or wait for it)",
        )
        .with_hint("prune with --delete-delay 0 or a higher limit of unused bytes, or free some room for the copies")
}

#[cfg(test)]
mod base_tests;
#[cfg(test)]
mod fence_tests;
#[cfg(test)]
mod tests;
