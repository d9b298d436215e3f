//! The repository: packs, index, trees, snapshots and the one order in which they are published.
//!
//! [`Repo`] reads; only a [`transaction::Transaction`] adds, and only `ops::prune` takes away. Opening writes nothing to
//! the repository, so a read-only mount is enough to list, restore and verify.

pub mod audit;
pub mod audit_heads;
mod bounded;
mod chain;
pub mod checkpoints;
pub mod chunks;
pub mod condemned;
pub mod config;
pub mod content_reader;
pub mod document;
#[cfg(test)]
mod encryption_tests;
pub mod entry;
pub mod frame_cache;
pub mod index;
pub mod index_object;
pub mod key_slots;
pub mod keys;
pub mod names;
pub mod pack;
mod pack_body;
mod pack_kind;
mod pack_seal;
pub mod pack_table;
pub mod parity;
pub mod paths;
pub mod quarantine;
pub mod reach;
pub mod records;
pub mod snapshots;
pub mod stream;
mod sync;
#[cfg(test)]
pub(crate) mod test_support;
pub mod transaction;
pub mod tree;
pub mod unlock;

use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, RepositoryId, SlotId, SnapshotId};
use crate::storage::{self, Storage};
use condemned::Condemned;
use config::{Config, ConfigRead};
use index::Index;
use keys::{Keys, NoKey, Unlock};
use snapshots::Snapshot;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the index database lies.
#[derive(Debug, Clone)]
pub enum Cache {
    /// In `<folder>/<repository id>/`, on a local file system.
    Folder(PathBuf),
    /// In memory: made anew by every run.
    Memory,
}

/// How often one run looks for packs that the index does not know: one that works beside many prunes may need it several
/// times, one that meets much damage must not list all packs for each piece of it.
const RECOVERIES_MAX: u32 = 8;

/// An open repository.
pub struct Repo {
    storage: Arc<dyn Storage>,
    config: Config,
    keys: Keys,
    slot: Option<SlotId>,
    index: Index,
    decoders: Mutex<Vec<Decoder>>,
    snapshots: Mutex<Vec<Snapshot>>,
    recoveries: Mutex<Recoveries>,
    damage: Mutex<BTreeSet<String>>,
    vanished: Mutex<Vec<SnapshotId>>,
    mended: parity::MendedPacks,
}

impl Repo {
    /// Opens the repository at `location`, if nothing in it is encrypted.
    pub fn open(location: &str, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        Repo::open_with(location, cache, &NoKey, observer)
    }

    /// As [`Repo::open`], with the means to unlock it.
    pub fn open_with(location: &str, cache: &Cache, unlock: &dyn Unlock, observer: &dyn Observer) -> Result<Repo> {
        Repo::open_storage_with(open_location(location)?, cache, unlock, observer)
    }

