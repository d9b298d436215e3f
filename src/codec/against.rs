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

/// The same for the estimate from which a difference is tried: it comes out smaller than its sample shows, since each class of
/// words has codes of its own.
const TRY_SHARE: f32 = 1.02;

/// Windows of text that are looked for in a base, and their bytes.
const PROBES: usize = 64;
const PROBE_BYTES: usize = 32;

/// The share of windows found from which a base is used without trying what the text takes alone.
const CLEARLY_SHARED: f32 = 0.5;

/// The level of zstd against a prefix, if none is asked for: higher ones take up to a third off, for many times the time.
const LEVEL_PREFIX: i32 = 3;

/// Words of a sample, which lie in windows spread over the whole.
const SAMPLE_WORDS: usize = 2048;
const WINDOW_WORDS: usize = 128;

/// Words that a class is given at least: each has tables of its own.
const CLASS_WORDS_MIN: usize = 16 << 10;

/// The most classes, zeros aside: more take longer to tell apart than they save, of narrow words sooner.
const CLASSES_MAX: usize = 6;
const CLASSES_MAX_WIDE: usize = 8;

/// Zeros of more than one in so many words get a class.
const ZEROS_SHARE: usize = 64;

/// The share of words that are as predicted from which a mask tells them.
const MASK_SHARE: f32 = 0.9;

/// What came of trying a base, and so what stands at the end of the output.
enum Tried {
    /// A frame that is worth its base.
    Worth(Codec),
    /// A frame that stands alone, which was found to be better.
    Alone(Codec),
    /// What is of no use, or nothing.
    Nothing,
}

