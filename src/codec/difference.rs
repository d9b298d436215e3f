//! Differences of words to their predictions: dealt out into classes, split into planes, each plane of each class stored
//! by itself, and the way back.
//!
//! How far a number moves depends on its size, and the reader knows the size of every prediction: words are sorted by it
//! into a few classes, each with codes of its own. Where many words are as predicted, a mask says which, and only the
//! others are stored.
//!
//! Reading is exact for any base or refuses the frame; its memory is a few times that of the longest frame.

use super::classes::{Classes, PIECE_BYTES, Places, UNCHANGED, classify, first_places};
use super::frame::FrameHeader;
use super::planes::{self, PLANES_MAX, PlaneLayout};
use super::runs::{RunReader, RunWriter, StoredRun, grow, mask_count};
use super::words::Prediction;
use crate::error::{Error, Result};

/// The most limits between classes in a frame.
pub(super) const LIMITS_MAX: usize = 15;

/// The bit of the phase byte that says that a mask tells changed words.
const MASKED: u8 = 1 << 4;

/// How words are coded against a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DifferencePlan {
    pub(super) prediction: Prediction,
    /// The magnitudes at which classes begin, ascending; as many as `limit_count`.
    pub(super) limits: [i16; LIMITS_MAX],
    pub(super) limit_count: usize,
    /// Whether a mask tells which words are not as predicted.
    pub(super) is_masked: bool,
}

impl DifferencePlan {
    /// A plan with a single class and no mask.
    pub(super) fn plain(prediction: Prediction) -> Self {
        DifferencePlan { prediction, limits: [0; LIMITS_MAX], limit_count: 0, is_masked: false }
    }

    /// The magnitudes at which classes begin.
    pub(super) fn limits(&self) -> &[i16] {
        &self.limits[..self.limit_count]
    }

    /// The element and phase bytes of a frame header.
    pub(super) fn codes(&self) -> (u8, u8) {
        (self.prediction.code(), self.limit_count as u8 | if self.is_masked { MASKED } else { 0 })
    }

    /// What the element and phase bytes say, without the limits.
    pub(super) fn from_codes(element: u8, phase: u8) -> Option<Self> {
        let prediction = Prediction::from_code(element)?;
        let mut plan = DifferencePlan::plain(prediction);
        plan.limit_count = usize::from(phase & 15);
        plan.is_masked = phase & MASKED != 0;
        let fits = phase < 32 && (plan.limit_count == 0 || prediction.is_float());
        fits.then_some(plan)
    }

    /// True if words are told apart, so that they stand in another order than in the raw bytes.
    fn is_sorted(&self) -> bool {
        self.is_masked || self.limit_count > 0
    }

    /// The layout of differences in planes.
    fn layout(&self) -> Result<PlaneLayout> {
        PlaneLayout::new(self.prediction.width_log2(), 0, 0)
            .ok_or_else(|| Error::damaged("words of an impossible width"))
    }

    /// Sets the classes of all words, from 1 on, unless there is but one; no mask is looked at.
    fn sort(&self, base: &[u8], classes: &mut [u8], mut each_piece: impl FnMut(usize, &[u8])) {
        let width = self.prediction.width();
        let mut memory = [0u8; PIECE_BYTES];
        let mut magnitudes = [0i16; PIECE_BYTES];
        let words = classes.len();
        let step = PIECE_BYTES / width;
        for first in (0..words).step_by(step) {
            let now = (words - first).min(step);
            let predicted = self.prediction.lend(base, first, &mut memory[..now * width]);
            if self.is_sorted() {
                let magnitudes = &mut magnitudes[..now];
                self.prediction.magnitudes(predicted, magnitudes);
                classify(UNCHANGED + 1, self.limits(), magnitudes, &mut classes[first..first + now]);
            }
            each_piece(first, predicted);
        }
    }
}

/// Reads differences; keeps its memory.
#[derive(Default)]
pub(super) struct DifferenceReader {
    planes: Vec<u8>,
    words: Vec<u8>,
    classes: Classes,
}

