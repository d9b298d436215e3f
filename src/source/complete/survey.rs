//! The walk that gathers directories for the rules, and hands each over when it is left.
//!
//! A directory whose name says a step is gathered with all beneath it; of every other directory only the files directly in
//! it that could matter are kept, and only while the walk is in it. So memory is bounded by one checkpoint and the depth.

use super::folder::{Folder, name_of};
use super::rules::{judge_file, judge_flat, judge_tree, style_of};
use super::{Checkpoint, JudgeOptions, is_file, names, stamp_of};
use crate::error::Result;
use crate::metadata::FileKind;
use crate::paths::is_beneath;
use crate::source::scan::{Found, ScanOptions, Scanned, scan};
use std::collections::HashSet;
use std::path::PathBuf;

/// A directory with more entries than this beneath it is no checkpoint.
const ENTRIES_MAX: usize = 100_000;
/// Of a directory that is none by its name, so many files are kept.
const FILES_MAX: usize = 20_000;

/// So many files of `torch.save` are remembered; where there are more, none is looked for later.
const MET_MAX: usize = 1 << 20;

/// What a walk found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The checkpoints, in the order of the walk within each directory.
    pub checkpoints: Vec<Checkpoint>,
    /// Directories that have the name of a step and are no checkpoints.
    ordinary: HashSet<(u32, Vec<u8>)>,
    /// The states of all files of `torch.save` that were met: others have come since. No clock is asked, because the
    /// files' own may be another.
    met: HashSet<u64>,
}

/// Walks `roots` and judges all checkpoints in them. `check` is called now and then; its error ends the walk.
pub fn survey(
    roots: &[PathBuf],
    scan_options: &ScanOptions,
    options: &JudgeOptions,
    check: &dyn Fn() -> Result<()>,
) -> Result<Survey> {
    let mut walk = Walk { survey: Survey::default(), options, open: Vec::new(), root: 0, kept: 0 };
    let mut scan = scan(roots, scan_options.clone());
    let mut number = 0u64;
    // Nothing is asked about files that say nothing: most files of most directories are not even looked at.
    while let Some(scanned) = scan.next_wanted(&|name| walk.wants(name)) {
        if number.is_multiple_of(1024) {
            check()?;
        }
        number += 1;
        walk.take(scanned);
    }
    walk.leave_until(0);
    Ok(walk.survey)
}

impl Survey {
    /// What to think of a directory that comes by later: true if it has the name of a checkpoint, and the walk has not
    /// seen it.
    pub fn is_news(&self, root: u32, path: &[u8]) -> bool {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        style_of(name).is_some() && !self.ordinary.contains(&(root, path.to_vec()))
    }

    /// Judges a file that came by later and that the walk has not seen as it is now; none if it is no checkpoint.
    pub fn judge_late(&self, found: &Found) -> Option<Checkpoint> {
        let is_single = names::is_torch(name_of(found)) && is_file(found);
        let is_late = is_single && self.met.len() < MET_MAX && !self.met.contains(&stamp_of(found));
        if is_late { judge_file(found.root, found) } else { None }
    }
}

/// A directory that the walk is in.
struct Open {
    folder: Folder,
    /// True if it, or one above it, has the name of a step: then everything in it is kept.
    is_whole: bool,
}

struct Walk<'a> {
    survey: Survey,
    options: &'a JudgeOptions,
    open: Vec<Open>,
    root: u32,
    /// Entries kept for the directory with the name of a step that the walk is in.
    kept: usize,
}

