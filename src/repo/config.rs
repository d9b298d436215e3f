//! The parameters of a repository: written once, in three copies, never changed.
//!
//! Whatever would make two hosts cut, hash or pack differently is here, so that they agree. Settings that may differ
//! from run to run (threads, compression level) are not.

use super::document::{self, DocumentKind};
use super::keys::Keys;
use super::names;
use crate::error::{Error, Kind, Result};
use crate::ids::RepositoryId;
use crate::metadata::FileTime;
use crate::storage::{self, Published, Storage};
use minicbor::{Decode, Encode};

/// How many copies of the parameters are kept.
pub const COPIES: u8 = 3;

/// Bounds on the size of a chunk that any version may be configured to.
const CHUNK_BYTES_MAX: u32 = 8 << 20;

/// The parameters.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Config {
    /// Version of the layout of the whole repository.
    #[n(0)]
    pub format_version: u32,
    /// The repository's id, see [`Config::repository_id`].
    #[cbor(n(1), with = "minicbor::bytes")]
    repository: Vec<u8>,
    /// When `init` ran, seconds since 1970.
    #[n(2)]
    created_seconds: i64,
    /// The smallest chunk that content-defined cutting makes, except at an end.
    #[n(3)]
    pub chunk_min: u32,
    /// The size of chunk it aims at.
    #[n(4)]
    pub chunk_average: u32,
    /// The largest chunk.
    #[n(5)]
    pub chunk_max: u32,
    /// The key of the rolling hash's table; empty in an encrypted repository, where it is secret.
    #[cbor(n(6), with = "minicbor::bytes")]
    chunker_key: Vec<u8>,
    /// The size of a pack at which the next one is begun.
    #[n(7)]
    pub pack_bytes: u32,
    /// 0: nothing is encrypted; 1: everything is, see [`super::keys`]. No other value is known yet.
    #[n(8)]
    pub encryption: u32,
    /// 0: packs get no parity; 1: they do, see [`super::parity`].
    #[n(9)]
    pub parity: u32,
    /// True if `init` saw that of several writers racing for one name exactly one succeeds.
    #[n(10)]
    pub exclusive_create: bool,
}

/// What `init` chooses.
#[derive(Debug, Clone, Copy)]
pub struct Parameters {
    /// Smallest, aimed-at and largest chunk in bytes.
    pub chunk_sizes: (u32, u32, u32),
    /// The key of the rolling hash's table; none for an encrypted repository, whose keys have it.
    pub chunker_key: Option<[u8; 32]>,
    /// The size of a pack at which the next one is begun.
    pub pack_bytes: u32,
    /// Whether packs get parity.
    pub parity: bool,
    /// What the probe of exclusive creation found.
    pub exclusive_create: bool,
}

impl Config {
    /// The version of the layout that this program writes, and the newest that it reads.
    pub const FORMAT_VERSION: u32 = 1;

    /// A new repository's parameters.
    pub fn new(id: RepositoryId, created: FileTime, parameters: &Parameters) -> Result<Config> {
        let (chunk_min, chunk_average, chunk_max) = parameters.chunk_sizes;
        let config = Config {
            format_version: Self::FORMAT_VERSION,
            repository: id.as_bytes().to_vec(),
            created_seconds: created.seconds,
            chunk_min,
            chunk_average,
            chunk_max,
            chunker_key: parameters.chunker_key.map(Vec::from).unwrap_or_default(),
            pack_bytes: parameters.pack_bytes,
            encryption: u32::from(parameters.chunker_key.is_none()),
            parity: u32::from(parameters.parity),
            exclusive_create: parameters.exclusive_create,
        };
        config.validate().map_err(|e| e.with_kind(Kind::Usage))?;
        Ok(config)
    }

    /// The repository's id.
    pub fn repository_id(&self) -> RepositoryId {
        RepositoryId::from_slice(&self.repository).unwrap_or(RepositoryId::from_bytes([0; 16]))
    }

    /// True if everything else that is stored is sealed.
    pub fn is_encrypted(&self) -> bool {
        self.encryption == 1
    }

    /// The hash of the stored body: what the keys of an encrypted repository know the parameters by.
    pub fn body_hash(&self) -> Result<[u8; 32]> {
        Ok(*blake3::hash(&document::encode(self)?).as_bytes())
    }

    /// The key of the rolling hash's table; zeros in an encrypted repository.
    pub fn chunker_key(&self) -> [u8; 32] {
        <[u8; 32]>::try_from(self.chunker_key.as_slice()).unwrap_or_default()
    }

    /// When `init` ran.
    pub fn created(&self) -> FileTime {
        FileTime { seconds: self.created_seconds, nanoseconds: 0 }
    }

