//! `key`: adds, lists, renews and removes the slots of an encrypted repository.
//!
//! Every change makes what is new durable before it takes away what is old, so a run that is killed between two steps
//! leaves all keys working, and running it again finishes it. Nothing here changes what a removed key has already seen.
//!
//! All but listing needs an admin key. A slot counts as ours only if an admin of the newest generation marked it, or if
//! the rotation that made that generation had it on its list: what the storage, or a former admin, has planted is named
//! and never given anything.

use crate::codec::seal::Key;
use crate::codec::stretch::{Cost, Secret};
use crate::error::{Error, Kind, Result};
use crate::ids::{RepositoryId, SlotId};
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::audit::{self, Action, Actor};
use crate::repo::key_slots::{self, LABEL_BYTES_MAX, NewSlot, Slot, Slots};
use crate::repo::keys::{Bundle, Generation, Role};
use crate::storage::Storage;
use std::collections::BTreeMap;

/// How far the number of a generation may lie ahead of those that are known, to be believed without proof.
const NUMBERS_AHEAD_MAX: u32 = 1 << 20;

/// The digits that a prefix of a slot's id has at least.
const PREFIX_DIGITS_MIN: usize = 4;

/// Who administers the slots of a repository.
#[derive(Clone)]
pub struct Admin<'a> {
    storage: &'a dyn Storage,
    repository: RepositoryId,
    bundle: &'a Bundle,
    slot: SlotId,
    /// The log that changes are written to before they are made.
    log: Option<Log<'a>>,
}

#[derive(Clone)]
struct Log<'a> {
    repo: &'a Repo,
    actor: Actor,
    now: FileTime,
}

/// The secret of a slot that is made.
#[derive(Clone, Copy)]
pub struct NewSecret<'s> {
    /// The secret.
    pub secret: &'s Secret,
    /// What stretching it costs; as for the slot in use if not given.
    pub cost: Option<Cost>,
    /// When this is.
    pub now: FileTime,
}

/// A slot as `key list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotReport {
    /// Its id.
    pub id: SlotId,
    /// What its key allows.
    pub role: Role,
    /// What it is called.
    pub label: String,
    /// When it was added.
    pub created: FileTime,
    /// What stretching its secret costs.
    pub cost: Cost,
    /// Its newest key generation.
    pub generation: u32,
    /// True for the slot that this run was opened with.
    pub is_in_use: bool,
    /// How it stands with the newest generation; only an admin can tell.
    pub standing: Option<Standing>,
}

/// Whether a slot is what it claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has the newest keys, from an admin.
    Current,
    /// A rotation that did not end still has to renew it.
    Behind,
    /// It was not made by an admin who has the newest keys.
    Foreign,
}

/// The slots of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListReport {
    /// By id.
    pub slots: Vec<SlotReport>,
    /// One sentence for each object that is damaged.
    pub damage: Vec<String>,
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotateReport {
    /// The number of the new generation.
    pub generation: u32,
    /// The slots that have it.
    pub renewed: Vec<SlotReport>,
    /// Slots that were left as they are, since no admin with the newest keys made them.
    pub foreign: Vec<SlotReport>,
}

/// Lists the slots, whatever key the repository was opened with.
pub fn list(repo: &Repo) -> Result<ListReport> {
    let (bundle, slot) = opened(repo)?;
    let slots = Slots::read(repo.storage(), repo.id())?;
    let admin = Admin { storage: repo.storage(), repository: repo.id(), bundle, slot, log: None };
    let standing = |slot: &Slot| (bundle.role == Role::Admin).then(|| admin.standing_of_all(&slots, slot.id()));
    let reports = slots.newest().map(|each| report(each, slot, standing(each))).collect();
    Ok(ListReport { slots: reports, damage: slots.damage.clone() })
}

