//! The gate: a finished checkpoint, or none.
//!
//! Before anything is read, the checkpoints in the roots are judged ([`crate::source::complete`]). What belongs to an
//! unfinished one never comes out of the feed, unless it is to be kept. What belongs to a finished one goes on, and
//! [`super::held`] holds it back until all of it is there. Immutable once it is made: the feed, the forecast and the
//! assembly ask it.

use super::BackupOptions;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::FileKind;
use crate::ops::backup::interrupted;
use crate::paths::is_beneath;
use crate::sabotage::is_planted;
use crate::source::complete::{self, Checkpoint, JudgeOptions, Survey};
use crate::source::scan::{Found, Scan, ScanOptions, Scanned, scan};
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What becomes of unfinished checkpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unfinished {
    /// They are left out, each with the reason.
    #[default]
    Skip,
    /// They are stored, and marked in the snapshot's list.
    Keep,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    survey: Survey,
    roots: Vec<PathBuf>,
    scan_options: ScanOptions,
    /// Checkpoints that own all beneath a path, by root and path.
    subtrees: HashMap<u32, HashMap<Vec<u8>, usize>>,
    /// Checkpoints that consist of single files.
    files: HashMap<u32, HashMap<Vec<u8>, usize>>,
    /// Directories of which only the files of an unfinished checkpoint are left out.
    remains: HashMap<u32, HashSet<Vec<u8>>>,
    keeps: bool,
    is_on: bool,
}

impl Gate {
    /// Judges everything in `roots`.
    pub(super) fn new(
        roots: &[PathBuf],
        scan_options: &ScanOptions,
        options: &BackupOptions<'_>,
        observer: &dyn Observer,
    ) -> Result<Gate> {
        let judging = JudgeOptions { now: (options.now)(), settle: options.settle };
        let check = || if observer.is_interrupted() { Err(interrupted()) } else { Ok(()) };
        let survey = complete::survey(roots, scan_options, &judging, &check)?;
        let keeps = options.unfinished == Unfinished::Keep;
        let mut gate = Gate { roots: roots.to_vec(), scan_options: scan_options.clone(), keeps, ..Gate::default() };
        for (number, checkpoint) in survey.checkpoints.iter().enumerate() {
            let (table, paths) = match checkpoint.files() {
                None => (&mut gate.subtrees, std::slice::from_ref(&checkpoint.path)),
                Some(files) => (&mut gate.files, files),
            };
            table.entry(checkpoint.root).or_default().extend(paths.iter().map(|path| (path.clone(), number)));
            if checkpoint.unfinished.is_some() && checkpoint.files().is_some() {
                gate.remains.entry(checkpoint.root).or_default().insert(checkpoint.path.clone());
            }
        }
        for checkpoint in &survey.checkpoints {
            let path = String::from_utf8_lossy(&gate.absolute(checkpoint.root, &checkpoint.path)).into_owned();
            if let Some(text) = &checkpoint.warning {
                observer.on_event(&Event::Warning { text: &format!("{path}: {text}") });
            }
            if let Some(reason) = checkpoint.unfinished.as_ref().filter(|_| gate.keeps) {
                let text = format!("{path}: the checkpoint is unfinished and is stored all the same: {reason}");
                observer.on_event(&Event::Warning { text: &text });
            }
        }
        Ok(Gate { survey, is_on: true, ..gate })
    }

    /// A walk over the roots.
    pub(super) fn scan(&self) -> Scan {
        scan(&self.roots, self.scan_options.clone())
    }

    /// The checkpoint that the entry belongs to.
    pub(super) fn of(&self, root: u32, path: &[u8]) -> Option<usize> {
        if let Some(&number) = self.files.get(&root).and_then(|files| files.get(path)) {
            return Some(number);
        }
        let subtrees = self.subtrees.get(&root)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        let mut above = std::iter::once(0).chain(ends).chain([path.len()]);
        above.find_map(|end| subtrees.get(path.get(..end)?).copied())
    }

