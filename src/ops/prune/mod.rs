//! Deletes what no live snapshot needs: the collector's side of the commit fence.
//!
//! This version works only while no writer does, and sees to it: an open transaction that may be alive is an error, one
//! that is surely dead is revoked. The order and the names are those of the fence all the same (`docs/FORMAT.md`), so a
//! writer that begins meanwhile is noticed and nothing is deleted then, and every crash leaves what the next run goes on
//! from: a list without an end is ended as abandoned, a deletion that was decided is carried out.
//!
//! Packs that nothing needs go first and need no room. What is sparse is copied together afterwards, no more of it than
//! brings the unused bytes under the limit. If anything that a live snapshot needs cannot be read, nothing is deleted.

mod merge;
mod plan;
mod repack;
mod sweep;
mod writers;

use super::Resources;
use crate::bytes::ByteCount;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::records::WriterRecord;
use plan::Plan;
use sweep::Sweep;

/// How to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Reports what would be done and changes nothing.
    pub dry_run: bool,
    /// How much unused data may stay in packs that also hold used data.
    pub max_unused: MaxUnused,
    /// How much of the machine to use.
    pub resources: Resources,
    /// The time now, for the records.
    pub now: FileTime,
    /// This run, as other hosts are to know it; its host and boot also tell which open transactions are dead.
    pub writer: WriterRecord,
    /// The user's word that nothing else uses the repository: every open transaction is revoked.
    pub assume_alone: bool,
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

/// What was done, or would have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that went because nothing in them is needed.
    pub packs_deleted: u64,
    /// Packs that went after what is needed of them was copied.
    pub packs_repacked: u64,
    /// Bytes of the packs that went, less those copied.
    pub bytes_freed: u64,
    /// Bytes of frames that were copied.
    pub bytes_repacked: u64,
    /// Bytes in the packs that stay that no snapshot needs.
    pub bytes_unused_left: u64,
    /// Index objects that were merged into one.
    pub index_objects_merged: u64,
    /// Open transactions of dead writers that were ended.
    pub transactions_ended: u64,
    /// Bytes of unfinished objects that killed writers had left.
    pub temporary_bytes_freed: u64,
}

/// Prunes.
///
/// [`Kind::Busy`] if a writer or another prune may be at work; [`Kind::Damaged`] if anything needed cannot be read;
/// [`Kind::NoSpace`] if even the small records of the decision find no room. In all cases no snapshot loses anything.
pub fn prune(repo: &Repo, options: &PruneOptions, observer: &dyn Observer) -> Result<PruneReport> {
    if !repo.config().exclusive_create && !options.assume_alone {
        return Err(Error::new(
            Kind::Usage,
            "this storage does not create names exclusively, so other writers cannot be seen",
        )
        .with_hint("make sure that nothing else uses the repository and say so"));
    }
    let mut report = PruneReport { transactions_ended: writers::settle(repo, options)?, ..PruneReport::default() };
    repo.refresh(observer)?;
    if let Some(id) = repo.vanished().first() {
        // Its packs may be all that is left of it.
        return Err(Error::new(Kind::Damaged, format!("snapshots/{id} is gone, and nobody forgot it")).with_hint(
            "put it back from a copy of the repository, or say with `ckpt forget` and its id that it may go",
        ));
    }
    if !options.dry_run {
        report.temporary_bytes_freed = sweep::finish_earlier(repo, options)?;
    }
    repo.learn_unlisted_packs()?;
    let survey = repo.index().survey()?;
    let snapshots = sweep::live_snapshots(repo)?;
    let plan = plan::plan(repo, &survey, &snapshots, options.max_unused, observer)?;
    plan.describe(&mut report);
    tell(&plan, observer);
    if options.dry_run {
        report.index_objects_merged = merge::candidates(repo, &plan.all_victims())?.len() as u64;
        return Ok(report);
    }
    let merged = merge::candidates(repo, &plan.all_victims())?;
    plan.list_unlisted(repo)?;
    let sweep = Sweep { repo, survey: &survey, snapshots: &snapshots, options, observer };
    sweep.delete(&plan.unneeded(), &plan.staying_and_sparse())?;
    if !plan.sparse.is_empty() {
        let written = repack::repack(repo, &survey, &plan, options, observer).map_err(out_of_room)?;
        let mut staying = plan.staying.iter().map(|p| p.id).collect::<Vec<_>>();
        staying.extend(written);
        sweep.delete(&plan.sparse.iter().map(|p| (p.id, p.bytes)).collect::<Vec<_>>(), &staying)?;
    }
    report.index_objects_merged = match merge::merge(repo, &merged) {
        Ok(count) => count,
        // Entries of deleted packs are passed over by every reader, so this only costs room.
        Err(error) if error.kind() == Kind::NoSpace => {
            observer.on_event(&Event::Warning { text: &format!("index objects are not merged: {error}") });
            0
        }
        Err(error) => return Err(error),
    };
    Ok(report)
}

fn tell(plan: &Plan, observer: &dyn Observer) {
    let unneeded: u64 = plan.unneeded().iter().map(|(_, bytes)| bytes).sum();
    let text = format!(
        "{} packs stay, {} hold nothing that is needed ({}), {} are sparse",
        plan.staying.len(),
        plan.unneeded().len(),
        ByteCount(unneeded),
        plan.sparse.len()
    );
    observer.on_event(&Event::Detail { text: &text });
}

fn out_of_room(error: Error) -> Error {
    if error.kind() != Kind::NoSpace {
        return error;
    }
    error
        .while_doing("copying what is needed out of sparse packs (packs without any use have been deleted)")
        .with_hint("prune with a higher limit of unused bytes, or free some room for the copies")
}

#[cfg(test)]
mod base_tests;
#[cfg(test)]
mod tests;
