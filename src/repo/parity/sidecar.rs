//! The object that holds the parity of one pack: what it says, and where things lie in it.
//!
//! Header and checksums stand at the front and once more, in the other order, at the end. A shard counts as right if it
//! agrees with either of its two checksums, and the length of the pack is known by either header, or by the pack itself:
//! so rot anywhere in the object costs the shards that it hits, and no more.
//!
//! Nothing that it says is believed: a header must have its own checksum, name this pack, and agree with the one rule by
//! which a pack's length decides everything else. What is computed with its help is held against ids by whoever uses it.
//!
//! ```text
//! header   160: magic "CKPTPRTY", version u16, zero 6, repository 16, pack 32, pack bytes u64, shard bytes u32, data shards u32,
//!               parity shards u32, zero 12, BLAKE3 of the table 32, BLAKE3 of the 128 bytes before 32
//! table    8 for each shard, those of the pack first: the front of its BLAKE3
//! parity   the parity shards
//! table    again
//! header   again
//! ```

use super::located::Source;
use crate::codec::parity::{CHECKSUM_BYTES, Shape, checksum};
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, RepositoryId};
use crate::repo::names;
use crate::sabotage::is_planted;
use crate::storage::Storage;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 160;
const MAGIC: &[u8; 8] = b"CKPTPRTY";
const VERSION: u16 = 1;

/// Bytes of the whole object.
pub(super) fn object_bytes(shape: &Shape) -> u64 {
    2 * (HEADER_BYTES as u64 + table_bytes(shape)) + shape.parity_bytes() as u64
}

fn table_bytes(shape: &Shape) -> u64 {
    (shape.shards() * CHECKSUM_BYTES) as u64
}

/// The header for a pack of this shape whose shards have these checksums.
pub(super) fn header(repository: RepositoryId, pack: PackId, shape: &Shape, table: &[u8]) -> Result<Vec<u8>> {
    let narrow = |n: usize| u32::try_from(n).map_err(|_| Error::new(Kind::Failed, "a pack has too many shards"));
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(repository.as_bytes());
    header.extend_from_slice(pack.as_bytes());
    header.extend_from_slice(&shape.pack_bytes.to_le_bytes());
    for count in [shape.shard_bytes, shape.data_shards, shape.parity_shards] {
        header.extend_from_slice(&narrow(count)?.to_le_bytes());
    }
    header.extend_from_slice(&[0; 12]);
    header.extend_from_slice(blake3::hash(table).as_bytes());
    let hash = blake3::hash(&header);
    header.extend_from_slice(hash.as_bytes());
    Ok(header)
}

/// The shape and the hash of the table that a sound header of this pack names.
fn parse_header(header: &[u8], repository: RepositoryId, pack: PackId) -> Result<(Shape, [u8; 32])> {
    let damaged = |what: &str| Error::damaged(format!("the header of the parity of pack {pack} {what}"));
    let Some((front, hash)) = header.split_at_checked(128).filter(|_| header.len() == HEADER_BYTES) else {
        return Err(damaged("is cut short"));
    };
    if blake3::hash(front).as_bytes() != hash {
        return Err(damaged("does not match its checksum"));
    }
    if &front[..8] != MAGIC {
        return Err(damaged("does not begin as one"));
    }
    if front[8..10] != VERSION.to_le_bytes() {
        let text = format!("the parity of pack {pack} was written by a newer version");
        return Err(Error::new(Kind::FormatTooNew, text));
    }
    if front[16..32] != repository.as_bytes()[..] || front[32..64] != pack.as_bytes()[..] {
        return Err(damaged("belongs to another pack"));
    }
    let field = |at: usize| front.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let shape = Shape::of(field(64))?;
    let (table, own) = (&front[96..128], &front[..96]);
    // Everything else follows from the length; it stands there for people and other readers.
    if own != &self::header(repository, pack, &shape, &[])?[..96] {
        return Err(damaged("contradicts the length that it names"));
    }
    Ok((shape, table.try_into().unwrap_or_default()))
}

/// The parity of a pack as far as it can be read.
pub(super) struct Sidecar<'a> {
    pub(super) shape: Shape,
    pub(super) source: Source<'a>,
    /// As they stand at the front and at the end; empty where that cannot be read.
    tables: [Table; 2],
    /// One sentence for each part that is not as it should be, as far as it was looked at.
    pub(super) faults: Vec<&'static str>,
}

