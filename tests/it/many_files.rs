//! Backups of many small files: memory does not grow with their number.
//!
//! What the calling thread allocates is counted, which holds the entries; what the database and the workers take is bounded
//! elsewhere.

use crate::support::runs::{backup_options, open, simulated};
use ckpt::events::Silent;
use ckpt::ops::Resources;
use ckpt::ops::backup::{BackupOptions, BackupReport, Input, backup};
use std::fs;
use std::path::Path;

const FEW: usize = 5_000;
const MANY: usize = 20_000;
/// What an entry that waits takes is some hundred bytes: if all of them waited it were three times as much, or more.
const MORE_BYTES_MAX: u64 = 2 << 20;

/// The most bytes that this thread held at once during a first and an unchanged backup of so many files.
fn peaks(folder: &Path, count: usize) -> [u64; 2] {
    for number in 0..count {
        let inner = folder.join(format!("{:03}", number / 500));
        if number % 500 == 0 {
            fs::create_dir(&inner).expect("a folder");
        }
        fs::write(inner.join(format!("sample-{number:06}.txt")), number.to_le_bytes()).expect("a file");
    }
    let storage = simulated(1 << 20);
    let back_up = || {
        let repo = open(&storage).expect("opens");
        let resources = Resources { threads: 2, memory_bytes: 16 << 20 };
        let options = BackupOptions { resources, ..backup_options(2) };
        let mut report = BackupReport::default();
        let used = allocation_counter::measure(|| {
            let done = backup(&repo, Input::Paths(vec![folder.to_owned()]), &options, &Silent);
            report = done.expect("backs up");
        });
        (report.files_new, report.files_unchanged, used.bytes_max)
    };
    let (first, unchanged) = (back_up(), back_up());
    assert_eq!((first.0, first.1, unchanged.0, unchanged.1), (count as u64, 0, 0, count as u64));
    [first.2, unchanged.2]
}

#[test]
fn a_backup_of_many_files_holds_no_more_entries_than_one_of_few() {
    let (few, many) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (few, many) = (peaks(few.path(), FEW), peaks(many.path(), MANY));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few + MORE_BYTES_MAX, "{few} bytes for {FEW} files, {many} for {MANY}");
    }
}
