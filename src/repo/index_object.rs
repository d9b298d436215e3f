//! Index objects: the tables of all the packs that one transaction wrote or adopted, in one object.
//!
//! They make opening a repository fast; nothing is lost with them, since every pack carries its own table. Each pack's
//! section has its own checksum, so damage costs the sections it hits and no more.
//!
//! ```text
//! header  64: magic "CKPTINDX", version 1, envelope, zero 5, repository 16, transaction 16, zero 16
//! section: 1, pack id 32, pack bytes u64, kind 1, transaction of the pack 16, table bytes u32, table, BLAKE3 of the section so far 32
//!          in an encrypted repository (envelope 1) the table is sealed, its bytes count the tag
//! end:     0, number of sections u32, BLAKE3 of the whole object so far 32
//! ```

use super::keys::Keys;
use super::pack::{PackKind, PackSummary};
use super::pack_seal;
use super::{Repo, names};
use crate::bytes::{ByteRange, bounded_len};
use crate::codec::seal::TAG_BYTES;
use crate::error::{Error, Kind, Result};
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::sabotage::is_planted;
use crate::storage::{ObjectName, ObjectWriter, Published, Storage};

const MAGIC: &[u8; 8] = b"CKPTINDX";
const HEADER_BYTES: u64 = 64;
const SECTION_HEAD_BYTES: usize = 1 + 32 + 8 + 1 + 16 + 4;
const CHECKSUM_BYTES: usize = 32;
const TABLE_BYTES_MAX: u64 = 128 << 20;
/// How much of an index object is read at once.
const WINDOW_BYTES: u64 = 4 << 20;

/// Writes an index object, section by section.
pub struct IndexWriter {
    object: Box<dyn ObjectWriter>,
    hasher: blake3::Hasher,
    sections: u32,
}

impl IndexWriter {
    /// Begins an index object.
    pub fn create(repo: &Repo, transaction: SnapshotId) -> Result<IndexWriter> {
        let mut header = Vec::with_capacity(64);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&1u16.to_le_bytes());
        header.extend_from_slice(&[u8::from(repo.keys().is_encrypted()), 0, 0, 0, 0, 0]);
        header.extend_from_slice(repo.id().as_bytes());
        header.extend_from_slice(transaction.as_bytes());
        header.extend_from_slice(&[0; 16]);
        let object = repo.storage().create_for(names::INDEX, transaction)?;
        let mut writer = IndexWriter { object, hasher: blake3::Hasher::new(), sections: 0 };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Adds the table of one pack.
    pub fn append(&mut self, keys: &Keys, pack: &PackSummary) -> Result<()> {
        let tag_bytes = if keys.is_encrypted() { TAG_BYTES } else { 0 };
        let table_bytes = u32::try_from(pack.table.len() + tag_bytes)
            .map_err(|_| Error::new(Kind::Failed, "the table of a pack is too long for an index object"))?;
        let mut section = Vec::with_capacity(SECTION_HEAD_BYTES + pack.table.len() + tag_bytes + CHECKSUM_BYTES);
        section.push(1);
        section.extend_from_slice(pack.id.as_bytes());
        section.extend_from_slice(&pack.bytes.to_le_bytes());
        section.push(pack.kind.code());
        section.extend_from_slice(pack.transaction.as_bytes());
        section.extend_from_slice(&table_bytes.to_le_bytes());
        section.extend_from_slice(&pack.table);
        if let Some(bundle) = keys.bundle() {
            let cipher = pack_seal::section_cipher(bundle, &section[..SECTION_HEAD_BYTES]);
            cipher.seal(0, b"", &mut section, SECTION_HEAD_BYTES)?;
        }
        let checksum = blake3::hash(&section);
        section.extend_from_slice(checksum.as_bytes());
        self.sections += 1;
        self.write(&section)
    }