    fn validate(&self) -> Result<()> {
        let sizes_ascend = 64 <= self.chunk_min
            && self.chunk_min <= self.chunk_average
            && self.chunk_average <= self.chunk_max
            && self.chunk_max <= CHUNK_BYTES_MAX;
        if !sizes_ascend {
            return Err(Error::damaged(format!(
                "chunk sizes {} / {} / {} do not ascend between 64 and {CHUNK_BYTES_MAX}",
                self.chunk_min, self.chunk_average, self.chunk_max
            )));
        }
        if !(1 << 16..=1 << 30).contains(&self.pack_bytes) {
            return Err(Error::damaged(format!("a pack size of {} bytes is not usable", self.pack_bytes)));
        }
        if self.repository.len() != RepositoryId::BYTES
            || self.chunker_key.len() != if self.is_encrypted() { 0 } else { 32 }
        {
            return Err(Error::damaged("the parameters have an id or key of the wrong length"));
        }
        Ok(())
    }
}

/// Writes the copies; an error of kind [`Kind::Failed`] if any copy of a repository is there already.
pub fn create(storage: &dyn Storage, config: &Config) -> Result<()> {
    let body = document::encode(config)?;
    for copy in 0..COPIES {
        let name = names::config(copy)?;
        // In plain in every repository: they are read before there are any keys.
        let object = document::seal(&Keys::plain(), DocumentKind::Config, &name, &body)?;
        match storage::create_new(storage, &name, &object)? {
            Published::Created => {}
            Published::AlreadyExists => {
                return Err(Error::new(Kind::Failed, format!("{} is a repository already", storage.describe())));
            }
        }
    }
    Ok(())
}

/// True if any copy of the parameters of a repository is there, sound or not.
pub fn exists(storage: &dyn Storage) -> Result<bool> {
    Ok(!storage.list(names::CONFIG)?.is_empty())
}

/// How the copies of the parameters fared.
#[derive(Debug)]
pub struct ConfigRead {
    /// The parameters, from the first sound copy.
    pub config: Config,
    /// The hash of the body that they were read from.
    pub body_hash: [u8; 32],
    /// One sentence for each copy that is damaged, missing or different.
    pub damage: Vec<String>,
}

/// Reads the parameters from the first sound copy and looks at the others.
pub fn read(storage: &dyn Storage) -> Result<ConfigRead> {
    let mut found: Option<(Config, [u8; 32])> = None;
    let mut damage = Vec::new();
    let mut missing = 0;
    for copy in 0..COPIES {
        let name = names::config(copy)?;
        match read_copy(storage, copy) {
            Ok((config, body_hash, both_copies_sound)) => {
                if !both_copies_sound {
                    damage.push(format!("{name}: one of its two copies is damaged"));
                }
                match &found {
                    None => found = Some((config, body_hash)),
                    Some(first) if *first != (config, body_hash) => {
                        damage.push(format!("{name}: differs from the other copies"))
                    }
                    Some(_) => {}
                }
            }
            Err(error) if error.kind() == Kind::FormatTooNew => return Err(error),
            Err(error) if error.kind() == Kind::Missing => {
                missing += 1;
                damage.push(format!("{name}: is missing"));
            }
            Err(error) if error.kind() == Kind::Damaged => damage.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    match found {
        Some((config, body_hash)) => Ok(ConfigRead { config, body_hash, damage }),
        None if missing == COPIES => {
            Err(Error::new(Kind::NoRepository, format!("{} is not a repository", storage.describe()))
                .with_hint("check -r/--repo and CKPT_REPO, or make a new repository there with `ckpt init`"))
        }
        None => Err(Error::damaged(format!("no sound copy of the parameters: {}", damage.join("; ")))),
    }
}

/// The parameters that this object holds, and the hash of their body: for repair, before anything is opened.
pub fn parameters_in(object: &[u8]) -> Result<(Config, [u8; 32])> {
    let name = names::config(0)?;
    let opened = document::open(&Keys::plain(), DocumentKind::Config, &name, object)?;
    let config: Config = document::decode(&opened.body, name.as_str())?;
    config.validate()?;
    Ok((config, *blake3::hash(&opened.body).as_bytes()))
}

fn read_copy(storage: &dyn Storage, copy: u8) -> Result<(Config, [u8; 32], bool)> {
    let name = names::config(copy)?;
    let opened = document::read(storage, &Keys::plain(), DocumentKind::Config, &name)?;
    let config: Config = document::decode(&opened.body, name.as_str())?;
    if config.format_version > Config::FORMAT_VERSION || config.encryption > 1 || config.parity > 1 {
        return Err(Error::new(
            Kind::FormatTooNew,
            format!(
                "{} has features that this version does not know (format {})",
                storage.describe(),
                config.format_version
            ),
        )
        .with_hint("use a newer ckpt"));
    }
    config.validate()?;
    Ok((config, *blake3::hash(&opened.body).as_bytes(), opened.both_copies_sound))
}
