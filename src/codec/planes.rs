//! Byte planes of numbers: rotate each word, then gather the bytes of equal weight, and the way back.
//!
//! In a run of floats the byte with the exponent repeats itself and the others look random. Rotation moves the sign
//! (and, for 64-bit floats, the idle top of the exponent) to the low end, so that the exponent fills one byte.
//! Gathering makes that byte a plane of its own, which order-0 coding then shrinks.
//!
//! Both directions are exact for any bytes. Nothing is coded here, and no layout is chosen.

use std::ops::{BitOr, BitOrAssign};

/// The most planes a layout can have: the widest word in bytes.
pub(super) const PLANES_MAX: usize = 8;

/// How raw bytes are taken apart: `phase` single bytes, then whole words, then what is left of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlaneLayout {
    width_log2: u8,
    rotation: u8,
    phase: u8,
}

impl PlaneLayout {
    /// The layout of words of `1 << width_log2` bytes rotated left by `rotation` bits, the first at byte `phase`;
    /// `None` unless `width_log2 <= 3`, `rotation` is below 16 and below the bits of a word, and `phase` below its bytes.
    pub(super) fn new(width_log2: u8, rotation: u8, phase: u8) -> Option<Self> {
        let fits = width_log2 <= 3 && rotation < 16 && rotation < 8 << width_log2 && phase < 1 << width_log2;
        // A single byte has no exponent to move, and one plane needs one spelling only.
        let plain = width_log2 > 0 || rotation == 0;
        (fits && plain).then_some(PlaneLayout { width_log2, rotation, phase })
    }

    /// The layout that an element byte and a phase byte of a frame header spell.
    pub(super) fn from_codes(element: u8, phase: u8) -> Option<Self> {
        PlaneLayout::new(element & 0x0f, element >> 4, phase)
    }

    /// The element byte of a frame header: the logarithm of the width below, the rotation above.
    pub(super) fn element_code(self) -> u8 {
        self.rotation << 4 | self.width_log2
    }

    /// The phase byte of a frame header.
    pub(super) fn phase_code(self) -> u8 {
        self.phase
    }

    /// Bytes of one word, and so the number of planes: 1, 2, 4 or 8.
    pub(super) fn width(self) -> usize {
        1 << self.width_log2
    }

    /// Bits by which a word is rotated left before it is taken apart.
    pub(super) fn rotation(self) -> u32 {
        u32::from(self.rotation)
    }

    /// Bytes before the first whole word.
    pub(super) fn phase(self) -> usize {
        usize::from(self.phase)
    }

    /// Whole words in `raw_len` bytes, which is the length of each plane; `None` if not even the phase fits.
    pub(super) fn words(self, raw_len: usize) -> Option<usize> {
        Some(raw_len.checked_sub(self.phase())? / self.width())
    }
}

/// Takes the whole words of `body` apart: plane `k`, the bytes of weight `256^k`, becomes
/// `planes[k * words..(k + 1) * words]`. `body` is a multiple of the word's width, `planes` at least as long.
pub(super) fn split(layout: PlaneLayout, body: &[u8], planes: &mut [u8]) {
    let planes = &mut planes[..body.len()];
    match (layout.width(), layout.rotation()) {
        (1, _) => planes.copy_from_slice(body),
        // The usual rotations are constants to the compiler: shifts by a constant vectorise best.
        (2, 0) => split_words::<u16, 2>(body, 0, planes),
        (2, 1) => split_words::<u16, 2>(body, 1, planes),
        (2, bits) => split_words::<u16, 2>(body, bits, planes),
        (4, 0) => split_words::<u32, 4>(body, 0, planes),
        (4, 1) => split_words::<u32, 4>(body, 1, planes),
        (4, bits) => split_words::<u32, 4>(body, bits, planes),
        (_, bits) => split_words::<u64, 8>(body, bits, planes),
    }
}

