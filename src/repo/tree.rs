//! The entries of a snapshot as a stream: written in order, read in order, never whole in memory.
//!
//! A leaf is a run of entries; which entry ends a leaf depends on its own path only, so adding a file changes one leaf
//! and the few nodes above it. Damage to a leaf costs the entries in it: the walk reports it and goes on.

mod seek;

pub use seek::{Place, Within};

use super::entry::{self, Entry};
use super::stream::{Child, NodeBuilder, StreamRef};
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::paths::compare_paths;
use std::collections::HashSet;

/// A leaf is not ended before it has this many bytes ...
const LEAF_BYTES_MIN: usize = 16 << 10;
/// ... and not continued beyond this many.
const LEAF_BYTES_MAX: usize = 256 << 10;
/// In between, each entry ends the leaf with a chance of 1 in this.
const LEAF_ENTRIES_MEAN: u64 = 256;

/// Keeps a chunk of metadata and returns its id.
pub type StoreChunk<'a> = dyn FnMut(Vec<u8>) -> Result<ChunkId> + 'a;

/// Brings a chunk's content, verified.
pub type FetchChunk<'a> = dyn Fn(ChunkId) -> Result<Vec<u8>> + Send + Sync + 'a;

/// Writes the stream of a snapshot's entries.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    nodes: NodeBuilder,
    leaf: Vec<u8>,
    last: Option<(u32, Vec<u8>)>,
}

impl TreeBuilder {
    /// Adds the next entry; they come in their order, each path once.
    pub fn push(&mut self, entry: &Entry, store: &mut StoreChunk<'_>) -> Result<()> {
        if let Some((root, path)) = &self.last {
            let order = root.cmp(&entry.root).then_with(|| compare_paths(path, &entry.path));
            if order != std::cmp::Ordering::Less {
                let (path, before) = (String::from_utf8_lossy(&entry.path), String::from_utf8_lossy(path));
                return Err(Error::damaged(format!("entry {path:?} does not come after {before:?}")));
            }
        }
        self.last = Some((entry.root, entry.path.clone()));
        entry::append(entry, &mut self.leaf)?;
        let ends_here = self.leaf.len() >= LEAF_BYTES_MIN && path_ends_leaf(&entry.path);
        if ends_here || self.leaf.len() >= LEAF_BYTES_MAX {
            self.close_leaf(store)?;
        }
        Ok(())
    }

    /// Ends the stream; none if there was no entry.
    pub fn finish(mut self, store: &mut StoreChunk<'_>) -> Result<Option<StreamRef>> {
        if !self.leaf.is_empty() {
            self.close_leaf(store)?;
        }
        self.nodes.finish(store)
    }

    fn close_leaf(&mut self, store: &mut StoreChunk<'_>) -> Result<()> {
        let leaf = std::mem::take(&mut self.leaf);
        let bytes = u64::try_from(leaf.len()).unwrap_or(u64::MAX);
        let id = store(leaf)?;
        self.nodes.push(Child { id, bytes }, store)
    }
}

fn path_ends_leaf(path: &[u8]) -> bool {
    let hash = blake3::hash(path);
    let front = hash.as_bytes()[..8].try_into().map_or(0, u64::from_le_bytes);
    front.is_multiple_of(LEAF_ENTRIES_MEAN)
}

/// The lowest children of a stream, in order: chunks of content, or leaves of entries.
///
/// A node that cannot be read comes as an error that says how many bytes are lost with it, and the walk goes on behind it. With the
/// second error for the same node it ends: a few nodes can name the same lost one without end.
pub struct Children<'a> {
    fetch: &'a FetchChunk<'a>,
    lost: HashSet<ChunkId>,
    /// What is still to come, last first: children with the depth of what they name.
    ahead: Vec<(Child, u8)>,
}

impl<'a> Children<'a> {
    /// The children of `stream`.
    pub fn new(fetch: &'a FetchChunk<'a>, stream: StreamRef) -> Children<'a> {
        Children {
            fetch,
            lost: HashSet::new(),
            ahead: vec![(Child { id: stream.root, bytes: stream.bytes }, stream.depth)],
        }
    }

    fn open_node(&mut self, node: Child, depth: u8) -> Result<()> {
        let children = Children::open(self.fetch, node)?;
        self.ahead.extend(children.into_iter().rev().map(|child| (child, depth - 1)));
        Ok(())
    }
}

