//! Writes one file of tensors: header, content in order, metadata, durability, final name.

use super::outputs::Output;
use super::{Existing, RestoreTensorsOptions, RestoreTensorsReport};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::{FileKind, Metadata};
use crate::ops::ahead::read_in_order;
use crate::ops::tensors::{ChunkList, TensorFile};
use crate::repo::Repo;
use crate::repo::frame_cache::FrameCache;
use crate::source::apply::IssueSummary;
use crate::source::target::{Overwrite, Placed, Target, TargetFile};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What to do with one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing stands there.
    Create,
    /// Something else stands there, with so many bytes allocated.
    Update {
        /// Bytes.
        allocated: u64,
    },
    /// It is right as it is.
    Unchanged,
    /// It stays because nothing is to be overwritten.
    Keep,
}

impl Action {
    /// True if a file is written.
    pub(super) fn writes(self) -> bool {
        matches!(self, Action::Create | Action::Update { .. })
    }
}

/// What to do with `output`, as the target stands.
pub(super) fn action(output: &Output<'_>, target: &Target, wanted: Existing) -> Result<Action> {
    let Some(existing) = target.existing(&output.path)? else { return Ok(Action::Create) };
    let update = Action::Update { allocated: existing.allocated };
    Ok(match (wanted, existing.metadata) {
        (Existing::Keep, _) => Action::Keep,
        (Existing::ReplaceIfChanged, Some(metadata)) => {
            let is_right = metadata.kind == FileKind::Regular
                && metadata.size == output.bytes()
                && metadata.mtime == output.first.file.entry.metadata.mtime
                && has_header(output, target)?;
            if is_right { Action::Unchanged } else { update }
        }
        (_, _) => update,
    })
}

/// True if the file that stands there begins like the new one: other tensors of the same size are told apart by it.
fn has_header(output: &Output<'_>, target: &Target) -> Result<bool> {
    let Some(file) = target.open_existing(&output.path)? else { return Ok(false) };
    let mut begin = vec![0; output.header.bytes.len()];
    let read = file.read_at(0, &mut begin)?;
    Ok(begin.get(..read) == Some(&output.header.bytes))
}

/// Writes files, one after the other.
pub(super) struct Writer<'a> {
    frames: FrameCache<'a>,
    target: &'a Target,
    sources: &'a [TensorFile],
    options: &'a RestoreTensorsOptions,
    observer: &'a dyn Observer,
    issues: IssueSummary,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        target: &'a Target,
        sources: &'a [TensorFile],
        options: &'a RestoreTensorsOptions,
        observer: &'a dyn Observer,
    ) -> Writer<'a> {
        let frames = FrameCache::new(repo);
        Writer { frames, target, sources, options, observer, issues: IssueSummary::default() }
    }

    /// Metadata that could not be set.
    pub(super) fn into_issues(self) -> Vec<String> {
        self.issues.sentences().collect()
    }

    /// Writes a file and counts how that went; an error only if the run must end.
    pub(super) fn write(&mut self, output: &Output<'_>, report: &mut RestoreTensorsReport) -> Result<()> {
        match self.try_write(output) {
            Ok(placed) => {
                report.files_restored += 1;
                report.bytes_written = report.bytes_written.saturating_add(output.bytes());
                if !placed.issues.is_empty() {
                    self.issues.add(&output.path, &placed.issues);
                }
                self.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
                Ok(())
            }
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::NoSpace | Kind::Unreachable) => Err(error),
            Err(error) => {
                self.observer.on_event(&Event::FileProblem { path: &output.path, error: &error });
                let problems = match error.kind() {
                    Kind::Damaged => &mut report.damaged,
                    _ => &mut report.failed,
                };
                problems.push(output.path.clone(), error);
                Ok(())
            }
        }
    }

    fn try_write(&self, output: &Output<'_>) -> Result<Placed> {
        self.target.make_parents(&output.path)?;
        let existing = self.target.existing(&output.path)?.and_then(|existing| existing.metadata);
        if existing.is_some_and(|metadata| metadata.kind == FileKind::Directory) {
            return Err(Error::new(Kind::Failed, "a directory stands where a file belongs")
                .with_hint("remove it, or restore to another directory"));
        }
        // An interrupted run's part of the same file is written over: which bytes of it are right is not known.
        let key = format!("tensors/{}", blake3::hash(&output.header.bytes).to_hex());
        let file = self.target.begin_file(&output.path, output.bytes(), &key)?;
        if let Err(error) = self.fill(output, &file) {
            // What was wrong is what there is to report.
            let _ = file.discard();
            return Err(error);
        }
        file.sync()?;
        let overwrite = match self.options.existing {
            Existing::Keep => Overwrite::Never,
            Existing::Replace | Existing::ReplaceIfChanged => Overwrite::Replace,
        };
        file.finish(&metadata(output), overwrite)
    }

    fn fill(&self, output: &Output<'_>, file: &TargetFile) -> Result<()> {
        file.write_at(0, &output.header.bytes)?;
        let mut at = output.header.bytes.len() as u64;
        let mut lists: HashMap<usize, ChunkList> = HashMap::new();
        for (number, _) in &output.content {
            if let (Entry::Vacant(vacant), Some(source)) = (lists.entry(*number), self.sources.get(*number)) {
                vacant.insert(source.read_chunk_list(&self.frames)?);
            }
        }
        let places = output.content.iter().filter_map(|(number, place)| Some((lists.get(number)?, place)));
        let stretches = places.flat_map(|(list, place)| list.stretches(*place)).map(Ok);
        let mut write = |bytes: &[u8]| {
            file.write_at(at, bytes)?;
            at = at.saturating_add(bytes.len() as u64);
            Ok(())
        };
        read_in_order(&self.frames, stretches, self.options.resources, self.observer, &mut write)?;
        if at != output.bytes() {
            return Err(Error::damaged(format!("{at} bytes of {} are listed", output.bytes())));
        }
        Ok(())
    }
}

/// Owner, permissions and time of the first source; its attributes describe another content.
fn metadata(output: &Output<'_>) -> Metadata {
    let source = &output.first.file.entry.metadata;
    Metadata { mode: source.mode & 0o777, size: output.bytes(), link_group: None, xattrs: Vec::new(), ..source.clone() }
}