impl Walk<'_> {
    /// True if a file of this name may matter. The directory entered last is the one that the file is in, or one beneath
    /// that: if everything in the former is kept, everything in the latter was.
    fn wants(&self, name: &[u8]) -> bool {
        self.open.last().is_some_and(|open| open.is_whole) || matters(name) || names::is_torch(name)
    }

    fn take(&mut self, scanned: Scanned) {
        let (root, path) = match &scanned {
            Scanned::Entry(found) => (found.root, found.path.clone()),
            Scanned::Problem { root, path, .. }
            | Scanned::SkippedSocket { root, path }
            | Scanned::Excluded { root, path } => (*root, path.clone()),
        };
        if root != self.root {
            self.leave_until(0);
            self.root = root;
        }
        let is_around = |open: &Open| is_beneath(&path, &open.folder.path);
        let depth = self.open.iter().take_while(|open| is_around(open)).count();
        self.leave_until(depth);
        match scanned {
            Scanned::Entry(found) if found.metadata.kind == FileKind::Directory => self.enter(&found),
            Scanned::Entry(found) => self.keep(found),
            Scanned::Problem { path, error, .. } => {
                let name = String::from_utf8_lossy(last(&path)).into_owned();
                self.with_folder(|folder| {
                    folder.problem.get_or_insert(format!("{name} cannot be read: {error}"));
                });
            }
            Scanned::SkippedSocket { path, .. } | Scanned::Excluded { path, .. } => self.note(&path),
        }
    }

    fn enter(&mut self, found: &Found) {
        let name = name_of(found).to_vec();
        let is_within = self.open.last().is_some_and(|open| open.is_whole);
        let is_whole = is_within || style_of(&name).is_some();
        self.kept = if is_within { self.kept + 1 } else { 0 };
        let folder = Folder {
            path: found.path.clone(),
            name,
            mtime: found.metadata.mtime,
            stamp: stamp_of(found),
            ..Folder::default()
        };
        self.open.push(Open { folder, is_whole });
    }

    fn keep(&mut self, found: Found) {
        if is_file(&found) && names::is_torch(name_of(&found)) && self.survey.met.len() < MET_MAX {
            self.survey.met.insert(stamp_of(&found));
        }
        let Some(open) = self.open.last_mut() else {
            // The root is a file.
            let judged = judge_file(found.root, &found);
            self.survey.checkpoints.extend(judged);
            return;
        };
        let name = name_of(&found);
        let is_room = match open.is_whole {
            true => self.kept < ENTRIES_MAX,
            false => matters(name) && open.folder.files.len() + open.folder.others.len() < FILES_MAX,
        };
        self.kept += usize::from(open.is_whole);
        if is_room && is_file(&found) {
            open.folder.files.push(found);
        } else if is_room {
            open.folder.others.insert(name.to_vec());
        }
    }

    /// Something that is there, or is left out on purpose.
    fn note(&mut self, path: &[u8]) {
        let name = last(path).to_vec();
        self.with_folder(|folder| {
            if matters(&name) && folder.others.len() < FILES_MAX {
                folder.others.insert(name);
            }
        });
    }

    fn with_folder(&mut self, action: impl FnOnce(&mut Folder)) {
        if let Some(open) = self.open.last_mut() {
            action(&mut open.folder);
        }
    }

    /// Leaves all directories below this depth, the deepest first.
    fn leave_until(&mut self, depth: usize) {
        while self.open.len() > depth {
            let Some(Open { folder, is_whole }) = self.open.pop() else { return };
            match self.open.last_mut() {
                Some(above) if above.is_whole => above.folder.folders.push(folder),
                _ if !is_whole => judge_flat(self.root, &folder, self.options, &mut self.survey.checkpoints),
                _ => self.judge(&folder),
            }
        }
    }

    fn judge(&mut self, folder: &Folder) {
        let before = self.survey.checkpoints.len();
        if self.kept < ENTRIES_MAX {
            judge_tree(self.root, folder, self.options, &mut self.survey.checkpoints);
        }
        let found = self.survey.checkpoints.get(before..).unwrap_or_default();
        for below in folder.all() {
            let is_ordinary =
                style_of(&below.name).is_some() && !found.iter().any(|c| c.files().is_none() && c.holds(&below.path));
            if is_ordinary {
                self.survey.ordinary.insert((self.root, below.path.clone()));
            }
        }
    }
}

fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

/// True for files that tell something about a directory that is no checkpoint by its name.
fn matters(name: &[u8]) -> bool {
    let plain = names::without_temporary(name).unwrap_or(name);
    names::is_weights(plain) || plain.ends_with(b".json") || name == b".metadata"
}
