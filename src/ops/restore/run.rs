//! One run of a restore: decides for every entry what to do, makes what is no regular file, and fills windows.

use super::action::{Action, Fresh, action};
use super::delete::Deletion;
use super::holes::Holes;
use super::links::{Later, Links};
use super::selection::Selection;
use super::stages::{Counters, Line, Outcomes, Stages};
use super::window::{Job, Name, Outcome};
use super::{Overwrite, PlannedItem, RestoreOptions, RestoreReport};
use crate::bytes::ByteCount;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::{FileKind, Metadata};
use crate::repo::entry::Entry;
use crate::repo::{Repo, names};
use crate::sabotage::is_planted;
use crate::source::apply::{IssueSummary, MetadataIssue};
use crate::source::complete::is_pointer;
use crate::source::target::{Overwrite as Replacing, Target};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// A pointer is a short text.
const POINTER_BYTES_MAX: u64 = 4096;
/// So many of them wait for the end.
const POINTERS_MAX: usize = 10_000;

/// What lies ahead, found out before anything is written.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) entries: u64,
    pub(super) files_to_write: u64,
    pub(super) bytes_to_write: u64,
    /// Bytes that files will take beyond what stands under their names.
    bytes_growth: u64,
    /// True if a part of the list of files cannot be read.
    pub(super) is_damaged: bool,
}

