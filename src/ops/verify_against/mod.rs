//! Compares a directory with a snapshot: would a restore change anything?
//!
//! Names, kinds, sizes, modes, times and link targets are compared, and the content of every file by the ids of its chunks,
//! several at a time and big files in pieces. The repository's content itself is not read. Owners are not compared: without
//! privileges a restore cannot set them. Sockets are passed over, as in a backup.

mod content;
mod local;

use super::{Problems, Resources};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::{FileKind, FileTime};
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, paths};
use crate::threads;
use content::{Compared, Job, Shared};
use crossbeam_channel::{Sender, bounded};
use local::Local;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use walkdir::DirEntry;

/// Content is compared in jobs of about this many bytes, so that one big file keeps every thread busy.
const JOB_BYTES: u64 = 8 << 20;

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
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    if !directory.is_dir() {
        return Err(Error::new(Kind::NotFound, format!("{} is not a directory", directory.display())));
    }
    let wanted = paths::resolve_subpath(snapshot, subpath.unwrap_or_default())?;
    let bytes_total = subpath.is_none().then_some(snapshot.totals.bytes);
    observer.on_event(&Event::Phase { name: "comparing", bytes_total, files_total: None });
    let shared = Shared::new(repo.keys(), observer);
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let (send, receive) = bounded(resources.threads.max(1) * 4);
    let mut report = AgainstReport::default();
    std::thread::scope(|scope| {
        threads::start_some(scope, resources.threads, || {
            let (receive, shared) = (receive.clone(), &shared);
            move || content::work(&receive, shared)
        })?;
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
        for entry in self.repo.entries_within(self.fetch, self.snapshot.tree, vec![(root, prefix.to_vec())]) {
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

#[cfg(test)]
mod tests;
