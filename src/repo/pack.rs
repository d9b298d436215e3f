//! Packs: many frames and the table of them, in one object.
//!
//! A pack is named by the BLAKE3 hash of its bytes, so any change to it is seen without a key. Its header carries the
//! transaction that wrote it, so two transactions never produce the same name. What frames hold is not looked at here.
//!
//! ```text
//! header   64: magic "CKPTPACK", version 1, envelope, kind, header length u32, repository 16, transaction 16, random 16;
//!          96 more in an encrypted repository, where frames and table are sealed: see `pack_seal`
//! frames   back to back
//! table    see `pack_table`
//! trailer  64: table offset u64, table bytes u32, frames u32, BLAKE3(header, table, those 16 bytes) 32, zero 8, magic "CKPTPEND"
//! ```

use super::keys::Keys;
use super::pack_body::{PackBody, PublishedBody};
use super::pack_seal::{self, PackSeal, SEALED_HEADER_BYTES};
use super::pack_table::{self, FrameRecord};
use super::{Repo, names};
use crate::bytes::{ByteRange, bounded_len};
use crate::codec::seal::{Cipher, TAG_BYTES};
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, RepositoryId, SnapshotId};
use crate::storage::{ObjectName, Storage};
use std::borrow::Cow;

pub use super::pack_kind::PackKind;

/// Bytes of the header of a pack that is not sealed, and of what headers have in common.
const HEADER_BYTES: usize = 64;
/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 64;
/// The longest table that is written or believed: a pack of the smallest chunks stays far below.
const TABLE_BYTES_MAX: u64 = 128 << 20;
/// The table of an ordinary pack and its trailer fit in this many bytes, so one read brings both.
const TAIL_BYTES: u64 = 64 << 10;
const MAGIC: &[u8; 8] = b"CKPTPACK";
const MAGIC_END: &[u8; 8] = b"CKPTPEND";

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
    /// True if its frames and its table are sealed.
    pub is_sealed: bool,
    /// Its table, opened.
    pub table: Vec<u8>,
}

