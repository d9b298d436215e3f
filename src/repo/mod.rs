//! The repository: packs, index, trees, snapshots and the one order in which they are published.
//!
//! [`Repo`] reads; only a [`transaction::Transaction`] adds, and only `ops::prune` takes away. Opening writes nothing to
//! the repository, so a read-only mount is enough to list, restore and verify.

mod bounded;
mod chain;
pub mod checkpoints;
pub mod chunks;
pub mod config;
pub mod content_reader;
pub mod document;
pub mod entry;
pub mod frame_cache;
pub mod index;
pub mod index_object;
pub mod names;
pub mod pack;
pub mod pack_table;
pub mod paths;
pub mod reach;
pub mod records;
pub mod snapshots;
pub mod stream;
mod sync;
#[cfg(test)]
pub(crate) mod test_support;
pub mod transaction;
pub mod tree;

use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{RepositoryId, SnapshotId};
use crate::storage::{self, Storage};
use config::Config;
use index::Index;
use snapshots::Snapshot;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the index database lies.
#[derive(Debug, Clone)]
pub enum Cache {
    /// In `<folder>/<repository id>/`, on a local file system.
    Folder(PathBuf),
    /// In memory: made anew by every run.
    Memory,
}

/// An open repository.
pub struct Repo {
    storage: Arc<dyn Storage>,
    config: Config,
    index: Index,
    decoders: Mutex<Vec<Decoder>>,
    snapshots: Mutex<Vec<Snapshot>>,
    has_recovered_index: Mutex<bool>,
    damage: Mutex<BTreeSet<String>>,
}

impl Repo {
    /// Opens the repository at `location`.
    pub fn open(location: &str, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        Repo::open_storage(open_location(location)?, cache, observer)
    }

    /// As [`Repo::open`], but the index is made anew from the repository: for what deletes by it.
    pub fn open_fresh(location: &str, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        let storage = open_location(location)?;
        if let Cache::Folder(folder) = cache {
            // A run that uses the old database goes on with it; it is only no longer found by others.
            Index::remove(folder, config::read(storage.as_ref())?.config.repository_id());
        }
        Repo::open_storage(storage, cache, observer)
    }

    /// Opens the repository that `storage` holds and brings the index up to date with it.
    pub fn open_storage(storage: Arc<dyn Storage>, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        let read = config::read(storage.as_ref())?;
        for text in &read.damage {
            observer.on_event(&Event::Warning { text });
        }
        let index = open_index(cache, read.config.repository_id(), observer)?;
        let mut repo = Repo {
            storage,
            config: read.config,
            index,
            decoders: Mutex::new(Vec::new()),
            snapshots: Mutex::new(Vec::new()),
            has_recovered_index: Mutex::new(false),
            damage: Mutex::new(read.damage.into_iter().collect()),
        };
        match repo.refresh(observer) {
            Err(error) if error.kind() == Kind::Damaged && matches!(cache, Cache::Folder(_)) => {
                let text = format!("the index cache is damaged and is made anew ({error})");
                observer.on_event(&Event::Warning { text: &text });
                repo.index = remake_index(cache, repo.id())?;
                repo.refresh(observer)?;
            }
            other => other?,
        }
        Ok(repo)
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.config.repository_id()
    }

    /// Its parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its storage.
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// Its index on this host.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The live snapshots, oldest first, as of the last [`Repo::refresh`].
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Small objects that were found damaged so far, one sentence each.
    pub fn damage(&self) -> Vec<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Brings index and snapshots up to date with the storage. [`Kind::Damaged`] if the index database is corrupt.
    pub fn refresh(&self, observer: &dyn Observer) -> Result<()> {
        let mut found = sync::Found::default();
        sync::index_objects(self, observer, &mut found)?;
        sync::history(self, &mut found)?;
        let snapshots = sync::snapshots(self, &mut found)?;
        *self.snapshots.lock().unwrap_or_else(PoisonError::into_inner) = snapshots;
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        for text in found.damage {
            observer.on_event(&Event::Warning { text: &text });
            damage.insert(text);
        }
        Ok(())
    }

    /// Makes packs known that no index object lists: those of killed runs, or all of them when index objects are lost.
    /// Returns how many were new.
    pub fn learn_unlisted_packs(&self) -> Result<u64> {
        sync::unlisted_packs(self)
    }

    /// As [`Repo::learn_unlisted_packs`], but only once for each time the repository is opened.
    /// Who comes meanwhile waits, since it may need what is being found.
    fn recover_index_once(&self) -> Result<bool> {
        let mut has_recovered = self.has_recovered_index.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *has_recovered, true) {
            return Ok(false);
        }
        Ok(self.learn_unlisted_packs()? > 0)
    }

    /// Runs `work` with a decoder that is reused from call to call.
    pub fn with_decoder<T>(&self, work: impl FnOnce(&mut Decoder) -> Result<T>) -> Result<T> {
        let reused = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = match reused {
            Some(decoder) => decoder,
            None => Decoder::new()?,
        };
        let result = work(&mut decoder);
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        result
    }

    /// True if a snapshot with this id was forgotten or never was.
    pub fn snapshot(&self, id: SnapshotId) -> Option<Snapshot> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|s| s.id == id).cloned()
    }
}

/// The storage at `location`, with errors that say what to do when nothing usable stands there.
fn open_location(location: &str) -> Result<Arc<dyn Storage>> {
    storage::open(location).map_err(|error| match error.kind() {
        Kind::Missing => Error::new(Kind::NoRepository, format!("{location} does not exist")).with_hint(
            "check -r/--repo and CKPT_REPO (is the disk mounted?), or make a repository there with `ckpt init`",
        ),
        _ => error,
    })
}

fn open_index(cache: &Cache, id: RepositoryId, observer: &dyn Observer) -> Result<Index> {
    let Cache::Folder(folder) = cache else { return Index::in_memory() };
    match Index::open(folder, id) {
        Err(error) if error.kind() == Kind::Damaged => {
            let text = format!("the index cache cannot be used and is made anew ({error})");
            observer.on_event(&Event::Warning { text: &text });
            remake_index(cache, id)
        }
        Err(error) if matches!(error.kind(), Kind::Denied | Kind::NoSpace) => {
            let text = format!("no index cache can be kept, so this run makes one in memory ({error})");
            observer.on_event(&Event::Warning { text: &text });
            Index::in_memory()
        }
        other => other,
    }
}

fn remake_index(cache: &Cache, id: RepositoryId) -> Result<Index> {
    let folder: &Path = match cache {
        Cache::Folder(folder) => folder,
        Cache::Memory => return Index::in_memory(),
    };
    Index::remove(folder, id);
    Index::open(folder, id)
}