impl<'a> Admin<'a> {
    /// The administrator that `repo` was opened as; `actor` and `now` are for the audit log. [`Kind::Usage`] if it is not encrypted, [`Kind::WrongKey`] if the key
    /// that opened it is of another role.
    pub fn of(repo: &'a Repo, actor: Actor, now: FileTime) -> Result<Admin<'a>> {
        let (bundle, slot) = opened(repo)?;
        if bundle.role != Role::Admin {
            let text = format!("this key has the role {:?}, and changing keys needs an admin key", bundle.role.name());
            return Err(Error::new(Kind::WrongKey, text).with_hint("run the command with an admin key"));
        }
        let log = Some(Log { repo, actor, now });
        Ok(Admin { storage: repo.storage(), repository: repo.id(), bundle, slot, log })
    }

    /// Adds a slot. Its salt is that of the slot in use, so that one stretching serves both.
    pub fn add(&self, role: Role, label: &str, new: NewSecret<'_>) -> Result<SlotReport> {
        let is_sound = label.len() <= LABEL_BYTES_MAX && !label.chars().any(char::is_control);
        if !is_sound {
            return Err(Error::new(Kind::Usage, format!("{label:?} cannot be a label"))
                .with_hint(format!("a label has up to {LABEL_BYTES_MAX} bytes of text in one line")));
        }
        self.note("key add", &[], &[("role", role.name()), ("label", label)])?;
        self.create(role, label, new, None)
    }

    /// Gives the slot in use another secret: the new slot is durable before the old one goes.
    pub fn change_secret(&self, new: NewSecret<'_>) -> Result<SlotReport> {
        let slots = self.slots()?;
        let own = self.own(&slots)?;
        self.note("key passphrase", &[self.slot], &[])?;
        let made = match self.left_by_change(&slots, own, new.secret)? {
            Some(made) => self.report(&slots, made),
            // It takes over the list of an unfinished rotation, too.
            None => self.create(Role::Admin, &own.fields.label, new, Some(own))?,
        };
        self.delete(&self.slots()?, self.slot, |_| true)?;
        Ok(SlotReport { is_in_use: true, ..made })
    }

    /// The slot of `secret` if a change of the own one to it was cut off before the old slot went.
    fn left_by_change<'s>(&self, slots: &'s Slots, own: &Slot, secret: &Secret) -> Result<Option<&'s Slot>> {
        let Some(unlocked) = slots.unlock(secret)? else { return Ok(None) };
        let is_twin = |slot: &&Slot| {
            let alike = (slot.fields.role, &slot.fields.label) == (Role::Admin, &own.fields.label);
            slot.id() == unlocked.slot && slot.id() != own.id() && alike
        };
        Ok(self.ours(slots).into_iter().find(is_twin))
    }

    /// Removes the slot whose id begins with `prefix`.
    pub fn remove(&self, prefix: &str) -> Result<SlotReport> {
        let slots = self.slots()?;
        let slot = find(&slots, prefix)?;
        let is_other_admin = |other: &&&Slot| other.fields.role == Role::Admin && other.id() != slot.id();
        if slot.fields.role == Role::Admin && self.ours(&slots).iter().filter(is_other_admin).count() == 0 {
            return Err(Error::new(Kind::Usage, format!("slot {} is the last one of an admin", slot.id()))
                .with_hint("add another admin key first: without one no key could be added or removed any more"));
        }
        self.note("key remove", &[slot.id()], &[("role", slot.fields.role.name()), ("label", &slot.fields.label)])?;
        self.delete(&slots, slot.id(), |_| true)?;
        Ok(self.report(&slots, slot))
    }

    /// Makes a new generation of keys, which everything is sealed to from now on, and gives it to every slot of ours.
    pub fn rotate(&self) -> Result<RotateReport> {
        let slots = self.slots()?;
        let own = self.own(&slots)?;
        let others: Vec<&Slot> = self.ours(&slots).into_iter().filter(|slot| slot.id() != self.slot).collect();
        let mut bundle = self.bundle.clone();
        bundle.generations.push(next_generation(&slots, self.bundle)?);
        let ids: Vec<SlotId> = others.iter().map(|slot| slot.id()).chain([self.slot]).collect();
        self.note("key rotate", &ids, &[("generation", &newest(&bundle).to_string())])?;
        // First the own slot, with the list of the others: whatever is sealed to the new keys from here on, an admin can
        // open, and a rotation that is cut off is finished by the next one.
        let hashes = others.iter().map(|slot| slot.hash()).collect();
        key_slots::renew(self.storage, &bundle, own, Some(hashes))?;
        for slot in &others {
            key_slots::renew(self.storage, &bundle, slot, None)?;
        }
        // All is durable, so what was renewed may go: that of others first, so that the list outlasts it. An object with
        // keys that are unknown here stays: they may be in no other.
        let is_known = |slot: &Slot| self.bundle.generations.iter().any(|g| g.number == slot.fields.generation);
        for id in ids {
            self.delete(&slots, id, is_known)?;
        }
        let renewed = Admin { bundle: &bundle, ..self.clone() };
        let now = renewed.slots()?;
        let reports = now.newest().map(|each| renewed.report(&now, each));
        let (renewed, foreign) = reports.partition(|report| report.standing == Some(Standing::Current));
        Ok(RotateReport { generation: newest(&bundle), renewed, foreign })
    }

    /// Writes down what is about to be done to these slots.
    fn note(&self, name: &'static str, slots: &[SlotId], details: &[(&str, &str)]) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let objects = slots.iter().map(|slot| slot.to_hex()).collect();
        let details = details.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        audit::append(log.repo, &log.actor, &Action { name, objects, details }, log.now).map(|_| ())
    }

    fn slots(&self) -> Result<Slots> {
        Slots::read(self.storage, self.repository)
    }

    /// The newest object of the own slot that an admin made.
    fn own<'s>(&self, slots: &'s Slots) -> Result<&'s Slot> {
        let of_own = slots.slots.iter().rev().filter(|slot| slot.id() == self.slot);
        let mut known = of_own.filter(|slot| slot.is_marked_by(self.bundle));
        known
            .next()
            .ok_or_else(|| Error::new(Kind::WrongKey, format!("the slot {} of this key was removed", self.slot)))
    }

    /// Of each slot the newest object that counts as ours.
    fn ours<'s>(&self, slots: &'s Slots) -> Vec<&'s Slot> {
        let ours = slots.slots.iter().filter(|slot| self.standing(slots, slot) != Standing::Foreign);
        ours.map(|slot| (slot.id(), slot)).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    fn standing(&self, slots: &Slots, slot: &Slot) -> Standing {
        if !slot.is_marked_by(self.bundle) {
            return Standing::Foreign;
        }
        if slot.fields.generation == newest(self.bundle) {
            return Standing::Current;
        }
        // Only the newest list counts: an older one may have been put back by the storage.
        let is_behind = self.own(slots).is_ok_and(|own| own.awaits(slot));
        if is_behind { Standing::Behind } else { Standing::Foreign }
    }

    /// How a slot stands by the best of its objects.
    fn standing_of_all(&self, slots: &Slots, id: SlotId) -> Standing {
        let objects = slots.slots.iter().filter(|slot| slot.id() == id);
        objects.map(|slot| self.standing(slots, slot)).min().unwrap_or(Standing::Foreign)
    }

    fn create(&self, role: Role, label: &str, new: NewSecret<'_>, pending: Option<&Slot>) -> Result<SlotReport> {
        let slots = self.slots()?;
        if slots.unlock(new.secret)?.is_some() {
            return Err(Error::new(Kind::Usage, "the new key opens this repository already")
                .with_hint("choose a key that no slot has"));
        }
        let own = self.own(&slots)?;
        let cost = new.cost.unwrap_or_else(|| own.cost());
        let slot = NewSlot { role, label: label.to_owned(), created: new.now, salt: own.salt(), cost };
        let id = key_slots::create(self.storage, self.repository, self.bundle, &slot, new.secret, pending)?;
        let slots = self.slots()?;
        let made = slots.newest().find(|slot| slot.id() == id);
        let made = made.ok_or_else(|| Error::new(Kind::Missing, format!("the new slot {id} is not there")))?;
        Ok(self.report(&slots, made))
    }

    fn report(&self, slots: &Slots, slot: &Slot) -> SlotReport {
        report(slot, self.slot, Some(self.standing_of_all(slots, slot.id())))
    }

    /// Deletes those objects of a slot for which `matching` holds, the oldest first: while any is left, the key works.
    fn delete(&self, slots: &Slots, id: SlotId, matching: impl Fn(&Slot) -> bool) -> Result<()> {
        for slot in slots.slots.iter().filter(|slot| slot.id() == id && matching(slot)) {
            self.storage.delete(&slot.name()?)?;
        }
        Ok(())
    }
}

