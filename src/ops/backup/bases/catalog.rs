//! The catalog: which files of this run and of earlier snapshots may hold an earlier version of a file.
//!
//! The file at the same path in the parent comes first, then files of the same name but for digits, the nearest path first: in
//! this run, in the parent, in the newest snapshots of other sources. Those are listed when they are first asked for. Headers of stored
//! files are parsed through a reader that fetches only the chunks they lie in.

use super::super::shared::Shared;
use super::distance::{Distance, distance, file_name, shape};
use super::{BaseFile, BasePlan, PlannedRun, RunBase, pairing};
use crate::bytes::ByteRange;
use crate::codec::Relation;
use crate::repo::content_reader::{ContentReader, PlacedChunk};
use crate::repo::entry::Entry;
use crate::repo::paths::absolute_path;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::StreamRef;
use crate::source::layout::{self, COMPANION, Container, Layout, Parsed};
use crate::source::scan::Found;
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Smaller files are not worth a base.
pub(crate) const FILE_BYTES_MIN: u64 = 64 << 10;
/// Snapshots of other sources that are looked into, the newest ones.
const SNAPSHOTS_MAX: usize = 16;
/// A snapshot with more files is not looked through for the sake of bases.
const SNAPSHOT_FILES_MAX: u64 = 1_000_000;
/// Files that are listed.
const FILES_MAX: usize = 200_000;
/// Files of one shape beyond which a name says nothing: pictures with numbers.
const PLAIN_SHAPE_FILES_MAX: usize = 64;
/// For files with a layout that many more are looked through as the file has bytes: comparing paths may cost no more than
/// coding what is in it, and 100,000 small arrays are no versions of each other.
const SHAPE_FILES_MAX: (usize, usize) = (64, 20_000);
const BYTES_FOR_EACH_PATH: u64 = 1 << 10;
/// Smaller files are not waited for where there are many of a shape.
const AWAITED_BYTES_MIN: u64 = 1 << 20;
/// Parts of the path in which a file without a layout may differ from the earlier version of it, but for digits.
const PLAIN_WORDS_MAX: u32 = 1;
/// Files whose headers are parsed to find the earlier version of one.
const TRIES_MAX: usize = 6;
/// Stored files that stay loaded.
const LOADED_MAX: usize = 32;
/// Chunks of files of this run that are remembered, with their layouts: some 50 MB.
const RUN_CHUNKS_MAX: usize = 1 << 20;

#[derive(Clone)]
struct Loaded {
    file: Arc<BaseFile>,
    layout: Option<Arc<Layout>>,
}

enum Place {
    Run(Loaded),
    Stored(StreamRef),
}

struct Candidate {
    path: Vec<u8>,
    place: Place,
}

/// See the module.
pub(crate) struct Catalog<'a> {
    shared: &'a Shared<'a>,
    parent: Option<&'a Snapshot>,
    files: Vec<Candidate>,
    by_shape: HashMap<Vec<u8>, Vec<usize>>,
    companions: HashMap<Vec<u8>, StreamRef>,
    loaded: HashMap<StreamRef, Loaded>,
    /// Big files under way, by their place in the order of the scan.
    under_way: HashMap<u64, (Vec<u8>, Option<Arc<Layout>>)>,
    is_listed: bool,
    run_chunks: usize,
}

