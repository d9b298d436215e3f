//! A big file on its way: which segments are out, where the cuts fall, what has been stored. Keeps the order that the
//! workers do not.
//!
//! A file comes in pieces. Those that are cut by content are each a stream of its own for the cutter: cuts are chosen in the order
//! of the file as candidates arrive, so they are the same however many workers scan. Pieces with fixed cuts are read and
//! stored at once.

use super::reading::Stretch;
use super::shared::Segment;
use super::storer::Origin;
use super::worker::{ChunkPlace, FixedCut};
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
    /// The first part known in which the file ended, shorter than it was. What lies behind is void, even what was read
    /// before the file was cut: the rest would stand in the wrong place.
    ended_in: Option<u64>,
    pub(super) failure: Option<Error>,
}

/// Where the bytes of a segment come from, and where they are cut.
pub(super) enum SegmentSource {
    /// To be scanned.
    File(Stretch),
    /// Its cuts are known.
    Fixed(Stretch, Vec<FixedCut>),
    /// To be scanned, and already read: from a stream.
    Loaded(Segment),
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
            ended_in: None,
            failure: None,
        }
    }

    /// The next segment to read, passing over holes; none when all have been given out.
    pub(super) fn next_segment(&mut self) -> Option<Dispatch> {
        let file = self.file.as_ref()?.clone();
        while let Some(&piece) = self.pieces.front().filter(|_| self.ended_in.is_none() && self.failure.is_none()) {
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
        let stretch = Stretch { file, offset, bytes: len, context };
        Dispatch { index, bytes, source: SegmentSource::File(stretch) }
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
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let stretch = Stretch { file, offset, bytes: len, context: 0 };
        Dispatch { index, bytes, source: SegmentSource::Fixed(stretch, cuts) }
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
                    let children = if self.is_void(index) { Vec::new() } else { vec![hole] };
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
            let is_short = (segment.bytes().len() as u64) < bytes;
            let chunks = match self.is_void(index) {
                true => Vec::new(),
                false => self.cut(segment, &candidates, ends || is_short),
            };
            if is_short {
                self.end_in(index);
            }
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

    fn cut(&mut self, segment: Segment, candidates: &Candidates, ends: bool) -> Vec<ChunkPlace> {
        let read = segment.bytes().len() as u64;
        let mut cuts = Vec::new();
        self.cutter.push(candidates, &mut cuts);
        if ends {
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
        if is_short {
            self.end_in(index);
        }
        self.stored.insert(index, children);
        self.settle(store)
    }

    /// Adds to the chunk list what has become ready without a worker: holes and segments without a cut.
    pub(super) fn settle(&mut self, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        while let Some(children) = self.stored.remove(&self.next_stored) {
            let is_void = self.is_void(self.next_stored);
            self.next_stored += 1;
            for child in children.into_iter().filter(|_| !is_void) {
                self.chunks.push(PlacedChunk { offset: self.bytes, child });
                self.bytes = self.bytes.saturating_add(child.bytes);
                self.nodes.push(child, store)?;
            }
        }
        Ok(())
    }

    /// True if the file turned out shorter than it was.
    pub(super) fn ended_early(&self) -> bool {
        self.ended_in.is_some()
    }

    fn end_in(&mut self, index: u64) {
        self.ended_in = Some(self.ended_in.map_or(index, |known| known.min(index)));
    }

    fn is_void(&self, index: u64) -> bool {
        self.ended_in.is_some_and(|last| index > last)
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

#[cfg(test)]
mod tests {
    use super::super::shared::Buffers;
    use super::*;
    use crate::bytes::{KIB, MIB};
    use crate::source::chunker::ChunkSizes;
    use crate::source::layout::{Container, Cut, Dtype, Run};
    use crate::source::scan::{ScanOptions, Scanned, scan};

    const BYTES: u64 = 9 * MIB + 77;

    fn below(state: &mut u64, bound: u64) -> u64 {
        *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (*state >> 33) % bound
    }

    fn noise(bytes: u64) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(bytes).expect("small")];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    /// Runs anywhere, most of them at, before or behind a boundary of segments.
    fn layout(state: &mut u64) -> Layout {
        let mut places: Vec<u64> = (0..2 + 2 * below(state, 5))
            .map(|_| {
                let boundary = [256 * KIB, 512 * KIB, MIB, 4 * MIB][usize::try_from(below(state, 4)).expect("small")];
                let near = below(state, 1 + BYTES / boundary) * boundary + below(state, 3);
                near.saturating_sub(1).min(BYTES)
            })
            .collect();
        places.sort_unstable();
        let runs = places.chunks_exact(2).map(|place| Run {
            range: ByteRange::new(place[0], place[1] - place[0]).expect("in order"),
            key: String::new(),
            dtype: [None, Some(Dtype::U8), Some(Dtype::F32)][usize::try_from(below(state, 3)).expect("small")],
            cut: if below(state, 2) == 0 { Cut::Fixed } else { Cut::Content },
        });
        Layout {
            container: Container::Parquet,
            tensors: vec![],
            runs: runs.collect(),
            metadata: vec![],
            is_truncated: false,
        }
    }

    /// What a worker finds of a segment when the file has `len` bytes.
    fn read(big: &mut BigFile, content: &[u8], dispatch: &Dispatch, len: usize) -> Vec<(u64, Vec<Child>, bool)> {
        let hashed = |from: usize, to: usize| Child { id: ChunkId::of(&content[from..to]), bytes: (to - from) as u64 };
        match &dispatch.source {
            SegmentSource::Fixed(Stretch { offset, .. }, cuts) => {
                let mut at = usize::try_from(*offset).expect("small");
                let (mut children, end) = (Vec::new(), at + cuts.iter().map(|cut| cut.bytes).sum::<usize>());
                for cut in cuts {
                    let to = (at + cut.bytes).min(len);
                    children.extend((at < to).then(|| hashed(at, to)));
                    at += cut.bytes;
                }
                vec![(dispatch.index, children, len < end)]
            }
            SegmentSource::File(Stretch { offset, bytes, context, .. }) => {
                let from = usize::try_from(*offset).expect("small");
                let to = (from + bytes).min(len).max(from);
                let mut candidates = Candidates::new();
                big.chunker.scan(&content[from - context..from], &content[from..to], &mut candidates);
                let segment = Segment::new(content[from..to].to_vec(), 0, to - from, &Arc::new(Buffers::new()));
                let decided = big.push_scanned(dispatch.index, Ok((segment, candidates)));
                let stored = |place: &ChunkPlace| {
                    let mut bytes = place.first.0.bytes()[place.first.1.clone()].to_vec();
                    bytes.extend(place.second.iter().flat_map(|(s, range)| s.bytes()[range.clone()].to_vec()));
                    Child { id: ChunkId::of(&bytes), bytes: bytes.len() as u64 }
                };
                let decided = decided.into_iter().filter(|decided| !decided.chunks.is_empty());
                decided.map(|d| (d.index, d.chunks.iter().map(stored).collect(), false)).collect()
            }
            SegmentSource::Loaded(_) => panic!("not a stream"),
        }
    }

    /// Reads the file in any order, the segments numbered in `short` after it was cut to `len`; the length that comes of it.
    fn backed_up(path: &std::path::Path, content: &[u8], seed: u64, len: usize) -> u64 {
        let mut state = seed;
        let Some(Scanned::Entry(found)) = scan(&[path.to_path_buf()], ScanOptions::default()).next() else {
            panic!("it is there")
        };
        let found = Box::new(found);
        let file = SourceFile::open(&found).expect("opens");
        let sizes = ChunkSizes::new(2 * KIB, 8 * KIB, 32 * KIB).expect("sound");
        let chunker = Chunker::new(sizes, &[7; 32]);
        let mut big = BigFile::open(found, false, file, Some(&layout(&mut state)), &chunker, MIB).expect("has extents");
        let store = &mut |node: Vec<u8>| Ok(ChunkId::of(&node));
        let (mut waiting, mut answers) = (Vec::new(), Vec::new());
        let mut has_more = true;
        while has_more || !waiting.is_empty() || !answers.is_empty() {
            match below(&mut state, 3) {
                0 if has_more => match big.next_segment() {
                    Some(dispatch) => waiting.push(dispatch),
                    None => has_more = false,
                },
                1 if !waiting.is_empty() => {
                    let number = below(&mut state, waiting.len() as u64);
                    let dispatch = waiting.swap_remove(usize::try_from(number).expect("small"));
                    // Some reads come before the file is cut, and some after.
                    let len = if below(&mut state, 2) == 0 { content.len() } else { len };
                    answers.extend(read(&mut big, content, &dispatch, len));
                }
                2 if !answers.is_empty() => {
                    let number = below(&mut state, answers.len() as u64);
                    let (index, children, is_short) = answers.swap_remove(usize::try_from(number).expect("small"));
                    big.push_stored(index, children, is_short, store).expect("stores");
                }
                _ => {}
            }
            big.settle(store).expect("stores");
        }
        assert!(big.is_complete(), "seed {seed}");
        big.settle(store).expect("stores");
        let mut end = 0;
        for chunk in &big.chunks {
            assert_eq!(chunk.offset, end, "seed {seed}");
            end += chunk.child.bytes;
            let [from, to] = [chunk.offset, end].map(|at| usize::try_from(at).expect("small"));
            assert_eq!(chunk.child.id, ChunkId::of(&content[from..to]), "seed {seed}: not what stands at {from}");
        }
        assert!(end >= len as u64 && (big.ended_early() || end == BYTES), "seed {seed}: {end} of {len}");
        end
    }

    #[test]
    fn a_file_that_shrinks_is_stored_up_to_where_it_first_ended() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (path, content) = (folder.path().join("file"), noise(BYTES));
        std::fs::write(&path, &content).expect("written");
        let mut state = 1;
        let mut shorter = 0;
        for seed in 0..50 {
            let len = usize::try_from(below(&mut state, BYTES + 1)).expect("small");
            shorter += u64::from(backed_up(&path, &content, seed, len) < BYTES);
        }
        assert!(shorter > 25, "{shorter}");
        for seed in 0..10 {
            assert_eq!(backed_up(&path, &content, seed, content.len()), BYTES);
        }
    }
}
