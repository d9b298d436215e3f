//! Other repositories that may hold what is lost here.
//!
//! Nothing in them is believed: packs are compared with their names, chunks with their ids, documents with their checksums. A
//! document is taken only from a repository with the same id, a copy. What cannot be read there is as if it were not there.

use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, PackId, RepositoryId};
use crate::repo::keys::{Bundle, Unlock};
use crate::repo::{Cache, Repo, config, names};
use crate::storage::{ObjectName, Storage};
use std::sync::Arc;

/// More than any pack has: the largest size at which one is ended, and one frame, and the longest table.
const PACK_BYTES_MAX: u64 = 2 << 30;

pub(super) struct Copies<'a> {
    copies: Vec<Copy<'a>>,
    keys: OwnKeys<'a>,
}

/// A copy is sealed with the keys of what it is a copy of; another repository that is sealed stays closed.
#[derive(Clone, Copy)]
struct OwnKeys<'a> {
    id: RepositoryId,
    bundle: Option<&'a Bundle>,
}

impl Unlock for OwnKeys<'_> {
    /// Any that is not sealed may be looked into: its chunks are compared with their ids.
    fn is_given(&self) -> bool {
        false
    }

    fn unlock(&self, storage: &dyn Storage, id: RepositoryId) -> Result<Bundle> {
        let own = self.bundle.filter(|_| id == self.id).cloned();
        own.ok_or_else(|| Error::new(Kind::WrongKey, format!("{} is sealed with other keys", storage.describe())))
    }
}

struct Copy<'a> {
    storage: &'a Arc<dyn Storage>,
    /// True if it has the id of the repository that is repaired.
    is_same: bool,
    /// Opened when the first chunk is looked for: none if it cannot be.
    repo: Option<Option<Repo>>,
}

impl<'a> Copies<'a> {
    pub(super) fn new(own: &'a Repo, from: &'a [Arc<dyn Storage>], observer: &dyn Observer) -> Copies<'a> {
        let keys = OwnKeys { id: own.id(), bundle: own.keys().bundle() };
        let copies = from.iter().map(|storage| {
            let id = config::read(storage.as_ref()).map(|read| read.config.repository_id());
            if let Err(error) = &id {
                let text = format!("{}: only its packs are of use, since {error}", storage.describe());
                observer.on_event(&Event::Warning { text: &text });
            }
            Copy { storage, is_same: id.is_ok_and(|id| id == keys.id), repo: None }
        });
        Copies { copies: copies.collect(), keys }
    }

    /// The copies of this very repository.
    pub(super) fn of_same(&self) -> impl Iterator<Item = &'a dyn Storage> + '_ {
        self.copies.iter().filter(|copy| copy.is_same).map(|copy| copy.storage.as_ref())
    }

    /// The pack, compared with its name, and where it was found.
    pub(super) fn pack(&self, id: PackId) -> Result<Option<(Vec<u8>, String)>> {
        let name = names::pack(id)?;
        for copy in &self.copies {
            let Some(bytes) = read_object(copy.storage.as_ref(), &name) else { continue };
            if blake3::hash(&bytes).as_bytes() == id.as_bytes() {
                return Ok(Some((bytes, copy.storage.describe())));
            }
        }
        Ok(None)
    }

    /// The chunk, compared with its id by whom it is for: a copy that is not sealed names chunks otherwise than one that is.
    pub(super) fn chunk(&mut self, id: ChunkId, observer: &dyn Observer) -> Option<Vec<u8>> {
        let keys = self.keys;
        self.copies.iter_mut().find_map(|copy| {
            let open = || match Repo::open_storage_with(Arc::clone(copy.storage), &Cache::Memory, &keys, observer) {
                Ok(repo) => Some(repo),
                Err(error) => {
                    let text = format!("{} cannot be opened: {error}", copy.storage.describe());
                    observer.on_event(&Event::Warning { text: &text });
                    None
                }
            };
            copy.repo.get_or_insert_with(open).as_ref()?.read_chunk(id).ok()
        })
    }
}

fn read_object(storage: &dyn Storage, name: &ObjectName) -> Option<Vec<u8>> {
    // The length first: an object that is not there is the usual case and costs no read.
    match storage.size(name) {
        Ok(Some(bytes)) if bytes <= PACK_BYTES_MAX => storage.read(name, PACK_BYTES_MAX).ok(),
        _ => None,
    }
}

/// True for an error that says that an object is not what it should be, or cannot be read.
pub(super) fn is_damage(kind: Kind) -> bool {
    matches!(kind, Kind::Damaged | Kind::Unreachable)
}
