//! Which codec suits some bytes, judged from a few KiB of them.
//!
//! Byte histograms by position modulo 8 show the width of a word and where words begin: the byte with the exponent is
//! far from uniform, and only at one phase does a rotation by one bit make it narrower still. The best layouts are then
//! measured exactly on the same sample. Repeats are looked for only where they are cheap to find or likely.
//!
//! The verdict is a guess that costs space or time when wrong, never data. It is the same for the same bytes.

use super::planes::{self, PLANES_MAX, PlaneLayout};

/// Bytes whose histograms are taken. 512 for each of 8 positions tell exponents from noise; more costs time.
const SAMPLE_BYTES: usize = 4 << 10;

/// The sample is taken in pieces spread over the whole; a multiple of 8 so that positions stay aligned.
const WINDOW_BYTES: usize = 512;

/// Bits per byte above which a plane is kept raw: libzstd itself gives up above 7.87. Estimates from small samples
/// scatter, and noise must not pass for something to code.
fn raw_bits(samples: f32) -> f32 {
    7.85 - 0.15 * 512.0 / samples.max(1.0)
}

/// Bits per byte below which a plane may consist of runs, which Huffman coding (at least one bit each) wastes.
const RUNS_BITS: f32 = 0.8;

/// Bits per byte that a layout must reach to be worth its merge.
const WORTH_BITS: f32 = 7.92;

/// Words compared across the whole to find repeats.
const PROBES: usize = 512;

/// Slots of the table of words seen; a power of two above [`PROBES`].
const PROBE_SLOTS: usize = 1024;

/// How one plane is best kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaneHint {
    /// As it is: nearly uniform.
    Raw,
    /// Huffman coding only.
    Huffman,
    /// Runs are likely, which Huffman coding wastes: by it or by matches, whichever is smaller.
    Runs,
}

/// A layout, how to keep each of its planes, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PlanePlan {
    pub layout: PlaneLayout,
    pub hints: [PlaneHint; PLANES_MAX],
    /// Estimated bits per byte over all planes, 0.0 to 8.0.
    pub bits: f32,
}

impl PlanePlan {
    /// True if every word holds a byte that looks random.
    pub(super) fn has_noise(&self) -> bool {
        self.hints[..self.layout.width()].contains(&PlaneHint::Raw)
    }

    /// The plan for bytes in which something repeats: matches are tried on planes too. On noisy ones, and beside them,
    /// only if a part of the whole was seen to repeat, since the rest then hides that part.
    fn careful(mut self, repeats: Repeats) -> Self {
        let float = self.has_noise() || self.layout.rotation() > 0;
        for hint in &mut self.hints[..self.layout.width()] {
            *hint = match (repeats, *hint) {
                (Repeats::Found, _) => PlaneHint::Runs,
                (Repeats::Possible, PlaneHint::Huffman) if !float => PlaneHint::Runs,
                (_, hint) => hint,
            };
        }
        self
    }

    /// What is compared: size, with a surcharge for each plane that takes time to code and decode. Where there is noise
    /// the numbers are floats, and real exponents are sharper than a sample shows; where there is none they may be
    /// integers, and only a clear gain by rotation proves an exponent.
    fn price(&self) -> f32 {
        let width = self.layout.width();
        let coded = self.hints[..width].iter().filter(|&&hint| hint != PlaneHint::Raw).count();
        let doubt = match (self.layout.rotation() > 0, self.has_noise()) {
            (true, true) | (false, false) => 0.0,
            (false, true) => 0.02,
            (true, false) => 0.1,
        };
        self.bits + doubt + 0.1 * coded as f32 / width as f32
    }
}

/// What the sample says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    /// The best layout, if planes save anything.
    pub planes: Option<PlanePlan>,
    /// What is known about repeats.
    pub repeats: Repeats,
}

/// Whether a general compressor may find repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeats {
    /// Every word holds noise, and no word was seen twice: none.
    Unlikely,
    /// Nothing speaks against it: worth trying on a part.
    Possible,
    /// Far apart, so that a part would not show them: worth trying on the whole.
    Found,
}

type Histogram = [u16; 256];

