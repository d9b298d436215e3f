//! Palettes: a table of the few words that occur, and for each place which of them stands there.
//!
//! Numbers that were quantised and widened again take few values, which planes do not see. Exact for any words, as long
//! as they are few; a reader refuses indices outside the table.

use super::frame::FrameHeader;
use super::runs::{RunReader, RunWriter, StoredRun, grow};
use super::sample::entropy_bits;
use crate::error::{Error, Result};

/// The most different words.
pub(super) const WORDS_MAX: usize = 256;

/// Slots of the table that finds a word's index: few words collide.
const SLOTS: usize = 4096;

/// Bits of an index into `count` words: 1, 2, 4 or 8.
fn index_bits(count: usize) -> usize {
    match count {
        0..=2 => 1,
        3..=4 => 2,
        5..=16 => 4,
        _ => 8,
    }
}

/// Finds the index of a word; reused between frames.
pub(super) struct Palette {
    /// Where the index of a word stands that hashes to here; 0 is free, otherwise one more than the index.
    slots: Box<[u16; SLOTS]>,
    words: Vec<u64>,
    indices: Vec<u8>,
}

impl Palette {
    pub(super) fn new() -> Self {
        Palette { slots: Box::new([0; SLOTS]), words: Vec::with_capacity(WORDS_MAX), indices: Vec::new() }
    }

    /// Learns the different words of `body`; false if they are none, too many, or not of 2 or 4 bytes.
    pub(super) fn learn(&mut self, width: usize, body: &[u8]) -> bool {
        self.slots.fill(0);
        self.words.clear();
        self.indices.clear();
        match width {
            2 => self.learn_words(body.as_chunks::<2>().0.iter().map(|&bytes| u64::from(u16::from_le_bytes(bytes)))),
            4 => self.learn_words(body.as_chunks::<4>().0.iter().map(|&bytes| u64::from(u32::from_le_bytes(bytes)))),
            _ => false,
        }
    }

    fn learn_words(&mut self, words: impl ExactSizeIterator<Item = u64>) -> bool {
        self.indices.reserve(words.len());
        for word in words {
            let mut slot = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % SLOTS;
            let index = loop {
                match self.slots[slot] {
                    0 if self.words.len() == WORDS_MAX => return false,
                    0 => {
                        self.words.push(word);
                        self.slots[slot] = self.words.len() as u16;
                        break self.words.len() - 1;
                    }
                    taken if self.words[usize::from(taken) - 1] == word => break usize::from(taken) - 1,
                    _ => slot = (slot + 1) % SLOTS,
                }
            };
            self.indices.push(index as u8);
        }
        !self.words.is_empty()
    }

    /// Bits per byte that what was learnt would take, the table aside.
    pub(super) fn bits(&self, width: usize) -> f32 {
        let mut histogram = [0; 256];
        self.indices.iter().for_each(|index| histogram[usize::from(*index)] += 1);
        entropy_bits(&histogram) / width as f32
    }

    /// Appends the payload of what was learnt, the bytes before and behind the words included.
    pub(super) fn append(
        &mut self,
        runs: &mut RunWriter,
        width: usize,
        [head, tail]: [&[u8]; 2],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        out.push((self.words.len().max(1) - 1) as u8);
        // Ascending, so that neighbours in value are neighbours in index.
        let mut order: Vec<usize> = (0..self.words.len()).collect();
        order.sort_unstable_by_key(|&index| self.words[index]);
        let mut ranks = [0u8; WORDS_MAX];
        for (rank, &index) in order.iter().enumerate() {
            ranks[index] = rank as u8;
            out.extend_from_slice(&self.words[index].to_le_bytes()[..width]);
        }
        for index in &mut self.indices {
            *index = ranks[usize::from(*index)];
        }
        let bits = index_bits(self.words.len());
        if bits < 8 {
            let packed = self.indices.len().div_ceil(8 / bits);
            for at in 0..packed {
                let from = at * (8 / bits);
                let to = self.indices.len().min(from + 8 / bits);
                let byte = self.indices[from..to].iter().rev().fold(0, |byte, index| byte << bits | index);
                self.indices[at] = byte;
            }
            self.indices.truncate(packed);
        }
        runs.append_sampled(&self.indices, out)
    }
}

