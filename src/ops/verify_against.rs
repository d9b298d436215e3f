//! Compares a directory with a snapshot: would a restore change anything?
//!
//! Names, kinds, sizes, modes, times and link targets are compared, and the content of every file by the ids of its chunks,
//! several at a time and big files in pieces. The repository's content itself is not read. Owners are not compared: without
//! privileges a restore cannot set them. Sockets are passed over, as in a backup.

use super::{Problems, Resources};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::metadata::{FileKind, FileTime};
use crate::repo::entry::{Entry, compare_paths, is_beneath};
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::Child;
use crate::repo::{Repo, paths};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use walkdir::{DirEntry, WalkDir};

/// Content is compared in jobs of about this many bytes, so that one big file keeps every thread busy.
const JOB_BYTES: u64 = 8 << 20;

/// A file is read in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// How the directory compares.
#[derive(Debug, Default)]
pub struct AgainstReport {
    /// Regular files whose content was compared.
    pub files_checked: u64,
    /// Bytes of them.
    pub bytes_checked: u64,
    /// The differences by path, at most [`Difference::KEPT_MAX`].
    pub differences: Vec<Difference>,
    /// How many there are.
    pub difference_count: u64,
    /// What could not be compared because the repository is damaged.
    pub damaged: Problems,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The path relative to the directory.
    pub path: Vec<u8>,
    /// What differs.
    pub what: String,
}

impl Difference {
    /// The most differences that a report holds.
    pub const KEPT_MAX: usize = 1000;
}

/// Compares `directory` with what a restore of `snapshot`, or of `subpath` in it, would put there.
///
/// Differences and damage are in the report. [`Kind::NotFound`] if the subpath is not in the snapshot or the directory
/// does not exist.
pub fn verify_against(
    repo: &Repo,
    snapshot: &Snapshot,
    directory: &Path,
    subpath: Option<&[u8]>,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<AgainstReport> {
    if !directory.is_dir() {
        return Err(Error::new(Kind::NotFound, format!("{} is not a directory", directory.display())));
    }
    let wanted = paths::resolve_subpath(snapshot, subpath.unwrap_or_default())?;
    let bytes_total = subpath.is_none().then_some(snapshot.totals.bytes);
    observer.on_event(&Event::Phase { name: "comparing", bytes_total, files_total: None });
    let shared = Shared { observer, differences: Mutex::default(), count: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let (send, receive) = bounded(resources.threads.max(1) * 4);
    let mut report = AgainstReport::default();
    std::thread::scope(|scope| {
        for _ in 0..resources.threads.max(1) {
            let (receive, shared) = (receive.clone(), &shared);
            scope.spawn(move || work(&receive, shared));
        }
        drop(receive);
        let mut comparison = Comparison { repo, fetch: &fetch, snapshot, shared: &shared, send, report: &mut report };
        let mut is_there = false;
        for (root, prefix) in &wanted {
            let under = if wanted.len() > 1 { top_name(snapshot, *root) } else { Vec::new() };
            is_there |= comparison.subtree(directory, under, *root, prefix)?;
        }
        if !is_there && let Some(subpath) = subpath {
            // Perhaps a single file by its own name; otherwise the error that says what there is.
            let entry = paths::find_entry(repo, snapshot, subpath)?;
            comparison.subtree(directory, Vec::new(), entry.root, &entry.path)?;
        } else if is_there && wanted.len() > 1 {
            comparison.others_at_top(directory, &wanted)?;
        }
        Ok(())
    })?;
    report.bytes_checked = shared.bytes.into_inner();
    report.difference_count = shared.count.into_inner();
    report.differences = shared.differences.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.differences.sort();
    Ok(report)
}

/// The name under which one of several roots is restored.
fn top_name(snapshot: &Snapshot, root: u32) -> Vec<u8> {
    let path = usize::try_from(root).ok().and_then(|n| snapshot.roots.get(n));
    path.map(|path| paths::last_component(path).to_vec()).unwrap_or_default()
}

/// What all threads add to.
struct Shared<'a> {
    observer: &'a dyn Observer,
    differences: Mutex<Vec<Difference>>,
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Shared<'_> {
    fn differ(&self, path: &[u8], what: impl Into<String>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut differences = self.differences.lock().unwrap_or_else(PoisonError::into_inner);
        if differences.len() < Difference::KEPT_MAX {
            differences.push(Difference { path: path.to_vec(), what: what.into() });
        }
    }
}

/// A run of chunks of one file to be compared.
struct Job {
    file: Arc<Compared>,
    offset: u64,
    chunks: Vec<Child>,
}

struct Compared {
    path: PathBuf,
    shown: Vec<u8>,
    /// One difference is enough.
    differs: AtomicBool,
}

struct Comparison<'a> {
    repo: &'a Repo,
    fetch: &'a crate::repo::tree::FetchChunk<'a>,
    snapshot: &'a Snapshot,
    shared: &'a Shared<'a>,
    send: Sender<Job>,
    report: &'a mut AgainstReport,
}