/// See the module.
pub(super) struct Run<'a> {
    repo: &'a Repo,
    options: &'a RestoreOptions,
    observer: &'a dyn Observer,
    /// None if a dry run finds no target.
    target: Option<&'a Target>,
    report: RestoreReport,
    fresh: Fresh,
    issues: IssueSummary,
    /// Directories that get their metadata at the end, when nothing below them changes any more.
    directories: Vec<(Vec<u8>, Metadata)>,
    links: Links,
    /// Files that name the newest checkpoint: written when everything that they may name is durable.
    pointers: Vec<Job>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        options: &'a RestoreOptions,
        observer: &'a dyn Observer,
        target: Option<&'a Target>,
    ) -> Run<'a> {
        Run {
            repo,
            options,
            observer,
            target,
            report: RestoreReport { planned: options.dry_run.then(Vec::new), ..RestoreReport::default() },
            fresh: Fresh::default(),
            issues: IssueSummary::default(),
            directories: Vec::new(),
            links: Links::default(),
            pointers: Vec::new(),
        }
    }

    pub(super) fn into_report(mut self) -> RestoreReport {
        self.report.metadata_issues = self.issues.sentences().collect();
        self.report
    }

    /// Looks at everything once: totals for space and progress, and the plan of a dry run.
    pub(super) fn survey(&mut self, selection: &Selection<'_>) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut fresh = Fresh::at_start(self.target)?;
        for item in selection.entries() {
            self.check_interrupted()?;
            let Ok((path, entry)) = item else {
                survey.is_damaged = true;
                continue;
            };
            let size = entry.metadata.size;
            survey.entries += 1;
            self.report.bytes_total = self.report.bytes_total.saturating_add(size);
            let (action, allocated) = match action(self.target, &fresh, self.options.overwrite, &path, &entry) {
                Ok(found) => found,
                Err(error) if error.is_about_this_run() => return Err(error),
                Err(error) if self.options.dry_run => {
                    self.failed(path, error)?;
                    continue;
                }
                // The work looks once more, when it may have opened the directory, and names what it cannot do.
                Err(_) => (Action::Update, size),
            };
            if entry.is_directory() {
                fresh.note(entry.root, &path, action == Action::Create);
            }
            if entry.is_file() && matches!(action, Action::Create | Action::Update) {
                survey.files_to_write += 1;
                survey.bytes_to_write = survey.bytes_to_write.saturating_add(size);
                survey.bytes_growth = survey.bytes_growth.saturating_add(size.saturating_sub(allocated));
            }
            if let Some(planned) = &mut self.report.planned {
                let action = match action {
                    Action::Create => "create",
                    Action::Update => "update",
                    Action::Unchanged | Action::Keep => "keep",
                };
                planned.push(PlannedItem { path, action, bytes: size });
            }
        }
        Ok(survey)
    }

    /// Refuses to begin what cannot fit.
    pub(super) fn check_space(&self, selection: &Selection<'_>, survey: &Survey, target: &Target) -> Result<()> {
        let free = target.free_bytes()?;
        if survey.bytes_growth <= free {
            return Ok(());
        }
        // Holes take no space. Reading all chunk lists to count them costs little beside failing half-way.
        let needed = survey.bytes_growth.saturating_sub(self.hole_bytes(selection)?);
        if needed <= free {
            return Ok(());
        }
        let text = format!(
            "the target {} has {} free, and {} are needed",
            target.describe(),
            ByteCount(free),
            ByteCount(needed)
        );
        Err(Error::new(Kind::NoSpace, text)
            .with_hint("free some space, restore to another disk, or select less with --include"))
    }

    fn hole_bytes(&self, selection: &Selection<'_>) -> Result<u64> {
        let mut holes = Holes::new(selection.fetch(), self.observer);
        let contents = selection.entries().flatten().filter_map(|(_, entry)| entry.content);
        contents.map(|content| holes.bytes_of(content)).try_fold(0, |sum: u64, bytes| Ok(sum.saturating_add(bytes?)))
    }

    /// Goes through the selection in order: everything but regular files is made at once, those are gathered in windows.
    pub(super) fn walk(&mut self, selection: &Selection<'_>, target: &Target, stages: &Stages<'_>) -> Result<()> {
        for beginning in selection.beginnings().filter(|b| !b.is_empty()) {
            target.make_parents(beginning)?;
        }
        stages.run(|mut line| {
            for item in selection.entries() {
                self.check_interrupted()?;
                match item {
                    Ok((path, entry)) => self.place(&mut line, selection, target, path, entry)?,
                    Err(error) => self.damaged(b"(a part of the list of files)".to_vec(), error)?,
                }
            }
            line.finish(&mut |outcomes| self.book(outcomes))
        })
    }

    fn place(
        &mut self,
        line: &mut Line<'_>,
        selection: &Selection<'_>,
        target: &Target,
        path: Vec<u8>,
        entry: Entry,
    ) -> Result<()> {
        let root = entry.root;
        let action = match action(self.target, &self.fresh, self.options.overwrite, &path, &entry) {
            Ok((action, _)) => action,
            Err(error) => return self.failed(path, error),
        };
        match (&entry.metadata.kind, action) {
            (FileKind::Regular, Action::Unchanged) => {
                self.report.files_unchanged += 1;
                self.links.remember(entry.metadata.link_group, &path);
                Ok(())
            }
            (FileKind::Regular, Action::Keep) => {
                self.report.files_kept += 1;
                Ok(())
            }
            (FileKind::Regular, _) => self.place_file(line, selection, path, entry),
            (FileKind::Directory, Action::Keep) => Ok(()),
            (FileKind::Directory, _) => self.place_directory(target, (root, path), entry.metadata, action),
            (_, Action::Keep | Action::Unchanged) => Ok(()),
            _ => self.place_special(target, path, &entry.metadata),
        }
    }

    fn place_file(
        &mut self,
        line: &mut Line<'_>,
        selection: &Selection<'_>,
        path: Vec<u8>,
        entry: Entry,
    ) -> Result<()> {
        let Some(path) = self.links.keep_later(entry.metadata.link_group, path) else { return Ok(()) };
        self.links.remember(entry.metadata.link_group, &path);
        let is_fresh = self.fresh.covers(entry.root, &path);
        let (content, compare) = (entry.content, self.options.overwrite != Overwrite::Never);
        let job = Job { path, metadata: entry.metadata, content, compare, is_fresh };
        if is_pointer_job(&job) && !is_planted("pointer-not-last") && self.pointers.len() < POINTERS_MAX {
            self.pointers.push(job);
            return Ok(());
        }
        line.add(job, selection.fetch(), &mut |outcomes| self.book(outcomes))
    }

    /// Writes what says which checkpoint is the newest, after making everything else durable under its final name.
    fn place_pointers(&mut self, selection: &Selection<'_>, target: &Target, stages: &Stages<'_>) -> Result<()> {
        if self.pointers.is_empty() {
            return Ok(());
        }
        target.sync_all()?;
        stages.run(|mut line| {
            for job in std::mem::take(&mut self.pointers) {
                line.add(job, selection.fetch(), &mut |outcomes| self.book(outcomes))?;
            }
            line.finish(&mut |outcomes| self.book(outcomes))
        })
    }

    fn place_directory(
        &mut self,
        target: &Target,
        (root, path): (u32, Vec<u8>),
        metadata: Metadata,
        action: Action,
    ) -> Result<()> {
        let made = if path.is_empty() { Ok(false) } else { make_directory(target, &path, action) };
        self.fresh.note(root, &path, *made.as_ref().unwrap_or(&false));
        match made {
            Ok(_) => {
                self.report.directories += 1;
                self.directories.push((path, metadata));
                Ok(())
            }
            Err(error) => self.failed(path, error),
        }
    }

    fn place_special(&mut self, target: &Target, path: Vec<u8>, metadata: &Metadata) -> Result<()> {
        match target.make_special(&path, metadata, Replacing::Replace) {
            Ok(placed) => {
                self.report.others += 1;
                self.note_issues(&path, &placed.issues);
                Ok(())
            }
            Err(error) => self.failed(path, error),
        }
    }

    fn book(&mut self, outcomes: Outcomes) -> Result<()> {
        for (Name { path, link_group }, outcome) in outcomes {
            match outcome {
                Outcome::Restored(issues) => {
                    self.report.files_restored += 1;
                    self.note_issues(&path, &issues);
                }
                Outcome::Damaged(error) => {
                    self.links.lose(link_group, true, &error);
                    self.damaged(path, error)?;
                }
                Outcome::Failed(error) => {
                    self.links.lose(link_group, false, &error);
                    self.failed(path, error)?;
                }
            }
        }
        Ok(())
    }

    /// Further names, pointers, deletions, metadata of directories, and durability: in this order.
    pub(super) fn conclude(&mut self, selection: &Selection<'_>, target: &Target, stages: &Stages<'_>) -> Result<()> {
        for Later { path, first } in self.links.take() {
            let linked = first.map(|first| target.hard_link(&first, &path, Replacing::Replace));
            match linked {
                Ok(Ok(_)) => self.report.files_restored += 1,
                Ok(Err(error)) | Err((false, error)) => self.failed(path, error)?,
                Err((true, error)) => self.damaged(path, error)?,
            }
        }
        self.place_pointers(selection, target, stages)?;
        if self.options.delete {
            self.delete(selection, target)?;
        }
        self.finish_directories(target, stages)?;
        let Counters { fetched, written, reused } = &stages.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let report = &mut self.report;
        (report.bytes_fetched, report.bytes_written) = (load(fetched), load(written));
        report.bytes_reused = load(reused);
        if is_planted("restore-unsynced") { Ok(()) } else { target.sync_all() }
    }

    /// Gives directories their metadata, deepest first: one that may not be entered closes what is beneath it.
    fn finish_directories(&mut self, target: &Target, stages: &Stages<'_>) -> Result<()> {
        let depth = |path: &[u8]| if path.is_empty() { 0 } else { 1 + path.iter().filter(|&&b| b == b'/').count() };
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by_key(|(path, _)| std::cmp::Reverse(depth(path)));
        for level in directories.chunk_by(|(a, _), (b, _)| depth(a) == depth(b)) {
            let set = |(path, metadata): &(Vec<u8>, Metadata)| target.set_directory_metadata(path, metadata);
            let outcomes: Vec<_> = stages.pool().install(|| level.par_iter().map(set).collect());
            for ((path, _), outcome) in level.iter().zip(outcomes) {
                match outcome {
                    Ok(issues) => self.note_issues(path, &issues),
                    Err(error) => self.failed(path.clone(), error)?,
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, selection: &Selection<'_>, target: &Target) -> Result<()> {
        if !self.report.damaged.is_empty() && !is_planted("surplus-deleted-beside-damage") {
            let text = "nothing was deleted, because the repository is damaged";
            self.observer.on_event(&Event::Warning { text });
            return Ok(());
        }
        let keeps_parts = !self.report.failed.is_empty();
        let failed = &mut |path, error| self.failed(path, error);
        let deleted = Deletion { target, keeps_parts, failed }.surplus(selection)?;
        self.report.deleted = deleted;
        Ok(())
    }

    fn note_issues(&mut self, path: &[u8], issues: &[MetadataIssue]) {
        if !issues.is_empty() {
            self.issues.add(path, issues);
        }
    }

    /// Books a file that is damaged in the repository. What says nothing about the file ends the run: another key, a
    /// repository that is gone altogether, a run without means.
    fn damaged(&mut self, path: Vec<u8>, error: Error) -> Result<()> {
        let ends = match error.kind() {
            Kind::WrongKey => true,
            // One bad place of a disk is damage; a mount that is lost does not list the snapshots either.
            Kind::Unreachable => {
                self.repo.storage().list(names::SNAPSHOTS).is_err_and(|e| e.kind() == Kind::Unreachable)
            }
            _ => error.is_about_this_run(),
        };
        if ends {
            return Err(error);
        }
        self.observer.on_event(&Event::FileProblem { path: &path, error: &error });
        self.report.damaged.push(path, error);
        Ok(())
    }

    /// A full target or a run without means fails the run; anything else only this path.
    fn failed(&mut self, path: Vec<u8>, error: Error) -> Result<()> {
        if error.kind() == Kind::NoSpace {
            return Err(error.with_hint("the target is full; free some space there, then run the same restore again"));
        }
        if error.is_about_this_run() {
            return Err(error);
        }
        self.observer.on_event(&Event::FileProblem { path: &path, error: &error });
        self.report.failed.push(path, error);
        Ok(())
    }

    fn check_interrupted(&self) -> Result<()> {
        if self.observer.is_interrupted() { Err(interrupted()) } else { Ok(()) }
    }
}

/// True for a file like `latest`. One with several names is written with the others, because those are links to it.
fn is_pointer_job(job: &Job) -> bool {
    let name = job.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    is_pointer(name) && job.metadata.size <= POINTER_BYTES_MAX && job.metadata.link_group.is_none()
}

/// The error of a run that the user has asked to end.
pub(super) fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted; run the same restore again to go on where it ended")
}

/// Makes the directory, and says whether it is new; a file or link that stands there gives way.
fn make_directory(target: &Target, path: &[u8], action: Action) -> Result<bool> {
    let existing = if action == Action::Create { None } else { target.existing(path)? };
    if existing.is_some_and(|existing| existing.metadata.is_none_or(|m| m.kind != FileKind::Directory)) {
        target.remove(path)?;
    }
    target.make_directory(path)
}
