//! Chunks that snapshots need and that no sound pack holds: looked for elsewhere and stored again.
//!
//! They are stored as a prune stores what it copies, by a transaction that ends as repacked. It begins after the damaged
//! packs were set aside, and relies on no older pack: every chunk stands alone. What is found may be a list of files, or of
//! chunks, and show more that is needed; so the search is repeated as long as it finds something.

use super::copies::is_damage;
use super::{Work, index, sources};
use crate::codec::{Compression, Encoder};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::{ChunkId, PackId, SnapshotId};
use crate::ops::examine::found::Found;
use crate::ops::examine::packs::Packs;
use crate::ops::examine::reachable::{self, Live};
use crate::repo::Repo;
use crate::repo::pack::{PackKind, PackWriter};
use crate::repo::pack_table::FrameRecord;
use crate::repo::transaction::Transaction;
use std::collections::{BTreeSet, HashSet};

/// As deep as lists of files and of chunks can be, one in the other.
const ROUNDS_MAX: usize = 20;

/// Stores again what can be found, and adds the rest to what is left, with the files that it costs.
pub(super) fn rescue(
    work: &mut Work<'_>,
    packs: &mut Packs,
    dead: &HashSet<PackId>,
    is_index_anew: bool,
) -> Result<()> {
    // What a dry run would have stored.
    let mut rescued: HashSet<ChunkId> = HashSet::new();
    // In a dry run it is as it was, though it would not be.
    let mut is_index_whole = is_index_anew;
    // Of a snapshot that is saved later packs may be missing in what was listed.
    let saved: HashSet<SnapshotId> = work.repo.snapshots().iter().map(|s| s.id).collect();
    for round in 1.. {
        let mut found = Found::default();
        let mut live = reachable::check(work.repo, packs, &saved, &mut found, work.observer)?;
        if live.needs_unlisted && !is_index_whole {
            is_index_whole = true;
            index::rebuild(work, packs, dead, &BTreeSet::new())?;
        }
        live.lost.retain(|id, _| !rescued.contains(id));
        let is_fruitful = !live.lost.is_empty() && round <= ROUNDS_MAX && {
            let stored = rescue_round(work, packs, &live)?;
            rescued.extend(stored.iter().filter(|_| work.options.dry_run));
            !stored.is_empty()
        };
        if !is_fruitful {
            live.name_files(work.repo, &mut found, work.observer)?;
            leave(work, &live, found);
            return Ok(());
        }
    }
    Ok(())
}

/// Adds what is lost for good, and who is hit, to what is left.
fn leave(work: &mut Work<'_>, live: &Live, found: Found) {
    let blamed: HashSet<usize> = live.lost.values().copied().collect();
    for (_, damage) in found.damage.into_iter().enumerate().filter(|(at, _)| blamed.contains(at)) {
        let at = work.left.add(&damage.object, damage.what);
        for (snapshot, path) in damage.files {
            work.left.add_file(at, snapshot, &path);
        }
    }
}

/// Looks for every lost chunk once; those that were found and stored.
fn rescue_round(work: &mut Work<'_>, packs: &mut Packs, live: &Live) -> Result<HashSet<ChunkId>> {
    let mut wanted: BTreeSet<ChunkId> = live.lost.keys().copied().collect();
    let files_total = Some(wanted.len() as u64);
    work.observer.on_event(&Event::Phase { name: "looking for lost chunks", bytes_total: None, files_total });
    let Some(mut store) = Store::begin(work)? else { return Ok(HashSet::new()) };
    let searched = search(work, live, &mut wanted, &mut store);
    let stored = store.stored.clone();
    let ended = store.end(searched, packs);
    ended.map(|()| stored)
}

