//! How much of what is to be restored takes no space.
//!
//! Each node is looked at once, however many name it: a few that repeat one another stand for more chunks than can ever be
//! counted. What cannot be read has no holes. Deliberately not here: whether the rest fits.

use super::run::interrupted;
use crate::error::Result;
use crate::events::Observer;
use crate::ids::ChunkId;
use crate::repo::stream::{Child, StreamRef, parse_node};
use crate::repo::tree::FetchChunk;
use std::collections::HashMap;

/// So many nodes are remembered. A repository that was made by backups repeats few.
const NODES_MAX: usize = 1 << 18;

/// Counts holes.
pub(super) struct Holes<'a> {
    fetch: &'a FetchChunk<'a>,
    observer: &'a dyn Observer,
    /// The bytes of holes beneath nodes, by what names these.
    known: HashMap<(ChunkId, u8), u64>,
}

impl<'a> Holes<'a> {
    pub(super) fn new(fetch: &'a FetchChunk<'a>, observer: &'a dyn Observer) -> Holes<'a> {
        Holes { fetch, observer, known: HashMap::new() }
    }

    /// The bytes of holes in this content. An error only if the run is to end.
    pub(super) fn bytes_of(&mut self, content: StreamRef) -> Result<u64> {
        let bytes = self.beneath(Child { id: content.root, bytes: content.bytes }, content.depth)?;
        Ok(bytes.min(content.bytes))
    }

    fn beneath(&mut self, child: Child, depth: u8) -> Result<u64> {
        if depth == 0 {
            return Ok(if child.id == ChunkId::HOLE { child.bytes } else { 0 });
        }
        if let Some(&bytes) = self.known.get(&(child.id, depth)) {
            return Ok(bytes);
        }
        if self.observer.is_interrupted() {
            return Err(interrupted());
        }
        let mut bytes = 0u64;
        for child in (self.fetch)(child.id).and_then(|node| parse_node(&node)).unwrap_or_default() {
            bytes = bytes.saturating_add(self.beneath(child, depth - 1)?);
        }
        if self.known.len() < NODES_MAX {
            self.known.insert((child.id, depth), bytes);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::events::Silent;

    fn node(children: &[(ChunkId, u64)]) -> Vec<u8> {
        children.iter().flat_map(|(id, bytes)| [&id.as_bytes()[..], &bytes.to_le_bytes()].concat()).collect()
    }

    #[test]
    fn holes_are_counted_and_nodes_that_repeat_one_another_are_looked_at_once() {
        let chunk = ChunkId::of(b"chunk");
        let mut nodes = HashMap::new();
        let mut child = (chunk, 100);
        for _ in 0..6 {
            let node = node(&[[child; 3].as_slice(), &[(ChunkId::HOLE, 10), child]].concat());
            let id = ChunkId::of(&node);
            // A hole counts where content lies only: higher up it is the name of a node that is nowhere.
            child = (id, 4 * child.1 + 10);
            nodes.insert(id, node);
        }
        let asked = std::sync::atomic::AtomicU64::new(0);
        let fetch = |id| {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            nodes.get(&id).cloned().ok_or_else(|| Error::damaged("no such node"))
        };
        let mut holes = Holes::new(&fetch, &Silent);
        let bytes = holes.bytes_of(StreamRef { root: child.0, depth: 6, bytes: child.1 }).expect("not interrupted");
        assert_eq!(bytes, 10 * 4u64.pow(5));
        assert_eq!(asked.into_inner(), 6 + 5, "six nodes, and a hole in the place of a node on five levels");
    }
}
