//! Frames: what stored bytes look like, and how they are taken apart.
//!
//! A frame is a header and a payload; `docs/FORMAT.md` describes both. Every length is bounded here before anyone uses
//! it: raw bytes by [`FRAME_RAW_BYTES_MAX`], parts of the payload by the payload. A frame carries no checksum.
//!
//! Nothing is decoded here: what a plane's compressed bytes hold only the decoder finds out.

use super::planes::{PLANES_MAX, PlaneLayout};
use crate::bytes::bounded_len;
use crate::error::{Error, Result};

/// The most raw bytes that one frame holds.
pub const FRAME_RAW_BYTES_MAX: u64 = 1 << 24;

/// Bytes before the payload of a frame.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Bytes of mode and length before the data of a plane.
pub(super) const PLANE_HEADER_BYTES: usize = 5;

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
    pub(super) fn write(codec: Codec, layout: Option<PlaneLayout>, raw_len: usize, out: &mut Vec<u8>) {
        let (element, phase) = layout.map_or((0, 0), |layout| (layout.element_code(), layout.phase_code()));
        out.extend_from_slice(&[codec.code(), element, phase, 0]);
        out.extend_from_slice(&(raw_len as u32).to_le_bytes());
    }

    /// The bounded length of the raw bytes.
    pub(super) fn raw_len(&self) -> Result<usize> {
        bounded_len(self.raw_bytes, FRAME_RAW_BYTES_MAX, "a frame")
    }

    /// The layout of planes.
    fn layout(&self) -> Result<PlaneLayout> {
        PlaneLayout::from_codes(self.element, self.phase)
            .ok_or_else(|| Error::damaged(format!("a frame has impossible parameters: {self:?}")))
    }
}

/// How one plane is stored.
pub(super) mod plane_mode {
    pub(in crate::codec) const RAW: u8 = 0;
    pub(in crate::codec) const CODED: u8 = 1;
    pub(in crate::codec) const CONSTANT: u8 = 2;
}

/// One plane as it stands in a frame.
#[derive(Clone, Copy)]
pub(super) enum StoredPlane<'a> {
    Raw(&'a [u8]),
    Coded(&'a [u8]),
    Constant(u8),
}

/// The payload of planes, taken apart and checked except for what decoding the planes will show.
pub(super) struct PlaneParts<'a> {
    pub(super) layout: PlaneLayout,
    pub(super) words: usize,
    pub(super) head: &'a [u8],
    pub(super) tail: &'a [u8],
    /// As many as the layout is wide; the rest is empty.
    pub(super) planes: [StoredPlane<'a>; PLANES_MAX],
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
        let mut planes = [StoredPlane::Raw(&[]); PLANES_MAX];
        for plane in &mut planes[..layout.width()] {
            let (&[mode, a, b, c, d], behind) = rest.split_first_chunk::<PLANE_HEADER_BYTES>().ok_or_else(short)?;
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

#[cfg(test)]
mod tests;
