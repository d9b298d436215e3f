//! Reading that leaves the page cache as it found it.
//!
//! A backup beside a training run must not push the training data out of memory. What is cached is taken from the cache and
//! stays there; what is not is read past the cache, or, where the file system refuses that, through it and dropped again.
//!
//! The kernel is asked window by window, by reading a byte without waiting. Such a question has the page read in that was
//! asked for, and with it whatever read-ahead adds; hence read-ahead is switched off for the descriptor, and the page
//! dropped afterwards. So answers are about what others have cached, never about what this run has done itself. What is
//! wrong at the edge of a cached stretch amounts to 128 KiB at most.
//!
//! All of this is manners: no answer and no failure of it changes what is read. Where the kernel cannot answer (network file
//! systems, other systems than Linux), everything goes through the cache and stays there.
//!
//! Deliberately not here: which reads are worth it, reading past the cache itself (`direct`), and writing.

#[cfg(target_os = "linux")]
mod direct;
mod sink;

pub use sink::{Appending, Around, SLACK_BYTES, Sink, place_for};

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

#[cfg(target_os = "linux")]
use {
    crate::aligned::ALIGNMENT,
    crate::sabotage::is_planted,
    direct::{open_direct, read_directly},
    rustix::fs::Advice,
    rustix::io::{Errno, ReadWriteFlags},
    std::num::NonZeroU64,
    std::sync::OnceLock,
    std::sync::atomic::{AtomicBool, Ordering},
};

/// How much is asked about at once.
#[cfg(target_os = "linux")]
const WINDOW_BYTES: u64 = 1 << 20;
/// How much is read at once from the cache, and what is read in for nothing where a cached stretch ends.
#[cfg(target_os = "linux")]
const STEP_BYTES: u64 = 128 << 10;
/// Shorter reads are not worth going past the cache: they go through it, and what they brought is dropped.
#[cfg(target_os = "linux")]
const DIRECT_BYTES_MIN: u64 = 64 << 10;
#[cfg(target_os = "linux")]
const PAGE_BYTES: u64 = ALIGNMENT as u64;

/// What is known of one open file.
#[derive(Debug, Default)]
pub struct PageCache {
    #[cfg(target_os = "linux")]
    state: State,
}

impl PageCache {
    /// For a file of about `file_bytes`.
    #[cfg(target_os = "linux")]
    pub fn new(file_bytes: u64) -> Self {
        let state = State { is_small: file_bytes < DIRECT_BYTES_MIN, ..State::default() };
        PageCache { state }
    }

    /// For a file of about `file_bytes`.
    #[cfg(not(target_os = "linux"))]
    pub fn new(_file_bytes: u64) -> Self {
        PageCache {}
    }

    /// False once it has turned out that everything goes through the cache and stays there.
    #[cfg(target_os = "linux")]
    pub fn can_tell(&self) -> bool {
        !self.state.cannot_tell.load(Ordering::Relaxed) && !is_planted("page-cache-filled")
    }

    /// False: here everything goes through the cache and stays there.
    #[cfg(not(target_os = "linux"))]
    pub fn can_tell(&self) -> bool {
        false
    }

    /// True if what was read last was cached; false before anything was read, and if the kernel does not say.
    #[cfg(target_os = "linux")]
    pub fn was_cached(&self) -> bool {
        self.state.was_cached.load(Ordering::Relaxed) && self.can_tell()
    }

    /// False: the system does not say.
    #[cfg(not(target_os = "linux"))]
    pub fn was_cached(&self) -> bool {
        false
    }

    /// Fills `buffer` from `offset` of the file; fewer bytes only where it ends. Always the same file.
    pub fn read_at(&self, file: &File, offset: u64, mut buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = buffer.len();
        self.read_into(file, offset, bytes, &mut buffer)
    }

    /// As [`PageCache::read_at`], into `sink`, which has room for `bytes`.
    pub fn read_into(&self, file: &File, offset: u64, bytes: usize, sink: &mut impl Sink) -> io::Result<usize> {
        // Positions behind the largest file size hold nothing.
        let bytes = usize::try_from((bytes as u64).min(u64::MAX - offset)).unwrap_or(bytes);
        #[cfg(target_os = "linux")]
        if bytes > 0 && self.can_tell() {
            return self.state.read(file, offset, bytes, sink);
        }
        read_plainly(file, offset, bytes, sink)
    }
}