fn opened(repo: &Repo) -> Result<(&Bundle, SlotId)> {
    match (repo.keys().bundle(), repo.slot()) {
        (Some(bundle), Some(slot)) => Ok((bundle, slot)),
        _ => Err(Error::new(Kind::Usage, "this repository is not encrypted and has no keys")
            .with_hint("encryption is chosen when a repository is made: `ckpt init --encrypt`")),
    }
}

fn report(slot: &Slot, in_use: SlotId, standing: Option<Standing>) -> SlotReport {
    SlotReport {
        id: slot.id(),
        role: slot.fields.role,
        label: slot.fields.label.clone(),
        created: slot.created(),
        cost: slot.cost(),
        generation: slot.fields.generation,
        is_in_use: slot.id() == in_use,
        standing,
    }
}

fn find<'s>(slots: &'s Slots, prefix: &str) -> Result<&'s Slot> {
    let prefix = prefix.to_ascii_lowercase();
    if prefix.len() < PREFIX_DIGITS_MIN {
        return Err(Error::new(Kind::Usage, format!("{prefix:?} is too short for a slot's id"))
            .with_hint(format!("give at least {PREFIX_DIGITS_MIN} digits; `ckpt key list` shows them")));
    }
    let mut fitting = slots.newest().filter(|slot| slot.id().to_hex().starts_with(&prefix));
    match (fitting.next(), fitting.next()) {
        (Some(slot), None) => Ok(slot),
        (None, _) => Err(Error::new(Kind::NotFound, format!("no key slot's id begins with {prefix:?}"))
            .with_hint("`ckpt key list` shows them")),
        (Some(_), Some(_)) => Err(Error::new(Kind::Usage, format!("several key slots' ids begin with {prefix}"))
            .with_hint("give more digits")),
    }
}

fn newest(bundle: &Bundle) -> u32 {
    bundle.generations.last().map_or(0, |generation| generation.number)
}

/// Fresh keys under a number above all that are in use.
///
/// By how much is drawn at random, so that two rotations that do not know of each other never give one number to two
/// different keys. A number that no key of ours proves counts only if it is near: the storage may have made it up.
fn next_generation(slots: &Slots, bundle: &Bundle) -> Result<Generation> {
    let known = newest(bundle);
    let seen = slots.slots.iter().map(|slot| slot.fields.generation);
    let highest = seen.filter(|number| number.saturating_sub(known) <= NUMBERS_AHEAD_MAX).max().unwrap_or(0).max(known);
    let mut step = [0u8; 2];
    getrandom::fill(&mut step).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    let number = highest.checked_add(1 + u32::from(u16::from_le_bytes(step)));
    let number = number.ok_or_else(|| Error::new(Kind::Failed, "no number is left for another generation of keys"))?;
    let (data, tree) = (Key::random()?, Key::random()?);
    Ok(Generation {
        number,
        data_public: data.public(),
        tree_public: tree.public(),
        data_private: Some(data),
        tree_private: Some(tree),
    })
}

#[cfg(test)]
mod tests;
