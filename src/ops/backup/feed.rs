//! The feed: walks the source and the parent snapshot side by side and says what has to be read, in a thread of its own.
//!
//! A file whose size, mtime, ctime and inode are those of the parent is not read, provided that all of its chunks are in
//! packs that may be relied on, and that its times are older than the parent's start by more than clocks resolve.

use super::gate::Gate;
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;
use crate::metadata::{FileTime, Metadata};
use crate::paths::compare_paths;
use crate::repo::Repo;
use crate::repo::entry::Entry;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{self, StreamRef};
use crate::repo::transaction::Transaction;
use crate::repo::tree::{Entries, FetchChunk};
use crate::sabotage::is_planted;
use crate::source::scan::{Found, Scanned};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How many entries are looked up in the index together.
const BATCH_ENTRIES: usize = 512;
/// Batches that wait: one while the next is being made.
const BATCHES_WAITING: usize = 1;

/// File systems with coarse clocks may give a later change the same time: so close to the parent's start, read again.
const CLOCK_SECONDS: i64 = 2;

/// What the coordinator has to do next.
pub(super) enum Item {
    /// Nothing to read: the entry as the parent has it.
    Unchanged(Box<Entry>),
    /// A regular file to read, and what the parent had at this path.
    Read(Box<Found>, Option<Box<Entry>>),
    /// A directory, link, pipe or device; with the extended attributes of the parent if they are surely the same.
    Other(Box<Found>, Option<Vec<(Vec<u8>, Vec<u8>)>>),
    /// It could not be looked at.
    Problem(u32, Vec<u8>, Error),
    /// A socket.
    Socket,
    /// Left out by a pattern.
    Excluded,
}

impl Item {
    /// Where it lies: root and path; none if nobody asks.
    pub(super) fn place(&self) -> Option<(u32, &[u8])> {
        match self {
            Item::Unchanged(entry) => Some((entry.root, &entry.path)),
            Item::Read(found, _) | Item::Other(found, _) => Some((found.root, &found.path)),
            Item::Problem(root, path, _) => Some((*root, path)),
            Item::Socket | Item::Excluded => None,
        }
    }
}

/// Pairs what a scan finds with what the parent has at the same path.
pub(super) struct Merge<'a> {
    scan: Box<dyn Iterator<Item = Scanned> + Send + 'a>,
    gate: &'a Gate,
    /// A checkpoint that appeared after all were judged: nothing of it passes.
    news: Option<(u32, Vec<u8>)>,
    earlier: Option<Peekable<Entries<'a>>>,
    parent_started: FileTime,
}

impl<'a> Merge<'a> {
    /// `scan` is a walk over the roots of the gate.
    pub(super) fn new(
        scan: Box<dyn Iterator<Item = Scanned> + Send + 'a>,
        gate: &'a Gate,
        fetch: &'a FetchChunk<'a>,
        repo: &Repo,
        parent: Option<&Snapshot>,
    ) -> Merge<'a> {
        Merge {
            scan,
            gate,
            news: None,
            earlier: parent.map(|p| repo.entries(fetch, p.tree).peekable()),
            parent_started: parent.map_or(FileTime::default(), |p| p.started),
        }
    }

    /// The entry that the parent has at this path. Parts of the parent that cannot be read count as absent.
    fn earlier(&mut self, root: u32, path: &[u8]) -> Option<Entry> {
        let entries = self.earlier.as_mut()?;
        loop {
            let order = match entries.peek()? {
                Ok(entry) => entry.root.cmp(&root).then_with(|| compare_paths(&entry.path, path)),
                Err(_) => Ordering::Less,
            };
            match order {
                Ordering::Less => drop(entries.next()),
                Ordering::Equal => return entries.next()?.ok(),
                Ordering::Greater => return None,
            }
        }
    }

    fn is_settled(&self, metadata: &Metadata) -> bool {
        let newest = metadata.mtime.max(metadata.ctime);
        newest.seconds < self.parent_started.seconds - CLOCK_SECONDS || is_planted("young-times-trusted")
    }

    /// The next thing found, the parent's entry at its path, and whether it is surely the same.
    pub(super) fn next_pair(&mut self) -> Option<(Scanned, Option<Entry>, bool)> {
        let scanned = loop {
            if let Some(scanned) = self.gate.pass(self.scan.next()?, &mut self.news) {
                break scanned;
            }
        };
        let Scanned::Entry(found) = &scanned else { return Some((scanned, None, false)) };
        let earlier = self.earlier(found.root, &found.path);
        let is_same = earlier.as_ref().is_some_and(|e| {
            !e.changed_while_read && found.metadata.is_unchanged_since(&e.metadata) && self.is_settled(&found.metadata)
        });
        Some((scanned, earlier, is_same))
    }
}

/// Makes items, in the order of the scan.
pub(super) struct Feed<'a> {
    merge: Merge<'a>,
    transaction: &'a Transaction<'a>,
    reread: bool,
    /// Files of the parent.
    files: u64,
    /// What may be taken to look them up quickly.
    memory_bytes: u64,
}

/// Items that follow each other; none of them marks the end.
type Batch = VecDeque<Item>;

/// The two ends of the queue of items.
pub(super) fn ends() -> (Sender<Result<Batch>>, Items) {
    let (sender, batches) = bounded(BATCHES_WAITING);
    (sender, Items { batches, ready: Batch::new() })
}

