//! Restores tensors, not files: those whose names match, from files of any kind that is known, into safetensors files.
//!
//! Each file becomes one of the same path, or all of them become one. A file is written through the confined writer of
//! every restore: beside its final name, made durable, then renamed. Every chunk is compared with its id. A file of which
//! a chunk cannot be had is named and left out; a tensor that safetensors cannot hold is named and left out of its file.

mod outputs;
mod write;

use super::tensors::{Part, TensorFile, TensorFilter, Walked, for_each_tensor_file};
use super::{Problems, Resources};
use crate::bytes::ByteCount;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::pack::PackKind;
use crate::source::excludes::{Excludes, Includes};
use crate::source::target::Target;
use outputs::Output;
use std::path::PathBuf;
use write::{Action, Writer};

/// What happens to what stands in the target already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays as it is.
    Keep,
    /// A file of the same size, time and header counts as right; others are replaced.
    ReplaceIfChanged,
    /// It is replaced.
    Replace,
}

/// Where the tensors go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Beneath this directory, a file for each that holds any of them.
    Directory(PathBuf),
    /// Into this one file.
    File(PathBuf),
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreTensorsOptions {
    /// Where to.
    pub target: Destination,
    /// Which tensors.
    pub filter: TensorFilter,
    /// Only of files that match, in gitignore syntax; of all if there are none.
    pub includes: Vec<String>,
    /// Of no file that matches.
    pub excludes: Vec<String>,
    /// What happens to what is there already.
    pub existing: Existing,
    /// Change nothing, say what would be done.
    pub dry_run: bool,
    /// How much of the machine to use.
    pub resources: Resources,
}

/// What a dry run would do to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Relative to the target.
    pub path: Vec<u8>,
    /// `create`, `update` or `keep`.
    pub action: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: u64,
}

/// What was done.
#[derive(Debug, Default)]
pub struct RestoreTensorsReport {
    /// Files that were written.
    pub files_restored: u64,
    /// Files that were right already.
    pub files_unchanged: u64,
    /// Files that stayed because nothing was to be overwritten.
    pub files_kept: u64,
    /// Tensors in all files that were to be written.
    pub tensors: u64,
    /// Bytes of these files.
    pub bytes_total: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Tensors that safetensors cannot hold, by the file that they are in.
    pub skipped: Problems,
    /// Files left out because the repository cannot bring their content.
    pub damaged: Problems,
    /// Files that the target did not take.
    pub failed: Problems,
    /// Metadata that could not be set, one sentence for each kind.
    pub metadata_issues: Vec<String>,
    /// After a dry run, what would have been done.
    pub planned: Option<Vec<PlannedFile>>,
}

/// Restores.
///
/// [`Kind::NotFound`] if no tensor matches; [`Kind::Usage`] if none that match can be held by safetensors, or if several that
/// would go into one file have one name.
pub fn restore_tensors(
    repo: &Repo,
    part: Part<'_>,
    options: &RestoreTensorsOptions,
    observer: &dyn Observer,
) -> Result<RestoreTensorsReport> {
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    let mut report = RestoreTensorsReport::default();
    let (sources, walked) = gather(repo, part, options, observer, &mut report)?;
    report.damaged = walked.damaged;
    if sources.is_empty() {
        return Err(nothing(&report, part));
    }
    let (folder, file) = match &options.target {
        Destination::Directory(folder) => (folder.clone(), None),
        Destination::File(path) => {
            let name = path.file_name().ok_or_else(|| Error::new(Kind::Usage, "the target names no file"))?;
            let parent = path.parent().map_or_else(|| PathBuf::from("/"), PathBuf::from);
            (parent, Some(std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec()))
        }
    };
    let outputs = outputs::outputs(&sources, file.as_deref(), observer)?;
    let target = if options.dry_run { Target::open_if_present(&folder)? } else { Some(Target::open(&folder)?) };
    for output in &outputs {
        report.tensors += output.tensors();
        report.bytes_total = report.bytes_total.saturating_add(output.bytes());
    }
    let actions = actions(&outputs, target.as_ref(), options.existing)?;
    let Some(target) = target.filter(|_| !options.dry_run) else {
        report.planned = Some(outputs.iter().zip(&actions).map(|(output, action)| output.planned(action)).collect());
        return Ok(report);
    };
    check_space(&outputs, &actions, &target)?;
    let to_write = || outputs.iter().zip(&actions).filter(|(_, action)| action.writes());
    observer.on_event(&Event::Phase {
        name: "restoring",
        bytes_total: Some(to_write().map(|(output, _)| output.bytes()).fold(0, u64::saturating_add)),
        files_total: Some(to_write().count() as u64),
    });
    let mut writer = Writer::new(repo, &target, &sources, options, observer);
    for (output, action) in outputs.iter().zip(&actions) {
        match action {
            Action::Keep => report.files_kept += 1,
            Action::Unchanged => report.files_unchanged += 1,
            Action::Create | Action::Update { .. } => writer.write(output, &mut report)?,
        }
    }
    target.sync_all()?;
    report.metadata_issues = writer.into_issues();
    Ok(report)
}

