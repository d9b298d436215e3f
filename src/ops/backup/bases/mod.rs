//! Bases: what the chunks of a file may be coded against.
//!
//! The coordinator finds for each file the files that hold the same data at another time or in another precision
//! ([`catalog`]), and pairs their runs: a [`BasePlan`]. A worker then finds for each new chunk the chunk of the base file at the same
//! place ([`numbers`], [`text`]), goes back to its anchor, and offers its content to the encoder. Whatever is wrong here costs
//! space: a chunk without a usable base is stored alone.

pub(super) mod catalog;
pub(super) mod distance;
pub(super) mod numbers;
pub(super) mod pairing;
pub(super) mod recent;
pub(super) mod text;

use crate::bytes::ByteRange;
use crate::codec::Relation;
use crate::ids::ChunkId;
use crate::repo::content_reader::PlacedChunk;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

/// A file whose chunks are known: one of a snapshot, or one that this run has read.
pub(super) struct BaseFile {
    /// Its chunks, in order.
    pub(super) chunks: Vec<PlacedChunk>,
}

impl BaseFile {
    /// The chunk that begins exactly there.
    pub(super) fn chunk_at(&self, offset: u64) -> Option<&PlacedChunk> {
        let number = self.chunks.binary_search_by_key(&offset, |chunk| chunk.offset).ok()?;
        self.chunks.get(number).filter(|chunk| chunk.child.id != ChunkId::HOLE)
    }

    /// The numbers of the chunks that share a byte with the range.
    pub(super) fn covering(&self, from: u64, to: u64) -> Range<usize> {
        let first = self.chunks.partition_point(|chunk| chunk.offset.saturating_add(chunk.child.bytes) <= from);
        let behind = self.chunks.partition_point(|chunk| chunk.offset < to);
        first..behind.max(first)
    }
}

/// Where the data of a run stood in another file.
#[derive(Clone)]
pub(super) struct RunBase {
    pub(super) file: Arc<BaseFile>,
    /// Its place there.
    pub(super) range: ByteRange,
    /// What it is to the data of the run.
    pub(super) relation: Relation,
}

/// A run of a file and what it may be coded against, the best first.
pub(super) struct PlannedRun {
    /// Its place in the file.
    pub(super) range: ByteRange,
    pub(super) bases: Vec<RunBase>,
    /// For text: by how much its bytes were last found to be shifted against the base.
    pub(super) shift: AtomicI64,
}

impl PlannedRun {
    pub(super) fn new(range: ByteRange, bases: Vec<RunBase>) -> PlannedRun {
        PlannedRun { range, bases, shift: AtomicI64::new(i64::MIN) }
    }
}

/// What the chunks of one file may be coded against.
pub(super) struct BasePlan {
    /// By the number of the run in the file's layout.
    pub(super) runs: Vec<Option<PlannedRun>>,
    /// For what belongs to no run: all of the file against all of another.
    pub(super) whole: Option<PlannedRun>,
}

impl BasePlan {
    /// What is planned for the chunks of a run.
    pub(super) fn run(&self, run: Option<u32>) -> Option<&PlannedRun> {
        match run.and_then(|number| self.runs.get(usize::try_from(number).ok()?)) {
            Some(planned) => planned.as_ref(),
            None => self.whole.as_ref(),
        }
    }
}
