//! Raw bytes into frames.
//!
//! An [`Encoder`] chooses a codec from a sample, encodes, decodes what it wrote and compares it with what it was given.
//! A frame is at most [`FRAME_HEADER_BYTES`] longer than its raw bytes.
//!
//! The same bytes and settings give the same frame with the same version of libzstd; no reader relies on that.

use super::decoder::Decoder;
use super::difference::DifferenceWriter;
use super::entropy::Compressor;
use super::frame::{Codec, FRAME_HEADER_BYTES, FRAME_RAW_BYTES_MAX, FrameHeader};
use super::palette::Palette;
use super::planes::{self, PlaneLayout};
use super::runs::{RUN_HEADER_BYTES, RunWriter, is_constant, run_mode};
use super::sample::{PlanePlan, Repeats, Sampler, Verdict};
use crate::error::{Error, Kind, Result};
use crate::sabotage::is_planted;

/// The level of zstd when none is asked for.
const LEVEL_DEFAULT: i32 = 3;

/// Bytes on which planes and zstd are tried against each other.
const TRIAL_BYTES: usize = 8 << 10;

/// The share of what planes cost below which a table of words is tried.
const PALETTE_SHARE: f32 = 0.95;

/// What an encoder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Planes, zstd at its usual level, or raw, whichever suits the bytes.
    Auto,
    /// Everything raw.
    Off,
    /// Like `Auto`, with this level of zstd for what is not planes.
    Zstd(i32),
}

/// How a frame came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// The codec it uses.
    pub codec: Codec,
    /// True if it can only be decoded with the base that was offered.
    pub needs_base: bool,
}

/// Makes frames; one for each thread. It keeps its memory, so that nothing is allocated per frame once it is warm.
pub struct Encoder {
    pub(super) compression: Compression,
    pub(super) runs: RunWriter,
    general: Compressor<'static>,
    pub(super) sampler: Sampler,
    pub(super) difference: DifferenceWriter,
    palette: Palette,
    planes: Vec<u8>,
    other: Vec<u8>,
    /// A frame that stands alone, beside one that needs a base.
    pub(super) alone: Vec<u8>,
    decoder: Decoder,
}

impl Encoder {
    /// An encoder; `Kind::Usage` if libzstd has no such level.
    pub fn new(compression: Compression) -> Result<Self> {
        let level = match compression {
            Compression::Auto | Compression::Off => LEVEL_DEFAULT,
            Compression::Zstd(level) => level,
        };
        Ok(Encoder {
            compression,
            runs: RunWriter::new()?,
            general: Compressor::at_level(level)?,
            sampler: Sampler::new(),
            difference: DifferenceWriter::default(),
            palette: Palette::new(),
            planes: Vec::new(),
            other: Vec::new(),
            alone: Vec::new(),
            decoder: Decoder::new()?,
        })
    }

    /// Appends one frame of `raw` to `out` and says which codec it uses. The frame has been decoded and compared with
    /// `raw` when this returns; what a faulty compressor or memory spoils is stored raw instead.
    ///
    /// Fails (leaving `out` as it was) if `raw` is longer than [`FRAME_RAW_BYTES_MAX`], or if even its copy differs.
    pub fn encode(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let start = out.len();
        expect_fits(raw)?;
        let encoded = self.encode_unchecked(raw, out);
        self.settle(encoded, raw, start, out)
    }

    /// True if these bytes are for the general codec alone: they gain by others of their kind in the same frame, and spoil
    /// the choice of the codec for nobody.
    pub fn suits_general(&mut self, raw: &[u8]) -> Result<bool> {
        let is_off = self.compression == Compression::Off;
        Ok(!is_off && !is_constant(raw) && matches!(self.choose(raw)?, Choice::Zstd))
    }

    /// The first step of [`Encoder::encode`] by itself, to be measured: whether a sample of `raw` promises that coding
    /// makes it shorter.
    pub fn promises(&mut self, raw: &[u8]) -> bool {
        let verdict = self.sampler.judge(raw);
        verdict.planes.is_some() || verdict.repeats == Repeats::Found
    }

    /// The last step of [`Encoder::encode`] by itself, to be measured: whether `frame` decodes to `raw` with `base`.
    pub fn holds(&mut self, frame: &[u8], base: &[u8], raw: &[u8]) -> bool {
        self.decoder.holds(frame, base, raw).unwrap_or(false)
    }

    /// Keeps the frame at `start` if it decodes to `raw`; otherwise puts a raw frame in its place, and checks that.
    pub(super) fn settle(
        &mut self,
        encoded: Result<Codec>,
        raw: &[u8],
        start: usize,
        out: &mut Vec<u8>,
    ) -> Result<Codec> {
        if let Some(last) = out[start..].last_mut().filter(|_| is_planted("frame-not-decoded-again")) {
            *last ^= 1;
        }
        if let Ok(codec) = encoded
            && (is_planted("frame-not-decoded-again") || self.holds(&out[start..], &[], raw))
        {
            return Ok(codec);
        }
        out.truncate(start);
        append_raw(raw, out);
        match self.holds(&out[start..], &[], raw) {
            true => Ok(Codec::Raw),
            false => {
                out.truncate(start);
                Err(Error::new(Kind::Failed, "a copy of bytes in memory differs from the bytes")
                    .with_hint("test this machine's memory"))
            }
        }
    }

