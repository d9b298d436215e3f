//! Direct I/O in large aligned pieces, without unsafe code.

use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What direct I/O asks of addresses, offsets and lengths: no block device in use has larger sectors.
pub const ALIGNMENT: usize = 4096;

/// Bytes of one direct read or write.
pub const TRANSFER_BYTES: usize = 8 << 20;

/// `n` rounded up to the alignment.
pub fn aligned(n: u64) -> u64 {
    n.next_multiple_of(ALIGNMENT as u64)
}

/// Memory whose address is aligned: a slice of a somewhat larger vector.
pub struct AlignedBuffer {
    memory: Vec<u8>,
    begin: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zeros.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let address = memory.as_ptr().addr();
        AlignedBuffer { begin: address.next_multiple_of(ALIGNMENT) - address, memory, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..][..self.len]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..][..self.len]
    }
}

/// Creates a file for direct writes, with room for `len` bytes.
pub fn create(path: &Path, len: u64) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
    if len > 0 {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len)?;
    }
    Ok(file)
}

/// Opens a file for direct reads.
pub fn open(path: &Path) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty())?))
}

/// Reads until `buffer` is full or the file ends; the number of bytes read.
pub fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    // A read that ends out of alignment has met the end of the file; another one there would be refused.
    while read < buffer.len() && read.is_multiple_of(ALIGNMENT) {
        match file.read_at(&mut buffer[read..], offset + read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}
