//! Carries out planned reads: read, decode, check, write. Any number of threads, each with buffers of its own.
//!
//! What comes out of one read is mostly one long run of a file. It is gathered in aligned memory and written past the
//! page cache; the odd bytes at both ends of a run go through it, since they share a block with the neighbouring run.

use super::plan::{PlannedFrame, PlannedRead, Use, Want};
use super::run::interrupted;
use super::window::Counters;
use crate::aligned::{ALIGNMENT, AlignedBuffer};
use crate::bytes::ByteRange;
use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::repo::{Repo, names};
use crate::source::target::TargetFile;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes gathered before they are written.
const GATHER_BYTES: usize = 8 << 20;
/// Shorter runs are not worth going past the page cache.
const DIRECT_BYTES_MIN: usize = 256 << 10;

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
    /// Carries out all reads with `threads` threads; an error only if the whole run must end.
    pub(super) fn run(&self, reads: &[PlannedRead], threads: usize) -> Result<()> {
        let next = AtomicUsize::new(0);
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads.clamp(1, reads.len().max(1))).map(|_| scope.spawn(|| self.work(reads, &next))).collect();
            let panicked = || Err(Error::new(Kind::Failed, "a thread of the restore ended unexpectedly"));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect()
        });
        results.into_iter().collect()
    }

    fn work(&self, reads: &[PlannedRead], next: &AtomicUsize) -> Result<()> {
        let mut worker = Worker {
            fetch: self,
            decoder: Decoder::new()?,
            stored: Vec::new(),
            content: Vec::new(),
            gather: Gather::new(),
        };
        // In the order of the plan: threads read neighbouring places of the same pack.
        while let Some(read) = reads.get(next.fetch_add(1, Ordering::Relaxed)) {
            if self.observer.is_interrupted() {
                return Err(interrupted());
            }
            worker.carry_out(read)?;
        }
        Ok(())
    }

    fn destination(&self, job: u32) -> Option<&Destination> {
        self.destinations.get(usize::try_from(job).ok()?)
    }

    /// Books the failure to write to a target; that it is full ends the run.
    fn write_failed(&self, job: u32, error: Error) -> Result<()> {
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
    gather: Gather,
}

impl Worker<'_> {
    fn carry_out(&mut self, read: &PlannedRead) -> Result<()> {
        self.stored.clear();
        let range = ByteRange::new(read.offset(), read.bytes())?;
        let name = names::pack(read.pack)?;
        let outcome = self.fetch.repo.storage().read_range(&name, range, &mut self.stored);
        if outcome.is_ok() {
            self.fetch.counters.fetched.fetch_add(read.bytes(), Ordering::Relaxed);
        } else {
            self.stored.clear();
        }
        for frame in &read.frames {
            let from = usize::try_from(frame.offset - read.offset()).unwrap_or(usize::MAX);
            self.decode(frame, from);
            for found in &frame.uses {
                self.deliver(found)?;
            }
        }
        self.flush()
    }

    /// Leaves the content empty if the frame cannot be decoded: then each chunk is looked for elsewhere.
    fn decode(&mut self, frame: &PlannedFrame, from: usize) {
        self.content.clear();
        let stored = usize::try_from(frame.stored).ok().and_then(|n| self.stored.get(from..from.checked_add(n)?));
        let decoded = stored.is_some_and(|bytes| self.decoder.decode(bytes, &mut self.content).is_ok());
        if !decoded || self.content.len() as u64 != u64::from(frame.raw) {
            self.content.clear();
        }
    }

    fn deliver(&mut self, found: &Use) -> Result<()> {
        let Want { job, bytes, offset, id } = found.want;
        let (at, bytes) = (usize::try_from(found.at).unwrap_or(usize::MAX), usize::try_from(bytes).unwrap_or(0));
        let Some(destination) = self.fetch.destination(job) else { return Ok(()) };
        if destination.has_failed() {
            return Ok(());
        }
        let here = at.checked_add(bytes).and_then(|end| self.content.get(at..end)).filter(|c| ChunkId::of(c) == id);
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
        if !self.gather.continues(job, offset) {
            self.gather.flush(self.fetch, true)?;
        } else if !self.gather.has_room(chunk.len()) {
            self.gather.flush(self.fetch, false)?;
        }
        self.gather.push(job, offset, chunk);
        self.fetch.observer.on_event(&Event::Progress { bytes: chunk.len() as u64, files: 0 });
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.gather.flush(self.fetch, true)
    }
}