    /// The checkpoints that an absolute path belongs to: several if roots contain each other.
    pub(super) fn of_absolute(&self, path: &[u8]) -> Vec<usize> {
        let below = |(number, root): (u32, &PathBuf)| {
            let root = root.as_os_str().as_bytes();
            let rest = path.get(root.len()..).filter(|_| is_beneath(path, root) || root == b"/")?;
            self.of(number, rest.strip_prefix(b"/").unwrap_or(rest))
        };
        (0u32..).zip(&self.roots).filter_map(below).collect()
    }

    /// A checkpoint by its number.
    pub(super) fn checkpoint(&self, number: usize) -> Option<&Checkpoint> {
        self.survey.checkpoints.get(number)
    }

    /// The checkpoint at exactly this path.
    pub(super) fn at(&self, root: u32, path: &[u8]) -> Option<usize> {
        self.survey.checkpoints.iter().position(|c| c.root == root && c.path == path)
    }

    /// True if unfinished checkpoints are stored.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// The checkpoints that are left out from the start, with the reason.
    pub(super) fn left_out(&self) -> Vec<(usize, String)> {
        let reason = |(number, c): (usize, &Checkpoint)| Some((number, c.unfinished.clone()?));
        if self.keeps { Vec::new() } else { self.survey.checkpoints.iter().enumerate().filter_map(reason).collect() }
    }

    /// True for a file that is worth saving by itself: one beside the checkpoints, and not what is left of one.
    pub(super) fn is_beside(&self, root: u32, path: &[u8]) -> bool {
        let mut parts = path.rsplitn(2, |&b| b == b'/');
        let name = parts.next().unwrap_or_default();
        let folder = parts.next().unwrap_or_default();
        let is_remains = self.remains.get(&root).is_some_and(|folders| folders.contains(folder));
        self.of(root, path).is_none() && !complete::is_pointer(name) && !is_remains
    }

    /// The path of an entry as the user knows it.
    pub(super) fn absolute(&self, root: u32, path: &[u8]) -> Vec<u8> {
        let root = usize::try_from(root).ok().and_then(|number| self.roots.get(number));
        let mut absolute = root.map(|root| root.as_os_str().as_bytes().to_vec()).unwrap_or_default();
        if !path.is_empty() {
            if !absolute.ends_with(b"/") {
                absolute.push(b'/');
            }
            absolute.extend_from_slice(path);
        }
        absolute
    }

    /// Lets through what is to be stored. `news` remembers a checkpoint that appeared meanwhile.
    pub(super) fn pass(&self, scanned: Scanned, news: &mut Option<(u32, Vec<u8>)>) -> Option<Scanned> {
        if !self.is_on || self.keeps || is_planted("unfinished-checkpoints-pass") {
            return Some(scanned);
        }
        let (root, path) = match &scanned {
            Scanned::Entry(found) => (found.root, &found.path),
            Scanned::Problem { root, path, .. }
            | Scanned::SkippedSocket { root, path }
            | Scanned::Excluded { root, path } => (*root, path),
        };
        if news.as_ref().is_some_and(|(r, folder)| *r == root && is_beneath(path, folder)) {
            return None;
        }
        if let Some(checkpoint) = self.of(root, path).and_then(|number| self.checkpoint(number)) {
            return checkpoint.unfinished.is_none().then_some(scanned);
        }
        match scanned {
            Scanned::Entry(found) => Some(self.pass_unknown(found, news)),
            other => Some(other),
        }
    }

    /// What the survey has not seen as a part of a checkpoint may be one that has come since.
    fn pass_unknown(&self, found: Found, news: &mut Option<(u32, Vec<u8>)>) -> Scanned {
        let problem = |found: &Found, text: String| Scanned::Problem {
            root: found.root,
            path: found.path.clone(),
            error: Error::new(Kind::Failed, text),
        };
        if found.metadata.kind == FileKind::Directory && self.survey.is_news(found.root, &found.path) {
            *news = Some((found.root, found.path.clone()));
            let text = "the checkpoint appeared while the backup ran and is left out; the next backup takes it";
            return problem(&found, text.to_owned());
        }
        match self.survey.judge_late(&found).and_then(|judged| judged.unfinished) {
            Some(reason) => problem(&found, left_out(&reason)),
            None => Scanned::Entry(found),
        }
    }
}

/// The sentence for a checkpoint that is not in the snapshot.
pub(super) fn left_out(reason: &str) -> String {
    format!("the checkpoint is unfinished and left out: {reason}")
}
