//! Workers: everything that costs time for each byte. Any number of them run side by side; none keeps order.
//!
//! A small file is one task from reading to storing. A big file is read and scanned for candidate cuts segment by
//! segment; once the coordinator has chosen the cuts, its chunks come back to be hashed, looked up, coded and stored.

use super::interrupted;
use super::packs::FrameBatch;
use crate::codec::{Compression, Encoder};
use crate::error::{Error, Kind, Result};
use crate::events::Observer;
use crate::ids::ChunkId;
use crate::repo::pack_table::{FRAME_CHUNKS_MAX, FrameRecord};
use crate::repo::stream::Child;
use crate::repo::transaction::{Claim, Transaction};
use crate::source::chunker::{CONTEXT_BYTES, Candidates, Chunker};
use crate::source::open::{Extent, SourceFile};
use crate::source::scan::Found;
use crossbeam_channel::{Receiver, Sender};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Chunks below the repository's smallest cut are ends and small files: they share frames of up to this many bytes, so
/// that the general codec sees more than one of them.
const GROUP_BYTES: usize = 1 << 20;

/// How often a file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 3;

/// What all threads of a run share.
pub(super) struct Shared<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) observer: &'a dyn Observer,
    pub(super) chunker: Chunker,
    pub(super) compression: Compression,
    pub(super) pace: Option<Pace>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) stop: AtomicBool,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_new: AtomicU64,
    pub(super) bytes_stored: AtomicU64,
    pub(super) chunks_new: AtomicU64,
}

impl Shared<'_> {
    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) || self.observer.is_interrupted() { Err(interrupted()) } else { Ok(()) }
    }
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

    /// Waits until `bytes` more may be read, in slices short enough to notice an interruption.
    fn wait(&self, bytes: u64, shared: &Shared<'_>) -> Result<()> {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now()) + cost;
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

/// Bytes of a big file: `context` of them before the segment proper.
pub(super) struct Segment {
    buffer: Vec<u8>,
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
    /// The segment proper.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.context..self.context + self.bytes]
    }
}

/// A small file to read.
pub(super) struct SmallFile {
    pub(super) sequence: u64,
    pub(super) found: Box<Found>,
}

/// Where the bytes of a segment come from.
pub(super) enum SegmentSource {
    /// A part of a file; `context` bytes before it are read too.
    File { file: Arc<SourceFile>, offset: u64, bytes: usize, context: usize },
    /// Already read, from a stream.
    Loaded(Segment),
}

/// A chunk whose bytes lie in one segment or in two neighbours.
pub(super) struct ChunkPlace {
    pub(super) first: (Arc<Segment>, Range<usize>),
    pub(super) second: Option<(Arc<Segment>, Range<usize>)>,
}

/// What workers are given.
pub(super) enum Task {
    Small(Vec<SmallFile>),
    Scan { sequence: u64, index: u64, source: SegmentSource },
    Store { sequence: u64, index: u64, chunks: Vec<ChunkPlace> },
}

/// What was found in a small file.
pub(super) struct SmallRead {
    pub(super) found: Box<Found>,
    /// Bytes that were under way for it.
    pub(super) expected_bytes: u64,
    pub(super) children: Vec<Child>,
    pub(super) changed_while_read: bool,
}

/// A small file that could not be read: its path, the bytes that were expected, and why.
pub(super) type Unread = (Vec<u8>, u64, Error);

/// What workers answer.
pub(super) enum Done {
    Small(Vec<(u64, Result<SmallRead, Unread>)>),
    Scanned {
        sequence: u64,
        index: u64,
        result: Result<(Segment, Candidates)>,
    },
    Stored {
        sequence: u64,
        index: u64,
        children: Vec<Child>,
    },
    /// Not this or that file, but the run has failed.
    Failed(Error),
}

/// Works until there are no more tasks.
pub(super) fn run(
    shared: &Shared<'_>,
    tasks: &Receiver<Task>,
    done: &Sender<Done>,
    full: &Sender<FrameBatch>,
    empty: &Receiver<FrameBatch>,
) {
    let mut storer = match Storer::new(shared, full, empty) {
        Ok(storer) => storer,
        Err(error) => return drop(done.send(Done::Failed(error))),
    };
    for task in tasks {
        let answer = shared.check_stop().and_then(|()| match task {
            Task::Small(files) => read_small_files(shared, &mut storer, files).map(Done::Small),
            Task::Scan { sequence, index, source } => {
                Ok(Done::Scanned { sequence, index, result: read_and_scan(shared, source)? })
            }
            Task::Store { sequence, index, chunks } => {
                Ok(Done::Stored { sequence, index, children: storer.store_places(&chunks)? })
            }
        });
        // Nobody listens any more when the run has failed elsewhere.
        if done.send(answer.unwrap_or_else(Done::Failed)).is_err() {
            return;
        }
    }
}

