//! Reading chunks: find a home, read the frame, decode, check against the id; the next home if it fails, and parity if all do.

use super::Repo;
use super::chain::{BaseCache, Chain, at_any_home, is_no_damage};
use super::entry::Entry;
use super::index::Home;
use super::pack::PackKind;
use super::stream::StreamRef;
use super::tree::{Children, Entries, Place, Within};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::{ChunkId, PackId};
use crate::sabotage::is_planted;

impl Repo {
    /// For each chunk, where it can be read. What the index does not know is looked for in the packs themselves.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        let seen = self.recoveries();
        let homes = self.index().homes(ids)?;
        if homes.iter().all(|h| !h.is_empty()) || !self.recover_index(seen)? {
            return Ok(homes);
        }
        self.index().homes(ids)
    }

    /// The content of one chunk, verified. [`Kind::Damaged`] if no home of it can be read, or none of
    /// what such a home needs.
    pub fn read_chunk(&self, id: ChunkId) -> Result<Vec<u8>> {
        if let Some(content) = self.kept_tree(id)? {
            return Ok(content);
        }
        let mut failure = None;
        loop {
            let seen = self.recoveries();
            let homes = self.locate(&[id])?.pop().unwrap_or_default();
            if let Some(content) = self.read_at_any(id, &homes, &mut failure) {
                return Ok(content);
            }
            // A prune may have moved it, or what it needs, since the index was read; and again since then.
            if !self.recover_index(seen)? {
                return Err(unreadable(id, failure));
            }
        }
    }

    /// For a key that cannot open packs of metadata: the chunk, if this host has written it and kept it, otherwise the
    /// error of such a key. None for every other key, which reads it from the repository.
    pub(super) fn kept_tree(&self, id: ChunkId) -> Result<Option<Vec<u8>>> {
        if self.keys().opens(PackKind::Tree) {
            return Ok(None);
        }
        match self.index().kept_tree(id)?.filter(|content| self.chunk_id(content) == id) {
            Some(content) => Ok(Some(content)),
            None => self.keys().require(PackKind::Tree).map(|()| None),
        }
    }

    fn read_at_any(&self, id: ChunkId, homes: &[Home], failure: &mut Option<Error>) -> Option<Vec<u8>> {
        let bases = BaseCache::default();
        at_any_home(self, homes, failure, |home| Chain::new(self, &bases).verified(id, home))
    }

    /// The content of the whole frame in which `home` says that `id` lies, not compared with any id yet. What the frame
    /// needs is read, too, and has been compared.
    pub fn read_frame(&self, id: ChunkId, home: &Home) -> Result<Vec<u8>> {
        Chain::new(self, &BaseCache::default()).frame(id, home).map_err(|unread| unread.error)
    }

    /// The stored bytes of the frame that `home` lies in.
    pub(super) fn read_stored(&self, home: &Home) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        let range = ByteRange::new(home.frame_offset, u64::from(home.frame_stored))?;
        self.read_pack(home.pack, range, &mut frame)?;
        self.open_frame(home.pack, home.frame_offset, &mut frame)?;
        Ok(frame)
    }

    /// Opens a frame as it was stored at `offset` of a pack, in place. Every frame read goes through here or
    /// [`Repo::open_frame_in`] before it is decoded.
    pub fn open_frame(&self, pack: PackId, offset: u64, stored: &mut Vec<u8>) -> Result<()> {
        let bytes = self.open_frame_in(pack, offset, stored)?.len();
        stored.truncate(bytes);
        Ok(())
    }

    /// As [`Repo::open_frame`]; returns the part that holds the frame.
    pub fn open_frame_in<'b>(&self, pack: PackId, offset: u64, stored: &'b mut [u8]) -> Result<&'b mut [u8]> {
        self.keys().open_frame(self, pack, offset, stored)
    }

    /// Reads and decodes the entries of `tree`, in order. `fetch` is [`Repo::read_chunk`].
    pub fn entries<'a>(&self, fetch: &'a super::tree::FetchChunk<'a>, tree: Option<StreamRef>) -> Entries<'a> {
        Entries::new(fetch, tree)
    }

    /// As [`Repo::entries`], but only what is at `places` or beneath them, which come in their order and none beneath another. What
    /// lies elsewhere is not read, as far as that can be told without reading it.
    pub fn entries_within<'a>(
        &self,
        fetch: &'a super::tree::FetchChunk<'a>,
        tree: Option<StreamRef>,
        places: Vec<Place>,
    ) -> Box<dyn Iterator<Item = Result<Entry>> + 'a> {
        if places.len() > 1 && places.iter().all(|(_, path)| path.is_empty()) {
            // One walk, so that a part that holds the end of one root and the beginning of the next is told of once.
            let is_meant = move |entry: &Result<Entry>| match entry {
                Ok(entry) => places.iter().any(|(root, _)| *root == entry.root),
                Err(_) => true,
            };
            return Box::new(self.entries(fetch, tree).filter(is_meant));
        }
        Box::new(places.into_iter().flat_map(move |place| Within::new(fetch, tree, place)))
    }

    /// The chunks of a file's content, in order.
    pub fn content_chunks<'a>(&self, fetch: &'a super::tree::FetchChunk<'a>, content: StreamRef) -> Children<'a> {
        Children::new(fetch, content)
    }
}

/// The error of a chunk none of whose homes could be read; `failure` is that of the last one.
pub(super) fn unreadable(id: ChunkId, failure: Option<Error>) -> Error {
    match failure {
        // A repository that cannot be reached is not damaged, nor is one for which this run lacks means.
        Some(error) if is_no_damage(&error) => error,
        Some(error) => {
            let name = format!("chunk {}", id.short());
            // What a chunk needs is told with its name already.
            let error = if error.to_string().starts_with(&name) { error } else { error.while_doing(name) };
            error.with_kind(Kind::Damaged)
        }
        None => Error::damaged(format!("chunk {} is in no pack of the repository", id.short())),
    }
}

/// The part of a decoded frame that a home says is the chunk, compared with the chunk's id.
pub fn verified_slice<'a>(repo: &Repo, content: &'a [u8], id: ChunkId, home: &Home) -> Result<&'a [u8]> {
    let chunk = slice_of(content, home)?;
    if repo.chunk_id(chunk) != id && !is_planted("read-chunk-not-compared") {
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
