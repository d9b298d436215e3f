//! Distributed checkpoints of PyTorch: `.metadata`, written last, and the files that it names.
//!
//! The metadata is a pickle. It is read as a row of words, nothing is built from it: a file's name, offset and length stand
//! behind the keys `relative_path`, `offset` and `length` in this order.

use super::Tally;
use super::folder::{Folder, Verdict, name_of, read_front, shown};
use std::collections::{BTreeMap, HashMap};

/// The metadata is read up to this size; a longer one is only asked to be there.
const METADATA_BYTES_MAX: u64 = 64 << 20;

/// True for a directory that holds such a checkpoint.
pub(super) fn is_dcp(folder: &Folder) -> bool {
    folder.files.iter().any(|file| name_of(file).ends_with(b".distcp"))
}

/// True for the files of it.
pub(super) fn is_member(name: &[u8]) -> bool {
    name == b".metadata" || name.ends_with(b".distcp")
}

/// The metadata is there and whole, and so is every file that it names.
pub(super) fn check(folder: &Folder, tally: &mut Tally) -> Verdict {
    if !is_dcp(folder) {
        return Ok(());
    }
    tally.shards += folder.files.iter().filter(|file| name_of(file).ends_with(b".distcp")).count() as u64;
    let Some(metadata) = folder.file(b".metadata") else {
        if folder.has(b".metadata") {
            return Ok(());
        }
        return Err(format!("{} is not there", in_folder(folder, tally, ".metadata")));
    };
    if metadata.metadata.size > METADATA_BYTES_MAX {
        return Ok(());
    }
    let pickle = read_front(metadata, tally, METADATA_BYTES_MAX)?;
    let Some(read) = read_metadata(&pickle) else {
        return Err(format!("{} is not whole", shown(metadata, tally)));
    };
    tally.tensors += read.tensors;
    for (name, end) in read.files {
        match folder.file(name.as_bytes()) {
            Some(file) if file.metadata.size < end => {
                let bytes = file.metadata.size;
                return Err(format!("{} has {bytes} bytes, and .metadata says {end}", shown(file, tally)));
            }
            // What lies in another directory is not known here.
            None if !name.contains('/') && !folder.has(name.as_bytes()) => {
                return Err(format!("{} is not there, and .metadata names it", in_folder(folder, tally, &name)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn in_folder(folder: &Folder, tally: &Tally, name: &str) -> String {
    let below = folder.path.get(tally.path_bytes..).unwrap_or_default();
    let below = below.strip_prefix(b"/").unwrap_or(below);
    if below.is_empty() { name.to_owned() } else { format!("{}/{name}", String::from_utf8_lossy(below)) }
}

/// What the metadata says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metadata {
    /// Files with the least length that each has.
    files: BTreeMap<String, u64>,
    tensors: u64,
}

/// One word of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word<'a> {
    Text(&'a [u8]),
    Number(u64),
    Other,
}

/// Reads the row of words; none if it ends before its end mark.
fn read_metadata(pickle: &[u8]) -> Option<Metadata> {
    let mut words = Words { rest: pickle, memo: HashMap::new(), remembered: 0, last: Word::Other };
    let mut found = Metadata::default();
    let mut window = [Word::Other; 6];
    loop {
        let word = match words.next()? {
            Step::Word(word) => word,
            Step::Nothing => continue,
            Step::End => return Some(found),
        };
        window.rotate_left(1);
        window[5] = word;
        found.tensors += u64::from(word == Word::Text(b"properties"));
        if let [
            Word::Text(b"relative_path"),
            Word::Text(path),
            Word::Text(b"offset"),
            Word::Number(offset),
            Word::Text(b"length"),
            Word::Number(length),
        ] = window
        {
            let end = found.files.entry(String::from_utf8_lossy(path).into_owned()).or_default();
            *end = (*end).max(offset.saturating_add(length));
        }
    }
}

/// What one instruction of the pickle brings.
enum Step<'a> {
    Word(Word<'a>),
    Nothing,
    End,
}

struct Words<'a> {
    rest: &'a [u8],
    memo: HashMap<u64, &'a [u8]>,
    /// How many things were remembered: newer pickles number them in this order.
    remembered: u64,
    /// What the last instruction brought: that is what is remembered.
    last: Word<'a>,
}

impl<'a> Words<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    /// A little-endian number of so many bytes, at most 8.
    fn number(&mut self, bytes: u64) -> Option<u64> {
        Some(self.take(bytes)?.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
    }

    /// Bytes behind their length, which itself has so many bytes.
    fn counted(&mut self, length_bytes: u64) -> Option<&'a [u8]> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&b| b == b'\n')?;
        let line = self.take(end as u64)?;
        self.take(1)?;
        Some(line)
    }

    fn remember(&mut self, index: u64) {
        if let Word::Text(text) = self.last {
            self.memo.insert(index, text);
        } else {
            self.memo.remove(&index);
        }
    }

    fn next(&mut self) -> Option<Step<'a>> {
        let code = *self.take(1)?.first()?;
        let word = match code {
            b'.' => return Some(Step::End),
            b'q' | b'r' | 0x94 => return self.memorize(code),
            0x95 => {
                self.take(8)?;
                return Some(Step::Nothing);
            }
            0x8c | b'X' | 0x8d => Word::Text(self.counted(length_bytes(code))?),
            b'K' => Word::Number(self.number(1)?),
            b'M' => Word::Number(self.number(2)?),
            b'J' => Word::Number(self.number(4)?),
            0x8a => {
                let bytes = self.counted(1)?;
                if bytes.len() > 9 {
                    Word::Other
                } else {
                    Word::Number(bytes.iter().take(8).rev().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
                }
            }
            b'h' | b'j' => {
                let index = self.number(if code == b'h' { 1 } else { 4 })?;
                self.memo.get(&index).map_or(Word::Other, |text| Word::Text(text))
            }
            other => {
                self.skip(other)?;
                // Only what stands in a row without anything between counts as such.
                self.last = Word::Other;
                return Some(if matches!(other, b'}' | b'(' | 0x80) { Step::Nothing } else { Step::Word(Word::Other) });
            }
        };
        self.last = word;
        Some(Step::Word(word))
    }

    fn memorize(&mut self, code: u8) -> Option<Step<'a>> {
        let index = match code {
            b'q' => self.number(1)?,
            b'r' => self.number(4)?,
            _ => self.remembered,
        };
        self.remember(index);
        self.remembered += 1;
        Some(Step::Nothing)
    }

    /// Passes over what another instruction carries.
    fn skip(&mut self, code: u8) -> Option<()> {
        match code {
            0x80 | 0x82 => drop(self.take(1)?),
            0x83 => drop(self.take(2)?),
            0x84 => drop(self.take(4)?),
            b'G' => drop(self.take(8)?),
            b'C' | b'U' => drop(self.counted(1)?),
            b'B' | b'T' | 0x8b => drop(self.counted(4)?),
            0x8e | 0x96 => drop(self.counted(8)?),
            b'c' | b'i' => {
                self.line()?;
                self.line()?;
            }
            b'I' | b'L' | b'F' | b'S' | b'V' | b'P' | b'g' | b'p' => drop(self.line()?),
            _ => {}
        }
        Some(())
    }
}

fn length_bytes(code: u8) -> u64 {
    match code {
        0x8c => 1,
        b'X' => 4,
        _ => 8,
    }
}
