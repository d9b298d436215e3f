//! What is held back: the entries of a finished checkpoint go into the tree together or not at all.
//!
//! Entries come in the order of the scan and leave in it. While a checkpoint is not decided, its entries wait, and so does
//! what comes behind them. It is decided when the first entry behind it comes: out if one of its files could not be read,
//! changed meanwhile, or is not as it was when it was judged. So many entries wait at most; a checkpoint that would need
//! more is let through as it comes, and is marked as unfinished in the list if it fails later.

use super::gate::Gate;
use crate::metadata::FileKind;
use crate::paths::compare_paths;
use crate::repo::Repo;
use crate::repo::checkpoints::{CheckpointRecord, RECORDS_MAX};
use crate::repo::entry::Entry;
use crate::sabotage::is_planted;
use crate::source::complete::{is_pointer, is_step_directory, pointer_target};
use crate::source::stat::FileStatus;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How many entries may wait.
const HELD_MAX: usize = 100_000;
/// A pointer is a short text.
const POINTER_BYTES_MAX: u64 = 4096;
/// Pointers that are looked at.
const POINTERS_MAX: usize = 10_000;

/// Where a file came from, for the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The parent had nothing at its path.
    New,
    /// The parent had something else there.
    Changed,
    /// It was taken over.
    Unchanged,
}

/// An entry with its origin.
pub(super) type Coming = (Entry, Origin);

/// What became of a checkpoint so far.
#[derive(Debug, Default)]
struct State {
    /// Entries that were as they had been judged.
    known: u64,
    failure: Option<String>,
    is_decided: bool,
    is_out: bool,
}

/// A pointer that was stored, and what it names.
struct Pointer {
    root: u32,
    path: Vec<u8>,
    target: Vec<u8>,
}

/// See the module.
pub(super) struct Held<'a> {
    gate: &'a Gate,
    repo: &'a Repo,
    waiting: VecDeque<(Option<usize>, Coming)>,
    states: BTreeMap<usize, State>,
    /// Begun and not decided.
    open: Vec<usize>,
    /// Checkpoints that failed, in the order of their decision.
    failed: Vec<(usize, String)>,
    pointers: Vec<Pointer>,
    /// Directories called like steps that went into the tree.
    steps: HashSet<(u32, Vec<u8>)>,
    /// Files that went into the tree and belong to no checkpoint.
    files_beside: u64,
}