/// Reused memory for the histograms.
pub(super) struct Sampler {
    sample: Vec<u8>,
    /// By position modulo 8: bytes as they are, then bytes of words rotated left by one bit.
    plain: Box<[Histogram; 8]>,
    rotated: Box<[Histogram; 8]>,
    planes: Vec<u8>,
    seen: Box<[u64; PROBE_SLOTS]>,
}

impl Sampler {
    /// A sampler.
    pub(super) fn new() -> Self {
        Sampler {
            sample: Vec::with_capacity(SAMPLE_BYTES),
            plain: Box::new([[0; 256]; 8]),
            rotated: Box::new([[0; 256]; 8]),
            planes: vec![0; SAMPLE_BYTES],
            seen: Box::new([0; PROBE_SLOTS]),
        }
    }

    /// Judges `raw`, which may have any length.
    pub(super) fn judge(&mut self, raw: &[u8]) -> Verdict {
        self.take(raw);
        self.count();
        let planes = self.candidates().into_iter().flatten().map(|layout| self.measure(layout));
        let planes = planes.reduce(|best, next| if next.price() < best.price() { next } else { best });
        let repeats = match &planes {
            _ if self.repeated_share(raw) >= 1.0 / 32.0 => Repeats::Found,
            // A noisy byte in every word leaves no match of useful length. Nearly constant planes betray integers,
            // and integers have repeats though their lowest byte looks like noise.
            Some(plan) if plan.has_noise() && !plan.hints.contains(&PlaneHint::Runs) => Repeats::Unlikely,
            _ => Repeats::Possible,
        };
        let planes = planes.filter(|plan| plan.bits <= WORTH_BITS || repeats == Repeats::Found);
        Verdict { planes: planes.map(|plan| plan.careful(repeats)), repeats }
    }

    /// The bytes that [`Sampler::judge`] looked at: whole groups of eight, none longer than 4 KiB in all.
    pub(super) fn sample(&self) -> &[u8] {
        &self.sample
    }

    /// Gathers the sample: all of `raw` if it is short, otherwise windows at equal distances, at multiples of 8.
    fn take(&mut self, raw: &[u8]) {
        self.sample.clear();
        if raw.len() <= SAMPLE_BYTES {
            self.sample.extend_from_slice(&raw[..raw.len() / 8 * 8]);
            return;
        }
        const WINDOWS: usize = SAMPLE_BYTES / WINDOW_BYTES;
        for window in 0..WINDOWS {
            let start = (raw.len() - WINDOW_BYTES) * window / (WINDOWS - 1) / 8 * 8;
            self.sample.extend_from_slice(&raw[start..start + WINDOW_BYTES]);
        }
    }

    fn count(&mut self) {
        self.plain.as_flattened_mut().fill(0);
        self.rotated.as_flattened_mut().fill(0);
        for window in self.sample.chunks(WINDOW_BYTES) {
            let (groups, _) = window.as_chunks::<8>();
            // The first group only lends its last byte to the second, so that both kinds count the same bytes.
            for pair in groups.windows(2) {
                let (before, group) = (u64::from_le_bytes(pair[0]), u64::from_le_bytes(pair[1]));
                let rotated = (group << 1 | before >> 63).to_le_bytes();
                for position in 0..8 {
                    self.plain[position][usize::from(pair[1][position])] += 1;
                    self.rotated[position][usize::from(rotated[position])] += 1;
                }
            }
        }
    }