impl DifferenceReader {
    /// Decodes the payload and hands the raw bytes to `sink` piece by piece; ends early when `sink` returns false.
    /// Returns whether all pieces were taken.
    pub(super) fn read(
        &mut self,
        runs: &mut RunReader,
        header: &FrameHeader,
        payload: &[u8],
        base: &[u8],
        sink: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        let short = || Error::damaged("a frame of differences ends too early");
        let mut plan = DifferencePlan::from_codes(header.element, header.phase)
            .ok_or_else(|| Error::damaged(format!("a frame has impossible parameters: {header:?}")))?;
        let (raw_len, width) = (header.raw_len()?, plan.prediction.width());
        let words = raw_len / width;
        let (tail, rest) = payload.split_at_checked(raw_len % width).ok_or_else(short)?;
        let (limits, mut rest) = rest.split_at_checked(2 * plan.limit_count).ok_or_else(short)?;
        for (limit, &bytes) in plan.limits.iter_mut().zip(limits.as_chunks::<2>().0) {
            *limit = i16::from_le_bytes(bytes);
        }
        if plan.limits().iter().any(|limit| *limit < 0) {
            return Err(Error::damaged("a class begins where no magnitude can be"));
        }
        let merged = match plan.is_sorted() {
            false => self.read_in_order(runs, &plan, words, &mut rest, base, sink)?,
            true => self.read_sorted(runs, &plan, words, &mut rest, base, sink)?,
        };
        match rest.is_empty() {
            true => Ok(merged && sink(tail)),
            false => Err(Error::damaged(format!("a frame of differences has {} bytes too many", rest.len()))),
        }
    }

    fn read_in_order(
        &mut self,
        runs: &mut RunReader,
        plan: &DifferencePlan,
        words: usize,
        rest: &mut &[u8],
        base: &[u8],
        sink: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        let width = plan.prediction.width();
        let mut stored = [StoredRun::Constant(0); PLANES_MAX];
        for plane in &mut stored[..width] {
            *plane = StoredRun::read(rest, words)?;
        }
        let mut memory = [0u8; PIECE_BYTES];
        let mut restored = [0u8; PIECE_BYTES];
        if stored.iter().all(|plane| matches!(plane, StoredRun::Constant(0))) {
            let step = PIECE_BYTES / width;
            return Ok((0..words).step_by(step).all(|first| {
                let memory = &mut memory[..(words - first).min(step) * width];
                sink(plan.prediction.lend(base, first, memory))
            }));
        }
        let coded = stored[..width].iter().filter(|plane| !matches!(plane, StoredRun::Raw(_))).count();
        grow(&mut self.planes, coded * words);
        let mut planes: [&[u8]; PLANES_MAX] = [&[]; PLANES_MAX];
        let mut scratch = &mut self.planes[..];
        for (plane, stored) in planes.iter_mut().zip(&stored[..width]) {
            if let StoredRun::Raw(bytes) = stored {
                *plane = bytes;
                continue;
            }
            let (place, behind) = std::mem::take(&mut scratch).split_at_mut(words);
            scratch = behind;
            runs.fill(*stored, place)?;
            *plane = place;
        }
        let mut first = 0;
        Ok(planes::merge(plan.layout()?, &planes, words, &mut |differences| {
            differences.chunks(PIECE_BYTES).all(|differences| {
                let predicted = plan.prediction.lend(base, first, &mut memory[..differences.len()]);
                let restored = &mut restored[..differences.len()];
                plan.prediction.add(predicted, differences, restored);
                first += differences.len() / width;
                sink(restored)
            })
        }))
    }

