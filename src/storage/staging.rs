//! Staging buffers: aligned memory that collects what a writer appends until it is worth one large direct write.
//!
//! Guarantees: the filled part starts at an address that is a multiple of [`ALIGNMENT`], whatever was appended, and the
//! buffer can be padded to a multiple of it. Buffers go back to their [`StagingPool`], because the page faults of a fresh
//! one cost more than filling it.
//!
//! Deliberately not here: files, and any limit on how many buffers are in use at a time (a writer holds at most one).

use std::sync::{Mutex, PoisonError};

/// What direct I/O needs of addresses, offsets and lengths: the largest logical block size of common disks.
pub(super) const ALIGNMENT: usize = 4096;

/// Bytes in a full staging buffer: larger direct writes measured no faster.
pub(super) const STAGING_BYTES: usize = 8 << 20;

/// How many idle buffers are kept; two writers are usually open, and a few more cost nothing until they are touched.
const IDLE_MAX: usize = 4;

/// Memory for up to [`STAGING_BYTES`] bytes, aligned for direct I/O.
pub(super) struct Staging {
    /// Longer than [`STAGING_BYTES`] by [`ALIGNMENT`], so that an aligned start exists; never reallocated.
    memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Staging {
    fn new() -> Self {
        let memory = vec![0; STAGING_BYTES + ALIGNMENT];
        let start = memory.as_ptr().addr().wrapping_neg() % ALIGNMENT;
        Staging { memory, start, filled: 0 }
    }

    /// Takes as much of `bytes` as fits and returns how much that was.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(STAGING_BYTES - self.filled);
        let at = self.start + self.filled;
        self.memory[at..at + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == STAGING_BYTES
    }

    /// Extends the filled part with zeros to a multiple of [`ALIGNMENT`].
    pub(super) fn pad(&mut self) {
        let padded = self.filled.next_multiple_of(ALIGNMENT);
        // Zeros, not what an earlier object left here: a torn temporary file must not show another object's bytes.
        self.memory[self.start + self.filled..self.start + padded].fill(0);
        self.filled = padded;
    }

    /// What was appended since the last [`Staging::clear`].
    pub(super) fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}

/// Idle staging buffers of one storage.
#[derive(Default)]
pub(super) struct StagingPool {
    idle: Mutex<Vec<Staging>>,
}

impl StagingPool {
    /// An empty buffer, recycled if one is idle.
    pub(super) fn take(&self) -> Staging {
        let recycled = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        recycled.unwrap_or_else(Staging::new)
    }

    /// Gives a buffer back.
    pub(super) fn put(&self, mut staging: Staging) {
        staging.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(staging);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filled_part_is_aligned_and_padding_is_zero_even_in_a_recycled_buffer() {
        let pool = StagingPool::default();
        let mut first = pool.take();
        assert_eq!(first.append(&vec![0xff; STAGING_BYTES + 1]), STAGING_BYTES);
        assert!(first.is_full());
        assert_eq!(first.append(&[1]), 0);
        pool.put(first);

        let mut again = pool.take();
        assert_eq!(again.filled(), b"");
        assert_eq!(again.append(&[7; 5000]), 5000);
        again.pad();
        assert_eq!(again.filled().len(), 8192);
        assert_eq!(again.filled().as_ptr().addr() % ALIGNMENT, 0);
        assert!(again.filled()[..5000].iter().all(|b| *b == 7));
        assert!(again.filled()[5000..].iter().all(|b| *b == 0));
    }
}
