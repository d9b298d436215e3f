//! Packs: many frames and the table of them, in one object.
//!
//! A pack is named by the BLAKE3 hash of its bytes, so any change to it is seen without a key. Its header carries the
//! transaction that wrote it, so two transactions never produce the same name. What frames hold is not looked at here.
//!
//! ```text
//! header   64: magic "CKPTPACK", version 1, envelope 0, kind, 0, header length u32, repository 16, transaction 16, random 16
//! frames   back to back
//! table    see `pack_table`
//! trailer  64: table offset u64, table bytes u32, frames u32, BLAKE3(header, table, those 16 bytes) 32, zero 8, magic "CKPTPEND"
//! ```

use super::keys::Keys;
use super::pack_table::{self, FrameRecord};
use super::{Repo, names};
use crate::bytes::{ByteRange, bounded_len};
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, RepositoryId, SnapshotId};
use crate::storage::{ObjectName, ObjectWriter, Storage};

/// Bytes of the header of a pack that is not sealed.
pub const HEADER_BYTES: u64 = 64;
/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 64;
/// The longest table that is written or believed: a pack of the smallest chunks stays far below.
const TABLE_BYTES_MAX: u64 = 128 << 20;
/// The table of an ordinary pack and its trailer fit in this many bytes, so one read brings both.
const TAIL_BYTES: u64 = 64 << 10;
const MAGIC: &[u8; 8] = b"CKPTPACK";
const MAGIC_END: &[u8; 8] = b"CKPTPEND";

/// What the frames of a pack hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// Content of files.
    Data,
    /// Entries, chunk lists and their nodes: apart, so that looking at a snapshot reads little.
    Tree,
}

impl PackKind {
    /// The byte that stands for the kind.
    pub fn code(self) -> u8 {
        match self {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }

    /// The kind that `code` stands for.
    pub fn from_code(code: u8) -> Result<PackKind> {
        match code {
            0 => Ok(PackKind::Data),
            1 => Ok(PackKind::Tree),
            _ => Err(Error::damaged(format!("a pack of unknown kind {code}"))),
        }
    }
}

/// What is known of a pack without its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// Its name.
    pub id: PackId,
    /// Its length.
    pub bytes: u64,
    /// What its frames hold.
    pub kind: PackKind,
    /// The transaction that wrote it.
    pub transaction: SnapshotId,
    /// Its table as stored.
    pub table: Vec<u8>,
}

impl PackSummary {
    /// The frames of the table, checked to fill the pack exactly.
    pub fn frames(&self) -> Result<Vec<FrameRecord>> {
        let (frames, end) = pack_table::parse(&self.table, HEADER_BYTES)?;
        let table_bytes = u64::try_from(self.table.len()).unwrap_or(u64::MAX);
        if end.checked_add(table_bytes).and_then(|n| n.checked_add(TRAILER_BYTES)) != Some(self.bytes) {
            return Err(Error::damaged(format!(
                "the table of pack {} does not fill its {} bytes",
                self.id, self.bytes
            )));
        }
        Ok(frames)
    }
}

/// Writes one pack, frame by frame, in bounded memory.
pub struct PackWriter {
    object: Box<dyn ObjectWriter>,
    hasher: blake3::Hasher,
    header: Vec<u8>,
    kind: PackKind,
    transaction: SnapshotId,
    bytes: u64,
    table: Vec<u8>,
    frames: u32,
    kept: Option<Kept>,
}

/// All that was written so far, for who needs a whole pack in memory.
struct Kept {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl PackWriter {
    /// Begins a pack that is written to `object`.
    pub fn create(
        object: Box<dyn ObjectWriter>,
        _keys: &Keys,
        repository: RepositoryId,
        transaction: SnapshotId,
        kind: PackKind,
    ) -> Result<PackWriter> {
        let mut nonce = [0u8; 16];
        getrandom::fill(&mut nonce).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
        let mut header = Vec::with_capacity(64);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&1u16.to_le_bytes());
        header.extend_from_slice(&[0, kind.code()]);
        header.extend_from_slice(&64u32.to_le_bytes());
        header.extend_from_slice(repository.as_bytes());
        header.extend_from_slice(transaction.as_bytes());
        header.extend_from_slice(&nonce);
        let mut writer = PackWriter {
            object,
            hasher: blake3::Hasher::new(),
            header: Vec::new(),
            kind,
            transaction,
            bytes: 0,
            table: Vec::new(),
            frames: 0,
            kept: None,
        };
        writer.write(&header)?;
        writer.header = header;
        Ok(writer)
    }

