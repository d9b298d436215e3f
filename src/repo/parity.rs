//! Parity beside packs: written with them, and used where they are damaged.
//!
//! Guarantees: what is lost of a pack is computed again as long as no more shards are bad, of the pack and of its parity
//! together, than there are parity shards, wherever they are: also where the pack is cut short or too long. A mended pack
//! is held against its name, and content read out of one against its id, so parity can never bring a wrong byte. Parity
//! covers stored bytes and needs no key. Memory is bounded: parity is computed piece by piece, and a pack that is longer than
//! `WORK_BYTES_MAX` is mended in columns.
//!
//! Deliberately not here: putting anything right in the repository, which is for `repair`.

mod located;
mod mended;
mod sidecar;

pub(super) use mended::MendedPacks;
pub use mended::Patched;

use super::pack_body::{BodyParity, PublishedBody};
use super::{Repo, names};
use crate::bytes::ByteRange;
use crate::codec::parity::{ParityEncoder, Shape, checksum};
use crate::codec::parity_stream::ParityStream;
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, RepositoryId, SnapshotId};
use crate::sabotage::is_planted;
use crate::storage::{self, ObjectName, ObjectWriter, Storage};
use mended::Remains;
use sidecar::Sidecar;

/// The most bytes of columns that are held at once, when a pack is mended: an ordinary pack, whole.
const WORK_BYTES_MAX: usize = 80 << 20;

/// What is read of a pack at once, when its parity is computed.
const READ_BYTES: usize = 8 << 20;

/// A pack that was put together again.
#[derive(Debug)]
pub struct Mended {
    /// All of it; its hash is its name.
    pub bytes: Vec<u8>,
    /// How many of its shards were bad.
    pub shards_bad: usize,
}

/// How the parity of a pack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParityState {
    /// There is none.
    Absent,
    /// It is not as it should be: what is wrong.
    Damaged(String),
    /// Nothing is wrong as far as it was looked at.
    Sound,
}

/// Puts a pack together from what is left of it and its parity, whatever became of it.
///
/// [`Kind::Missing`] if it has no parity, [`Kind::Damaged`] if more is lost than that can mend.
pub fn mend(repo: &Repo, pack: PackId) -> Result<Mended> {
    let patched = Patched::reconstruct(repo.storage(), repo.id(), pack)?;
    let mut bytes = Vec::new();
    patched.read_range(repo.storage(), ByteRange::new(0, patched.bytes())?, &mut bytes)?;
    if blake3::hash(&bytes).as_bytes() != pack.as_bytes() && !is_planted("mended-pack-not-compared") {
        return Err(Error::damaged(format!("what its parity makes of pack {pack} is not the pack")));
    }
    Ok(Mended { bytes, shards_bad: patched.shards_bad() })
}

/// True if [`mend`] would succeed, as far as checksums tell; in bounded memory.
pub fn can_mend(repo: &Repo, pack: PackId) -> bool {
    Remains::find(repo.storage(), repo.id(), pack).is_ok()
}

/// Computes and publishes the parity of a pack that is there; nothing if it has some. [`Kind::Damaged`] if the pack is.
pub fn create(repo: &Repo, pack: PackId) -> Result<()> {
    let object = compute(repo, pack)?;
    storage::create_new(repo.storage(), &names::parity(pack)?, &object).map(drop)
}

/// As [`create`], in the place of parity that is damaged: the pack decides every byte of it.
pub fn renew(repo: &Repo, pack: PackId) -> Result<()> {
    let object = compute(repo, pack)?;
    repo.storage().replace(&names::parity(pack)?, &object)
}

fn compute(repo: &Repo, pack: PackId) -> Result<Vec<u8>> {
    let (storage, name) = (repo.storage(), names::pack(pack)?);
    let bytes = storage.size(&name)?.ok_or_else(|| Error::new(Kind::Missing, format!("{name} is missing")))?;
    let shape = Shape::of(bytes)?;
    let mut stream = ParityStream::new(&shape);
    // Long reads: short ones would take their time, and leave the pack in the page cache.
    let step = (READ_BYTES / stream.group_bytes()).max(1) * stream.group_bytes();
    let (mut hasher, mut piece, mut parity) = (blake3::Hasher::new(), Vec::new(), Vec::new());
    for at in (0..bytes).step_by(step) {
        piece.clear();
        storage.read_range(&name, ByteRange::new(at, (bytes - at).min(step as u64))?, &mut piece)?;
        hasher.update(&piece);
        stream.check(&piece);
        stream.absorb(&piece);
    }
    if hasher.finalize().as_bytes() != pack.as_bytes() {
        return Err(Error::damaged(format!("{name}: its bytes do not match its name")));
    }
    let table = match stream.finish(bytes, &mut parity)? {
        Some(checksums) => checksums.to_vec(),
        // So short that it is one piece, and coded in another way.
        None => {
            ParityEncoder::default().encode(&piece, &shape, &mut parity)?;
            piece.chunks(shape.shard_bytes).flat_map(checksum).collect()
        }
    };
    let (header, table) = front(repo.id(), pack, &shape, table, &parity)?;
    Ok([header.as_slice(), &table, &parity, &table, &header].concat())
}

