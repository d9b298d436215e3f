//! The damage that was found: one item for each object, bounded.

use crate::ids::{ChunkId, PackId, SnapshotId};
use std::collections::{HashMap, HashSet};

/// A damaged object and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Snapshots and absolute paths of files that cannot be restored because of it, at most [`Damage::FILES_KEPT_MAX`].
    /// A path is empty where a part of the list of files itself is lost.
    pub files: Vec<(SnapshotId, Vec<u8>)>,
    /// True if `repair` can put it right with what the repository holds.
    pub is_mendable: bool,
}

impl Damage {
    /// The most items that a report holds.
    pub const KEPT_MAX: usize = 1000;
    /// The most files that one item names.
    pub const FILES_KEPT_MAX: usize = 100;
}

/// Collects damage.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) damage: Vec<Damage>,
    pub(crate) count: u64,
    by_object: HashMap<String, usize>,
}

impl Found {
    /// Adds what is wrong with an object; one that is known to be damaged stays one item. Returns the item's position.
    pub(crate) fn add(&mut self, object: &str, what: impl Into<String>) -> usize {
        let what = what.into();
        if let Some(&at) = self.by_object.get(object) {
            if let Some(damage) = self.damage.get_mut(at)
                && !damage.what.contains(&what)
                && damage.what.len() < 1000
            {
                damage.what.push_str("; ");
                damage.what.push_str(&what);
            }
            return at;
        }
        self.count += 1;
        if self.damage.len() >= Damage::KEPT_MAX {
            return usize::MAX;
        }
        self.by_object.insert(object.to_owned(), self.damage.len());
        self.damage.push(Damage { object: object.to_owned(), what, files: Vec::new(), is_mendable: false });
        self.damage.len() - 1
    }

    /// Notes that the item at this position can be put right.
    pub(crate) fn set_mendable(&mut self, at: usize) {
        if let Some(damage) = self.damage.get_mut(at) {
            damage.is_mendable = true;
        }
    }

    /// Adds a file that the item at this position costs.
    pub(crate) fn add_file(&mut self, at: usize, snapshot: SnapshotId, path: &[u8]) {
        if let Some(damage) = self.damage.get_mut(at)
            && damage.files.len() < Damage::FILES_KEPT_MAX
            && !damage.files.iter().any(|(s, p)| (*s, p.as_slice()) == (snapshot, path))
        {
            damage.files.push((snapshot, path.to_vec()));
        }
    }
}

/// Which packs or chunks in them cannot be relied on.
#[derive(Debug, Default)]
pub(crate) struct BadPacks {
    /// For each pack its chunks that are bad; none stands for all of them.
    pub(crate) packs: HashMap<PackId, Option<HashSet<ChunkId>>>,
}

impl BadPacks {
    /// Nothing in the pack can be relied on.
    pub(crate) fn add_whole(&mut self, pack: PackId) {
        self.packs.insert(pack, None);
    }

    /// These chunks of it cannot.
    pub(crate) fn add_chunks(&mut self, pack: PackId, chunks: HashSet<ChunkId>) {
        if let Some(known) = self.packs.entry(pack).or_insert_with(|| Some(HashSet::new())) {
            known.extend(chunks);
        }
    }

    pub(crate) fn merge(&mut self, other: BadPacks) {
        for (pack, chunks) in other.packs {
            match chunks {
                None => self.add_whole(pack),
                Some(chunks) => self.add_chunks(pack, chunks),
            }
        }
    }

    /// The chunks that are bad, each with the pack in which it is, but for packs that are bad as a whole.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (ChunkId, PackId)> + '_ {
        let partly = self.packs.iter().filter_map(|(pack, chunks)| Some((pack, chunks.as_ref()?)));
        partly.flat_map(|(pack, chunks)| chunks.iter().map(move |chunk| (*chunk, *pack)))
    }

    /// True if the chunk cannot be read from the pack.
    pub(crate) fn is_bad(&self, pack: &PackId, chunk: &ChunkId) -> bool {
        self.packs.get(pack).is_some_and(|chunks| chunks.as_ref().is_none_or(|chunks| chunks.contains(chunk)))
    }

    /// True if nothing in it can be relied on.
    pub(crate) fn is_whole_bad(&self, pack: &PackId) -> bool {
        self.packs.get(pack).is_some_and(Option::is_none)
    }
}