/// Bytes of the header of a pack.
pub(super) fn header_bytes(is_sealed: bool) -> u64 {
    let bytes = if is_sealed { SEALED_HEADER_BYTES } else { HEADER_BYTES };
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl PackSummary {
    /// Bytes before the first frame.
    pub fn header_bytes(&self) -> u64 {
        header_bytes(self.is_sealed)
    }

    /// The frames of the table, checked to fill the pack exactly.
    pub fn frames(&self) -> Result<Vec<FrameRecord>> {
        let (frames, end) = pack_table::parse(&self.table, self.header_bytes())?;
        let tag_bytes = if self.is_sealed { TAG_BYTES } else { 0 };
        let table_bytes = u64::try_from(self.table.len() + tag_bytes).unwrap_or(u64::MAX);
        if end.checked_add(table_bytes).and_then(|n| n.checked_add(TRAILER_BYTES)) != Some(self.bytes) {
            return Err(Error::damaged(format!(
                "the table of pack {} does not fill its {} bytes",
                self.id, self.bytes
            )));
        }
        Ok(frames)
    }
}

/// What a pack is sealed with while it is written.
struct Sealing {
    frames: PackSeal,
    table: Cipher,
}

/// Writes one pack, frame by frame, in bounded memory.
pub struct PackWriter {
    body: PackBody,
    header: Vec<u8>,
    seal: Option<Sealing>,
    kind: PackKind,
    transaction: SnapshotId,
    table: Vec<u8>,
    frames: u32,
}

impl PackWriter {
    /// Begins a pack that is written to `body`.
    pub(super) fn create(
        body: PackBody,
        keys: &Keys,
        repository: RepositoryId,
        transaction: SnapshotId,
        kind: PackKind,
    ) -> Result<PackWriter> {
        let mut nonce = [0u8; 16];
        getrandom::fill(&mut nonce).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
        let mut header = Vec::with_capacity(SEALED_HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&1u16.to_le_bytes());
        header.extend_from_slice(&[u8::from(keys.is_encrypted()), kind.code()]);
        header.extend_from_slice(&u32::try_from(keys.pack_header_bytes()).unwrap_or(u32::MAX).to_le_bytes());
        header.extend_from_slice(repository.as_bytes());
        header.extend_from_slice(transaction.as_bytes());
        header.extend_from_slice(&nonce);
        let seal = match keys.bundle() {
            None => None,
            Some(bundle) => {
                let frames = PackSeal::begin(&mut header, bundle, kind)?;
                Some(Sealing { frames, table: pack_seal::table_cipher(bundle, &header) })
            }
        };
        let mut writer = PackWriter { body, header: Vec::new(), seal, kind, transaction, table: Vec::new(), frames: 0 };
        writer.body.write(&header)?;
        writer.header = header;
        Ok(writer)
    }

    /// Appends frames that lie back to back in `bytes`; `records` describe them in order (their offsets are ignored), with
    /// the lengths that they have there. They are sealed if the repository is encrypted.
    pub fn append(&mut self, bytes: &[u8], records: &[FrameRecord]) -> Result<()> {
        let described: u64 = records.iter().map(|r| u64::from(r.stored_bytes)).sum();
        if described != u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
            return Err(Error::damaged("the frames appended to a pack are not those described"));
        }
        let Some(seal) = &self.seal else {
            self.body.write(bytes)?;
            return records.iter().try_for_each(|record| self.add_record(record));
        };
        let mut rest = bytes;
        for record in records {
            let (frame, behind) = rest.split_at(usize::try_from(record.stored_bytes).unwrap_or(0).min(rest.len()));
            rest = behind;
            let offset = self.body.bytes();
            let stored_bytes = u32::try_from(frame.len() + TAG_BYTES)
                .map_err(|_| Error::new(Kind::Failed, "a frame is longer than any may be"))?;
            self.body.write_filled(frame.len() + TAG_BYTES, |into| seal.frames.seal_frame(offset, frame, into))?;
            pack_table::append(&mut self.table, &FrameRecord { stored_bytes, ..record.clone() })?;
            self.frames += 1;
        }
        Ok(())
    }

    fn add_record(&mut self, record: &FrameRecord) -> Result<()> {
        pack_table::append(&mut self.table, record)?;
        self.frames += 1;
        Ok(())
    }

    /// Bytes of the pack so far, the table not counted.
    pub fn bytes(&self) -> u64 {
        self.body.bytes()
    }

    /// Ends the pack, makes it durable and gives it its name.
    pub(super) fn finish(mut self) -> Result<(PackSummary, PublishedBody)> {
        let table = std::mem::take(&mut self.table);
        let mut stored = Cow::Borrowed(&table);
        if let Some(seal) = &self.seal {
            seal.table.seal(self.body.bytes(), b"", stored.to_mut(), 0)?;
        }
        let table_bytes = u32::try_from(stored.len())
            .ok()
            .filter(|&n| u64::from(n) <= TABLE_BYTES_MAX)
            .ok_or_else(|| Error::new(Kind::Failed, "the table of a pack is too long"))?;
        let mut trailer = Vec::with_capacity(64);
        trailer.extend_from_slice(&self.body.bytes().to_le_bytes());
        trailer.extend_from_slice(&table_bytes.to_le_bytes());
        trailer.extend_from_slice(&self.frames.to_le_bytes());
        let checksum = tail_checksum(&self.header, &stored, &trailer);
        trailer.extend_from_slice(checksum.as_bytes());
        trailer.extend_from_slice(&[0; 8]);
        trailer.extend_from_slice(MAGIC_END);
        self.body.write(&stored)?;
        drop(stored);
        self.body.write(&trailer)?;
        let (id, bytes) = (PackId::from_bytes(*self.body.hash().as_bytes()), self.body.bytes());
        // A pack with this very name holds these very bytes: whoever wrote it, it serves.
        let (_, body) = self.body.publish(&names::pack(id)?)?;
        let (kind, transaction) = (self.kind, self.transaction);
        Ok((PackSummary { id, bytes, kind, transaction, is_sealed: self.seal.is_some(), table }, body))
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
    read_tail(repo, &name, bytes)
        .and_then(|tail| check_tail(repo.keys(), id, bytes, repo.id(), tail))
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
pub fn summary_of(keys: &Keys, object: &[u8], id: PackId, repository: RepositoryId) -> Result<PackSummary> {
    let bytes = u64::try_from(object.len()).unwrap_or(u64::MAX);
    let header_bytes = keys.pack_header_bytes();
    if bytes < header_bytes + TRAILER_BYTES {
        return Err(Error::damaged(format!("a pack of {bytes} bytes is too short")));
    }
    let trailer = object[object.len() - 64..].to_vec();
    let (table_offset, table_bytes) = parse_trailer(&trailer, header_bytes, bytes)?;
    let table = object[bounded_len(table_offset, bytes, "a pack")?..][..table_bytes].to_vec();
    let header = object[..bounded_len(header_bytes, bytes, "the header of a pack")?].to_vec();
    check_tail(keys, id, bytes, repository, Tail { header, table, trailer })
}

/// The header of a sealed pack, of the right repository as far as it says; what it seals is bound to it.
pub(super) fn read_sealed_header(repo: &Repo, id: PackId) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    repo.read_pack(id, ByteRange::new(0, header_bytes(true))?, &mut header)?;
    if header.len() != SEALED_HEADER_BYTES || &header[..8] != MAGIC || header[10] != 1 {
        return Err(Error::damaged("its header is not that of a sealed pack"));
    }
    if header[16..32] != repo.id().as_bytes()[..] {
        return Err(Error::damaged("it belongs to another repository"));
    }
    Ok(header)
}

/// What a pack has besides frames, as stored.
struct Tail {
    header: Vec<u8>,
    table: Vec<u8>,
    trailer: Vec<u8>,
}

fn read_tail(repo: &Repo, name: &ObjectName, bytes: u64) -> Result<Tail> {
    let (storage, header_bytes) = (repo.storage(), repo.keys().pack_header_bytes());
    if bytes < header_bytes + TRAILER_BYTES {
        return Err(Error::damaged(format!("{bytes} bytes are too short for a pack")));
    }
    let mut header = Vec::new();
    storage.read_range(name, ByteRange::new(0, header_bytes)?, &mut header)?;
    let tail_bytes = TAIL_BYTES.min(bytes);
    let mut tail = Vec::new();
    storage.read_range(name, ByteRange::new(bytes - tail_bytes, tail_bytes)?, &mut tail)?;
    let trailer = tail.split_off(tail.len() - 64);
    let (table_offset, table_bytes) = parse_trailer(&trailer, header_bytes, bytes)?;
    if table_bytes <= tail.len() {
        let table = tail.split_off(tail.len() - table_bytes);
        return Ok(Tail { header, table, trailer });
    }
    let mut table = Vec::new();
    storage.read_range(name, ByteRange::new(table_offset, bytes - TRAILER_BYTES - table_offset)?, &mut table)?;
    Ok(Tail { header, table, trailer })
}

/// The table's offset and length, checked to lie right before the trailer.
fn parse_trailer(trailer: &[u8], header_bytes: u64, pack_bytes: u64) -> Result<(u64, usize)> {
    let field = |at: usize| trailer.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (table_offset, table_bytes) = (field(0), field(8) & u64::from(u32::MAX));
    if &trailer[56..] != MAGIC_END {
        return Err(Error::damaged("the end of a pack is not there"));
    }
    let end = table_offset.checked_add(table_bytes).and_then(|n| n.checked_add(TRAILER_BYTES));
    if table_offset < header_bytes || end != Some(pack_bytes) {
        return Err(Error::damaged("the table of a pack does not lie before its end"));
    }
    Ok((table_offset, bounded_len(table_bytes, TABLE_BYTES_MAX, "the table of a pack")?))
}

fn check_tail(keys: &Keys, id: PackId, bytes: u64, repository: RepositoryId, tail: Tail) -> Result<PackSummary> {
    let Tail { header, mut table, trailer } = tail;
    if tail_checksum(&header, &table, &trailer[..16]).as_bytes() != &trailer[16..48] {
        return Err(Error::damaged(format!("the table of pack {id} does not match its checksum")));
    }
    if &header[..8] != MAGIC {
        return Err(Error::damaged(format!("pack {id} does not begin as one")));
    }
    if header[8..10] != 1u16.to_le_bytes() || header[10] > 1 {
        return Err(Error::new(Kind::FormatTooNew, format!("pack {id} was written by a newer version")));
    }
    let header_bytes = header[12..16].try_into().map_or(0, u32::from_le_bytes);
    if (header[10] == 1) != keys.is_encrypted() || u64::from(header_bytes) != keys.pack_header_bytes() {
        return Err(Error::damaged(format!("pack {id} is sealed in another way than its repository")));
    }
    if header[16..32] != repository.as_bytes()[..] {
        return Err(Error::damaged(format!("pack {id} belongs to another repository")));
    }
    if let Some(bundle) = keys.bundle() {
        let offset = trailer[..8].try_into().map_or(0, u64::from_le_bytes);
        let opened = pack_seal::table_cipher(bundle, &header).open(offset, b"", &mut table);
        let table_bytes = opened.map_err(|e| e.while_doing(format!("the table of pack {id}")))?.len();
        table.truncate(table_bytes);
    }
    let summary = PackSummary {
        id,
        bytes,
        kind: PackKind::from_code(header[11])?,
        transaction: SnapshotId::from_slice(&header[32..48])?,
        is_sealed: keys.is_encrypted(),
        table,
    };
    let frames = u32::try_from(summary.frames()?.len()).unwrap_or(u32::MAX);
    if trailer[12..16] != frames.to_le_bytes() {
        return Err(Error::damaged(format!("the table of pack {id} has {frames} frames, its end says otherwise")));
    }
    Ok(summary)
}
