//! Frames: what stored bytes look like, and how they are taken apart.
//!
//! A frame is a header and a payload; `docs/FORMAT.md` describes both. Every length is bounded here before anyone uses
//! it: raw bytes by [`FRAME_RAW_BYTES_MAX`], parts of the payload by the payload. A frame carries no checksum.
//!
//! Nothing is decoded here: what a plane's compressed bytes hold only the decoder finds out.

use super::difference::DifferencePlan;
use super::planes::{PLANES_MAX, PlaneLayout};
use super::runs::StoredRun;
use crate::bytes::bounded_len;
use crate::error::{Error, Result};

/// The most raw bytes that one frame holds.
pub const FRAME_RAW_BYTES_MAX: u64 = 1 << 24;

/// Bytes before the payload of a frame.
pub const FRAME_HEADER_BYTES: usize = 8;

/// The most chunks that the content of a base is made of.
pub(super) const BASE_CHUNKS_MAX: u8 = 8;

/// How the payload of a frame is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The bytes themselves.
    Raw,
    /// One zstd stream.
    Zstd,
    /// Byte planes of numbers, each coded by itself.
    Planes,
    /// Differences of words to what a base lets expect.
    Difference,
    /// One zstd stream that refers to a base before it.
    Prefix,
    /// A table of the few words that occur, and which of them stands where.
    Palette,
}

impl Codec {
    /// The name for people and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Zstd => "zstd",
            Codec::Planes => "planes",
            Codec::Difference => "difference",
            Codec::Prefix => "prefix",
            Codec::Palette => "palette",
        }
    }

    /// The number in a frame header. None is 0: a hole of zeros is no frame.
    pub const fn code(self) -> u8 {
        match self {
            Codec::Raw => 1,
            Codec::Zstd => 2,
            Codec::Planes => 3,
            Codec::Difference => 4,
            Codec::Prefix => 5,
            Codec::Palette => 6,
        }
    }

    /// The codec of that number.
    pub const fn from_code(code: u8) -> Option<Codec> {
        match code {
            1 => Some(Codec::Raw),
            2 => Some(Codec::Zstd),
            3 => Some(Codec::Planes),
            4 => Some(Codec::Difference),
            5 => Some(Codec::Prefix),
            6 => Some(Codec::Palette),
            _ => None,
        }
    }

    /// True if a frame of this codec can only be decoded with its base.
    pub const fn needs_base(self) -> bool {
        matches!(self, Codec::Difference | Codec::Prefix)
    }
}

/// What stands before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is coded.
    pub codec: Codec,
    /// For words: logarithm of their width in the low half; in the high one bits of rotation (planes) or how they are
    /// predicted (differences). Otherwise 0.
    pub element: u8,
    /// For planes and palettes: bytes before the first whole word. For differences: how they are sorted. Otherwise 0.
    pub phase: u8,
    /// Chunks whose content is needed to decode this frame: 1 to 8 if the codec needs a base, otherwise 0.
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
        let has_parameters = match codec {
            Codec::Raw | Codec::Zstd | Codec::Prefix => (element, phase) == (0, 0),
            Codec::Planes | Codec::Palette => header.layout().is_ok(),
            Codec::Difference => DifferencePlan::from_codes(element, phase).is_some(),
        };
        let bases = if codec.needs_base() { 1..=BASE_CHUNKS_MAX } else { 0..=0 };
        match has_parameters && bases.contains(&base_count) {
            true => Ok(header),
            false => Err(Error::damaged(format!("a frame has impossible parameters: {header:?}"))),
        }
    }

    /// Writes the header of `raw_len` raw bytes, which the caller has bounded.
    pub(super) fn write(codec: Codec, (element, phase): (u8, u8), base_count: u8, raw_len: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&[codec.code(), element, phase, base_count]);
        out.extend_from_slice(&(raw_len as u32).to_le_bytes());
    }

    /// The bounded length of the raw bytes.
    pub(super) fn raw_len(&self) -> Result<usize> {
        bounded_len(self.raw_bytes, FRAME_RAW_BYTES_MAX, "a frame")
    }

    /// The layout of planes, or of the words of a palette, which are not rotated.
    pub(super) fn layout(&self) -> Result<PlaneLayout> {
        PlaneLayout::from_codes(self.element, self.phase)
            .filter(|layout| self.codec == Codec::Planes || layout.rotation() == 0)
            .ok_or_else(|| Error::damaged(format!("a frame has impossible parameters: {self:?}")))
    }
}

/// The payload of planes, taken apart and checked except for what decoding the planes will show.
pub(super) struct PlaneParts<'a> {
    pub(super) layout: PlaneLayout,
    pub(super) words: usize,
    pub(super) head: &'a [u8],
    pub(super) tail: &'a [u8],
    /// As many as the layout is wide; the rest is empty.
    pub(super) planes: [StoredRun<'a>; PLANES_MAX],
}

impl<'a> PlaneParts<'a> {
    /// The parts of `payload`; `Kind::Damaged` if they do not fit the header or the payload's length.
    pub(super) fn read(header: &FrameHeader, payload: &'a [u8]) -> Result<Self> {
        let short = || Error::damaged("a frame of planes ends too early");
        let (layout, raw_len) = (header.layout()?, header.raw_len()?);
        let words = layout.words(raw_len).ok_or_else(short)?;
        let tail_len = raw_len - layout.phase() - words * layout.width();
        let (head, rest) = payload.split_at_checked(layout.phase()).ok_or_else(short)?;
        let (tail, mut rest) = rest.split_at_checked(tail_len).ok_or_else(short)?;
        let mut planes = [StoredRun::Raw(&[]); PLANES_MAX];
        for plane in &mut planes[..layout.width()] {
            *plane = StoredRun::read(&mut rest, words)?;
        }
        match rest.is_empty() {
            true => Ok(PlaneParts { layout, words, head, tail, planes }),
            false => Err(Error::damaged(format!("a frame of planes has {} bytes too many", rest.len()))),
        }
    }
}

#[cfg(test)]
mod tests;
