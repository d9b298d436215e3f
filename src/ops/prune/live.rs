//! Which snapshots are live, read so that a deletion may hang on it.

use super::plan::refusal;
use crate::error::Result;
use crate::ids::SnapshotId;
use crate::repo::snapshots::{Outcome, Snapshot};
use crate::repo::{Repo, document, names, records};
use crate::sabotage::is_planted;
use crate::storage::Listed;
use std::collections::{HashMap, HashSet};

/// Every snapshot that is not forgotten, as of now, whatever the file system caches. [`crate::error::Kind::Damaged`] if what
/// stands under any such name cannot be read: it may be a snapshot, and what it needs is not known.
pub(super) fn snapshots_now(repo: &Repo) -> Result<Vec<Snapshot>> {
    snapshots(repo, &|folder| repo.storage().list_fresh(folder))
}

/// As [`snapshots_now`], without a write: for a dry run.
pub(super) fn snapshots_roughly(repo: &Repo) -> Result<Vec<Snapshot>> {
    snapshots(repo, &|folder| repo.storage().list(folder))
}

fn snapshots(repo: &Repo, list: &dyn Fn(&str) -> Result<Vec<Listed>>) -> Result<Vec<Snapshot>> {
    let ids_in = |folder: &'static str, listed: &[Listed]| -> HashSet<SnapshotId> {
        listed.iter().filter_map(|l| names::snapshot_id(folder, &l.name)).collect()
    };
    // Markers first, snapshots after: one that is older than its marker must not be missed.
    let forgotten = records::forgotten(repo, &repo.storage().list(names::FORGOTTEN)?, &mut |_| {})?;
    let present = ids_in(names::SNAPSHOTS, &list(names::SNAPSHOTS)?);
    // What another host has just marked may be acted on only once no power cut takes it back.
    repo.storage().sync_folder(names::FORGOTTEN)?;
    repo.storage().sync_folder(names::SNAPSHOTS)?;
    let mut known: HashMap<SnapshotId, Snapshot> = repo.snapshots().into_iter().map(|s| (s.id, s)).collect();
    let mut cached = repo.index().snapshots()?;
    let mut live = Vec::new();
    let forgotten = if is_planted("forgotten-markers-ignored") { HashSet::new() } else { forgotten };
    let present = if is_planted("unknown-snapshots-not-live") { known.keys().copied().collect() } else { present };
    for id in present.difference(&forgotten) {
        if let Some(snapshot) = known.remove(id) {
            live.push(snapshot);
            continue;
        }
        let object = match cached.remove(id) {
            Some(object) => object,
            None => repo.storage().read(&names::snapshot(*id)?, 2 * document::BODY_BYTES_MAX)?,
        };
        match Outcome::open(repo.keys(), *id, &object) {
            Ok((Outcome::Saved(snapshot), _)) => live.push(*snapshot),
            Ok(_) => {}
            Err(error) => return Err(refusal(error.while_doing(format!("snapshots/{id}")))),
        }
    }
    live.sort_by_key(|s| (s.started, s.id));
    Ok(live)
}
