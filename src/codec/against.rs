//! The choice between a frame that stands alone and one that needs a base.
//!
//! A base is used only for a clear gain: a sample of the words and their predictions says what a difference would cost,
//! and the frame that comes out has to keep that promise. Whatever is chosen has been decoded and compared.

use super::base::{Base, Relation};
use super::difference::{DifferencePlan, LIMITS_MAX};
use super::encoder::{Compression, Encoded, Encoder, expect_fits};
use super::entropy;
use super::frame::{BASE_CHUNKS_MAX, Codec, FRAME_HEADER_BYTES, FrameHeader};
use super::sample::{Repeats, Verdict, entropy_bits};
use super::words::{Kind, Prediction};
use crate::error::Result;

/// The share of what the bytes cost alone that they may cost with a base. What is saved has to pay for reading the base.
const WORTH_SHARE: f64 = 0.97;

/// The level of zstd against a prefix, if none is asked for.
const LEVEL_PREFIX: i32 = 3;

/// Words of a sample, which lie in windows spread over the whole.
const SAMPLE_WORDS: usize = 2048;
const WINDOW_WORDS: usize = 128;

/// Words that a class is given at least: each has tables of its own.
const CLASS_WORDS_MIN: usize = 16 << 10;

/// The most classes: more cost more tables than they save.
const CLASSES_MAX: usize = 8;

/// The share of words that are as predicted from which a mask tells them.
const MASK_SHARE: f32 = 0.9;

impl Encoder {
    /// As [`Encoder::encode`], but against `base` if that makes the frame clearly smaller, and not longer than the base allows.
    pub fn encode_against(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Encoded> {
        expect_fits(raw)?;
        let start = out.len();
        if self.compression != Compression::Off && (1..=BASE_CHUNKS_MAX).contains(&base.chunks) && !raw.is_empty() {
            let appended = match base.relation {
                Relation::Text => self.append_prefix(raw, base, out),
                _ => self.append_difference(raw, base, out),
            };
            if let Ok(Some(codec)) = appended
                && self.holds(&out[start..], base.content, raw)
            {
                return Ok(Encoded { codec, needs_base: true });
            }
            out.truncate(start);
        }
        Ok(Encoded { codec: self.encode(raw, out)?, needs_base: false })
    }

    /// Appends the difference, or what may be anything if it is not worth its base: then the answer is `None`.
    fn append_difference(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Option<Codec>> {
        let Some((plan, difference_bits)) = predictions(base.relation)
            .into_iter()
            .flatten()
            .map(|prediction| measured(prediction, raw, base.content))
            .reduce(|best, next| if next.1 < best.1 { next } else { best })
        else {
            return Ok(None);
        };
        let Verdict { planes, repeats } = self.sampler.judge(raw);
        let alone_bits = planes.map_or(8.0, |plan| plan.bits.min(8.0));
        // Classes take a little more off than the sample shows.
        if difference_bits > 1.02 * alone_bits {
            return Ok(None);
        }
        let start = out.len();
        FrameHeader::write(Codec::Difference, plan.codes(), base.chunks, raw.len(), out);
        self.difference.append(&mut self.runs, &plan, raw, base.content, out)?;
        let stored = out.len() - start;
        let mut alone = f64::from(alone_bits) / 8.0 * raw.len() as f64;
        if (repeats != Repeats::Unlikely || raw.len() < 4096) && stored * 20 > raw.len() {
            // What general compression makes of it only trying shows.
            let mut other = std::mem::take(&mut self.other);
            other.clear();
            let encoded = self.encode(raw, &mut other);
            alone = encoded.map_or(alone, |_| other.len() as f64);
            self.other = other;
        }
        let worth = stored <= base.stored_bytes_max && stored as f64 <= WORTH_SHARE * alone + FRAME_HEADER_BYTES as f64;
        Ok(worth.then_some(Codec::Difference))
    }

    fn append_prefix(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Option<Codec>> {
        let level = match self.compression {
            Compression::Zstd(level) => level,
            Compression::Auto | Compression::Off => LEVEL_PREFIX,
        };
        let start = out.len();
        FrameHeader::write(Codec::Prefix, (0, 0), base.chunks, raw.len(), out);
        entropy::append_against(level, raw, base.content, out)?;
        let stored = out.len() - start;
        Ok((stored <= base.stored_bytes_max && stored < raw.len()).then_some(Codec::Prefix))
    }
}

/// The predictions worth measuring.
fn predictions(relation: Relation) -> [Option<Prediction>; 2] {
    match relation {
        Relation::Words { width_log2, is_float: true } => [Prediction::new(width_log2, Kind::Floats), None],
        Relation::Words { width_log2, is_float: false } => {
            [Prediction::new(width_log2, Kind::Integers), Prediction::new(width_log2, Kind::Bits)]
        }
        Relation::Widened => [Prediction::new(2, Kind::Widened), None],
        Relation::Narrowed => [Prediction::new(1, Kind::Narrowed), None],
        Relation::Text => [None, None],
    }
}

/// A plan for the difference of `raw` to `base`, and what it costs in bits per byte.
fn measured(prediction: Prediction, raw: &[u8], base: &[u8]) -> (DifferencePlan, f32) {
    let width = prediction.width();
    let words = raw.len() / width;
    let mut plan = DifferencePlan::plain(prediction);
    let mut histograms = [[0u16; 256]; 8];
    let mut magnitudes = [0u16; SAMPLE_WORDS];
    let (mut sampled, mut same) = (0, 0u32);
    let windows = (SAMPLE_WORDS / WINDOW_WORDS).min(words.div_ceil(WINDOW_WORDS));
    for window in 0..windows {
        let first = words.saturating_sub(WINDOW_WORDS) * window / (windows - 1).max(1);
        let now = (words - first).min(WINDOW_WORDS);
        let (mut predicted, mut differences) = ([0; 8 * WINDOW_WORDS], [0; 8 * WINDOW_WORDS]);
        let (predicted, differences) = (&mut predicted[..now * width], &mut differences[..now * width]);
        prediction.predict(base, first, predicted);
        prediction.subtract(predicted, &raw[first * width..][..now * width], differences);
        for word in differences.chunks_exact(width) {
            for (histogram, &byte) in histograms.iter_mut().zip(word) {
                histogram[usize::from(byte)] += 1;
            }
            same += u32::from(word.iter().all(|byte| *byte == 0));
        }
        prediction.magnitudes(predicted, &mut magnitudes[sampled..sampled + now]);
        sampled += now;
    }
    let bits = histograms[..width].iter().map(entropy_bits).sum::<f32>() / width as f32;
    let share = same as f32 / sampled.max(1) as f32;
    plan.is_masked = (MASK_SHARE..1.0).contains(&share) && width > 1;
    if prediction.is_float() && share < 1.0 {
        set_limits(&mut plan, words, &mut magnitudes[..sampled]);
    }
    (plan, bits)
}

/// Puts limits where the sampled magnitudes fall apart into equal shares.
fn set_limits(plan: &mut DifferencePlan, words: usize, magnitudes: &mut [u16]) {
    let classes = (words / CLASS_WORDS_MIN).clamp(1, CLASSES_MAX).min(LIMITS_MAX + 1);
    magnitudes.sort_unstable();
    let mut last = 0;
    for class in 1..classes {
        let Some(&limit) = magnitudes.get(magnitudes.len() * class / classes) else { continue };
        // Half exponents are as fine as needed; a limit within one would only make tables for the same.
        if limit > last {
            plan.limits[plan.limit_count] = limit;
            plan.limit_count += 1;
            last = limit;
        }
    }
}
