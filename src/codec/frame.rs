//! Frames: how raw bytes are stored, and the only way back.
//!
//! An [`Encoder`] chooses a codec from a sample, encodes, decodes what it wrote and compares it with what it was given;
//! a [`Decoder`] reads any frame. A frame is at most [`FRAME_HEADER_BYTES`] longer than its raw bytes.
//!
//! Decoding never panics, writes no more than the length the header claims, and that is bounded by
//! [`FRAME_RAW_BYTES_MAX`]. Frames carry no checksum; the caller compares the raw bytes with their id.

use super::entropy::{Compressor, Decompressor};
use super::planes::{self, PLANES_MAX, PlaneLayout};
use super::sample::{PlaneHint, PlanePlan, Repeats, Sampler, Verdict};
use crate::bytes::bounded_len;
use crate::error::{Error, Kind, Result};

/// The most raw bytes that one frame holds.
pub const FRAME_RAW_BYTES_MAX: u64 = 1 << 24;

/// Bytes before the payload of a frame.
pub const FRAME_HEADER_BYTES: usize = 8;

/// The level of zstd when none is asked for.
const LEVEL_DEFAULT: i32 = 3;

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

/// How the payload of a frame is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The bytes themselves.
    Raw,
    /// One zstd stream.
    Zstd,
    /// Byte planes of numbers, each coded by itself.
    Planes,
}

impl Codec {
    /// The name for people and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Zstd => "zstd",
            Codec::Planes => "planes",
        }
    }

    /// The number in a frame header. None is 0: a hole of zeros is no frame.
    pub const fn code(self) -> u8 {
        match self {
            Codec::Raw => 1,
            Codec::Zstd => 2,
            Codec::Planes => 3,
        }
    }

    /// The codec of that number.
    pub const fn from_code(code: u8) -> Option<Codec> {
        match code {
            1 => Some(Codec::Raw),
            2 => Some(Codec::Zstd),
            3 => Some(Codec::Planes),
            _ => None,
        }
    }
}

/// What stands before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is coded.
    pub codec: Codec,
    /// For planes: logarithm of the word's width in the low half, bits of rotation in the high one. Otherwise 0.
    pub element: u8,
    /// For planes: bytes before the first whole word. Otherwise 0.
    pub phase: u8,
    /// Frames needed to decode this one; 0 in this version.
    pub base_count: u8,
    /// Bytes after decoding, at most [`FRAME_RAW_BYTES_MAX`].
    pub raw_bytes: u64,
}

impl FrameHeader {
    /// Reads the header at the start of `frame`, which need not be complete; `Kind::Damaged` if it cannot be one.
    pub fn read(frame: &[u8]) -> Result<FrameHeader> {
        let Some(&[code, element, phase, base_count, a, b, c, d]) = frame.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(Error::damaged(format!("a frame of {} bytes has no header", frame.len())));
        };
        let codec =
            Codec::from_code(code).ok_or_else(|| Error::damaged(format!("a frame has the unknown codec {code}")))?;
        let raw_bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
        bounded_len(raw_bytes, FRAME_RAW_BYTES_MAX, "a frame")?;
        let header = FrameHeader { codec, element, phase, base_count, raw_bytes };
        if base_count != 0 || (codec != Codec::Planes && (element, phase) != (0, 0)) {
            return Err(Error::damaged(format!("a frame has impossible parameters: {header:?}")));
        }
        Ok(header)
    }

    /// The header of `raw_len` raw bytes, which the caller has bounded.
    fn write(codec: Codec, layout: Option<PlaneLayout>, raw_len: usize, out: &mut Vec<u8>) {
        let (element, phase) = layout.map_or((0, 0), |layout| (layout.element_code(), layout.phase_code()));
        out.extend_from_slice(&[codec.code(), element, phase, 0]);
        out.extend_from_slice(&(raw_len as u32).to_le_bytes());
    }

    fn raw_len(&self) -> Result<usize> {
        bounded_len(self.raw_bytes, FRAME_RAW_BYTES_MAX, "a frame")
    }

    fn layout(&self) -> Result<PlaneLayout> {
        PlaneLayout::from_codes(self.element, self.phase)
            .ok_or_else(|| Error::damaged(format!("a frame has impossible parameters: {self:?}")))
    }
}

