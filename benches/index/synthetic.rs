//! A repository of many chunks without their data: real index objects, written by the library, and a sparse file of
//! the right length under the name of every pack.
//!
//! Ids follow from numbers, so what is stored and what is not can be asked for. Nothing that reads content works on it;
//! whatever goes by the index and by names does: opening, listing, backing up something else.

use ckpt::error::{Error, Result};
use ckpt::events::Silent;
use ckpt::ids::{ChunkId, IndexId, PackId, SnapshotId};
use ckpt::metadata::FileTime;
use ckpt::ops::init::{InitOptions, PACK_BYTES_DEFAULT, init};
use ckpt::repo::index_object::IndexWriter;
use ckpt::repo::pack::{PackKind, PackSummary, TRAILER_BYTES};
use ckpt::repo::pack_table::{self, FrameRecord};
use ckpt::repo::snapshots::Outcome;
use ckpt::repo::{Cache, Repo, names};
use ckpt::storage;
use std::fs::{self, File};
use std::path::Path;

/// What one transaction wrote: about 6 GB.
const PACKS_OF_ONE_OBJECT: u64 = 100;
/// Bytes before the first frame of a pack.
const PACK_HEADER_BYTES: u64 = 64;
const CODEC_PLANES: u8 = 3;
const CODEC_ZSTD: u8 = 2;
const CODEC_DIFFERENCE: u8 = 4;

/// The id of stored chunk number `number`.
pub fn stored(number: u64) -> ChunkId {
    ChunkId::from_bytes(hash("stored", number))
}

/// An id that no chunk has.
pub fn missing(number: u64) -> ChunkId {
    ChunkId::from_bytes(hash("missing", number))
}

fn hash(domain: &str, number: u64) -> [u8; 32] {
    *blake3::Hasher::new().update(domain.as_bytes()).update(&number.to_le_bytes()).finalize().as_bytes()
}

/// A new repository at `location`, with all defaults.
pub fn empty(location: &Path) -> Result<()> {
    let options = InitOptions {
        location: text(location),
        chunk_sizes: None,
        pack_bytes: PACK_BYTES_DEFAULT,
        parity: true,
        now: FileTime { seconds: 0, nanoseconds: 0 },
    };
    init(&options, None).map(|_| ())
}

/// A new repository at `location` with `chunks` chunks; returns the number of packs and the bytes of content.
pub fn generate(location: &Path, chunks: u64) -> Result<(u64, u64)> {
    empty(location)?;
    let repo = Repo::open(&text(location), &Cache::Memory, &Silent)?;
    let mut next = 0;
    let (mut packs, mut content_bytes) = (0, 0);
    while next < chunks {
        let transaction = SnapshotId::from_bytes(first_half(hash("transaction", packs)));
        let mut index = IndexWriter::create(&repo, transaction)?;
        for _ in 0..PACKS_OF_ONE_OBJECT {
            if next >= chunks {
                break;
            }
            let (pack, bytes) = pack(packs, transaction, &mut next, chunks)?;
            index.append(repo.keys(), &pack)?;
            place(location, &pack)?;
            packs += 1;
            content_bytes += bytes;
        }
        index.finish(IndexId::from_bytes(*transaction.as_bytes()))?;
        let object = Outcome::Repacked.seal(repo.keys(), transaction)?;
        storage::create_new(repo.storage(), &names::snapshot(transaction)?, &object)?;
    }
    Ok((packs, content_bytes))
}

/// A pack of about 64 MiB that nobody wrote, of chunks `next` and on; what follows `next` is the next one's.
pub fn pack(number: u64, transaction: SnapshotId, next: &mut u64, chunks: u64) -> Result<(PackSummary, u64)> {
    let mut table = Vec::new();
    let (mut bytes, mut content_bytes) = (PACK_HEADER_BYTES, 0);
    while *next < chunks && bytes < PACK_BYTES_DEFAULT {
        let frame = frame(next, chunks)?;
        pack_table::append(&mut table, &frame)?;
        bytes += u64::from(frame.stored_bytes);
        content_bytes += u64::from(frame.raw_bytes);
    }
    bytes += table.len() as u64 + TRAILER_BYTES;
    let id = PackId::from_bytes(hash("pack", number));
    Ok((PackSummary { id, bytes, kind: PackKind::Data, transaction, is_sealed: false, table }, content_bytes))
}

/// One in 200 holds 16 small chunks, one in twenty needs a base, the others hold one chunk of 128 to 384 KiB.
fn frame(next: &mut u64, chunks: u64) -> Result<FrameRecord> {
    let first = *next;
    let random = u64::from_le_bytes(hash("lengths", first)[..8].try_into().unwrap_or_default());
    let bytes = (128 << 10) + usize::try_from(random % (256 << 10)).unwrap_or(0);
    match random >> 32 {
        dice if dice % 200 == 0 => {
            *next = chunks.min(first + 16);
            let small = (first..*next).map(|number| (stored(number), 4096 + u32::try_from(number % 8192).unwrap_or(0)));
            FrameRecord::group(small.collect(), bytes / 4, CODEC_ZSTD)
        }
        dice if dice % 20 == 1 && first >= 1000 => {
            *next += 1;
            let bases = vec![stored(first - 1000)];
            FrameRecord::delta(stored(first), bytes, bytes / 3, CODEC_DIFFERENCE, bases)
        }
        dice => {
            *next += 1;
            let permille = 700 + usize::try_from(dice % 250).unwrap_or(0);
            FrameRecord::single(stored(first), bytes, bytes * permille / 1000, CODEC_PLANES)
        }
    }
}

/// Makes what looks like the pack to whoever lists names and lengths.
fn place(location: &Path, pack: &PackSummary) -> Result<()> {
    let path = location.join(names::pack(pack.id)?.as_str());
    let made = (|| {
        fs::create_dir_all(path.parent().unwrap_or(location))?;
        File::create(&path)?.set_len(pack.bytes)
    })();
    made.map_err(|error| Error::io(format!("making {}", path.display()), error))
}

fn first_half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
