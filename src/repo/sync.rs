//! Bringing the index of this host up to date with the objects of the repository.
//!
//! Reads only what is new since the last time. Nothing here decides safety: a row too many or too few costs time.

use super::condemned::Condemned;
use super::index::{Beginning, Build, KnownPack};
use super::pack::PackSummary;
use super::records;
use super::snapshots::{Outcome, Snapshot};
use super::{Repo, index_object, names};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::threads;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::mpsc;
use std::thread;

/// How many table bytes are gathered before they are inserted: bounds memory, and one insertion serves many packs.
const BATCH_BYTES: usize = 8 << 20;
/// An empty index is made in one piece if it has so many bytes of index objects to read.
const BUILT_BYTES_MIN: u64 = 4 << 20;

/// How many packs' tables are read ahead of the thread that takes them apart: each may be large.
const PACKS_AHEAD: usize = 1;

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
    let mut tried = 0;
    while !load_listed(repo, observer, tried + 1 == LISTINGS_MAX, found)? {
        tried += 1;
    }
    match mark_deleted_packs(repo) {
        // Looking and restoring go on; whoever writes reads the lists again and refuses.
        Err(error) if error.kind() == Kind::Damaged => found.damage.push(format!("a list of deleted packs: {error}")),
        other => other?,
    }
    Ok(())
}

/// Loads what one listing shows; false if anything of it was gone by then, or the index became another one. The last time
/// all that can be had is loaded, and what cannot is told.
fn load_listed(repo: &Repo, observer: &dyn Observer, is_last: bool, found: &mut Found) -> Result<bool> {
    let mut is_complete = true;
    let storage = repo.storage();
    let known = repo.index().index_objects()?;
    let listed = storage.list(names::INDEX)?;
    let present: HashMap<_, _> = listed.iter().filter_map(|l| Some((names::index_id(&l.name)?, l.bytes))).collect();
    let fresh: Vec<_> = present.keys().filter(|id| !known.contains(id)).copied().collect();
    let bytes_total = fresh.iter().map(|id| present[id]).sum();
    if !fresh.is_empty() {
        observer.on_event(&Event::Phase {
            name: "reading the index",
            bytes_total: Some(bytes_total),
            files_total: None,
        });
    }
    if bytes_total >= BUILT_BYTES_MIN && !is_last {
        match repo.index().begin_build(observer)? {
            Beginning::Build(build) => return build_from(repo, build, &fresh, &present, observer, found),
            Beginning::MadeByAnother => return Ok(false),
            Beginning::Declined => {}
        }
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
        match judge(id, read, found)? {
            Readable::Whole => repo.index().finish_index_object(id)?,
            Readable::Gone if is_last => {
                found.note(format!("index/{id} is listed and not there; what it lists is read from the packs"));
            }
            Readable::Gone => is_complete = false,
            Readable::Partly => {}
        }
        observer.on_event(&Event::Progress { bytes: present[&id], files: 0 });
    }
    let gone: Vec<_> = known.into_iter().filter(|id| !present.contains_key(id)).collect();
    if !gone.is_empty() {
        repo.index().remove_index_objects(&gone)?;
    }
    Ok(is_complete)
}

/// How far an index object could be read.
enum Readable {
    Whole,
    Partly,
    /// It has been merged into another since it was listed.
    Gone,
}

fn judge(id: IndexId, read: Result<bool>, found: &mut Found) -> Result<Readable> {
    match read {
        Ok(true) => return Ok(Readable::Whole),
        Err(error) if error.kind() == Kind::Missing => return Ok(Readable::Gone),
        Ok(false) => found.note(format!("index/{id} is damaged; what it lists is read from the packs")),
        Err(error) if error.kind() == Kind::FormatTooNew => return Err(error),
        Err(error) => found.note(format!("index/{id} cannot be read: {error}")),
    }
    Ok(Readable::Partly)
}

