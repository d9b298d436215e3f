//! Files of `torch.save`: an archive whose directory stands at its end and is written last.

use super::Tally;
use super::folder::{open, shown, unreadable};
use crate::source::open::SourceFile;
use crate::source::scan::Found;

/// What every archive begins with.
const BEGINNING: &[u8; 4] = b"PK\x03\x04";
const END_MAGIC: &[u8; 4] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const LOCATOR_MAGIC: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_BYTES: usize = 20;
const LONG_END_MAGIC: &[u8; 4] = b"PK\x06\x06";
const LONG_END_BYTES: usize = 56;
const ENTRY_MAGIC: &[u8; 4] = b"PK\x01\x02";
/// The end may be followed by a comment of at most 65,535 bytes.
const TAIL_BYTES: u64 = (END_BYTES + LOCATOR_BYTES) as u64 + 65_535;
/// Of the directory, so much is looked at to count tensors.
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;

/// Where the directory of an archive lies.
struct Directory {
    offset: u64,
    bytes: u64,
}

/// The number of stored tensors; none for a file that is no archive, which nothing can be told about.
pub(super) fn check(file: &Found, tally: &Tally) -> Result<Option<u64>, String> {
    let size = file.metadata.size;
    if size == 0 {
        return Err(format!("{} is empty", shown(file, tally)));
    }
    let source = open(file, tally)?;
    let mut front = [0; 4];
    let read = source.read_at(0, &mut front).map_err(|e| unreadable(file, tally, &e))?;
    if !BEGINNING.starts_with(&front[..read]) {
        return Ok(None);
    }
    let directory = find_directory(&source, size).map_err(|e| unreadable(file, tally, &e))?;
    let Some(directory) = directory else {
        return Err(format!("{} is not whole: the directory at its end is missing", shown(file, tally)));
    };
    let bytes = usize::try_from(directory.bytes.min(DIRECTORY_BYTES_MAX)).unwrap_or(0);
    let mut entries = vec![0; bytes];
    let read = source.read_at(directory.offset, &mut entries).map_err(|e| unreadable(file, tally, &e))?;
    entries.truncate(read);
    if read > 0 && !entries.starts_with(ENTRY_MAGIC) {
        return Err(format!("{} is not whole: its directory is not where its end says", shown(file, tally)));
    }
    Ok(Some(count_tensors(&entries)))
}

/// The directory, if the archive has a sound end that is also the end of the file.
fn find_directory(source: &SourceFile, size: u64) -> crate::error::Result<Option<Directory>> {
    let tail_bytes = size.min(TAIL_BYTES);
    let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0)];
    let read = source.read_at(size - tail_bytes, &mut tail)?;
    tail.truncate(read);
    let is_end = |at: &usize| {
        let end = tail.get(*at..).unwrap_or_default();
        end.starts_with(END_MAGIC) && u16_at(end, 20).is_some_and(|comment| END_BYTES + comment == end.len())
    };
    let Some(at) = (0..=tail.len().saturating_sub(END_BYTES)).rev().find(is_end) else { return Ok(None) };
    let end = &tail[at..];
    let (mut bytes, mut offset) = (u32_at(end, 12).unwrap_or(0), u32_at(end, 16).unwrap_or(0));
    let mut behind = size - tail_bytes + at as u64;
    let locator = at.checked_sub(LOCATOR_BYTES).and_then(|at| tail.get(at..)).unwrap_or_default();
    if locator.starts_with(LOCATOR_MAGIC) {
        let mut long = [0; LONG_END_BYTES];
        let long_at = u64_at(locator, 8).unwrap_or(u64::MAX);
        if source.read_at(long_at, &mut long)? < LONG_END_BYTES || !long.starts_with(LONG_END_MAGIC) {
            return Ok(None);
        }
        (bytes, offset) = (u64_at(&long, 40).unwrap_or(0), u64_at(&long, 48).unwrap_or(0));
        behind = long_at;
    }
    // The directory ends where the record about it begins.
    let is_sound = offset.checked_add(bytes) == Some(behind);
    Ok(is_sound.then_some(Directory { offset, bytes }))
}

/// Entries of the directory whose name is `.../data/<number>`.
fn count_tensors(mut entries: &[u8]) -> u64 {
    let mut count = 0;
    while entries.starts_with(ENTRY_MAGIC) {
        let lengths = (u16_at(entries, 28), u16_at(entries, 30), u16_at(entries, 32));
        let (Some(name_bytes), Some(extra), Some(comment)) = lengths else { break };
        let name = entries.get(46..46 + name_bytes).unwrap_or_default();
        let mut parts = name.rsplit(|&b| b == b'/');
        let is_number = parts.next().is_some_and(|last| super::names::number(last).is_some());
        count += u64::from(is_number && parts.next() == Some(b"data"));
        entries = entries.get(46 + name_bytes + extra + comment..).unwrap_or_default();
    }
    count
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