impl<'a> Held<'a> {
    pub(super) fn new(gate: &'a Gate, repo: &'a Repo) -> Held<'a> {
        Held {
            gate,
            repo,
            waiting: VecDeque::new(),
            states: BTreeMap::new(),
            open: Vec::new(),
            failed: Vec::new(),
            pointers: Vec::new(),
            steps: HashSet::new(),
            files_beside: 0,
        }
    }

    /// Takes the next entry.
    pub(super) fn push(&mut self, entry: Entry, origin: Origin) {
        self.decide_passed(entry.root, &entry.path);
        let number = self.gate.of(entry.root, &entry.path);
        if let Some(number) = number {
            self.look_at(number, &entry);
        }
        self.waiting.push_back((number, (entry, origin)));
        if self.waiting.len() > HELD_MAX && !self.open.is_empty() {
            let oldest = self.open.remove(0);
            self.decide(oldest, true);
        }
    }

    /// The next entry that may go into the tree.
    pub(super) fn pop(&mut self) -> Option<Coming> {
        loop {
            let number = self.waiting.front()?.0;
            let state = number.and_then(|number| self.states.get(&number));
            if state.is_some_and(|state| !state.is_decided) {
                return None;
            }
            let is_out = state.is_some_and(|state| state.is_out);
            let (_, (entry, origin)) = self.waiting.pop_front()?;
            if !is_out {
                self.note(&entry);
                return Some((entry, origin));
            }
        }
    }

    /// The file at this absolute path could not be saved as it was judged. False if it belongs to no checkpoint that
    /// would be judged by it: then it is a problem by itself.
    pub(super) fn fail(&mut self, absolute: &[u8], what: &str) -> bool {
        let numbers = self.gate.of_absolute(absolute);
        let name = |path: &[u8]| {
            let below = absolute.strip_prefix(path).map(|rest| rest.strip_prefix(b"/").unwrap_or(rest));
            let below = below.filter(|rest| !rest.is_empty()).unwrap_or(absolute);
            String::from_utf8_lossy(below).into_owned()
        };
        let mut is_judged = false;
        for number in numbers {
            let Some(checkpoint) = self.gate.checkpoint(number).filter(|c| c.unfinished.is_none()) else { continue };
            let file = name(&self.gate.absolute(checkpoint.root, &checkpoint.path));
            self.fail_with(number, format!("{file} {what}"));
            is_judged = true;
        }
        is_judged
    }

    fn fail_with(&mut self, number: usize, reason: String) {
        let state = self.states.entry(number).or_default();
        let is_late = state.is_decided && state.failure.is_none();
        state.failure.get_or_insert(reason.clone());
        if is_late {
            self.failed.push((number, reason));
        } else if !state.is_decided && !self.open.contains(&number) {
            self.open.push(number);
        }
    }

    /// Compares an entry of a finished checkpoint with what was seen of it.
    fn look_at(&mut self, number: usize, entry: &Entry) {
        let Some(checkpoint) = self.gate.checkpoint(number) else { return };
        let is_new = !self.states.contains_key(&number);
        let state = self.states.entry(number).or_default();
        if is_new {
            self.open.push(number);
        }
        if checkpoint.unfinished.is_some() || !(entry.is_file() || entry.is_directory()) {
            return;
        }
        let m = &entry.metadata;
        if checkpoint.knows(&entry.path, m.size, m.mtime, m.ctime, m.inode) {
            state.known += 1;
        } else if state.failure.is_none() {
            let below = entry.path.get(checkpoint.path.len()..).unwrap_or_default();
            let name = String::from_utf8_lossy(below.strip_prefix(b"/").unwrap_or(below)).into_owned();
            let name = if name.is_empty() { "it".to_owned() } else { name };
            self.fail_with(number, format!("{name} changed since the backup began"));
        }
    }

    /// Decides every checkpoint that lies before the entry that comes now.
    fn decide_passed(&mut self, root: u32, path: &[u8]) {
        let is_behind = |number: &usize| {
            let Some(checkpoint) = self.gate.checkpoint(*number) else { return true };
            let is_past =
                |last: &[u8]| checkpoint.root.cmp(&root).then_with(|| compare_paths(last, path)) == Ordering::Less;
            match checkpoint.files().map(<[_]>::last) {
                None => is_past(&checkpoint.path) && !(checkpoint.root == root && checkpoint.holds(path)),
                Some(last) => last.is_none_or(|last| is_past(last)),
            }
        };
        let (passed, open): (Vec<usize>, Vec<usize>) = self.open.iter().partition(|number| is_behind(number));
        self.open = open;
        passed.into_iter().for_each(|number| self.decide(number, false));
    }

    /// Decides all that is left, at the end of the run.
    pub(super) fn decide_rest(&mut self) {
        for number in std::mem::take(&mut self.open) {
            self.decide(number, false);
        }
    }

    fn decide(&mut self, number: usize, is_early: bool) {
        let Some(checkpoint) = self.gate.checkpoint(number) else { return };
        let is_early = is_early || is_planted("half-checkpoint-kept");
        let changed = if is_early || checkpoint.unfinished.is_some() { None } else { self.changed_since(number) };
        let state = self.states.entry(number).or_default();
        if checkpoint.unfinished.is_none() && !is_early && state.failure.is_none() {
            let has_all = state.known >= checkpoint.entries();
            state.failure = changed.or_else(|| (!has_all).then(|| "a file of it vanished".to_owned()));
        }
        state.is_decided = true;
        if let Some(reason) = &state.failure {
            state.is_out = !self.gate.keeps() && !is_early;
            self.failed.push((number, reason.clone()));
        }
    }

    /// Looks at all files of a checkpoint once more: one that was read early may have changed while the others were read.
    fn changed_since(&self, number: usize) -> Option<String> {
        let checkpoint = self.gate.checkpoint(number)?;
        let is_changed = |entry: &Entry| {
            let path = self.gate.absolute(entry.root, &entry.path);
            let path = Path::new(OsStr::from_bytes(&path));
            // A root may be a link to its directory.
            let status = if entry.path.is_empty() { path.metadata() } else { path.symlink_metadata() };
            let now = status.map(|status| FileStatus::from_std(&status));
            let bytes = |now: &FileStatus| if entry.is_file() { now.size } else { 0 };
            !now.is_ok_and(|now| checkpoint.knows(&entry.path, bytes(&now), now.mtime, now.ctime, now.inode))
        };
        let own = self.waiting.iter().filter(|(n, _)| *n == Some(number)).map(|(_, (entry, _))| entry);
        let changed = own.filter(|entry| entry.is_file() || entry.is_directory()).find(|entry| is_changed(entry))?;
        let below = changed.path.get(checkpoint.path.len()..).unwrap_or_default();
        let name = below.strip_prefix(b"/").unwrap_or(below);
        let name = if name.is_empty() { "its directory".into() } else { String::from_utf8_lossy(name) };
        Some(format!("{name} changed while the checkpoint was read"))
    }

    /// The checkpoints that failed since the last call, with their absolute paths, the reason, and whether they are out.
    pub(super) fn take_failed(&mut self) -> Vec<(Vec<u8>, String, bool)> {
        let failed = std::mem::take(&mut self.failed);
        let told = |(number, reason): (usize, String)| {
            let checkpoint = self.gate.checkpoint(number)?;
            let is_out = self.states.get(&number).is_some_and(|state| state.is_out);
            Some((self.gate.absolute(checkpoint.root, &checkpoint.path), reason, is_out))
        };
        failed.into_iter().filter_map(told).collect()
    }

    /// Remembers what the end of the run asks about.
    fn note(&mut self, entry: &Entry) {
        let name = entry.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if entry.is_directory() && is_step_directory(name) {
            self.steps.insert((entry.root, entry.path.clone()));
        }
        if !entry.is_file() {
            return;
        }
        self.files_beside += u64::from(self.gate.is_beside(entry.root, &entry.path));
        if is_pointer(name) && self.pointers.len() < POINTERS_MAX {
            let pointer = read_pointer(self.repo, entry, name, &self.gate.absolute(entry.root, &entry.path));
            self.pointers.extend(pointer);
        }
    }

    /// Pointers in the snapshot that name what is not in it: absolute path and the sentence.
    pub(super) fn dangling_pointers(&self) -> Vec<(Vec<u8>, String)> {
        let sentence = |pointer: &Pointer| {
            let name = String::from_utf8_lossy(pointer.target.rsplit(|&b| b == b'/').next()?).into_owned();
            let place = (pointer.root, pointer.target.clone());
            let is_in = |number: usize| self.states.get(&number).is_some_and(|s| s.is_decided && !s.is_out);
            let text = match self.gate.at(pointer.root, &pointer.target) {
                Some(number) if is_in(number) => return None,
                Some(_) => format!("names {name}, which was left out"),
                None if self.steps.contains(&place) => return None,
                None => format!("names {name}, which is not in the snapshot"),
            };
            Some((self.gate.absolute(pointer.root, &pointer.path), text))
        };
        self.pointers.iter().filter_map(sentence).collect()
    }

    /// The list for the snapshot: every checkpoint that is in it, with its absolute path.
    pub(super) fn records(&self) -> Vec<(Vec<u8>, CheckpointRecord)> {
        let record = |(&number, state): (&usize, &State)| {
            let checkpoint = self.gate.checkpoint(number).filter(|_| state.is_decided && !state.is_out)?;
            let path = self.gate.absolute(checkpoint.root, &checkpoint.path);
            let record = CheckpointRecord {
                root: checkpoint.root,
                path: checkpoint.path.clone(),
                step: checkpoint.step,
                framework: checkpoint.framework.name().to_owned(),
                shards: checkpoint.shards,
                tensors: checkpoint.tensors,
                bytes: checkpoint.bytes,
                unfinished: checkpoint.unfinished.clone().or_else(|| state.failure.clone()),
            };
            Some((path, record))
        };
        self.states.iter().filter_map(record).take(RECORDS_MAX).collect()
    }

    /// How many files went into the tree that belong to no checkpoint.
    pub(super) fn files_beside(&self) -> u64 {
        self.files_beside
    }
}

/// What a stored pointer names; none if the file is no longer what was stored, or names no checkpoint.
fn read_pointer(repo: &Repo, entry: &Entry, name: &[u8], absolute: &[u8]) -> Option<Pointer> {
    let content = entry.content.filter(|content| content.depth == 0)?;
    if entry.metadata.size > POINTER_BYTES_MAX || entry.metadata.kind != FileKind::Regular {
        return None;
    }
    let text = read_short(Path::new(OsStr::from_bytes(absolute)), POINTER_BYTES_MAX)?;
    if repo.chunk_id(&text) != content.root {
        return None;
    }
    let target = pointer_target(name, &text)?;
    let folder = entry.path.get(..entry.path.len() - name.len())?;
    Some(Pointer { root: entry.root, path: entry.path.clone(), target: [folder, &target].concat() })
}

/// The content of a regular file of at most so many bytes.
fn read_short(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    use std::io::Read;
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(bytes_max).read_to_end(&mut text).ok()?;
    Some(text)
}
