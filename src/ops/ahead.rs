//! Reading stretches of content in order: several threads read and decode chunks ahead of the one that takes them.
//!
//! Every chunk is verified before a byte of it is given out; holes come as zeros. Memory stays bounded whatever is read.
//! Nothing is cached from one stretch to the next but frames that several chunks share.

use super::Resources;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::repo::frame_cache::FrameCache;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::collections::VecDeque;

/// Zeros are given out in pieces of this many bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The most bytes of content that are read ahead.
const AHEAD_BYTES_MAX: u64 = 256 << 20;

/// A part of a chunk, or of a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The chunk, or [`ChunkId::HOLE`].
    pub id: ChunkId,
    /// Bytes of the whole chunk.
    pub chunk_bytes: u64,
    /// Where in the chunk the part begins.
    pub skip: u64,
    /// Bytes of the part.
    pub bytes: u64,
}

/// A stretch on its way: a hole, or one that a thread is reading.
enum Piece {
    Hole(u64),
    Chunk(Stretch, Receiver<Result<Vec<u8>>>),
}

struct Job {
    id: ChunkId,
    done: Sender<Result<Vec<u8>>>,
}

/// Gives the bytes of `stretches` to `take`, in order, and returns how many there were.
///
/// [`Kind::Damaged`] if a chunk cannot be read: what comes before it has been given out then.
pub fn read_in_order(
    frames: &FrameCache<'_>,
    stretches: impl Iterator<Item = Result<Stretch>>,
    resources: Resources,
    observer: &dyn Observer,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let ahead_max = (resources.memory_bytes / 4).min(AHEAD_BYTES_MAX);
    let (send, jobs) = unbounded::<Job>();
    std::thread::scope(|scope| {
        threads::start_some(scope, resources.threads, || {
            let jobs = jobs.clone();
            move || {
                for job in jobs {
                    // Nobody listens any more once the run has failed elsewhere.
                    let _ = job.done.send(frames.read(job.id));
                }
            }
        })?;
        // Dropped with this closure, however it ends: that is what lets the threads end.
        let send = send;
        let mut ahead = VecDeque::new();
        let mut ahead_bytes = 0;
        let mut given = 0;
        for stretch in stretches {
            let piece = start(stretch?, &send);
            ahead_bytes += piece.memory_bytes();
            ahead.push_back(piece);
            while ahead_bytes > ahead_max
                && let Some(piece) = ahead.pop_front()
            {
                ahead_bytes -= piece.memory_bytes();
                given += give(piece, take, observer)?;
            }
        }
        for piece in ahead {
            given += give(piece, take, observer)?;
        }
        Ok(given)
    })
}

/// The bytes of one stretch, verified; for callers with threads of their own.
pub fn read_stretch(frames: &FrameCache<'_>, stretch: Stretch, into: &mut Vec<u8>) -> Result<()> {
    if stretch.id == ChunkId::HOLE {
        let end = usize::try_from(stretch.bytes).ok().and_then(|bytes| into.len().checked_add(bytes));
        let end = end.ok_or_else(|| Error::damaged(format!("a hole of {} bytes is not possible", stretch.bytes)))?;
        into.resize(end, 0);
        return Ok(());
    }
    into.extend_from_slice(part_of(&frames.read(stretch.id)?, stretch)?);
    Ok(())
}

fn part_of(content: &[u8], stretch: Stretch) -> Result<&[u8]> {
    let Stretch { chunk_bytes, skip, bytes, .. } = stretch;
    if content.len() as u64 != chunk_bytes {
        return Err(Error::damaged(format!("a chunk has {} bytes, not {chunk_bytes}", content.len())));
    }
    let position = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let part = skip.checked_add(bytes).and_then(|end| content.get(position(skip)..position(end)));
    part.ok_or_else(|| Error::damaged(format!("{bytes} bytes at {skip} do not lie in a chunk of {chunk_bytes}")))
}

fn start(stretch: Stretch, send: &Sender<Job>) -> Piece {
    if stretch.id == ChunkId::HOLE {
        return Piece::Hole(stretch.bytes);
    }
    let (done, result) = bounded(1);
    // The threads live as long as this sender does.
    let _ = send.send(Job { id: stretch.id, done });
    Piece::Chunk(stretch, result)
}

impl Piece {
    fn memory_bytes(&self) -> u64 {
        match self {
            // Also a hole takes its place in the queue.
            Piece::Hole(_) => 64,
            Piece::Chunk(stretch, _) => stretch.chunk_bytes.saturating_add(64),
        }
    }
}

fn give(piece: Piece, take: &mut dyn FnMut(&[u8]) -> Result<()>, observer: &dyn Observer) -> Result<u64> {
    let bytes = match piece {
        Piece::Hole(bytes) => {
            let mut left = bytes;
            while left > 0 {
                check_interrupt(observer)?;
                let now = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                take(&ZEROS[..now])?;
                left -= now as u64;
            }
            bytes
        }
        Piece::Chunk(stretch, result) => {
            check_interrupt(observer)?;
            let read = result.recv().map_err(|_| Error::new(Kind::Failed, "a thread that reads chunks has ended"))?;
            take(part_of(&read?, stretch)?)?;
            stretch.bytes
        }
    };
    observer.on_event(&Event::Progress { bytes, files: 0 });
    Ok(bytes)
}

fn check_interrupt(observer: &dyn Observer) -> Result<()> {
    if observer.is_interrupted() {
        return Err(Error::new(Kind::Interrupted, "interrupted while content was read"));
    }
    Ok(())
}