/// Puts words together again from `planes` (as many as the layout has, each of `words` bytes) and hands the bytes to
/// `sink` piece by piece, in order; ends early when `sink` returns false. Returns whether all pieces were taken.
pub(super) fn merge(
    layout: PlaneLayout,
    planes: &[&[u8]; PLANES_MAX],
    words: usize,
    sink: &mut impl FnMut(&[u8]) -> bool,
) -> bool {
    match (layout.width(), layout.rotation()) {
        (1, _) => sink(&planes[0][..words]),
        (2, 0) => merge_words::<u16, 2>(planes, words, 0, sink),
        (2, 1) => merge_words::<u16, 2>(planes, words, 1, sink),
        (2, bits) => merge_words::<u16, 2>(planes, words, bits, sink),
        (4, 0) => merge_words::<u32, 4>(planes, words, 0, sink),
        (4, 1) => merge_words::<u32, 4>(planes, words, 1, sink),
        (4, bits) => merge_words::<u32, 4>(planes, words, bits, sink),
        (_, bits) => merge_words::<u64, 8>(planes, words, bits, sink),
    }
}

/// Words handled at once: enough for the widest registers, few enough to stay in them.
const BLOCK_WORDS: usize = 32;

/// Bytes put together before they are handed on: small enough for the innermost cache.
const PIECE_BYTES: usize = 8 << 10;

#[inline(always)]
fn split_words<W: Word<N>, const N: usize>(body: &[u8], rotation: u32, planes: &mut [u8]) {
    let (elements, _) = body.as_chunks::<N>();
    let count = elements.len();
    let (blocks, rest) = elements.as_chunks::<BLOCK_WORDS>();
    for (block, elements) in blocks.iter().enumerate() {
        let words = elements.map(|bytes| W::from_le(bytes).rotated_left(rotation));
        for k in 0..N {
            let start = k * count + block * BLOCK_WORDS;
            for (byte, word) in planes[start..start + BLOCK_WORDS].iter_mut().zip(words) {
                *byte = word.byte(k);
            }
        }
    }
    let done = blocks.len() * BLOCK_WORDS;
    for (index, &bytes) in rest.iter().enumerate() {
        let word = W::from_le(bytes).rotated_left(rotation);
        for k in 0..N {
            planes[k * count + done + index] = word.byte(k);
        }
    }
}

#[inline(always)]
fn merge_words<W: Word<N>, const N: usize>(
    planes: &[&[u8]; PLANES_MAX],
    count: usize,
    rotation: u32,
    sink: &mut impl FnMut(&[u8]) -> bool,
) -> bool {
    let mut piece = [0u8; PIECE_BYTES];
    let mut done = 0;
    while done < count {
        let now = (count - done).min(PIECE_BYTES / N);
        let (elements, _) = piece[..now * N].as_chunks_mut::<N>();
        let (blocks, rest) = elements.as_chunks_mut::<BLOCK_WORDS>();
        let mut at = done;
        for elements in blocks {
            let mut words = [W::from_byte(0, 0); BLOCK_WORDS];
            for k in 0..N {
                for (word, &byte) in words.iter_mut().zip(&planes[k][at..at + BLOCK_WORDS]) {
                    *word |= W::from_byte(byte, k);
                }
            }
            for (element, word) in elements.iter_mut().zip(words) {
                *element = word.rotated_right(rotation).to_le();
            }
            at += BLOCK_WORDS;
        }
        for element in rest {
            let word = (0..N).fold(W::from_byte(0, 0), |word, k| word | W::from_byte(planes[k][at], k));
            *element = word.rotated_right(rotation).to_le();
            at += 1;
        }
        if !sink(&piece[..now * N]) {
            return false;
        }
        done += now;
    }
    true
}

