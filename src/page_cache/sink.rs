//! Where bytes that are read go: a slice, the end of a vector, or a place in a buffer that whole blocks around it fit in, so that
//! they are read there and not copied.

use crate::aligned::ALIGNMENT;

/// Where bytes that are read go.
pub trait Sink {
    /// Room for the next bytes, at most `bytes_max` of them, at least one; none only if nothing more fits.
    fn room(&mut self, bytes_max: usize) -> &mut [u8];

    /// The first `bytes` of the room that was given last are filled.
    fn fill(&mut self, bytes: usize);

    /// Adds bytes, for which there is room.
    fn append(&mut self, bytes: &[u8]);

    /// Aligned room of `bytes` in which the next byte stands behind `lead` others, which keep what they are; none if it cannot be had.
    fn blocks(&mut self, _lead: usize, _bytes: usize) -> Option<&mut [u8]> {
        None
    }
}

/// Fills a slice from its beginning.
impl Sink for &mut [u8] {
    fn room(&mut self, bytes_max: usize) -> &mut [u8] {
        let len = self.len().min(bytes_max);
        &mut self[..len]
    }

    fn fill(&mut self, bytes: usize) {
        *self = &mut std::mem::take(self)[bytes..];
    }

    fn append(&mut self, bytes: &[u8]) {
        self[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }
}

/// Appends to a vector that the caller has reserved room in.
#[derive(Debug)]
pub struct Appending<'a> {
    into: &'a mut Vec<u8>,
    filled: usize,
}

impl<'a> Appending<'a> {
    /// Appends to `into`.
    pub fn new(into: &'a mut Vec<u8>) -> Self {
        Appending { filled: into.len(), into }
    }
}

impl Sink for Appending<'_> {
    fn room(&mut self, bytes_max: usize) -> &mut [u8] {
        self.into.resize(self.filled + bytes_max, 0);
        &mut self.into[self.filled..]
    }

    fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
        self.into.truncate(self.filled);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.into.truncate(self.filled);
        self.into.extend_from_slice(bytes);
        self.filled = self.into.len();
    }
}

/// How much longer than what is read a buffer has to be for [`Around`].
pub const SLACK_BYTES: usize = 3 * ALIGNMENT;

/// Where in `buffer` to put what is read from `offset` on, so that the blocks of the file are blocks of memory. There are
/// [`SLACK_BYTES`] around it.
pub fn place_for(offset: u64, buffer: &[u8]) -> usize {
    // May answer usize::MAX by its contract: then nothing is read in place.
    let first = buffer.as_ptr().align_offset(ALIGNMENT);
    if first < ALIGNMENT { first + usize::try_from(offset % ALIGNMENT as u64).unwrap_or(0) } else { 0 }
}

/// Fills a buffer from a place in it, for which [`place_for`] was asked.
#[derive(Debug)]
pub struct Around<'a> {
    buffer: &'a mut [u8],
    filled: usize,
    end: usize,
}

impl<'a> Around<'a> {
    /// Fills `bytes` of `buffer` from `place` on.
    pub fn new(buffer: &'a mut [u8], place: usize, bytes: usize) -> Self {
        let end = buffer.len().min(place.saturating_add(bytes));
        Around { filled: place.min(end), buffer, end }
    }
}

impl Sink for Around<'_> {
    fn room(&mut self, bytes_max: usize) -> &mut [u8] {
        let end = self.end.min(self.filled.saturating_add(bytes_max));
        &mut self.buffer[self.filled..end]
    }

    fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    fn blocks(&mut self, lead: usize, bytes: usize) -> Option<&mut [u8]> {
        let from = self.filled.checked_sub(lead)?;
        let room = self.buffer.get_mut(from..from.checked_add(bytes)?)?;
        room.as_ptr().addr().is_multiple_of(ALIGNMENT).then_some(room)
    }
}
