//! `init`: makes a repository.
//!
//! Nothing that is there already is touched: a directory with anything in it is refused. In an encrypted repository the
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
use crate::source::chunker::{ChunkSizes, PLAIN_KEY};
use crate::storage::{self, ObjectName, Published, Storage};
use std::cell::Cell;

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
    let foreign = entries.flatten().map(|e| e.file_name()).find(|name| name != "lost+found");
    let is_repository = std::path::Path::new(location).join("config/0").exists();
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

/// Lets several writers race for one name and sees whether exactly one gets it.
fn probe_exclusive_create(storage: &dyn Storage) -> Result<bool> {
    const WRITERS: u8 = 4;
    let nonce: [u8; 32] = random()?;
    let name = ObjectName::new(format!("transactions/probe-{}", PackId::from_bytes(nonce).short()))?;
    let outcomes: Vec<Result<Published>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let name = &name;
                scope.spawn(move || storage::create_new(storage, name, &[n]))
            })
            .collect();
        writers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err(Error::new(Kind::Failed, "a probing thread failed"))))
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
