//! The two ways libzstd is used, and the one way back.
//!
//! * For planes: Huffman coding and nothing else. The exponents of weights have no repeats to find; looking for them
//!   costs four times the time and loses size, because a match costs more than the literals it replaces.
//! * For everything else, and for planes made of long runs: ordinary zstd at a level.
//!
//! All streams are zstd frames (RFC 8878) without the magic number, content size, checksum and dictionary id: the length
//! stands in our header and the content is named by its hash. What is written never grows beyond zstd's bound,
//! and decoding writes exactly the length it is told.

use crate::error::{Error, Kind, Result};
use std::io::Cursor;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, FrameFormat, ParamSwitch};

/// The level at which libzstd's fastest match finder takes steps so long that it finds nothing.
/// (`ZSTD_c_targetLength` becomes the step; any level below `ZSTD_minCLevel()` is clamped to it, -131072.)
const LEVEL_WITHOUT_MATCHES: i32 = -100_000;

/// A compressor with fixed settings; keeps its working memory between calls.
pub(super) struct Compressor<'base> {
    context: CCtx<'base>,
}

impl Compressor<'_> {
    /// Huffman coding only.
    pub(super) fn huffman_only() -> Result<Self> {
        let mut compressor = Compressor::at_level(LEVEL_WITHOUT_MATCHES)?;
        // Negative levels leave literals uncoded unless told otherwise.
        compressor.set(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
        Ok(compressor)
    }

    /// zstd at `level`; `Kind::Usage` if libzstd has no such level.
    pub(super) fn at_level(level: i32) -> Result<Self> {
        if !(zstd_safe::min_c_level()..=zstd_safe::max_c_level()).contains(&level) {
            let (min, max) = (zstd_safe::min_c_level(), zstd_safe::max_c_level());
            return Err(Error::new(Kind::Usage, format!("zstd level {level} is not one of {min} to {max}")));
        }
        let context =
            CCtx::try_create().ok_or_else(|| Error::new(Kind::Failed, "no memory for a zstd compression context"))?;
        let mut compressor = Compressor { context };
        compressor.set(CParameter::CompressionLevel(level))?;
        compressor.set(CParameter::Format(FrameFormat::Magicless))?;
        compressor.set(CParameter::ContentSizeFlag(false))?;
        compressor.set(CParameter::ChecksumFlag(false))?;
        compressor.set(CParameter::DictIdFlag(false))?;
        Ok(compressor)
    }

    /// Appends `bytes` compressed to `out` and returns the number of bytes appended; on an error `out` is unchanged.
    pub(super) fn append(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        out.reserve(zstd_safe::compress_bound(bytes.len()));
        let mut end = Cursor::new(&mut *out);
        let start = end.get_ref().len();
        end.set_position(start as u64);
        self.context.compress2(&mut end, bytes).map_err(|code| failed("compressing", code))
    }

    fn set(&mut self, parameter: CParameter) -> Result<()> {
        self.context.set_parameter(parameter).map(drop).map_err(|code| failed("setting up zstd", code))
    }
}

/// Bytes of base and content together beyond which nothing is compressed against a base, as logarithm to base 2.
const WINDOW_LOG_MAX: u32 = 26;

/// Appends `bytes` compressed at `level` against `base` to `out`; on an error, and if both together are longer than 64 MiB,
/// `out` is unchanged and the answer an error.
pub(super) fn append_against(level: i32, bytes: &[u8], base: &[u8], out: &mut Vec<u8>) -> Result<usize> {
    let window_log = (bytes.len() + base.len()).next_power_of_two().ilog2().max(10);
    if window_log > WINDOW_LOG_MAX {
        return Err(Error::new(Kind::Failed, "a base is too long to compress against"));
    }
    // A context of its own, since it borrows the base.
    let mut compressor = Compressor::at_level(level)?;
    compressor.set(CParameter::WindowLog(window_log))?;
    compressor.set(CParameter::EnableLongDistanceMatching(false))?;
    compressor.context.ref_prefix(base).map_err(|code| failed("setting up zstd", code))?;
    compressor.append(bytes, out)
}

/// Appends exactly `len` bytes that [`append_against`] compressed against `base` to `out`; `Kind::Damaged` if `stored`
/// holds anything else (`out` may have grown then).
pub(super) fn decompress_against(stored: &[u8], base: &[u8], len: usize, out: &mut Vec<u8>) -> Result<()> {
    // What is decoded at once needs no window of its own, whatever length of it the stream claims.
    let mut decompressor = Decompressor::new()?;
    decompressor.context.ref_prefix(base).map_err(damaged)?;
    decompressor.append(stored, len, out)
}

/// Reads what any [`Compressor`] wrote; keeps its working memory between calls.
pub(super) struct Decompressor<'base> {
    context: DCtx<'base>,
}

impl Decompressor<'_> {
    /// A decompressor.
    pub(super) fn new() -> Result<Self> {
        let mut context =
            DCtx::try_create().ok_or_else(|| Error::new(Kind::Failed, "no memory for a zstd decompression context"))?;
        context
            .set_parameter(DParameter::Format(FrameFormat::Magicless))
            .map_err(|code| failed("setting up zstd", code))?;
        Ok(Decompressor { context })
    }

    /// Fills `out` exactly; `Kind::Damaged` if `stored` holds anything else.
    pub(super) fn fill(&mut self, stored: &[u8], out: &mut [u8]) -> Result<()> {
        let len = self.context.decompress(out, stored).map_err(damaged)?;
        expect_len(len, out.len())
    }

    /// Appends exactly `len` bytes to `out`; `Kind::Damaged` if `stored` holds anything else (`out` may have grown then).
    pub(super) fn append(&mut self, stored: &[u8], len: usize, out: &mut Vec<u8>) -> Result<()> {
        out.reserve(len);
        let mut end = Cursor::new(&mut *out);
        let start = end.get_ref().len();
        end.set_position(start as u64);
        let produced = self.context.decompress(&mut end, stored).map_err(damaged)?;
        expect_len(produced, len)
    }
}

fn expect_len(found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::damaged(format!("compressed data holds {found} bytes instead of {expected}"))),
    }
}

fn failed(doing: &str, code: usize) -> Error {
    Error::new(Kind::Failed, format!("{doing}: {}", zstd_safe::get_error_name(code)))
}

fn damaged(code: usize) -> Error {
    Error::damaged(format!("compressed data does not decode: {}", zstd_safe::get_error_name(code)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::synthetic;

    #[test]
    fn both_settings_append_and_read_back() {
        let text = synthetic::text(1, 300_000);
        for mut compressor in [Compressor::huffman_only().unwrap(), Compressor::at_level(3).unwrap()] {
            for len in [0, 1, 2, 100, 131_072, 131_073, 300_000] {
                let mut stored = b"before".to_vec();
                let appended = compressor.append(&text[..len], &mut stored).unwrap();
                assert_eq!(appended, stored.len() - 6);
                let mut decompressor = Decompressor::new().unwrap();
                let mut filled = vec![0; len];
                decompressor.fill(&stored[6..], &mut filled).unwrap();
                assert_eq!(filled, text[..len]);
                let mut appended = b"x".to_vec();
                decompressor.append(&stored[6..], len, &mut appended).unwrap();
                assert_eq!(appended[1..], text[..len]);
                assert_eq!(decompressor.fill(&stored[6..], &mut vec![0; len + 1]).unwrap_err().kind(), Kind::Damaged);
            }
        }
    }

    #[test]
    fn an_impossible_level_is_refused() {
        assert_eq!(Compressor::at_level(99).err().map(|error| error.kind()), Some(Kind::Usage));
    }
}
