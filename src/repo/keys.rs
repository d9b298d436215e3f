//! The keys of an open repository, and what may be done with them.
//!
//! A repository without encryption has [`Keys::plain`]; otherwise a [`Bundle`] was unlocked, from a slot of
//! [`super::names`]' folder of keys, which holds what its [`Role`] needs and nothing beyond. All other code asks [`Keys`]
//! and need not know which of the two it is. How a bundle is wrapped and unlocked is not looked at here.

mod bundle;

pub use bundle::{Bundle, Generation};

use super::config::ConfigRead;
use super::pack::{self, PackKind};
use super::pack_seal::{self, PackSeal};
use super::{Repo, names};
use crate::codec::seal::Cipher;
use crate::error::{Error, Kind, Result};
use crate::ids::{ChunkId, PackId, RepositoryId, SlotId};
use crate::sabotage::is_planted;
use crate::storage::{ObjectName, Storage};
use minicbor::{Decode, Encode};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// Add snapshots; neither contents nor lists of files can be read back.
    #[n(0)]
    Put,
    /// Look, restore, verify.
    #[n(1)]
    Read,
    /// Add, and delete what no snapshot needs; lists of files can be read, contents cannot.
    #[n(2)]
    Prune,
    /// Everything, keys included.
    #[n(3)]
    Admin,
}

impl Role {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Put => "put",
            Role::Read => "read",
            Role::Prune => "prune",
            Role::Admin => "admin",
        }
    }

    /// The role that `name` stands for.
    pub fn from_name(name: &str) -> Option<Role> {
        [Role::Put, Role::Read, Role::Prune, Role::Admin].into_iter().find(|role| role.name() == name)
    }

    fn adds(self) -> bool {
        self != Role::Read
    }

    fn opens_data(self) -> bool {
        matches!(self, Role::Read | Role::Admin)
    }

    fn opens_trees(self) -> bool {
        self != Role::Put
    }
}

/// How the keys of a repository are come by.
pub trait Unlock {
    /// True if the user has named a key: a repository that says it is not encrypted is refused then.
    fn is_given(&self) -> bool;

    /// The keys of the repository that `storage` holds. Asked only if it is encrypted.
    fn unlock(&self, storage: &dyn Storage, repository: RepositoryId) -> Result<Bundle>;

    /// The slot that they came from, once they have been unlocked, if they came from one.
    fn slot(&self) -> Option<SlotId> {
        None
    }
}

/// No key was given.
#[derive(Debug, Clone, Copy)]
pub struct NoKey;

impl Unlock for NoKey {
    fn is_given(&self) -> bool {
        false
    }

    fn unlock(&self, storage: &dyn Storage, _repository: RepositoryId) -> Result<Bundle> {
        Err(Error::new(Kind::WrongKey, format!("{} is encrypted, and no key was given", storage.describe()))
            .with_hint("name a file that holds the key or passphrase"))
    }
}

/// How many opened packs are remembered: each would cost a small read and one multiplication on the curve.
const PACKS_OPEN_MAX: usize = 1024;

/// The keys of an open repository.
#[derive(Debug)]
pub struct Keys {
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    bundle: Bundle,
    repository: RepositoryId,
    packs: Mutex<OpenPacks>,
}

#[derive(Debug, Default)]
struct OpenPacks {
    by_id: HashMap<PackId, Arc<PackSeal>>,
    order: VecDeque<PackId>,
}

impl Keys {
    /// Of a repository in which nothing is encrypted.
    pub fn plain() -> Keys {
        Keys { opened: None }
    }

    /// Of an encrypted one.
    pub fn opened(bundle: Bundle, repository: RepositoryId) -> Keys {
        Keys { opened: Some(Opened { bundle, repository, packs: Mutex::default() }) }
    }

    /// The keys of the repository with these parameters, held against what `unlock` has: neither may say less than the
    /// other, or whoever can write to the storage could have everything stored in plain from now on.
    pub fn unlocked(storage: &dyn Storage, read: &ConfigRead, unlock: &dyn Unlock) -> Result<Keys> {
        let id = read.config.repository_id();
        if !read.config.is_encrypted() {
            return match unlock.is_given() {
                false => Ok(Keys::plain()),
                true if is_planted("plain-repository-with-key-accepted") => Ok(Keys::plain()),
                true => Err(Error::new(
                    Kind::WrongKey,
                    format!("a key was given, but {} says that it is not encrypted", storage.describe()),
                )
                .with_hint("if it never was, use it without a key; otherwise somebody has replaced its parameters")),
            };
        }
        let bundle = unlock.unlock(storage, id)?;
        if bundle.config_hash != read.body_hash && !is_planted("parameters-not-bound-to-keys") {
            return Err(Error::damaged(format!(
                "the parameters of {} are not those that its keys were made for",
                storage.describe()
            ))
            .with_hint("somebody has replaced them: take the objects in config/ from a copy of the repository"));
        }
        Ok(Keys::opened(bundle, id))
    }