/// The outer result is the run's, the inner one the file's.
fn read_and_scan(shared: &Shared<'_>, source: SegmentSource) -> Result<Result<(Segment, Candidates)>> {
    let segment = match source {
        SegmentSource::Loaded(segment) => segment,
        SegmentSource::File { file, offset, bytes, context } => {
            if let Some(pace) = &shared.pace {
                pace.wait(bytes as u64, shared)?;
            }
            let mut buffer = shared.buffers.take(context + bytes);
            match file.read_at(offset - context as u64, &mut buffer) {
                Ok(read) => {
                    Segment { buffer, context, bytes: read.saturating_sub(context), home: shared.buffers.clone() }
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    shared.bytes_read.fetch_add(segment.bytes as u64, Ordering::Relaxed);
    let mut candidates = Candidates::new();
    let (before, rest) = segment.buffer.split_at(segment.context);
    shared.chunker.scan(before, &rest[..segment.bytes], &mut candidates);
    Ok(Ok((segment, candidates)))
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
        if let Some(pace) = &shared.pace {
            pace.wait((buffer.len() - at).min(64 << 10) as u64, shared)?;
        }
        match reader.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("reading the stream", error)),
        }
    }
    Ok(Segment { bytes: at - context.len(), context: context.len(), buffer, home: shared.buffers.clone() })
}

struct ReadFile {
    sequence: u64,
    result: Result<SmallRead, Unread>,
    /// Where its extents lie in the common buffer, and which chunks each was cut into.
    pieces: Vec<Piece>,
}

enum Piece {
    Hole(u64),
    Chunk(Range<usize>),
}

fn read_small_files(
    shared: &Shared<'_>,
    storer: &mut Storer<'_>,
    files: Vec<SmallFile>,
) -> Result<Vec<(u64, Result<SmallRead, Unread>)>> {
    let bytes: u64 = files.iter().map(|f| f.found.metadata.size).sum();
    let mut buffer = shared.buffers.take(usize::try_from(bytes).unwrap_or(0));
    buffer.clear();
    let mut read = Vec::with_capacity(files.len());
    for file in files {
        shared.check_stop()?;
        if let Some(pace) = &shared.pace {
            pace.wait(file.found.metadata.size, shared)?;
        }
        read.push(read_small_file(shared, file, &mut buffer));
    }
    shared.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
    let chunks = read.iter().filter(|f| f.result.is_ok()).flat_map(|f| &f.pieces).filter_map(|piece| match piece {
        Piece::Chunk(range) => Some(&buffer[range.clone()]),
        Piece::Hole(_) => None,
    });
    let mut stored = storer.store(&chunks.collect::<Vec<_>>())?.into_iter();
    let mut done = Vec::with_capacity(read.len());
    for ReadFile { sequence, mut result, pieces } in read {
        if let Ok(small) = &mut result {
            small.children = pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Chunk(_) => stored.next(),
                    Piece::Hole(bytes) => Some(Child { id: ChunkId::HOLE, bytes: *bytes }),
                })
                .collect();
        }
        done.push((sequence, result));
    }
    shared.buffers.give(buffer);
    Ok(done)
}

fn read_small_file(shared: &Shared<'_>, file: SmallFile, buffer: &mut Vec<u8>) -> ReadFile {
    let SmallFile { sequence, mut found } = file;
    let start = buffer.len();
    let size = found.metadata.size;
    let mut attempt = 1;
    let (result, pieces) = loop {
        buffer.truncate(start);
        match read_once(shared, &mut found, buffer) {
            Ok((_, true)) if attempt < READ_ATTEMPTS => {
                attempt += 1;
                // What is there now; if it is gone, the next attempt to open it says so.
                if let Ok(now) = found.look_again() {
                    *found = now;
                }
            }
            Ok((pieces, changed_while_read)) => {
                break (
                    Ok(SmallRead { found, expected_bytes: size, children: Vec::new(), changed_while_read }),
                    pieces,
                );
            }
            Err(error) => {
                buffer.truncate(start);
                let path = found.absolute.as_os_str().as_bytes().to_vec();
                break (Err((path, size, error)), Vec::new());
            }
        }
    };
    ReadFile { sequence, result, pieces }
}

/// Reads and cuts the file; also whether it changed meanwhile, and then `found` says how much was read.
fn read_once(shared: &Shared<'_>, found: &mut Found, buffer: &mut Vec<u8>) -> Result<(Vec<Piece>, bool)> {
    let size = found.metadata.size;
    let file = SourceFile::open(found)?;
    let mut pieces = Vec::new();
    let mut bytes_total = 0u64;
    let mut is_short = false;
    for Extent { offset, len, is_hole } in file.extents(size)? {
        bytes_total += len;
        if is_hole {
            pieces.push(Piece::Hole(len));
            continue;
        }
        let at = buffer.len();
        buffer.resize(at + usize::try_from(len).unwrap_or(0), 0);
        let read = file.read_at(offset, &mut buffer[at..])?;
        buffer.truncate(at + read);
        let mut from = 0;
        for end in shared.chunker.cut_all(&buffer[at..]) {
            pieces.push(Piece::Chunk(at + from..at + end));
            from = end;
        }
        if (read as u64) < len {
            bytes_total = bytes_total - len + read as u64;
            is_short = true;
            break;
        }
    }
    let changed = is_short || file.changed_since(&found.metadata)?;
    found.metadata.xattrs = file.read_xattrs()?;
    if changed {
        found.metadata.size = bytes_total;
    }
    Ok((pieces, changed))
}