fn damaged(destination: &Destination, error: Error) -> Result<()> {
    destination.fail(Failure::Damaged(error));
    Ok(())
}

/// A run of one file, gathered in aligned memory: byte `start` of the file lies at `start % ALIGNMENT` of the buffer.
struct Gather {
    buffer: AlignedBuffer,
    job: u32,
    start: u64,
    bytes: usize,
}

impl Gather {
    fn new() -> Gather {
        Gather { buffer: AlignedBuffer::new(0), job: 0, start: 0, bytes: 0 }
    }

    fn lead(&self) -> usize {
        usize::try_from(self.start % ALIGNMENT as u64).unwrap_or(0)
    }

    /// True if what comes at `offset` of the file belongs to the run.
    fn continues(&self, job: u32, offset: u64) -> bool {
        self.bytes == 0 || self.job == job && offset == self.start + self.bytes as u64
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.lead() + self.bytes + bytes <= self.buffer.len()
    }

    /// Adds what continues the run, or begins one.
    fn push(&mut self, job: u32, offset: u64, chunk: &[u8]) {
        if self.bytes == 0 {
            (self.job, self.start) = (job, offset);
        }
        let at = self.lead() + self.bytes;
        if at + chunk.len() > self.buffer.len() {
            // At first use, and for a chunk longer than any before.
            let mut larger = AlignedBuffer::new((at + chunk.len()).max(GATHER_BYTES + ALIGNMENT));
            let kept = at.min(self.buffer.len());
            larger.as_mut_slice()[..kept].copy_from_slice(&self.buffer.as_slice()[..kept]);
            self.buffer = larger;
        }
        self.buffer.as_mut_slice()[at..at + chunk.len()].copy_from_slice(chunk);
        self.bytes += chunk.len();
    }

    /// Writes the run. Unless it `ends`, the bytes behind the last whole block stay, to be continued.
    fn flush(&mut self, fetch: &Fetch<'_>, ends: bool) -> Result<()> {
        let (lead, bytes) = (self.lead(), std::mem::take(&mut self.bytes));
        let Some(file) = fetch.destination(self.job).and_then(|d| d.file.as_ref()).filter(|_| bytes > 0) else {
            return Ok(());
        };
        let end = lead + bytes;
        // Positions in the buffer of the first and behind the last whole block.
        let (mut first, mut last) = (lead.next_multiple_of(ALIGNMENT), end / ALIGNMENT * ALIGNMENT);
        if last < first || last - first < DIRECT_BYTES_MIN {
            (first, last) = (end, end);
        }
        let base = self.start - lead as u64;
        let content = self.buffer.as_slice();
        let keeps_tail = !ends && last < end && first < last;
        let written = file
            .write_at(self.start, &content[lead..first])
            .and_then(|()| file.write_direct_at(base + first as u64, &content[first..last]))
            .and_then(|()| if keeps_tail { Ok(()) } else { file.write_at(base + last as u64, &content[last..end]) });
        fetch.counters.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Err(error) = written {
            return fetch.write_failed(self.job, error);
        }
        if keeps_tail {
            self.buffer.as_mut_slice().copy_within(last..end, 0);
            (self.start, self.bytes) = (base + last as u64, end - last);
            fetch.counters.written.fetch_sub((end - last) as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}
