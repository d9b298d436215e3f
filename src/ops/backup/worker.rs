//! Workers: everything that costs time for each byte. Any number of them run side by side; none keeps order.
//!
//! A small file is one task from reading to storing. A big file is scanned for candidate cuts segment by
//! segment; once the coordinator has chosen the cuts, its chunks come back to be hashed, looked up, coded and stored.

use super::packs::FrameBatch;
use super::reading::Source;
use super::shared::{Segment, Shared};
use super::storer::{Incoming, Origin, Storer};
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::repo::stream::Child;
use crate::source::chunker::Candidates;
use crate::source::open::{Extent, SourceFile};
use crate::source::scan::Found;
use crossbeam_channel::{Receiver, Sender};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// How often a file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 3;

/// A small file to read.
pub(super) struct SmallFile {
    pub(super) sequence: u64,
    pub(super) found: Box<Found>,
}

/// A chunk that ends at a fixed place.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedCut {
    pub(super) bytes: usize,
    /// The run of the layout that it belongs to.
    pub(super) run: Option<u32>,
}

/// A chunk whose bytes lie in one segment or in two neighbours.
pub(super) struct ChunkPlace {
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) first: (Arc<Segment>, Range<usize>),
    pub(super) second: Option<(Arc<Segment>, Range<usize>)>,
}

/// What workers are given.
pub(super) enum Task {
    Small(Vec<SmallFile>),
    Scan { sequence: u64, index: u64, source: Source },
    Store { sequence: u64, index: u64, run: Option<u32>, chunks: Vec<ChunkPlace>, origin: Option<Origin> },
    Fixed { sequence: u64, index: u64, source: Source, offset: u64, cuts: Vec<FixedCut>, origin: Option<Origin> },
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
        children: Result<(Vec<Child>, bool)>,
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
            Task::Store { sequence, index, run, chunks, origin } => {
                let children = storer.store_places(&chunks, run, origin.as_ref())?;
                Ok(Done::Stored { sequence, index, children: Ok((children, false)) })
            }
            Task::Fixed { sequence, index, source, offset, cuts, origin } => {
                let children = store_fixed(shared, &mut storer, source, offset, &cuts, origin.as_ref())?;
                Ok(Done::Stored { sequence, index, children })
            }
        });
        // Nobody listens any more when the run has failed elsewhere.
        if done.send(answer.unwrap_or_else(Done::Failed)).is_err() {
            return;
        }
    }
}

/// The outer result is the run's, the inner one the file's.
fn read_and_scan(shared: &Shared<'_>, source: Source) -> Result<Result<(Segment, Candidates)>> {
    Ok(source.into_segment(shared)?.map(|segment| {
        let mut candidates = Candidates::new();
        shared.chunker.scan(segment.context(), segment.bytes(), &mut candidates);
        (segment, candidates)
    }))
}

/// Stores chunks with fixed cuts, and says whether the file ended before the last of them. The outer result is the run's, the
/// inner one the file's.
fn store_fixed(
    shared: &Shared<'_>,
    storer: &mut Storer<'_>,
    source: Source,
    offset: u64,
    cuts: &[FixedCut],
    origin: Option<&Origin>,
) -> Result<Result<(Vec<Child>, bool)>> {
    let segment = match source.into_segment(shared)? {
        Ok(segment) => segment,
        Err(error) => return Ok(Err(error)),
    };
    let read = segment.bytes();
    let mut chunks = Vec::with_capacity(cuts.len());
    let mut at = 0;
    for cut in cuts {
        let end = read.len().min(at + cut.bytes);
        if at < end {
            chunks.push(Incoming { bytes: &read[at..end], offset: offset + at as u64, run: cut.run });
        }
        at = end;
    }
    let children = storer.store(&chunks, origin)?;
    let wanted: usize = cuts.iter().map(|cut| cut.bytes).sum();
    Ok(Ok((children, read.len() < wanted)))
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
        read.push(read_small_file(shared, file, &mut buffer));
    }
    shared.check_stop()?;
    let chunks = read.iter().filter(|f| f.result.is_ok()).flat_map(|f| &f.pieces).filter_map(|piece| match piece {
        Piece::Chunk(range) => Some(Incoming { bytes: &buffer[range.clone()], offset: 0, run: None }),
        Piece::Hole(_) => None,
    });
    let mut stored = storer.store_small(&chunks.collect::<Vec<_>>())?.into_iter();
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
        let read = shared.read(&file, offset, &mut buffer[at..])?;
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
