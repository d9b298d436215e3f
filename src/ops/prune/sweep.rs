//! Condemning, looking again, deciding and deleting: steps 3 to 7 of the fence.

use super::plan::{refusal, refuse_homeless};
use super::{PruneOptions, writers};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{PackId, SnapshotId};
use crate::repo::document::DocumentKind;
use crate::repo::index::survey::Survey;
use crate::repo::records::{self, Condemned};
use crate::repo::snapshots::{Outcome, Snapshot};
use crate::repo::{Repo, names};
use crate::storage::Published;
use std::collections::{HashMap, HashSet};

/// Every snapshot that is not forgotten. [`Kind::Damaged`] if what stands under any such name cannot be read: it may be a
/// snapshot, and what it needs is not known.
pub(super) fn live_snapshots(repo: &Repo) -> Result<Vec<Snapshot>> {
    // A marker or snapshot that another host has just made may be acted on only once no power cut takes it back.
    repo.storage().sync_folder(names::FORGOTTEN)?;
    repo.storage().sync_folder(names::SNAPSHOTS)?;
    let ids_in = |folder: &'static str| -> Result<HashSet<SnapshotId>> {
        Ok(repo.storage().list(folder)?.iter().filter_map(|l| names::snapshot_id(folder, &l.name)).collect())
    };
    let forgotten = ids_in(names::FORGOTTEN)?;
    let mut known: HashMap<SnapshotId, Snapshot> = repo.snapshots().into_iter().map(|s| (s.id, s)).collect();
    let mut cached = repo.index().snapshots()?;
    let mut live = Vec::new();
    for id in ids_in(names::SNAPSHOTS)?.difference(&forgotten) {
        if let Some(snapshot) = known.remove(id) {
            live.push(snapshot);
            continue;
        }
        let object = match cached.remove(id) {
            Some(object) => object,
            None => repo.storage().read(&names::snapshot(*id)?, DocumentKind::Snapshot.object_bytes_max())?,
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

/// Ends what earlier runs left: lists without an end as abandoned, deletions that were decided are carried out, unfinished
/// objects removed. Returns the bytes of the last. Sound because no writer is at work; each step frees room or is small.
pub(super) fn finish_earlier(repo: &Repo, options: &PruneOptions) -> Result<u64> {
    let storage = repo.storage();
    let freed = storage.delete_abandoned()?;
    storage.sync_folder(names::CONDEMNED)?;
    let condemned = Condemned::read(repo)?;
    if !condemned.ended.is_empty() {
        for listed in storage.list(names::PACKS)? {
            if names::pack_id(&listed.name).is_some_and(|id| condemned.ended.contains(&id)) {
                storage.delete(&listed.name)?;
            }
        }
        for listed in storage.list(names::PARITY)? {
            if names::parity_id(&listed.name).is_some_and(|id| condemned.ended.contains(&id)) {
                storage.delete(&listed.name)?;
            }
        }
    }
    for number in condemned.open_numbers {
        // Taken by another run meanwhile is as good: it has an end.
        records::create_pack_list(repo, &names::condemned_end(number)?, &[], options.now)
            .map_err(no_room_for_records)?;
    }
    Ok(freed)
}

/// One prune's ways to delete.
pub(super) struct Sweep<'a> {
    pub(super) repo: &'a Repo,
    pub(super) survey: &'a Survey<'a>,
    /// The snapshots that were marked.
    pub(super) snapshots: &'a [Snapshot],
    pub(super) options: &'a PruneOptions,
    pub(super) observer: &'a dyn Observer,
}

impl Sweep<'_> {
    /// Deletes `victims`, after having made sure that `staying` hold everything live. No victims, nothing done.
    pub(super) fn delete(&self, victims: &[(PackId, u64)], staying: &[PackId]) -> Result<()> {
        if victims.is_empty() {
            return Ok(());
        }
        let ids: Vec<PackId> = victims.iter().map(|(id, _)| *id).collect();
        let number = self.condemn(&ids)?;
        if let Err(error) = self.look_again(staying) {
            // The first end wins. If this one finds no room, the next prune makes it.
            let _ = self.create_end(number, &[]);
            return Err(error);
        }
        self.create_end(number, &ids)?;
        self.carry_out(victims)
    }

    fn condemn(&self, victims: &[PackId]) -> Result<u64> {
        let condemned = Condemned::read(self.repo)?;
        if !condemned.open_numbers.is_empty() {
            return Err(another_prune());
        }
        let number = condemned.last_number + 1;
        let name = names::condemned(number)?;
        match records::create_pack_list(self.repo, &name, victims, self.options.now) {
            Ok(Published::Created) => Ok(number),
            Ok(Published::AlreadyExists) => Err(another_prune()),
            Err(error) => Err(no_room_for_records(error)),
        }
    }

    fn create_end(&self, number: u64, victims: &[PackId]) -> Result<()> {
        let name = names::condemned_end(number)?;
        match records::create_pack_list(self.repo, &name, victims, self.options.now) {
            Ok(Published::Created) => Ok(()),
            Ok(Published::AlreadyExists) => Err(another_prune()),
            Err(error) => Err(no_room_for_records(error)),
        }
    }

    /// No writer is open, no snapshot is new, and what stays holds everything: only then may the list become final.
    fn look_again(&self, staying: &[PackId]) -> Result<()> {
        if let Some(id) = writers::first_open(self.repo)? {
            return Err(Error::new(
                Kind::Busy,
                format!("the transaction {id} has begun meanwhile; nothing is deleted"),
            )
            .with_hint("prune again when it has ended"));
        }
        self.repo.refresh(self.observer)?;
        let marked: HashSet<SnapshotId> = self.snapshots.iter().map(|s| s.id).collect();
        if let Some(fresh) = live_snapshots(self.repo)?.into_iter().find(|s| !marked.contains(&s.id)) {
            let text = format!("the snapshot {} was saved meanwhile; nothing is deleted", fresh.id.short());
            return Err(Error::new(Kind::Busy, text).with_hint("prune again"));
        }
        let mut present: HashMap<PackId, u64> = HashMap::new();
        for listed in self.repo.storage().list(names::PACKS)? {
            present.extend(names::pack_id(&listed.name).map(|id| (id, listed.bytes)));
        }
        let known: HashSet<PackId> = self
            .repo
            .index()
            .packs()?
            .iter()
            .filter(|p| p.is_listed && present.get(&p.id) == Some(&p.bytes))
            .map(|p| p.id)
            .collect();
        let usable: Vec<PackId> = staying.iter().copied().filter(|id| known.contains(id)).collect();
        self.survey.set_usable(&usable)?;
        refuse_homeless(self.survey)?;
        // Positions are ranks, and the copying that may follow goes by the plan's.
        self.survey.set_usable(staying)
    }

    fn carry_out(&self, victims: &[(PackId, u64)]) -> Result<()> {
        let bytes_total = victims.iter().map(|(_, bytes)| bytes).sum();
        self.observer.on_event(&Event::Phase { name: "deleting", bytes_total: Some(bytes_total), files_total: None });
        for (id, bytes) in victims {
            // Decided is decided: an interruption leaves the rest to the next prune.
            if self.observer.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while deleting packs"));
            }
            self.repo.storage().delete(&names::pack(*id)?)?;
            self.repo.storage().delete(&names::parity(*id)?)?;
            self.observer.on_event(&Event::Progress { bytes: *bytes, files: 0 });
        }
        self.repo.index().remove_packs(&victims.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    }
}

fn another_prune() -> Error {
    Error::new(Kind::Busy, "another prune is at work").with_hint("wait for it and prune again")
}

/// The records of a decision take a few kilobytes, and without them nothing may be deleted.
fn no_room_for_records(error: Error) -> Error {
    if error.kind() != Kind::NoSpace {
        return error;
    }
    error
        .while_doing("prune deletes only what it has recorded first, and there is no room even for that record")
        .with_hint("free a few kilobytes on the file system of the repository, then prune again")
}