/// Makes an empty index in one piece of these objects; false if anything was gone by then, or the index became another one.
fn build_from(
    repo: &Repo,
    mut build: Box<Build<'_>>,
    fresh: &[IndexId],
    present: &HashMap<IndexId, u64>,
    observer: &dyn Observer,
    found: &mut Found,
) -> Result<bool> {
    let go_on = || match observer.is_interrupted() {
        true => Err(Error::new(Kind::Interrupted, "interrupted while making the index")),
        false => Ok(()),
    };
    let mut is_complete = true;
    // One thread reads and checks objects, this one takes them apart.
    let (give, take) = mpsc::sync_channel(PACKS_AHEAD);
    thread::scope(|scope| {
        threads::start(scope, move || {
            for &id in fresh {
                let gone = || Error::new(Kind::Failed, "the index is no longer being made");
                let visit = &mut |pack| give.send((id, Ok(pack))).map_err(|_| gone());
                let read = index_object::read(repo, id, visit);
                if give.send((id, Err(read))).is_err() {
                    return;
                }
            }
        })?;
        for (id, next) in take {
            match next {
                Ok(pack) => build.add(&pack, id)?,
                Err(read) => {
                    match judge(id, read, found)? {
                        Readable::Whole => build.finish_index_object(id)?,
                        Readable::Gone => is_complete = false,
                        Readable::Partly => {}
                    }
                    observer.on_event(&Event::Progress { bytes: present[&id], files: 0 });
                    go_on()?;
                }
            }
        }
        Ok(())
    })?;
    let bytes_total = Some(build.bytes());
    observer.on_event(&Event::Phase { name: "making the index", bytes_total, files_total: None });
    Ok(build.finish(observer)? && is_complete)
}

/// Packs of final lists are dead for ever: no row may say otherwise.
fn mark_deleted_packs(repo: &Repo) -> Result<()> {
    let dead = repo.index().living(&Condemned::read(repo)?.into_dead())?;
    if dead.is_empty() { Ok(()) } else { repo.index().mark_dead(&dead) }
}

/// Which packs there are, for who lists them once and needs them in several ways.
pub(super) struct PacksFound {
    /// What the index knows, also what came to it now.
    pub(super) known: Vec<KnownPack>,
    /// The names that stand in the storage, sorted.
    pub(super) present: Vec<PackId>,
    /// How many the index had not known.
    pub(super) added: u64,
}