impl<'a> Catalog<'a> {
    pub(crate) fn new(shared: &'a Shared<'a>, parent: Option<&'a Snapshot>) -> Catalog<'a> {
        Catalog {
            shared,
            parent,
            files: Vec::new(),
            by_shape: HashMap::new(),
            companions: HashMap::new(),
            loaded: HashMap::new(),
            under_way: HashMap::new(),
            is_listed: false,
            run_chunks: 0,
        }
    }

    /// A file under way that must be finished before `found` is planned for: it holds tensors of the same names or, where neither
    /// has a layout, has the same name in a directory near by. Files that are numbered are more often parts than versions, so
    /// none of them waits for another.
    pub(crate) fn awaited(&self, found: &Found, layout: Option<&Layout>) -> Option<u64> {
        let path = found.absolute.as_os_str().as_bytes();
        let alike = self.by_shape.get(&shape(file_name(path))).map_or(0, Vec::len);
        if found.metadata.size < AWAITED_BYTES_MIN && alike >= PLAIN_SHAPE_FILES_MAX {
            return None;
        }
        let is_related = |other: &(Vec<u8>, Option<Arc<Layout>>)| match (&other.1, layout) {
            // All lone arrays have one name.
            (Some(known), Some(layout)) if layout.container == Container::Npy => {
                known.container == Container::Npy && is_version_of(path, &other.0)
            }
            (Some(known), Some(layout)) => pairing::have_common_run(known, layout),
            (None, None) => is_version_of(path, &other.0),
            _ => false,
        };
        self.under_way.iter().find(|(_, other)| is_related(other)).map(|(sequence, _)| *sequence)
    }

    /// A big file is begun.
    pub(crate) fn begin(&mut self, sequence: u64, found: &Found, layout: Option<Arc<Layout>>) {
        self.under_way.insert(sequence, (found.absolute.as_os_str().as_bytes().to_vec(), layout));
    }

    /// A big file is stored, or given up: then there are no chunks.
    pub(crate) fn finish(&mut self, sequence: u64, chunks: Vec<PlacedChunk>) {
        let Some((path, layout)) = self.under_way.remove(&sequence) else { return };
        // A tensor and its run take some four times the memory of a chunk, a file of its own about eight times.
        let headers = layout.as_ref().map_or(0, |layout| 4 * (layout.runs.len() + layout.tensors.len()));
        let weight = chunks.len() + headers + 8;
        if chunks.is_empty() || self.run_chunks + weight > RUN_CHUNKS_MAX {
            return;
        }
        self.run_chunks += weight;
        let file = Arc::new(BaseFile { chunks });
        self.add(path, Place::Run(Loaded { file, layout }));
    }

    /// What the chunks of `found` may be coded against; `earlier` is what the parent has at its path.
    pub(crate) fn plan(
        &mut self,
        found: &Found,
        layout: Option<&Layout>,
        earlier: Option<&Entry>,
    ) -> Option<Arc<BasePlan>> {
        let path = found.absolute.as_os_str().as_bytes();
        let earlier = earlier.and_then(|entry| entry.content).filter(|content| content.bytes >= FILE_BYTES_MIN);
        let plan = match layout {
            Some(layout) => self.plan_runs(path, found.metadata.size, layout, earlier),
            None => self.plan_whole(path, found.metadata.size, earlier),
        };
        plan.map(Arc::new)
    }

    fn plan_runs(&mut self, path: &[u8], bytes: u64, layout: &Layout, earlier: Option<StreamRef>) -> Option<BasePlan> {
        let files_max = usize::try_from(bytes / BYTES_FOR_EACH_PATH).unwrap_or(usize::MAX);
        let files_max = files_max.clamp(SHAPE_FILES_MAX.0, SHAPE_FILES_MAX.1);
        let mut runs = pairing::blank(layout);
        for other in self.neighbours(path) {
            if let Some(other_layout) = &other.layout {
                pairing::pair_precisions(&mut runs, layout, other_layout, &other.file);
            }
        }
        let earlier = earlier.and_then(|content| self.load(content, path));
        let mut candidates = None;
        let mut next = earlier;
        for _ in 0..TRIES_MAX {
            if let Some(Loaded { file, layout: Some(other) }) = next.take() {
                pairing::pair_versions(&mut runs, layout, &other, &file);
            }
            if pairing::is_complete(&runs, layout) {
                break;
            }
            let candidates = candidates.get_or_insert_with(|| self.nearest(path, files_max).into_iter());
            let Some((_, number)) = candidates.next() else { break };
            next = self.load_candidate(number);
        }
        let has_any = runs.iter().flatten().any(|planned| !planned.bases.is_empty());
        has_any.then_some(BasePlan { runs, whole: None })
    }

    fn plan_whole(&mut self, path: &[u8], bytes: u64, earlier: Option<StreamRef>) -> Option<BasePlan> {
        if bytes < FILE_BYTES_MIN {
            return None;
        }
        let loaded = match earlier {
            Some(content) => self.load(content, path),
            None => {
                let nearest = self.nearest(path, PLAIN_SHAPE_FILES_MAX);
                let (_, number) = nearest.into_iter().find(|(distance, _)| distance.words <= PLAIN_WORDS_MAX)?;
                self.load_candidate(number)
            }
        }?;
        let length = loaded.file.chunks.last().map(|last| last.offset.saturating_add(last.child.bytes))?;
        let range = |bytes| ByteRange::new(0, bytes).ok();
        let base = RunBase { file: loaded.file, range: range(length)?, relation: Relation::Text };
        Some(BasePlan { runs: Vec::new(), whole: Some(PlannedRun::new(range(bytes)?, vec![base])) })
    }

    /// Files of this run in the same directory.
    fn neighbours(&self, path: &[u8]) -> Vec<Loaded> {
        let folder = |path: &[u8]| path.len() - file_name(path).len();
        let own = &path[..folder(path)];
        let is_beside = |candidate: &&Candidate| &candidate.path[..folder(&candidate.path)] == own;
        // The newest few: a directory of thousands of shards is not gone through for each of them.
        let files = self.files.iter().rev().take(TRIES_MAX * LOADED_MAX).filter(is_beside);
        files
            .filter_map(|candidate| match &candidate.place {
                Place::Run(loaded) => Some(loaded.clone()),
                Place::Stored(_) => None,
            })
            .collect()
    }

    /// Files of the same shape of name, the nearest first; none if there are more than `files_max`.
    fn nearest(&mut self, path: &[u8], files_max: usize) -> Vec<(Distance, usize)> {
        self.list_stored();
        let Some(numbers) = self.by_shape.get(&shape(file_name(path))) else { return Vec::new() };
        if numbers.len() > files_max {
            return Vec::new();
        }
        let mut nearest: Vec<_> =
            numbers.iter().map(|&number| (distance(path, &self.files[number].path), number)).collect();
        // Of equally near ones the one listed last: files of this run, then the newest snapshots.
        nearest.sort_by_key(|&(distance, number)| (distance, std::cmp::Reverse(number)));
        nearest
    }

    fn add(&mut self, path: Vec<u8>, place: Place) {
        self.by_shape.entry(shape(file_name(&path))).or_default().push(self.files.len());
        self.files.push(Candidate { path, place });
    }

    fn load_candidate(&mut self, number: usize) -> Option<Loaded> {
        let candidate = self.files.get(number)?;
        match &candidate.place {
            Place::Run(loaded) => Some(loaded.clone()),
            Place::Stored(content) => {
                let (content, path) = (*content, candidate.path.clone());
                self.load(content, &path)
            }
        }
    }

    /// The chunk list and the layout of a stored file; none if they cannot be read.
    fn load(&mut self, content: StreamRef, path: &[u8]) -> Option<Loaded> {
        if let Some(loaded) = self.loaded.get(&content) {
            return Some(loaded.clone());
        }
        let name = file_name(path);
        let frames = &self.shared.frames;
        let reader = ContentReader::open(frames, Some(content)).ok()?;
        let companion = if name.ends_with(b".distcp") { self.companion(path) } else { None };
        let companion = companion.and_then(|content| ContentReader::open(frames, Some(content)).ok());
        let parsed = layout::parse(&reader, name, companion.as_ref().map(|reader| reader as _));
        let layout = match parsed {
            Parsed::Layout(layout) => Some(Arc::from(layout)),
            _ => None,
        };
        let file = Arc::new(BaseFile { chunks: reader.into_chunks() });
        if self.loaded.len() >= LOADED_MAX {
            self.loaded.clear();
        }
        let loaded = Loaded { file, layout };
        self.loaded.insert(content, loaded.clone());
        Some(loaded)
    }

    fn companion(&mut self, path: &[u8]) -> Option<StreamRef> {
        self.list_stored();
        let folder = &path[..path.len() - file_name(path).len()];
        self.companions.get(&[folder, COMPANION.as_bytes()].concat()).copied()
    }

    /// Lists the files of earlier snapshots, once. What cannot be read is passed over.
    fn list_stored(&mut self) {
        if std::mem::replace(&mut self.is_listed, true) {
            return;
        }
        let repo = self.shared.transaction.repo();
        let mut listed = Vec::new();
        let fetch = |id| self.shared.frames.read(id);
        // The parent last: of equally near files the one listed last is taken.
        for snapshot in newest_of_each_source(&repo.snapshots(), self.parent) {
            for entry in repo.entries(&fetch, snapshot.tree).flatten() {
                let Some(content) = entry.content else { continue };
                let is_companion = file_name(&entry.path) == COMPANION.as_bytes();
                if is_companion || (content.bytes >= FILE_BYTES_MIN && listed.len() < FILES_MAX) {
                    listed.push((absolute_path(&snapshot, &entry), content, is_companion));
                }
            }
        }
        // Before what this run has stored so far, which stays the last.
        let own = std::mem::take(&mut self.files);
        self.by_shape.clear();
        for (path, content, is_companion) in listed {
            if is_companion {
                self.companions.insert(path, content);
            } else {
                self.add(path, Place::Stored(content));
            }
        }
        for Candidate { path, place } in own {
            self.add(path, place);
        }
    }
}

/// True if one of two files without a layout may be a version of the other by their names alone.
fn is_version_of(path: &[u8], other: &[u8]) -> bool {
    file_name(path) == file_name(other) && distance(path, other).words <= PLAIN_WORDS_MAX
}

/// The newest snapshot of each source, oldest first, the parent at the end.
fn newest_of_each_source(snapshots: &[Snapshot], parent: Option<&Snapshot>) -> Vec<Snapshot> {
    let mut newest_first: Vec<&Snapshot> = snapshots.iter().collect();
    newest_first.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.started, snapshot.id)));
    let mut seen = HashSet::new();
    let is_other = |snapshot: &&&Snapshot| parent.is_none_or(|parent| parent.id != snapshot.id);
    let mut chosen: Vec<Snapshot> = newest_first
        .iter()
        .filter(|snapshot| seen.insert(snapshot.source_key()))
        .filter(is_other)
        .filter(|snapshot| snapshot.totals.files <= SNAPSHOT_FILES_MAX)
        .take(SNAPSHOTS_MAX)
        .map(|snapshot| (*snapshot).clone())
        .collect();
    chosen.reverse();
    chosen.extend(parent.cloned());
    chosen
}
