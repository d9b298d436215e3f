//! Memory at an address that direct I/O accepts.
//!
//! Direct I/O wants the address, the offset and the length to be multiples of the block size of the device; 4096 serves
//! every device in use. The buffer is plain safe memory: an allocation with one block to spare, used from its first
//! aligned byte on.

use std::fmt;

/// The alignment of the memory, in bytes.
pub const ALIGNMENT: usize = 4096;

/// A fixed number of bytes, zero at first, at an address that is a multiple of [`ALIGNMENT`].
pub struct AlignedBuffer {
    // Never grown, hence never moved: `start` stays right.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        // The allocator hands out zeroed memory without touching it. Address space for the spare block is always
        // there for any `len` that fits memory at all.
        let memory = vec![0u8; len.saturating_add(ALIGNMENT - 1)];
        // May answer usize::MAX by its contract: then the buffer is whole but not aligned, and writing falls back.
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        AlignedBuffer { start: if start < ALIGNMENT { start } else { 0 }, memory, len }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// True if direct I/O accepts `bytes` at `offset`.
pub fn suits_direct_io(offset: u64, bytes: &[u8]) -> bool {
    let block = ALIGNMENT as u64;
    !bytes.is_empty()
        && offset.is_multiple_of(block)
        && (bytes.len() as u64).is_multiple_of(block)
        && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_aligned_and_whole() {
        for len in [0, 1, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, 10 * ALIGNMENT] {
            let mut buffer = AlignedBuffer::new(len);
            buffer.as_mut_slice().fill(7);
            assert_eq!(buffer.as_slice(), vec![7; len]);
            assert_eq!((buffer.len(), buffer.is_empty()), (len, len == 0));
            assert_eq!(buffer.as_slice().as_ptr().addr() % ALIGNMENT, 0);
        }
    }

    #[test]
    fn direct_io_needs_address_offset_and_length_aligned() {
        let buffer = AlignedBuffer::new(2 * ALIGNMENT);
        let bytes = buffer.as_slice();
        assert!(suits_direct_io(8192, bytes));
        assert!(!suits_direct_io(8191, bytes));
        assert!(!suits_direct_io(0, &bytes[1..=ALIGNMENT]));
        assert!(!suits_direct_io(0, &bytes[..ALIGNMENT - 1]));
        assert!(!suits_direct_io(0, &[]));
    }
}