/// Adds the packs that no index object has made known and that `condemned` does not decide about.
pub(super) fn unlisted_packs(repo: &Repo, condemned: &Condemned) -> Result<PacksFound> {
    // Known before they are listed: what another run adds meanwhile is neither missed nor taken for gone.
    let mut known = repo.index().packs()?;
    let names = repo.storage().list_names(names::PACKS)?;
    let mut present: Vec<PackId> = names.iter().filter_map(names::pack_id).collect();
    drop(names);
    present.sort_unstable();
    let is_known = |id: &PackId| known.binary_search_by_key(id, |pack| pack.id).is_ok();
    let new: Vec<PackId> = present.iter().filter(|id| !is_known(id) && !condemned.is_dead(id)).copied().collect();
    let mut added = 0;
    let mut batch = Vec::new();
    for id in new {
        let bytes = repo.storage().size(&names::pack(id)?);
        let bytes =
            bytes.and_then(|bytes| bytes.ok_or_else(|| Error::new(Kind::Missing, format!("pack {id} is gone"))));
        match bytes.and_then(|bytes| repo.pack_summary(id, bytes)) {
            Ok(summary) => {
                known.push(KnownPack {
                    id,
                    bytes: summary.bytes,
                    kind: summary.kind,
                    transaction: summary.transaction,
                    is_listed: false,
                });
                batch.push(summary);
            }
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
    Ok(PacksFound { known, present, added })
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
    let (mut new, mut new_bytes) = (Vec::new(), 0);
    for &id in present.difference(&forgotten) {
        let (object, is_new) = match cached.remove(&id) {
            Some(object) => (object, false),
            None => {
                match storage.read(&names::snapshot(id)?, super::document::DocumentKind::Snapshot.object_bytes_max()) {
                    Ok(object) => (object, true),
                    Err(error) => {
                        found.damage.push(format!("snapshots/{id} cannot be read: {error}"));
                        continue;
                    }
                }
            }
        };
        match Outcome::open(repo.keys(), id, &object) {
            Ok((outcome, sound)) => {
                if sound && is_new {
                    new_bytes += object.len();
                    new.push((id, object));
                    if new_bytes >= BATCH_BYTES {
                        repo.index().add_snapshots(&std::mem::take(&mut new))?;
                        new_bytes = 0;
                    }
                } else if !sound {
                    found.damage.push(format!("snapshots/{id}: one of its two copies is damaged"));
                }
                if let Outcome::Saved(snapshot) = outcome {
                    live.push(*snapshot);
                }
            }
            Err(error) => found.damage.push(format!("snapshots/{id} is damaged: {error}")),
        }
    }
    repo.index().add_snapshots(&new)?;
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
    use crate::repo::keys::NoKey;
    use crate::repo::test_support::{self, Node};
    use crate::storage::Storage;
    use crate::storage::simulated::{Fault, Operation};
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

    #[test]
    fn an_index_object_that_is_listed_and_never_there_is_told_and_the_others_are_loaded() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let saved = [1, 2].map(|n| test_support::save(&repo, n, &[("f", Node::File(vec![n as u8; 1000]))]));
        let lost = names::index(IndexId::from_bytes(*saved[0].id.as_bytes())).expect("a name");
        let is_read = |operation| matches!(operation, Operation::Read | Operation::ReadRange | Operation::Size);
        let lost_name = lost.as_str().to_owned();
        storage.fail(
            0..u64::MAX,
            move |operation, name| is_read(operation) && name == lost_name,
            Fault::Error(Kind::Missing),
        );
        let repo = test_support::open(&storage);
        assert!(repo.damage().iter().any(|text| text.contains("listed and not there")), "{:?}", repo.damage());
        assert!(repo.index().packs().expect("an index").iter().any(|pack| pack.is_listed), "the other is loaded");
    }

    /// Interrupts what waits, once it has said so.
    #[derive(Default)]
    struct Impatient(std::sync::atomic::AtomicBool);

    impl Observer for Impatient {
        fn on_event(&self, event: &Event<'_>) {
            if matches!(event, Event::Phase { name, .. } if name.starts_with("waiting")) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }

        fn is_interrupted(&self) -> bool {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[test]
    fn what_a_host_has_seen_survives_a_prune_that_meets_a_run_that_makes_the_index() {
        let storage = test_support::storage();
        let saved = test_support::save(&test_support::open(&storage), 10, &[("f", Node::File(vec![1; 10]))]);
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("repository");
        for (name, object) in storage.objects() {
            let path = place.join(name.as_str());
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, object).expect("written");
        }
        let location = place.to_str().expect("UTF-8");
        let cache = Cache::Folder(folder.path().join("cache"));
        let fresh = |observer: &dyn Observer| Repo::open_fresh_with(location, &cache, &NoKey, observer);
        let repo = Repo::open(location, &cache, &Silent).expect("opens");
        assert_eq!(repo.snapshots().len(), 1);
        let database = repo.index().path().to_owned();
        drop(repo);
        std::fs::remove_file(place.join(names::snapshot(saved.id).expect("a name").as_str())).expect("rolled back");
        let builder = std::fs::File::open(database.with_extension("lock")).expect("a lock");
        builder.lock().expect("held alone");
        let error = fresh(&Impatient::default()).err().expect("interrupted");
        assert_eq!(error.kind(), Kind::Interrupted, "{error}");
        drop(builder);
        assert_eq!(fresh(&Silent).expect("opens").vanished(), [saved.id]);
    }
}
