//! The content of a file of a snapshot, read at positions: what a parser of layouts works on.
//!
//! The chunk list is read at once, 48 bytes of memory for each chunk; content is fetched, verified, as it is asked for.

use super::frame_cache::FrameCache;
use super::stream::{Child, StreamRef};
use super::tree::Children;
use crate::error::Result;
use crate::ids::ChunkId;
use crate::read_at::ReadAt;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Chunks that are kept, the one used last at the end: headers are read in small pieces from few places.
const CHUNKS_KEPT: usize = 4;

/// A chunk and where its bytes begin in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedChunk {
    /// The position of its first byte.
    pub offset: u64,
    /// The chunk, perhaps a hole, and its length.
    pub child: Child,
}

/// See the module.
pub struct ContentReader<'r> {
    frames: &'r FrameCache<'r>,
    chunks: Vec<PlacedChunk>,
    bytes: u64,
    kept: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

impl<'r> ContentReader<'r> {
    /// Reads the chunk list of `content`; none is an empty file.
    pub fn open(frames: &'r FrameCache<'r>, content: Option<StreamRef>) -> Result<ContentReader<'r>> {
        let fetch = |id| frames.read(id);
        let mut chunks = Vec::new();
        let mut offset = 0u64;
        for child in content.into_iter().flat_map(|content| Children::new(&fetch, content)) {
            let child = child?;
            chunks.push(PlacedChunk { offset, child });
            offset = offset.saturating_add(child.bytes);
        }
        Ok(ContentReader { frames, chunks, bytes: offset, kept: Mutex::default() })
    }

    /// The chunks of the file, in order.
    pub fn chunks(&self) -> &[PlacedChunk] {
        &self.chunks
    }

    /// The chunks, given up by the reader.
    pub fn into_chunks(self) -> Vec<PlacedChunk> {
        self.chunks
    }

    fn content(&self, number: usize, id: ChunkId) -> Result<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| *known == number)
            && let Some(found) = kept.remove(at)
        {
            let content = Arc::clone(&found.1);
            kept.push_back(found);
            return Ok(content);
        }
        let content = Arc::new(self.frames.read(id)?);
        if kept.len() == CHUNKS_KEPT {
            kept.pop_front();
        }
        kept.push_back((number, Arc::clone(&content)));
        Ok(content)
    }
}

impl ReadAt for ContentReader<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        let mut number = self.chunks.partition_point(|c| c.offset.saturating_add(c.child.bytes) <= offset);
        while let Some(PlacedChunk { offset: start, child }) = self.chunks.get(number).filter(|_| filled < buffer.len())
        {
            let at = (offset + filled as u64).saturating_sub(*start);
            let left = usize::try_from(child.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
            let now = left.min(buffer.len() - filled);
            let into = &mut buffer[filled..filled + now];
            if child.id == ChunkId::HOLE {
                into.fill(0);
            } else {
                let content = self.content(number, child.id)?;
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let Some(part) = at.checked_add(now).and_then(|end| content.get(at..end)) else { break };
                into.copy_from_slice(part);
            }
            filled += now;
            number += 1;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node, noise};

    #[test]
    fn any_range_reads_as_it_was_saved() {
        let repo = test_support::open(&test_support::storage());
        let (front, back) = (noise(1, 400_000), noise(2, 300_000));
        let node = Node::Sparse(front.clone(), 1 << 20, back.clone());
        let snapshot = test_support::save(&repo, 10, &[("file", node)]);
        let expected = [front, vec![0; 1 << 20], back].concat();
        let frames = FrameCache::new(&repo);
        let fetch = |id| frames.read(id);
        let entry = repo.entries(&fetch, snapshot.tree).map(|e| e.expect("sound")).find(|e| e.is_file());
        let reader = ContentReader::open(&frames, entry.expect("saved").content).expect("sound");
        assert_eq!(reader.bytes(), expected.len() as u64);
        let starts = reader.chunks().iter().map(|c| c.offset as usize);
        for at in starts.chain([0, 1, 399_999, 1_400_000, expected.len() - 1, expected.len(), expected.len() + 5]) {
            for len in [0, 1, 100, 70_000] {
                let mut buffer = vec![1; len];
                let read = reader.read_at(at as u64, &mut buffer).expect("sound");
                let wanted = expected.get(at..).unwrap_or_default();
                assert_eq!(buffer[..read], wanted[..len.min(wanted.len())], "{len} at {at}");
            }
        }
    }
}
