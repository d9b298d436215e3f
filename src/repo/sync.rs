//! Bringing the index of this host up to date with the objects of the repository.
//!
//! Reads only what is new since the last time. Nothing here decides safety: a row too many or too few costs time.

use super::condemned::Condemned;
use super::pack::PackSummary;
use super::records;
use super::snapshots::{Outcome, Snapshot};
use super::{Repo, index_object, names};
use crate::error::{Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{PackId, SnapshotId};
use std::collections::{BTreeSet, HashMap, HashSet};

/// How many table bytes are gathered before they are inserted: bounds memory, and one insertion serves many packs.
const BATCH_BYTES: usize = 8 << 20;

/// What came to light on the way.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// One sentence for each damaged object.
    pub(super) damage: Vec<String>,
    /// Snapshots that this host has seen, that nobody forgot, and that are gone.
    pub(super) vanished: Vec<SnapshotId>,
}

impl Found {
    fn note(&mut self, text: String) {
        if !self.damage.contains(&text) {
            self.damage.push(text);
        }
    }
}

/// How often the index is listed while prunes merge its objects away under it.
const LISTINGS_MAX: usize = 8;

/// Loads index objects that are new and forgets those that are gone.
///
/// One that was listed and is gone has been merged into another, which an earlier listing may not show: then it lists again.
pub(super) fn index_objects(repo: &Repo, observer: &dyn Observer, found: &mut Found) -> Result<()> {
    for _ in 0..LISTINGS_MAX {
        if load_listed(repo, observer, found)? {
            break;
        }
    }
    match mark_deleted_packs(repo) {
        // Looking and restoring go on; whoever writes reads the lists again and refuses.
        Err(error) if error.kind() == Kind::Damaged => found.damage.push(format!("a list of deleted packs: {error}")),
        other => other?,
    }
    Ok(())
}

/// Loads what one listing shows; false if anything of it was gone by then.
fn load_listed(repo: &Repo, observer: &dyn Observer, found: &mut Found) -> Result<bool> {
    let mut is_complete = true;
    let storage = repo.storage();
    let known = repo.index().index_objects()?;
    let listed = storage.list(names::INDEX)?;
    let present: HashMap<_, _> = listed.iter().filter_map(|l| Some((names::index_id(&l.name)?, l.bytes))).collect();
    let fresh: Vec<_> = present.keys().filter(|id| !known.contains(id)).copied().collect();
    if !fresh.is_empty() {
        let bytes_total = fresh.iter().map(|id| present[id]).sum();
        observer.on_event(&Event::Phase {
            name: "reading the index",
            bytes_total: Some(bytes_total),
            files_total: None,
        });
    }
    for id in fresh {
        let mut batch: Vec<PackSummary> = Vec::new();
        let mut batch_bytes = 0;
        let add = |batch: &mut Vec<PackSummary>| repo.index().add_packs(&std::mem::take(batch), Some(id));
        let read = index_object::read(repo, id, &mut |pack| {
            batch_bytes += pack.table.len();
            batch.push(pack);
            if batch_bytes >= BATCH_BYTES {
                batch_bytes = 0;
                add(&mut batch)?;
            }
            Ok(())
        });
        add(&mut batch)?;
        match read {
            Ok(true) => repo.index().finish_index_object(id)?,
            Err(error) if error.kind() == Kind::Missing => is_complete = false,
            Ok(false) => found.note(format!("index/{id} is damaged; what it lists is read from the packs")),
            Err(error) if error.kind() == Kind::FormatTooNew => return Err(error),
            Err(error) => found.note(format!("index/{id} cannot be read: {error}")),
        }
        observer.on_event(&Event::Progress { bytes: present[&id], files: 0 });
    }
    let gone: Vec<_> = known.into_iter().filter(|id| !present.contains_key(id)).collect();
    if !gone.is_empty() {
        repo.index().remove_index_objects(&gone)?;
    }
    Ok(is_complete)
}

/// Packs of final lists are dead for ever: no row may say otherwise.
fn mark_deleted_packs(repo: &Repo) -> Result<()> {
    let condemned = Condemned::read(repo)?;
    let dead: Vec<PackId> =
        repo.index().packs()?.into_iter().map(|p| p.id).filter(|id| condemned.is_dead(id)).collect();
    if dead.is_empty() { Ok(()) } else { repo.index().mark_dead(&dead) }
}

/// Adds the packs that no index object has made known; returns how many.
pub(super) fn unlisted_packs(repo: &Repo) -> Result<u64> {
    let condemned = Condemned::read(repo)?;
    let known: HashSet<PackId> = repo.index().packs()?.into_iter().map(|p| p.id).collect();
    let mut added = 0;
    let mut batch = Vec::new();
    for listed in repo.storage().list(names::PACKS)? {
        let Some(id) = names::pack_id(&listed.name) else { continue };
        if known.contains(&id) || condemned.is_dead(&id) {
            continue;
        }
        match repo.pack_summary(id, listed.bytes) {
            Ok(summary) => batch.push(summary),
            // Of no use, and harmless: verification names it.
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing | Kind::FormatTooNew) => continue,
            Err(error) => return Err(error),
        }
        added += 1;
        if batch.iter().map(|p: &PackSummary| p.table.len()).sum::<usize>() >= BATCH_BYTES {
            repo.index().add_packs(&std::mem::take(&mut batch), None)?;
        }
    }
    repo.index().add_packs(&batch, None)?;
    Ok(added)
}