/// How the parity of a pack is. `pack_bytes` is the pack's length, if that is known to be right. With `read_data` all of
/// it is read, otherwise what tells where things are.
pub fn check(repo: &Repo, pack: PackId, pack_bytes: Option<u64>, read_data: bool) -> Result<ParityState> {
    let mut sidecar = match Sidecar::open(repo.storage(), repo.id(), pack, pack_bytes.unwrap_or(0)) {
        Ok(sidecar) => sidecar,
        Err(error) => {
            return match error.kind() {
                Kind::Missing => Ok(ParityState::Absent),
                Kind::Damaged => Ok(ParityState::Damaged(error.to_string())),
                _ => Err(error),
            };
        }
    };
    let mut faults: Vec<String> = sidecar.faults.iter().map(|fault| (*fault).to_owned()).collect();
    if pack_bytes.is_some_and(|bytes| bytes != sidecar.shape.pack_bytes) {
        faults.push("it is of a pack of another length".to_owned());
    }
    if read_data {
        let of = sidecar.shape.parity_shards;
        let bad = sidecar.locate(false).iter().filter(|place| place.is_none()).count();
        if bad > 0 {
            faults.push(format!("{bad} of its {of} shards are damaged"));
        }
    }
    Ok(if faults.is_empty() { ParityState::Sound } else { ParityState::Damaged(faults.join("; ")) })
}

/// Publishes the parity of a pack of transaction `owner` that is durable: computed while it was written, or it is read again.
pub(super) fn write(repo: &Repo, owner: SnapshotId, pack: PackId, body: &mut PublishedBody) -> Result<()> {
    let object = repo.storage().create_for(names::PARITY, owner)?;
    let Some(BodyParity { shape, checksums, shards }) = body.parity()? else {
        return published(object, pack, &[&compute(repo, pack)?]);
    };
    let (header, table) = front(repo.id(), pack, &shape, checksums, shards)?;
    published(object, pack, &[&header, &table, shards, &table, &header])
}

/// Publishes. An object of that name holds the same, or is damaged.
fn published(mut object: Box<dyn ObjectWriter>, pack: PackId, parts: &[&[u8]]) -> Result<()> {
    for part in parts {
        object.write(part)?;
    }
    object.publish(&names::parity(pack)?).map(drop)
}

/// The header and the whole table of checksums.
fn front(
    repository: RepositoryId,
    pack: PackId,
    shape: &Shape,
    mut table: Vec<u8>,
    parity: &[u8],
) -> Result<(Vec<u8>, Vec<u8>)> {
    table.extend(parity.chunks(shape.shard_bytes).flat_map(checksum));
    Ok((sidecar::header(repository, pack, shape, &table)?, table))
}

/// Divides shards into columns of which those of all data shards fit into the memory for them.
fn column_ranges(shape: &Shape) -> impl Iterator<Item = (usize, usize)> {
    let bytes = shape.shard_bytes;
    let width = (WORK_BYTES_MAX / shape.data_shards / 64 * 64).clamp(64, bytes);
    (0..bytes).step_by(width).map(move |column| (column, width.min(bytes - column)))
}

/// Reads columns of the data shards, one behind the other; zeros where a shard is nowhere, and behind the pack's end.
fn read_columns(
    storage: &dyn Storage,
    name: &ObjectName,
    shape: &Shape,
    places: &[Option<u64>],
    (column, width): (usize, usize),
    into: &mut Vec<u8>,
) -> Result<()> {
    into.clear();
    for (shard, place) in places.iter().enumerate() {
        let here = shape.place(shard).1.saturating_sub(column).min(width);
        if let Some(at) = place.filter(|_| here > 0) {
            storage.read_range(name, ByteRange::new(at + column as u64, here as u64)?, into)?;
        }
        into.resize((shard + 1) * width, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
