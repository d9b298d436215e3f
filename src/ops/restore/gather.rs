//! Gathers runs of a file in aligned memory and writes them past the page cache.
//!
//! The odd bytes at both ends of a run go through the page cache, since they share a block with the neighbouring run. What
//! cannot be written is booked with the file.

use super::fetch::Fetch;
use crate::aligned::{ALIGNMENT, AlignedBuffer};
use crate::error::Result;
use std::sync::atomic::Ordering;

/// Bytes gathered before they are written.
const GATHER_BYTES: usize = 8 << 20;
/// Shorter runs are not worth going past the page cache.
const DIRECT_BYTES_MIN: usize = 256 << 10;

/// A run of one file, gathered in aligned memory: byte `start` of the file lies at `start % ALIGNMENT` of the buffer.
pub(super) struct Gather {
    buffer: AlignedBuffer,
    job: u32,
    start: u64,
    bytes: usize,
}

impl Gather {
    pub(super) fn new() -> Gather {
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

    /// Adds a piece of a file: it continues the run, or ends it and begins another.
    pub(super) fn add(&mut self, fetch: &Fetch<'_>, job: u32, offset: u64, chunk: &[u8]) -> Result<()> {
        if !self.continues(job, offset) {
            self.flush(fetch, true)?;
        } else if !self.has_room(chunk.len()) {
            self.flush(fetch, false)?;
        }
        self.push(job, offset, chunk);
        Ok(())
    }

    /// Ends the run.
    pub(super) fn finish(&mut self, fetch: &Fetch<'_>) -> Result<()> {
        self.flush(fetch, true)
    }

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
        // One that will not be restored is best left as it is: it may be what stood under the final name.
        let destination = fetch.destination(self.job).filter(|d| bytes > 0 && !d.has_failed());
        let Some(file) = destination.and_then(|d| d.file.as_ref()) else { return Ok(()) };
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
