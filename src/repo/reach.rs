//! Everything that can be reached from snapshots: the chunks of their entries, of their nodes and of their files.
//!
//! What several snapshots share is walked once. A chunk is walked once for each role in which it is met, since the bytes
//! of a node may also be the content of somebody's file. Memory stays bounded: the sets are a [`Survey`]'s.

use super::Repo;
use super::entry;
use super::frame_cache::FrameCache;
use super::index::survey::Survey;
use super::paths;
use super::snapshots::Snapshot;
use super::stream::{self, Child, StreamRef};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, SnapshotId};

/// Something that a snapshot needs and that cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The first snapshot that was found to need it.
    pub snapshot: SnapshotId,
    /// The file whose chunk list it belongs to; none if it is a part of the list of files.
    pub path: Option<Vec<u8>>,
    /// The chunk.
    pub chunk: ChunkId,
    /// What is wrong with it.
    pub error: Error,
}

/// Marks everything that `snapshots` need as live; `on_unreadable` hears of nodes and entries that cannot be read.
///
/// The content of files is marked, not read: whether it has a home is the survey's to say. An error means that the walk
/// could not go on: the storage does not answer, or the user has interrupted it.
pub fn mark(
    repo: &Repo,
    survey: &Survey<'_>,
    snapshots: &[Snapshot],
    observer: &dyn Observer,
    on_unreadable: &mut dyn FnMut(Unreadable),
) -> Result<()> {
    let mut walk = Walk { survey, frames: FrameCache::new(repo), observer, on_unreadable };
    for snapshot in snapshots {
        if let Some(tree) = snapshot.tree {
            walk.tree(snapshot, tree)?;
        }
        observer.on_event(&Event::Progress { bytes: snapshot.tree.map_or(0, |t| t.bytes), files: 0 });
    }
    Ok(())
}

struct Walk<'a> {
    survey: &'a Survey<'a>,
    frames: FrameCache<'a>,
    observer: &'a dyn Observer,
    on_unreadable: &'a mut dyn FnMut(Unreadable),
}

/// In the role of a node of file contents, a chunk's depth is its role; in that of entries, this is added.
const TREE_ROLE: u8 = 128;

impl Walk<'_> {
    fn tree(&mut self, snapshot: &Snapshot, tree: StreamRef) -> Result<()> {
        let mut ahead = vec![(Child { id: tree.root, bytes: tree.bytes }, tree.depth)];
        while let Some((child, depth)) = ahead.pop() {
            self.survey.mark(child.id)?;
            if !self.survey.visit_once(child.id, TREE_ROLE + depth)? {
                continue;
            }
            if self.observer.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while walking the snapshots"));
            }
            let walked = match self.frames.read(child.id) {
                Ok(bytes) if depth == 0 => self.leaf(snapshot, &bytes)?,
                Ok(bytes) => open_node(&bytes, child, depth, &mut ahead),
                Err(error) => Err(error),
            };
            if let Err(error) = walked {
                self.report(snapshot, None, child.id, error)?;
            }
        }
        Ok(())
    }

    /// The files of a leaf. The outer error ends the walk, the inner one is damage to this leaf.
    fn leaf(&mut self, snapshot: &Snapshot, bytes: &[u8]) -> Result<Result<()>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let entry = match entry::take(&mut rest) {
                Ok(entry) => entry,
                Err(error) => return Ok(Err(error)),
            };
            if let Some(content) = entry.content {
                self.content(snapshot, &entry, content)?;
            }
        }
        Ok(Ok(()))
    }

    fn content(&mut self, snapshot: &Snapshot, entry: &entry::Entry, content: StreamRef) -> Result<()> {
        let mut ahead = vec![(Child { id: content.root, bytes: content.bytes }, content.depth)];
        while let Some((child, depth)) = ahead.pop() {
            if depth == 0 {
                if child.id != ChunkId::HOLE {
                    self.survey.mark(child.id)?;
                }
                continue;
            }
            self.survey.mark(child.id)?;
            if !self.survey.visit_once(child.id, depth)? {
                continue;
            }
            let opened = self.frames.read(child.id).and_then(|bytes| open_node(&bytes, child, depth, &mut ahead));
            if let Err(error) = opened {
                self.report(snapshot, Some(paths::absolute_path(snapshot, entry)), child.id, error)?;
            }
        }
        Ok(())
    }

    fn report(&mut self, snapshot: &Snapshot, path: Option<Vec<u8>>, chunk: ChunkId, error: Error) -> Result<()> {
        match error.kind() {
            Kind::Damaged | Kind::Missing | Kind::FormatTooNew => {
                (self.on_unreadable)(Unreadable { snapshot: snapshot.id, path, chunk, error });
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// Puts the children of a node ahead, the first one last.
fn open_node(bytes: &[u8], node: Child, depth: u8, ahead: &mut Vec<(Child, u8)>) -> Result<()> {
    let children = stream::parse_node(bytes)?;
    let covered = children.iter().try_fold(0u64, |sum, child| sum.checked_add(child.bytes));
    if covered != Some(node.bytes) {
        return Err(Error::damaged(format!("node {} does not cover the {} bytes it should", node.id, node.bytes)));
    }
    ahead.extend(children.into_iter().rev().map(|child| (child, depth - 1)));
    Ok(())
}
