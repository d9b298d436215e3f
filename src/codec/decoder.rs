//! Frames into raw bytes.
//!
//! A [`Decoder`] reads any frame of this version. It never panics, appends exactly the length that the header claims or
//! nothing, and its memory is bounded by [`FRAME_RAW_BYTES_MAX`](super::FRAME_RAW_BYTES_MAX).
//!
//! It does not know whether the bytes are the right ones; the caller compares them with their id.

use super::difference::DifferenceReader;
use super::entropy;
use super::frame::{Codec, FRAME_HEADER_BYTES, FrameHeader, PlaneParts};
use super::palette;
use super::planes::{self, PLANES_MAX};
use super::runs::{RunReader, StoredRun, grow};
use crate::error::{Error, Result};

/// Reads frames; one for each thread. It keeps its memory, which stays below a few times that of the longest frame it
/// has met.
pub struct Decoder {
    runs: RunReader,
    difference: DifferenceReader,
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Result<Self> {
        Ok(Decoder { runs: RunReader::new()?, difference: DifferenceReader::default(), scratch: Vec::new() })
    }

    /// Appends the raw bytes of `frame`, which must be exactly one frame, to `out`; `Kind::Damaged`, leaving `out` as
    /// it was, if it is none or needs a base.
    pub fn decode(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match FrameHeader::read(frame)?.codec.needs_base() {
            true => Err(Error::damaged("a frame needs a base where none can be")),
            false => self.decode_against(frame, &[], out),
        }
    }

    /// As [`Decoder::decode`], for a frame that may need the contents of its base chunks, one behind the other. With
    /// another base than it was made with, a frame is refused or gives other bytes.
    pub fn decode_against(&mut self, frame: &[u8], base: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let decoded = self.decode_into(frame, base, out);
        if decoded.is_err() {
            out.truncate(start);
        }
        decoded
    }

    fn decode_into(&mut self, frame: &[u8], base: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let header = FrameHeader::read(frame)?;
        let raw_len = header.raw_len()?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        match header.codec {
            Codec::Raw => {
                expect_raw_len(payload, raw_len)?;
                out.extend_from_slice(payload);
            }
            Codec::Zstd => self.runs.zstd.append(payload, raw_len, out)?,
            Codec::Prefix => entropy::decompress_against(payload, base, raw_len, out)?,
            Codec::Planes | Codec::Difference | Codec::Palette => {
                out.reserve(raw_len);
                self.decode_words(&header, payload, base, &mut |piece| {
                    out.extend_from_slice(piece);
                    true
                })?;
            }
        }
        Ok(())
    }

    /// Whether `frame` decodes to `raw` with `base`; an error if it does not decode.
    pub(super) fn holds(&mut self, frame: &[u8], base: &[u8], raw: &[u8]) -> Result<bool> {
        let header = FrameHeader::read(frame)?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        if header.raw_len()? != raw.len() {
            return Ok(false);
        }
        match header.codec {
            Codec::Raw => Ok(payload == raw),
            Codec::Zstd => {
                grow(&mut self.scratch, raw.len());
                let decoded = &mut self.scratch[..raw.len()];
                self.runs.zstd.fill(payload, decoded)?;
                Ok(decoded == raw)
            }
            Codec::Prefix => {
                self.scratch.clear();
                entropy::decompress_against(payload, base, raw.len(), &mut self.scratch)?;
                Ok(self.scratch == raw)
            }
            Codec::Planes | Codec::Difference | Codec::Palette => {
                let mut expected = raw;
                let taken = self.decode_words(&header, payload, base, &mut |piece| match expected
                    .split_at_checked(piece.len())
                {
                    Some((same, rest)) => {
                        expected = rest;
                        same == piece
                    }
                    None => false,
                })?;
                Ok(taken && expected.is_empty())
            }
        }
    }

    /// Decodes a frame of words and hands the raw bytes to `sink` piece by piece; ends early when it returns false.
    /// Returns whether all pieces were taken.
    fn decode_words(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        base: &[u8],
        sink: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        match header.codec {
            Codec::Difference => self.difference.read(&mut self.runs, header, payload, base, sink),
            Codec::Palette => palette::read(&mut self.runs, header, payload, &mut self.scratch, sink),
            _ => {
                let parts = PlaneParts::read(header, payload)?;
                Ok(sink(parts.head) && self.merge(&parts, sink)? && sink(parts.tail))
            }
        }
    }

    /// Decodes the planes and merges them into `sink`; see [`planes::merge`].
    fn merge(&mut self, parts: &PlaneParts<'_>, sink: &mut impl FnMut(&[u8]) -> bool) -> Result<bool> {
        let words = parts.words;
        let width = parts.layout.width();
        let decoded = parts.planes[..width].iter().filter(|plane| !matches!(plane, StoredRun::Raw(_))).count();
        grow(&mut self.scratch, decoded * words);
        let mut scratch = &mut self.scratch[..];
        let mut planes: [&[u8]; PLANES_MAX] = [&[]; PLANES_MAX];
        for (plane, stored) in planes.iter_mut().zip(&parts.planes[..width]) {
            if let StoredRun::Raw(bytes) = stored {
                *plane = bytes;
                continue;
            }
            let (place, rest) = std::mem::take(&mut scratch).split_at_mut(words);
            scratch = rest;
            self.runs.fill(*stored, place)?;
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
