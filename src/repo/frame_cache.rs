//! Reading many chunks in a row: a frame that holds several is decoded once and not once for each, and so is what
//! several are coded against.
//!
//! Chunks come verified, as from [`Repo::read_chunk`]. Only frames that several chunks share and bases are kept, no more
//! than a few.

use super::Repo;
use super::chain::{BaseCache, Chain, Unread, at_any_home};
use super::chunks::{unreadable, verified_slice};
use super::index::Home;
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many decoded frames are kept: metadata is read in the order in which it was written.
const FRAMES_MAX: usize = 8;

/// A few decoded frames, the one used last at the end, and a few bases.
pub struct FrameCache<'r> {
    repo: &'r Repo,
    bases: BaseCache,
    frames: Mutex<VecDeque<Kept>>,
}

type Kept = ((PackId, u64), Arc<Vec<u8>>);

impl<'r> FrameCache<'r> {
    /// An empty cache for chunks of `repo`.
    pub fn new(repo: &'r Repo) -> FrameCache<'r> {
        FrameCache { repo, bases: BaseCache::default(), frames: Mutex::default() }
    }

    /// The content of one chunk, verified. [`Kind::Damaged`](crate::error::Kind::Damaged) if no home of it can be read.
    pub fn read(&self, id: ChunkId) -> Result<Vec<u8>> {
        if let Some(content) = self.repo.kept_tree(id)? {
            return Ok(content);
        }
        let homes = self.repo.locate(&[id])?.pop().unwrap_or_default();
        let mut failure = None;
        let read = at_any_home(self.repo, &homes, &mut failure, |home| self.read_at(id, home));
        read.ok_or_else(|| unreadable(id, failure))
    }

    /// The verified contents of `bases`, one behind the other: what a frame that holds `id` is decoded against.
    pub fn read_bases(&self, id: ChunkId, bases: &[ChunkId]) -> Result<Arc<Vec<u8>>> {
        Chain::new(self.repo, &self.bases).bases_of(id, bases)
    }

    fn read_at(&self, id: ChunkId, home: &Home) -> std::result::Result<Vec<u8>, Unread> {
        let key = (home.pack, home.frame_offset);
        if let Some(content) = self.kept(key) {
            return Ok(verified_slice(self.repo, &content, id, home)?.to_vec());
        }
        let content = Chain::new(self.repo, &self.bases).frame(id, home)?;
        let chunk = verified_slice(self.repo, &content, id, home)?;
        if chunk.len() == content.len() {
            return Ok(content);
        }
        let chunk = chunk.to_vec();
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.len() == FRAMES_MAX {
            frames.pop_front();
        }
        frames.push_back((key, Arc::new(content)));
        Ok(chunk)
    }

    fn kept(&self, key: (PackId, u64)) -> Option<Arc<Vec<u8>>> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let at = frames.iter().position(|(known, _)| *known == key)?;
        let found = frames.remove(at)?;
        let content = Arc::clone(&found.1);
        frames.push_back(found);
        Some(content)
    }
}
