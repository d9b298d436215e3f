//! Repositories of objects that a target has made: a storage that only reads, and open repositories on it.

use ckpt::bytes::ByteRange;
use ckpt::codec::seal::Key;
use ckpt::error::{Error, Kind, Result};
use ckpt::events::Silent;
use ckpt::ids::{RepositoryId, SnapshotId};
use ckpt::metadata::FileTime;
use ckpt::repo::config::{self, Config, Parameters};
use ckpt::repo::keys::{Bundle, Role, Unlock};
use ckpt::repo::{Cache, Repo};
use ckpt::storage::simulated::SimulatedStorage;
use ckpt::storage::{Listed, ObjectName, ObjectWriter, Owner, Storage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The repository that every object of the corpus is of, and the one parent of objects with such an id.
pub const REPOSITORY: RepositoryId = RepositoryId::from_bytes([9; 16]);
/// See [`REPOSITORY`].
pub const TRANSACTION: SnapshotId = SnapshotId::from_bytes([7; 16]);

/// A storage that takes nothing. Its objects have names, which are listed, or stand under every name of a folder.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Held {
    /// Holds these bytes under that name, or under every name of that folder.
    pub fn of(place: impl ToString, bytes: &[u8]) -> Held {
        let held = Held::default();
        held.set(place.to_string(), Some(bytes.to_vec()));
        held
    }

    /// From now on these bytes are what is there, or nothing.
    pub fn set(&self, place: String, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => drop(self.objects().insert(place, bytes)),
            None => drop(self.objects().remove(&place)),
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, name: &ObjectName, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let folder = name.as_str().split('/').next().unwrap_or_default();
        let objects = self.objects();
        match objects.get(name.as_str()).or_else(|| objects.get(folder)) {
            Some(bytes) => work(bytes),
            None => Err(Error::new(Kind::Missing, format!("{name} is missing"))),
        }
    }
}

impl Storage for Held {
    fn describe(&self) -> String {
        "objects that were made".to_owned()
    }

    fn create(&self, _: &str) -> Result<Box<dyn ObjectWriter>> {
        Err(Error::new(Kind::Denied, "nothing is taken"))
    }

    fn replace(&self, _: &ObjectName, _: &[u8]) -> Result<()> {
        Err(Error::new(Kind::Denied, "nothing is taken"))
    }

    fn read(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.with(name, |bytes| match bytes.len() as u64 > bytes_max {
            true => Err(Error::damaged("too long")),
            false => Ok(bytes.to_vec()),
        })
    }

    fn read_range(&self, name: &ObjectName, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        self.with(name, |bytes| {
            let place = usize::try_from(range.offset()).ok().zip(usize::try_from(range.end()).ok());
            let part = place.and_then(|(begin, end)| bytes.get(begin..end));
            into.extend_from_slice(part.ok_or_else(|| Error::damaged("the object ends before"))?);
            Ok(())
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let objects = self.objects();
        let inside = objects.iter().filter(|(name, _)| name.strip_prefix(folder).is_some_and(|n| n.starts_with('/')));
        inside
            .map(|(name, bytes)| Ok(Listed { name: ObjectName::new(name.as_str())?, bytes: bytes.len() as u64 }))
            .collect()
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.with(name, |bytes| Ok(bytes.len() as u64)).ok())
    }

    fn delete(&self, _: &ObjectName) -> Result<bool> {
        Ok(false)
    }

    fn sync_folder(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn delete_abandoned(&self, _: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64> {
        Ok(0)
    }
}

/// What all keys of the encrypted repository follow from.
pub fn master() -> Key {
    Key::from_bytes([5; Key::BYTES])
}

/// The parameters of the repository.
fn parameters(is_encrypted: bool) -> Config {
    let parameters = Parameters {
        chunk_sizes: (1024, 4096, 16384),
        chunker_key: (!is_encrypted).then_some([7; 32]),
        pack_bytes: 1 << 16,
        parity: true,
        exclusive_create: true,
    };
    Config::new(REPOSITORY, FileTime { seconds: 0, nanoseconds: 0 }, &parameters).expect("sound parameters")
}

/// All keys of the encrypted repository.
pub fn bundle() -> Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    let derived = || Bundle::derive(&master(), 2, Role::Admin, parameters(true).body_hash().expect("short"));
    BUNDLE.get_or_init(derived).clone()
}

struct Given;

impl Unlock for Given {
    fn is_given(&self) -> bool {
        false
    }

    fn unlock(&self, _: &dyn Storage, _: RepositoryId) -> Result<Bundle> {
        Ok(bundle())
    }
}

/// A repository in simulated storage, with the ids and keys of the corpus.
pub fn simulated(is_encrypted: bool) -> (SimulatedStorage, Repo) {
    let memory = SimulatedStorage::new();
    config::create(&memory, &parameters(is_encrypted)).expect("an empty storage");
    let repo = Repo::open_storage_with(Arc::new(memory.clone()), &Cache::Memory, &Given, &Silent).expect("sound");
    (memory, repo)
}

/// The parameters in a storage that holds nothing else yet.
fn empty(is_encrypted: bool) -> Held {
    static OBJECTS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let made = |is_encrypted| {
        let memory = SimulatedStorage::new();
        config::create(&memory, &parameters(is_encrypted)).expect("an empty storage");
        memory.objects().into_values().next().expect("the parameters")
    };
    let objects = OBJECTS.get_or_init(|| [made(false), made(true)]);
    Held::of("config", &objects[usize::from(is_encrypted)])
}

fn opened(is_encrypted: bool) -> (Held, Repo) {
    let storage = empty(is_encrypted);
    let repo = Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, &Given, &Silent).expect("sound");
    (storage, repo)
}

/// A repository that is opened anew, for what an open one remembers.
pub fn fresh(is_encrypted: bool, objects: Vec<(String, Vec<u8>)>) -> Result<Repo> {
    let storage = empty(is_encrypted);
    objects.into_iter().for_each(|(place, bytes)| storage.set(place, Some(bytes)));
    Repo::open_storage_with(Arc::new(storage), &Cache::Memory, &Given, &Silent)
}

/// Runs `work` on the repository that holds these objects besides its parameters, each under a name or in a whole folder.
pub fn with_repo<T>(is_encrypted: bool, objects: Vec<(String, Vec<u8>)>, work: impl FnOnce(&Repo) -> T) -> T {
    thread_local! {
        static PLAIN: (Held, Repo) = opened(false);
        static ENCRYPTED: (Held, Repo) = opened(true);
    }
    let run = |(storage, repo): &(Held, Repo)| {
        let places: Vec<String> = objects.iter().map(|(place, _)| place.clone()).collect();
        objects.into_iter().for_each(|(place, bytes)| storage.set(place, Some(bytes)));
        let result = work(repo);
        places.into_iter().for_each(|place| storage.set(place, None));
        result
    };
    if is_encrypted { ENCRYPTED.with(run) } else { PLAIN.with(run) }
}
