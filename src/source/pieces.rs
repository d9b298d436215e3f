//! A file in pieces: which parts are cut at fixed places, which by their content, and which are holes.
//!
//! The pieces of a file cover it exactly, in order. They follow from its layout, its length and its holes alone, so a file
//! gives the same chunks whoever stores it.

use super::layout::{Cut, Layout, Run};
use super::open::Extent;
use crate::bytes::{ByteRange, KIB, MIB};

/// Elements of one segment of a tensor, where that gives a length within the bounds below. Counted in elements, so that segments of
/// the same tensor in another precision cover the same numbers.
const SEGMENT_ELEMENTS: u64 = 256 * KIB;
/// The shortest and the longest segment; the longest also for what is not made of numbers that are understood.
const SEGMENT_BYTES: (u64, u64) = (256 * KIB, MIB);
/// Headers and gaps up to this length are one chunk; longer ones are cut by content.
const HEADER_BYTES_MAX: u64 = MIB;

/// How a piece is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Nothing is stored there.
    Hole,
    /// By content.
    Content,
    /// Every so many bytes.
    Fixed(u64),
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it lies; never empty.
    pub range: ByteRange,
    /// How it is cut.
    pub kind: PieceKind,
    /// The number of the run of the layout that it is; none for headers and for files without a layout.
    pub run: Option<u32>,
}

/// The length of the segments that a run of numbers is cut into.
pub fn segment_bytes(run: &Run) -> u64 {
    let element_bytes = run.dtype.and_then(|dtype| dtype.element_bytes()).unwrap_or(u64::MAX / SEGMENT_ELEMENTS);
    (SEGMENT_ELEMENTS * element_bytes).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1)
}

/// The pieces of a file that is cut by content: its extents.
pub fn by_content(extents: Vec<Extent>) -> Vec<Piece> {
    let piece = |extent: Extent| {
        let kind = if extent.is_hole { PieceKind::Hole } else { PieceKind::Content };
        Some(Piece { range: ByteRange::new(extent.offset, extent.len).ok()?, kind, run: None })
    };
    extents.into_iter().filter_map(piece).collect()
}

/// The pieces of a file of `bytes` bytes without holes that has this layout. Runs that do not follow the rules (in order, apart,
/// inside the file) are passed over, so that the pieces cover the file whatever a parser says.
pub fn by_layout(layout: &Layout, bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(2 * layout.runs.len() + 1);
    let mut end = 0;
    for (number, run) in layout.runs.iter().enumerate() {
        let fits = end <= run.range.offset() && run.range.end() <= bytes && !run.range.is_empty();
        let Some(number) = u32::try_from(number).ok().filter(|_| fits) else { continue };
        push_gap(&mut pieces, end, run.range.offset());
        let kind = match run.cut {
            Cut::Fixed => PieceKind::Fixed(segment_bytes(run)),
            Cut::Content => PieceKind::Content,
        };
        pieces.push(Piece { range: run.range, kind, run: Some(number) });
        end = run.range.end();
    }
    push_gap(&mut pieces, end, bytes);
    pieces
}

fn push_gap(pieces: &mut Vec<Piece>, from: u64, to: u64) {
    if let Some(range) = to.checked_sub(from).filter(|&len| len > 0).and_then(|len| ByteRange::new(from, len).ok()) {
        let kind = if range.len() <= HEADER_BYTES_MAX { PieceKind::Fixed(range.len()) } else { PieceKind::Content };
        pieces.push(Piece { range, kind, run: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::layout::{Container, Dtype};
    use proptest::prelude::*;

    fn run(offset: u64, len: u64, dtype: Option<Dtype>, cut: Cut) -> Run {
        Run { range: ByteRange::new(offset, len).expect("has an end"), key: String::new(), dtype, cut }
    }

    fn layout(runs: Vec<Run>) -> Layout {
        Layout { container: Container::Torch, tensors: vec![], runs, metadata: vec![], is_truncated: false }
    }

    #[test]
    fn segments_of_one_tensor_cover_the_same_elements_in_both_precisions() {
        let length = |dtype| segment_bytes(&run(0, 1, dtype, Cut::Fixed));
        assert_eq!(length(Some(Dtype::Bf16)) / 2, length(Some(Dtype::F32)) / 4);
        assert_eq!(length(Some(Dtype::I8)), 256 * KIB);
        for dtype in [None, Some(Dtype::C128), Some(Dtype::Blocks("Q4_0")), Some(Dtype::Other(u16::MAX))] {
            assert_eq!(length(dtype), MIB, "{dtype:?}");
        }
        assert_eq!(length(Some(Dtype::Other(0))), 256 * KIB);
    }

    #[test]
    fn headers_lie_between_runs_and_long_ones_are_cut_by_content() {
        let runs = vec![run(100, 50, Some(Dtype::F32), Cut::Fixed), run(200, 10, None, Cut::Content)];
        let pieces = by_layout(&layout(runs), 220 + 2 * MIB);
        let seen: Vec<_> = pieces.iter().map(|p| (p.range.offset(), p.kind, p.run)).collect();
        assert_eq!(
            seen,
            [
                (0, PieceKind::Fixed(100), None),
                (100, PieceKind::Fixed(MIB), Some(0)),
                (150, PieceKind::Fixed(50), None),
                (200, PieceKind::Content, Some(1)),
                (210, PieceKind::Content, None),
            ]
        );
    }

    proptest! {
        #[test]
        fn pieces_cover_the_file_whatever_the_layout_says(
            runs in proptest::collection::vec((0u64..5000, 0u64..3000, any::<bool>()), 0..20),
            bytes in 0u64..5000,
        ) {
            let cut = |fixed| if fixed { Cut::Fixed } else { Cut::Content };
            let runs = runs.into_iter().map(|(at, len, fixed)| run(at, len, None, cut(fixed))).collect();
            let mut end = 0;
            for piece in by_layout(&layout(runs), bytes) {
                prop_assert!(!piece.range.is_empty());
                prop_assert_eq!(piece.range.offset(), end);
                end = piece.range.end();
            }
            prop_assert_eq!(end, bytes);
        }
    }
}
