//! `init`: makes a repository.
//!
//! Nothing that is there already is touched: a directory with anything in it is refused, but for what an `init` that was
//! killed before it had made a repository left there. In an encrypted repository the
//! slot of the first key is durable before the parameters make the place a repository, so whenever the run is killed,
//! there is either no repository or one that opens.

use crate::codec::seal::Key;
use crate::codec::stretch::{Cost, Secret};
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, RepositoryId, SlotId};
use crate::metadata::FileTime;
use crate::repo::config::{self, Config, Parameters};
use crate::repo::key_slots::{self, NewSlot};
use crate::repo::keys::{Bundle, Role};
use crate::repo::names;
use crate::source::chunker::{ChunkSizes, PLAIN_KEY};
use crate::storage::{self, ObjectName, Published, Storage};
use crate::threads;
use std::cell::Cell;
use std::path::Path;

/// How a repository is to be made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where: a path.
    pub location: String,
    /// Smallest, aimed-at and largest chunk in bytes; none for the defaults.
    pub chunk_sizes: Option<(u64, u64, u64)>,
    /// The size of a pack at which the next one is begun.
    pub pack_bytes: u64,
    /// Whether packs get parity, which mends rot.
    pub parity: bool,
    /// When this is.
    pub now: FileTime,
}

/// The size of a pack unless told otherwise: large enough that few are needed, small enough to rewrite.
pub const PACK_BYTES_DEFAULT: u64 = 64 << 20;

/// The first key of an encrypted repository: an admin's.
#[derive(Debug)]
pub struct FirstKey<'s> {
    /// Its secret.
    pub secret: &'s Secret,
    /// What stretching that costs.
    pub cost: Cost,
    /// What the slot is called.
    pub label: String,
}

/// What was made.
#[derive(Debug)]
pub struct InitReport {
    /// The repository's id.
    pub id: RepositoryId,
    /// Where it is.
    pub location: String,
    /// True if of several writers racing for one name exactly one succeeded.
    pub exclusive_create: bool,
    /// The slot of the first key, if everything is encrypted.
    pub slot: Option<SlotId>,
    /// Sentences the user should read.
    pub notes: Vec<String>,
}

/// Makes a repository, encrypted if there is a first key.
pub fn init(options: &InitOptions, first: Option<&FirstKey<'_>>) -> Result<InitReport> {
    refuse_occupied(&options.location)?;
    let storage = storage::create(&options.location)?;
    match first {
        None => init_storage(storage.as_ref(), options),
        Some(first) => init_storage_with_key(storage.as_ref(), options, first),
    }
}

/// Makes a repository in `storage`, in which nothing is encrypted.
pub fn init_storage(storage: &dyn Storage, options: &InitOptions) -> Result<InitReport> {
    init_with(storage, options, None)
}

/// Stores the keys of a new repository: the bundle of its first admin.
pub type KeepKeys<'a> = dyn Fn(&dyn Storage, RepositoryId, &Bundle) -> Result<()> + 'a;

/// Makes an encrypted repository in `storage`. `keep` stores its keys, before there is anything that needs them.
pub fn init_storage_encrypted(storage: &dyn Storage, options: &InitOptions, keep: &KeepKeys<'_>) -> Result<InitReport> {
    init_with(storage, options, Some(keep))
}

/// Makes an encrypted repository in `storage` with a slot for its first key.
pub fn init_storage_with_key(storage: &dyn Storage, options: &InitOptions, first: &FirstKey<'_>) -> Result<InitReport> {
    let salt = random()?;
    let made = Cell::new(None);
    let keep = |storage: &dyn Storage, id: RepositoryId, admin: &Bundle| {
        let new =
            NewSlot { role: Role::Admin, label: first.label.clone(), created: options.now, salt, cost: first.cost };
        made.set(Some(key_slots::create(storage, id, admin, &new, first.secret, None)?));
        Ok(())
    };
    let report = init_storage_encrypted(storage, options, &keep)?;
    Ok(InitReport { slot: made.get(), ..report })
}