/// The files with tensors that match, those tensors alone left in their layouts.
fn gather(
    repo: &Repo,
    part: Part<'_>,
    options: &RestoreTensorsOptions,
    observer: &dyn Observer,
    report: &mut RestoreTensorsReport,
) -> Result<(Vec<TensorFile>, Walked)> {
    let (includes, excludes) = (Includes::new(&options.includes)?, Excludes::new(&options.excludes, &[])?);
    let mut sources = Vec::new();
    let walked = for_each_tensor_file(repo, part, observer, &mut |mut file| {
        let path = &file.file.entry.path;
        let is_left_out = is_excluded(&excludes, path) || !includes.includes(path, false);
        if is_left_out {
            return Ok(());
        }
        let shown = file.file.path.clone();
        file.layout.tensors.retain(|tensor| {
            if !options.filter.matches(&tensor.name) {
                return false;
            }
            let refused = outputs::refusal(tensor);
            match refused {
                None => true,
                Some(error) => {
                    observer.on_event(&Event::FileProblem { path: &shown, error: &error });
                    report.skipped.push(shown.clone(), error);
                    false
                }
            }
        });
        if !file.layout.tensors.is_empty() {
            // Of many large files the lists of chunks would be large together: they are read again one by one.
            sources.push(file.without_chunks());
        }
        Ok(())
    })?;
    Ok((sources, walked))
}

fn is_excluded(excludes: &Excludes, path: &[u8]) -> bool {
    let mut above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end]);
    excludes.excludes(path, false) || above.any(|folder| excludes.excludes(folder, true))
}

fn nothing(report: &RestoreTensorsReport, part: Part<'_>) -> Error {
    if let Some(problem) = report.damaged.kept.first() {
        let text = format!("{}: {}", String::from_utf8_lossy(&problem.path), problem.error);
        return Error::new(problem.error.kind(), text);
    }
    match report.skipped.count {
        0 => Error::new(Kind::NotFound, format!("no tensor in snapshot {} matches", part.snapshot.id.short()))
            .with_hint("`ckpt ls SELECTOR --tensors` lists all tensors; `*` matches any characters, dots too"),
        count => Error::new(Kind::Usage, format!("safetensors can hold none of the {count} tensors that match"))
            .with_hint("`ckpt dump SELECTOR PATH --tensor NAME` writes the bytes of one as they are"),
    }
}

fn actions(outputs: &[Output<'_>], target: Option<&Target>, existing: Existing) -> Result<Vec<Action>> {
    outputs
        .iter()
        .map(|output| target.map_or(Ok(Action::Create), |target| write::action(output, target, existing)))
        .collect()
}

/// Refuses to begin what cannot fit.
fn check_space(outputs: &[Output<'_>], actions: &[Action], target: &Target) -> Result<()> {
    // What is replaced stands beside its successor for a moment; it still counts as growth here only by the difference.
    let needed = outputs.iter().zip(actions).fold(0u64, |sum, (output, action)| match action {
        Action::Create => sum.saturating_add(output.bytes()),
        Action::Update { allocated } => sum.saturating_add(output.bytes().saturating_sub(*allocated)),
        Action::Keep | Action::Unchanged => sum,
    });
    let free = target.free_bytes()?;
    if needed <= free {
        return Ok(());
    }
    let text =
        format!("the target {} has {} free, and {} are needed", target.describe(), ByteCount(free), ByteCount(needed));
    Err(Error::new(Kind::NoSpace, text).with_hint("free some space, restore to another disk, or select fewer tensors"))
}