    /// The layouts worth measuring: of the best width, without rotation and with it.
    fn candidates(&self) -> [Option<PlaneLayout>; 3] {
        let mean = |bits: &[f32], width: usize| bits[..width].iter().sum::<f32>() / width as f32;
        // Rotation narrows an exponent but never hides it, so the width shows without. Wider layouts have smaller
        // samples for each plane, which makes them look a little better than they are.
        let mut best = (f32::INFINITY, 0, [0.0; 8]);
        for width_log2 in 0..4u8 {
            let bits = class_bits(&self.plain, 1 << width_log2);
            let estimate = mean(&bits, 1 << width_log2) + [0.0, 0.04, 0.08, 0.2][usize::from(width_log2)];
            if estimate < best.0 {
                best = (estimate, width_log2, bits);
            }
        }
        let (_, width_log2, plain) = best;
        let width = 1usize << width_log2;
        let unrotated = PlaneLayout::new(width_log2, 0, 0);
        if width == 1 {
            return [unrotated, None, None];
        }
        let rotated = class_bits(&self.rotated, width);
        let mut best = (f32::INFINITY, 0);
        for phase in 0..width {
            let lowest = self.lowest_bits(width, phase);
            let bits = mean(&rotated, width) + (lowest - rotated[phase]) / width as f32;
            // The exponent shows at any phase that does not make it the lowest byte; the true one has it on top.
            let top = rotated[(phase + width - 1) % width];
            let is_top = rotated[..width].iter().all(|&other| top <= other);
            let bits = if is_top { bits } else { bits + 0.04 };
            if bits < best.0 {
                best = (bits, phase as u8);
            }
        }
        let (bits, phase) = best;
        // What is far behind by estimate need not be measured.
        let unrotated = unrotated.filter(|_| mean(&plain, width) < bits + 0.15);
        // The exponent of binary64 has 11 bits: behind the sign and three nearly idle bits it fills a byte too.
        let by_four = if width == 8 { PlaneLayout::new(width_log2, 4, phase) } else { None };
        [unrotated, PlaneLayout::new(width_log2, 1, phase), by_four]
    }

    /// Estimated bits of the lowest byte of words rotated by one bit: seven bits of its own and the top bit of the
    /// highest byte, which the histograms of neighbours do not show.
    fn lowest_bits(&self, width: usize, phase: usize) -> f32 {
        let lowest = merged(&self.plain, phase, width);
        let highest = merged(&self.plain, (phase + width - 1) % width, width);
        let (mut own, mut sign) = ([0; 256], [0; 256]);
        for (bin, sum) in own.iter_mut().enumerate().take(128) {
            *sum = lowest[bin] + lowest[bin + 128];
        }
        sign[0] = highest[..128].iter().sum();
        sign[1] = highest[128..].iter().sum();
        let bits = entropy_bits(&own) + entropy_bits(&sign);
        if bits > raw_bits(f32::from(sign[0] + sign[1])) { 8.0 } else { bits }
    }

    /// The cost of `layout` on the sample, plane by plane.
    fn measure(&mut self, layout: PlaneLayout) -> PlanePlan {
        let width = layout.width();
        let body = self.sample.get(layout.phase()..).unwrap_or(&[]);
        let words = body.len() / width;
        let body = &body[..words * width];
        planes::split(layout, body, &mut self.planes);
        let mut hints = [PlaneHint::Raw; PLANES_MAX];
        let mut bits = 0.0;
        for (k, hint) in hints.iter_mut().enumerate().take(width) {
            let mut histogram = [0u16; 256];
            for &byte in &self.planes[k * words..(k + 1) * words] {
                histogram[usize::from(byte)] += 1;
            }
            let entropy = entropy_bits(&histogram);
            *hint = match entropy {
                8.0.. => PlaneHint::Raw,
                RUNS_BITS.. => PlaneHint::Huffman,
                _ => PlaneHint::Runs,
            };
            bits += entropy;
        }
        PlanePlan { layout, hints, bits: bits / width as f32 }
    }

    /// The share of words, taken at equal distances over all of `raw`, that are zero or were met before. The distance
    /// is a multiple of 64, so rows of a matrix meet themselves.
    fn repeated_share(&mut self, raw: &[u8]) -> f32 {
        let distance = raw.len().div_ceil(PROBES).next_multiple_of(64).max(64);
        self.seen.fill(0);
        let (mut probes, mut repeated) = (0u32, 0u32);
        for start in (0..raw.len()).step_by(distance) {
            let Some(&bytes) = raw[start..].first_chunk::<8>() else { break };
            let word = u64::from_le_bytes(bytes);
            let slot = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PROBE_SLOTS.ilog2());
            let seen = &mut self.seen[slot as usize];
            repeated += u32::from(*seen == word);
            probes += 1;
            *seen = word;
        }
        repeated as f32 / probes.max(1) as f32
    }
}

/// Estimated bits per byte of each position modulo `width`, from histograms by position modulo 8.
fn class_bits(histograms: &[Histogram; 8], width: usize) -> [f32; 8] {
    let mut bits = [0.0; 8];
    for (class, bits) in bits.iter_mut().enumerate().take(width) {
        *bits = entropy_bits(&merged(histograms, class, width));
    }
    bits
}

