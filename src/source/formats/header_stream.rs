//! Reading headers value by value.
//!
//! [`HeaderStream`] goes through a file from a position on, in windows, with the bounds of [`HeaderReader`]; what is
//! skipped is not read.

use super::header_reader::{HeaderReader, Refusal, too_long};
use crate::read_at::ReadAt;

/// What a [`HeaderStream`] reads at a time: the headers of most files in a few reads, and little beyond them.
const WINDOW_BYTES: u64 = 64 << 10;

/// Reads a file from a position on, value by value, through a window.
pub(super) struct HeaderStream<'a> {
    reader: HeaderReader<'a>,
    at: u64,
    window: Vec<u8>,
    window_begin: u64,
}

impl<'a> HeaderStream<'a> {
    pub(super) fn new(file: &'a dyn ReadAt, offset: u64) -> Self {
        HeaderStream { reader: HeaderReader::new(file), at: offset, window: Vec::new(), window_begin: offset }
    }

    /// The position of the next value.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// What the file has from the next value on.
    pub(super) fn rest_bytes(&self) -> u64 {
        self.reader.file_bytes().saturating_sub(self.at)
    }

    /// The next `bytes` bytes.
    pub(super) fn take(&mut self, bytes: u64) -> Result<&[u8], Refusal> {
        if bytes > self.rest_bytes() {
            return Err(Refusal::CutShort);
        }
        let window_end = self.window_begin + self.window.len() as u64;
        if self.at < self.window_begin || self.at + bytes > window_end {
            let wanted = bytes.max(WINDOW_BYTES.min(self.rest_bytes()));
            self.window = self.reader.read(self.at, wanted)?;
            self.window_begin = self.at;
        }
        let begin = usize::try_from(self.at - self.window_begin).map_err(|_| too_long())?;
        let end = begin + usize::try_from(bytes).map_err(|_| too_long())?;
        self.at += bytes;
        self.window.get(begin..end).ok_or(Refusal::Unreadable)
    }

    /// Passes over `bytes` bytes without reading them.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.rest_bytes() {
            return Err(Refusal::CutShort);
        }
        self.at += bytes;
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// The next 4 bytes, little-endian.
    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next 8 bytes, little-endian.
    pub(super) fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_through_windows_and_passes_over_what_is_skipped() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let file = content.as_slice();
        let mut stream = HeaderStream::new(&file, 5);
        assert_eq!(stream.take(3).map(<[u8]>::to_vec), Ok(content[5..8].to_vec()));
        stream.skip(200_000).expect("inside");
        assert_eq!(stream.take(70_000).map(<[u8]>::to_vec), Ok(content[200_008..270_008].to_vec()));
        assert_eq!(stream.u32().map(u32::to_le_bytes).as_ref().map(|b| &b[..]), Ok(&content[270_008..270_012]));
        assert_eq!(stream.skip(29_989), Err(Refusal::CutShort));
        assert_eq!(stream.skip(29_988), Ok(()));
        assert_eq!(stream.take(1).map(<[u8]>::to_vec), Err(Refusal::CutShort));
    }
}