/// How one plane is stored.
mod plane_mode {
    pub(super) const RAW: u8 = 0;
    pub(super) const CODED: u8 = 1;
    pub(super) const CONSTANT: u8 = 2;
}

/// Makes frames; one for each thread. It keeps its memory, so that nothing is allocated per frame once it is warm.
pub struct Encoder {
    compression: Compression,
    huffman: Compressor,
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

    /// Keeps the frame at `start` if it decodes to `raw`; otherwise puts a raw frame in its place, and checks that.
    fn settle(&mut self, encoded: Result<Codec>, raw: &[u8], start: usize, out: &mut Vec<u8>) -> Result<Codec> {
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
                // Whole numbers repeat far apart, and nothing in them is noise; bytes without words are judged by the part.
                let local = plan.layout.width() == 1 || plan.has_noise();
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
            out.extend_from_slice(&[0; 5]);
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
                    let coder = if hint == PlaneHint::Runs { &mut self.general } else { &mut self.huffman };
                    if coder.append(plane, out)? < plane.len() {
                        plane_mode::CODED
                    } else {
                        out.truncate(start + 5);
                        out.extend_from_slice(plane);
                        plane_mode::RAW
                    }
                }
            };
            let stored = (out.len() - start - 5) as u32;
            out[start] = mode;
            out[start + 1..start + 5].copy_from_slice(&stored.to_le_bytes());
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
const CONSTANT_PAYLOAD_BYTES: usize = 6;

/// A frame of `raw_len` times the same byte: one constant plane of single bytes.
fn append_constant(byte: u8, raw_len: usize, out: &mut Vec<u8>) {
    FrameHeader::write(Codec::Planes, PlaneLayout::new(0, 0, 0), raw_len, out);
    out.extend_from_slice(&[plane_mode::CONSTANT, 1, 0, 0, 0, byte]);
}

/// True if all bytes are equal: each equals its neighbour, which compares at the speed of memory.
fn is_constant(bytes: &[u8]) -> bool {
    bytes.is_empty() || bytes[1..] == bytes[..bytes.len() - 1]
}

/// Reads frames; one for each thread. It keeps its memory, which stays below the longest frame it has met.
pub struct Decoder {
    zstd: Decompressor,
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Result<Self> {
        Ok(Decoder { zstd: Decompressor::new()?, scratch: Vec::new() })
    }

    /// Appends the raw bytes of `frame`, which must be exactly one frame, to `out`; `Kind::Damaged`, leaving `out` as
    /// it was, if it is none.
    pub fn decode(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let decoded = self.decode_into(frame, out);
        if decoded.is_err() {
            out.truncate(start);
        }
        decoded
    }

    fn decode_into(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let header = FrameHeader::read(frame)?;
        let raw_len = header.raw_len()?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        match header.codec {
            Codec::Raw => {
                expect_raw_len(payload, raw_len)?;
                out.extend_from_slice(payload);
            }
            Codec::Zstd => self.zstd.append(payload, raw_len, out)?,
            Codec::Planes => {
                let parts = PlaneParts::read(&header, payload)?;
                out.reserve(raw_len);
                out.extend_from_slice(parts.head);
                self.merge(&parts, &mut |piece| {
                    out.extend_from_slice(piece);
                    true
                })?;
                out.extend_from_slice(parts.tail);
            }
        }
        Ok(())
    }

    /// Whether `frame` decodes to `raw`; an error if it does not decode.
    fn holds(&mut self, frame: &[u8], raw: &[u8]) -> Result<bool> {
        let header = FrameHeader::read(frame)?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        if header.raw_len()? != raw.len() {
            return Ok(false);
        }
        match header.codec {
            Codec::Raw => Ok(payload == raw),
            Codec::Zstd => {
                if self.scratch.len() < raw.len() {
                    self.scratch.resize(raw.len(), 0);
                }
                let decoded = &mut self.scratch[..raw.len()];
                self.zstd.fill(payload, decoded)?;
                Ok(decoded == raw)
            }
            Codec::Planes => {
                let parts = PlaneParts::read(&header, payload)?;
                let (head, rest) = raw.split_at(parts.head.len());
                let (mut body, tail) = rest.split_at(rest.len() - parts.tail.len());
                let merged = self.merge(&parts, &mut |piece| match body.split_at_checked(piece.len()) {
                    Some((expected, rest)) => {
                        body = rest;
                        expected == piece
                    }
                    None => false,
                })?;
                Ok(merged && body.is_empty() && head == parts.head && tail == parts.tail)
            }
        }
    }