    /// As [`Repo::open_with`], but the index is made anew from the repository: for what deletes by it.
    pub fn open_fresh_with(
        location: &str,
        cache: &Cache,
        unlock: &dyn Unlock,
        observer: &dyn Observer,
    ) -> Result<Repo> {
        let storage = open_location(location)?;
        let mut opening = Opening::begin(storage, unlock, observer)?;
        // A key that may not delete must not cost this host what its index alone keeps.
        opening.keys.require_deleting()?;
        let Cache::Folder(folder) = cache else { return opening.finish(cache, observer) };
        match Index::open(folder, opening.read.config.repository_id(), observer) {
            Ok(index) => {
                // Nothing else tells which snapshots this host has seen.
                opening.seen = match index.snapshots() {
                    Err(error) if error.kind() == Kind::Damaged => HashMap::new(),
                    seen => seen?,
                };
                // A run that uses the old database goes on with it; it is only no longer found by others.
                index.remove()?;
                opening.finish(cache, observer)
            }
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::NoSpace) => {
                go_without_cache(&error, observer);
                opening.finish(&Cache::Memory, observer)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the repository that `storage` holds, if nothing in it is encrypted, and brings the index up to date with it.
    pub fn open_storage(storage: Arc<dyn Storage>, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        Repo::open_storage_with(storage, cache, &NoKey, observer)
    }

    /// As [`Repo::open_storage`], with the means to unlock it.
    pub fn open_storage_with(
        storage: Arc<dyn Storage>,
        cache: &Cache,
        unlock: &dyn Unlock,
        observer: &dyn Observer,
    ) -> Result<Repo> {
        Opening::begin(storage, unlock, observer)?.finish(cache, observer)
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.config.repository_id()
    }

    /// Its parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The key slot that gave them; none if nothing is encrypted.
    pub fn slot(&self) -> Option<SlotId> {
        self.slot
    }

    /// The id of a chunk with this content.
    pub fn chunk_id(&self, content: &[u8]) -> ChunkId {
        self.keys.chunk_id(content)
    }

    /// The key of the rolling hash's table.
    pub fn chunker_key(&self) -> Result<[u8; 32]> {
        match self.keys.bundle() {
            None => Ok(self.config.chunker_key()),
            Some(bundle) => match &bundle.boundary_key {
                Some(key) => Ok(*key.as_bytes()),
                None => Err(Error::new(Kind::WrongKey, "this key does not say where content is cut")),
            },
        }
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

    /// Snapshots that this host has seen and that are gone though nobody forgot them, as of the last [`Repo::refresh`].
    pub fn vanished(&self) -> Vec<SnapshotId> {
        self.vanished.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Brings index and snapshots up to date with the storage. [`Kind::Damaged`] if the index database is corrupt.
    pub fn refresh(&self, observer: &dyn Observer) -> Result<()> {
        let mut found = sync::Found::default();
        // First, so that what is listed after it holds all that a snapshot needs, also one that is saved just now.
        let snapshots = sync::snapshots(self, &mut found)?;
        sync::index_objects(self, observer, &mut found)?;
        sync::history(self, &mut found)?;
        *self.snapshots.lock().unwrap_or_else(PoisonError::into_inner) = snapshots;
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        for text in found.damage {
            if !damage.contains(&text) {
                observer.on_event(&Event::Warning { text: &text });
                damage.insert(text);
            }
        }
        *self.vanished.lock().unwrap_or_else(PoisonError::into_inner) = found.vanished;
        Ok(())
    }

    /// Makes packs known that no index object lists: those of killed runs, or all of them when index objects are lost.
    /// Returns how many were new.
    pub fn learn_unlisted_packs(&self) -> Result<u64> {
        Ok(sync::unlisted_packs(self, &Condemned::read(self)?)?.added)
    }

    /// How often packs were found that the index had not known: to be asked before the index is, for [`Repo::recover_index`].
    fn recoveries(&self) -> u32 {
        self.recoveries.lock().unwrap_or_else(PoisonError::into_inner).fruitful
    }

    /// As [`Repo::learn_unlisted_packs`]; true if the index knows more than when [`Repo::recoveries`] was `seen`.
    /// Who comes meanwhile waits, since it may need what is being found. How often this looks is bounded.
    fn recover_index(&self, seen: u32) -> Result<bool> {
        let mut recoveries = self.recoveries.lock().unwrap_or_else(PoisonError::into_inner);
        if recoveries.fruitful == seen && recoveries.tried < RECOVERIES_MAX {
            recoveries.tried += 1;
            recoveries.fruitful += u32::from(self.learn_unlisted_packs()? > 0);
        }
        Ok(recoveries.fruitful != seen)
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

/// How often packs that the index did not know were looked for, and how often some were found.
#[derive(Default)]
struct Recoveries {
    tried: u32,
    fruitful: u32,
}

/// A repository whose keys are known, and nothing else yet: a wrong key ends the run before anything is done.
struct Opening {
    storage: Arc<dyn Storage>,
    read: ConfigRead,
    keys: Keys,
    slot: Option<SlotId>,
    /// Objects of snapshots that an index of this host knew.
    seen: HashMap<SnapshotId, Vec<u8>>,
}

impl Opening {
    fn begin(storage: Arc<dyn Storage>, unlock: &dyn Unlock, observer: &dyn Observer) -> Result<Opening> {
        let read = config::read(storage.as_ref())?;
        for text in &read.damage {
            observer.on_event(&Event::Warning { text });
        }
        let keys = Keys::unlocked(storage.as_ref(), &read, unlock)?;
        let slot = unlock.slot();
        Ok(Opening { storage, read, keys, slot, seen: HashMap::new() })
    }

    fn finish(self, cache: &Cache, observer: &dyn Observer) -> Result<Repo> {
        let index = open_index(cache, self.read.config.repository_id(), observer)?;
        self.seen.iter().try_for_each(|(id, object)| index.add_snapshot(*id, object))?;
        let mut repo = Repo {
            storage: self.storage,
            config: self.read.config,
            keys: self.keys,
            slot: self.slot,
            index,
            decoders: Mutex::new(Vec::new()),
            snapshots: Mutex::new(Vec::new()),
            recoveries: Mutex::default(),
            mended: parity::MendedPacks::default(),
            damage: Mutex::new(self.read.damage.into_iter().collect()),
            vanished: Mutex::new(Vec::new()),
        };
        match repo.refresh(observer) {
            Err(error) if error.kind() == Kind::Damaged && matches!(cache, Cache::Folder(_)) => {
                let text = format!("the index cache is damaged and is made anew ({error})");
                observer.on_event(&Event::Warning { text: &text });
                repo.index.remove()?;
                repo.index = open_index(cache, repo.id(), observer)?;
                repo.refresh(observer)?;
            }
            other => other?,
        }
        Ok(repo)
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
    match Index::open(folder, id, observer) {
        // Busy: a run that makes the index has stopped half way. That must not stop every backup after it, too.
        Err(error) if matches!(error.kind(), Kind::Denied | Kind::NoSpace | Kind::Busy) => {
            go_without_cache(&error, observer);
            Index::in_memory()
        }
        other => other,
    }
}

fn go_without_cache(error: &Error, observer: &dyn Observer) {
    let text = format!("no index cache can be kept, so this run makes one in memory ({error})");
    observer.on_event(&Event::Warning { text: &text });
}
