//! Sorting more records than memory holds.
//!
//! Records are put into 256 buckets by their first byte, as ids are spread evenly; what does not fit in a buffer goes to a
//! file without a name, so that a killed run leaves nothing. Each bucket is then read back and sorted by itself.
//!
//! Memory is bounded whatever the records are: of a bucket that is too large, parts are sorted one by one, so that what is
//! handed out is in order within a part only. Who uses the order may gain speed by it and nothing else.

use crate::error::{Error, Result};
use crate::threads;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

const BUCKETS: usize = 256;
/// What is gathered of a bucket before it is written.
const BUFFER_BYTES: usize = 64 << 10;
/// The most that is read back and sorted at once.
const PART_BYTES_MAX: usize = 48 << 20;

/// Takes records of `BYTES` bytes.
pub(super) struct Sorter<const BYTES: usize> {
    folder: PathBuf,
    file: Option<File>,
    file_bytes: u64,
    buckets: Vec<Bucket>,
    part_bytes_max: usize,
}

#[derive(Default)]
struct Bucket {
    buffer: Vec<u8>,
    /// Where written buffers lie in the file: offset and length.
    written: Vec<(u64, usize)>,
}

impl<const BYTES: usize> Sorter<BYTES> {
    /// An empty one; its file, if it needs one, lies in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Sorter {
            folder: folder.to_owned(),
            file: None,
            file_bytes: 0,
            buckets: std::iter::repeat_with(Bucket::default).take(BUCKETS).collect(),
            part_bytes_max: PART_BYTES_MAX,
        }
    }

    /// Adds a record.
    pub(super) fn push(&mut self, record: &[u8; BYTES]) -> Result<()> {
        let bucket = &mut self.buckets[usize::from(record[0])];
        bucket.buffer.extend_from_slice(record);
        if bucket.buffer.len() + BYTES <= BUFFER_BYTES {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(&self.folder)?),
        };
        file.write_all_at(&bucket.buffer, self.file_bytes).map_err(|e| failure(&self.folder, e))?;
        bucket.written.push((self.file_bytes, bucket.buffer.len()));
        self.file_bytes += u64::try_from(bucket.buffer.len()).unwrap_or(0);
        bucket.buffer.clear();
        Ok(())
    }

    /// Hands out all records, part by part, each part sorted: the next one while this one is looked at.
    pub(super) fn drain(self, visit: &mut dyn FnMut(&[[u8; BYTES]]) -> Result<()>) -> Result<()> {
        let (give, take) = mpsc::sync_channel(0);
        std::thread::scope(|scope| {
            let sorting = threads::start(scope, move || {
                // Whoever takes them may have failed and gone away.
                self.sort(&mut |part| give.send(part).is_ok())
            })?;
            let mut visited = take.iter().try_for_each(|part| visit(&part));
            drop(take);
            let sorted = sorting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // What ended the visits says more.
            if visited.is_ok() {
                visited = sorted;
            }
            visited
        })
    }

    /// Gives parts away as long as they are taken.
    fn sort(self, give: &mut dyn FnMut(Vec<[u8; BYTES]>) -> bool) -> Result<()> {
        let mut bytes = Vec::new();
        for bucket in self.buckets {
            for &(offset, length) in &bucket.written {
                let before = bytes.len();
                bytes.resize(before + length, 0);
                let file = self.file.as_ref().ok_or_else(|| Error::damaged("a sorter without its file"))?;
                file.read_exact_at(&mut bytes[before..], offset).map_err(|e| failure(&self.folder, e))?;
                if bytes.len() >= self.part_bytes_max {
                    if !give(sorted(&bytes)) {
                        return Ok(());
                    }
                    bytes.clear();
                }
            }
            bytes.extend_from_slice(&bucket.buffer);
            if !bytes.is_empty() && !give(sorted(&bytes)) {
                return Ok(());
            }
            bytes.clear();
        }
        Ok(())
    }
}

/// The records in order. What is moved about while sorting is a few bytes of each.
fn sorted<const BYTES: usize>(bytes: &[u8]) -> Vec<[u8; BYTES]> {
    let (records, _) = bytes.as_chunks::<BYTES>();
    let front = |record: &[u8; BYTES]| record.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mut order: Vec<(u64, u32)> = (0u32..).zip(records).map(|(at, record)| (front(record), at)).collect();
    let record = |at: u32| &records[usize::try_from(at).unwrap_or(0)];
    order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| record(a.1).cmp(record(b.1))));
    order.into_iter().map(|(_, at)| *record(at)).collect()
}

/// A new file in `folder` that vanishes with its last descriptor.
fn nameless(folder: &Path) -> Result<File> {
    let path = folder.join(format!("sorting-{}", std::process::id()));
    // One left by a killed run of the same number is nobody's.
    let _ = std::fs::remove_file(&path);
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = made.map_err(|e| failure(folder, e))?;
    std::fs::remove_file(&path).map_err(|e| failure(folder, e))?;
    Ok(file)
}

fn failure(folder: &Path, error: std::io::Error) -> Error {
    Error::io(format!("sorting the index in {}", folder.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, skew: bool) -> [u8; 12] {
        let mut record = [0; 12];
        record.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..12]);
        if skew {
            record[0] = 7;
        }
        record
    }

    fn drained(records: &[[u8; 12]], part_bytes_max: usize) -> (Vec<[u8; 12]>, usize) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sorter = Sorter::<12>::new(folder.path());
        sorter.part_bytes_max = part_bytes_max;
        records.iter().for_each(|record| sorter.push(record).expect("taken"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing has a name");
        let (mut all, mut longest) = (Vec::new(), 0);
        sorter
            .drain(&mut |part| {
                assert!(part.is_sorted());
                longest = longest.max(part.len());
                all.extend_from_slice(part);
                Ok(())
            })
            .expect("drained");
        (all, longest)
    }

    #[test]
    fn records_come_out_in_order_whether_they_fit_in_memory_or_not() {
        for count in [0, 1, 5_000, 200_000] {
            let records: Vec<_> = (0..count).map(|number| record(number % 150_000, count == 5_000)).collect();
            let mut expected = records.clone();
            expected.sort_unstable();
            assert_eq!(drained(&records, PART_BYTES_MAX).0, expected);
        }
    }

    #[test]
    fn records_that_all_begin_alike_take_bounded_memory() {
        let records: Vec<_> = (0..50_000).map(|number| record(number, true)).collect();
        let (mut all, longest) = drained(&records, 100_000);
        assert!(longest * 12 < 100_000 + BUFFER_BYTES, "{longest}");
        let mut expected = records;
        expected.sort_unstable();
        all.sort_unstable();
        assert_eq!(all, expected);
    }
}