impl Comparison<'_> {
    /// Compares what lies at `prefix` of a root with what lies in the directory, beneath `under`; false if the snapshot
    /// has nothing there.
    fn subtree(&mut self, directory: &Path, under: Vec<u8>, root: u32, prefix: &[u8]) -> Result<bool> {
        let mut local: Option<Local> = None;
        for entry in self.repo.entries(self.fetch, self.snapshot.tree) {
            if self.shared.observer.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while comparing"));
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if error.kind() == Kind::Damaged => {
                    self.report.damaged.push(Vec::new(), error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if entry.root != root || !is_beneath(&entry.path, prefix) {
                if local.is_some() {
                    break;
                }
                continue;
            }
            let walk = local.get_or_insert_with(|| {
                let is_file = entry.path == prefix && !entry.is_directory();
                let name = paths::last_component(&paths::absolute_path(self.snapshot, &entry)).to_vec();
                Local::new(directory, if is_file { name } else { under.clone() }, !is_file)
            });
            let path = relative(&entry.path, prefix);
            let found = walk.advance_to(path, self.shared)?;
            self.pair(&entry, &walk.shown(path), path.is_empty() && under.is_empty(), found)?;
        }
        match local {
            None => Ok(false),
            Some(mut walk) => walk.rest_is_extra(self.shared).map(|()| true),
        }
    }

    /// Compares an entry with what stands at its place.
    fn pair(&mut self, entry: &Entry, shown: &[u8], is_target: bool, found: Option<DirEntry>) -> Result<()> {
        let Some(found) = found else {
            self.shared.differ(shown, "missing");
            return Ok(());
        };
        let metadata = match found.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                self.shared.differ(shown, format!("cannot be looked at: {error}"));
                return Ok(());
            }
        };
        let is_target_directory = is_target && entry.is_directory();
        if let Some(what) = compare_metadata(entry, found.path(), &metadata, is_target_directory) {
            self.shared.differ(shown, what);
        }
        if entry.is_file() && metadata.is_file() && metadata.len() == entry.metadata.size {
            self.report.files_checked += 1;
            self.content(entry, found.into_path(), shown)?;
        }
        Ok(())
    }

    fn content(&mut self, entry: &Entry, path: PathBuf, shown: &[u8]) -> Result<()> {
        let Some(content) = entry.content else { return Ok(()) };
        let file = Arc::new(Compared { path, shown: shown.to_vec(), differs: AtomicBool::new(false) });
        let mut job = Job { file: Arc::clone(&file), offset: 0, chunks: Vec::new() };
        let (mut at, mut job_bytes) = (0u64, 0u64);
        for child in self.repo.content_chunks(self.fetch, content) {
            let child = match child {
                Ok(child) => child,
                Err(error) if error.kind() == Kind::Damaged => {
                    self.report.damaged.push(paths::absolute_path(self.snapshot, entry), error);
                    // Where the rest of the file begins is not known any more.
                    break;
                }
                Err(error) => return Err(error),
            };
            at = at.checked_add(child.bytes).ok_or_else(|| Error::damaged("a file is longer than any can be"))?;
            job_bytes += child.bytes.min(JOB_BYTES);
            job.chunks.push(child);
            if job_bytes >= JOB_BYTES {
                self.start(std::mem::replace(
                    &mut job,
                    Job { file: Arc::clone(&file), offset: at, chunks: Vec::new() },
                ))?;
                job_bytes = 0;
            }
        }
        self.start(job)
    }

    fn start(&self, job: Job) -> Result<()> {
        self.send.send(job).map_err(|_| Error::new(Kind::Failed, "the threads that compare have ended"))
    }

    /// With several roots: what stands in the directory beside them.
    fn others_at_top(&self, directory: &Path, wanted: &[(u32, Vec<u8>)]) -> Result<()> {
        let names: Vec<Vec<u8>> = wanted.iter().map(|(root, _)| top_name(self.snapshot, *root)).collect();
        let failed = |e| Error::io(format!("listing {}", directory.display()), e);
        for found in std::fs::read_dir(directory).map_err(failed)? {
            let name = found.map_err(failed)?.file_name().into_vec();
            if !names.contains(&name) {
                self.shared.differ(&name, "not in the snapshot");
            }
        }
        Ok(())
    }
}