    fn read_sorted(
        &mut self,
        runs: &mut RunReader,
        plan: &DifferencePlan,
        words: usize,
        rest: &mut &[u8],
        base: &[u8],
        sink: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        let width = plan.prediction.width();
        let classes = self.classes.begin(width, words);
        plan.sort(base, classes, |_, _| {});
        if plan.is_masked {
            self.planes = read_mask(runs, std::mem::take(&mut self.planes), rest, classes)?;
        }
        let counts = self.classes.count().map(|count| count as usize);
        let stored: usize = counts[1..].iter().sum();
        grow(&mut self.planes, stored * width);
        let mut done = 0;
        for &count in counts[1..].iter().filter(|count| **count > 0) {
            for plane in 0..width {
                let run = StoredRun::read(rest, count)?;
                runs.fill(run, &mut self.planes[plane * stored + done..][..count])?;
            }
            done += count;
        }
        grow(&mut self.words, (stored + 1) * width);
        self.words[..width].fill(0);
        let mut planes: [&[u8]; PLANES_MAX] = [&[]; PLANES_MAX];
        for (plane, bytes) in planes.iter_mut().zip(self.planes.chunks_exact(stored.max(1))).take(width) {
            *plane = bytes;
        }
        let mut at = width;
        planes::merge(plan.layout()?, &planes, stored, &mut |piece| {
            self.words[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            true
        });
        let totals = counts.map(|count| count as u32);
        Ok(self.gather(plan, &totals, words, base, sink))
    }

    /// Puts the words back in order, and adds their predictions.
    fn gather(
        &self,
        plan: &DifferencePlan,
        totals: &Places,
        words: usize,
        base: &[u8],
        sink: &mut impl FnMut(&[u8]) -> bool,
    ) -> bool {
        let width = plan.prediction.width();
        let mut places = first_places(totals);
        let mut memory = [0u8; PIECE_BYTES];
        let mut differences = [0u8; PIECE_BYTES];
        let mut restored = [0u8; PIECE_BYTES];
        (0..words).step_by(PIECE_BYTES / width).enumerate().all(|(piece, first)| {
            let len = ((words - first) * width).min(PIECE_BYTES);
            let (differences, restored) = (&mut differences[..len], &mut restored[..len]);
            match width {
                1 => self.classes.gather::<1>(&self.words, piece, &mut places, differences),
                2 => self.classes.gather::<2>(&self.words, piece, &mut places, differences),
                4 => self.classes.gather::<4>(&self.words, piece, &mut places, differences),
                _ => self.classes.gather::<8>(&self.words, piece, &mut places, differences),
            }
            let predicted = plan.prediction.lend(base, first, &mut memory[..len]);
            plan.prediction.add(predicted, differences, restored);
            sink(restored)
        })
    }
}

/// Reads the mask of changed words and applies it to `classes`; returns the memory that it lay in.
fn read_mask(runs: &mut RunReader, mut mask: Vec<u8>, rest: &mut &[u8], classes: &mut [u8]) -> Result<Vec<u8>> {
    let len = classes.len().div_ceil(8);
    grow(&mut mask, len);
    let run = StoredRun::read(rest, len)?;
    runs.fill(run, &mut mask[..len])?;
    mask_count(&mask[..len], classes.len())?;
    for (bits, classes) in mask.iter().zip(classes.chunks_mut(8)) {
        for (j, class) in classes.iter_mut().enumerate() {
            *class *= bits >> j & 1;
        }
    }
    Ok(mask)
}

/// Writes differences; keeps its memory.
#[derive(Default)]
pub(super) struct DifferenceWriter {
    differences: Vec<u8>,
    dealt: Vec<u8>,
    classes: Classes,
    mask: Vec<u8>,
}

impl DifferenceWriter {
    /// Appends the payload of `raw` against `base`.
    pub(super) fn append(
        &mut self,
        runs: &mut RunWriter,
        plan: &DifferencePlan,
        raw: &[u8],
        base: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (prediction, width) = (plan.prediction, plan.prediction.width());
        let words = raw.len() / width;
        out.extend_from_slice(&raw[words * width..]);
        plan.limits().iter().for_each(|limit| out.extend_from_slice(&limit.to_le_bytes()));
        let classes = self.classes.begin(width, words);
        grow(&mut self.differences, words * width);
        let differences = &mut self.differences[..words * width];
        plan.sort(base, classes, |first, predicted| {
            let range = first * width..first * width + predicted.len();
            prediction.subtract(predicted, &raw[range.clone()], &mut differences[range]);
        });
        let mut counts = [0; 32];
        counts[1] = words;
        if plan.is_sorted() {
            if plan.is_masked {
                mask_unchanged(width, differences, classes, &mut self.mask);
                runs.append_mask(&self.mask, out)?;
            }
            let totals = self.classes.count();
            counts = totals.map(|count| count as usize);
            grow(&mut self.dealt, (words + 1) * width);
            match width {
                1 => self.classes.deal::<1>(differences, &totals, &mut self.dealt),
                2 => self.classes.deal::<2>(differences, &totals, &mut self.dealt),
                4 => self.classes.deal::<4>(differences, &totals, &mut self.dealt),
                _ => self.classes.deal::<8>(differences, &totals, &mut self.dealt),
            }
        }
        let stored: usize = counts[1..].iter().sum();
        let words = match plan.is_sorted() {
            true => &self.dealt[width..(stored + 1) * width],
            false => &self.differences[..stored * width],
        };
        let mut planes = std::mem::take(&mut self.mask);
        grow(&mut planes, stored * width);
        planes::split(plan.layout()?, words, &mut planes);
        let mut done = 0;
        // Empty words have planes, empty classes none.
        for &count in
            counts[1..].iter().filter(|count| **count > 0 || !plan.is_sorted()).take(1.max(plan.limit_count + 1))
        {
            for plane in 0..width {
                runs.append_sampled(&planes[plane * stored + done..][..count], out)?;
            }
            done += count;
        }
        self.mask = planes;
        Ok(())
    }
}

/// Puts the words whose difference is zero into the class of unchanged ones, and notes them in `mask`.
fn mask_unchanged(width: usize, differences: &[u8], classes: &mut [u8], mask: &mut Vec<u8>) {
    mask.clear();
    for (classes, words) in classes.chunks_mut(8).zip(differences.chunks(8 * width)) {
        let mut bits = 0;
        for (j, (class, word)) in classes.iter_mut().zip(words.chunks_exact(width)).enumerate() {
            let is_changed = u8::from(word.iter().any(|byte| *byte != 0));
            *class *= is_changed;
            bits |= is_changed << j;
        }
        mask.push(bits);
    }
}
