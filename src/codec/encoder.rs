//! Raw bytes into frames.
//!
//! An [`Encoder`] chooses a codec from a sample, encodes, decodes what it wrote and compares it with what it was given.
//! A frame is at most [`FRAME_HEADER_BYTES`] longer than its raw bytes.
//!
//! The same bytes and settings give the same frame with the same version of libzstd; no reader relies on that.

use super::base::Base;
use super::decoder::Decoder;
use super::entropy::Compressor;
use super::frame::{Codec, FRAME_HEADER_BYTES, FRAME_RAW_BYTES_MAX, FrameHeader, PLANE_HEADER_BYTES, plane_mode};
use super::planes::{self, PlaneLayout};
use super::sample::{PlaneHint, PlanePlan, Repeats, Sampler, Verdict};
use crate::error::{Error, Kind, Result};

/// The level of zstd when none is asked for.
const LEVEL_DEFAULT: i32 = 3;

/// The level of zstd for planes with runs: higher ones cost more time than they save (measured on AdamW states).
const LEVEL_PLANES: i32 = -3;

/// Bytes on which planes and zstd are tried against each other.
const TRIAL_BYTES: usize = 8 << 10;

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
    compression: Compression,
    huffman: Compressor,
    matching: Compressor,
    general: Compressor,
    sampler: Sampler,
    planes: Vec<u8>,
    other: Vec<u8>,
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
            huffman: Compressor::huffman_only()?,
            matching: Compressor::at_level(LEVEL_PLANES)?,
            general: Compressor::at_level(level)?,
            sampler: Sampler::new(),
            planes: Vec::new(),
            other: Vec::new(),
            decoder: Decoder::new()?,
        })
    }

    /// Appends one frame of `raw` to `out` and says which codec it uses. The frame has been decoded and compared with
    /// `raw` when this returns; what a faulty compressor or memory spoils is stored raw instead.
    ///
    /// Fails (leaving `out` as it was) if `raw` is longer than [`FRAME_RAW_BYTES_MAX`], or if even its copy differs.
    pub fn encode(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let start = out.len();
        if raw.len() as u64 > FRAME_RAW_BYTES_MAX {
            return Err(Error::new(
                Kind::Failed,
                format!("{} bytes do not fit into a frame of at most {FRAME_RAW_BYTES_MAX}", raw.len()),
            ));
        }
        let encoded = self.encode_unchecked(raw, out);
        self.settle(encoded, raw, start, out)
    }

    /// As [`Encoder::encode`], but against `base` if that makes the frame clearly smaller.
    pub fn encode_against(&mut self, raw: &[u8], _base: &Base<'_>, out: &mut Vec<u8>) -> Result<Encoded> {
        Ok(Encoded { codec: self.encode(raw, out)?, needs_base: false })
    }

    /// Keeps the frame at `start` if it decodes to `raw`; otherwise puts a raw frame in its place, and checks that.
    pub(super) fn settle(
        &mut self,
        encoded: Result<Codec>,
        raw: &[u8],
        start: usize,
        out: &mut Vec<u8>,
    ) -> Result<Codec> {
        if let Ok(codec) = encoded
            && self.decoder.holds(&out[start..], raw).unwrap_or(false)
        {
            return Ok(codec);
        }
        out.truncate(start);
        append_raw(raw, out);
        match self.decoder.holds(&out[start..], raw) {
            Ok(true) => Ok(Codec::Raw),
            _ => {
                out.truncate(start);
                Err(Error::new(Kind::Failed, "a copy of bytes in memory differs from the bytes")
                    .with_hint("test this machine's memory"))
            }
        }
    }

    fn encode_unchecked(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
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
        let Verdict { planes, repeats } = self.sampler.judge(raw);
        match (planes, repeats) {
            (Some(plan), Repeats::Unlikely) => Ok(Choice::Planes(plan)),
            (None, Repeats::Found) => Ok(Choice::Zstd),
            (plan, _) => self.try_part(plan, repeats, raw),
        }
    }

    fn try_part(&mut self, plan: Option<PlanePlan>, repeats: Repeats, raw: &[u8]) -> Result<Choice> {
        let start = raw.len().saturating_sub(TRIAL_BYTES) / 2 / 8 * 8;
        let part = &raw[start..raw.len().min(start + TRIAL_BYTES)];
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
        FrameHeader::write(Codec::Zstd, None, raw.len(), out);
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
        FrameHeader::write(Codec::Planes, Some(layout), raw.len(), out);
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        for (k, &hint) in plan.hints.iter().enumerate().take(layout.width()) {
            let plane = &self.planes[k * words..(k + 1) * words];
            let start = out.len();
            out.extend_from_slice(&[0; PLANE_HEADER_BYTES]);
            let mode = match hint {
                _ if is_constant(plane) => {
                    out.extend_from_slice(&plane[..plane.len().min(1)]);
                    if plane.is_empty() { plane_mode::RAW } else { plane_mode::CONSTANT }
                }
                PlaneHint::Raw => {
                    out.extend_from_slice(plane);
                    plane_mode::RAW
                }
                PlaneHint::Huffman | PlaneHint::Runs => {
                    let mut stored = self.huffman.append(plane, out)?;
                    if hint == PlaneHint::Runs {
                        let by_matches = self.matching.append(plane, out)?;
                        if by_matches < stored {
                            let at = start + PLANE_HEADER_BYTES;
                            out.copy_within(at + stored.., at);
                            stored = by_matches;
                        }
                        out.truncate(start + PLANE_HEADER_BYTES + stored);
                    }
                    if stored < plane.len() {
                        plane_mode::CODED
                    } else {
                        out.truncate(start + PLANE_HEADER_BYTES);
                        out.extend_from_slice(plane);
                        plane_mode::RAW
                    }
                }
            };
            let stored = (out.len() - start - PLANE_HEADER_BYTES) as u32;
            out[start] = mode;
            out[start + 1..start + PLANE_HEADER_BYTES].copy_from_slice(&stored.to_le_bytes());
        }
        Ok(Codec::Planes)
    }
}

/// What is done with some bytes.
enum Choice {
    Raw,
    Zstd,
    Planes(PlanePlan),
    /// Both planes and zstd, keeping the smaller.
    Smaller(PlanePlan),
}

fn append_raw(raw: &[u8], out: &mut Vec<u8>) {
    FrameHeader::write(Codec::Raw, None, raw.len(), out);
    out.extend_from_slice(raw);
}

/// The payload of a frame of one constant plane.
pub(super) const CONSTANT_PAYLOAD_BYTES: usize = PLANE_HEADER_BYTES + 1;

/// A frame of `raw_len` times the same byte: one constant plane of single bytes.
fn append_constant(byte: u8, raw_len: usize, out: &mut Vec<u8>) {
    FrameHeader::write(Codec::Planes, PlaneLayout::new(0, 0, 0), raw_len, out);
    out.extend_from_slice(&[plane_mode::CONSTANT, 1, 0, 0, 0, byte]);
}

/// True if all bytes are equal: each equals its neighbour, which compares at the speed of memory.
fn is_constant(bytes: &[u8]) -> bool {
    bytes.is_empty() || bytes[1..] == bytes[..bytes.len() - 1]
}
