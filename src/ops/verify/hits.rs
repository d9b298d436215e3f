//! Which files of which snapshots need chunks that are lost. Only walked when some are.

use super::check_interrupt;
use super::found::Found;
use crate::error::Result;
use crate::events::Observer;
use crate::ids::{ChunkId, SnapshotId};
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{self, Child};
use crate::repo::{Repo, entry, paths};
use std::collections::{HashMap, HashSet};

/// How many nodes without a lost chunk are remembered, so that what snapshots share is walked once.
const CLEAN_MAX: usize = 1_000_000;

/// In the role of a node of entries, this is added to the depth: see `reach`.
const TREE_ROLE: u8 = 128;

/// Adds the files to the items of damage that `lost` says.
pub(super) fn find(
    repo: &Repo,
    snapshots: &[Snapshot],
    lost: &HashMap<ChunkId, usize>,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<()> {
    let mut search = Search { frames: FrameCache::new(repo), lost, found, observer, clean: HashSet::new() };
    for snapshot in snapshots {
        if let Some(tree) = snapshot.tree {
            search.tree(snapshot, Child { id: tree.root, bytes: tree.bytes }, tree.depth)?;
        }
    }
    Ok(())
}

struct Search<'a> {
    frames: FrameCache<'a>,
    lost: &'a HashMap<ChunkId, usize>,
    found: &'a mut Found,
    observer: &'a dyn Observer,
    clean: HashSet<(ChunkId, u8)>,
}

impl Search<'_> {
    /// True if anything beneath is lost. Depth is bounded by the format, so this may call itself.
    fn tree(&mut self, snapshot: &Snapshot, child: Child, depth: u8) -> Result<bool> {
        check_interrupt(self.observer)?;
        if self.clean.contains(&(child.id, TREE_ROLE + depth)) {
            return Ok(false);
        }
        let Some(bytes) = self.open(child.id, snapshot.id, b"") else { return Ok(true) };
        let mut is_hit = false;
        if depth > 0 {
            for child in stream::parse_node(&bytes).unwrap_or_default() {
                is_hit |= self.tree(snapshot, child, depth - 1)?;
            }
        } else {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let Ok(entry) = entry::take(&mut rest) else { break };
                let Some(content) = entry.content else { continue };
                let path = paths::absolute_path(snapshot, &entry);
                let child = Child { id: content.root, bytes: content.bytes };
                is_hit |= self.content(snapshot.id, &path, child, content.depth);
            }
        }
        self.note(is_hit, child.id, TREE_ROLE + depth);
        Ok(is_hit)
    }

    fn content(&mut self, snapshot: SnapshotId, path: &[u8], child: Child, depth: u8) -> bool {
        if depth == 0 {
            let at = self.lost.get(&child.id);
            if let Some(&at) = at {
                self.found.add_file(at, snapshot, path);
            }
            return at.is_some();
        }
        if self.clean.contains(&(child.id, depth)) {
            return false;
        }
        let Some(bytes) = self.open(child.id, snapshot, path) else { return true };
        let mut is_hit = false;
        for child in stream::parse_node(&bytes).unwrap_or_default() {
            is_hit |= self.content(snapshot, path, child, depth - 1);
        }
        self.note(is_hit, child.id, depth);
        is_hit
    }

    /// A node's bytes; none if they are lost, and then the file is noted.
    fn open(&mut self, id: ChunkId, snapshot: SnapshotId, path: &[u8]) -> Option<Vec<u8>> {
        if let Some(&at) = self.lost.get(&id) {
            self.found.add_file(at, snapshot, path);
            return None;
        }
        self.frames.read(id).ok()
    }

    fn note(&mut self, is_hit: bool, id: ChunkId, role: u8) {
        if !is_hit && self.clean.len() < CLEAN_MAX {
            self.clean.insert((id, role));
        }
    }
}
