//! Encrypted repositories of the tests: their keys stay in this process, by repository, and are given out by role.

use ckpt::error::{Error, Kind, Result};
use ckpt::ids::RepositoryId;
use ckpt::ops::init::{InitOptions, init_storage_encrypted};
use ckpt::repo::config;
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::keys::{Bundle, Keys, Role, Unlock};
use ckpt::storage::Storage;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

static BUNDLES: LazyLock<Mutex<HashMap<RepositoryId, Bundle>>> = LazyLock::new(Mutex::default);

/// Makes an encrypted repository in simulated storage, which is told how to read what it judges by.
pub fn init_simulated(storage: &SimulatedStorage, options: &InitOptions) {
    init_encrypted(storage, options);
    let read = config::read(storage).expect("just made");
    let keys = Keys::unlocked(storage, &read, &KeysOf(Role::Read)).expect("own keys");
    storage.read_lists_with(move |name, object| {
        document::open(&keys, DocumentKind::Condemned, name, object).ok().map(|opened| opened.body)
    });
}

/// Makes an encrypted repository.
pub fn init_encrypted(storage: &dyn Storage, options: &InitOptions) {
    let keep = |_: &dyn Storage, id: RepositoryId, bundle: &Bundle| {
        BUNDLES.lock().unwrap_or_else(PoisonError::into_inner).insert(id, bundle.clone());
        Ok(())
    };
    init_storage_encrypted(storage, options, &keep).expect("an empty storage takes a repository");
}

/// All keys of an encrypted repository of this process.
pub fn bundle(id: RepositoryId) -> Option<Bundle> {
    BUNDLES.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
}

/// The keys of a role; a repository without encryption opens, too.
pub struct KeysOf(pub Role);

impl Unlock for KeysOf {
    fn is_given(&self) -> bool {
        false
    }

    fn unlock(&self, _storage: &dyn Storage, id: RepositoryId) -> Result<Bundle> {
        let all = bundle(id).ok_or_else(|| Error::new(Kind::WrongKey, "not a repository of this test"))?;
        let master = all.master.as_ref().expect("an admin has it");
        Ok(Bundle::derive(master, 1, self.0, all.config_hash))
    }
}
