//! Unfinished objects that killed writers left in a directory, and which of them may go.
//!
//! One that tells its transaction goes once that has ended; until then it stays however old it is. One that does not (small
//! records, merged index objects) is written in one go, so it goes when it has not changed for a day by the clock of the file
//! system that it lies on. No safety hangs on that: who loses an unfinished object cannot name it, and its run fails.
//!
//! Deliberately not here: asking whether a transaction has ended, which is the caller's to answer.

use super::Owner;
use super::durable_file::DurableFile;
use super::local::LocalStorage;
use super::place::{is_temporary_name, owner_of};
use crate::error::{Kind, Result};
use crate::ids::SnapshotId;
use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long an unfinished object without a known owner stands unchanged before it counts as abandoned.
const UNCHANGED_MIN: Duration = Duration::from_secs(24 * 3600);

/// Removes what nobody is going to finish; how many bytes that freed.
pub(super) fn delete(storage: &LocalStorage, owner: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64> {
    storage.place.check_root()?;
    let now = now_there(storage)?;
    let mut known = HashMap::new();
    let mut freed = 0;
    let mut changed: Vec<PathBuf> = Vec::new();
    storage.walk("", &mut |name, path| {
        let Some(temporary) = name.rsplit('/').next().filter(|part| is_temporary_name(part)) else { return Ok(()) };
        let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
        let state = match owner_of(temporary) {
            None => Owner::Unknown,
            Some(id) => match known.get(&id) {
                Some(state) => *state,
                None => *known.entry(id).or_insert(owner(id)?),
            },
        };
        let is_old = || now.is_some_and(|now| stood_unchanged(&metadata, now));
        if state == Owner::Open || (state == Owner::Unknown && !is_old()) || !remove(storage, path, &metadata)? {
            return Ok(());
        }
        freed += if metadata.is_file() { metadata.len() } else { 0 };
        let parent = path.parent().map(Path::to_path_buf);
        changed.extend(parent.filter(|parent| changed.last() != Some(parent)));
        Ok(())
    })?;
    for directory in &changed {
        storage.place.sync_directory(directory)?;
    }
    Ok(freed)
}

/// What the clock of the file system shows; none if there is no room to ask it.
fn now_there(storage: &LocalStorage) -> Result<Option<SystemTime>> {
    match DurableFile::create(&storage.place, super::fresh::ASKED_IN, None) {
        Ok(probe) => Ok(probe.modified()),
        Err(error) if error.kind() == Kind::NoSpace => Ok(None),
        Err(error) => Err(error),
    }
}

fn stood_unchanged(metadata: &Metadata, now: SystemTime) -> bool {
    let since = metadata.modified().ok().and_then(|modified| now.duration_since(modified).ok());
    since.is_some_and(|unchanged| unchanged >= UNCHANGED_MIN)
}

/// False if it is gone already, or a folder with something in it: that is not ours.
fn remove(storage: &LocalStorage, path: &Path, metadata: &Metadata) -> Result<bool> {
    let removed = if metadata.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
    match removed {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(false),
        Err(error) => Err(storage.place.write_failure(format!("deleting {}", path.display()), error)),
    }
}
