//! A big file on its way: which segments are out, where the cuts fall, what has been stored. Keeps the order that the
//! workers do not.
//!
//! A file comes in pieces. Those that are cut by content are each a stream of its own for the cutter: cuts are chosen in the order
//! of the file as candidates arrive, so they are the same however many workers scan. Pieces with fixed cuts are read and
//! stored at once.

use super::shared::Segment;
use super::storer::Origin;
use super::worker::{ChunkPlace, FixedCut, SegmentSource};
use crate::bytes::ByteRange;
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::repo::content_reader::PlacedChunk;
use crate::repo::stream::{Child, NodeBuilder, StreamRef};
use crate::source::chunker::{CONTEXT_BYTES, Candidates, Chunker, Cutter};
use crate::source::layout::Layout;
use crate::source::open::SourceFile;
use crate::source::pieces::{self, Piece, PieceKind};
use crate::source::scan::Found;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What one index of the sequence of a file is.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// A segment of data that is cut by content; `starts` and `ends` a piece or not.
    Data {
        starts: bool,
        ends: bool,
        offset: u64,
        bytes: u64,
        run: Option<u32>,
    },
    /// Cuts are fixed: nothing to choose.
    Fixed,
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
    /// Where its chunks come from, and what they may be coded against; none if nothing is to be.
    pub(super) origin: Option<Origin>,
    /// What is not dispatched yet: the rest of the pieces, the first perhaps begun.
    pieces: VecDeque<Piece>,
    at_piece_start: bool,
    /// Dispatched parts whose cuts are not chosen yet, the first being number `next_cut`.
    parts: VecDeque<Part>,
    dispatched: u64,
    is_dispatched: bool,
    scanned: BTreeMap<u64, (Segment, Candidates)>,
    next_cut: u64,
    cutter: Cutter,
    /// Offsets in the piece's stream, and where that begins in the file.
    piece_start: u64,
    chunk_start: u64,
    segment_start: u64,
    previous: Option<Arc<Segment>>,
    stored: BTreeMap<u64, Vec<Child>>,
    next_stored: u64,
    nodes: NodeBuilder,
    /// The chunks so far, for files that may be coded against this one.
    pub(super) chunks: Vec<PlacedChunk>,
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
    /// The run that they belong to.
    pub(super) run: Option<u32>,
    pub(super) chunks: Vec<ChunkPlace>,
}

impl BigFile {
    /// A regular file that is open.
    pub(super) fn open(
        found: Box<Found>,
        existed: bool,
        file: SourceFile,
        layout: Option<&Layout>,
        chunker: &Chunker,
        segment_bytes: u64,
    ) -> Result<BigFile> {
        let extents = file.extents(found.metadata.size)?;
        // A file with holes was not written by a library that writes tensors.
        let pieces = match layout {
            Some(layout) if extents.len() == 1 => pieces::by_layout(layout, found.metadata.size),
            _ => pieces::by_content(extents),
        };
        Ok(BigFile {
            file: Some(Arc::new(file)),
            pieces: pieces.into(),
            ..BigFile::stream(found, existed, chunker, segment_bytes)
        })
    }

    /// A stream whose segments are given by [`BigFile::push_loaded`].
    pub(super) fn stream(found: Box<Found>, existed: bool, chunker: &Chunker, segment_bytes: u64) -> BigFile {
        BigFile {
            found,
            existed,
            file: None,
            chunker: chunker.clone(),
            segment_bytes,
            origin: None,
            pieces: VecDeque::new(),
            at_piece_start: true,
            parts: VecDeque::new(),
            dispatched: 0,
            is_dispatched: false,
            scanned: BTreeMap::new(),
            next_cut: 0,
            cutter: chunker.cutter(),
            piece_start: 0,
            chunk_start: 0,
            segment_start: 0,
            previous: None,
            stored: BTreeMap::new(),
            next_stored: 0,
            nodes: NodeBuilder::default(),
            chunks: Vec::new(),
            bytes: 0,
            ended_early: false,
            failure: None,
        }
    }

    /// The next segment to read, passing over holes; none when all have been given out.
    pub(super) fn next_segment(&mut self) -> Option<Dispatch> {
        let file = self.file.as_ref()?.clone();
        while let Some(&piece) = self.pieces.front().filter(|_| !self.ended_early && self.failure.is_none()) {
            let index = self.dispatched;
            self.dispatched += 1;
            match piece.kind {
                PieceKind::Hole => {
                    self.parts.push_back(Part::Hole { bytes: piece.range.len() });
                    self.pieces.pop_front();
                    self.at_piece_start = true;
                }
                PieceKind::Content => return Some(self.next_of_content(index, piece, file)),
                PieceKind::Fixed(_) => return Some(self.next_fixed(index, piece.range.offset(), file)),
            }
        }
        self.is_dispatched = true;
        None
    }

