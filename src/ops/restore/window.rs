//! A window of files that are restored together: bounded in number and in chunks, so that memory is.
//!
//! Order within a window: open (or take over) the parts, find what they hold already, fetch the rest, make the content
//! durable, apply metadata, rename. No file gets its final name before its content is durable.

use super::fetch::{Destination, Failure, Fetch};
use super::plan::{Chains, Want, plan};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::metadata::{FileKind, Metadata};
use crate::ops::Resources;
use crate::repo::Repo;
use crate::repo::stream::StreamRef;
use crate::repo::tree::FetchChunk;
use crate::sabotage::is_planted;
use crate::source::apply::MetadataIssue;
use crate::source::target::{Overwrite, ReadyFile, Target, TargetFile};
use rayon::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Chunks that are planned at once: about 100 MB of plan (twice as much if all stand on others), 128 GiB of content at the usual size of chunks.
const WANTS_MAX: usize = 512 << 10;
/// Files in one window, if the system allows that many open files.
const FILES_MAX: usize = 8 << 10;
/// Files from this size on are made durable one by one; smaller ones together.
const SYNC_ALONE_BYTES: u64 = 8 << 20;
/// Beyond computing threads, so that reading and writing overlap with computing.
const IO_THREADS: usize = 2;
/// The least and the most content that a thread may keep for frames that stand on it.
const KEPT_BYTES: std::ops::Range<u64> = 4 << 20..16 << 20;
/// Looked up in the index together.
const LOOKUP_CHUNKS: usize = 4096;

/// A file to restore.
pub(super) struct Job {
    /// Relative to the target.
    pub(super) path: Vec<u8>,
    pub(super) metadata: Metadata,
    pub(super) content: Option<StreamRef>,
    /// What stands there may be taken over and compared.
    pub(super) compare: bool,
}

/// How a file fared.
pub(super) enum Outcome {
    Restored(Vec<MetadataIssue>),
    /// The repository cannot bring its content.
    Damaged(Error),
    /// The target did not take it.
    Failed(Error),
}

/// Bytes that went which way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fetched: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) reused: AtomicU64,
}

/// The counters as plain numbers.
pub(super) struct Moved {
    pub(super) fetched: u64,
    pub(super) written: u64,
    pub(super) reused: u64,
}

/// See the module.
pub(super) struct Window<'a> {
    repo: &'a Repo,
    target: &'a Target,
    observer: &'a dyn Observer,
    pool: rayon::ThreadPool,
    threads: usize,
    kept_bytes_max: u64,
    files_max: usize,
    jobs: Vec<Job>,
    destinations: Vec<Destination>,
    wants: Vec<Want>,
    counters: Counters,
}

