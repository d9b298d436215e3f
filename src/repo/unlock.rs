//! From a secret to the keys of a repository.
//!
//! A secret is asked for only where there is something to open.

use super::key_slots::{Slots, Unlocked};
use super::keys::{Bundle, Unlock};
use crate::codec::stretch::Secret;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{RepositoryId, SlotId};
use crate::storage::Storage;
use std::cell::Cell;

/// Where secrets come from.
pub trait SecretSource {
    /// True if the user named a key for this run, needed or not.
    fn is_given(&self) -> bool;

    /// The secret for a repository with so many key slots, at the attempt of this number, from 1 on; none if there is
    /// nothing (more) to try.
    fn secret(&self, attempt: u32, slots: usize) -> Result<Option<Secret>>;
}

/// The keys in the slot of a secret.
pub struct SlotKeys<'a> {
    secrets: &'a dyn SecretSource,
    observer: &'a dyn Observer,
    slot: Cell<Option<SlotId>>,
}

impl<'a> SlotKeys<'a> {
    /// The keys that a secret of `secrets` gives; damaged slots are reported to `observer`.
    pub fn new(secrets: &'a dyn SecretSource, observer: &'a dyn Observer) -> Self {
        SlotKeys { secrets, observer, slot: Cell::new(None) }
    }
}

impl Unlock for SlotKeys<'_> {
    fn is_given(&self) -> bool {
        self.secrets.is_given()
    }

    fn unlock(&self, storage: &dyn Storage, repository: RepositoryId) -> Result<Bundle> {
        let slots = Slots::read(storage, repository)?;
        let warn = |damage: &[String]| damage.iter().for_each(|text| self.observer.on_event(&Event::Warning { text }));
        warn(&slots.damage);
        if slots.slots.is_empty() {
            let text = format!("{} is encrypted, and no key slot of it can be read", storage.describe());
            return Err(Error::damaged(text).with_hint(
                "put its folder `keys` back from a copy; without it nothing can be read, with whatever key",
            ));
        }
        let unlocked = try_secrets(storage, &slots, self.secrets)?;
        warn(&unlocked.damage);
        self.slot.set(Some(unlocked.slot));
        Ok(unlocked.bundle)
    }

    fn slot(&self) -> Option<SlotId> {
        self.slot.get()
    }
}

fn try_secrets(storage: &dyn Storage, slots: &Slots, secrets: &dyn SecretSource) -> Result<Unlocked> {
    let count = slots.count();
    let mut attempt = 1;
    while let Some(secret) = secrets.secret(attempt, count)? {
        if let Some(unlocked) = slots.unlock(&secret)? {
            return Ok(unlocked);
        }
        attempt += 1;
    }
    let place = storage.describe();
    if attempt == 1 {
        return Err(Error::new(Kind::WrongKey, format!("{place} is encrypted, and no key is given")).with_hint(
            "name a key file (--key-file or CKPT_KEY_FILE) or a command that prints the key (--key-command or \
             CKPT_KEY_COMMAND), or run this in a terminal to be asked for it",
        ));
    }
    let which = if count == 1 { "the one key slot".to_owned() } else { format!("any of the {count} key slots") };
    let unreadable = match slots.damage.len() {
        0 => String::new(),
        damaged => format!(" ({damaged} damaged)"),
    };
    Err(Error::new(Kind::WrongKey, format!("the key does not open {which} of {place}{unreadable}")).with_hint(
        "check that it is the key of this repository and was not removed; whoever has an admin key lists slots with \
         `ckpt key list` and adds a key with `ckpt key add`",
    ))
}