/// Reads through the cache, for good.
fn read_plainly(file: &File, offset: u64, bytes: usize, sink: &mut impl Sink) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes {
        let room = sink.room(bytes - done);
        let read = file.read_at(room, offset + done as u64);
        // Also what failed gives the room back.
        sink.fill(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(target_os = "linux")]
type ReadCached = fn(&File, u64, &mut [u8]) -> rustix::io::Result<usize>;

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct State {
    /// Reads without waiting what is cached.
    read_cached: ReadCached,
    /// The kernel does not say what is cached.
    cannot_tell: AtomicBool,
    /// The whole file is a short read.
    is_small: bool,
    /// The last question was answered by yes.
    was_cached: AtomicBool,
    is_calmed: OnceLock<()>,
    /// The same file for reading past the cache; none if that is not possible.
    direct: OnceLock<Option<File>>,
    /// Reading past the cache has been refused, though the file could be opened for it.
    direct_refused: AtomicBool,
}

#[cfg(target_os = "linux")]
impl Default for State {
    fn default() -> Self {
        State {
            read_cached: read_without_waiting,
            cannot_tell: AtomicBool::default(),
            is_small: false,
            was_cached: AtomicBool::default(),
            is_calmed: OnceLock::default(),
            direct: OnceLock::default(),
            direct_refused: AtomicBool::default(),
        }
    }
}

/// What stands at a position.
#[cfg(target_os = "linux")]
#[derive(PartialEq)]
enum Found {
    Cached,
    Absent,
    /// The file ends before it, if the kernel is right.
    End,
    /// The kernel does not say.
    Unknown,
}

#[cfg(target_os = "linux")]
impl State {
    fn read(&self, file: &File, offset: u64, bytes: usize, sink: &mut impl Sink) -> io::Result<usize> {
        if !self.is_small {
            // Only advice: without it more is read in than was asked for.
            self.is_calmed.get_or_init(|| {
                let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
            });
        }
        let end = offset + bytes as u64;
        if (bytes as u64) < DIRECT_BYTES_MIN {
            return self.read_short(file, offset, end, sink);
        }
        let mut done = 0;
        while done < bytes {
            let at = offset + done as u64;
            let found = self.look(file, at);
            self.was_cached.store(found == Found::Cached, Ordering::Relaxed);
            let read = match found {
                Found::End => self.read_behind(file, at, end, sink)?,
                Found::Unknown => self.read_for_good(file, at, end, sink)?,
                Found::Cached => self.read_window(file, at, end, sink)?,
                Found::Absent => self.read_absent_windows(file, at, end, sink)?,
            };
            // Only the end of the file gives nothing.
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }

    /// Reads where the kernel says that the file has ended. Some say so of what is only not cached (Linux 5.9 and 5.10; see
    /// BUGS in preadv2(2)): only a read that may wait is believed, and a kernel that it proves wrong is not asked again.
    fn read_behind(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        let read = read_plainly(file, at, usize::try_from(end - at).unwrap_or(usize::MAX), sink)?;
        if read > 0 {
            self.cannot_tell.store(true, Ordering::Relaxed);
        }
        Ok(read)
    }

    /// Reads the rest of a window that begins cached.
    fn read_window(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        let end = next_multiple(at, WINDOW_BYTES).min(end);
        let (read, stopped) = self.read_cached(file, at, end, sink)?;
        let absent = at + read as u64;
        let more = match stopped {
            Found::Cached | Found::End => 0,
            Found::Unknown => self.read_for_good(file, absent, end, sink)?,
            Found::Absent => {
                let more = self.read_absent(file, absent, end, sink)?;
                // The step that failed has been read in as far as it was absent.
                drop_pages(file, absent, next_multiple(absent, STEP_BYTES).min(end));
                more
            }
        };
        Ok(read + more)
    }

    /// Reads all windows from `at` on that begin absent.
    fn read_absent_windows(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        let mut run_end = next_multiple(at, WINDOW_BYTES).min(end);
        while run_end < end && self.look(file, run_end) == Found::Absent {
            run_end = next_multiple(run_end, WINDOW_BYTES).min(end);
        }
        let read = self.read_absent(file, at, run_end, sink)?;
        // The pages that the questions have had read in.
        let mut asked = at;
        while asked < run_end {
            drop_pages(file, asked, asked + 1);
            asked = next_multiple(asked, WINDOW_BYTES);
        }
        Ok(read)
    }

    /// Reads little: through the cache, and drops what was not there.
    fn read_short(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        // The last page may be cached though what lies before it is not. Dropping it would cost the next read its first
        // page, hence its last one, and so on.
        let last_page = (end - 1) / PAGE_BYTES * PAGE_BYTES;
        let keeps_last = !self.is_small && last_page > at && self.look(file, last_page) == Found::Cached;
        let (read, stopped) = self.read_cached(file, at, end, sink)?;
        let absent = at + read as u64;
        let more = match stopped {
            Found::Cached | Found::End => 0,
            Found::Unknown => self.read_for_good(file, absent, end, sink)?,
            Found::Absent => {
                let more = read_plainly(file, absent, usize::try_from(end - absent).unwrap_or(usize::MAX), sink);
                drop_pages(file, absent, if keeps_last { last_page } else { end });
                more?
            }
        };
        Ok(read + more)
    }

    /// Reads through the cache where the kernel does not say what is in it, now and from now on: dropping pages would take
    /// them from others, and without read-ahead this would be slow.
    fn read_for_good(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        if !self.cannot_tell.swap(true, Ordering::Relaxed) && !self.is_small {
            let _ = rustix::fs::fadvise(file, 0, None, Advice::Normal);
        }
        read_plainly(file, at, usize::try_from(end - at).unwrap_or(usize::MAX), sink)
    }

    /// Is this position cached? If not, its page is on its way into the cache afterwards.
    fn look(&self, file: &File, at: u64) -> Found {
        match (self.read_cached)(file, at, &mut [0]) {
            Ok(0) => Found::End,
            Ok(_) => Found::Cached,
            Err(error) => Found::after(error),
        }
    }

    /// Reads from `at` on what is cached without a gap, up to `end`, and says what stopped it. Where that is an absent page,
    /// the rest of the step is on its way into the cache.
    fn read_cached(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<(usize, Found)> {
        let mut reached = at;
        let mut stopped = Found::Cached;
        while reached < end && stopped == Found::Cached {
            let step = usize::try_from(next_multiple(reached, STEP_BYTES).min(end) - reached).unwrap_or(usize::MAX);
            let room = sink.room(step);
            let asked = room.len();
            let answer = (self.read_cached)(file, reached, room);
            let read = *answer.as_ref().unwrap_or(&0);
            sink.fill(read);
            reached += read as u64;
            stopped = match answer {
                Err(error) => Found::after(error),
                Ok(read) if read == asked && asked > 0 => Found::Cached,
                // Whether the file ends here or a page is absent, the next read says.
                Ok(_) => Found::Absent,
            };
        }
        Ok((usize::try_from(reached - at).unwrap_or(0), stopped))
    }

    /// Reads what is not cached, past the cache if possible.
    fn read_absent(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        let mut read = 0;
        if end - at >= DIRECT_BYTES_MIN
            && !self.direct_refused.load(Ordering::Relaxed)
            && let Some(direct) = self.direct.get_or_init(|| open_direct(file))
        {
            match read_directly(direct, at, end, sink) {
                (done, None) => return Ok(done),
                (done, Some(error)) => {
                    if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::OPNOTSUPP)) {
                        self.direct_refused.store(true, Ordering::Relaxed);
                    }
                    // What is wrong, reading in the usual way will say, if anything is.
                    read = done;
                }
            }
        }
        Ok(read + self.read_and_drop(file, at + read as u64, end, sink)?)
    }

    fn read_and_drop(&self, file: &File, at: u64, end: u64, sink: &mut impl Sink) -> io::Result<usize> {
        let read = read_plainly(file, at, usize::try_from(end - at).unwrap_or(usize::MAX), sink);
        drop_pages(file, at, end);
        read
    }
}

#[cfg(target_os = "linux")]
impl Found {
    /// After reading without waiting has failed. What else is wrong, reading in the usual way will say.
    fn after(error: Errno) -> Found {
        if error == Errno::AGAIN { Found::Absent } else { Found::Unknown }
    }
}

#[cfg(target_os = "linux")]
fn read_without_waiting(file: &File, at: u64, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        let mut into = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(file, &mut into, at, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Drops all pages that hold a byte of `at..end`, but for those that wait to be written. A failure leaves them cached.
#[cfg(target_os = "linux")]
fn drop_pages(file: &File, at: u64, end: u64) {
    let first = at / PAGE_BYTES * PAGE_BYTES;
    let bytes = next_multiple(end.saturating_sub(1), PAGE_BYTES).saturating_sub(first);
    if is_planted("pages-not-dropped") {
        return;
    }
    // A length of 0 would mean the whole rest of the file.
    if let Some(bytes) = NonZeroU64::new(bytes).filter(|_| at < end) {
        let _ = rustix::fs::fadvise(file, first, Some(bytes), Advice::DontNeed);
    }
}

/// The first multiple of `unit` behind `at`.
#[cfg(target_os = "linux")]
fn next_multiple(at: u64, unit: u64) -> u64 {
    (at / unit).saturating_add(1).saturating_mul(unit)
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