fn search(work: &mut Work<'_>, live: &Live, wanted: &mut BTreeSet<ChunkId>, store: &mut Store<'_>) -> Result<()> {
    for id in wanted.clone() {
        work.check_interrupt()?;
        let kind = if live.lost_nodes.contains(&id) { PackKind::Tree } else { PackKind::Data };
        // Any home serves here, also one in a pack of which nothing can be relied on.
        let content = match work.repo.read_chunk(id) {
            Ok(content) => {
                work.report.chunks_from_remains += 1;
                Some(content)
            }
            Err(error) if is_damage(error.kind()) => {
                let content = work.copies.chunk(id, work.observer).filter(|content| is_chunk(work.repo, content, id));
                work.report.chunks_from_copies += u64::from(content.is_some());
                content
            }
            Err(error) => return Err(error),
        };
        if let Some(content) = content {
            store.put(kind, id, &content)?;
            wanted.remove(&id);
        }
        work.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    if !wanted.is_empty() && work.options.sources_of_host.is_some() {
        sources::search(work, live, wanted, store)?;
    }
    Ok(())
}

/// Stores chunks again.
pub(super) struct Store<'r> {
    transaction: Transaction<'r>,
    encoder: Encoder,
    data: Option<PackWriter>,
    tree: Option<PackWriter>,
    stored: HashSet<ChunkId>,
    written: Vec<(PackId, u64)>,
    is_rehearsal: bool,
}

impl<'r> Store<'r> {
    /// None if nothing can be stored now because a list of condemned packs cannot be read.
    fn begin(work: &Work<'r>) -> Result<Option<Store<'r>>> {
        let is_rehearsal = work.options.dry_run;
        if !is_rehearsal {
            work.write_down()?;
        }
        let begun = match is_rehearsal {
            true => Transaction::rehearse(work.repo),
            false => Transaction::begin(work.repo, &work.options.writer),
        };
        let transaction = match begun {
            Ok(transaction) => transaction,
            Err(error) if error.kind() == Kind::Damaged => {
                let text = format!("nothing can be stored, so lost chunks are not looked for: {error}");
                work.observer.on_event(&Event::Warning { text: &text });
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let encoder = Encoder::new(Compression::Auto)?;
        let (stored, written) = (HashSet::new(), Vec::new());
        Ok(Some(Store { transaction, encoder, data: None, tree: None, stored, written, is_rehearsal }))
    }

    /// Stores the content of one chunk, which has been compared with its id.
    pub(super) fn put(&mut self, kind: PackKind, id: ChunkId, content: &[u8]) -> Result<()> {
        if !self.stored.insert(id) {
            return Ok(());
        }
        let mut frame = Vec::new();
        let codec = self.encoder.encode(content, &mut frame)?;
        let record = FrameRecord::single(id, content.len(), frame.len(), codec.code())?;
        let slot = if kind == PackKind::Tree { &mut self.tree } else { &mut self.data };
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.transaction.create_pack(kind)?,
        };
        writer.append(&frame, &[record])?;
        if writer.bytes() < u64::from(self.transaction.repo().config().pack_bytes) {
            *slot = Some(writer);
            return Ok(());
        }
        self.finish_pack(writer)
    }

    fn finish_pack(&mut self, writer: PackWriter) -> Result<()> {
        let summary = self.transaction.finish_pack(writer)?;
        self.written.push((summary.id, summary.bytes));
        Ok(())
    }

    /// Ends the transaction: with what was stored, or as given up if that failed or nothing was.
    fn end(mut self, searched: Result<()>, packs: &mut Packs) -> Result<()> {
        let done = searched.and_then(|()| {
            [self.data.take(), self.tree.take()].into_iter().flatten().try_for_each(|writer| self.finish_pack(writer))
        });
        if done.is_err() || self.stored.is_empty() || self.is_rehearsal {
            let abandoned = self.transaction.abandon();
            return done.and(abandoned);
        }
        self.transaction.commit_repacked()?;
        packs.present.extend(self.written);
        Ok(())
    }
}

/// True if the bytes are those of the chunk.
pub(super) fn is_chunk(repo: &Repo, content: &[u8], id: ChunkId) -> bool {
    repo.chunk_id(content) == id
}

/// What reading a file of the user may fail with and the search goes on.
pub(super) fn unreadable(error: std::io::Error, path: &std::path::Path) -> Error {
    Error::io(format!("reading {}", path.display()), error)
}