    fn next_of_content(&mut self, index: u64, piece: Piece, file: Arc<SourceFile>) -> Dispatch {
        let offset = piece.range.offset();
        let bytes = piece.range.len().min(self.segment_bytes);
        let starts = self.at_piece_start;
        let ends = self.take_from_piece(bytes);
        self.at_piece_start = ends;
        self.parts.push_back(Part::Data { starts, ends, offset, bytes, run: piece.run });
        let context = if starts { 0 } else { CONTEXT_BYTES };
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        Dispatch { index, bytes, source: SegmentSource::File { file, offset, bytes: len, context } }
    }

    /// As many fixed cuts in a row as make up a segment.
    fn next_fixed(&mut self, index: u64, offset: u64, file: Arc<SourceFile>) -> Dispatch {
        let mut cuts = Vec::new();
        let mut bytes = 0;
        while let Some(&Piece { range, kind: PieceKind::Fixed(cut_bytes), run }) = self.pieces.front() {
            let now = range.len().min(cut_bytes);
            if bytes > 0 && bytes + now > self.segment_bytes {
                break;
            }
            cuts.push(FixedCut { bytes: usize::try_from(now).unwrap_or(usize::MAX), run });
            bytes += now;
            self.take_from_piece(now);
        }
        self.at_piece_start = true;
        self.parts.push_back(Part::Fixed);
        Dispatch { index, bytes, source: SegmentSource::Fixed { file, offset, cuts } }
    }

    /// Moves the beginning of the first piece; true if that ends it.
    fn take_from_piece(&mut self, bytes: u64) -> bool {
        let rest = self.pieces.front_mut().and_then(|piece| {
            let left = piece.range.len().checked_sub(bytes).filter(|&left| left > 0)?;
            piece.range = ByteRange::new(piece.range.offset() + bytes, left).ok()?;
            Some(())
        });
        if rest.is_none() {
            self.pieces.pop_front();
        }
        rest.is_none()
    }

    /// Takes the next segment of a stream; a segment shorter than asked for is the last.
    pub(super) fn push_loaded(&mut self, segment: Segment) -> Dispatch {
        let bytes = segment.bytes().len() as u64;
        let ends = bytes < self.segment_bytes;
        let index = self.dispatched;
        self.dispatched += 1;
        self.is_dispatched = ends;
        let offset = index.saturating_mul(self.segment_bytes);
        self.parts.push_back(Part::Data { starts: index == 0, ends, offset, bytes, run: None });
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
            let (starts, ends, offset, bytes, run) = match part {
                Part::Fixed => {
                    self.parts.pop_front();
                    self.next_cut += 1;
                    continue;
                }
                Part::Hole { bytes } => {
                    let hole = Child { id: ChunkId::HOLE, bytes };
                    let children = if self.ended_early { Vec::new() } else { vec![hole] };
                    self.stored.insert(index, children);
                    self.parts.pop_front();
                    self.next_cut += 1;
                    continue;
                }
                Part::Data { starts, ends, offset, bytes, run } => (starts, ends, offset, bytes, run),
            };
            let Some((segment, candidates)) = self.scanned.remove(&index) else { break };
            self.parts.pop_front();
            self.next_cut += 1;
            if starts {
                self.begin_piece(offset);
            }
            let chunks = if self.ended_early { Vec::new() } else { self.cut(segment, &candidates, ends, bytes) };
            if chunks.is_empty() {
                self.stored.insert(index, Vec::new());
            }
            decided.push(Decided { index, run, chunks });
        }
        decided
    }

    fn begin_piece(&mut self, offset: u64) {
        self.cutter = self.chunker.cutter();
        (self.piece_start, self.chunk_start, self.segment_start, self.previous) = (offset, 0, 0, None);
    }

    fn cut(&mut self, segment: Segment, candidates: &Candidates, ends: bool, bytes: u64) -> Vec<ChunkPlace> {
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
        let offset = self.piece_start.saturating_add(start);
        match self.previous.as_ref().filter(|_| start < self.segment_start) {
            Some(previous) => {
                let length = previous.bytes().len();
                let from = length - usize::try_from(self.segment_start - start).unwrap_or(0).min(length);
                ChunkPlace {
                    first: (previous.clone(), from..length),
                    second: Some((segment.clone(), 0..here(end))),
                    offset,
                }
            }
            None => ChunkPlace { first: (segment.clone(), here(start)..here(end)), second: None, offset },
        }
    }

    /// Takes the ids of the chunks that one segment decided and adds what is in order to the chunk list; `is_short` if the file
    /// ended in the middle of the segment.
    pub(super) fn push_stored(
        &mut self,
        index: u64,
        children: Vec<Child>,
        is_short: bool,
        store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>,
    ) -> Result<()> {
        self.ended_early |= is_short;
        self.stored.insert(index, children);
        self.settle(store)
    }

    /// Adds to the chunk list what has become ready without a worker: holes and segments without a cut.
    pub(super) fn settle(&mut self, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        while let Some(children) = self.stored.remove(&self.next_stored) {
            self.next_stored += 1;
            for child in children {
                self.chunks.push(PlacedChunk { offset: self.bytes, child });
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
