//! Zip archives without an end: a file that was cut off is walked from its front, header by header, as far as it goes.
//!
//! `torch.save` puts sizes behind the payloads and not in front of them: a size that the caller does not know is found by
//! looking for the record behind the payload, for payloads of bounded length only. The walk ends where a size is unknown.

use super::fields::Fields;
use super::header_reader::{HeaderReader, Refusal};
use super::zip::{Archive, Entry, LOCAL_BYTES, LocalHeader, widened};

const DESCRIPTOR_SIGNATURE: u32 = 0x0807_4b50;
const DESCRIPTOR_BYTES: u64 = 16;
const DESCRIPTOR64_BYTES: u64 = 24;
const STEP_BYTES: u64 = 64 << 10;
/// A payload of unknown size is looked through up to here.
const UNKNOWN_BYTES_MAX: u64 = 16 << 20;

/// Walks the archive that begins with the file.
///
/// `size_of` is asked for the size of an entry by its name; it is given the entries in front.
pub(super) fn walk(
    reader: &mut HeaderReader<'_>,
    mut size_of: impl FnMut(&mut HeaderReader<'_>, &[Entry], &[u8]) -> Option<u64>,
) -> Result<Archive, Refusal> {
    let mut entries = Vec::new();
    let mut at = Some(0);
    while let Some(header) = at {
        at = match next(reader, header, &mut entries, &mut size_of) {
            Ok(next) => next,
            Err(Refusal::Unreadable) => return Err(Refusal::Unreadable),
            Err(_) => None,
        };
    }
    if entries.is_empty() { Err(Refusal::CutShort) } else { Ok(Archive { entries, is_truncated: true }) }
}

/// Takes up the entry at `header`; where the next one is, if it can be told.
fn next(
    reader: &mut HeaderReader<'_>,
    header: u64,
    entries: &mut Vec<Entry>,
    size_of: &mut impl FnMut(&mut HeaderReader<'_>, &[Entry], &[u8]) -> Option<u64>,
) -> Result<Option<u64>, Refusal> {
    let fixed = reader.read(header, LOCAL_BYTES)?;
    let Some(local) = LocalHeader::read(&mut Fields(&fixed)) else { return Ok(None) };
    let behind = reader.read(header + LOCAL_BYTES, u64::from(local.name_bytes) + u64::from(local.extra_bytes))?;
    let (name, extra) = behind.split_at_checked(local.name_bytes.into()).unwrap_or_default();
    let payload = header + LOCAL_BYTES + behind.len() as u64;
    let bytes = if !local.sizes_follow() {
        widened(extra, [local.plain, local.stored]).map(|[_, stored]| stored)
    } else {
        match size_of(reader, entries, name) {
            Some(bytes) => Some(bytes),
            None => searched(reader, payload)?,
        }
    };
    let Some(bytes) = bytes else { return Ok(None) };
    let Some(end) = payload.checked_add(bytes) else { return Ok(None) };
    entries.push(Entry { name: name.to_vec(), method: local.method, bytes, header, limit: end });
    if !local.sizes_follow() {
        return Ok(Some(end));
    }
    let record = reader.read(end, DESCRIPTOR64_BYTES)?;
    Ok(descriptor_bytes(&record, bytes).map(|bytes| end + bytes))
}

/// The size of the payload that begins at `payload`, from the first record behind it that has the right one.
fn searched(reader: &mut HeaderReader<'_>, payload: u64) -> Result<Option<u64>, Refusal> {
    let mut at = payload;
    while at - payload < UNKNOWN_BYTES_MAX {
        let bytes = (STEP_BYTES + DESCRIPTOR64_BYTES).min(reader.file_bytes().saturating_sub(at));
        if bytes < DESCRIPTOR_BYTES {
            break;
        }
        let window = reader.read(at, bytes)?;
        for (place, record) in window.windows(DESCRIPTOR_BYTES as usize).enumerate() {
            let size = at - payload + place as u64;
            if record.starts_with(b"PK\x07\x08") && descriptor_bytes(record, size).is_some() {
                return Ok(Some(size));
            }
        }
        at += STEP_BYTES;
    }
    Ok(None)
}

/// The length of the record behind a payload of `bytes`; none if it is something else. Of the long kind the first half
/// is enough.
fn descriptor_bytes(record: &[u8], bytes: u64) -> Option<u64> {
    let mut fields = Fields(record);
    if fields.u32()? != DESCRIPTOR_SIGNATURE {
        return None;
    }
    let _checksum = fields.u32()?;
    let sizes = fields.0;
    let (stored, plain) = (fields.u32()?, fields.u32()?);
    if u64::from(stored) == bytes && stored == plain {
        return Some(DESCRIPTOR_BYTES);
    }
    (Fields(sizes).u64()? == bytes).then_some(DESCRIPTOR64_BYTES)
}
