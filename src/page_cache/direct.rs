//! Reading past the page cache, in whole blocks around what is wanted.
//!
//! Every answer comes with what was read before an error, so that the caller can go on in another way.
//!
//! Deliberately not here: when this is worth it, and what to do where it is refused.

use super::{PAGE_BYTES, Sink};
use crate::aligned::{ALIGNMENT, AlignedBuffer};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What is read past the cache at once, if it has to be copied then: more no longer fits the processor's own cache.
const DIRECT_BYTES: usize = 1 << 20;
/// What is read past the cache at once where it is to stay. More is no faster where it was measured.
const IN_PLACE_BYTES: usize = 4 << 20;

thread_local! {
    /// What is read past the cache arrives here: it begins and ends at whole blocks, which callers do not ask for.
    static BLOCKS: RefCell<AlignedBuffer> = RefCell::new(AlignedBuffer::new(0));
}

/// The file opened once more, for reading past the cache. By way of `/proc` it is surely the same, whatever has its name.
pub(super) fn open_direct(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = |flags| loop {
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Err(Errno::INTR) => {}
            opened => return opened,
        }
    };
    // Only the owner and the superuser may leave the access time alone.
    open(flags | OFlags::NOATIME).or_else(|_| open(flags)).ok().map(File::from)
}

/// Reads whole blocks around `at..end`, and what was read before an error.
pub(super) fn read_directly(direct: &File, mut at: u64, end: u64, sink: &mut impl Sink) -> (usize, Option<io::Error>) {
    let mut done = 0;
    while at < end {
        let lead = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
        let first = at - lead as u64;
        let in_place = wanted.min(IN_PLACE_BYTES - lead);
        let read = match sink.blocks(lead, (lead + in_place).next_multiple_of(ALIGNMENT)) {
            Some(blocks) => direct.read_at(blocks, first).map(|read| {
                let useful = read.saturating_sub(lead).min(in_place);
                sink.fill(useful);
                useful
            }),
            None => BLOCKS.with_borrow_mut(|blocks| {
                if blocks.is_empty() {
                    *blocks = AlignedBuffer::new(DIRECT_BYTES);
                }
                let wanted = wanted.min(blocks.len() - lead);
                let around = (lead + wanted).next_multiple_of(ALIGNMENT);
                let read = direct.read_at(&mut blocks.as_mut_slice()[..around], first)?;
                let useful = read.saturating_sub(lead).min(wanted);
                sink.append(&blocks.as_slice()[lead..lead + useful]);
                Ok(useful)
            }),
        };
        match read {
            Ok(0) => break,
            Ok(useful) => {
                done += useful;
                at += useful as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}
