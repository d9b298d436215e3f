//! Carries out planned units: read, decode, check, write. Any number of threads, each with buffers of its own.
//!
//! What comes out of one read is mostly one long run of a file, and is written as such. Contents that frames further on
//! in a unit stand on are kept as they are, whether or not they are the right ones: what stands on wrong bytes does not
//! get its own id, and only what has its id is written.

use super::gather::Gather;
use super::kept::Kept;
use super::plan::{PlannedFrame, PlannedRead, Unit, Use, Want};
use super::run::interrupted;
use super::stages::Counters;
use crate::bytes::ByteRange;
use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::PackId;
use crate::repo::Repo;
use crate::sabotage::is_planted;
use crate::source::target::TargetFile;
use crate::threads;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How much content is gathered to be written file after file: about what one write takes.
const BATCH_BYTES: usize = 8 << 20;

/// A file under way, as the threads see it.
pub(super) struct Destination {
    /// None once it has failed to open.
    pub(super) file: Option<TargetFile>,
    /// What no chunk is written to in a file that may hold something there.
    pub(super) gaps: Vec<ByteRange>,
    /// Why it will not be restored.
    pub(super) failure: Mutex<Option<Failure>>,
}

/// Why a file is not restored.
#[derive(Debug)]
pub(super) enum Failure {
    /// The repository cannot bring its content.
    Damaged(Error),
    /// The target did not take it.
    Failed(Error),
}

impl Destination {
    pub(super) fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    /// Makes holes where something else may be, unless the file will not be restored.
    pub(super) fn clear_gaps(&mut self) {
        let gaps = std::mem::take(&mut self.gaps);
        if let Some(file) = self.file.as_ref().filter(|_| !self.has_failed())
            && let Err(error) = gaps.into_iter().try_for_each(|gap| file.clear(gap))
        {
            self.fail(Failure::Failed(error));
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Everything that the threads share.
pub(super) struct Fetch<'a> {
    pub(super) repo: &'a Repo,
    pub(super) observer: &'a dyn Observer,
    pub(super) destinations: &'a [Destination],
    pub(super) counters: &'a Counters,
}

impl Fetch<'_> {
    /// Carries out all units with `threads` threads; an error only if the whole run must end.
    pub(super) fn run(&self, units: &[Unit], threads: usize) -> Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = || self.work(units, &next);
            let workers = threads::start_some(scope, threads.min(units.len()), || work)?;
            let panicked = || Err(Error::new(Kind::Failed, "a thread of the restore ended unexpectedly"));
            // Each is waited for, whatever the others have met.
            let results: Vec<Result<()>> =
                workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect();
            results.into_iter().collect()
        })
    }

    fn work(&self, units: &[Unit], next: &AtomicUsize) -> Result<()> {
        let mut worker = Worker {
            fetch: self,
            decoder: Decoder::new()?,
            stored: Vec::new(),
            batch: Vec::new(),
            kept: Kept::default(),
            gather: Gather::new(),
        };
        // In the order of the plan: threads read neighbouring places of the same pack.
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            worker.carry_out(unit)?;
        }
        Ok(())
    }

    pub(super) fn destination(&self, job: u32) -> Option<&Destination> {
        self.destinations.get(usize::try_from(job).ok()?)
    }

    /// Books the failure to write to a target; that it is full, or that this run lacks means, ends the run.
    pub(super) fn write_failed(&self, job: u32, error: Error) -> Result<()> {
        if error.kind() == Kind::NoSpace || error.is_about_this_run() {
            return Err(error);
        }
        if let Some(destination) = self.destination(job) {
            destination.fail(Failure::Failed(error));
        }
        Ok(())
    }
}

struct Worker<'a> {
    fetch: &'a Fetch<'a>,
    decoder: Decoder,
    stored: Vec<u8>,
    /// Frames that are decoded and not delivered yet.
    batch: Vec<(&'a PlannedFrame, Vec<u8>)>,
    kept: Kept,
    gather: Gather,
}

