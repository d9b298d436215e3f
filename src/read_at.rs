//! Reading at positions: what a parser of file layouts needs, from a file of the user or from a file in a repository.

use crate::error::Result;

/// Content of known length that can be read anywhere.
pub trait ReadAt: Sync {
    /// The length of the content when it was opened.
    fn bytes(&self) -> u64;

    /// Fills `buffer` from `offset`; fewer bytes only at the end of the content.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
}

impl ReadAt for &[u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let bytes = rest.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }
}
