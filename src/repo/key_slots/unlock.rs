//! Finding the slot that a secret opens, among slots that anybody may have written.

use super::{Holder, Slot};
use crate::codec::seal::Key;
use crate::codec::stretch::{Cost, SALT_BYTES, Secret};
use crate::error::{Error, Kind, Result};
use crate::ids::{RepositoryId, SlotId};
use crate::repo::keys::Bundle;
use crate::repo::names;
use crate::storage::Storage;
use std::collections::{BTreeMap, BTreeSet};

/// The longest object of a slot that is read, and all of them together.
const OBJECT_BYTES_MAX: u64 = 2 << 20;
const ALL_BYTES_MAX: u64 = 64 << 20;

/// Work that is begun for one secret in [`Cost::work`]: what one slot at the upper bounds costs. A storage may hold any
/// number of slots with parameters of their own.
const WORK_MAX: u64 = 16 << 20;

/// What a secret gave.
#[derive(Debug)]
pub struct Unlocked {
    /// The slot that it opened.
    pub slot: SlotId,
    /// The keys in it.
    pub bundle: Bundle,
    /// One sentence for each object of the slot that should have opened and did not.
    pub damage: Vec<String>,
}

/// All slots of a repository, by id and generation.
#[derive(Debug, Default)]
pub struct Slots {
    /// The readable ones.
    pub slots: Vec<Slot>,
    /// One sentence for each object that cannot be read or has a damaged copy.
    pub damage: Vec<String>,
}

impl Slots {
    /// Reads them; what cannot be read is named in `damage`.
    pub fn read(storage: &dyn Storage, repository: RepositoryId) -> Result<Slots> {
        let listed = storage.list(names::KEYS)?;
        if listed.iter().map(|l| l.bytes.min(OBJECT_BYTES_MAX)).sum::<u64>() > ALL_BYTES_MAX {
            return Err(Error::damaged(format!("{} holds more than {ALL_BYTES_MAX} bytes", names::KEYS)));
        }
        let mut found = Slots::default();
        for (name, (id, generation)) in listed.iter().filter_map(|l| Some((&l.name, names::key_slot_id(&l.name)?))) {
            let read = storage.read(name, OBJECT_BYTES_MAX);
            match read.and_then(|object| Slot::decode(&object, id, generation, repository)) {
                Ok(Some(slot)) => {
                    if !slot.is_whole {
                        found.damage.push(format!("{name}: one of its two copies is damaged"));
                    }
                    found.slots.push(slot);
                }
                Ok(None) => {}
                // Removed since the listing.
                Err(error) if error.kind() == Kind::Missing => {}
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::FormatTooNew) => {
                    found.damage.push(format!("{name}: {error}"));
                }
                Err(error) => return Err(error.while_doing(name)),
            }
        }
        found.slots.sort_by_key(|slot| (slot.id(), slot.fields.generation));
        Ok(found)
    }

    /// The newest object of each slot.
    pub fn newest(&self) -> impl Iterator<Item = &Slot> {
        let by_id: BTreeMap<SlotId, &Slot> = self.slots.iter().map(|slot| (slot.id(), slot)).collect();
        by_id.into_values()
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.newest().count()
    }

    /// Opens the slot of `secret`; none if it has none here. Of several the one that allows most.
    ///
    /// Slots that share salt and cost take one stretching together, those with the cheapest first; what goes beyond a
    /// bound of time is left out.
    pub fn unlock(&self, secret: &Secret) -> Result<Option<Unlocked>> {
        let mut groups: BTreeMap<(u64, Cost, [u8; SALT_BYTES]), Vec<&Slot>> = BTreeMap::new();
        for slot in &self.slots {
            groups.entry((slot.cost().work(), slot.cost(), slot.salt())).or_default().push(slot);
        }
        let rank = |bundle: &Bundle| bundle.role as u8;
        let mut best: Option<(SlotId, Bundle)> = None;
        let mut damage = Vec::new();
        let mut work_done = 0;
        for ((work, cost, salt), slots) in groups {
            if work_done >= WORK_MAX {
                break;
            }
            work_done += work;
            let root = secret.stretch(&salt, cost)?;
            for id in slots.iter().map(|slot| slot.id()).collect::<BTreeSet<_>>() {
                let objects = slots.iter().copied().filter(|slot| slot.id() == id);
                let Some(bundle) = open_one(&root, id, objects, &mut damage)? else { continue };
                if best.as_ref().is_none_or(|(_, other)| rank(&bundle) > rank(other)) {
                    best = Some((id, bundle));
                }
            }
            if best.is_some() {
                break;
            }
        }
        match best {
            Some((slot, bundle)) => Ok(Some(Unlocked { slot, bundle, damage })),
            None if damage.is_empty() => Ok(None),
            None => Err(Error::damaged(format!("the key fits a slot that does not open: {}", damage.join("; ")))),
        }
    }
}

/// Opens all objects of one slot and gathers the generations in them; none if the secret is of another slot, or if none
/// opens, which is added to `damage`.
fn open_one<'s>(
    root: &Key,
    id: SlotId,
    objects: impl Iterator<Item = &'s Slot>,
    damage: &mut Vec<String>,
) -> Result<Option<Bundle>> {
    let holder = Holder::new(root, id);
    let public = holder.private.public();
    let mut merged: Option<Bundle> = None;
    for slot in objects.filter(|slot| *slot.fields.public == public) {
        match slot.open(&holder) {
            Ok(newer) => merged = Some(merge(merged, newer)),
            Err(error) => damage.push(format!("{}: {error}", slot.name()?)),
        }
    }
    Ok(merged)
}

/// `newer` with the generations of `older` that it lacks.
fn merge(older: Option<Bundle>, mut newer: Bundle) -> Bundle {
    for generation in older.into_iter().flat_map(|older| older.generations) {
        if newer.generations.iter().all(|known| known.number != generation.number) {
            newer.generations.push(generation);
        }
    }
    newer.generations.sort_by_key(|generation| generation.number);
    newer
}