    /// True if what is stored is sealed.
    pub fn is_encrypted(&self) -> bool {
        self.opened.is_some()
    }

    /// What the key allows; everything where nothing is encrypted.
    pub fn role(&self) -> Role {
        self.opened.as_ref().map_or(Role::Admin, |opened| opened.bundle.role)
    }

    /// What was unlocked, if anything had to be.
    pub fn bundle(&self) -> Option<&Bundle> {
        self.opened.as_ref().map(|opened| &opened.bundle)
    }

    /// True if frames of packs of this kind can be opened.
    pub fn opens(&self, kind: PackKind) -> bool {
        match kind {
            PackKind::Data => self.role().opens_data(),
            PackKind::Tree => self.role().opens_trees(),
        }
    }

    /// An error of [`Kind::WrongKey`] unless frames of packs of this kind can be opened.
    pub fn require(&self, kind: PackKind) -> Result<()> {
        if self.opens(kind) { Ok(()) } else { Err(pack_seal::not_allowed(self.role(), kind)) }
    }

    /// An error of [`Kind::WrongKey`] unless snapshots may be added.
    pub fn require_adding(&self) -> Result<()> {
        if self.role().adds() {
            return Ok(());
        }
        Err(Error::new(Kind::WrongKey, "this key may only read (role read)")
            .with_hint("give a key of the role put, prune or admin"))
    }

    /// An error of [`Kind::WrongKey`] unless everything can be read and written: what is damaged, and what is only out of
    /// reach, cannot be told apart with less.
    pub fn require_repairing(&self) -> Result<()> {
        if self.role() == Role::Admin {
            return Ok(());
        }
        Err(Error::new(Kind::WrongKey, format!("this key may not repair (role {})", self.role().name()))
            .with_hint("give an admin key; `ckpt verify` finds damage with a read key or a prune key"))
    }

    /// An error of [`Kind::WrongKey`] unless snapshots may be forgotten and packs deleted.
    pub fn require_deleting(&self) -> Result<()> {
        if matches!(self.role(), Role::Prune | Role::Admin) {
            return Ok(());
        }
        Err(Error::new(Kind::WrongKey, format!("this key may not delete (role {})", self.role().name()))
            .with_hint("give a key of the role prune or admin"))
    }

    /// The id of a chunk with this content.
    pub fn chunk_id(&self, content: &[u8]) -> ChunkId {
        match self.bundle() {
            None => ChunkId::of(content),
            Some(_) if is_planted("chunk-ids-not-keyed") => ChunkId::of(content),
            Some(bundle) => ChunkId::from_bytes(*blake3::keyed_hash(bundle.id_key.as_bytes(), content).as_bytes()),
        }
    }

    /// What makes the id of a chunk from content that comes piece by piece.
    pub fn chunk_hasher(&self) -> blake3::Hasher {
        self.bundle().map_or_else(blake3::Hasher::new, |bundle| blake3::Hasher::new_keyed(bundle.id_key.as_bytes()))
    }

    /// Bytes of the header of every pack.
    pub(super) fn pack_header_bytes(&self) -> u64 {
        pack::header_bytes(self.is_encrypted())
    }

    /// What the document is sealed with that begins with this salt and stands under `name`, and what it is bound to;
    /// none where nothing is encrypted.
    pub(super) fn document_cipher(&self, salt: &[u8], kind: u8, name: &ObjectName) -> Option<(Cipher, Vec<u8>)> {
        let opened = self.opened.as_ref()?;
        let cipher = Cipher::new(&opened.bundle.document_key.derive("ckpt document v1", salt));
        let name = if is_planted("documents-not-bound-to-names") { "" } else { name.as_str() };
        Some((cipher, [opened.repository.as_bytes(), &[kind][..], name.as_bytes()].concat()))
    }

