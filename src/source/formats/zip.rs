//! Zip archives with stored entries, as `torch.save` and `numpy.savez` write them.
//!
//! Read are the end record, the directory, and the local header of each entry that is asked for: a payload begins where
//! that header ends, which the directory does not say. Entries lie in order and never overlap, so what is made from them
//! is never more than the file. Not done: decompression, encryption, archives of several volumes.

use super::fields::Fields;
use super::header_reader::{HeaderReader, Refusal, range};
use crate::bytes::ByteRange;

/// The first bytes of an archive with at least one entry.
pub(super) const MAGIC: [u8; 4] = *b"PK\x03\x04";

/// An entry whose bytes are its content.
pub(super) const STORED: u16 = 0;

const END_SIGNATURE: u32 = 0x0605_4b50;
const END_BYTES: u64 = 22;
/// The longest comment behind an end record.
pub(super) const COMMENT_BYTES_MAX: u64 = u16::MAX as u64;
const LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const LOCATOR_BYTES: u64 = 20;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_BYTES: u64 = 56;
const DIRECTORY_SIGNATURE: u32 = 0x0201_4b50;
const DIRECTORY_ENTRY_BYTES: u64 = 46;
pub(super) const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
pub(super) const LOCAL_BYTES: u64 = 30;

/// The flag of sizes that stand behind the payload and not in front of it.
pub(super) const SIZES_FOLLOW: u16 = 1 << 3;
const ENCRYPTED: u16 = 1;
const ZIP64_EXTRA: u16 = 1;

/// The entries of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    /// In the order of the file.
    pub(super) entries: Vec<Entry>,
    /// True if the file ends before the archive does.
    pub(super) is_truncated: bool,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// The path inside the archive.
    pub(super) name: Vec<u8>,
    /// How its bytes are coded: [`STORED`] or something that is not understood.
    pub(super) method: u16,
    /// The bytes it takes in the archive.
    pub(super) bytes: u64,
    /// Where its local header begins.
    pub(super) header: u64,
    /// It ends here at the latest: where the next one or the directory begins.
    pub(super) limit: u64,
}

