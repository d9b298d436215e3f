//! Carries out planned units: read, decode, check, write. Any number of threads, each with buffers of its own.
//!
//! What comes out of one read is mostly one long run of a file, and is written as such. Contents that frames further on
//! in a unit stand on are kept as they are, whether or not they are the right ones: what stands on wrong bytes does not
//! get its own id, and only what has its id is written.

use super::gather::Gather;
use super::kept::Kept;
use super::plan::{PlannedFrame, PlannedRead, Unit, Want};
use super::run::interrupted;
use super::window::Counters;
use crate::bytes::ByteRange;
use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::repo::{Repo, names};
use crate::source::target::TargetFile;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A file under way, as the threads see it.
pub(super) struct Destination {
    /// None once it has failed to open.
    pub(super) file: Option<TargetFile>,
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

    fn has_failed(&self) -> bool {
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
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads.clamp(1, units.len().max(1))).map(|_| scope.spawn(|| self.work(units, &next))).collect();
            let panicked = || Err(Error::new(Kind::Failed, "a thread of the restore ended unexpectedly"));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect()
        });
        results.into_iter().collect()
    }

    fn work(&self, units: &[Unit], next: &AtomicUsize) -> Result<()> {
        let mut worker = Worker {
            fetch: self,
            decoder: Decoder::new()?,
            stored: Vec::new(),
            content: Vec::new(),
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

    /// Books the failure to write to a target; that it is full ends the run.
    pub(super) fn write_failed(&self, job: u32, error: Error) -> Result<()> {
        if error.kind() == Kind::NoSpace {
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
    content: Vec<u8>,
    kept: Kept,
    gather: Gather,
}

impl Worker<'_> {
    fn carry_out(&mut self, unit: &Unit) -> Result<()> {
        for read in &unit.reads {
            if self.fetch.observer.is_interrupted() {
                return Err(interrupted());
            }
            self.read(read)?;
            for frame in &read.frames {
                let from = usize::try_from(frame.offset - read.offset()).unwrap_or(usize::MAX);
                self.decode(frame, from);
                for found in &frame.uses {
                    self.deliver(Some(found.at), &found.want)?;
                }
                if let Some(keep) = frame.keep {
                    self.kept.put(keep, &mut self.content);
                }
            }
        }
        for want in &unit.elsewhere {
            if self.fetch.observer.is_interrupted() {
                return Err(interrupted());
            }
            self.deliver(None, want)?;
        }
        self.kept.clear();
        self.gather.finish(self.fetch)
    }

    /// Leaves nothing if the range cannot be read.
    fn read(&mut self, read: &PlannedRead) -> Result<()> {
        self.stored.clear();
        let range = ByteRange::new(read.offset(), read.bytes())?;
        let name = names::pack(read.pack)?;
        if self.fetch.repo.storage().read_range(&name, range, &mut self.stored).is_ok() {
            self.fetch.counters.fetched.fetch_add(read.bytes(), Ordering::Relaxed);
        } else {
            self.stored.clear();
        }
        Ok(())
    }

    /// Leaves the content empty if the frame cannot be decoded: then each chunk is looked for elsewhere.
    fn decode(&mut self, frame: &PlannedFrame, from: usize) {
        self.content.clear();
        let Worker { decoder, stored, content, kept, .. } = self;
        let stored = usize::try_from(frame.stored).ok().and_then(|n| stored.get(from..from.checked_add(n)?));
        let decoded = match (stored, frame.bases.is_empty()) {
            (None, _) => false,
            (Some(bytes), true) => decoder.decode(bytes, content).is_ok(),
            (Some(bytes), false) => {
                kept.bases(&frame.bases).is_some_and(|base| decoder.decode_against(bytes, base, content).is_ok())
            }
        };
        if !decoded || content.len() as u64 != u64::from(frame.raw) {
            content.clear();
        }
        kept.release(&frame.bases);
    }

    /// Writes a chunk that begins at `at` of the content, or looks for it elsewhere.
    fn deliver(&mut self, at: Option<u32>, want: &Want) -> Result<()> {
        let Want { job, bytes, offset, id } = *want;
        let (at, bytes) = (at.and_then(|at| usize::try_from(at).ok()), usize::try_from(bytes).unwrap_or(0));
        let Some(destination) = self.fetch.destination(job) else { return Ok(()) };
        if destination.has_failed() {
            return Ok(());
        }
        let here = at.and_then(|at| self.content.get(at..at.checked_add(bytes)?)).filter(|c| ChunkId::of(c) == id);
        let elsewhere;
        let chunk = match here {
            Some(chunk) => chunk,
            None => {
                // Another home of the chunk may serve; which one failed, verification says.
                elsewhere = match self.fetch.repo.read_chunk(id) {
                    Ok(chunk) if chunk.len() == bytes => chunk,
                    Ok(_) => return damaged(destination, Error::damaged(format!("chunk {id} has another length"))),
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