/// The path of an entry relative to the subtree that is compared.
fn relative<'p>(path: &'p [u8], prefix: &[u8]) -> &'p [u8] {
    let rest = path.get(prefix.len()..).unwrap_or_default();
    rest.strip_prefix(b"/").unwrap_or(rest)
}

/// A walk through the directory in the order of entries.
struct Local {
    base: PathBuf,
    under: Vec<u8>,
    walk: walkdir::IntoIter,
    next: Option<(Vec<u8>, DirEntry)>,
    is_done: bool,
}

impl Local {
    fn new(directory: &Path, under: Vec<u8>, descend: bool) -> Local {
        let base = if under.is_empty() { directory.to_owned() } else { directory.join(OsStr::from_bytes(&under)) };
        let depth = if descend { usize::MAX } else { 0 };
        // Only the directory that the user named may itself be a link.
        let walk =
            WalkDir::new(&base).follow_root_links(under.is_empty()).max_depth(depth).sort_by_file_name().into_iter();
        Local { base, under, walk, next: None, is_done: false }
    }

    /// A path as it is shown: relative to the directory.
    fn shown(&self, path: &[u8]) -> Vec<u8> {
        match (self.under.is_empty(), path.is_empty()) {
            (true, _) => path.to_vec(),
            (false, true) => self.under.clone(),
            (false, false) => [self.under.as_slice(), path].join(&b'/'),
        }
    }

    /// What stands at `path`, if anything does. All that comes before it is not in the snapshot.
    fn advance_to(&mut self, path: &[u8], shared: &Shared<'_>) -> Result<Option<DirEntry>> {
        loop {
            self.peek(shared);
            let Some((at, entry)) = self.next.take() else { return Ok(None) };
            match compare_paths(&at, path) {
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Greater => {
                    self.next = Some((at, entry));
                    return Ok(None);
                }
                std::cmp::Ordering::Less => self.extra(&at, &entry, shared),
            }
        }
    }

    fn rest_is_extra(&mut self, shared: &Shared<'_>) -> Result<()> {
        loop {
            self.peek(shared);
            let Some((at, entry)) = self.next.take() else { return Ok(()) };
            self.extra(&at, &entry, shared);
        }
    }

    /// A directory that is not in the snapshot is one difference, however much is in it.
    fn extra(&mut self, at: &[u8], entry: &DirEntry, shared: &Shared<'_>) {
        if entry.file_type().is_socket() {
            return;
        }
        shared.differ(&self.shown(at), "not in the snapshot");
        if entry.file_type().is_dir() {
            self.walk.skip_current_dir();
        }
    }

    fn peek(&mut self, shared: &Shared<'_>) {
        while self.next.is_none() && !self.is_done {
            match self.walk.next() {
                None => self.is_done = true,
                Some(Ok(entry)) => {
                    let path = entry.path().strip_prefix(&self.base).unwrap_or(entry.path());
                    self.next = Some((path.as_os_str().as_bytes().to_vec(), entry));
                }
                Some(Err(error)) => {
                    let path = error.path().and_then(|p| p.strip_prefix(&self.base).ok()).unwrap_or(Path::new(""));
                    // The base itself: that it is missing is said of its entry.
                    if !path.as_os_str().is_empty() {
                        shared.differ(&self.shown(path.as_os_str().as_bytes()), format!("cannot be listed: {error}"));
                    }
                }
            }
        }
    }
}