impl Archive {
    /// Reads the directory of the archive that fills `place`; none if no such archive ends there.
    pub(super) fn open(reader: &mut HeaderReader<'_>, place: ByteRange) -> Result<Option<Archive>, Refusal> {
        match End::find(reader, place, COMMENT_BYTES_MAX)? {
            Some(end) if end.start == place.offset() => Archive::at_end(reader, &end).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads the directory that an end record points to.
    pub(super) fn at_end(reader: &mut HeaderReader<'_>, end: &End) -> Result<Archive, Refusal> {
        if end.entries > end.directory.len() / DIRECTORY_ENTRY_BYTES {
            return Err(Refusal::malformed("its directory is too short for its entries"));
        }
        let directory = reader.read(end.directory.offset(), end.directory.len())?;
        let mut fields = Fields(&directory);
        let mut entries = Vec::new();
        for _ in 0..end.entries {
            let entry = Entry::read(&mut fields, end.start);
            entries.push(entry.ok_or_else(|| Refusal::malformed("an entry of its directory is damaged"))?);
        }
        Archive::ordered(entries, end.directory.offset())
    }

    /// Puts entries in order, none of which may overlap another or the directory at `end`.
    fn ordered(mut entries: Vec<Entry>, end: u64) -> Result<Archive, Refusal> {
        entries.sort_by_key(|entry| entry.header);
        let mut limit = end;
        for entry in entries.iter_mut().rev() {
            entry.limit = limit;
            let least = LOCAL_BYTES + entry.name.len() as u64;
            let ends = entry.header.checked_add(least).and_then(|at| at.checked_add(entry.bytes));
            if ends.is_none_or(|ends| ends > limit) {
                return Err(overlap());
            }
            limit = entry.header;
        }
        Ok(Archive { entries, is_truncated: false })
    }
}

impl Entry {
    /// One entry of the directory of an archive that begins at `start`; none if it is damaged.
    fn read(fields: &mut Fields<'_>, start: u64) -> Option<Entry> {
        if fields.u32()? != DIRECTORY_SIGNATURE {
            return None;
        }
        let _versions = fields.u32()?;
        let flags = fields.u16()?;
        let method = fields.u16()?;
        let _time_and_checksum = fields.u64()?;
        let (stored, plain) = (fields.u32()?, fields.u32()?);
        let name_bytes = fields.u16()?;
        let (extra_bytes, comment_bytes) = (fields.u16()?, fields.u16()?);
        let volume = fields.u16()?;
        let _attributes = (fields.u16()?, fields.u32()?);
        let header = fields.u32()?;
        let name = fields.take(name_bytes.into())?.to_vec();
        let extra = fields.take(extra_bytes.into())?;
        fields.take(comment_bytes.into())?;
        let [plain, stored, header] = widened(extra, [plain, stored, header])?;
        let header = header.checked_add(start)?;
        let is_usable = volume == 0 || volume == u16::MAX;
        // What is encrypted, or has another length inside, is treated like what is compressed.
        let is_as_it_is = flags & ENCRYPTED == 0 && (method != STORED || plain == stored);
        let method = if is_as_it_is { method } else { u16::MAX };
        is_usable.then_some(Entry { name, method, bytes: stored, header, limit: 0 })
    }

    /// Where the payload begins: the local header is read, and must agree with the directory.
    pub(super) fn payload(&self, reader: &mut HeaderReader<'_>) -> Result<ByteRange, Refusal> {
        let fixed = LOCAL_BYTES + self.name.len() as u64;
        let bytes = reader.read(self.header, fixed)?;
        let mut fields = Fields(&bytes);
        let local = LocalHeader::read(&mut fields);
        let local = local.ok_or_else(|| Refusal::malformed("an entry does not begin with a header"))?;
        let agrees = |size: u32| local.sizes_follow() || size == u32::MAX || u64::from(size) == self.bytes;
        if usize::from(local.name_bytes) != self.name.len() || fields.0 != self.name.as_slice() {
            return Err(Refusal::malformed("an entry has another name in its header than in the directory"));
        }
        if self.method == STORED && (local.method != STORED || !agrees(local.stored) || !agrees(local.plain)) {
            return Err(Refusal::malformed("an entry has another size in its header than in the directory"));
        }
        let payload = range(self.header + fixed + u64::from(local.extra_bytes), self.bytes)?;
        if payload.end() > self.limit { Err(overlap()) } else { Ok(payload) }
    }
}

fn overlap() -> Refusal {
    Refusal::malformed("entries of the archive overlap")
}

/// What stands in front of a payload.
pub(super) struct LocalHeader {
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) stored: u32,
    pub(super) plain: u32,
    pub(super) name_bytes: u16,
    pub(super) extra_bytes: u16,
}

impl LocalHeader {
    /// The fixed part of a header; none if it is something else.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<LocalHeader> {
        if fields.u32()? != LOCAL_SIGNATURE {
            return None;
        }
        let _version = fields.u16()?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        let _time_and_checksum = fields.u64()?;
        let (stored, plain) = (fields.u32()?, fields.u32()?);
        let (name_bytes, extra_bytes) = (fields.u16()?, fields.u16()?);
        Some(LocalHeader { flags, method, stored, plain, name_bytes, extra_bytes })
    }

    /// True if the sizes stand behind the payload.
    pub(super) fn sizes_follow(&self) -> bool {
        self.flags & SIZES_FOLLOW != 0
    }
}

/// Numbers of 32 bits with those of 64 bits in their place that the extra field has for the ones that are full.
pub(super) fn widened<const N: usize>(extra: &[u8], narrow: [u32; N]) -> Option<[u64; N]> {
    let mut wide = narrow.map(u64::from);
    if !narrow.contains(&u32::MAX) {
        return Some(wide);
    }
    let mut fields = Fields(extra);
    loop {
        let (kind, bytes) = (fields.u16()?, fields.u16()?);
        let mut body = Fields(fields.take(bytes.into())?);
        if kind == ZIP64_EXTRA {
            for number in wide.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
                *number = body.u64()?;
            }
            return Some(wide);
        }
    }
}

/// The record at the end of an archive.
#[derive(Debug)]
pub(super) struct End {
    /// Where the archive begins in the file.
    pub(super) start: u64,
    entries: u64,
    directory: ByteRange,
}

