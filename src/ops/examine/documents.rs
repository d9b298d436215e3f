//! The small objects: the parameters, snapshots and records, both copies of each, read from the storage.

use super::check_interrupt;
use super::found::Found;
use crate::error::{Error, Kind, Result};
use crate::events::Observer;
use crate::repo::document::{self, DocumentKind};
use crate::repo::key_slots::Slots;
use crate::repo::keys::Keys;
use crate::repo::snapshots::Outcome;
use crate::repo::{Repo, audit, condemned, config, names, quarantine, records};
use crate::sabotage::is_planted;
use crate::storage::ObjectName;

const ONE_COPY: &str = "one of its two copies is damaged; the other serves";

/// The folders of documents, but for that of the parameters.
pub(crate) const FOLDERS: [&str; 9] = [
    names::SNAPSHOTS,
    names::TRANSACTIONS,
    names::FORGOTTEN,
    names::CONDEMNED,
    names::TAGS,
    names::HISTORY,
    names::QUARANTINE,
    names::AUDIT,
    names::KEYS,
];

/// The kind of the documents in one of [`FOLDERS`].
pub(crate) fn kind_in(folder: &str) -> DocumentKind {
    match folder {
        names::SNAPSHOTS => DocumentKind::Snapshot,
        names::TRANSACTIONS => DocumentKind::Transaction,
        names::FORGOTTEN => DocumentKind::Forgotten,
        names::CONDEMNED => DocumentKind::Condemned,
        names::TAGS => DocumentKind::Tags,
        names::QUARANTINE => DocumentKind::Quarantine,
        names::AUDIT => DocumentKind::Audit,
        names::KEYS => DocumentKind::KeySlot,
        _ => DocumentKind::History,
    }
}

/// Checks all of them.
pub(crate) fn check(repo: &Repo, found: &mut Found, observer: &dyn Observer) -> Result<()> {
    for text in config::read(repo.storage())?.damage {
        let (object, what) = text.split_once(": ").unwrap_or((names::CONFIG, &text));
        found.add(object, what);
    }
    for text in Slots::read(repo.storage(), repo.id())?.damage {
        let (object, what) = text.split_once(": ").unwrap_or((names::KEYS, &text));
        found.add(object, what);
    }
    for id in repo.vanished() {
        found.add(names::snapshot(id)?.as_str(), "is gone, though this host has seen it and nobody forgot it");
    }
    for folder in FOLDERS {
        for listed in repo.storage().list(folder)? {
            check_interrupt(observer)?;
            match check_one(repo, folder, &listed.name) {
                Ok(true) => {}
                Ok(false) if is_planted("verify-second-copies-unseen") => {}
                Ok(false) => {
                    found.add(listed.name.as_str(), ONE_COPY);
                }
                // Gone since the listing: a transaction that has ended.
                Err(error) if error.kind() == Kind::Missing => {}
                Err(error) => {
                    report(found, &listed.name, &error)?;
                }
            }
        }
    }
    Ok(())
}

/// True if both copies are sound; an error if the object cannot be used.
pub(crate) fn check_one(repo: &Repo, folder: &str, name: &ObjectName) -> Result<bool> {
    let storage = repo.storage();
    let unknown = || Error::damaged("nothing of this name belongs here");
    match folder {
        names::TRANSACTIONS if names::is_probe(name) => return Ok(true),
        names::SNAPSHOTS => {
            let id = names::snapshot_id(folder, name).ok_or_else(unknown)?;
            let object = storage.read(name, DocumentKind::Snapshot.object_bytes_max())?;
            return Ok(Outcome::open(repo.keys(), id, &object)?.1);
        }
        names::TRANSACTIONS => {
            names::announced(name).ok_or_else(unknown)?;
            records::check_transaction(repo, name)?;
        }
        names::FORGOTTEN => {}
        names::CONDEMNED => {
            condemned::check(repo, name)?;
        }
        names::TAGS => {
            let (id, change) = names::tags_change(name).ok_or_else(unknown)?;
            records::read_tags(repo, id, change)?;
        }
        names::QUARANTINE => {
            quarantine::read_one(repo, names::quarantine_id(name).ok_or_else(unknown)?)?;
        }
        names::AUDIT => {
            return Ok(audit::read(repo, names::audit_number(name).ok_or_else(unknown)?)?.both_copies_sound);
        }
        names::KEYS => {
            names::key_slot_id(name).ok_or_else(unknown)?;
            // What opens the keys cannot be sealed with them.
            return Ok(document::read(storage, &Keys::plain(), DocumentKind::KeySlot, name)?.both_copies_sound);
        }
        _ => {
            records::read_history(repo, names::history_id(name).ok_or_else(unknown)?)?;
        }
    }
    Ok(document::read(storage, repo.keys(), kind_in(folder), name)?.both_copies_sound)
}

/// Adds an error of one object to the damage; one that says that nothing can be read at all is passed on.
pub(crate) fn report(found: &mut Found, name: &ObjectName, error: &Error) -> Result<usize> {
    if error.is_about_this_run() {
        return Err(Error::new(error.kind(), error.to_string()));
    }
    let text = error.to_string();
    Ok(found.add(name.as_str(), text.strip_prefix(&format!("{name}: ")).unwrap_or(&text)))
}