/// A word of `N` bytes.
trait Word<const N: usize>: Copy + BitOr<Output = Self> + BitOrAssign {
    fn from_le(bytes: [u8; N]) -> Self;
    fn to_le(self) -> [u8; N];
    fn rotated_left(self, bits: u32) -> Self;
    fn rotated_right(self, bits: u32) -> Self;
    /// The byte of weight `256^k`.
    fn byte(self, k: usize) -> u8;
    /// `byte` at weight `256^k`.
    fn from_byte(byte: u8, k: usize) -> Self;
}

macro_rules! word {
    ($type:ty, $bytes:literal) => {
        impl Word<$bytes> for $type {
            #[inline(always)]
            fn from_le(bytes: [u8; $bytes]) -> Self {
                <$type>::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn to_le(self) -> [u8; $bytes] {
                self.to_le_bytes()
            }
            #[inline(always)]
            fn rotated_left(self, bits: u32) -> Self {
                self.rotate_left(bits)
            }
            #[inline(always)]
            fn rotated_right(self, bits: u32) -> Self {
                self.rotate_right(bits)
            }
            #[inline(always)]
            fn byte(self, k: usize) -> u8 {
                (self >> (8 * k)) as u8
            }
            #[inline(always)]
            fn from_byte(byte: u8, k: usize) -> Self {
                <$type>::from(byte) << (8 * k)
            }
        }
    };
}
word!(u16, 2);
word!(u32, 4);
word!(u64, 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::synthetic;

    /// The definition, bit by bit: bit `i` of a word moves to bit `(i + rotation) % bits`.
    fn reference_split(layout: PlaneLayout, body: &[u8]) -> Vec<u8> {
        let width = layout.width();
        let words = body.len() / width;
        let mut planes = vec![0u8; body.len()];
        for word in 0..words {
            for from in 0..8 * width {
                let bit = body[word * width + from / 8] >> (from % 8) & 1;
                let to = (from + layout.rotation() as usize) % (8 * width);
                planes[to / 8 * words + word] |= bit << (to % 8);
            }
        }
        planes
    }

    fn layouts() -> impl Iterator<Item = PlaneLayout> {
        (0..4).flat_map(|width| (0..16).filter_map(move |rotation| PlaneLayout::new(width, rotation, 0)))
    }

    #[test]
    fn split_is_the_reference_and_merge_its_inverse() {
        for layout in layouts() {
            let piece = PIECE_BYTES / layout.width();
            let around = |n: usize| [n - 1, n, n + 1];
            let sizes = (0..4).chain(around(BLOCK_WORDS)).chain(around(2 * BLOCK_WORDS)).chain(around(piece));
            for words in sizes {
                let body = synthetic::random(7 + words as u64, words * layout.width());
                let mut planes = vec![0u8; body.len()];
                split(layout, &body, &mut planes);
                assert_eq!(planes, reference_split(layout, &body), "{layout:?}, {words} words");

                let mut parts: [&[u8]; PLANES_MAX] = [&[]; PLANES_MAX];
                for (k, part) in parts.iter_mut().enumerate().take(layout.width()) {
                    *part = &planes[k * words..(k + 1) * words];
                }
                let mut merged = Vec::new();
                assert!(merge(layout, &parts, words, &mut |piece| {
                    merged.extend_from_slice(piece);
                    true
                }));
                assert_eq!(merged, body, "{layout:?}, {words} words");
            }
        }
    }

    #[test]
    fn a_layout_survives_its_codes_and_others_are_refused() {
        for layout in layouts() {
            assert_eq!(PlaneLayout::from_codes(layout.element_code(), layout.phase_code()), Some(layout));
        }
        for (width_log2, rotation, phase) in [(4, 0, 0), (0, 1, 0), (1, 0, 2), (3, 0, 8), (0, 0, 1)] {
            assert_eq!(PlaneLayout::new(width_log2, rotation, phase), None);
        }
        assert_eq!(PlaneLayout::new(3, 4, 5).and_then(|layout| layout.words(4)), None);
    }
}