impl Encoder {
    /// As [`Encoder::encode`], but against `base` if that makes the frame clearly smaller, and not longer than the base
    /// allows.
    pub fn encode_against(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Encoded> {
        expect_fits(raw)?;
        let start = out.len();
        let may_try = self.compression != Compression::Off && (1..=BASE_CHUNKS_MAX).contains(&base.chunks);
        let tried = match base.relation {
            _ if !may_try || raw.is_empty() => Ok(Tried::Nothing),
            Relation::Text => self.try_prefix(raw, base, out),
            _ => self.try_difference(raw, base, out),
        };
        match tried {
            Ok(Tried::Worth(codec)) if self.holds(&out[start..], base.content, raw) => {
                return Ok(Encoded { codec, needs_base: true });
            }
            Ok(Tried::Alone(codec)) => {
                return Ok(Encoded { codec: self.settle(Ok(codec), raw, start, out)?, needs_base: false });
            }
            _ => out.truncate(start),
        }
        Ok(Encoded { codec: self.encode(raw, out)?, needs_base: false })
    }

    fn try_difference(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Tried> {
        let plans = predictions(base.relation).into_iter().flatten();
        let plans = plans.map(|prediction| measured(prediction, raw, base.content));
        let Some((plan, bits)) = plans.reduce(|best, next| if next.1 < best.1 { next } else { best }) else {
            return Ok(Tried::Nothing);
        };
        let Verdict { planes, repeats } = self.sampler.judge(raw);
        let alone_bits = planes.map_or(8.0, |plan| plan.bits.min(8.0));
        if bits > TRY_SHARE * alone_bits {
            return Ok(Tried::Nothing);
        }
        let start = out.len();
        FrameHeader::write(Codec::Difference, plan.codes(), base.chunks, raw.len(), out);
        self.difference.append(&mut self.runs, &plan, raw, base.content, out)?;
        let stored = out.len() - start;
        // What general compression makes of repeats only trying shows, and samples of few bytes show little.
        let is_doubtful = repeats != Repeats::Unlikely || raw.len() < SAMPLE_WORDS;
        if is_doubtful && stored > raw.len() / 20 {
            return self.compare_alone(Codec::Difference, raw, base, start, out);
        }
        let alone = f64::from(alone_bits) / 8.0 * raw.len() as f64;
        match stored <= base.stored_bytes_max && stored as f64 <= WORTH_SHARE * alone + FRAME_HEADER_BYTES as f64 {
            true => Ok(Tried::Worth(Codec::Difference)),
            false => Ok(Tried::Nothing),
        }
    }

    fn try_prefix(&mut self, raw: &[u8], base: &Base<'_>, out: &mut Vec<u8>) -> Result<Tried> {
        let shared = shared_share(raw, base.content);
        if shared == 0.0 {
            return Ok(Tried::Nothing);
        }
        let level = match self.compression {
            Compression::Zstd(level) => level,
            Compression::Auto | Compression::Off => LEVEL_PREFIX,
        };
        let start = out.len();
        FrameHeader::write(Codec::Prefix, (0, 0), base.chunks, raw.len(), out);
        entropy::append_against(level, raw, base.content, out)?;
        let stored = out.len() - start;
        if shared < CLEARLY_SHARED || stored > raw.len() / 4 {
            return self.compare_alone(Codec::Prefix, raw, base, start, out);
        }
        Ok(if stored <= base.stored_bytes_max { Tried::Worth(Codec::Prefix) } else { Tried::Nothing })
    }

    /// Keeps the frame at `start`, which needs its base, if it is worth that beside the frame that stands alone;
    /// otherwise puts the latter in its place.
    fn compare_alone(
        &mut self,
        codec: Codec,
        raw: &[u8],
        base: &Base<'_>,
        start: usize,
        out: &mut Vec<u8>,
    ) -> Result<Tried> {
        let stored = out.len() - start;
        let mut alone = std::mem::take(&mut self.alone);
        alone.clear();
        let codec_alone = self.encode_unchecked(raw, &mut alone);
        let worth = stored <= base.stored_bytes_max && stored as f64 <= WORTH_SHARE * alone.len() as f64;
        let tried = match codec_alone {
            _ if worth => Ok(Tried::Worth(codec)),
            Ok(codec) => {
                out.truncate(start);
                out.extend_from_slice(&alone);
                Ok(Tried::Alone(codec))
            }
            Err(_) => Ok(Tried::Nothing),
        };
        self.alone = alone;
        tried
    }
}

/// The share of windows of `raw`, at equal distances, that stand anywhere in `base`; 1.0 for bytes too few to tell.
fn shared_share(raw: &[u8], base: &[u8]) -> f32 {
    let (Some(last), true) = (raw.len().checked_sub(PROBE_BYTES), base.len() >= PROBE_BYTES) else {
        return if base.is_empty() { 0.0 } else { 1.0 };
    };
    let slot = |bytes: &[u8; 8]| (u64::from_le_bytes(*bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize;
    let starts = |probe: usize| last * probe / (PROBES - 1);
    let mut found = [false; PROBES];
    // For each slot, one more than the probe that begins like that: of several the last, whose fate they share.
    let mut slots = [0u8; 1 << 12];
    for probe in 0..PROBES {
        if let Some(bytes) = raw[starts(probe)..].first_chunk() {
            slots[slot(bytes)] = probe as u8 + 1;
        }
    }
    let (mut known, mut hits) = (0, 0);
    for (at, bytes) in base.windows(8).enumerate() {
        let Some(probe) = bytes.first_chunk().and_then(|bytes| usize::from(slots[slot(bytes)]).checked_sub(1)) else {
            continue;
        };
        if !found[probe] && base[at..].starts_with(&raw[starts(probe)..][..PROBE_BYTES]) {
            found[probe] = true;
            hits += 1;
        }
    }
    slots.iter().for_each(|slot| known += u32::from(*slot > 0));
    hits as f32 / known.max(1) as f32
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
    let mut magnitudes = [0i16; SAMPLE_WORDS];
    let (mut sampled, mut same) = (0, 0u32);
    let windows = (SAMPLE_WORDS / WINDOW_WORDS).min(words.div_ceil(WINDOW_WORDS));
    for window in 0..windows {
        let first = words.saturating_sub(WINDOW_WORDS) * window / (windows - 1).max(1);
        let now = (words - first).min(WINDOW_WORDS);
        let (mut predicted, mut differences) = ([0; 8 * WINDOW_WORDS], [0; 8 * WINDOW_WORDS]);
        let (predicted, differences) = (&mut predicted[..now * width], &mut differences[..now * width]);
        let predicted = prediction.lend(base, first, predicted);
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

/// Puts limits where the sampled magnitudes fall apart into equal shares, and behind zeros: nothing is like them.
fn set_limits(plan: &mut DifferencePlan, words: usize, magnitudes: &mut [i16]) {
    let most = if plan.prediction.width() > 2 { CLASSES_MAX_WIDE } else { CLASSES_MAX };
    let classes = (words / CLASS_WORDS_MIN).clamp(1, most).min(LIMITS_MAX);
    magnitudes.sort_unstable();
    let zeros = magnitudes.partition_point(|magnitude| *magnitude == 0);
    let others = &magnitudes[zeros..];
    let behind_zeros = (classes > 1 && zeros > magnitudes.len() / ZEROS_SHARE).then_some(1);
    let between = (1..classes).filter_map(|class| others.get(others.len() * class / classes).copied());
    for limit in behind_zeros.into_iter().chain(between) {
        if plan.limits().last().is_none_or(|last| limit > *last) {
            plan.limits[plan.limit_count] = limit;
            plan.limit_count += 1;
        }
    }
}

#[cfg(test)]
mod tests;
