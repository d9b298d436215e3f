//! Says whether what is stored would restore, and what is hit if not.
//!
//! The structure: every small object, every index object, the header and table of every pack, every list of files, and a
//! home for every chunk that a live snapshot needs, and for all that such a home needs; and that the parity of packs is
//! sound. With `read_data` also packs, whole: their bytes against their name,
//! every frame decoded, every chunk against its id; which packs, a [`Subset`] says, and what was sound when is remembered
//! in the repository. All of it is read from the storage; the index of this host only finds things, and is itself compared
//! with the packs' own tables.
//!
//! Nothing is changed but for the history. Damage is collected and never ends the run.

mod parity;

pub use super::examine::data::Subset;
pub use super::examine::found::Damage;

use super::Resources;
use super::examine::found::Found;
use super::examine::{data, documents, packs, reachable};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{HistoryId, PackId, SnapshotId};
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::condemned::Condemned;
use crate::repo::index::RunRecord;
use crate::repo::pack::PackKind;
use crate::repo::records::{self, HistoryRecord};
use std::collections::HashSet;
use std::time::Instant;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Which packs to read whole; none for the structure alone.
    pub read_data: Option<Subset>,
    /// How much of the machine to use.
    pub resources: Resources,
    /// The time now, for the history.
    pub now: FileTime,
}

/// What was verified and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Live snapshots whose entries were walked.
    pub snapshots_checked: u64,
    /// Packs whose header and table were read.
    pub packs_checked: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Bytes of those packs.
    pub bytes_read: u64,
    /// Chunks that were decoded and compared with their id; without reading data, chunks whose home was checked.
    pub chunks_checked: u64,
    /// The damage, at most [`Damage::KEPT_MAX`] items.
    pub damage: Vec<Damage>,
    /// How many objects are damaged.
    pub damage_count: u64,
    /// Packs of the repository.
    pub packs_total: u64,
    /// Packs that no index object lists: killed runs leave them, the next run uses them or a prune deletes them.
    pub packs_unlisted: u64,
    /// Packs that a repair has set aside because they are damaged or missing. What of them cannot be had is in the damage.
    pub packs_quarantined: u64,
    /// Packs without parity in a repository where packs get some.
    pub packs_without_parity: u64,
    /// Packs that no run has ever read whole and found sound.
    pub packs_never_read: u64,
    /// The oldest time at which any of the others was.
    pub oldest_read: Option<FileTime>,
}

/// How often a verification begins anew because packs were moved under it.
const LOOKS_MAX: usize = 3;

/// Verifies. Damage is in the report; an error means that the verification itself could not be done.
pub fn verify(repo: &Repo, options: &VerifyOptions, observer: &dyn Observer) -> Result<VerifyReport> {
    repo.keys().require(PackKind::Tree)?;
    if options.read_data.is_some() {
        repo.keys().require(PackKind::Data)?;
    }
    let begun = Instant::now();
    if let Some(subset) = &options.read_data {
        subset.check()?;
    }
    for _ in 0..LOOKS_MAX {
        if let Some(report) = look(repo, options, begun, observer)? {
            return Ok(report);
        }
    }
    Err(Error::new(Kind::Busy, "packs are decided to go, and deleted, faster than they can be verified")
        .with_hint("verify again when no prune runs, or prune with a delay before packs are deleted"))
}

/// Verifies; no report if it found damage where a prune has decided on packs meanwhile: what was in them may have been moved.
fn look(repo: &Repo, options: &VerifyOptions, begun: Instant, observer: &dyn Observer) -> Result<Option<VerifyReport>> {
    // Of a snapshot that is saved later packs may be missing in what is listed now.
    let saved: HashSet<SnapshotId> = repo.snapshots().iter().map(|s| s.id).collect();
    let mut found = Found::default();
    let mut report = VerifyReport::default();
    observer.on_event(&Event::Phase { name: "checking records", bytes_total: None, files_total: None });
    documents::check(repo, &mut found, observer)?;
    let dead = Condemned::read(repo).map(Condemned::into_dead).unwrap_or_default();
    let mut packs = packs::check(repo, &dead, options.resources, &mut found, observer)?;
    report.packs_total = packs.present.len() as u64;
    report.packs_checked = packs.present.len() as u64;
    report.packs_unlisted = packs.unlisted;
    let mut read_packs = HashSet::new();
    let sound = match &options.read_data {
        None => Vec::new(),
        Some(subset) => {
            let run = data::Run {
                repo,
                resources: options.resources,
                observer,
                deadline: subset.deadline(begun),
                quarantine: &packs.quarantine,
            };
            let read = run.read(&subset.choose(repo, &packs.present)?, &mut found)?;
            report.packs_read = read.packs;
            report.bytes_read = read.bytes;
            report.chunks_checked = read.chunks;
            packs.bad.merge(read.bad);
            read_packs = read.read;
            read.sound
        }
    };
    packs.heed_quarantine(&sound);
    report.packs_quarantined = packs.quarantine.iter().count() as u64;
    let missing = parity::check(repo, &mut packs, &read_packs, options.resources, &mut found, observer)?;
    report.packs_without_parity = missing;
    let live = reachable::check(repo, &packs, &saved, &mut found, observer)?;
    live.name_files(repo, &mut found, observer)?;
    if found.count > 0 && Condemned::read(repo).map(Condemned::into_dead).unwrap_or_default() != dead {
        return Ok(None);
    }
    report.snapshots_checked = live.snapshots.len() as u64;
    if options.read_data.is_none() {
        report.chunks_checked = live.chunks;
    }
    report.damage_count = found.count;
    report.damage = found.damage;
    if options.read_data.is_some() {
        remember(repo, options, begun, report.damage_count == 0, &sound, observer)?;
    }
    let reads = repo.index().pack_reads()?;
    report.packs_never_read = packs.present.keys().filter(|id| !reads.contains_key(id)).count() as u64;
    let oldest = packs.present.keys().filter_map(|id| reads.get(id)).min();
    report.oldest_read = oldest.map(|&seconds| FileTime { seconds, nanoseconds: 0 });
    Ok(Some(report))
}

/// Writes down which packs were sound. Where the repository cannot be written, this host remembers it alone.
fn remember(
    repo: &Repo,
    options: &VerifyOptions,
    begun: Instant,
    is_sound: bool,
    sound: &[PackId],
    observer: &dyn Observer,
) -> Result<()> {
    let seconds = i64::try_from(begun.elapsed().as_secs()).unwrap_or(0);
    let finished = FileTime { seconds: options.now.seconds.saturating_add(seconds), ..options.now };
    let outcome = if is_sound { "sound" } else { "damaged" };
    let record = HistoryRecord::new("verify", options.now, finished, outcome, sound);
    let mut random = [0u8; HistoryId::BYTES];
    getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    let id = HistoryId::from_bytes(random);
    if let Err(error) = records::create_history(repo, id, &record) {
        let text = format!("what was verified is remembered on this host only: {error}");
        observer.on_event(&Event::Warning { text: &text });
    }
    let run = RunRecord {
        id,
        operation: record.operation.clone(),
        started: record.started,
        finished: record.finished,
        outcome: record.outcome.clone(),
    };
    repo.index().add_history(&run, sound)
}

#[cfg(test)]
mod base_tests;
#[cfg(test)]
mod tests;