/// Hashes chunks, looks them up, codes and hands over those that are new.
struct Storer<'a> {
    shared: &'a Shared<'a>,
    encoder: Encoder,
    full: &'a Sender<FrameBatch>,
    empty: &'a Receiver<FrameBatch>,
    batch: FrameBatch,
    group: Vec<u8>,
    group_chunks: Vec<(ChunkId, u32)>,
    joined: Vec<u8>,
    group_below: usize,
}

impl<'a> Storer<'a> {
    fn new(
        shared: &'a Shared<'a>,
        full: &'a Sender<FrameBatch>,
        empty: &'a Receiver<FrameBatch>,
    ) -> Result<Storer<'a>> {
        Ok(Storer {
            shared,
            encoder: Encoder::new(shared.compression)?,
            full,
            empty,
            batch: FrameBatch::default(),
            group: Vec::new(),
            group_chunks: Vec::new(),
            joined: Vec::new(),
            group_below: usize::try_from(shared.chunker.sizes().min()).unwrap_or(usize::MAX),
        })
    }

    fn store_places(&mut self, places: &[ChunkPlace]) -> Result<Vec<Child>> {
        // At most the first chunk of a segment begins in the segment before: it alone is copied together.
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        let mut ends = Vec::new();
        for place in places {
            if let Some((second, range)) = &place.second {
                joined.extend_from_slice(&place.first.0.bytes()[place.first.1.clone()]);
                joined.extend_from_slice(&second.bytes()[range.clone()]);
            }
            ends.push(joined.len());
        }
        let mut from = 0;
        let mut chunks = Vec::with_capacity(places.len());
        for (place, &end) in places.iter().zip(&ends) {
            chunks.push(match place.second {
                Some(_) => &joined[from..end],
                None => &place.first.0.bytes()[place.first.1.clone()],
            });
            from = end;
        }
        let children = self.store(&chunks)?;
        self.joined = joined;
        Ok(children)
    }

    fn store(&mut self, chunks: &[&[u8]]) -> Result<Vec<Child>> {
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        let claims = self.shared.transaction.claim(&ids)?;
        for ((chunk, id), claim) in chunks.iter().zip(&ids).zip(claims) {
            if claim == Claim::Known {
                continue;
            }
            self.shared.chunks_new.fetch_add(1, Ordering::Relaxed);
            self.shared.bytes_new.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if chunk.len() < self.group_below {
                self.add_to_group(chunk, *id)?;
            } else {
                let before = self.batch.bytes.len();
                let codec = self.encoder.encode(chunk, &mut self.batch.bytes)?;
                let stored = self.batch.bytes.len() - before;
                self.batch.records.push(FrameRecord::single(*id, chunk.len(), stored, codec.code())?);
            }
        }
        self.flush_group()?;
        self.hand_over()?;
        Ok(ids.iter().zip(chunks).map(|(&id, chunk)| Child { id, bytes: chunk.len() as u64 }).collect())
    }

    fn add_to_group(&mut self, chunk: &[u8], id: ChunkId) -> Result<()> {
        if self.group.len() + chunk.len() > GROUP_BYTES || self.group_chunks.len() == FRAME_CHUNKS_MAX {
            self.flush_group()?;
        }
        self.group.extend_from_slice(chunk);
        self.group_chunks.push((id, u32::try_from(chunk.len()).unwrap_or(u32::MAX)));
        Ok(())
    }

    fn flush_group(&mut self) -> Result<()> {
        if self.group_chunks.is_empty() {
            return Ok(());
        }
        let before = self.batch.bytes.len();
        let codec = self.encoder.encode(&self.group, &mut self.batch.bytes)?;
        let stored = self.batch.bytes.len() - before;
        let chunks = std::mem::take(&mut self.group_chunks);
        self.batch.records.push(FrameRecord::group(chunks, stored, codec.code())?);
        self.group.clear();
        Ok(())
    }

    fn hand_over(&mut self) -> Result<()> {
        if self.batch.records.is_empty() {
            return Ok(());
        }
        self.shared.bytes_stored.fetch_add(self.batch.bytes.len() as u64, Ordering::Relaxed);
        let next = self.empty.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, next);
        // The lanes end early only with an error of their own, which is the one to report.
        self.full.send(batch).map_err(|_| Error::new(Kind::Interrupted, "the packs can no longer be written"))
    }
}