/// Decodes the payload of a palette and hands the raw bytes to `sink` piece by piece; ends early when it returns false.
/// Returns whether all pieces were taken. `scratch` is memory to reuse.
pub(super) fn read(
    runs: &mut RunReader,
    header: &FrameHeader,
    payload: &[u8],
    scratch: &mut Vec<u8>,
    sink: &mut impl FnMut(&[u8]) -> bool,
) -> Result<bool> {
    let short = || Error::damaged("a frame with a palette ends too early");
    let (layout, raw_len) = (header.layout()?, header.raw_len()?);
    let width = layout.width();
    let words = layout.words(raw_len).ok_or_else(short)?;
    let (head, rest) = payload.split_at_checked(layout.phase()).ok_or_else(short)?;
    let (tail, rest) = rest.split_at_checked(raw_len - layout.phase() - words * width).ok_or_else(short)?;
    let (&last, rest) = rest.split_first().ok_or_else(short)?;
    let count = usize::from(last) + 1;
    let (table, mut rest) = rest.split_at_checked(count * width).ok_or_else(short)?;
    let bits = index_bits(count);
    let len = words.div_ceil(8 / bits);
    let run = StoredRun::read(&mut rest, len)?;
    if !rest.is_empty() {
        return Err(Error::damaged("a frame with a palette is too long"));
    }
    grow(scratch, len);
    let indices = &mut scratch[..len];
    runs.fill(run, indices)?;
    if !sink(head) {
        return Ok(false);
    }
    let taken = match width {
        1 => look_up::<1>(table, bits, indices, words, sink)?,
        2 => look_up::<2>(table, bits, indices, words, sink)?,
        4 => look_up::<4>(table, bits, indices, words, sink)?,
        _ => look_up::<8>(table, bits, indices, words, sink)?,
    };
    Ok(taken && sink(tail))
}

/// Words that are looked up at once.
const PIECE_WORDS: usize = 1024;

/// Hands the words that `packed` indices of `bits` bits name in `table` to `sink`.
fn look_up<const WIDTH: usize>(
    table: &[u8],
    bits: usize,
    packed: &[u8],
    words: usize,
    sink: &mut impl FnMut(&[u8]) -> bool,
) -> Result<bool> {
    let known = table.as_chunks::<WIDTH>().0;
    let mut table = [[0; WIDTH]; WORDS_MAX];
    for (to, from) in table.iter_mut().zip(known) {
        *to = *from;
    }
    let mut indices = [0u8; PIECE_WORDS];
    let mut piece = [[0; WIDTH]; PIECE_WORDS];
    for (first, packed) in (0..words).step_by(PIECE_WORDS).zip(packed.chunks(PIECE_WORDS * bits / 8)) {
        let now = (words - first).min(PIECE_WORDS);
        unpack(bits, packed, &mut indices);
        let indices = &indices[..now];
        if indices.iter().any(|index| usize::from(*index) >= known.len()) {
            return Err(Error::damaged("an index lies outside its palette"));
        }
        for (word, &index) in piece.iter_mut().zip(indices) {
            *word = table[usize::from(index)];
        }
        if !sink(piece[..now].as_flattened()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes indices of `bits` bits out of bytes, lowest bits first.
#[inline(never)]
fn unpack(bits: usize, packed: &[u8], indices: &mut [u8; PIECE_WORDS]) {
    match bits {
        1 => {
            for (byte, indices) in packed.iter().zip(indices.as_chunks_mut::<8>().0) {
                *indices = std::array::from_fn(|j| byte >> j & 1);
            }
        }
        2 => {
            for (byte, indices) in packed.iter().zip(indices.as_chunks_mut::<4>().0) {
                *indices = std::array::from_fn(|j| byte >> (2 * j) & 3);
            }
        }
        4 => {
            for (byte, indices) in packed.iter().zip(indices.as_chunks_mut::<2>().0) {
                *indices = [byte & 15, byte >> 4];
            }
        }
        _ => indices[..packed.len()].copy_from_slice(packed),
    }
}
