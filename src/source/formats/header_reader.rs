//! Reading headers within bounds.
//!
//! Every parser reads through [`HeaderReader`]. It guarantees that at most [`HEADER_BYTES_MAX`] bytes are
//! read of a file, that memory is asked for only after a length was held against the length of the file, and that
//! the reasons for giving up are told apart: [`Refusal`]. It knows nothing of any container.

use crate::bytes::{ByteRange, MIB};
use crate::read_at::ReadAt;

/// What is read of the headers of one file at most: headers of this size describe more than a million tensors.
pub(super) const HEADER_BYTES_MAX: u64 = 64 * MIB;

/// Why a parser has given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Reading failed, or the file became shorter meanwhile.
    Unreadable,
    /// The file ends within its headers.
    CutShort,
    /// It is not what it begins like; one sentence says why, without a full stop.
    Malformed(String),
}

impl Refusal {
    /// A [`Refusal::Malformed`].
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Refusal::Malformed(reason.into())
    }
}

/// Reads pieces anywhere in a file, as many bytes in all as the bound allows.
pub(super) struct HeaderReader<'a> {
    file: &'a dyn ReadAt,
    left: u64,
}

impl<'a> HeaderReader<'a> {
    pub(super) fn new(file: &'a dyn ReadAt) -> Self {
        HeaderReader { file, left: HEADER_BYTES_MAX }
    }

    /// The length of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Exactly `bytes` bytes at `offset`; [`Refusal::CutShort`] if the file ends before, and nothing is read then.
    pub(super) fn read(&mut self, offset: u64, bytes: u64) -> Result<Vec<u8>, Refusal> {
        let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= self.file.bytes());
        if !is_inside {
            return Err(Refusal::CutShort);
        }
        self.left = self.left.checked_sub(bytes).ok_or_else(too_long)?;
        let mut buffer = vec![0; usize::try_from(bytes).map_err(|_| too_long())?];
        match self.file.read_at(offset, &mut buffer) {
            Ok(read) if read == buffer.len() => Ok(buffer),
            _ => Err(Refusal::Unreadable),
        }
    }
}

/// A range from outside; refused if its end overflows.
pub(super) fn range(offset: u64, len: u64) -> Result<ByteRange, Refusal> {
    ByteRange::new(offset, len).map_err(|_| Refusal::malformed("an offset is larger than 64 bits hold"))
}

/// A text from outside as it may stand in a sentence: quoted, on one line, of bounded length.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let begin: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if begin.len() < text.len() { "..." } else { "" };
    format!("{begin:?}{dots}")
}

pub(super) fn too_long() -> Refusal {
    Refusal::malformed(format!("its headers are longer than the {} MiB that are read", HEADER_BYTES_MAX / MIB))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind, Result};

    /// A file that claims a length and has no content.
    struct Hollow(u64);

    impl ReadAt for Hollow {
        fn bytes(&self) -> u64 {
            self.0
        }

        fn read_at(&self, _offset: u64, buffer: &mut [u8]) -> Result<usize> {
            if self.0 == 1 { Err(Error::new(Kind::Failed, "x")) } else { Ok(buffer.len() / 2) }
        }
    }

    #[test]
    fn a_piece_beyond_the_end_is_cut_short_and_nothing_is_allocated() {
        let file: &[u8] = &[1, 2, 3];
        let mut reader = HeaderReader::new(&file);
        assert_eq!(reader.read(1, 2), Ok(vec![2, 3]));
        assert_eq!(reader.read(1, 3), Err(Refusal::CutShort));
        assert_eq!(reader.read(u64::MAX, u64::MAX), Err(Refusal::CutShort));
        assert_eq!(reader.read(0, 1 << 62), Err(Refusal::CutShort));
    }

    #[test]
    fn what_cannot_be_read_or_became_shorter_is_unreadable() {
        assert_eq!(HeaderReader::new(&Hollow(1)).read(0, 1), Err(Refusal::Unreadable));
        assert_eq!(HeaderReader::new(&Hollow(8)).read(0, 8), Err(Refusal::Unreadable));
        assert!(matches!(HeaderReader::new(&Hollow(u64::MAX)).read(0, 1 << 40), Err(Refusal::Malformed(_))));
    }
}
