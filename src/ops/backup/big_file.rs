//! A big file on its way: which segments are out, where the cuts fall, what has been stored. Keeps the order that the
//! workers do not.
//!
//! Every data extent is a stream of its own for the cutter; holes lie between them. Cuts are chosen in the order of the
//! file as candidates arrive, so they are the same however many workers scan.

use super::shared::Segment;
use super::worker::{ChunkPlace, SegmentSource};
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::repo::stream::{Child, NodeBuilder, StreamRef};
use crate::source::chunker::{CONTEXT_BYTES, Candidates, Chunker, Cutter};
use crate::source::open::{Extent, SourceFile};
use crate::source::scan::Found;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What one index of the sequence of a file is.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// A segment of data; `starts` and `ends` an extent or not.
    Data {
        starts: bool,
        ends: bool,
        bytes: u64,
    },
    Hole {
        bytes: u64,
    },
}

/// See the module.
pub(super) struct BigFile {
    pub(super) found: Box<Found>,
    /// True if the parent had something at the path.
    pub(super) existed: bool,
    /// None for a stream.
    pub(super) file: Option<Arc<SourceFile>>,
    chunker: Chunker,
    segment_bytes: u64,
    /// What is not dispatched yet: the rest of the extents, the first perhaps begun.
    extents: VecDeque<Extent>,
    at_extent_start: bool,
    /// Dispatched parts whose cuts are not chosen yet, the first being number `next_cut`.
    parts: VecDeque<Part>,
    dispatched: u64,
    is_dispatched: bool,
    scanned: BTreeMap<u64, (Segment, Candidates)>,
    next_cut: u64,
    cutter: Cutter,
    /// Offsets in the extent's stream.
    chunk_start: u64,
    segment_start: u64,
    previous: Option<Arc<Segment>>,
    stored: BTreeMap<u64, Vec<Child>>,
    next_stored: u64,
    nodes: NodeBuilder,
    bytes: u64,
    /// Set when the file turned out shorter than it was: parts behind are void.
    pub(super) ended_early: bool,
    pub(super) failure: Option<Error>,
}

/// A segment to read and scan.
pub(super) struct Dispatch {
    pub(super) index: u64,
    pub(super) bytes: u64,
    pub(super) source: SegmentSource,
}

/// Chunks decided by one more segment.
pub(super) struct Decided {
    pub(super) index: u64,
    pub(super) chunks: Vec<ChunkPlace>,
}

impl BigFile {
    /// A regular file with its extents.
    pub(super) fn open(found: Box<Found>, existed: bool, chunker: &Chunker, segment_bytes: u64) -> Result<BigFile> {
        let file = SourceFile::open(&found)?;
        let extents = file.extents(found.metadata.size)?.into();
        Ok(BigFile { file: Some(Arc::new(file)), extents, ..BigFile::stream(found, existed, chunker, segment_bytes) })
    }

    /// A stream whose segments are given by [`BigFile::push_loaded`].
    pub(super) fn stream(found: Box<Found>, existed: bool, chunker: &Chunker, segment_bytes: u64) -> BigFile {
        BigFile {
            found,
            existed,
            file: None,
            chunker: chunker.clone(),
            segment_bytes,
            extents: VecDeque::new(),
            at_extent_start: true,
            parts: VecDeque::new(),
            dispatched: 0,
            is_dispatched: false,
            scanned: BTreeMap::new(),
            next_cut: 0,
            cutter: chunker.cutter(),
            chunk_start: 0,
            segment_start: 0,
            previous: None,
            stored: BTreeMap::new(),
            next_stored: 0,
            nodes: NodeBuilder::default(),
            bytes: 0,
            ended_early: false,
            failure: None,
        }
    }

    /// The next segment to read, passing over holes; none when all have been given out.
    pub(super) fn next_segment(&mut self) -> Option<Dispatch> {
        let file = self.file.as_ref()?.clone();
        loop {
            if self.ended_early || self.failure.is_some() {
                self.is_dispatched = true;
                return None;
            }
            let Some(extent) = self.extents.front_mut() else {
                self.is_dispatched = true;
                return None;
            };
            let index = self.dispatched;
            self.dispatched += 1;
            if extent.is_hole {
                self.parts.push_back(Part::Hole { bytes: extent.len });
                self.extents.pop_front();
                self.at_extent_start = true;
                continue;
            }
            let bytes = extent.len.min(self.segment_bytes);
            let starts = self.at_extent_start;
            let (offset, ends) = (extent.offset, bytes == extent.len);
            extent.offset += bytes;
            extent.len -= bytes;
            if ends {
                self.extents.pop_front();
            }
            self.at_extent_start = ends;
            self.parts.push_back(Part::Data { starts, ends, bytes });
            let context = if starts { 0 } else { CONTEXT_BYTES };
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            return Some(Dispatch { index, bytes, source: SegmentSource::File { file, offset, bytes: len, context } });
        }
    }

