//! From a secret to the keys of a repository.
//!
//! A secret is asked for only where there is something to open, and a key that is given for a repository without
//! encryption is an error: whoever can write to the storage may have put another one in its place.

use super::config::ConfigRead;
use super::key_slots::{Slots, Unlocked};
use super::keys::Keys;
use crate::codec::stretch::Secret;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::SlotId;
use crate::storage::Storage;

/// Where secrets come from.
pub trait SecretSource {
    /// True if the user named a key for this run, needed or not.
    fn is_given(&self) -> bool;

    /// The secret for a repository with so many key slots, at the attempt of this number, from 1 on; none if there is
    /// nothing (more) to try.
    fn secret(&self, attempt: u32, slots: usize) -> Result<Option<Secret>>;
}

/// For repositories without encryption.
#[derive(Debug, Clone, Copy)]
pub struct NoSecret;

impl SecretSource for NoSecret {
    fn is_given(&self) -> bool {
        false
    }

    fn secret(&self, _attempt: u32, _slots: usize) -> Result<Option<Secret>> {
        Ok(None)
    }
}

/// The keys of the repository with these parameters, and the slot that gave them.
pub fn unlock(
    storage: &dyn Storage,
    read: &ConfigRead,
    secrets: &dyn SecretSource,
    observer: &dyn Observer,
) -> Result<(Keys, Option<SlotId>)> {
    let config = &read.config;
    if config.encryption == 0 {
        if secrets.is_given() {
            let text = format!("a key is given, but {} is not encrypted", storage.describe());
            return Err(Error::new(Kind::WrongKey, text).with_hint(
                "if you know that it never was, leave the key out (CKPT_KEY_FILE, CKPT_KEY_COMMAND); \
                 if it was, somebody has replaced its parameters",
            ));
        }
        return Ok((Keys::plain(), None));
    }
    let slots = Slots::read(storage, config.repository_id())?;
    for text in &slots.damage {
        observer.on_event(&Event::Warning { text });
    }
    if slots.slots.is_empty() {
        let text = format!("{} is encrypted, and no key slot of it can be read", storage.describe());
        return Err(Error::damaged(text)
            .with_hint("put its folder `keys` back from a copy; without it nothing can be read, with whatever key"));
    }
    let unlocked = try_secrets(storage, &slots, secrets)?;
    for text in &unlocked.damage {
        observer.on_event(&Event::Warning { text });
    }
    if unlocked.bundle.config_hash != read.hash {
        return Err(Error::damaged(format!("the parameters of {} are not those it was made with", storage.describe()))
            .with_hint("somebody has changed them: put `config/0`, `config/1` and `config/2` back from a copy"));
    }
    Ok((Keys::opened(unlocked.bundle, config.repository_id()), Some(unlocked.slot)))
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