/// What the feed has made.
pub(super) struct Items {
    batches: Receiver<Result<Batch>>,
    ready: Batch,
}

impl Items {
    /// The next item; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Item>> {
        if self.ready.is_empty() {
            // The end is said: else a thread that was lost would be taken for it.
            let batch = self.batches.recv();
            self.ready = batch.unwrap_or_else(|_| Err(Error::new(Kind::Failed, "the feed ended early")))?;
        }
        Ok(self.ready.pop_front())
    }
}

impl<'a> Feed<'a> {
    pub(super) fn new(merge: Merge<'a>, transaction: &'a Transaction<'a>, reread: bool) -> Feed<'a> {
        Feed { merge, transaction, reread, files: 0, memory_bytes: 0 }
    }

    /// For a parent of so many files, whose chunks are looked up with so much memory.
    pub(super) fn expecting(self, files: u64, memory_bytes: u64) -> Feed<'a> {
        Feed { files, memory_bytes, ..self }
    }

    /// Makes items to the end, until something fails, or until nobody takes them any more.
    pub(super) fn run(mut self, batches: &Sender<Result<Batch>>) {
        let mut prepared = self.transaction.foresee(self.files, self.memory_bytes);
        loop {
            let batch = std::mem::replace(&mut prepared, Ok(())).and_then(|()| self.next_batch());
            let is_last = batch.as_ref().map_or(true, VecDeque::is_empty);
            if batches.send(batch).is_err() || is_last {
                return;
            }
        }
    }

    fn next_batch(&mut self) -> Result<Batch> {
        let mut pairs = Vec::with_capacity(BATCH_ENTRIES);
        while pairs.len() < BATCH_ENTRIES {
            match self.merge.next_pair() {
                Some(pair) => pairs.push(pair),
                None => break,
            }
        }
        // Files of one chunk, nearly all of them, are looked up together.
        let single = |entry: &Option<Entry>, is_same: bool| {
            entry.as_ref().filter(|_| is_same)?.content.filter(|c| c.depth == 0).map(|c| c.root)
        };
        let ids: Vec<ChunkId> = pairs.iter().filter_map(|(_, earlier, same)| single(earlier, *same)).collect();
        let mut known = self.transaction.known(&ids)?.into_iter();
        let mut batch = Batch::with_capacity(pairs.len());
        for (scanned, earlier, is_same) in pairs {
            let is_known = match (single(&earlier, is_same), earlier.as_ref().and_then(|e| e.content)) {
                _ if !is_same => false,
                _ if is_planted("absent-chunks-taken-over") => true,
                (Some(_), _) => known.next().unwrap_or(false),
                (None, Some(content)) => is_stream_known(self.transaction, content)?,
                (None, None) => true,
            };
            batch.push_back(self.item(scanned, earlier, is_known));
        }
        Ok(batch)
    }

    /// What to do with what was found; `is_known` if what the parent had there is the same and may be relied on.
    fn item(&self, scanned: Scanned, earlier: Option<Entry>, is_known: bool) -> Item {
        match scanned {
            Scanned::Entry(found) if found.metadata.kind != crate::metadata::FileKind::Regular => {
                Item::Other(Box::new(found), earlier.filter(|_| is_known).map(|e| e.metadata.xattrs))
            }
            Scanned::Entry(found) => match earlier {
                Some(mut entry) if is_known && !self.reread => {
                    // The number of names of a file can change with its ctime only, its device number with a reboot.
                    entry.metadata.link_group = found.metadata.link_group;
                    Item::Unchanged(Box::new(entry))
                }
                earlier => Item::Read(Box::new(found), earlier.map(Box::new)),
            },
            Scanned::Problem { root, path, error } => Item::Problem(root, path, error),
            Scanned::SkippedSocket { .. } => Item::Socket,
            Scanned::Excluded { .. } => Item::Excluded,
        }
    }
}

/// True if every node and every chunk of a file's content is in a pack that may be relied on.
fn is_stream_known(transaction: &Transaction<'_>, content: StreamRef) -> Result<bool> {
    let mut level = vec![content.root];
    for depth in (0..=content.depth).rev() {
        if transaction.known(&level)?.contains(&false) {
            return Ok(false);
        }
        if depth == 0 {
            break;
        }
        let mut below = Vec::new();
        for &node in &level {
            // A node that cannot be read: the file is read again, and the node is stored again if it is missing.
            let Ok(children) = transaction.repo().read_chunk(node).and_then(|n| stream::parse_node(&n)) else {
                return Ok(false);
            };
            let ids = children.iter().map(|c| c.id).filter(|id| *id != ChunkId::HOLE);
            if depth > 1 {
                below.extend(ids);
            } else if transaction.known(&ids.collect::<Vec<_>>())?.contains(&false) {
                return Ok(false);
            }
        }
        if depth == 1 {
            break;
        }
        level = below;
    }
    Ok(true)
}

/// The path as the user knows it.
pub(super) fn absolute(roots: &[PathBuf], root: u32, path: &[u8]) -> Vec<u8> {
    let root = usize::try_from(root).ok().and_then(|number| roots.get(number));
    let mut absolute = root.map(|root| root.as_os_str().as_bytes().to_vec()).unwrap_or_default();
    if !path.is_empty() {
        absolute.push(b'/');
        absolute.extend_from_slice(path);
    }
    absolute
}
