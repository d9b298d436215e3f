//! Manners towards the page cache: what this run brought in is dropped again, what was there before stays.
//!
//! A backup beside a training run must not push the training data out of memory. Before a window of a file is read,
//! [`PageCache::holds`] asks whether it is cached already; if not, [`PageCache::drop_pages`] gives its pages back after
//! the reading. Both are advice: no answer and no failure changes what is read. Where the kernel or the file system
//! cannot answer, everything stays cached.
//!
//! Windows should be some MiB long and begin at multiples of 2 MiB: the kernel caches in pieces of up to that size and
//! drops only those that lie within a window as a whole.

use crate::bytes::ByteRange;
use std::fs::File;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state of the question for one open file.
#[derive(Debug, Default)]
pub struct PageCache {
    /// Set once the kernel refuses to answer, so that it is not asked again for every window.
    cannot_tell: AtomicBool,
}

impl PageCache {
    /// True if the pages of `range` must stay: they are cached already, or nobody can tell.
    ///
    /// The last byte stands for the window: its first pages may have been read ahead by this run itself.
    #[cfg(target_os = "linux")]
    pub fn holds(&self, file: &File, range: ByteRange) -> bool {
        use rustix::io::{Errno, ReadWriteFlags};
        if range.is_empty() || self.cannot_tell.load(Ordering::Relaxed) {
            return true;
        }
        let mut byte = [0u8; 1];
        let mut into = [std::io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(file, &mut into, range.end() - 1, ReadWriteFlags::NOWAIT) {
            Ok(_) => true,
            Err(Errno::AGAIN) => false,
            Err(Errno::INTR) => true,
            Err(_) => {
                self.cannot_tell.store(true, Ordering::Relaxed);
                true
            }
        }
    }

    /// True: this platform cannot tell what is cached.
    #[cfg(not(target_os = "linux"))]
    pub fn holds(&self, _file: &File, _range: ByteRange) -> bool {
        self.cannot_tell.store(true, Ordering::Relaxed);
        true
    }

    /// Gives back the pages of `range`, which [`PageCache::holds`] did not find before they were read. Pages changed
    /// meanwhile and not yet written by the kernel stay.
    pub fn drop_pages(&self, file: &File, range: ByteRange) {
        if self.cannot_tell.load(Ordering::Relaxed) {
            return;
        }
        // A length of 0 would mean the whole rest of the file.
        if let Some(len) = NonZeroU64::new(range.len()) {
            drop_range(file, range.offset(), len);
        }
    }
}

#[cfg(target_os = "linux")]
fn drop_range(file: &File, offset: u64, len: NonZeroU64) {
    // Only advice: a failure leaves pages cached and nothing else.
    let _ = rustix::fs::fadvise(file, offset, Some(len), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn drop_range(_file: &File, _offset: u64, _len: NonZeroU64) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_windows_that_were_not_cached_are_dropped() {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&vec![1; 16 << 20], 0).expect("write");
        file.sync_all().expect("sync");
        let cache = PageCache::default();
        let window = |index: u64| ByteRange::new(index << 22, 1 << 22).expect("range");
        if !cache.holds(&file, window(0)) || cache.cannot_tell.load(Ordering::Relaxed) {
            return;
        }
        cache.drop_pages(&file, window(1));
        if cache.holds(&file, window(1)) {
            // A file system in memory, or one that keeps pages whatever the advice.
            return;
        }
        assert!(cache.holds(&file, window(2)));
        let mut buffer = vec![0; 1 << 22];
        file.read_exact_at(&mut buffer, 1 << 22).expect("read");
        assert!(cache.holds(&file, window(1)));
    }

    #[test]
    fn an_empty_window_drops_nothing() {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[1; 8192], 0).expect("write");
        file.sync_all().expect("sync");
        let cache = PageCache::default();
        let empty = ByteRange::new(0, 0).expect("range");
        assert!(cache.holds(&file, empty));
        cache.drop_pages(&file, empty);
        assert!(cache.holds(&file, ByteRange::new(0, 8192).expect("range")));
    }
}