    /// Keeps all that is written in `buffer`, unless it becomes more than `bytes_max`. To be called before any frame comes.
    pub fn keep(&mut self, mut buffer: Vec<u8>, bytes_max: usize) {
        buffer.clear();
        buffer.extend_from_slice(&self.header);
        self.kept = Some(Kept { bytes: buffer, bytes_max });
    }

    /// Appends frames that lie back to back in `bytes`; `records` describe them in order (their offsets are ignored).
    pub fn append(&mut self, bytes: &[u8], records: &[FrameRecord]) -> Result<()> {
        let described: u64 = records.iter().map(|r| u64::from(r.stored_bytes)).sum();
        if described != u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
            return Err(Error::damaged("the frames appended to a pack are not those described"));
        }
        self.write(bytes)?;
        for record in records {
            pack_table::append(&mut self.table, record)?;
            self.frames += 1;
        }
        Ok(())
    }

    /// Bytes of the pack so far, the table not counted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the pack, makes it durable and gives it its name.
    pub fn finish(self) -> Result<PackSummary> {
        self.finish_keeping().map(|(summary, _)| summary)
    }

    /// As [`PackWriter::finish`]; with all of the pack if it was kept.
    pub fn finish_keeping(mut self) -> Result<(PackSummary, Option<Vec<u8>>)> {
        let table = std::mem::take(&mut self.table);
        let table_bytes = u32::try_from(table.len())
            .ok()
            .filter(|&n| u64::from(n) <= TABLE_BYTES_MAX)
            .ok_or_else(|| Error::new(Kind::Failed, "the table of a pack is too long"))?;
        let mut trailer = Vec::with_capacity(64);
        trailer.extend_from_slice(&self.bytes.to_le_bytes());
        trailer.extend_from_slice(&table_bytes.to_le_bytes());
        trailer.extend_from_slice(&self.frames.to_le_bytes());
        let checksum = tail_checksum(&self.header, &table, &trailer);
        trailer.extend_from_slice(checksum.as_bytes());
        trailer.extend_from_slice(&[0; 8]);
        trailer.extend_from_slice(MAGIC_END);
        self.write(&table)?;
        self.write(&trailer)?;
        let id = PackId::from_bytes(*self.hasher.finalize().as_bytes());
        // A pack with this very name holds these very bytes: whoever wrote it, it serves.
        self.object.publish(&names::pack(id)?)?;
        let summary = PackSummary { id, bytes: self.bytes, kind: self.kind, transaction: self.transaction, table };
        Ok((summary, self.kept.map(|kept| kept.bytes)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.object.write(bytes)?;
        self.hasher.update(bytes);
        if let Some(kept) = &mut self.kept {
            if kept.bytes.len() + bytes.len() > kept.bytes_max {
                self.kept = None;
            } else {
                kept.bytes.extend_from_slice(bytes);
            }
        }
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn tail_checksum(header: &[u8], table: &[u8], trailer_front: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(table).update(trailer_front);
    hasher.finalize()
}

/// Reads header, table and trailer of a pack of `bytes` bytes; two or three small reads, no frame is touched.
pub fn read_summary(repo: &Repo, id: PackId, bytes: u64) -> Result<PackSummary> {
    let name = names::pack(id)?;
    read_tail(repo.storage(), &name, bytes)
        .and_then(|(header, table, trailer)| check_tail(id, bytes, repo.id(), &header, table, &trailer))
        .map_err(|e| e.while_doing(&name))
}

/// True if the stored bytes of the pack are those it is named by. Reads all of it, in bounded memory.
pub fn matches_its_name(storage: &dyn Storage, id: PackId, bytes: u64) -> Result<bool> {
    const WINDOW_BYTES: u64 = 4 << 20;
    let name = names::pack(id)?;
    let mut hasher = blake3::Hasher::new();
    let mut window = Vec::new();
    let mut at = 0;
    while at < bytes {
        let range = ByteRange::new(at, WINDOW_BYTES.min(bytes - at))?;
        window.clear();
        storage.read_range(&name, range, &mut window)?;
        hasher.update(&window);
        at = range.end();
    }
    Ok(hasher.finalize().as_bytes() == id.as_bytes())
}

/// Takes the whole pack in `object` apart without any storage: for verification.
pub fn summary_of(_keys: &Keys, object: &[u8], id: PackId, repository: RepositoryId) -> Result<PackSummary> {
    let bytes = u64::try_from(object.len()).unwrap_or(u64::MAX);
    let (table_offset, table_bytes) = match object.len().checked_sub(64).map(|at| parse_trailer(&object[at..], bytes)) {
        Some(parsed) => parsed?,
        None => return Err(Error::damaged(format!("a pack of {bytes} bytes is too short"))),
    };
    let table = &object[bounded_len(table_offset, bytes, "a pack")?..][..table_bytes];
    check_tail(id, bytes, repository, &object[..64], table.to_vec(), &object[object.len() - 64..])
}

fn read_tail(storage: &dyn Storage, name: &ObjectName, bytes: u64) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    if bytes < HEADER_BYTES + TRAILER_BYTES {
        return Err(Error::damaged(format!("{bytes} bytes are too short for a pack")));
    }
    let mut header = Vec::new();
    storage.read_range(name, ByteRange::new(0, HEADER_BYTES)?, &mut header)?;
    let tail_bytes = TAIL_BYTES.min(bytes);
    let mut tail = Vec::new();
    storage.read_range(name, ByteRange::new(bytes - tail_bytes, tail_bytes)?, &mut tail)?;
    let trailer = tail.split_off(tail.len() - 64);
    let (table_offset, table_bytes) = parse_trailer(&trailer, bytes)?;
    if table_bytes <= tail.len() {
        return Ok((header, tail.split_off(tail.len() - table_bytes), trailer));
    }
    let mut table = Vec::new();
    storage.read_range(name, ByteRange::new(table_offset, bytes - TRAILER_BYTES - table_offset)?, &mut table)?;
    Ok((header, table, trailer))
}

/// The table's offset and length, checked to lie right before the trailer.
fn parse_trailer(trailer: &[u8], pack_bytes: u64) -> Result<(u64, usize)> {
    let field = |at: usize| trailer.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (table_offset, table_bytes) = (field(0), field(8) & u64::from(u32::MAX));
    if &trailer[56..] != MAGIC_END {
        return Err(Error::damaged("the end of a pack is not there"));
    }
    let end = table_offset.checked_add(table_bytes).and_then(|n| n.checked_add(TRAILER_BYTES));
    if table_offset < HEADER_BYTES || end != Some(pack_bytes) {
        return Err(Error::damaged("the table of a pack does not lie before its end"));
    }
    Ok((table_offset, bounded_len(table_bytes, TABLE_BYTES_MAX, "the table of a pack")?))
}

fn check_tail(
    id: PackId,
    bytes: u64,
    repository: RepositoryId,
    header: &[u8],
    table: Vec<u8>,
    trailer: &[u8],
) -> Result<PackSummary> {
    if tail_checksum(header, &table, &trailer[..16]).as_bytes() != &trailer[16..48] {
        return Err(Error::damaged(format!("the table of pack {id} does not match its checksum")));
    }
    if &header[..8] != MAGIC {
        return Err(Error::damaged(format!("pack {id} does not begin as one")));
    }
    if header[8..10] != 1u16.to_le_bytes() || header[10] != 0 || header[12..16] != 64u32.to_le_bytes() {
        return Err(Error::new(Kind::FormatTooNew, format!("pack {id} was written by a newer version")));
    }
    if header[16..32] != repository.as_bytes()[..] {
        return Err(Error::damaged(format!("pack {id} belongs to another repository")));
    }
    let summary = PackSummary {
        id,
        bytes,
        kind: PackKind::from_code(header[11])?,
        transaction: SnapshotId::from_slice(&header[32..48])?,
        table,
    };
    let frames = u32::try_from(summary.frames()?.len()).unwrap_or(u32::MAX);
    if trailer[12..16] != frames.to_le_bytes() {
        return Err(Error::damaged(format!("the table of pack {id} has {frames} frames, its end says otherwise")));
    }
    Ok(summary)
}
