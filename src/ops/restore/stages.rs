//! The stages that a window goes through, side by side: while one window is filled, the one before it is fetched, and the
//! one before that made durable and named.
//!
//! Order within a window: open (or take over) the parts, find what they hold already, fetch the rest, apply metadata, make
//! everything durable, rename. No file gets its final name before its content is durable. A stage that must end the run
//! lets go of its queue, so that the others end, too.

use super::fetch::{Destination, Failure, Fetch};
use super::plan::{Chains, Want, plan};
use super::window::{Job, Name, Outcome, Window};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::metadata::FileKind;
use crate::ops::Resources;
use crate::repo::Repo;
use crate::repo::tree::FetchChunk;
use crate::sabotage::is_planted;
use crate::source::target::{Overwrite, ReadyFile, Target, TargetFile};
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rayon::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files from this size on are made durable one by one; smaller ones together.
const SYNC_ALONE_BYTES: u64 = 8 << 20;
/// Beyond computing threads, so that reading and writing overlap with computing.
const IO_THREADS: usize = 2;
/// The least and the most content that a thread may keep for frames that stand on it.
const KEPT_BYTES: std::ops::Range<u64> = 4 << 20..16 << 20;
/// Looked up in the index together.
const LOOKUP_CHUNKS: usize = 4096;

/// Bytes that went which way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fetched: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) reused: AtomicU64,
}

/// The files of a window whose content and metadata are complete, and those that have failed.
type Ready = Vec<(Name, Result<ReadyFile, Outcome>)>;
/// How the files of a window fared.
pub(super) type Outcomes = Vec<(Name, Outcome)>;

/// What all stages share.
pub(super) struct Stages<'a> {
    repo: &'a Repo,
    target: &'a Target,
    observer: &'a dyn Observer,
    pool: rayon::ThreadPool,
    threads: usize,
    resources: Resources,
    kept_bytes_max: u64,
    pub(super) counters: Counters,
}

/// The front end of the stages: files go in, outcomes come out, in order.
pub(super) struct Line<'a> {
    repo: &'a Repo,
    window: Window,
    windows: Sender<Window>,
    outcomes: Receiver<Outcomes>,
}

impl Line<'_> {
    /// Adds a file. A window that is full goes to the stages, which waits for the one before it to be fetched. What has come
    /// out meanwhile is for `book`.
    pub(super) fn add(
        &mut self,
        job: Job,
        fetch: &FetchChunk<'_>,
        book: &mut dyn FnMut(Outcomes) -> Result<()>,
    ) -> Result<()> {
        let Line { repo, window, windows, outcomes } = self;
        window.add(job, repo, fetch, &mut |full| send(windows, full))?;
        outcomes.try_iter().try_for_each(book)
    }

    /// Waits for all windows.
    pub(super) fn finish(mut self, book: &mut dyn FnMut(Outcomes) -> Result<()>) -> Result<()> {
        if !self.window.is_empty() {
            send(&self.windows, self.window.take(None))?;
        }
        drop(self.windows);
        self.outcomes.iter().try_for_each(book)
    }
}

fn send(windows: &Sender<Window>, window: Window) -> Result<()> {
    // The stage that ended early has an error of its own, which is the one to report.
    windows.send(window).map_err(|_| Error::new(Kind::Failed, "a stage of the restore ended early"))
}