fn init_with(storage: &dyn Storage, options: &InitOptions, keep: Option<&KeepKeys<'_>>) -> Result<InitReport> {
    let is_encrypted = keep.is_some();
    if config::exists(storage)? {
        return Err(Error::new(Kind::Failed, format!("{} is a repository already", storage.describe()))
            .with_hint("use it as it is, or give another place"));
    }
    let sizes = match options.chunk_sizes {
        Some((min, average, max)) => ChunkSizes::new(min, average, max)?,
        None => ChunkSizes::default(),
    };
    let exclusive_create = probe_exclusive_create(storage)?;
    let id = RepositoryId::from_bytes(random()?);
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let parameters = Parameters {
        chunk_sizes: (narrow(sizes.min()), narrow(sizes.average()), narrow(sizes.max())),
        chunker_key: (!is_encrypted).then_some(PLAIN_KEY),
        pack_bytes: narrow(options.pack_bytes),
        parity: options.parity,
        exclusive_create,
    };
    let config = Config::new(id, options.now, &parameters)?;
    if let Some(keep) = keep {
        keep(storage, id, &Bundle::derive(&Key::random()?, 1, Role::Admin, config.body_hash()?))?;
    }
    config::create(storage, &config)?;
    let mut notes = Vec::new();
    if !exclusive_create {
        notes.push(
            "this storage does not keep two writers from taking one name: prune only while nothing else runs".into(),
        );
    }
    Ok(InitReport { id, location: options.location.clone(), exclusive_create, slot: None, notes })
}

fn refuse_occupied(location: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(location) else { return Ok(()) };
    // What a fresh file system brings along does not count.
    let foreign = entries
        .flatten()
        .filter(|entry| !is_left_by_init(&entry.path()))
        .map(|entry| entry.file_name())
        .find(|name| name != "lost+found");
    let is_repository = Path::new(location).join("config/0").exists();
    match foreign {
        Some(_) if is_repository => Err(Error::new(Kind::Failed, format!("{location} is a repository already"))
            .with_hint("use it as it is, or give another place")),
        Some(name) => {
            Err(Error::new(Kind::Usage, format!("{location} is not empty: it holds {:?}", name.to_string_lossy()))
                .with_hint("give an empty or new directory"))
        }
        None => Ok(()),
    }
}

/// True for what an `init` that was killed before it had made a repository leaves: files and folders under temporary names,
/// and its first folders with nothing in them but such files and the name that writers raced for.
fn is_left_by_init(path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_beside = |name: &str| storage::is_temporary(name) || name.starts_with(names::PROBE_PREFIX);
    let is_empty =
        || std::fs::read_dir(path).is_ok_and(|mut within| within.all(|e| e.is_ok_and(|e| is_beside(&name(&e.path())))));
    let name = name(path);
    storage::is_temporary(&name)
        || ([names::TRANSACTIONS, names::CONFIG, names::KEYS].contains(&name.as_str()) && is_empty())
}

