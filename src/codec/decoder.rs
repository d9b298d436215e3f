//! Frames into raw bytes.
//!
//! A [`Decoder`] reads any frame of this version. It never panics, appends exactly the length that the header claims or
//! nothing, and its memory is bounded by [`FRAME_RAW_BYTES_MAX`](super::FRAME_RAW_BYTES_MAX).
//!
//! It does not know whether the bytes are the right ones; the caller compares them with their id.

use super::entropy::Decompressor;
use super::frame::{Codec, FRAME_HEADER_BYTES, FrameHeader, PlaneParts, StoredPlane};
use super::planes::{self, PLANES_MAX};
use crate::error::{Error, Result};

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

    /// As [`Decoder::decode`], for a frame that may need the contents of its base chunks, one behind the other.
    pub fn decode_against(&mut self, frame: &[u8], _base: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.decode(frame, out)
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
    pub(super) fn holds(&mut self, frame: &[u8], raw: &[u8]) -> Result<bool> {
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

fn expect_raw_len(payload: &[u8], raw_len: usize) -> Result<()> {
    match payload.len() == raw_len {
        true => Ok(()),
        false => Err(Error::damaged(format!("a raw frame of {raw_len} bytes holds {}", payload.len()))),
    }
}
