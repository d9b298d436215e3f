//! `restore`: brings a snapshot, or a part of it, back into a directory.
//!
//! Files are handled in windows, so memory is bounded whatever the size of the snapshot. For each window: what the target
//! holds already is found by hashing it; the rest becomes a plan, frames sorted by pack and place; one pass over the
//! packs reads them, coalesced, several at once, frames that others are decoded against first; every chunk is checked against its id before it is written. A file is
//! written beside its final name, made durable, given its metadata, and only then renamed. A file of which any chunk
//! cannot be had is named and left out: never a plausible wrong file.

mod action;
mod delete;
mod fetch;
mod gather;
mod holes;
mod kept;
mod links;
mod plan;
mod run;
mod selection;
mod stages;
#[cfg(test)]
mod tests;
mod window;

use super::{Problems, Resources};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::source::target::Target;
use run::Run;
use selection::Selection;
use stages::Stages;
use std::path::PathBuf;

/// What happens to what stands in the target already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays as it is.
    Never,
    /// Files of the same size and time count as right; others are brought to the state of the snapshot.
    IfChanged,
    /// The content of every file is compared.
    Always,
}

/// Where to restore to.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Beneath this directory.
    Directory(PathBuf),
    /// To the absolute paths that were backed up.
    InPlace,
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where to.
    pub target: Destination,
    /// Only this part of the snapshot.
    pub subpath: Option<Vec<u8>>,
    /// Only what matches, in gitignore syntax; everything if there are none.
    pub includes: Vec<String>,
    /// Nothing that matches.
    pub excludes: Vec<String>,
    /// What happens to what is there already.
    pub overwrite: Overwrite,
    /// Delete what is in restored directories of the target but not in the snapshot.
    pub delete: bool,
    /// Change nothing, say what would be done.
    pub dry_run: bool,
    /// How much of the machine to use.
    pub resources: Resources,
}

/// What a dry run would do to one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedItem {
    /// Relative to the target.
    pub path: Vec<u8>,
    /// `create`, `update`, `keep` or `delete`.
    pub action: &'static str,
    /// Bytes of content.
    pub bytes: u64,
}

/// What was done.
#[derive(Debug, Default)]
pub struct RestoreReport {
    /// Files that were written.
    pub files_restored: u64,
    /// Files that were right already.
    pub files_unchanged: u64,
    /// Files that stayed because nothing was to be overwritten.
    pub files_kept: u64,
    /// Directories that are in place.
    pub directories: u64,
    /// Links, pipes and devices that are in place.
    pub others: u64,
    /// Entries of the target that were deleted.
    pub deleted: u64,
    /// Bytes of all files that were selected.
    pub bytes_total: u64,
    /// Bytes read from packs.
    pub bytes_fetched: u64,
    /// Bytes written to the target.
    pub bytes_written: u64,
    /// Bytes that the target held already.
    pub bytes_reused: u64,
    /// Files left out because the repository cannot bring their content.
    pub damaged: Problems,
    /// Files that the target did not take.
    pub failed: Problems,
    /// Metadata that could not be set, one sentence for each kind.
    pub metadata_issues: Vec<String>,
    /// After a dry run, what would have been done.
    pub planned: Option<Vec<PlannedItem>>,
}

/// Restores.
pub fn restore(
    repo: &Repo,
    snapshot: &Snapshot,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<RestoreReport> {
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    if options.delete && !(options.includes.is_empty() && options.excludes.is_empty()) {
        return Err(Error::new(Kind::Usage, "--delete cannot go with --include or --exclude")
            .with_hint("it would delete what was left out; select with SELECTOR:SUBPATH instead"));
    }
    let selection = Selection::new(repo, snapshot, options)?;
    let path = match &options.target {
        Destination::Directory(path) => path.clone(),
        Destination::InPlace => PathBuf::from("/"),
    };
    let target = if options.dry_run { Target::open_if_present(&path)? } else { Some(Target::open(&path)?) };
    let mut run = Run::new(repo, options, observer, target.as_ref());
    let survey = run.survey(&selection)?;
    if survey.entries == 0 && !survey.is_damaged {
        return Err(Error::new(Kind::NotFound, format!("nothing in snapshot {} is selected", snapshot.id.short()))
            .with_hint("`ckpt ls` shows what it holds"));
    }
    if let Some(target) = target.as_ref().filter(|_| !options.dry_run) {
        run.check_space(&selection, &survey, target)?;
        observer.on_event(&Event::Phase {
            name: "restoring",
            bytes_total: Some(survey.bytes_to_write),
            files_total: Some(survey.files_to_write),
        });
        let stages = Stages::new(repo, target, observer, options.resources)?;
        run.walk(&selection, target, &stages)?;
        run.conclude(&selection, target, &stages)?;
    }
    Ok(run.into_report())
}
