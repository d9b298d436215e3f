//! Small documents: their own second copy, what this host keeps of them, the same object of a copy of the repository.
//!
//! What is put back are the bytes that were written. Where none are left, a document may still be of no consequence: only the
//! name of a forgotten marker counts; records of verifications and announcements of writers that have ended can go; a list
//! without an end is ended as abandoned, as any prune may do. Everything else is left and named.

use super::copies::is_damage;
use super::{Means, Work};
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::ops::examine::documents::{FOLDERS, check_one, kind_in, report};
use crate::repo::Repo;
use crate::repo::document::{self, BODY_BYTES_MAX, DocumentKind};
use crate::repo::keys::Keys;
use crate::repo::names::CondemnedPart;
use crate::repo::snapshots::Outcome;
use crate::repo::{audit, condemned, names, quarantine, records};
use crate::sabotage::is_planted;
use crate::storage::{ObjectName, Storage};
use std::collections::HashMap;

/// The longest object that a document can be.
const OBJECT_BYTES_MAX: u64 = 2 * (BODY_BYTES_MAX + 48);

/// Mends all of them, but for the parameters.
pub(super) fn mend(work: &mut Work<'_>) -> Result<()> {
    let cached = work.repo.index().snapshots()?;
    for folder in FOLDERS {
        for listed in work.repo.storage().list(folder)? {
            work.check_interrupt()?;
            match check_one(work.repo, folder, &listed.name) {
                Ok(true) => {}
                Ok(false) => {
                    if !mend_by_own_copy(work, folder, &listed.name)? {
                        mend_unreadable(work, folder, &listed.name, &cached, Error::damaged("it is damaged"))?;
                    }
                }
                // Gone since the listing: a transaction that has ended.
                Err(error) if error.kind() == Kind::Missing => {}
                Err(error) if is_damage(error.kind()) => {
                    mend_unreadable(work, folder, &listed.name, &cached, error)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What opens the documents of a folder: slots of keys are not sealed with the keys that they hold.
fn keys_of<'k>(repo: &'k Repo, folder: &str, plain: &'k Keys) -> &'k Keys {
    if folder == names::KEYS { plain } else { repo.keys() }
}

fn mend_by_own_copy(work: &mut Work<'_>, folder: &str, name: &ObjectName) -> Result<bool> {
    let object = work.repo.storage().read(name, OBJECT_BYTES_MAX)?;
    let plain = Keys::plain();
    let keys = keys_of(work.repo, folder, &plain);
    let Some(whole) = document::rebuilt(keys, kind_in(folder), name, &object) else { return Ok(false) };
    work.replace(name, &whole)?;
    work.note(name, Means::OwnCopy);
    Ok(true)
}

/// Mends a document of which nothing can be used here; `error` says why.
fn mend_unreadable(
    work: &mut Work<'_>,
    folder: &str,
    name: &ObjectName,
    cached: &HashMap<SnapshotId, Vec<u8>>,
    error: Error,
) -> Result<()> {
    let id = names::snapshot_id(folder, name).or(names::announced(name).map(|(id, _)| id));
    if folder == names::SNAPSHOTS
        && let Some((id, object)) = id.and_then(|id| Some((id, cached.get(&id)?)))
        && Outcome::open(work.repo.keys(), id, object).is_ok_and(|(_, both_sound)| both_sound)
    {
        work.replace(name, object)?;
        work.note(name, Means::Cache);
        return Ok(());
    }
    if folder == names::CONDEMNED
        && let Some(object) = kept_end(work, name)?
    {
        work.replace(name, &object)?;
        work.note(name, Means::Cache);
        return Ok(());
    }
    if let Some((whole, place)) = from_copies(work, folder, name) {
        work.replace(name, &whole)?;
        work.note(name, Means::Copy(place));
        return Ok(());
    }
    let done = match folder {
        // Where documents are sealed, anybody may have put it there: see `records::forgotten`.
        names::FORGOTTEN if id.is_some() && !work.repo.keys().is_encrypted() => write_marker(work, name)?,
        names::HISTORY if names::history_id(name).is_some() => {
            Some(remove(work, name, "what it said was verified counts as unread")?)
        }
        // What is wrong with the pack is looked at again in this run.
        names::QUARANTINE => match names::quarantine_id(name) {
            Some(pack) => {
                if !work.options.dry_run {
                    work.write_down()?;
                    quarantine::set_aside(work.repo, pack, None, work.options.now)?;
                }
                Some(Means::WrittenAnew)
            }
            None => None,
        },
        names::TRANSACTIONS => end_announcement(work, name, id)?,
        names::CONDEMNED => end_list(work, name)?,
        _ => None,
    };
    match done {
        Some(means) => work.note(name, means),
        None => drop(report(&mut work.left, name, &explained(folder, error))?),
    }
    Ok(())
}

/// The same object of a copy of the repository, if it is sound there.
fn from_copies(work: &Work<'_>, folder: &str, name: &ObjectName) -> Option<(Vec<u8>, String)> {
    let plain = Keys::plain();
    let keys = keys_of(work.repo, folder, &plain);
    work.copies.of_same().find_map(|copy| {
        let object = document::rebuilt(keys, kind_in(folder), name, &copy.read(name, OBJECT_BYTES_MAX).ok()?)?;
        if let Some(id) = names::snapshot_id(names::SNAPSHOTS, name) {
            Outcome::open(keys, id, &object).ok()?;
        }
        Some((object, copy.describe()))
    })
}

/// Only the name of the marker counts, whatever it holds.
fn write_marker(work: &Work<'_>, name: &ObjectName) -> Result<Option<Means>> {
    if !work.options.dry_run {
        work.write_down()?;
        records::rewrite_forgotten(work.repo, name, work.options.now, audit::head(work.repo).ok())?;
    }
    Ok(Some(Means::WrittenAnew))
}

fn remove(work: &Work<'_>, name: &ObjectName, why: &'static str) -> Result<Means> {
    if !work.options.dry_run || is_planted("repair-dry-run-removes") {
        work.write_down()?;
        work.repo.storage().delete(name)?;
    }
    Ok(Means::Removed(why))
}

/// The announcement of a writer goes if its transaction has ended, durably; otherwise prune judges it.
fn end_announcement(work: &Work<'_>, name: &ObjectName, id: Option<SnapshotId>) -> Result<Option<Means>> {
    let Some(id) = id else { return Ok(None) };
    let storage = work.repo.storage();
    storage.sync_folder(names::SNAPSHOTS)?;
    if storage.size(&names::snapshot(id)?)?.is_none() {
        return Ok(None);
    }
    remove(work, name, "its transaction has ended").map(Some)
}

/// A list without an end is ended as abandoned: then nobody reads it any more. The first end wins, so a prune that is at
/// work with it deletes nothing. What is there of it stays, and is told.
fn end_list(work: &Work<'_>, name: &ObjectName) -> Result<Option<Means>> {
    let Some((number, CondemnedPart::List)) = names::condemned_part(name) else { return Ok(None) };
    let storage: &dyn Storage = work.repo.storage();
    storage.sync_folder(names::CONDEMNED)?;
    if storage.size(&names::condemned_end(number)?)?.is_none() && !work.options.dry_run {
        work.write_down()?;
        condemned::create_end(work.repo, number, &[], work.options.now)?;
    }
    Ok(None)
}

/// The object of an end as this host's index keeps it, if it is sound.
fn kept_end(work: &Work<'_>, name: &ObjectName) -> Result<Option<Vec<u8>>> {
    let Some((number, CondemnedPart::End)) = names::condemned_part(name) else { return Ok(None) };
    let kept = work.repo.index().ends()?.remove(&number);
    let is_sound = |object: &Vec<u8>| {
        let opened = document::open(work.repo.keys(), DocumentKind::Condemned, name, object);
        opened.is_ok_and(|opened| opened.both_copies_sound)
    };
    Ok(kept.filter(is_sound))
}

/// The error with what it means.
fn explained(folder: &str, error: Error) -> Error {
    let what = match folder {
        names::SNAPSHOTS => {
            "no copy of it is left; `--from` a copy of the repository brings it back, `ckpt forget` gives it up"
        }
        names::TRANSACTIONS => "who began it cannot be told; prune once nothing else uses the repository, and say so",
        names::CONDEMNED => "no copy of it is left; `--from` a copy of the repository brings it back",
        names::KEYS => "no copy of it is left; add a slot with a key that still opens, then remove this one",
        names::AUDIT => "no copy of it is left; the log is whole before it and behind it",
        names::FORGOTTEN => {
            "whoever can write there may have made it up, so the snapshot counts as live: `ckpt forget` it if that was meant, \
             else remove this object"
        }
        names::TAGS => "no copy of it is left; the snapshot's tags can be set again with `ckpt tag`",
        _ => return error,
    };
    Error::damaged(format!("{error}; {what}"))
}