/// The live snapshots, oldest first, with their tags of today.
pub(super) fn snapshots(repo: &Repo, found: &mut Found) -> Result<Vec<Snapshot>> {
    let storage = repo.storage();
    let ids_in = |folder: &'static str| -> Result<HashSet<SnapshotId>> {
        Ok(storage.list(folder)?.iter().filter_map(|l| names::snapshot_id(folder, &l.name)).collect())
    };
    let forgotten = records::forgotten(repo, &storage.list(names::FORGOTTEN)?, &mut |id| {
        found.damage.push(format!(
            "forgotten/{id} does not open, so the snapshot counts as live: the marker is damaged, or made up by somebody without a key"
        ));
    })?;
    let present = ids_in(names::SNAPSHOTS)?;
    let mut cached = repo.index().snapshots()?;
    let mut live = Vec::new();
    for &id in present.difference(&forgotten) {
        let object = match cached.remove(&id) {
            Some(object) => object,
            None => {
                match storage.read(&names::snapshot(id)?, super::document::DocumentKind::Snapshot.object_bytes_max()) {
                    Ok(object) => object,
                    Err(error) => {
                        found.damage.push(format!("snapshots/{id} cannot be read: {error}"));
                        continue;
                    }
                }
            }
        };
        match Outcome::open(repo.keys(), id, &object) {
            Ok((outcome, sound)) => {
                if sound {
                    repo.index().add_snapshot(id, &object)?;
                } else {
                    found.damage.push(format!("snapshots/{id}: one of its two copies is damaged"));
                }
                if let Outcome::Saved(snapshot) = outcome {
                    live.push(*snapshot);
                }
            }
            Err(error) => found.damage.push(format!("snapshots/{id} is damaged: {error}")),
        }
    }
    // A name under `snapshots/` is never freed, whatever it holds. What vanished stays remembered here, or it would be
    // told once only.
    let is_gone = |id: &SnapshotId| !present.contains(id) && !forgotten.contains(id);
    let (vanished, forgotten): (Vec<_>, Vec<_>) = cached.into_keys().partition(is_gone);
    for id in vanished {
        found.damage.push(format!(
            "snapshots/{id} is gone, which this host has seen and nobody forgot: it was deleted, or an older state of the \
             repository was put in its place"
        ));
        found.vanished.push(id);
    }
    if !forgotten.is_empty() {
        repo.index().remove_snapshots(&forgotten)?;
    }
    apply_tags(repo, &mut live, found)?;
    live.sort_by_key(|s| (s.started, s.id));
    Ok(live)
}

fn apply_tags(repo: &Repo, live: &mut [Snapshot], found: &mut Found) -> Result<()> {
    let mut newest: HashMap<SnapshotId, u64> = HashMap::new();
    for listed in repo.storage().list(names::TAGS)? {
        if let Some((id, change)) = names::tags_change(&listed.name) {
            let last = newest.entry(id).or_default();
            *last = change.max(*last);
        }
    }
    for snapshot in live {
        let Some(&change) = newest.get(&snapshot.id) else { continue };
        match records::read_tags(repo, snapshot.id, change) {
            Ok(tags) => snapshot.tags = tags,
            Err(error) => found.damage.push(format!("tags of {}: {error}", snapshot.id)),
        }
    }
    Ok(())
}

/// Loads history records that are new.
pub(super) fn history(repo: &Repo, found: &mut Found) -> Result<()> {
    let known = repo.index().history()?;
    let listed = repo.storage().list(names::HISTORY)?;
    let present: BTreeSet<_> = listed.iter().filter_map(|l| names::history_id(&l.name)).collect();
    for id in present.into_iter().filter(|id| !known.contains(id)) {
        match records::read_history(repo, id) {
            Ok(record) => repo.index().add_history(
                &super::index::RunRecord {
                    id,
                    operation: record.operation.clone(),
                    started: record.started,
                    finished: record.finished,
                    outcome: record.outcome.clone(),
                },
                record.packs(),
            )?,
            Err(error) => found.damage.push(format!("history/{id} cannot be read: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::repo::Cache;
    use crate::repo::test_support::{self, Node};
    use crate::storage::Storage;
    use crate::storage::simulated::Operation;
    use std::sync::Arc;

    #[test]
    fn a_thousand_snapshots_are_read_once_on_a_host_and_none_of_them_again() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let saved = test_support::save(&repo, 10, &[("f", Node::File(vec![1; 10]))]);
        for number in 1..1000u128 {
            let id = SnapshotId::from_bytes(number.to_be_bytes());
            let object =
                Outcome::Saved(Box::new(Snapshot { id, ..saved.clone() })).seal(repo.keys(), id).expect("sealed");
            storage.insert(names::snapshot(id).expect("a name"), object);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::Folder(folder.path().to_owned());
        let open = || {
            storage.clear_calls();
            let shared: Arc<dyn Storage> = Arc::new(storage.clone());
            let repo = Repo::open_storage(shared, &cache, &Silent).expect("opens");
            let reads = storage
                .calls()
                .into_iter()
                .filter(|call| matches!(call.operation, Operation::Read | Operation::ReadRange));
            (repo.snapshots().len(), reads.map(|call| call.name).collect::<Vec<_>>())
        };
        let (count, reads) = open();
        let snapshots = |reads: &[String]| reads.iter().filter(|name| name.starts_with(names::SNAPSHOTS)).count();
        assert_eq!((count, snapshots(&reads)), (1000, 1000));
        let (count, reads) = open();
        assert_eq!((count, snapshots(&reads)), (1000, 0));
        assert!(reads.len() <= 8, "{reads:?}");
    }
}
