//! Reading chunks: find a home, read the frame, decode, check against the id; the next home if it fails.

use super::index::Home;
use super::stream::StreamRef;
use super::tree::{Children, Entries};
use super::{Repo, names};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;

impl Repo {
    /// For each chunk, where it can be read. What the index does not know is looked for in the packs themselves, once.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        let homes = self.index().homes(ids)?;
        if homes.iter().all(|h| !h.is_empty()) || !self.recover_index_once()? {
            return Ok(homes);
        }
        self.index().homes(ids)
    }

    /// The content of one chunk, verified. [`Kind::Damaged`] if no home of it can be read.
    pub fn read_chunk(&self, id: ChunkId) -> Result<Vec<u8>> {
        let homes = self.locate(&[id])?.pop().unwrap_or_default();
        let mut failure = None;
        match self.read_at_any(id, &homes, &mut failure) {
            Some(content) => return Ok(content),
            // A prune may have moved it since the index was read.
            None => self.recover_index_once()?,
        };
        let mut others = self.index().homes(&[id])?.pop().unwrap_or_default();
        others.retain(|home| !homes.contains(home));
        self.read_at_any(id, &others, &mut failure).ok_or_else(|| unreadable(id, failure))
    }

    fn read_at_any(&self, id: ChunkId, homes: &[Home], failure: &mut Option<Error>) -> Option<Vec<u8>> {
        homes.iter().find_map(|home| self.read_chunk_at(id, home).map_err(|error| *failure = Some(error)).ok())
    }

    fn read_chunk_at(&self, id: ChunkId, home: &Home) -> Result<Vec<u8>> {
        let content = self.read_frame(home)?;
        let chunk = verified_slice(&content, id, home)?;
        Ok(if chunk.len() == content.len() { content } else { chunk.to_vec() })
    }

    /// The content of the whole frame that `home` lies in, not compared with any id yet.
    pub fn read_frame(&self, home: &Home) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        let range = ByteRange::new(home.frame_offset, u64::from(home.frame_stored))?;
        self.storage().read_range(&names::pack(home.pack)?, range, &mut frame)?;
        let mut content = Vec::with_capacity(usize::try_from(home.frame_raw).unwrap_or(0));
        self.with_decoder(|decoder| decoder.decode(&frame, &mut content))?;
        Ok(content)
    }

    /// Reads and decodes the entries of `tree`, in order. `fetch` is [`Repo::read_chunk`].
    pub fn entries<'a>(&self, fetch: &'a super::tree::FetchChunk<'a>, tree: Option<StreamRef>) -> Entries<'a> {
        Entries::new(fetch, tree)
    }

    /// The chunks of a file's content, in order.
    pub fn content_chunks<'a>(&self, fetch: &'a super::tree::FetchChunk<'a>, content: StreamRef) -> Children<'a> {
        Children::new(fetch, content)
    }
}

/// The error of a chunk none of whose homes could be read; `failure` is that of the last one.
pub(super) fn unreadable(id: ChunkId, failure: Option<Error>) -> Error {
    match failure {
        // A repository that cannot be reached is not damaged.
        Some(error) if matches!(error.kind(), Kind::Unreachable | Kind::Denied) => error,
        Some(error) => error.with_kind(Kind::Damaged).while_doing(format!("chunk {}", id.short())),
        None => Error::damaged(format!("chunk {} is in no pack of the repository", id.short())),
    }
}

/// The part of a decoded frame that a home says is the chunk, compared with the chunk's id.
pub fn verified_slice<'a>(content: &'a [u8], id: ChunkId, home: &Home) -> Result<&'a [u8]> {
    let chunk = slice_of(content, home)?;
    if ChunkId::of(chunk) != id {
        return Err(Error::damaged(format!("pack {} holds other bytes than it should", home.pack)));
    }
    Ok(chunk)
}

/// The part of a decoded frame that a home says is the chunk.
pub fn slice_of<'a>(content: &'a [u8], home: &Home) -> Result<&'a [u8]> {
    let at = usize::try_from(home.at).unwrap_or(usize::MAX);
    let bytes = usize::try_from(home.bytes).unwrap_or(usize::MAX);
    at.checked_add(bytes)
        .and_then(|end| content.get(at..end))
        .ok_or_else(|| Error::damaged(format!("a frame of pack {} is shorter than its chunks", home.pack)))
}