impl<'a> Worker<'a> {
    fn carry_out(&mut self, unit: &'a Unit) -> Result<()> {
        for read in &unit.reads {
            if self.fetch.observer.is_interrupted() {
                return Err(interrupted());
            }
            self.read(read)?;
            // Frame after frame, unless that would write files in many short pieces.
            let batch_bytes = if read.alternates() { BATCH_BYTES } else { 0 };
            for frame in &read.frames {
                let from = usize::try_from(frame.offset - read.offset()).unwrap_or(usize::MAX);
                let content = self.decode(read.pack, frame, from);
                self.batch.push((frame, content));
                if self.batch.iter().map(|(_, content)| content.len()).sum::<usize>() >= batch_bytes {
                    self.deliver_batch()?;
                }
            }
            self.deliver_batch()?;
        }
        for want in &unit.elsewhere {
            if self.fetch.observer.is_interrupted() {
                return Err(interrupted());
            }
            self.deliver(&[], want)?;
        }
        self.kept.clear();
        self.gather.finish(self.fetch)
    }

    /// Leaves nothing if the range cannot be read.
    fn read(&mut self, read: &PlannedRead) -> Result<()> {
        self.stored.clear();
        let range = ByteRange::new(read.offset(), read.bytes())?;
        if self.fetch.repo.read_pack(read.pack, range, &mut self.stored).is_ok() {
            self.fetch.counters.fetched.fetch_add(read.bytes(), Ordering::Relaxed);
        } else {
            self.stored.clear();
        }
        Ok(())
    }

    /// The content of a frame; empty if it cannot be decoded: then each chunk is looked for elsewhere.
    fn decode(&mut self, pack: PackId, frame: &PlannedFrame, from: usize) -> Vec<u8> {
        let Worker { fetch, decoder, stored, kept, .. } = self;
        let mut content = kept.buffer();
        let stored = usize::try_from(frame.stored).ok().and_then(|n| stored.get_mut(from..from.checked_add(n)?));
        let stored = stored.and_then(|bytes| fetch.repo.open_frame_in(pack, frame.offset, bytes).ok());
        let decoded = match (stored, frame.bases.is_empty()) {
            (None, _) => false,
            (Some(bytes), true) => decoder.decode(bytes, &mut content).is_ok(),
            (Some(bytes), false) => {
                kept.bases(&frame.bases).is_some_and(|base| decoder.decode_against(bytes, base, &mut content).is_ok())
            }
        };
        if !decoded || content.len() as u64 != u64::from(frame.raw) {
            content.clear();
        }
        kept.release(&frame.bases);
        content
    }

    /// Writes what is decoded, file after file, and keeps what frames further on stand on.
    fn deliver_batch(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        let uses = batch.iter().flat_map(|(frame, content)| frame.uses.iter().map(move |found| (found, content)));
        let mut uses: Vec<(&Use, &Vec<u8>)> = uses.collect();
        if batch.len() > 1 {
            uses.sort_by_key(|(found, _)| (found.want.job, found.want.offset));
        }
        for (found, content) in uses {
            let at = usize::try_from(found.at).unwrap_or(usize::MAX);
            self.deliver(content.get(at..).unwrap_or_default(), &found.want)?;
        }
        for (frame, content) in batch.drain(..) {
            self.kept.put(frame.keep, content);
        }
        self.batch = batch;
        Ok(())
    }

    /// Writes a chunk that `content` begins with, or one from elsewhere if it does not.
    fn deliver(&mut self, content: &[u8], want: &Want) -> Result<()> {
        let Want { job, bytes, offset, id } = *want;
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let Some(destination) = self.fetch.destination(job) else { return Ok(()) };
        if destination.has_failed() {
            return Ok(());
        }
        let is_right =
            |chunk: &&[u8]| is_planted("restored-chunk-not-compared") || self.fetch.repo.chunk_id(chunk) == id;
        let here = content.get(..bytes).filter(is_right);
        let elsewhere;
        let chunk = match here {
            Some(chunk) => chunk,
            None => {
                // Another home of the chunk may serve; which one failed, verification says.
                elsewhere = match self.fetch.repo.read_chunk(id) {
                    Ok(chunk) if chunk.len() == bytes => chunk,
                    Ok(_) => return damaged(destination, Error::damaged(format!("chunk {id} has another length"))),
                    Err(error) if error.is_about_this_run() => return Err(error),
                    Err(error) => return damaged(destination, error),
                };
                &elsewhere
            }
        };
        self.gather.add(self.fetch, job, offset, chunk)?;
        self.fetch.observer.on_event(&Event::Progress { bytes: chunk.len() as u64, files: 0 });
        Ok(())
    }
}

fn damaged(destination: &Destination, error: Error) -> Result<()> {
    destination.fail(Failure::Damaged(error));
    Ok(())
}
