//! What this run has stored lately, which the index does not know before its pack is durable; and how much stands on the
//! anchors that it uses.

use super::super::shared::lock;
use crate::error::Result;
use crate::ids::ChunkId;
use crate::repo::index::Index;
use crate::source::scan::Found;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Chunks that are remembered: those of several packs on their way, with room to spare.
const RECENT_MAX: usize = 64 << 10;
/// Anchors whose use is remembered; when there are more, all are looked up anew.
const ANCHORS_MAX: usize = 256 << 10;

/// A chunk that this run has stored.
#[derive(Clone)]
pub(crate) struct RecentChunk {
    /// What it was coded against; empty if it stands alone.
    pub(crate) bases: Vec<ChunkId>,
    /// How many steps from a chunk that stands alone.
    pub(crate) depth: u8,
    /// Its length.
    pub(crate) bytes: u64,
    /// Bytes of its frame.
    pub(crate) stored: u64,
    /// Where its content stands on this host.
    pub(crate) file: Arc<Found>,
    /// The position there.
    pub(crate) offset: u64,
}

/// The bytes that an anchor and everything coded against it take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnchorUse {
    frames: u64,
    stored: u64,
}

impl AnchorUse {
    /// The bytes that a further frame may take. Versions drift, so each delta on the same anchor costs more than the one before;
    /// the mean cost is least if a new anchor is made as soon as the next delta would cost more than the mean so far.
    /// Below half of what the anchor takes a delta is always worth having: one that is so near that the mean is tiny should
    /// not turn the next away.
    fn stored_bytes_max(self, anchor_stored: u64) -> usize {
        usize::try_from((self.stored / self.frames.max(1)).max(anchor_stored / 2)).unwrap_or(usize::MAX)
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recent {
    chunks: Mutex<Chunks>,
    anchors: Mutex<HashMap<ChunkId, AnchorUse>>,
}

#[derive(Default)]
struct Chunks {
    by_id: HashMap<ChunkId, RecentChunk>,
    order: VecDeque<ChunkId>,
}

impl Recent {
    /// Remembers a chunk.
    pub(crate) fn add(&self, id: ChunkId, chunk: RecentChunk) {
        let mut chunks = lock(&self.chunks);
        if chunks.order.len() >= RECENT_MAX
            && let Some(oldest) = chunks.order.pop_front()
        {
            chunks.by_id.remove(&oldest);
        }
        if chunks.by_id.insert(id, chunk).is_none() {
            chunks.order.push_back(id);
        }
    }

    /// The chunk, if this run has stored it lately.
    pub(crate) fn get(&self, id: ChunkId) -> Option<RecentChunk> {
        lock(&self.chunks).by_id.get(&id).cloned()
    }

    /// The bytes that one more version on `anchor`, a chunk of `bytes` bytes whose frame takes `anchor_stored`, may take.
    pub(crate) fn stored_bytes_max(
        &self,
        index: &Index,
        anchor: ChunkId,
        bytes: u64,
        anchor_stored: u64,
    ) -> Result<usize> {
        let mut anchors = lock(&self.anchors);
        if let Some(known) = anchors.get(&anchor) {
            return Ok(known.stored_bytes_max(anchor_stored));
        }
        // Looked up once: what this run adds is counted here, durable or not.
        let on_it = index.deltas_on(anchor, bytes)?;
        let known = AnchorUse { frames: on_it.count + 1, stored: on_it.stored_bytes + anchor_stored };
        if anchors.len() >= ANCHORS_MAX {
            anchors.clear();
        }
        anchors.insert(anchor, known);
        Ok(known.stored_bytes_max(anchor_stored))
    }

    /// Counts a version that was stored against `anchor`; one in another precision is none.
    pub(crate) fn count(&self, anchor: ChunkId, stored: u64) {
        if let Some(known) = lock(&self.anchors).get_mut(&anchor) {
            known.frames += 1;
            known.stored += stored;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_given_up_when_the_next_delta_costs_more_than_the_mean() {
        let index = Index::in_memory().expect("memory");
        let recent = Recent::default();
        let anchor = ChunkId::of(b"anchor");
        let mut kept = 0;
        // Measured on bf16 weights: the share that a delta takes at one, two, three ... intervals.
        for delta in [415, 478, 529, 571, 602] {
            if recent.stored_bytes_max(&index, anchor, 1000, 660).expect("memory") < delta {
                break;
            }
            recent.count(anchor, delta as u64);
            kept += 1;
        }
        assert_eq!(kept, 2);
    }

    #[test]
    fn near_neighbours_do_not_turn_away_what_still_gains_half() {
        let index = Index::in_memory().expect("memory");
        let recent = Recent::default();
        let anchor = ChunkId::of(b"anchor");
        recent.stored_bytes_max(&index, anchor, 1000, 660).expect("memory");
        (0..9).for_each(|_| recent.count(anchor, 10));
        assert_eq!(recent.stored_bytes_max(&index, anchor, 1000, 660).expect("memory"), 330);
    }
}