    /// Takes the next segment of a stream; a segment shorter than asked for is the last.
    pub(super) fn push_loaded(&mut self, segment: Segment) -> Dispatch {
        let bytes = segment.bytes().len() as u64;
        let ends = bytes < self.segment_bytes;
        let index = self.dispatched;
        self.dispatched += 1;
        self.is_dispatched = ends;
        self.parts.push_back(Part::Data { starts: index == 0, ends, bytes });
        Dispatch { index, bytes, source: SegmentSource::Loaded(segment) }
    }

    /// Takes what a worker has scanned and returns all chunks that are decided by now, segment by segment.
    pub(super) fn push_scanned(&mut self, index: u64, result: Result<(Segment, Candidates)>) -> Vec<Decided> {
        match result {
            Ok(scanned) => drop(self.scanned.insert(index, scanned)),
            Err(error) => self.fail(error),
        }
        if self.failure.is_some() {
            return Vec::new();
        }
        self.choose_cuts()
    }

    /// Gives the file up: nothing more is read or expected.
    pub(super) fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
        self.is_dispatched = true;
        self.scanned.clear();
        self.previous = None;
    }

    fn choose_cuts(&mut self) -> Vec<Decided> {
        let mut decided = Vec::new();
        while let Some(&part) = self.parts.front() {
            let index = self.next_cut;
            let (starts, ends, bytes) = match part {
                Part::Hole { bytes } => {
                    let hole = Child { id: ChunkId::HOLE, bytes };
                    let children = if self.ended_early { Vec::new() } else { vec![hole] };
                    self.stored.insert(index, children);
                    self.parts.pop_front();
                    self.next_cut += 1;
                    continue;
                }
                Part::Data { starts, ends, bytes } => (starts, ends, bytes),
            };
            let Some((segment, candidates)) = self.scanned.remove(&index) else { break };
            self.parts.pop_front();
            self.next_cut += 1;
            let chunks =
                if self.ended_early { Vec::new() } else { self.cut(segment, &candidates, starts, ends, bytes) };
            if chunks.is_empty() {
                self.stored.insert(index, Vec::new());
            }
            decided.push(Decided { index, chunks });
        }
        decided
    }

    fn cut(
        &mut self,
        segment: Segment,
        candidates: &Candidates,
        starts: bool,
        ends: bool,
        bytes: u64,
    ) -> Vec<ChunkPlace> {
        if starts {
            self.cutter = self.chunker.cutter();
            (self.chunk_start, self.segment_start, self.previous) = (0, 0, None);
        }
        let read = segment.bytes().len() as u64;
        self.ended_early |= read < bytes;
        let mut cuts = Vec::new();
        self.cutter.push(candidates, &mut cuts);
        if ends || self.ended_early {
            std::mem::replace(&mut self.cutter, self.chunker.cutter()).finish(&mut cuts);
        }
        let segment = Arc::new(segment);
        let places = cuts.into_iter().map(|end| self.place(&segment, end)).collect();
        self.segment_start += read;
        self.previous = Some(segment);
        places
    }

    /// The chunk from where the last one ended to `end`, which lies in `segment`. Segments are at least as long as the
    /// longest chunk, so it began there or in the one before.
    fn place(&mut self, segment: &Arc<Segment>, end: u64) -> ChunkPlace {
        let here = |offset: u64| usize::try_from(offset.saturating_sub(self.segment_start)).unwrap_or(usize::MAX);
        let start = std::mem::replace(&mut self.chunk_start, end);
        match self.previous.as_ref().filter(|_| start < self.segment_start) {
            Some(previous) => {
                let length = previous.bytes().len();
                let from = length - usize::try_from(self.segment_start - start).unwrap_or(0).min(length);
                ChunkPlace { first: (previous.clone(), from..length), second: Some((segment.clone(), 0..here(end))) }
            }
            None => ChunkPlace { first: (segment.clone(), here(start)..here(end)), second: None },
        }
    }

    /// Takes the ids of the chunks that one segment decided and adds what is in order to the chunk list.
    pub(super) fn push_stored(
        &mut self,
        index: u64,
        children: Vec<Child>,
        store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>,
    ) -> Result<()> {
        self.stored.insert(index, children);
        self.settle(store)
    }

    /// Adds to the chunk list what has become ready without a worker: holes and segments without a cut.
    pub(super) fn settle(&mut self, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        while let Some(children) = self.stored.remove(&self.next_stored) {
            self.next_stored += 1;
            for child in children {
                self.bytes = self.bytes.saturating_add(child.bytes);
                self.nodes.push(child, store)?;
            }
        }
        Ok(())
    }

    /// True when nothing more will come.
    pub(super) fn is_complete(&mut self) -> bool {
        if self.is_dispatched && self.failure.is_none() && !self.parts.is_empty() {
            // Trailing holes wait for no worker.
            self.choose_cuts();
        }
        self.is_dispatched && (self.failure.is_some() || self.next_stored == self.dispatched)
    }

    /// The content as a stream and its length.
    pub(super) fn finish(
        self,
        store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>,
    ) -> Result<(Box<Found>, Option<StreamRef>, u64)> {
        Ok((self.found, self.nodes.finish(store)?, self.bytes))
    }
}