impl<'a> Sidecar<'a> {
    /// Reads headers and tables. [`Kind::Missing`] if there is no such object; [`Kind::Damaged`] if not even the shape of
    /// the pack is to be had. The pack's length as found serves where both headers are bad.
    pub(super) fn open(
        storage: &'a dyn Storage,
        repository: RepositoryId,
        pack: PackId,
        pack_bytes_found: u64,
    ) -> Result<Sidecar<'a>> {
        let mut source = Source::open(storage, names::parity(pack)?)?;
        if !source.exists {
            return Err(Error::new(Kind::Missing, format!("{} is missing", source.name)));
        }
        let mut faults = Vec::new();
        let mut known: Option<(Shape, [u8; 32])> = None;
        let ends = [Some(0), source.bytes.checked_sub(HEADER_BYTES as u64)];
        for (at, fault) in ends.into_iter().zip(["its first header is damaged", "its second header is damaged"]) {
            match at.and_then(|at| source.read(at, HEADER_BYTES)).map(|b| parse_header(&b, repository, pack)) {
                Some(Ok(found)) => known = known.or(Some(found)),
                Some(Err(error)) if error.kind() == Kind::FormatTooNew => return Err(error),
                _ => faults.push(fault),
            }
        }
        let by_length = || {
            let shape = Shape::of(pack_bytes_found).ok()?;
            (object_bytes(&shape) == source.bytes).then_some((shape, [0; 32]))
        };
        let Some((shape, hash)) = known.or_else(by_length) else {
            return Err(source.take_failure().unwrap_or_else(|| {
                Error::damaged(format!("neither header of the parity of pack {pack} can be read"))
            }));
        };
        if source.bytes != object_bytes(&shape) {
            faults.push("it has another length than it should");
        }
        let mut sidecar = Sidecar { shape, source, tables: Default::default(), faults };
        sidecar.read_tables(&hash);
        Ok(sidecar)
    }

    fn read_tables(&mut self, hash: &[u8; 32]) {
        let bytes = table_bytes(&self.shape);
        // What is there of each: an object that was cut short may end within the first, or begin within the second.
        let room = bytes.min(self.source.bytes.saturating_sub(HEADER_BYTES as u64));
        let places =
            [(HEADER_BYTES as u64, 0), (self.source.bytes.saturating_sub(HEADER_BYTES as u64 + room), bytes - room)];
        for (number, (at, missing)) in places.into_iter().enumerate() {
            let table = usize::try_from(room).ok().and_then(|room| self.source.read(at, room)).unwrap_or_default();
            if blake3::hash(&table).as_bytes() != hash {
                self.faults.push(["its first table is damaged", "its second table is damaged"][number]);
            }
            self.tables[number] = Table { missing: usize::try_from(missing).unwrap_or(usize::MAX), bytes: table };
        }
    }

    /// True if these are the bytes of the shard of this number, those of the pack counted first.
    pub(super) fn is_right(&self, shard: usize, bytes: &[u8]) -> bool {
        is_right(&self.tables, shard, bytes)
    }

    /// Where each parity shard is right: none where it is not. With `moved` also those that stand elsewhere because the
    /// object has lost or gained bytes.
    pub(super) fn locate(&mut self, moved: bool) -> Vec<Option<u64>> {
        let Sidecar { shape, source, tables, .. } = self;
        let front = HEADER_BYTES as u64 + table_bytes(shape);
        let place = |shard: usize| (front + (shard * shape.shard_bytes) as u64, shape.shard_bytes);
        let shift = if moved { shift(object_bytes(shape), source.bytes) } else { 0 };
        source.locate(shape.parity_shards, &place, shift, &|n, bytes| is_right(tables, shape.data_shards + n, bytes))
    }
}

/// What there is of a table of checksums.
#[derive(Default)]
struct Table {
    /// How many bytes of it are missing at its beginning.
    missing: usize,
    bytes: Vec<u8>,
}

impl Table {
    /// The checksum that stands at this place of the whole table.
    fn at(&self, place: usize) -> Option<&[u8]> {
        let at = place.checked_sub(self.missing)?;
        self.bytes.get(at..at.checked_add(CHECKSUM_BYTES)?)
    }
}

fn is_right(tables: &[Table; 2], shard: usize, bytes: &[u8]) -> bool {
    let found = checksum(bytes);
    let at = shard * CHECKSUM_BYTES;
    is_planted("shard-checksums-ignored") || tables.iter().any(|table| table.at(at) == Some(&found[..]))
}

/// How far behind its place the end of an object is; both lengths are far below the largest.
pub(super) fn shift(bytes: u64, found: u64) -> i64 {
    i64::try_from(found).unwrap_or(i64::MAX).saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX))
}