    /// Decodes the planes and merges them into `sink`; see [`planes::merge`].
    fn merge(&mut self, parts: &PlaneParts<'_>, sink: &mut impl FnMut(&[u8]) -> bool) -> Result<bool> {
        let words = parts.words;
        let width = parts.layout.width();
        let decoded = parts.planes[..width].iter().filter(|plane| !matches!(plane, StoredPlane::Raw(_))).count();
        if self.scratch.len() < decoded * words {
            self.scratch.resize(decoded * words, 0);
        }
        let mut scratch = &mut self.scratch[..];
        let mut planes: [&[u8]; PLANES_MAX] = [&[]; PLANES_MAX];
        for (plane, stored) in planes.iter_mut().zip(&parts.planes[..width]) {
            if let StoredPlane::Raw(bytes) = stored {
                *plane = bytes;
                continue;
            }
            let (place, rest) = std::mem::take(&mut scratch).split_at_mut(words);
            scratch = rest;
            match stored {
                StoredPlane::Constant(byte) => place.fill(*byte),
                StoredPlane::Coded(bytes) => self.zstd.fill(bytes, place)?,
                StoredPlane::Raw(_) => {}
            }
            *plane = place;
        }
        Ok(planes::merge(parts.layout, &planes, words, sink))
    }
}

/// One plane as it stands in a frame.
#[derive(Clone, Copy)]
enum StoredPlane<'a> {
    Raw(&'a [u8]),
    Coded(&'a [u8]),
    Constant(u8),
}

/// The payload of planes, taken apart and checked except for what decoding the planes will show.
struct PlaneParts<'a> {
    layout: PlaneLayout,
    words: usize,
    head: &'a [u8],
    tail: &'a [u8],
    /// As many as the layout is wide; the rest is empty.
    planes: [StoredPlane<'a>; PLANES_MAX],
}

impl<'a> PlaneParts<'a> {
    fn read(header: &FrameHeader, payload: &'a [u8]) -> Result<Self> {
        let short = || Error::damaged("a frame of planes ends too early");
        let (layout, raw_len) = (header.layout()?, header.raw_len()?);
        let words = layout.words(raw_len).ok_or_else(short)?;
        let tail_len = raw_len - layout.phase() - words * layout.width();
        let (head, rest) = payload.split_at_checked(layout.phase()).ok_or_else(short)?;
        let (tail, mut rest) = rest.split_at_checked(tail_len).ok_or_else(short)?;
        let mut planes = [StoredPlane::Raw(&[]); PLANES_MAX];
        for plane in &mut planes[..layout.width()] {
            let (&[mode, a, b, c, d], behind) = rest.split_first_chunk::<5>().ok_or_else(short)?;
            let stored_len = bounded_len(u32::from_le_bytes([a, b, c, d]).into(), behind.len() as u64, "a plane")?;
            let (data, behind) = behind.split_at_checked(stored_len).ok_or_else(short)?;
            *plane = match (mode, data) {
                (plane_mode::RAW, _) if data.len() == words => StoredPlane::Raw(data),
                (plane_mode::CODED, _) => StoredPlane::Coded(data),
                (plane_mode::CONSTANT, &[byte]) => StoredPlane::Constant(byte),
                _ => return Err(Error::damaged(format!("a plane of mode {mode} holds {stored_len} bytes"))),
            };
            rest = behind;
        }
        match rest.is_empty() {
            true => Ok(PlaneParts { layout, words, head, tail, planes }),
            false => Err(Error::damaged(format!("a frame of planes has {} bytes too many", rest.len()))),
        }
    }
}

fn expect_raw_len(payload: &[u8], raw_len: usize) -> Result<()> {
    match payload.len() == raw_len {
        true => Ok(()),
        false => Err(Error::damaged(format!("a raw frame of {raw_len} bytes holds {}", payload.len()))),
    }
}

#[cfg(test)]
mod tests;
