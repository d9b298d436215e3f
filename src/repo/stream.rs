//! Streams: ordered lists of records kept as content-addressed chunks, recursively until one chunk is left.
//!
//! A file's chunk list and a snapshot's entries are streams. No record spans two chunks, so every chunk is readable
//! alone and damage costs the records of one chunk. Where a chunk ends depends only on the records near it, so a
//! change in one place leaves the chunks of all other places as they were.
//!
//! A *node* is a run of 40-byte records, a child's id and how many bytes the child covers (u64, little-endian). In a
//! file's stream, nodes of depth 1 list the chunks of the content; [`ChunkId::HOLE`] stands for a hole.

use crate::error::{Error, Result};
use crate::ids::ChunkId;
use minicbor::{Decode, Encode};

/// Bytes of one record of a node.
pub const RECORD_BYTES: usize = ChunkId::BYTES + 8;
/// A node is not ended before it has this many records ...
const NODE_RECORDS_MIN: usize = 256;
/// ... and not continued beyond this many (160 KiB).
const NODE_RECORDS_MAX: usize = 4096;
/// In between, each record ends the node with a chance of 1 in this.
const NODE_RECORDS_MEAN: u64 = 1024;
/// Deeper streams than this would hold more than 2^64 bytes.
const DEPTH_MAX: u8 = 8;

/// Names a stream: the chunk at its root, how many levels of nodes lie above its content, and the bytes it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamRef {
    /// The one chunk at the top.
    pub root: ChunkId,
    /// 0: the root is content itself. 1: the root is a node whose children are content, and so on.
    pub depth: u8,
    /// Bytes of content beneath.
    pub bytes: u64,
}

impl<C> Encode<C> for StreamRef {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> std::result::Result<(), minicbor::encode::Error<W::Error>> {
        e.array(3)?.bytes(self.root.as_bytes())?.u8(self.depth)?.u64(self.bytes)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for StreamRef {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> std::result::Result<Self, minicbor::decode::Error> {
        let wrong = minicbor::decode::Error::message;
        if d.array()? != Some(3) {
            return Err(wrong("a stream is an array of three"));
        }
        let root = ChunkId::from_slice(d.bytes()?).map_err(|_| wrong("the root of a stream is not a chunk's id"))?;
        let (depth, bytes) = (d.u8()?, d.u64()?);
        if depth > DEPTH_MAX {
            return Err(wrong("a stream is deeper than any can be"));
        }
        Ok(StreamRef { root, depth, bytes })
    }
}

/// A record of a node: a child and how many bytes of content it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// The child's id, or [`ChunkId::HOLE`].
    pub id: ChunkId,
    /// Bytes of content beneath it.
    pub bytes: u64,
}

/// The children that a node lists.
pub fn parse_node(node: &[u8]) -> Result<Vec<Child>> {
    if node.is_empty() || !node.len().is_multiple_of(RECORD_BYTES) || node.len() > RECORD_BYTES * NODE_RECORDS_MAX {
        return Err(Error::damaged(format!("a node of {} bytes is not possible", node.len())));
    }
    node.chunks_exact(RECORD_BYTES)
        .map(|record| {
            let (id, bytes) = record.split_at(ChunkId::BYTES);
            match bytes.try_into().map_or(0, u64::from_le_bytes) {
                // Nodes of nothing but themselves could be walked for ever.
                0 => Err(Error::damaged("a node has a child without content")),
                bytes => Ok(Child { id: ChunkId::from_slice(id)?, bytes }),
            }
        })
        .collect()
}

/// Builds the nodes above a list of children, bottom up, holding one open node for each level.
#[derive(Debug, Default)]
pub struct NodeBuilder {
    levels: Vec<Level>,
}

#[derive(Debug, Default)]
struct Level {
    open: Vec<u8>,
    bytes: u64,
}

impl NodeBuilder {
    /// Adds the next child; `store` keeps a finished node and returns its id.
    pub fn push(&mut self, child: Child, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        self.push_at(0, child, store)
    }