    /// Opens a frame as it was stored at `offset` of a pack, in place; reads the header of the pack if it must.
    pub(super) fn open_frame<'b>(
        &self,
        repo: &Repo,
        id: PackId,
        offset: u64,
        stored: &'b mut [u8],
    ) -> Result<&'b mut [u8]> {
        let Some(opened) = &self.opened else { return Ok(stored) };
        let named = |error: Error| error.while_doing(format!("pack {id}"));
        let pack = opened.pack(repo, id).map_err(named)?;
        pack.open_frame(offset, stored).map_err(named)
    }
}

impl Opened {
    fn pack(&self, repo: &Repo, id: PackId) -> Result<Arc<PackSeal>> {
        if let Some(known) = lock(&self.packs).by_id.get(&id) {
            return Ok(Arc::clone(known));
        }
        let header = pack::read_sealed_header(repo, id)?;
        let pack = PackSeal::unlock(&header, &self.bundle).map_err(|error| judged(repo, id, error))?;
        let pack = Arc::new(pack);
        let mut packs = lock(&self.packs);
        if packs.by_id.insert(id, Arc::clone(&pack)).is_none() {
            packs.order.push_back(id);
        }
        while packs.order.len() > PACKS_OPEN_MAX {
            let Some(oldest) = packs.order.pop_front() else { break };
            packs.by_id.remove(&oldest);
        }
        Ok(pack)
    }
}

/// A header that asks for keys which are not held is damaged, if its pack's table, sealed under a key that is made from the
/// whole header and that every role has, does not open.
fn judged(repo: &Repo, id: PackId, error: Error) -> Error {
    if error.kind() != Kind::WrongKey {
        return error;
    }
    let bytes = names::pack(id).and_then(|name| repo.storage().size(&name));
    match bytes.map(|bytes| pack::read_summary(repo, id, bytes.unwrap_or(0))) {
        Ok(Err(damage)) if damage.kind() == Kind::Damaged => damage,
        _ => error,
    }
}

fn lock(packs: &Mutex<OpenPacks>) -> MutexGuard<'_, OpenPacks> {
    packs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::seal::Key;

    const ROLES: [Role; 4] = [Role::Put, Role::Read, Role::Prune, Role::Admin];

    #[test]
    fn bundles_round_trip_and_agree_on_everything_that_roles_share() {
        let master = Key::from_bytes([9; 32]);
        let admin = Bundle::derive(&master, 3, Role::Admin, [1; 32]);
        for role in ROLES {
            let bundle = Bundle::derive(&master, 3, role, [1; 32]);
            let bytes = bundle.encode().expect("small");
            assert_eq!(Bundle::decode(&bytes).expect("own bytes"), bundle);
            assert_eq!(Role::from_name(role.name()), Some(role));
            for (one, other) in bundle.generations.iter().zip(&admin.generations) {
                assert_eq!((one.data_public, one.tree_public), (other.data_public, other.tree_public));
            }
            assert_eq!(bundle.generations.len(), 3);
            for length in 0..bytes.len() {
                assert!(Bundle::decode(&bytes[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_role_gets_the_keys_it_needs_and_no_others() {
        let keys = |role| {
            let bundle = Bundle::derive(&Key::from_bytes([9; 32]), 1, role, [0; 32]);
            let newest = &bundle.generations[0];
            let held = [newest.data_private.is_some(), newest.tree_private.is_some()];
            [held[0], held[1], bundle.boundary_key.is_some(), bundle.master.is_some()]
        };
        assert_eq!(keys(Role::Put), [false, false, true, false]);
        assert_eq!(keys(Role::Read), [true, true, false, false]);
        assert_eq!(keys(Role::Prune), [false, true, true, false]);
        assert_eq!(keys(Role::Admin), [true, true, true, true]);
    }

    #[test]
    fn a_bundle_whose_keys_do_not_fit_its_role_is_refused() {
        let whole = Bundle::derive(&Key::from_bytes([9; 32]), 2, Role::Admin, [0; 32]);
        let refused = |change: &dyn Fn(&mut Bundle)| {
            let mut bundle = whole.clone();
            change(&mut bundle);
            Bundle::decode(&bundle.encode().expect("small")).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|b| b.role = Role::Put));
        assert!(refused(&|b| b.master = None));
        assert!(refused(&|b| b.boundary_key = None));
        assert!(refused(&|b| b.generations.clear()));
        assert!(refused(&|b| b.generations[1].data_private = None));
        assert!(refused(&|b| b.generations[1].tree_private = b.generations[1].data_private.clone()));
        assert!(refused(&|b| b.generations.swap(0, 1)));
    }
}
