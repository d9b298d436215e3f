//! The small objects: the parameters, snapshots and records, both copies of each, read from the storage.

use super::check_interrupt;
use super::found::Found;
use crate::error::{Error, Kind, Result};
use crate::events::Observer;
use crate::repo::document::{self, DocumentKind};
use crate::repo::snapshots::Outcome;
use crate::repo::{Repo, config, names, records};
use crate::storage::ObjectName;

const ONE_COPY: &str = "one of its two copies is damaged; the other serves";

/// Checks all of them.
pub(super) fn check(repo: &Repo, found: &mut Found, observer: &dyn Observer) -> Result<()> {
    for text in config::read(repo.storage())?.damage {
        let (object, what) = text.split_once(": ").unwrap_or((names::CONFIG, &text));
        found.add(object, what);
    }
    for folder in
        [names::SNAPSHOTS, names::TRANSACTIONS, names::FORGOTTEN, names::CONDEMNED, names::TAGS, names::HISTORY]
    {
        for listed in repo.storage().list(folder)? {
            check_interrupt(observer)?;
            match check_one(repo, folder, &listed.name) {
                Ok(true) => {}
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

/// True if both copies are sound.
fn check_one(repo: &Repo, folder: &str, name: &ObjectName) -> Result<bool> {
    let storage = repo.storage();
    let unknown = || Error::damaged("nothing of this name belongs here");
    let opened = |kind| Ok(document::read(storage, kind, name)?.both_copies_sound);
    match folder {
        names::SNAPSHOTS => {
            let id = names::snapshot_id(folder, name).ok_or_else(unknown)?;
            let object = storage.read(name, DocumentKind::Snapshot.object_bytes_max())?;
            Ok(Outcome::open(id, &object)?.1)
        }
        names::TRANSACTIONS => {
            records::read_transaction(storage, names::snapshot_id(folder, name).ok_or_else(unknown)?)?;
            opened(DocumentKind::Transaction)
        }
        names::FORGOTTEN => opened(DocumentKind::Forgotten),
        names::CONDEMNED => {
            records::read_pack_list(storage, name)?;
            opened(DocumentKind::Condemned)
        }
        names::TAGS => {
            let (id, change) = names::tags_change(name).ok_or_else(unknown)?;
            records::read_tags(storage, id, change)?;
            opened(DocumentKind::Tags)
        }
        _ => {
            records::read_history(storage, names::history_id(name).ok_or_else(unknown)?)?;
            opened(DocumentKind::History)
        }
    }
}

/// Adds an error of one object to the damage; one that says that nothing can be read at all is passed on.
pub(super) fn report(found: &mut Found, name: &ObjectName, error: &Error) -> Result<usize> {
    if error.kind() == Kind::Interrupted {
        return Err(Error::new(Kind::Interrupted, error.to_string()));
    }
    let text = error.to_string();
    Ok(found.add(name.as_str(), text.strip_prefix(&format!("{name}: ")).unwrap_or(&text)))
}