    pub(super) fn encode_unchecked(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let start = out.len();
        if self.compression == Compression::Off {
            append_raw(raw, out);
            return Ok(Codec::Raw);
        }
        if let Some(&byte) = raw.first()
            && raw.len() > CONSTANT_PAYLOAD_BYTES
            && is_constant(raw)
        {
            append_constant(byte, raw.len(), out);
            return Ok(Codec::Planes);
        }
        let codec = match self.choose(raw)? {
            Choice::Raw => Codec::Raw,
            Choice::Planes(plan) => self.append_planes(&plan, raw, out)?,
            Choice::Palette(layout, verdict) => self.append_palette(layout, verdict, raw, out)?,
            Choice::Zstd => self.append_zstd(raw, out)?,
            Choice::Smaller(plan) => self.append_smaller(&plan, raw, out)?,
        };
        // The gain must pay for decoding it every time.
        let stored = out.len() - start;
        if codec != Codec::Raw && stored + raw.len() / 256 < FRAME_HEADER_BYTES + raw.len() {
            return Ok(codec);
        }
        out.truncate(start);
        append_raw(raw, out);
        Ok(Codec::Raw)
    }

    /// Turns the sample's verdict into a choice, with a trial on a part where it leaves the matter open.
    fn choose(&mut self, raw: &[u8]) -> Result<Choice> {
        let verdict = self.sampler.judge(raw);
        match verdict.planes.and_then(|plan| self.palette_layout(&plan)) {
            Some(layout) => Ok(Choice::Palette(layout, verdict)),
            None => self.choose_by(verdict, raw),
        }
    }

    /// Turns a verdict into a choice without palettes.
    fn choose_by(&mut self, Verdict { planes, repeats }: Verdict, raw: &[u8]) -> Result<Choice> {
        match (planes, repeats) {
            (Some(plan), Repeats::Unlikely) => Ok(Choice::Planes(plan)),
            (None, Repeats::Found) => Ok(Choice::Zstd),
            (plan, _) => self.try_part(plan, repeats, raw),
        }
    }

    /// The words of which the sample holds so few that a table of them is shorter than planes.
    fn palette_layout(&mut self, plan: &PlanePlan) -> Option<PlaneLayout> {
        let width = plan.layout.width();
        // Where words begin shows only in planes of rotated ones.
        let phases = if plan.layout.rotation() > 0 { plan.layout.phase()..plan.layout.phase() + 1 } else { 0..width };
        let mut best = (PALETTE_SHARE * plan.bits, None);
        for phase in phases {
            let Some(sample) = self.sampler.sample().get(phase..) else { break };
            if self.palette.learn(width, sample) && self.palette.bits(width) < best.0 {
                best = (self.palette.bits(width), PlaneLayout::new(plan.layout.width_log2(), 0, phase as u8));
            }
        }
        best.1
    }