/// The histogram of one position modulo `width`.
fn merged(histograms: &[Histogram; 8], class: usize, width: usize) -> Histogram {
    let mut merged = histograms[class];
    for other in (class + width..8).step_by(width) {
        for (sum, count) in merged.iter_mut().zip(&histograms[other]) {
            *sum += count;
        }
    }
    merged
}

/// The order-0 entropy behind a histogram of at most [`SAMPLE_BYTES`] samples in bits per byte, with the correction of
/// Miller and Madow (1955) for the smallness of the sample; 8 where that is too near to tell, 0 for an empty histogram.
pub(super) fn entropy_bits(histogram: &Histogram) -> f32 {
    const LANES: usize = 16;
    let mut weighted = [0.0f32; LANES];
    let mut total = [0u16; LANES];
    let mut used = [0u16; LANES];
    for counts in histogram.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let count = counts[lane];
            weighted[lane] += count_log2(count);
            total[lane] += count;
            used[lane] += u16::from(count > 0);
        }
    }
    let total = f32::from(total.iter().sum::<u16>());
    if total == 0.0 {
        return 0.0;
    }
    let used = f32::from(used.iter().sum::<u16>());
    let plain = total.log2() - weighted.iter().sum::<f32>() / total;
    let bits = plain + (used - 1.0) * std::f32::consts::LOG2_E / (2.0 * total);
    if bits > raw_bits(total) { 8.0 } else { bits.max(0.0) }
}

/// `count * log2(count)`, 0 for 0, within 0.1 %: arithmetic that vectorises, where a logarithm or a table would not.
#[inline(always)]
fn count_log2(count: u16) -> f32 {
    let value = f32::from(count);
    let bits = value.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
    // A cubic through the ends of 1 to 2, so that powers of two are exact.
    let t = mantissa - 1.0;
    let log = t * (1.421_8 + t * (-0.576_6 + t * 0.154_8));
    value * (exponent as f32 + log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::synthetic::{self, Float};

    fn judged(raw: &[u8]) -> Verdict {
        Sampler::new().judge(raw)
    }

    #[test]
    fn the_logarithm_is_close() {
        for count in 1..=4096u16 {
            let exact = f32::from(count) * f32::from(count).log2();
            assert!((count_log2(count) - exact).abs() <= 0.002 * f32::from(count), "{count}");
        }
        assert_eq!(count_log2(0), 0.0);
    }

    #[test]
    fn floats_are_recognised_at_every_phase() {
        for (float, width_log2) in [(Float::Bf16, 1), (Float::Fp32, 2), (Float::Fp64, 3)] {
            for phase in 0..1u8 << width_log2 {
                for len in [64 << 10, 100_001, 1 << 20] {
                    let raw = synthetic::gaussian(5, float, 0.02, usize::from(phase), len);
                    let verdict = judged(&raw);
                    let found = verdict.planes.map(|plan| plan.layout);
                    // Without rotation the phase changes nothing but the order of the planes.
                    let expected = [(0, 0), (1, phase), (4, phase)];
                    let expected = expected.map(|(rotation, phase)| PlaneLayout::new(width_log2, rotation, phase));
                    let expected = if float == Float::Fp64 { &expected[..] } else { &expected[1..2] };
                    assert!(expected.contains(&found), "{float:?} at {phase}, {len} bytes: {verdict:?}");
                    assert_eq!(verdict.repeats, Repeats::Unlikely, "{float:?} at {phase}, {len} bytes: {verdict:?}");
                }
            }
        }
    }

    #[test]
    fn noise_has_no_layout_and_rows_repeat() {
        assert_eq!(judged(&synthetic::random(1, 300_000)).planes, None);
        let rows = synthetic::gaussian(2, Float::Bf16, 1.0, 0, 1536).repeat(200);
        assert_eq!(judged(&rows).repeats, Repeats::Found);
        assert_ne!(judged(&synthetic::text(3, 300_000)).repeats, Repeats::Unlikely);
    }

    #[test]
    fn short_bytes_are_judged_too() {
        for len in 0..100 {
            let _ = judged(&synthetic::random(1, len));
        }
    }
}