    /// Ends the list. None if no child was added; a single child needs no node above it unless it is a hole.
    pub fn finish(mut self, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<Option<StreamRef>> {
        let mut level = 0;
        while level < self.levels.len() {
            let is_top = level + 1 == self.levels.len();
            let open = &self.levels[level];
            let single = open.open.len() == RECORD_BYTES;
            if is_top && single {
                let child = parse_node(&open.open)?[0];
                if child.id != ChunkId::HOLE {
                    let depth = u8::try_from(level).map_err(|_| Error::damaged("a stream is too deep"))?;
                    return Ok(Some(StreamRef { root: child.id, depth, bytes: child.bytes }));
                }
            }
            if !open.open.is_empty() {
                self.close(level, store)?;
            }
            level += 1;
        }
        Ok(None)
    }

    fn push_at(&mut self, level: usize, child: Child, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let open = &mut self.levels[level];
        open.open.extend_from_slice(child.id.as_bytes());
        open.open.extend_from_slice(&child.bytes.to_le_bytes());
        open.bytes = open.bytes.checked_add(child.bytes).ok_or_else(|| Error::damaged("a stream is too long"))?;
        let records = open.open.len() / RECORD_BYTES;
        if records >= NODE_RECORDS_MAX || records >= NODE_RECORDS_MIN && ends_here(child.id) {
            self.close(level, store)?;
        }
        Ok(())
    }

    fn close(&mut self, level: usize, store: &mut dyn FnMut(Vec<u8>) -> Result<ChunkId>) -> Result<()> {
        let closed = std::mem::take(&mut self.levels[level]);
        let id = store(closed.open)?;
        self.push_at(level + 1, Child { id, bytes: closed.bytes }, store)
    }
}

/// An id is as good as random, so its last bytes decide: no hashing needed.
fn ends_here(id: ChunkId) -> bool {
    let tail = id.as_bytes()[24..].try_into().map_or(0, u64::from_le_bytes);
    tail.is_multiple_of(NODE_RECORDS_MEAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn children(count: u32) -> Vec<Child> {
        (0..count).map(|i| Child { id: ChunkId::of(&i.to_le_bytes()), bytes: u64::from(i % 7 + 1) }).collect()
    }

    fn build(list: &[Child]) -> (Option<StreamRef>, HashMap<ChunkId, Vec<u8>>) {
        let mut kept = HashMap::new();
        let mut store = |node: Vec<u8>| {
            let id = ChunkId::of(&node);
            kept.insert(id, node);
            Ok(id)
        };
        let mut builder = NodeBuilder::default();
        for &child in list {
            builder.push(child, &mut store).expect("fits");
        }
        let stream = builder.finish(&mut store).expect("fits");
        (stream, kept)
    }

    fn read_back(stream: StreamRef, kept: &HashMap<ChunkId, Vec<u8>>) -> Vec<Child> {
        let mut level = vec![Child { id: stream.root, bytes: stream.bytes }];
        for _ in 0..stream.depth {
            level = level.iter().flat_map(|c| parse_node(&kept[&c.id]).expect("own node")).collect();
        }
        level
    }

    #[test]
    fn lists_of_every_size_read_back() {
        for count in [1, 2, 255, 256, 257, 1024, 4095, 4096, 4097, 50_000] {
            let list = children(count);
            let (stream, kept) = build(&list);
            let stream = stream.expect("not empty");
            assert_eq!(stream.bytes, list.iter().map(|c| c.bytes).sum::<u64>());
            assert_eq!(read_back(stream, &kept), list, "{count}");
        }
        assert_eq!(build(&[]).0, None);
    }

    #[test]
    fn a_single_chunk_is_its_own_stream_and_a_single_hole_is_not() {
        assert_eq!(build(&children(1)).0.map(|s| s.depth), Some(0));
        let hole = Child { id: ChunkId::HOLE, bytes: 1 << 40 };
        let (stream, kept) = build(&[hole]);
        let stream = stream.expect("not empty");
        assert_eq!(stream.depth, 1);
        assert_eq!(read_back(stream, &kept), [hole]);
    }

    #[test]
    fn one_change_leaves_most_nodes_as_they_were() {
        let mut list = children(100_000);
        let (_, before) = build(&list);
        list.insert(50_000, Child { id: ChunkId::of(b"new"), bytes: 1 });
        let (_, after) = build(&list);
        let fresh = after.keys().filter(|id| !before.contains_key(id)).count();
        assert!(fresh <= 4, "{fresh} nodes of {} are new", after.len());
    }
}
