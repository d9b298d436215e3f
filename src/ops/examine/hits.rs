//! Which files of which snapshots need chunks that are lost. Only walked when some are.

use super::check_interrupt;
use crate::error::Result;
use crate::events::Observer;
use crate::ids::ChunkId;
use crate::repo::entry::{self, Entry};
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{self, Child};
use crate::repo::{Repo, paths};
use std::collections::HashSet;

/// How many nodes without a lost chunk are remembered, so that what snapshots share is walked once.
const CLEAN_MAX: usize = 1_000_000;

/// In the role of a node of entries, this is added to the depth: see `reach`.
const TREE_ROLE: u8 = 128;

/// A lost chunk, and something that needs it.
pub(crate) struct Hit<'a> {
    pub(crate) chunk: ChunkId,
    pub(crate) snapshot: &'a Snapshot,
    /// The file; none if a part of the list of files is lost.
    pub(crate) entry: Option<&'a Entry>,
}

impl Hit<'_> {
    /// The absolute path of the file; empty if a part of the list of files is lost.
    pub(crate) fn path(&self) -> Vec<u8> {
        self.entry.map_or_else(Vec::new, |entry| paths::absolute_path(self.snapshot, entry))
    }
}

/// Calls `on_hit` for every lost chunk of every file of the snapshots. Of parts that several snapshots share and that hold
/// nothing lost, only the first is walked.
pub(crate) fn find(
    repo: &Repo,
    snapshots: &[Snapshot],
    is_lost: &dyn Fn(&ChunkId) -> bool,
    observer: &dyn Observer,
    on_hit: &mut dyn FnMut(Hit<'_>),
) -> Result<()> {
    let mut search = Search {
        frames: FrameCache::new(repo),
        is_lost,
        on_hit,
        observer,
        clean: HashSet::new(),
        walked: HashSet::new(),
        walked_content: HashSet::new(),
    };
    for snapshot in snapshots {
        search.walked.clear();
        if let Some(tree) = snapshot.tree {
            search.tree(snapshot, Child { id: tree.root, bytes: tree.bytes }, tree.depth)?;
        }
    }
    Ok(())
}

struct Search<'a> {
    frames: FrameCache<'a>,
    is_lost: &'a dyn Fn(&ChunkId) -> bool,
    on_hit: &'a mut dyn FnMut(Hit<'_>),
    observer: &'a dyn Observer,
    clean: HashSet<(ChunkId, u8)>,
    /// Nodes of the list of files of this snapshot that were walked, and nodes of the content of this file: who repeats
    /// them names nothing new, and a few that repeat one another would be walked without end.
    walked: HashSet<(ChunkId, u8)>,
    walked_content: HashSet<(ChunkId, u8)>,
}

impl Search<'_> {
    /// True if anything beneath is lost. Depth is bounded by the format, so this may call itself.
    fn tree(&mut self, snapshot: &Snapshot, child: Child, depth: u8) -> Result<bool> {
        check_interrupt(self.observer)?;
        if self.clean.contains(&(child.id, TREE_ROLE + depth)) {
            return Ok(false);
        }
        if !self.walked.insert((child.id, depth)) {
            return Ok(true);
        }
        let Some(bytes) = self.open(child.id, snapshot, None) else { return Ok(true) };
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
                let child = Child { id: content.root, bytes: content.bytes };
                self.walked_content.clear();
                is_hit |= self.content(snapshot, &entry, child, content.depth);
            }
        }
        self.note(is_hit, child.id, TREE_ROLE + depth);
        Ok(is_hit)
    }

    fn content(&mut self, snapshot: &Snapshot, entry: &Entry, child: Child, depth: u8) -> bool {
        if depth == 0 {
            let is_lost = (self.is_lost)(&child.id);
            if is_lost {
                (self.on_hit)(Hit { chunk: child.id, snapshot, entry: Some(entry) });
            }
            return is_lost;
        }
        if self.clean.contains(&(child.id, depth)) {
            return false;
        }
        if !self.walked_content.insert((child.id, depth)) {
            return true;
        }
        let Some(bytes) = self.open(child.id, snapshot, Some(entry)) else { return true };
        let mut is_hit = false;
        for child in stream::parse_node(&bytes).unwrap_or_default() {
            is_hit |= self.content(snapshot, entry, child, depth - 1);
        }
        self.note(is_hit, child.id, depth);
        is_hit
    }

    /// A node's bytes; none if they are lost, and then the file is noted.
    fn open(&mut self, id: ChunkId, snapshot: &Snapshot, entry: Option<&Entry>) -> Option<Vec<u8>> {
        if (self.is_lost)(&id) {
            (self.on_hit)(Hit { chunk: id, snapshot, entry });
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