impl Iterator for Children<'_> {
    type Item = Result<Child>;

    fn next(&mut self) -> Option<Result<Child>> {
        loop {
            let (child, depth) = self.ahead.pop()?;
            if depth == 0 {
                return Some(Ok(child));
            }
            if let Err(error) = self.open_node(child, depth) {
                if !self.lost.insert(child.id) {
                    self.ahead.clear();
                }
                return Some(Err(error.while_doing(format!("a list of {} bytes", child.bytes))));
            }
        }
    }
}

/// The entries of a snapshot, in order.
///
/// A leaf or node that cannot be read comes as an error, and the walk goes on behind it. It ends where no writer could have
/// made what is there: at an entry that does not come after the one before, and at the second error for the same leaf.
/// So every leaf is walked once, however many nodes name it.
pub struct Entries<'a> {
    leaves: Option<Children<'a>>,
    fetch: &'a FetchChunk<'a>,
    leaf: Vec<u8>,
    at: usize,
    last: Option<(u32, Vec<u8>)>,
    lost: HashSet<ChunkId>,
}

impl<'a> Entries<'a> {
    /// The entries of the tree `stream`; none is the empty tree.
    pub fn new(fetch: &'a FetchChunk<'a>, stream: Option<StreamRef>) -> Entries<'a> {
        let leaves = stream.map(|s| Children::new(fetch, s));
        Entries { leaves, fetch, leaf: Vec::new(), at: 0, last: None, lost: HashSet::new() }
    }

    /// Loads the next leaf, which is as long as its node says; none behind the last.
    fn next_leaf(&mut self) -> Option<Result<()>> {
        (self.at, self.leaf) = (0, Vec::new());
        let child = match self.leaves.as_mut()?.next()? {
            Ok(child) => child,
            Err(error) => return Some(Err(error)),
        };
        match (self.fetch)(child.id) {
            Ok(leaf) if leaf.len() as u64 == child.bytes => {
                self.leaf = leaf;
                Some(Ok(()))
            }
            lost => {
                if !self.lost.insert(child.id) {
                    self.leaves = None;
                }
                let (found, said) = (lost.as_ref().map_or(0, Vec::len), child.bytes);
                Some(Err(lost.err().unwrap_or_else(|| {
                    Error::damaged(format!("leaf {} has {found} bytes, and its node says {said}", child.id))
                })))
            }
        }
    }

    /// The entry, if it comes after the one before; otherwise the walk is over.
    fn in_order(&mut self, entry: Entry) -> Result<Entry> {
        let comes_after = self
            .last
            .as_ref()
            .is_none_or(|(root, path)| root.cmp(&entry.root).then_with(|| compare_paths(path, &entry.path)).is_lt());
        if comes_after {
            let last = self.last.get_or_insert_default();
            last.0 = entry.root;
            last.1.clone_from(&entry.path);
            return Ok(entry);
        }
        (self.leaves, self.at) = (None, self.leaf.len());
        let path = String::from_utf8_lossy(&entry.path);
        Err(Error::damaged(format!("the list of files is out of order at {path:?}, and nothing behind it is believed")))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        while self.at >= self.leaf.len() {
            if let Err(error) = self.next_leaf()? {
                return Some(Err(error.while_doing("a part of the list of files")));
            }
        }
        let mut rest = &self.leaf[self.at..];
        let taken = entry::take(&mut rest);
        // Behind an entry that cannot be decoded nothing in its leaf can be trusted.
        self.at = if taken.is_ok() { self.leaf.len() - rest.len() } else { self.leaf.len() };
        Some(taken.and_then(|entry| self.in_order(entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::file;
    use super::*;
    use std::collections::HashMap;

    /// The tree of a list, and its chunks.
    pub(super) fn stored(list: &[Entry]) -> (Option<StreamRef>, HashMap<ChunkId, Vec<u8>>) {
        let mut kept = HashMap::new();
        let mut store = |chunk: Vec<u8>| {
            let id = ChunkId::of(&chunk);
            kept.insert(id, chunk);
            Ok(id)
        };
        let mut builder = TreeBuilder::default();
        list.iter().for_each(|entry| builder.push(entry, &mut store).expect("in order"));
        let tree = builder.finish(&mut store).expect("fits");
        (tree, kept)
    }

    fn build(count: usize) -> (Option<StreamRef>, HashMap<ChunkId, Vec<u8>>) {
        stored(&(0..count).map(|i| file(&format!("{i:08}"), 1)).collect::<Vec<_>>())
    }

    #[test]
    fn trees_of_every_size_read_back_in_order() {
        for count in [0, 1, 2, 300, 20_000] {
            let (tree, kept) = build(count);
            let fetch = |id: ChunkId| Ok(kept[&id].clone());
            let paths: Vec<_> = Entries::new(&fetch, tree).map(|e| e.expect("sound").path).collect();
            assert_eq!(paths.len(), count);
            assert!(paths.is_sorted());
        }
    }

    #[test]
    fn a_damaged_leaf_costs_its_entries_only() {
        let (tree, kept) = build(20_000);
        let lost = *kept.iter().find(|(_, chunk)| chunk.len() > LEAF_BYTES_MIN && chunk[4] >= 0xa0).expect("a leaf").0;
        let fetch = |id: ChunkId| if id == lost { Err(Error::damaged("lost")) } else { Ok(kept[&id].clone()) };
        let (good, bad): (Vec<_>, Vec<_>) = Entries::new(&fetch, tree).partition(|e| e.is_ok());
        assert_eq!(bad.len(), 1);
        assert!(good.len() > 15_000 && good.len() < 20_000);
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let mut builder = TreeBuilder::default();
        let mut store = |chunk: Vec<u8>| Ok(ChunkId::of(&chunk));
        builder.push(&file("b", 1), &mut store).expect("first");
        assert!(builder.push(&file("a", 1), &mut store).is_err());
        assert!(builder.push(&file("b", 1), &mut store).is_err());
    }

    fn leaf(names: &[&str]) -> Vec<u8> {
        let mut leaf = Vec::new();
        names.iter().for_each(|name| entry::append(&file(name, 1), &mut leaf).expect("short"));
        leaf
    }

    /// Levels of nodes above `bottom`, each of 4,096 times the one below.
    fn repeated(kept: &mut HashMap<ChunkId, Vec<u8>>, bottom: Child, depth: u8) -> StreamRef {
        let mut child = bottom;
        for _ in 0..depth {
            let record = [&child.id.as_bytes()[..], &child.bytes.to_le_bytes()].concat();
            let node = record.repeat(4096);
            child = Child { id: ChunkId::of(&node), bytes: child.bytes.saturating_mul(4096) };
            kept.insert(child.id, node);
        }
        StreamRef { root: child.id, depth, bytes: child.bytes }
    }

    #[test]
    fn a_few_nodes_that_name_the_same_without_end_are_left_soon() {
        let (sound, empty) = (leaf(&["a", "b"]), Vec::new());
        let mut kept = HashMap::new();
        let mut walk = |leaf: &Vec<u8>, is_there: bool, bytes: u64, depth: u8| {
            let id = ChunkId::of(leaf);
            kept.clear();
            let tree = repeated(&mut kept, Child { id, bytes }, depth);
            if is_there {
                kept.insert(id, leaf.clone());
            }
            let fetch = |id: ChunkId| kept.get(&id).cloned().ok_or_else(|| Error::damaged("lost"));
            let (good, bad): (Vec<_>, Vec<_>) = Entries::new(&fetch, Some(tree)).partition(Result::is_ok);
            (good.len(), bad.len())
        };
        assert_eq!(walk(&sound, true, sound.len() as u64, 3), (2, 1), "the second time it is out of order");
        assert_eq!(walk(&sound, true, 7, 5), (0, 2), "it is not as long as it should be");
        assert_eq!(walk(&sound, false, 7, 5), (0, 2), "it is lost");
        assert_eq!(walk(&empty, true, 0, 3), (0, 1), "a child without content");
    }

    #[test]
    fn behind_an_entry_out_of_order_the_walk_ends() {
        for names in [["a", "c", "b", "d"], ["a", "b", "b", "c"]] {
            let leaf = leaf(&names);
            let tree = StreamRef { root: ChunkId::of(&leaf), depth: 0, bytes: leaf.len() as u64 };
            let fetch = |_| Ok(leaf.clone());
            let (good, bad): (Vec<_>, Vec<_>) = Entries::new(&fetch, Some(tree)).partition(Result::is_ok);
            assert_eq!((good.len(), bad.len()), (2, 1));
        }
    }
}
