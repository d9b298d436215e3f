//! A filter that tells of most ids that they are not in `chunks`, without a look into the database.
//!
//! A Bloom filter in blocks of 64 bytes: an id sets 7 bits of one block, so a question costs one access to memory. With 10
//! bits for each id it errs for about one absent id in a hundred, and never for a present one. It lies beside the database
//! with a checksum and the mark of the state of `chunks` that it was made for; one that is damaged, or of another state,
//! is none. Ids can be added and not removed: those of removed rows stay, which costs look-ups.

use crate::error::{Error, Result};
use crate::ids::ChunkId;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"CKPTFLT1";
const BLOCK_WORDS: usize = 8;
const BLOCK_BYTES: u64 = 64;
const BITS_PER_ID: u64 = 10;
const BITS_SET: u32 = 7;
/// Room for as many ids again as this part of those that are there, so that some can be added.
const ROOM_SHARE: u64 = 8;
const HEAD_BYTES: usize = 8 + 16 + 8 + 8;
/// For 10,000,000,000 ids: a longer file is not looked at.
const BYTES_MAX: u64 = 12_500_000_000;

/// The state of `chunks` that a filter belongs to: random.
pub(super) type Mark = [u8; 16];

/// See the module.
pub(super) struct Filter {
    mark: Mark,
    /// How many more ids may be added.
    room: u64,
    blocks: Vec<[u64; BLOCK_WORDS]>,
}

impl Filter {
    /// An empty one for `ids` ids and some more.
    pub(super) fn for_ids(ids: u64, mark: Mark) -> Filter {
        let room = ids.saturating_add(ids / ROOM_SHARE).saturating_add(1);
        let blocks = room.saturating_mul(BITS_PER_ID) / (8 * BLOCK_BYTES) + 1;
        Filter { mark, room, blocks: vec![[0; BLOCK_WORDS]; usize::try_from(blocks).unwrap_or(1)] }
    }

    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Gives it to another state, whose new ids are then added.
    pub(super) fn set_mark(&mut self, mark: Mark) {
        self.mark = mark;
    }

    /// How many ids may be added before it errs more often than it should.
    pub(super) fn room(&self) -> u64 {
        self.room
    }

    pub(super) fn add(&mut self, id: &ChunkId) {
        let (block, bits) = self.place(id);
        self.room = self.room.saturating_sub(1);
        let block = &mut self.blocks[block];
        for bit in bits {
            block[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// False if the id was never added.
    pub(super) fn may_hold(&self, id: &ChunkId) -> bool {
        let (block, mut bits) = self.place(id);
        let block = &self.blocks[block];
        bits.all(|bit| block[bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// The block of an id, and its bits there: ids in order are in blocks in order, which makes adding many fast. Ids are
    /// hashes; whoever makes up others spoils the filter only for those.
    fn place(&self, id: &ChunkId) -> (usize, impl Iterator<Item = usize> + use<>) {
        let word = |at: usize| {
            let bytes = id.as_bytes().get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let block = (u128::from(word(0).swap_bytes()) * self.blocks.len() as u128) >> 64;
        let bits = word(16);
        let bits = (0..BITS_SET).map(move |n| usize::try_from((bits >> (9 * n)) & 511).unwrap_or(0));
        (usize::try_from(block).unwrap_or(0), bits)
    }

    /// Writes it to `path`, whole or not at all.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let beside = path.with_extension(format!("tmp-{}", std::process::id()));
        let written = (|| {
            let mut file = File::create(&beside)?;
            let mut hasher = blake3::Hasher::new();
            let mut write = |bytes: &[u8]| {
                hasher.update(bytes);
                file.write_all(bytes)
            };
            write(
                &[MAGIC.as_slice(), &self.mark, &self.room.to_le_bytes(), &(self.blocks.len() as u64).to_le_bytes()]
                    .concat(),
            )?;
            let mut bytes = Vec::new();
            for blocks in self.blocks.chunks(1 << 14) {
                bytes.clear();
                bytes.extend(blocks.iter().flatten().flat_map(|word| word.to_le_bytes()));
                write(&bytes)?;
            }
            file.write_all(hasher.finalize().as_bytes())?;
            std::fs::rename(&beside, path)
        })();
        written.map_err(|error| {
            let _ = std::fs::remove_file(&beside);
            Error::io(format!("writing {}", path.display()), error)
        })
    }

    /// The one at `path` if it is whole and of this state.
    pub(super) fn load(path: &Path, mark: &Mark) -> Option<Filter> {
        let mut file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).ok()?;
        let number = |at: usize| head[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let (room, count) = (number(24), number(32));
        let blocks_bytes = count.checked_mul(BLOCK_BYTES).filter(|&bytes| bytes <= BYTES_MAX)?;
        let is_of_state = &head[..8] == MAGIC && &head[8..24] == mark && count > 0;
        if !is_of_state || length != blocks_bytes + HEAD_BYTES as u64 + 32 {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head);
        let mut blocks = Vec::with_capacity(usize::try_from(count).ok()?);
        let mut bytes = vec![0; 1 << 20];
        while (blocks.len() as u64) < count {
            let left = usize::try_from((count - blocks.len() as u64) * BLOCK_BYTES).ok()?;
            let piece = bytes.len().min(left);
            let bytes = &mut bytes[..piece];
            file.read_exact(bytes).ok()?;
            hasher.update(bytes);
            let (words, _) = bytes.as_chunks::<8>();
            let (words, _) = words.as_chunks::<BLOCK_WORDS>();
            blocks.extend(words.iter().map(|words| words.map(u64::from_le_bytes)));
        }
        let mut checksum = [0; 32];
        file.read_exact(&mut checksum).ok()?;
        (hasher.finalize().as_bytes() == &checksum).then_some(Filter { mark: *mark, room, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ChunkId {
        ChunkId::of(&number.to_le_bytes())
    }

    #[test]
    fn what_was_added_is_held_and_little_else() {
        for count in [1, 10, 50_000] {
            let mut filter = Filter::for_ids(count, [1; 16]);
            (0..count).for_each(|number| filter.add(&id(number)));
            assert!((0..count).all(|number| filter.may_hold(&id(number))));
            let wrong = (0..10_000).filter(|number| filter.may_hold(&id((1 << 40) + number))).count();
            assert!(wrong < 200 || count < 50_000, "{wrong} of 10,000");
        }
    }

    #[test]
    fn a_filter_that_is_damaged_cut_or_of_another_state_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("filter");
        assert!(Filter::load(&path, &[1; 16]).is_none());
        let mut filter = Filter::for_ids(100, [1; 16]);
        (0..100).for_each(|number| filter.add(&id(number)));
        filter.save(&path).expect("written");
        let loaded = Filter::load(&path, &[1; 16]).expect("whole");
        assert!((0..100).all(|number| loaded.may_hold(&id(number))) && loaded.room() == filter.room());
        assert!(Filter::load(&path, &[2; 16]).is_none());
        let whole = std::fs::read(&path).expect("read");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).expect("written");
            assert!(Filter::load(&path, &[1; 16]).is_none(), "byte {at}");
            std::fs::write(&path, &whole[..at]).expect("written");
            assert!(Filter::load(&path, &[1; 16]).is_none(), "cut at {at}");
        }
    }
}