impl End {
    /// The record of the archive that ends where `place` does, behind a comment of at most so many bytes, and begins in
    /// `place`; none if there is none.
    pub(super) fn find(
        reader: &mut HeaderReader<'_>,
        place: ByteRange,
        comment_bytes_max: u64,
    ) -> Result<Option<End>, Refusal> {
        // Archives of tensors have no comment: the short look is the only one, nearly always.
        for comment_bytes in [0, comment_bytes_max] {
            let bytes = place.len().min(END_BYTES + comment_bytes);
            let tail = reader.read(place.end() - bytes, bytes)?;
            for at in (0..=tail.len().saturating_sub(END_BYTES as usize)).rev() {
                let mut fields = Fields(tail.get(at..).unwrap_or_default());
                if fields.u32() == Some(END_SIGNATURE)
                    && let Some(found) = End::read(reader, place, place.end() - bytes + at as u64, &mut fields)?
                {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// The record at `position`, whose signature has been read; none if its numbers do not fit where it stands.
    fn read(
        reader: &mut HeaderReader<'_>,
        place: ByteRange,
        position: u64,
        fields: &mut Fields<'_>,
    ) -> Result<Option<End>, Refusal> {
        let Some(narrow) = EndNumbers::read_narrow(fields) else { return Ok(None) };
        let (end_of_directory, numbers) = match End::wide(reader, place, position)? {
            Some((at, wide)) if narrow.agrees(&wide) => (at, wide),
            _ => (position, narrow),
        };
        let Some(directory) = end_of_directory.checked_sub(numbers.directory_bytes) else { return Ok(None) };
        let start = directory.checked_sub(numbers.directory_offset).filter(|start| *start >= place.offset());
        let Some(start) = start else { return Ok(None) };
        let directory = range(directory, numbers.directory_bytes)?;
        Ok(Some(End { start, entries: numbers.entries, directory }))
    }

    /// The zip64 record in front of the record at `position`, and where it begins.
    fn wide(
        reader: &mut HeaderReader<'_>,
        place: ByteRange,
        position: u64,
    ) -> Result<Option<(u64, EndNumbers)>, Refusal> {
        let both = LOCATOR_BYTES + END64_BYTES;
        let Some(at) = position.checked_sub(both).filter(|at| *at >= place.offset()) else { return Ok(None) };
        let bytes = reader.read(at, both)?;
        let (record, locator) = bytes.split_at(END64_BYTES as usize);
        if Fields(locator).u32() != Some(LOCATOR_SIGNATURE) {
            return Ok(None);
        }
        match EndNumbers::read_wide(&mut Fields(record)) {
            Some(numbers) => Ok(Some((at, numbers))),
            None => Err(Refusal::malformed("its zip64 record is not in front of the end record")),
        }
    }
}

/// What both kinds of end record say.
struct EndNumbers {
    entries: u64,
    directory_bytes: u64,
    directory_offset: u64,
}

impl EndNumbers {
    /// Behind the signature; none unless the comment fills the rest.
    fn read_narrow(fields: &mut Fields<'_>) -> Option<EndNumbers> {
        let _volumes = fields.u32()?;
        let _entries_here = fields.u16()?;
        let (entries, bytes, offset) = (fields.u16()?, fields.u32()?, fields.u32()?);
        let comment_bytes = fields.u16()?;
        (usize::from(comment_bytes) == fields.0.len()).then(|| EndNumbers {
            entries: entries.into(),
            directory_bytes: bytes.into(),
            directory_offset: offset.into(),
        })
    }

    fn read_wide(fields: &mut Fields<'_>) -> Option<EndNumbers> {
        if fields.u32()? != END64_SIGNATURE || fields.u64()? != END64_BYTES - 12 {
            return None;
        }
        let _versions_and_volumes = (fields.u32()?, fields.u64()?);
        let _entries_here = fields.u64()?;
        Some(EndNumbers { entries: fields.u64()?, directory_bytes: fields.u64()?, directory_offset: fields.u64()? })
    }

    /// True if every number that is not full is the same in `wide`.
    fn agrees(&self, wide: &EndNumbers) -> bool {
        let same = |narrow: u64, full: u64, wide: u64| narrow == full || narrow == wide;
        same(self.entries, u16::MAX.into(), wide.entries)
            && same(self.directory_bytes, u32::MAX.into(), wide.directory_bytes)
            && same(self.directory_offset, u32::MAX.into(), wide.directory_offset)
    }
}