/// What differs in anything but the content. Mode and time of the target directory itself are its owner's business.
fn compare_metadata(entry: &Entry, path: &Path, found: &std::fs::Metadata, is_target: bool) -> Option<String> {
    let wanted = &entry.metadata;
    let file_type = found.file_type();
    let is_same_kind = match &wanted.kind {
        FileKind::Regular => file_type.is_file(),
        FileKind::Directory => file_type.is_dir(),
        FileKind::Symlink { .. } => file_type.is_symlink(),
        FileKind::Fifo => file_type.is_fifo(),
        FileKind::CharDevice { rdev } => file_type.is_char_device() && found.rdev() == *rdev,
        FileKind::BlockDevice { rdev } => file_type.is_block_device() && found.rdev() == *rdev,
    };
    if !is_same_kind {
        return Some("of another kind".to_owned());
    }
    let mut differences = Vec::new();
    if entry.is_file() && found.len() != wanted.size {
        differences.push(format!("{} bytes, not {}", found.len(), wanted.size));
    }
    if let FileKind::Symlink { target } = &wanted.kind {
        let is_same = std::fs::read_link(path).is_ok_and(|there| there.as_os_str().as_bytes() == target.as_slice());
        if !is_same {
            differences.push("the link has another target".to_owned());
        }
    } else if !is_target {
        if found.mode() & 0o7777 != wanted.mode {
            differences.push(format!("mode {:o}, not {:o}", found.mode() & 0o7777, wanted.mode));
        }
        let modified = FileTime { seconds: found.mtime(), nanoseconds: u32::try_from(found.mtime_nsec()).unwrap_or(0) };
        if modified != wanted.mtime {
            differences.push("another time of modification".to_owned());
        }
    }
    (!differences.is_empty()).then(|| differences.join("; "))
}

fn work(jobs: &Receiver<Job>, shared: &Shared<'_>) {
    let mut piece = vec![0; PIECE_BYTES];
    for job in jobs {
        if shared.observer.is_interrupted() || job.file.differs.load(Ordering::Relaxed) {
            continue;
        }
        let result = compare_chunks(&job, &mut piece, shared).unwrap_or_else(|e| Some(format!("cannot be read: {e}")));
        if let Some(what) = result
            && !job.file.differs.swap(true, Ordering::Relaxed)
        {
            shared.differ(&job.file.shown, what);
        }
    }
}

fn compare_chunks(job: &Job, piece: &mut [u8], shared: &Shared<'_>) -> std::io::Result<Option<String>> {
    // Not blocking and no links: something else may stand there by now.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&job.file.path)?;
    let mut at = job.offset;
    for chunk in &job.chunks {
        if shared.observer.is_interrupted() {
            return Ok(None);
        }
        if !holds(&file, at, *chunk, piece)? {
            return Ok(Some(format!("the content differs within bytes {at} to {}", at.saturating_add(chunk.bytes))));
        }
        at += chunk.bytes;
        shared.bytes.fetch_add(chunk.bytes, Ordering::Relaxed);
        shared.observer.on_event(&Event::Progress { bytes: chunk.bytes, files: 0 });
    }
    Ok(None)
}

/// True if the file has this chunk, or zeros for a hole, at this offset.
fn holds(file: &File, mut at: u64, chunk: Child, piece: &mut [u8]) -> std::io::Result<bool> {
    let mut hasher = blake3::Hasher::new();
    let mut left = chunk.bytes;
    while left > 0 {
        let now = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        let Some(bytes) = piece.get_mut(..now) else { return Ok(false) };
        match file.read_exact_at(bytes, at) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        if chunk.id != ChunkId::HOLE {
            hasher.update(bytes);
        } else if bytes.iter().any(|&b| b != 0) {
            return Ok(false);
        }
        at += now as u64;
        left -= now as u64;
    }
    Ok(chunk.id == ChunkId::HOLE || hasher.finalize().as_bytes() == chunk.id.as_bytes())
}

#[cfg(test)]
mod tests;