/// Lets several writers race for one name and sees whether exactly one gets it.
fn probe_exclusive_create(storage: &dyn Storage) -> Result<bool> {
    const WRITERS: u8 = 4;
    let nonce: [u8; 32] = random()?;
    let name = format!("{}/{}{}", names::TRANSACTIONS, names::PROBE_PREFIX, PackId::from_bytes(nonce).short());
    let name = ObjectName::new(name)?;
    let outcomes: Vec<Result<Published>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let name = &name;
                threads::start(scope, move || storage::create_new(storage, name, &[n]))
            })
            .collect();
        writers
            .into_iter()
            .map(|w| w?.join().unwrap_or_else(|_| Err(Error::new(Kind::Failed, "a probing thread failed"))))
            .collect()
    });
    let mut created = 0;
    for outcome in outcomes {
        created += u8::from(outcome? == Published::Created);
    }
    storage.delete(&name)?;
    Ok(created == 1)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::repo::unlock::{SecretSource, SlotKeys};
    use crate::repo::{Cache, Repo};
    use crate::storage::simulated::SimulatedStorage;
    use std::sync::Arc;
    use zeroize::Zeroizing;

    fn secret() -> Secret {
        Secret::new(Zeroizing::new(b"word".to_vec())).expect("a secret")
    }

    struct Word;

    impl SecretSource for Word {
        fn is_given(&self) -> bool {
            true
        }

        fn secret(&self, attempt: u32, _slots: usize) -> Result<Option<Secret>> {
            Ok((attempt == 1).then(secret))
        }
    }

    fn make(storage: &SimulatedStorage) -> Result<InitReport> {
        let options = InitOptions {
            location: "simulated".to_owned(),
            chunk_sizes: None,
            pack_bytes: PACK_BYTES_DEFAULT,
            parity: false,
            now: FileTime { seconds: 1, nanoseconds: 0 },
        };
        let cost = Cost { memory_kib: 8192, passes: 1, lanes: 1 };
        init_storage_with_key(storage, &options, &FirstKey { secret: &secret(), cost, label: String::new() })
    }

    fn open(storage: &SimulatedStorage) -> Result<Repo> {
        let unlock = SlotKeys::new(&Word, &Silent);
        Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, &unlock, &Silent)
    }

    #[test]
    fn an_encrypted_repository_that_was_cut_off_while_it_was_made_opens_or_is_none() {
        let whole = SimulatedStorage::new();
        let slot = make(&whole).expect("undisturbed").slot;
        let repo = open(&whole).expect("opens");
        assert!(slot.is_some() && repo.slot() == slot && repo.config().is_encrypted());
        assert_eq!(make(&whole).expect_err("one is there").kind(), Kind::Failed);
        let mut opened = 0;
        for step in 0..=whole.steps() {
            let cut = SimulatedStorage::new();
            cut.crash_at(step);
            // The probe's threads race, so that the last steps may come without the crash.
            let _ = make(&cut);
            for image in [cut.copy(), cut.after_power_cut(step), cut.after_power_cut(step + 1000)] {
                if !config::exists(&image).expect("listed") {
                    make(&image).unwrap_or_else(|error| panic!("made at once, cut at step {step}: {error}"));
                }
                open(&image).unwrap_or_else(|error| panic!("cut at step {step}: {error}"));
                opened += 1;
            }
        }
        assert!(opened > 60, "{opened} images");
    }

    #[test]
    fn a_repository_asks_for_a_key_exactly_if_it_is_encrypted() {
        let storage = SimulatedStorage::new();
        make(&storage).expect("makes");
        let error = Repo::open_storage(Arc::new(storage.clone()), &Cache::Memory, &Silent).err().expect("no key");
        assert_eq!(error.kind(), Kind::WrongKey);
        let id = config::read(&storage).expect("reads").config.repository_id();
        let replace = |chunker_key: Option<[u8; 32]>| {
            let other = SimulatedStorage::new();
            let (chunk_sizes, created) = ((1024, 4096, 16384), FileTime { seconds: 1, nanoseconds: 0 });
            let parameters =
                Parameters { chunk_sizes, chunker_key, pack_bytes: 1 << 16, parity: false, exclusive_create: true };
            config::create(&other, &Config::new(id, created, &parameters).expect("sound")).expect("creates");
            other.objects().into_iter().for_each(|(name, object)| storage.insert(name, object));
        };
        // Somebody changes the parameters, and then has the repository say that it is not encrypted.
        replace(None);
        assert_eq!(open(&storage).err().expect("others").kind(), Kind::Damaged);
        replace(Some([7; 32]));
        assert_eq!(open(&storage).err().expect("a key is given").kind(), Kind::WrongKey);
    }
}
