//! What all threads of a backup share: counters, the pace of reading, and memory that goes round.

use super::bases::recent::Recent;
use super::{BackupOptions, interrupted};
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::events::Observer;
use crate::repo::frame_cache::FrameCache;
use crate::repo::transaction::Transaction;
use crate::source::chunker::{CONTEXT_BYTES, ChunkSizes, Chunker};
use crate::source::open::SourceFile;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is read at a limited pace is read in pieces of at least this size: small, so that progress is even ...
const PACED_BYTES: usize = 64 << 10;
/// ... and of at most this one, where the pace is high: each piece is a request of its own to the disk.
const PACED_BYTES_MAX: usize = 1 << 20;
/// Pieces a second that are even enough.
const PACED_PIECES: u64 = 20;
/// A thread that wakes late may make up for so much: without it, every piece would lose a little of the pace.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Chunks further from one that stands alone than this are not made: a restore decodes every step.
const DELTA_DEPTH_MAX: u8 = 8;

/// Files up to this size are one task; larger ones are divided into segments of it.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;

/// What all threads of a run share.
pub(super) struct Shared<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) observer: &'a dyn Observer,
    pub(super) chunker: Chunker,
    pub(super) compression: Compression,
    pub(super) pace: Option<Pace>,
    pub(super) buffers: Arc<Buffers>,
    /// What was decoded of earlier snapshots.
    pub(super) frames: FrameCache<'a>,
    /// What this run has stored lately.
    pub(super) recent: Recent,
    /// How many steps a chunk may be from one that stands alone.
    pub(super) delta_depth: u8,
    pub(super) stop: AtomicBool,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_new: AtomicU64,
    pub(super) bytes_stored: AtomicU64,
    pub(super) chunks_new: AtomicU64,
}

impl<'a> Shared<'a> {
    /// What a run begins with.
    pub(super) fn new(
        transaction: &'a Transaction<'a>,
        options: &BackupOptions<'_>,
        observer: &'a dyn Observer,
    ) -> Result<Shared<'a>> {
        let config = transaction.repo().config();
        let sizes = (config.chunk_min, config.chunk_average, config.chunk_max);
        let sizes = ChunkSizes::new(sizes.0.into(), sizes.1.into(), sizes.2.into())?;
        Ok(Shared {
            transaction,
            observer,
            chunker: Chunker::new(sizes, &transaction.repo().chunker_key()?),
            compression: options.compression,
            pace: options.limit_read.map(Pace::new),
            buffers: Arc::new(Buffers::new()),
            frames: FrameCache::new(transaction.repo()),
            recent: Recent::default(),
            delta_depth: options.delta_depth.min(DELTA_DEPTH_MAX),
            stop: AtomicBool::new(false),
            bytes_read: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            bytes_stored: AtomicU64::new(0),
            chunks_new: AtomicU64::new(0),
        })
    }
}

impl Shared<'_> {
    /// The length of segments: no chunk is longer.
    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.max(self.chunker.sizes().max())
    }

    /// An error once the run is to end.
    pub(super) fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) || self.observer.is_interrupted() { Err(interrupted()) } else { Ok(()) }
    }

    /// Reads from a file of the source at the pace of the run and counts it; fewer bytes only at the end of the file.
    pub(super) fn read(&self, file: &SourceFile, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let bytes = buffer.len();
        self.read_around(file, offset, buffer, 0, bytes)
    }

    /// The same for a long read: to `place` in `buffer`, see [`crate::page_cache::place_for`].
    pub(super) fn read_around(
        &self,
        file: &SourceFile,
        offset: u64,
        buffer: &mut [u8],
        place: usize,
        bytes: usize,
    ) -> Result<usize> {
        let piece_bytes = self.pace.as_ref().map_or(bytes.max(1), Pace::piece_bytes);
        let mut done = 0;
        while done < bytes {
            let piece = piece_bytes.min(bytes - done);
            if let Some(pace) = &self.pace {
                pace.wait(piece as u64, self)?;
            }
            let read = file.read_around(offset + done as u64, buffer, place + done, piece)?;
            self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
            done += read;
            if read < piece {
                break;
            }
        }
        Ok(done)
    }
}

/// The content of a lock: whoever panicked with it left it whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds reading to a number of bytes a second: each read waits until the time its predecessors have used up is over.
pub(super) struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// How much to read at once.
    fn piece_bytes(&self) -> usize {
        let bytes = usize::try_from(self.bytes_per_second / PACED_PIECES).unwrap_or(usize::MAX);
        bytes.clamp(PACED_BYTES, PACED_BYTES_MAX)
    }

    /// Waits until `bytes` more may be read, in slices short enough to notice an interruption.
    pub(super) fn wait(&self, bytes: u64, shared: &Shared<'_>) -> Result<()> {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *free_at = (*free_at).max(now.checked_sub(CATCH_UP).unwrap_or(now)) + cost;
            *free_at
        };
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            shared.check_stop()?;
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

/// Buffers that go round: fresh memory costs a page fault for every page.
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    pub(super) fn new() -> Buffers {
        Buffers(Mutex::new(Vec::new()))
    }

    /// A buffer of exactly `bytes`, with any content.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer
    }

    /// Gives a buffer back.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Bytes of a big file: `context` of them before the segment proper. They begin at `start` of the buffer.
pub(super) struct Segment {
    buffer: Vec<u8>,
    start: usize,
    context: usize,
    bytes: usize,
    home: Arc<Buffers>,
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.buffer));
    }
}

impl Segment {
    /// A segment in a buffer that goes back to `home` when nobody needs it any more.
    pub(super) fn new(buffer: Vec<u8>, context: usize, bytes: usize, home: &Arc<Buffers>) -> Segment {
        Segment { buffer, start: 0, context, bytes, home: Arc::clone(home) }
    }

    /// The same, where the context begins at `start` of the buffer.
    pub(super) fn starting_at(mut self, start: usize) -> Segment {
        self.start = start;
        self
    }

    /// What lies before it, as far as cutting needs it.
    pub(super) fn context(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.context]
    }

    /// The segment proper.
    pub(super) fn bytes(&self) -> &[u8] {
        let from = self.start + self.context;
        &self.buffer[from..from + self.bytes]
    }
}

/// Reads a segment of a stream; shorter than `bytes` only at the end of it.
pub(super) fn load_segment(
    shared: &Shared<'_>,
    reader: &mut dyn std::io::Read,
    before: &[u8],
    bytes: usize,
) -> Result<Segment> {
    let context = &before[before.len() - before.len().min(CONTEXT_BYTES)..];
    let mut buffer = shared.buffers.take(context.len() + bytes);
    buffer[..context.len()].copy_from_slice(context);
    let mut at = context.len();
    while at < buffer.len() {
        shared.check_stop()?;
        let mut end = buffer.len();
        if let Some(pace) = &shared.pace {
            end = end.min(at + PACED_BYTES);
            pace.wait((end - at) as u64, shared)?;
        }
        match reader.read(&mut buffer[at..end]) {
            Ok(0) => break,
            Ok(read) => {
                shared.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
                at += read;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("reading the stream", error)),
        }
    }
    let (context, bytes) = (context.len(), at - context.len());
    Ok(Segment::new(buffer, context, bytes, &shared.buffers))
}
