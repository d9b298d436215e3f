//! The entries of a snapshot as a stream: written in order, read in order, never whole in memory.
//!
//! A leaf is a run of entries; which entry ends a leaf depends on its own path only, so adding a file changes one leaf
//! and the few nodes above it. Damage to a leaf costs the entries in it: the walk reports it and goes on.

use super::entry::{self, Entry};
use super::stream::{self, Child, NodeBuilder, StreamRef};
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::paths::compare_paths;

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
/// A node that cannot be read comes as an error that says how many bytes are lost with it, and the walk goes on behind it.
pub struct Children<'a> {
    fetch: &'a FetchChunk<'a>,
    /// What is still to come, last first: children with the depth of what they name.
    ahead: Vec<(Child, u8)>,
}

impl<'a> Children<'a> {
    /// The children of `stream`.
    pub fn new(fetch: &'a FetchChunk<'a>, stream: StreamRef) -> Children<'a> {
        Children { fetch, ahead: vec![(Child { id: stream.root, bytes: stream.bytes }, stream.depth)] }
    }

    fn open_node(&mut self, node: Child, depth: u8) -> Result<()> {
        let children = stream::parse_node(&(self.fetch)(node.id)?)?;
        let covered = children.iter().try_fold(0u64, |sum, child| sum.checked_add(child.bytes));
        if covered != Some(node.bytes) {
            return Err(Error::damaged(format!("node {} does not cover the {} bytes it should", node.id, node.bytes)));
        }
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
                return Some(Err(error.while_doing(format!("a list of {} bytes", child.bytes))));
            }
        }
    }
}

/// The entries of a snapshot, in order.
///
/// A leaf or node that cannot be read comes as an error, and the walk goes on behind it.
pub struct Entries<'a> {
    leaves: Option<Children<'a>>,
    fetch: &'a FetchChunk<'a>,
    leaf: Vec<u8>,
    at: usize,
}

impl<'a> Entries<'a> {
    /// The entries of the tree `stream`; none is the empty tree.
    pub fn new(fetch: &'a FetchChunk<'a>, stream: Option<StreamRef>) -> Entries<'a> {
        Entries { leaves: stream.map(|s| Children::new(fetch, s)), fetch, leaf: Vec::new(), at: 0 }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        while self.at >= self.leaf.len() {
            let loaded = self.leaves.as_mut()?.next()?.and_then(|leaf| (self.fetch)(leaf.id));
            self.at = 0;
            self.leaf.clear();
            match loaded {
                Ok(leaf) => self.leaf = leaf,
                Err(error) => return Some(Err(error.while_doing("a part of the list of files"))),
            }
        }
        let mut rest = &self.leaf[self.at..];
        let taken = entry::take(&mut rest);
        // Behind an entry that cannot be decoded nothing in its leaf can be trusted.
        self.at = if taken.is_ok() { self.leaf.len() - rest.len() } else { self.leaf.len() };
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::file;
    use super::*;
    use std::collections::HashMap;

    fn build(count: usize) -> (Option<StreamRef>, HashMap<ChunkId, Vec<u8>>) {
        let mut kept = HashMap::new();
        let mut store = |chunk: Vec<u8>| {
            let id = ChunkId::of(&chunk);
            kept.insert(id, chunk);
            Ok(id)
        };
        let mut builder = TreeBuilder::default();
        for i in 0..count {
            builder.push(&file(&format!("{i:08}"), 1), &mut store).expect("in order");
        }
        let tree = builder.finish(&mut store).expect("fits");
        (tree, kept)
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
}