    /// Ends the object, makes it durable and names it.
    pub fn finish(mut self, id: IndexId) -> Result<()> {
        let mut end = vec![0u8];
        end.extend_from_slice(&self.sections.to_le_bytes());
        self.write(&end)?;
        let checksum = self.hasher.finalize();
        self.object.write(checksum.as_bytes())?;
        match self.object.publish(&names::index(id)?)? {
            Published::Created => Ok(()),
            Published::AlreadyExists => {
                Err(Error::new(Kind::Failed, format!("index/{id} was there before its writer")))
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.object.write(bytes)
    }
}

/// Reads an index object and hands each sound section to `visit`, in bounded memory.
///
/// Returns false if anything in it is damaged; the sections before the damage have been visited then. An error means
/// that it could not be read at all, or came from `visit`.
pub fn read(repo: &Repo, id: IndexId, visit: &mut dyn FnMut(PackSummary) -> Result<()>) -> Result<bool> {
    let storage = repo.storage();
    let name = names::index(id)?;
    let bytes = storage.size(&name)?.ok_or_else(|| Error::new(Kind::Missing, format!("{name} is missing")))?;
    let mut input =
        Windowed { storage, name: &name, bytes, at: 0, window: Vec::new(), taken: 0, hasher: blake3::Hasher::new() };
    match read_sections(&mut input, id, repo, visit) {
        Ok(()) => Ok(true),
        Err(ReadError::Damage) => Ok(false),
        Err(ReadError::Other(error)) => Err(error),
    }
}

enum ReadError {
    Damage,
    Other(Error),
}

/// Errors that stem from the bytes of the object are damage; everything else is passed on.
fn sort_error(error: Error) -> ReadError {
    if error.kind() == Kind::Damaged { ReadError::Damage } else { ReadError::Other(error) }
}

fn read_sections(
    input: &mut Windowed<'_>,
    id: IndexId,
    repo: &Repo,
    visit: &mut dyn FnMut(PackSummary) -> Result<()>,
) -> Result<(), ReadError> {
    let header = input.take(usize::try_from(HEADER_BYTES).unwrap_or(64)).map_err(sort_error)?;
    // An object under another's name is sound by itself, but what belongs there is gone.
    if &header[..8] != MAGIC || header[16..32] != repo.id().as_bytes()[..] || header[32..48] != id.as_bytes()[..] {
        return Err(ReadError::Damage);
    }
    if header[8..10] != 1u16.to_le_bytes() || header[10] > 1 {
        // A flipped bit must not look like a newer version: only what the checksum at the end covers is believed.
        if !input.ends_with_own_checksum().map_err(sort_error)? {
            return Err(ReadError::Damage);
        }
        return Err(ReadError::Other(Error::new(Kind::FormatTooNew, format!("{} is of a newer format", input.name))));
    }
    if (header[10] == 1) != repo.keys().is_encrypted() {
        return Err(ReadError::Damage);
    }
    let mut sections = 0u32;
    loop {
        let tag = input.take(1).map_err(sort_error)?[0];
        if tag != 1 {
            let count = input.take(4).map_err(sort_error)?;
            let computed = input.hasher.finalize();
            let stored = input.take(CHECKSUM_BYTES).map_err(sort_error)?;
            let ends_well = tag == 0
                && count == sections.to_le_bytes()
                && stored == computed.as_bytes()
                && input.at - input.left() == input.bytes;
            return if ends_well { Ok(()) } else { Err(ReadError::Damage) };
        }
        let pack = read_section(input, repo.keys()).map_err(sort_error)?;
        visit(pack).map_err(ReadError::Other)?;
        sections += 1;
    }
}

fn read_section(input: &mut Windowed<'_>, keys: &Keys) -> Result<PackSummary> {
    let head = input.take(SECTION_HEAD_BYTES - 1)?;
    let table_bytes = head[57..61].try_into().map_or(0, u32::from_le_bytes);
    let mut table =
        input.take(bounded_len(u64::from(table_bytes), TABLE_BYTES_MAX, "a section of an index object")?)?;
    let checksum = input.take(CHECKSUM_BYTES)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[1]).update(&head).update(&table);
    if hasher.finalize().as_bytes() != checksum.as_slice() && !is_planted("index-section-checksum-ignored") {
        return Err(Error::damaged("a section of an index object does not match its checksum"));
    }
    if let Some(bundle) = keys.bundle() {
        let cipher = pack_seal::section_cipher(bundle, &[&[1], head.as_slice()].concat());
        let bytes = cipher.open(0, b"", &mut table)?.len();
        table.truncate(bytes);
    }
    let pack = PackSummary {
        id: PackId::from_slice(&head[0..32])?,
        bytes: head[32..40].try_into().map_or(0, u64::from_le_bytes),
        kind: PackKind::from_code(head[40])?,
        transaction: SnapshotId::from_slice(&head[41..57])?,
        is_sealed: keys.is_encrypted(),
        table,
    };
    pack.frames()?;
    Ok(pack)
}

/// An object read front to back through a bounded window.
struct Windowed<'a> {
    storage: &'a dyn Storage,
    name: &'a ObjectName,
    bytes: u64,
    at: u64,
    window: Vec<u8>,
    taken: usize,
    hasher: blake3::Hasher,
}

impl Windowed<'_> {
    fn left(&self) -> u64 {
        u64::try_from(self.window.len() - self.taken).unwrap_or(0)
    }

    /// Reads on to the end; true if the last bytes are the checksum of all before them, as in every version.
    fn ends_with_own_checksum(&mut self) -> Result<bool> {
        let checksum_bytes = u64::try_from(CHECKSUM_BYTES).unwrap_or(0);
        loop {
            let left = (self.left() + (self.bytes - self.at)).saturating_sub(checksum_bytes);
            if left == 0 {
                let computed = self.hasher.finalize();
                return Ok(self.take(CHECKSUM_BYTES)? == computed.as_bytes());
            }
            self.take(usize::try_from(left.min(WINDOW_BYTES)).unwrap_or(CHECKSUM_BYTES))?;
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.left() < wanted {
            let more = (wanted - self.left()).max(WINDOW_BYTES).min(self.bytes - self.at);
            self.window.drain(..self.taken);
            self.taken = 0;
            self.storage.read_range(self.name, ByteRange::new(self.at, more)?, &mut self.window)?;
            self.at += more;
        }
        let taken = self.window.get(self.taken..self.taken + bytes);
        let taken = taken.ok_or_else(|| Error::damaged(format!("{} ends too early", self.name)))?.to_vec();
        self.taken += bytes;
        self.hasher.update(&taken);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node, noise};

    #[test]
    fn a_section_that_nobody_wrote_is_never_handed_out() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        test_support::save(&repo, 1, &[("a", Node::File(noise(1, 100_000)))]);
        let objects = storage.objects();
        let (name, object) = objects.iter().find(|(name, _)| names::index_id(name).is_some()).expect("an index object");
        let id = names::index_id(name).expect("its id");
        let visit = || {
            let mut packs = Vec::new();
            let is_whole = read(&repo, id, &mut |pack| {
                packs.push(pack);
                Ok(())
            });
            (is_whole.expect("readable"), packs)
        };
        let (is_whole, sound) = visit();
        assert!(is_whole && sound.len() > 1);
        for at in 0..object.len() {
            assert!(storage.corrupt(name, at, 1));
            let (is_whole, packs) = visit();
            assert!(!is_whole && packs.iter().all(|pack| sound.contains(pack)), "byte {at}");
            assert!(storage.corrupt(name, at, 1));
        }
    }
}
