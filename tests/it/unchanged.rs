//! Which files a backup takes over without reading them: those that surely are what they were.

use crate::support::runs::{self, PACK_BYTES_MIN, backup_options, contents};
use crate::support::trees::Tree;
use crate::support::{disk_folder, noise};
use ckpt::events::Silent;
use ckpt::metadata::FileTime;
use ckpt::ops::backup::{BackupOptions, BackupReport, Input, backup};
use ckpt::repo::Repo;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Writes a file and gives it a time long ago.
fn write_old(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("a file");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(path).and_then(|file| file.set_modified(long_ago)).expect("its time");
}

fn back_up_at(repo: &Repo, source: &Path, seconds: i64) -> BackupReport {
    let options = BackupOptions { started: FileTime { seconds, nanoseconds: 0 }, ..backup_options(1) };
    let report = backup(repo, Input::Paths(vec![source.to_owned()]), &options, &Silent).expect("succeeds");
    repo.refresh(&Silent).expect("refreshes");
    report
}

#[test]
fn a_change_that_leaves_size_and_time_alone_is_seen() {
    let folder = disk_folder();
    let file = folder.path().join("file");
    let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
    write_old(&file, &noise(1, 10_000));
    runs::save(&repo, folder.path());
    write_old(&file, &noise(2, 10_000));
    let snapshot = runs::save(&repo, folder.path());
    contents(&repo, &snapshot).expect("sound").assert_is(&Tree::read(folder.path()), "changed in place");
}

/// A file may change twice within what its file system tells apart: the second change leaves the same time.
#[test]
fn a_file_that_changed_just_before_the_last_backup_is_read_again() {
    let folder = disk_folder();
    let file = folder.path().join("file");
    fs::write(&file, noise(1, 10_000)).expect("a file");
    let changed = fs::metadata(&file).expect("there").ctime();
    for (seconds_later, is_read) in [(0, true), (1, true), (2, true), (3, false)] {
        let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
        back_up_at(&repo, folder.path(), changed + seconds_later);
        let report = back_up_at(&repo, folder.path(), changed + 1000);
        assert_eq!(
            (report.bytes_read > 0, report.files_unchanged),
            (is_read, u64::from(!is_read)),
            "{seconds_later} s"
        );
    }
}