    /// Appends a palette, or zstd if repeats make that shorter; if the words are too many after all, planes.
    fn append_palette(
        &mut self,
        layout: PlaneLayout,
        verdict: Verdict,
        raw: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Codec> {
        let start = out.len();
        let Some(words) = layout.words(raw.len()) else { return Ok(Codec::Raw) };
        let (head, rest) = raw.split_at(layout.phase());
        let (body, tail) = rest.split_at(words * layout.width());
        if !self.palette.learn(layout.width(), body) {
            return match self.choose_by(verdict, raw)? {
                Choice::Planes(plan) | Choice::Smaller(plan) => self.append_planes(&plan, raw, out),
                Choice::Zstd => self.append_zstd(raw, out),
                Choice::Raw | Choice::Palette(..) => Ok(Codec::Raw),
            };
        }
        FrameHeader::write(Codec::Palette, layout.codes(), 0, raw.len(), out);
        self.palette.append(&mut self.runs, layout.width(), [head, tail], out)?;
        if verdict.repeats != Repeats::Found && !self.repeats_nearby(raw, out.len() - start)? {
            return Ok(Codec::Palette);
        }
        let mut other = std::mem::take(&mut self.other);
        other.clear();
        let appended = self.append_zstd(raw, &mut other);
        let smaller = appended.is_ok() && other.len() < out.len() - start;
        if smaller {
            out.truncate(start);
            out.extend_from_slice(&other);
        }
        self.other = other;
        Ok(if smaller { Codec::Zstd } else { Codec::Palette })
    }

    /// True if zstd makes of a part of `raw` little more than its share of `stored` bytes.
    fn repeats_nearby(&mut self, raw: &[u8], stored: usize) -> Result<bool> {
        let part = middle(raw);
        let mut trial = std::mem::take(&mut self.other);
        trial.clear();
        let by_zstd = self.general.append(part, &mut trial);
        self.other = trial;
        Ok((by_zstd? as f64) * (raw.len() as f64) < 1.1 * stored as f64 * part.len() as f64)
    }

    fn try_part(&mut self, plan: Option<PlanePlan>, repeats: Repeats, raw: &[u8]) -> Result<Choice> {
        let part = middle(raw);
        let mut trial = std::mem::take(&mut self.other);
        trial.clear();
        let by_zstd = self.general.append(part, &mut trial)?;
        let choice = match plan {
            None if by_zstd + part.len() / 64 < part.len() => Choice::Zstd,
            None => Choice::Raw,
            Some(plan) => {
                trial.clear();
                self.append_planes(&plan, part, &mut trial)?;
                // Both on the same part: zstd at its worst, without history, so a tie locally may still become a gain.
                let ratio = by_zstd as f32 / trial.len().max(1) as f32;
                // Integers repeat far apart; floats (known by their noise, or by an exponent that a rotation bared) and
                // bytes without words are judged by the part.
                let layout = plan.layout;
                let local = layout.width() == 1 || layout.rotation() > 0 || plan.has_noise();
                match ratio {
                    _ if ratio < 0.85 => Choice::Zstd,
                    _ if ratio > 0.99 && local && repeats != Repeats::Found => Choice::Planes(plan),
                    _ => Choice::Smaller(plan),
                }
            }
        };
        self.other = trial;
        Ok(choice)
    }

    fn append_zstd(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        FrameHeader::write(Codec::Zstd, (0, 0), 0, raw.len(), out);
        self.general.append(raw, out)?;
        Ok(Codec::Zstd)
    }

    fn append_smaller(&mut self, plan: &PlanePlan, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let start = out.len();
        self.append_zstd(raw, out)?;
        let mut other = std::mem::take(&mut self.other);
        other.clear();
        let appended = self.append_planes(plan, raw, &mut other);
        let smaller = appended.is_ok() && other.len() < out.len() - start;
        if smaller {
            out.truncate(start);
            out.extend_from_slice(&other);
        }
        self.other = other;
        Ok(if smaller { Codec::Planes } else { Codec::Zstd })
    }

    fn append_planes(&mut self, plan: &PlanePlan, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let layout = plan.layout;
        let Some(words) = layout.words(raw.len()) else { return Ok(Codec::Raw) };
        let (head, rest) = raw.split_at(layout.phase());
        let (body, tail) = rest.split_at(words * layout.width());
        if self.planes.len() < body.len() {
            self.planes.resize(body.len(), 0);
        }
        planes::split(layout, body, &mut self.planes);
        FrameHeader::write(Codec::Planes, layout.codes(), 0, raw.len(), out);
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        for (k, &hint) in plan.hints.iter().enumerate().take(layout.width()) {
            let plane = &self.planes[k * words..(k + 1) * words];
            self.runs.append(plane, hint, out)?;
        }
        Ok(Codec::Planes)
    }
}

/// Refuses bytes that are too many for a frame.
pub(super) fn expect_fits(raw: &[u8]) -> Result<()> {
    match raw.len() as u64 > FRAME_RAW_BYTES_MAX {
        false => Ok(()),
        true => Err(Error::new(
            Kind::Failed,
            format!("{} bytes do not fit into a frame of at most {FRAME_RAW_BYTES_MAX}", raw.len()),
        )),
    }
}

/// What is done with some bytes.
enum Choice {
    Raw,
    Zstd,
    Planes(PlanePlan),
    /// A table of words, perhaps zstd.
    Palette(PlaneLayout, Verdict),
    /// Both planes and zstd, keeping the smaller.
    Smaller(PlanePlan),
}

fn append_raw(raw: &[u8], out: &mut Vec<u8>) {
    FrameHeader::write(Codec::Raw, (0, 0), 0, raw.len(), out);
    out.extend_from_slice(raw);
}

/// The part of `raw` on which ways to code it are tried against each other.
fn middle(raw: &[u8]) -> &[u8] {
    let start = raw.len().saturating_sub(TRIAL_BYTES) / 2 / 8 * 8;
    &raw[start..raw.len().min(start + TRIAL_BYTES)]
}

/// The payload of a frame of one constant plane.
pub(super) const CONSTANT_PAYLOAD_BYTES: usize = RUN_HEADER_BYTES + 1;

/// A frame of `raw_len` times the same byte: one constant plane of single bytes.
fn append_constant(byte: u8, raw_len: usize, out: &mut Vec<u8>) {
    FrameHeader::write(Codec::Planes, (0, 0), 0, raw_len, out);
    out.extend_from_slice(&[run_mode::CONSTANT, 1, 0, 0, 0, byte]);
}
