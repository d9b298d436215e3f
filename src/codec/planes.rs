//! Byte planes of numbers: rotate each word, then gather the bytes of equal weight, and the way back.
//!
//! In a run of floats the byte with the exponent repeats itself and the others look random. Rotation moves the sign
//! (and, for 64-bit floats, the idle top of the exponent) to the low end, so that the exponent fills one byte.
//! Gathering makes that byte a plane of its own, which order-0 coding then shrinks.
//!
//! Both directions are exact for any bytes. Nothing is coded here, and no layout is chosen.

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

    /// The element byte of a frame header (the logarithm of the width below, the rotation above) and the phase byte.
    pub(super) fn codes(self) -> (u8, u8) {
        (self.rotation << 4 | self.width_log2, self.phase)
    }

    /// Logarithm to base 2 of the bytes of one word.
    pub(super) fn width_log2(self) -> u8 {
        self.width_log2
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
///
/// Rotates, then halves into even and odd bytes once for each doubling of the width: passes over a piece in the
/// innermost cache, each of which the compiler turns into shuffles, where picking every eighth byte would be scalar.
pub(super) fn split(layout: PlaneLayout, body: &[u8], planes: &mut [u8]) {
    let width = layout.width();
    if width == 1 || body.is_empty() {
        planes[..body.len()].copy_from_slice(body);
        return;
    }
    let words = body.len() / width;
    let mut parts = planes.chunks_exact_mut(words);
    let mut parts: [&mut [u8]; PLANES_MAX] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let (mut piece, mut spare) = ([0u8; PIECE_BYTES], [0u8; PIECE_BYTES]);
    let mut done = 0;
    for raw in body.chunks(PIECE_BYTES) {
        let (mut from, mut to) = (&mut piece[..raw.len()], &mut spare[..raw.len()]);
        from.copy_from_slice(raw);
        rotate_left(width, layout.rotation(), from);
        // Stream k of `streams` holds the bytes of weight k modulo `streams`; the last halving writes the planes.
        let mut streams = 1;
        while 2 * streams < width {
            let len = raw.len() / streams;
            let (low, high) = to.split_at_mut(raw.len() / 2);
            for k in 0..streams {
                let half = k * len / 2..(k + 1) * len / 2;
                deinterleave(&from[k * len..(k + 1) * len], &mut low[half.clone()], &mut high[half]);
            }
            std::mem::swap(&mut from, &mut to);
            streams *= 2;
        }
        let len = raw.len() / streams;
        let place = done..done + len / 2;
        let (low, high) = parts.split_at_mut(streams);
        for k in 0..streams {
            let stream = &from[k * len..(k + 1) * len];
            deinterleave(stream, &mut low[k][place.clone()], &mut high[k][place.clone()]);
        }
        done = place.end;
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
    let width = layout.width();
    if width == 1 {
        return sink(&planes[0][..words]);
    }
    let (mut piece, mut spare) = ([0u8; PIECE_BYTES], [0u8; PIECE_BYTES]);
    for start in (0..words).step_by(PIECE_BYTES / width) {
        let now = (words - start).min(PIECE_BYTES / width);
        let (mut from, mut to) = (&mut spare[..now * width], &mut piece[..now * width]);
        // The halvings of `split`, backwards: streams k and k + streams / 2 become stream k of half as many.
        let mut streams = width / 2;
        for (k, stream) in to.chunks_exact_mut(2 * now).enumerate() {
            interleave(&planes[k][start..start + now], &planes[k + streams][start..start + now], stream);
        }
        while streams > 1 {
            std::mem::swap(&mut from, &mut to);
            let (low, high) = from.split_at(now * width / 2);
            let len = now * width / streams;
            let (lows, highs) = (low.chunks_exact(len), high.chunks_exact(len));
            for ((low, high), stream) in lows.zip(highs).zip(to.chunks_exact_mut(2 * len)) {
                interleave(low, high, stream);
            }
            streams /= 2;
        }
        rotate_right(width, layout.rotation(), to);
        if !sink(to) {
            return false;
        }
    }
    true
}

/// Bytes taken apart or put together at once: small enough for the innermost cache, twice.
const PIECE_BYTES: usize = 8 << 10;

/// Bytes of each half that the compiler sees at once: what one shuffle of the narrowest registers yields.
const LANES: usize = 16;

// The loops below are functions of their own, never inlined: only as arguments does the compiler know that the slices
// do not overlap, and vectorises.

/// The even bytes of `from` into `low`, the odd ones into `high`; each holds half as many.
#[inline(never)]
fn deinterleave(from: &[u8], low: &mut [u8], high: &mut [u8]) {
    let (pairs, _) = from.as_chunks::<2>();
    let (blocks, pairs) = pairs.as_chunks::<LANES>();
    let (lows, low) = low.as_chunks_mut::<LANES>();
    let (highs, high) = high.as_chunks_mut::<LANES>();
    for ((pairs, low), high) in blocks.iter().zip(lows).zip(highs) {
        // Words of 16 bits first: narrowing them is one instruction, picking bytes is sixteen.
        let mut words = [0u16; LANES];
        for (word, &pair) in words.iter_mut().zip(pairs) {
            *word = u16::from_le_bytes(pair);
        }
        for (byte, word) in low.iter_mut().zip(words) {
            *byte = word as u8;
        }
        for (byte, word) in high.iter_mut().zip(words) {
            *byte = (word >> 8) as u8;
        }
    }
    for ((&[even, odd], low), high) in pairs.iter().zip(low).zip(high) {
        (*low, *high) = (even, odd);
    }
}

/// `low` and `high` in turn into `to`, which holds both.
#[inline(never)]
fn interleave(low: &[u8], high: &[u8], to: &mut [u8]) {
    let (pairs, _) = to.as_chunks_mut::<2>();
    for ((pair, &low), &high) in pairs.iter_mut().zip(low).zip(high) {
        *pair = [low, high];
    }
}

/// Rotates every word of `width` bytes by fewer bits than it has.
#[inline(never)]
fn rotate_left(width: usize, bits: u32, bytes: &mut [u8]) {
    match (width, bits) {
        (_, 0) | (1, _) => {}
        // The rotations that are met, there and back, as constants: shifts by a variable are many times slower.
        (2, 1) => rotate_words_16(1, bytes),
        (2, 15) => rotate_words_16(15, bytes),
        (2, _) => rotate_words_16(bits, bytes),
        (4, 1) => rotate_words_32(1, bytes),
        (4, 31) => rotate_words_32(31, bytes),
        (4, _) => rotate_words_32(bits, bytes),
        (_, 1) => rotate_words_64(1, bytes),
        (_, 4) => rotate_words_64(4, bytes),
        (_, 60) => rotate_words_64(60, bytes),
        (_, 63) => rotate_words_64(63, bytes),
        _ => rotate_words_64(bits, bytes),
    }
}

#[inline(always)]
fn rotate_words_16(bits: u32, bytes: &mut [u8]) {
    for word in bytes.as_chunks_mut::<2>().0 {
        *word = u16::from_le_bytes(*word).rotate_left(bits).to_le_bytes();
    }
}

#[inline(always)]
fn rotate_words_32(bits: u32, bytes: &mut [u8]) {
    for word in bytes.as_chunks_mut::<4>().0 {
        *word = u32::from_le_bytes(*word).rotate_left(bits).to_le_bytes();
    }
}

#[inline(always)]
fn rotate_words_64(bits: u32, bytes: &mut [u8]) {
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = u64::from_le_bytes(*word).rotate_left(bits).to_le_bytes();
    }
}

/// The inverse of [`rotate_left`]: the rest of the way around.
fn rotate_right(width: usize, bits: u32, bytes: &mut [u8]) {
    let around = 8 * width as u32;
    rotate_left(width, (around - bits) % around, bytes);
}

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
            let sizes = (0..4).chain(around(LANES)).chain(around(2 * LANES)).chain(around(piece));
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
            let (element, phase) = layout.codes();
            assert_eq!(PlaneLayout::from_codes(element, phase), Some(layout));
        }
        for (width_log2, rotation, phase) in [(4, 0, 0), (0, 1, 0), (1, 0, 2), (3, 0, 8), (0, 0, 1)] {
            assert_eq!(PlaneLayout::new(width_log2, rotation, phase), None);
        }
        assert_eq!(PlaneLayout::new(3, 4, 5).and_then(|layout| layout.words(4)), None);
    }
}