impl<'a> Stages<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        target: &'a Target,
        observer: &'a dyn Observer,
        resources: Resources,
    ) -> Result<Stages<'a>> {
        let threads = resources.threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::new(Kind::Failed, format!("starting threads: {e}")))?;
        let kept_bytes_max = kept_bytes_max(resources);
        let counters = Counters::default();
        Ok(Stages { repo, target, observer, pool, threads, resources, kept_bytes_max, counters })
    }

    /// Threads for work without an order.
    pub(super) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Runs `fill` beside the stages that take what it pushes; on return all of it is restored.
    pub(super) fn run(&self, fill: impl FnOnce(Line<'_>) -> Result<()>) -> Result<()> {
        let (windows, windows_taken) = bounded(0);
        let (ready, ready_taken) = bounded(0);
        let (settled, outcomes) = unbounded();
        std::thread::scope(|scope| {
            let fetching = threads::start(scope, move || self.fetch_all(&windows_taken, &ready))?;
            let settling = threads::start(scope, move || self.settle_all(&ready_taken, &settled))?;
            let window = Window::new(self.resources);
            let filled = fill(Line { repo: self.repo, window, windows, outcomes });
            let panicked = || Err(Error::new(Kind::Failed, "a stage of the restore ended unexpectedly"));
            let settled = settling.join().unwrap_or_else(|_| panicked());
            let fetched = fetching.join().unwrap_or_else(|_| panicked());
            settled.and(fetched).and(filled)
        })
    }

    fn fetch_all(&self, windows: &Receiver<Window>, ready: &Sender<Ready>) -> Result<()> {
        let mut carried = None;
        for window in windows {
            if ready.send(self.fetch(window, &mut carried)?).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn settle_all(&self, ready: &Receiver<Ready>, outcomes: &Sender<Outcomes>) -> Result<()> {
        for files in ready {
            // Nobody listens when the run has failed; what is whole gets its name all the same.
            let _ = outcomes.send(self.settle(files)?);
        }
        Ok(())
    }

    /// Brings the content of a window; an error only if the whole run must end. A file that goes on in the next window is
    /// `carried` there.
    fn fetch(&self, window: Window, carried: &mut Option<(Job, Destination)>) -> Result<Ready> {
        let opened = self.open_parts(&window.jobs);
        let files = carried.take().into_iter().chain(window.jobs.into_iter().zip(opened));
        let (mut jobs, mut destinations): (Vec<Job>, Vec<Destination>) = files.unzip();
        find_gaps(&jobs, &mut destinations, &window.wants, (window.continues, window.goes_on));
        for (number, error) in window.refused {
            if let Some(destination) = usize::try_from(number).ok().and_then(|n| destinations.get(n)) {
                destination.fail(Failure::Damaged(error));
            }
        }
        let wants = self.drop_held(&destinations, window.wants);
        let located = self.locate(&destinations, wants)?;
        let fetch =
            Fetch { repo: self.repo, observer: self.observer, destinations: &destinations, counters: &self.counters };
        let chains = Chains::follow(&located, self.repo)?;
        let units = plan(located, &chains, self.kept_bytes_max);
        drop(chains);
        fetch.run(&units, self.threads + IO_THREADS)?;
        if window.goes_on.is_some() {
            *carried = jobs.pop().zip(destinations.pop());
            if let Some((_, destination)) = carried {
                destination.clear_gaps();
            }
        }
        let files: Vec<(Job, Destination)> = jobs.into_iter().zip(destinations).collect();
        Ok(self.pool.install(|| files.into_par_iter().map(|(job, destination)| make_ready(job, destination)).collect()))
    }

    fn open_parts(&self, jobs: &[Job]) -> Vec<Destination> {
        let open = |job: &Job| match open_part(self.target, job) {
            Ok(file) => Destination { file: Some(file), gaps: Vec::new(), failure: Mutex::new(None) },
            Err(error) => {
                Destination { file: None, gaps: Vec::new(), failure: Mutex::new(Some(Failure::Failed(error))) }
            }
        };
        self.pool.install(|| jobs.par_iter().map(open).collect())
    }

    /// Leaves out what the parts hold already: found by hashing them.
    fn drop_held(&self, destinations: &[Destination], wants: Vec<Want>) -> Vec<Want> {
        let is_missing = |buffer: &mut Vec<u8>, want: &Want| {
            let Some(file) =
                destination_of(destinations, want).and_then(|d| d.file.as_ref()).filter(|file| file.resumed())
            else {
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
        if !destinations.iter().any(|d| d.file.as_ref().is_some_and(TargetFile::resumed)) {
            return wants;
        }
        self.pool.install(|| {
            let tagged = wants.into_par_iter().map_init(Vec::new, |buffer, want| (is_missing(buffer, &want), want));
            tagged.filter_map(|(is_missing, want)| is_missing.then_some(want)).collect()
        })
    }

    /// Where everything is, but for files that will not be restored.
    fn locate(&self, destinations: &[Destination], wants: Vec<Want>) -> Result<Vec<(crate::repo::index::Home, Want)>> {
        let mut located = Vec::with_capacity(wants.len());
        for batch in wants.chunks(LOOKUP_CHUNKS) {
            let ids: Vec<ChunkId> = batch.iter().map(|want| want.id).collect();
            for (want, homes) in batch.iter().zip(self.repo.locate(&ids)?) {
                match homes.into_iter().find(|home| home.bytes == want.bytes) {
                    Some(home) => located.push((home, *want)),
                    None => {
                        let error = Error::damaged(format!("chunk {} is in no pack", want.id.short()));
                        if let Some(destination) = destination_of(destinations, want) {
                            destination.fail(Failure::Damaged(error));
                        }
                    }
                }
            }
        }
        located.retain(|(_, want)| destination_of(destinations, want).is_some_and(|d| !d.has_failed()));
        Ok(located)
    }

    /// Makes a window durable, and gives its files their names.
    fn settle(&self, files: Ready) -> Result<Outcomes> {
        // One barrier for all the small ones; large ones are durable already.
        if !is_planted("restored-names-before-durable") {
            self.target.sync_all()?;
        }
        let settle = |(name, ready): (Name, Result<ReadyFile, Outcome>)| {
            let outcome = match ready.map(|ready| ready.place(Overwrite::Replace).map(|placed| placed.issues)) {
                Ok(Ok(issues)) => Outcome::Restored(issues),
                Ok(Err(error)) => Outcome::Failed(error),
                Err(outcome) => outcome,
            };
            self.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
            (name, outcome)
        };
        Ok(self.pool.install(|| files.into_par_iter().map(settle).collect()))
    }
}

fn open_part(target: &Target, job: &Job) -> Result<TargetFile> {
    let Job { path, metadata, content, compare, is_fresh } = job;
    // The same content to the same path: an interrupted restore of it is gone on with.
    let key = content.map_or_else(String::new, |content| format!("{}/{}", content.root, content.bytes));
    if *is_fresh {
        return target.begin_file(path, metadata.size, &key);
    }
    let existing = target.existing(path)?;
    let stands = existing.and_then(|existing| existing.metadata).map(|metadata| metadata.kind);
    match stands {
        Some(FileKind::Directory) => Err(Error::new(Kind::Failed, "a directory stands where a file belongs")
            .with_hint("remove it, or restore to another directory")),
        Some(FileKind::Regular) if *compare => target.adopt_file(path, metadata.size, &key),
        _ => target.begin_file(path, metadata.size, &key),
    }
}

fn destination_of<'d>(destinations: &'d [Destination], want: &Want) -> Option<&'d Destination> {
    destinations.get(usize::try_from(want.job).ok()?)
}

/// Notes which parts of files that hold something already belong to holes, from where the first goes on to where the last
/// goes on later. `wants` come in the order of files and offsets.
fn find_gaps(
    jobs: &[Job],
    destinations: &mut [Destination],
    mut wants: &[Want],
    (begin, end): (Option<u64>, Option<u64>),
) {
    for (number, (job, destination)) in jobs.iter().zip(destinations).enumerate() {
        let own;
        (own, wants) = wants.split_at(wants.partition_point(|want| usize::try_from(want.job) == Ok(number)));
        if !destination.file.as_ref().is_some_and(TargetFile::resumed) || is_planted("old-bytes-left-in-holes") {
            continue;
        }
        let mut at = begin.filter(|_| number == 0).unwrap_or(0);
        let end = end.filter(|_| number + 1 == jobs.len()).unwrap_or(job.metadata.size);
        let written = own.iter().map(|want| (want.offset, u64::from(want.bytes)));
        for (offset, bytes) in written.chain([(end, 0)]) {
            let gap = ByteRange::new(at, offset.saturating_sub(at)).ok().filter(|gap| !gap.is_empty());
            destination.gaps.extend(gap);
            at = offset.saturating_add(bytes);
        }
    }
}

fn make_ready(job: Job, mut destination: Destination) -> (Name, Result<ReadyFile, Outcome>) {
    destination.clear_gaps();
    let failure = destination.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ready = match (failure, destination.file) {
        (None, Some(file)) => prepare(&job, file).map_err(Outcome::Failed),
        (Some(Failure::Damaged(error)), Some(file)) if file.resumed() => {
            Err(Outcome::Damaged(with_part(file.leaves_part(), error)))
        }
        (Some(Failure::Damaged(error)), file) => {
            // A part that was begun here is of no use, unless the repository only does not answer now.
            if let Some(file) = file.filter(|_| error.kind() != Kind::Unreachable) {
                let _ = file.discard();
            }
            Err(Outcome::Damaged(error))
        }
        (Some(Failure::Failed(error)), file) => {
            Err(Outcome::Failed(with_part(file.as_ref().and_then(TargetFile::leaves_part), error)))
        }
        (None, None) => Err(Outcome::Failed(Error::new(Kind::Failed, "the file could not be begun"))),
    };
    (job.name(), ready)
}

/// The error of a file that stood there and is not restored: where it is now, if it no longer is what it was.
fn with_part(part: Option<&[u8]>, error: Error) -> Error {
    let Some(part) = part else { return error };
    let part = String::from_utf8_lossy(part);
    error.while_doing(format!(
        "what there is of it, partly overwritten, is {part} beside it until the same restore succeeds or you remove it"
    ))
}

fn prepare(job: &Job, file: TargetFile) -> Result<ReadyFile> {
    if job.metadata.size >= SYNC_ALONE_BYTES {
        file.sync().map_err(|error| with_part(file.leaves_part(), error))?;
    }
    file.apply(&job.metadata)
}

/// How much content a thread may keep for frames that stand on it: at most a quarter of the memory for all of them.
fn kept_bytes_max(resources: Resources) -> u64 {
    let threads = u64::try_from(resources.threads.max(1) + IO_THREADS).unwrap_or(u64::MAX);
    (resources.memory_bytes / threads / 4).clamp(KEPT_BYTES.start, KEPT_BYTES.end)
}
