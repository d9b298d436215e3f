//! Objects of a local repository that are open for reading, and reading from them.
//!
//! Guarantees: a descriptor is used only while its file still has a name, so that a deleted or replaced object is noticed
//! as if it were opened anew; nothing is allocated beyond what the caller asked for; no cursor is shared between threads. Long
//! reads leave the page cache as it was; short ones (tables, lists, small objects) stay cached, for they come again and again.
//!
//! Deliberately not here: retries, checks of lengths, read-ahead.

use crate::bytes::ByteRange;
use crate::page_cache::{Appending, PageCache};
use crate::sabotage::is_planted;
use crate::storage::ObjectName;
use crate::storage::place::uninterrupted;
use rustix::buffer::spare_capacity;
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// How many objects are kept open for reading.
const OPEN_READERS_MAX: usize = 16;

/// Shorter reads go through the page cache and stay there.
const CACHED_BYTES_MAX: usize = 64 << 10;

/// An object open for reading.
pub(super) struct Reader {
    file: File,
    page_cache: PageCache,
}

/// Objects open for reading, the one used last at the end.
#[derive(Default)]
pub(super) struct Readers {
    open: Mutex<Vec<(ObjectName, Arc<Reader>)>>,
}

impl Readers {
    /// The open object and its length; no length if it is no regular file.
    pub(super) fn open(&self, name: &ObjectName, path: &Path) -> Result<(Arc<Reader>, Option<u64>), Errno> {
        let cached = self.take(name);
        if let Some(reader) = cached {
            let status = uninterrupted(|| fs::fstat(&reader.file))?;
            // Zero names: deleted, perhaps replaced by another process. The name decides, not the descriptor.
            if status.st_nlink > 0 || is_planted("deleted-object-read") {
                self.keep(name, &reader);
                return Ok((reader, Some(u64::try_from(status.st_size).unwrap_or(0))));
            }
        }
        // Not blocking: something may have put a pipe where an object was.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(uninterrupted(|| fs::open(path, flags, Mode::empty()))?);
        let status = uninterrupted(|| fs::fstat(&file))?;
        let bytes = u64::try_from(status.st_size).unwrap_or(0);
        let reader = Arc::new(Reader { file, page_cache: PageCache::new(bytes) });
        if !FileType::from_raw_mode(status.st_mode).is_file() {
            return Ok((reader, None));
        }
        self.keep(name, &reader);
        Ok((reader, Some(bytes)))
    }

    pub(super) fn forget(&self, name: &ObjectName) {
        drop(self.take(name));
    }

    fn take(&self, name: &ObjectName) -> Option<Arc<Reader>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let at = open.iter().position(|(known, _)| known == name)?;
        Some(open.remove(at).1)
    }

    fn keep(&self, name: &ObjectName, reader: &Arc<Reader>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Two threads may have opened the same object; one descriptor is enough.
        open.retain(|(known, _)| known != name);
        if open.len() == OPEN_READERS_MAX {
            open.remove(0);
        }
        open.push((name.clone(), Arc::clone(reader)));
    }
}

/// Appends the bytes of `range` to `into` and returns how many there were: fewer only where the file ends.
pub(super) fn read_exactly(reader: &Reader, range: ByteRange, into: &mut Vec<u8>) -> Result<u64, Errno> {
    let before = into.len();
    let wanted = usize::try_from(range.len()).map_err(|_| Errno::NOMEM)?;
    if wanted == 0 {
        return Ok(0);
    }
    into.try_reserve_exact(wanted).map_err(|_| Errno::NOMEM)?;
    let Reader { file, page_cache } = reader;
    if wanted >= CACHED_BYTES_MAX && page_cache.can_tell() {
        let read = page_cache.read_into(file, range.offset(), wanted, &mut Appending::new(into));
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        return read.map(|bytes| bytes as u64).map_err(errno);
    }
    let end = before + wanted;
    // Reading into spare capacity spares a pass that fills it with zeros. It fills all that there is, so a buffer with much
    // more room than wanted is filled with zeros after all.
    let spare_to_be_filled = into.capacity() - end <= wanted / 8;
    if !spare_to_be_filled {
        into.resize(end, 0);
    }
    let mut at = before;
    while at < end {
        let offset = range.offset() + (at - before) as u64;
        let read = if spare_to_be_filled {
            uninterrupted(|| rustix::io::pread(file, spare_capacity(into), offset))?
        } else {
            uninterrupted(|| rustix::io::pread(file, &mut into[at..], offset))?
        };
        if read == 0 {
            break;
        }
        at += read;
    }
    let at = at.min(end);
    into.truncate(at);
    Ok((at - before) as u64)
}
