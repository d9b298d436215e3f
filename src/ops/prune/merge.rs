//! Merging index objects: one in place of many, without the packs that are gone.

use super::plan::random_index_id;
use crate::error::{Kind, Result};
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::repo::condemned::Condemned;
use crate::repo::index_object::{self, IndexWriter};
use crate::repo::{Repo, names};
use crate::sabotage::is_planted;
use std::collections::HashSet;

/// Index objects below this many bytes are merged when there are several.
const SMALL_BYTES: u64 = 4 << 20;

/// The index objects worth merging: those that list a pack of `victims`, and small ones if that makes fewer of them.
/// To be asked before the victims are gone.
pub(super) fn candidates(repo: &Repo, victims: &[PackId]) -> Result<Vec<IndexId>> {
    let stale = repo.index().index_objects_listing(victims)?;
    let listed = repo.storage().list(names::INDEX)?;
    let all: Vec<(IndexId, u64)> = listed.iter().filter_map(|l| Some((names::index_id(&l.name)?, l.bytes))).collect();
    let small = all.iter().filter(|(_, bytes)| *bytes < SMALL_BYTES).count();
    let is_candidate = |(id, bytes): &(IndexId, u64)| stale.contains(id) || (small > 1 && *bytes < SMALL_BYTES);
    Ok(all.into_iter().filter(is_candidate).map(|(id, _)| id).collect())
}

/// Replaces `old` by one object that lists the same packs but those of final lists; how many were replaced.
///
/// The new one is durable before any old one goes, and holds all of each that goes. One that is damaged stays: verification
/// is to find it. One that is gone was merged by another prune.
pub(super) fn merge(repo: &Repo, old: &[IndexId]) -> Result<u64> {
    if old.is_empty() {
        return Ok(0);
    }
    // A pack is left out for its end, which must not vanish then.
    let dead = Condemned::read(repo)?;
    repo.storage().sync_folder(names::CONDEMNED)?;
    let id = random_index_id()?;
    let mut index: Option<IndexWriter> = None;
    let mut merged: HashSet<PackId> = HashSet::new();
    let mut replaced = Vec::new();
    for &old in old {
        let read = index_object::read(repo, old, &mut |pack| {
            let is_missing =
                || names::pack(pack.id).and_then(|name| repo.storage().size(&name)).is_ok_and(|n| n.is_none());
            if dead.is_dead(&pack.id)
                || (is_planted("merge-drops-missing-packs") && is_missing())
                || !merged.insert(pack.id)
            {
                return Ok(());
            }
            let writer = match &mut index {
                Some(writer) => writer,
                None => {
                    let by = SnapshotId::from_bytes(*id.as_bytes());
                    index.insert(IndexWriter::create(repo, by)?)
                }
            };
            writer.append(repo.keys(), &pack)
        });
        match read {
            Ok(true) => replaced.push(old),
            Ok(false) => {}
            Err(error) if error.kind() == Kind::Missing => {}
            Err(error) => return Err(error),
        }
    }
    let remove = || replaced.iter().try_for_each(|old| repo.storage().delete(&names::index(*old)?).map(drop));
    if is_planted("merged-inputs-removed-first") {
        remove()?;
    }
    if let Some(index) = index {
        index.finish(id)?;
        repo.index().list_packs(id, &merged.into_iter().collect::<Vec<_>>())?;
        repo.index().finish_index_object(id)?;
    }
    remove()?;
    repo.index().remove_index_objects(&replaced)?;
    Ok(replaced.len() as u64)
}