impl<'a> Window<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        target: &'a Target,
        observer: &'a dyn Observer,
        resources: Resources,
    ) -> Result<Window<'a>> {
        let threads = resources.threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::new(Kind::Failed, format!("starting threads: {e}")))?;
        Ok(Window {
            repo,
            target,
            observer,
            pool,
            threads,
            kept_bytes_max: kept_bytes_max(resources),
            files_max: files_max(),
            jobs: Vec::new(),
            destinations: Vec::new(),
            wants: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// True if it is time to execute.
    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= self.files_max || self.wants.len() >= WANTS_MAX
    }

    /// Adds a file; its chunk list is read. A list that cannot be read gives the job back.
    pub(super) fn add(&mut self, job: Job, fetch: &FetchChunk<'_>) -> Result<(), Box<(Job, Error)>> {
        let before = self.wants.len();
        let number = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        let mut offset = 0u64;
        for child in job.content.into_iter().flat_map(|content| self.repo.content_chunks(fetch, content)) {
            let (child, bytes) = match child.and_then(|child| Ok((child, chunk_bytes(child.id, child.bytes)?))) {
                Ok(found) => found,
                Err(error) => {
                    self.wants.truncate(before);
                    return Err(Box::new((job, error)));
                }
            };
            if child.id != ChunkId::HOLE {
                self.wants.push(Want { job: number, bytes, offset, id: child.id });
            }
            offset = offset.saturating_add(child.bytes);
        }
        self.jobs.push(job);
        Ok(())
    }

    /// Restores everything added and empties the window; an error only if the whole run must end.
    pub(super) fn execute(&mut self) -> Result<Vec<(Vec<u8>, Outcome)>> {
        self.open_parts();
        let wants = std::mem::take(&mut self.wants);
        let wants = self.drop_held(wants);
        let located = self.locate(wants)?;
        let fetch = Fetch {
            repo: self.repo,
            observer: self.observer,
            destinations: &self.destinations,
            counters: &self.counters,
        };
        let chains = Chains::follow(&located, self.repo)?;
        let units = plan(located, &chains, self.kept_bytes_max);
        drop(chains);
        fetch.run(&units, self.threads + IO_THREADS)?;
        self.finish()
    }

    /// What was moved since the last call.
    pub(super) fn take_moved(&mut self) -> Moved {
        let Counters { fetched, written, reused } = std::mem::take(&mut self.counters);
        Moved { fetched: fetched.into_inner(), written: written.into_inner(), reused: reused.into_inner() }
    }

    fn open_parts(&mut self) {
        let (target, jobs) = (self.target, &self.jobs);
        self.destinations = self.pool.install(|| {
            jobs.par_iter()
                .map(|job| match open_part(target, job) {
                    Ok(file) => Destination { file: Some(file), failure: Mutex::new(None) },
                    Err(error) => Destination { file: None, failure: Mutex::new(Some(Failure::Failed(error))) },
                })
                .collect()
        });
    }

    /// Leaves out what the parts hold already: found by hashing them.
    fn drop_held(&self, wants: Vec<Want>) -> Vec<Want> {
        let destination = |want: &Want| usize::try_from(want.job).ok().and_then(|n| self.destinations.get(n));
        let is_missing = |buffer: &mut Vec<u8>, want: &Want| {
            let Some(file) = destination(want).and_then(|d| d.file.as_ref()).filter(|file| file.resumed()) else {
                return true;
            };
            buffer.resize(usize::try_from(want.bytes).unwrap_or(0), 0);
            let read = file.read_at(want.offset, buffer);
            let is_right = is_planted("held-block-not-compared") || self.repo.chunk_id(buffer) == want.id;
            let is_held = read.is_ok_and(|n| n == buffer.len()) && is_right;
            if is_held {
                self.counters.reused.fetch_add(u64::from(want.bytes), Ordering::Relaxed);
                self.observer.on_event(&Event::Progress { bytes: u64::from(want.bytes), files: 0 });
            }
            !is_held
        };
        if !self.destinations.iter().any(|d| d.file.as_ref().is_some_and(TargetFile::resumed)) {
            return wants;
        }
        self.pool.install(|| {
            let tagged = wants.into_par_iter().map_init(Vec::new, |buffer, want| (is_missing(buffer, &want), want));
            tagged.filter_map(|(is_missing, want)| is_missing.then_some(want)).collect()
        })
    }

    fn locate(&self, wants: Vec<Want>) -> Result<Vec<(crate::repo::index::Home, Want)>> {
        let mut located = Vec::with_capacity(wants.len());
        for batch in wants.chunks(LOOKUP_CHUNKS) {
            let ids: Vec<ChunkId> = batch.iter().map(|want| want.id).collect();
            for (want, homes) in batch.iter().zip(self.repo.locate(&ids)?) {
                match homes.into_iter().find(|home| home.bytes == want.bytes) {
                    Some(home) => located.push((home, *want)),
                    None => self.fail(want, Error::damaged(format!("chunk {} is in no pack", want.id.short()))),
                }
            }
        }
        Ok(located)
    }

    fn fail(&self, want: &Want, error: Error) {
        if let Some(destination) = usize::try_from(want.job).ok().and_then(|n| self.destinations.get(n)) {
            destination.fail(Failure::Damaged(error));
        }
    }

    fn finish(&mut self) -> Result<Vec<(Vec<u8>, Outcome)>> {
        let jobs = std::mem::take(&mut self.jobs);
        let destinations = std::mem::take(&mut self.destinations);
        let files: Vec<(Job, Destination)> = jobs.into_iter().zip(destinations).collect();
        let ready: Vec<(Vec<u8>, Result<ReadyFile, Outcome>)> = self
            .pool
            .install(|| files.into_par_iter().map(|(job, destination)| make_ready(job, destination)).collect());
        // One barrier for all the small ones; large ones are durable already.
        if !is_planted("restored-names-before-durable") {
            self.target.sync_all()?;
        }
        self.pool.install(|| {
            ready
                .into_par_iter()
                .map(|(path, ready)| {
                    let placed = ready.map(|ready| ready.place(Overwrite::Replace).map(|placed| placed.issues));
                    let outcome = match placed {
                        Ok(Ok(issues)) => Outcome::Restored(issues),
                        Ok(Err(error)) => Outcome::Failed(error),
                        Err(outcome) => outcome,
                    };
                    self.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
                    Ok((path, outcome))
                })
                .collect()
        })
    }
}

fn chunk_bytes(id: ChunkId, bytes: u64) -> Result<u32> {
    match u32::try_from(bytes) {
        Ok(bytes) => Ok(bytes),
        Err(_) if id == ChunkId::HOLE => Ok(0),
        Err(_) => Err(Error::damaged(format!("a chunk of {bytes} bytes is not possible"))),
    }
}

fn open_part(target: &Target, job: &Job) -> Result<TargetFile> {
    let Job { path, metadata, content, compare } = job;
    // The same content to the same path: an interrupted restore of it is gone on with.
    let key = content.map_or_else(String::new, |content| format!("{}/{}", content.root, content.bytes));
    let existing = target.existing(path)?;
    let stands = existing.and_then(|existing| existing.metadata).map(|metadata| metadata.kind);
    match stands {
        Some(FileKind::Directory) => Err(Error::new(Kind::Failed, "a directory stands where a file belongs")
            .with_hint("remove it, or restore to another directory")),
        Some(FileKind::Regular) if *compare => target.adopt_file(path, metadata.size, &key),
        _ => target.begin_file(path, metadata.size, &key),
    }
}

fn make_ready(job: Job, destination: Destination) -> (Vec<u8>, Result<ReadyFile, Outcome>) {
    let failure = destination.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ready = match (failure, destination.file) {
        (None, Some(file)) => prepare(&job, file).map_err(Outcome::Failed),
        (Some(Failure::Damaged(error)), file) => {
            // A part that was begun here is of no use; one that was taken over is the user's own file.
            if let Some(file) = file.filter(|file| !file.resumed()) {
                let _ = file.discard();
            }
            Err(Outcome::Damaged(error))
        }
        (Some(Failure::Failed(error)), _) => Err(Outcome::Failed(error)),
        (None, None) => Err(Outcome::Failed(Error::new(Kind::Failed, "the file could not be begun"))),
    };
    (job.path, ready)
}

fn prepare(job: &Job, file: TargetFile) -> Result<ReadyFile> {
    if job.metadata.size >= SYNC_ALONE_BYTES {
        file.sync()?;
    }
    file.apply(&job.metadata)
}

/// How much content a thread may keep for frames that stand on it: at most a quarter of the memory for all of them.
fn kept_bytes_max(resources: Resources) -> u64 {
    let threads = u64::try_from(resources.threads.max(1) + IO_THREADS).unwrap_or(u64::MAX);
    (resources.memory_bytes / threads / 4).clamp(KEPT_BYTES.start, KEPT_BYTES.end)
}

/// How many files may be open at once. The limit of the process is raised as far as the system allows.
fn files_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum.map(|m| m.min(1 << 20)), maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    // Two descriptors for a file written past the page cache, and room for everything else.
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    (limit.saturating_sub(128) / 3).clamp(16, FILES_MAX)
}
