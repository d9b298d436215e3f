//! Restores into what is there already: what stays, what is mended in place, what is deleted, what an interrupted run
//! leaves to the next; and sources of other shapes than one directory.

use crate::support::program::{Place, expect};
use crate::support::runs::{self, PACK_BYTES_MIN, restore_options};
use crate::support::strace;
use crate::support::trees::Tree;
use crate::support::{disk_folder, noise, not_run};
use ckpt::error::{Error, Kind};
use ckpt::events::{Event, Observer, Silent};
use ckpt::ops::backup::{self, Input};
use ckpt::ops::restore::{Overwrite, RestoreOptions, restore};
use ckpt::repo::pack::PackKind;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use tempfile::TempDir;

const LARGE_BYTES: usize = 6 << 20;

/// A source with a large file, its snapshot, and a target that holds all of it.
struct Restored {
    folder: TempDir,
    repo: Repo,
    snapshot: Snapshot,
    wanted: Tree,
}

impl Restored {
    fn new() -> Restored {
        let folder = disk_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("sub")).expect("folders");
        fs::write(source.join("large"), noise(1, LARGE_BYTES)).expect("a file");
        (0..20).for_each(|n| fs::write(source.join(format!("sub/{n}")), noise(n, 3_000)).expect("a file"));
        let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
        let (snapshot, wanted) = (runs::save(&repo, &source), Tree::read(&source));
        let restored = Restored { folder, repo, snapshot, wanted };
        let report = runs::restore(&restored.repo, &restored.snapshot, &restored.target()).expect("restores");
        assert_eq!(report.files_restored, 21);
        restored
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    fn again(&self, overwrite: Overwrite, delete: bool) -> ckpt::ops::restore::RestoreReport {
        let options = RestoreOptions { overwrite, delete, ..restore_options(&self.target()) };
        let report = restore(&self.repo, &self.snapshot, &options, &Silent).expect("restores");
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{report:?}");
        report
    }

    fn assert_whole(&self, why: &str) {
        Tree::read(&self.target()).assert_is(&self.wanted, why);
    }
}

fn file_of(path: PathBuf) -> fs::File {
    fs::File::options().write(true).open(path).expect("a file")
}

#[test]
fn a_second_restore_writes_nothing() {
    let restored = Restored::new();
    for overwrite in [Overwrite::Never, Overwrite::IfChanged, Overwrite::Always] {
        let report = restored.again(overwrite, true);
        assert_eq!(
            (report.bytes_written, report.bytes_fetched, report.deleted),
            (0, 0, 0),
            "{overwrite:?}: {report:?}"
        );
        restored.assert_whole(&format!("{overwrite:?}"));
    }
}

#[test]
fn never_keeps_what_is_there_and_brings_what_is_not() {
    let restored = Restored::new();
    fs::write(restored.target().join("sub/3"), b"mine").expect("a file");
    fs::remove_file(restored.target().join("sub/4")).expect("removed");
    let report = restored.again(Overwrite::Never, false);
    assert_eq!((report.files_restored, report.files_kept), (1, 20));
    assert_eq!(fs::read(restored.target().join("sub/3")).expect("there"), b"mine");
    assert_eq!(fs::read(restored.target().join("sub/4")).expect("there"), noise(4, 3_000));
}

#[test]
fn if_changed_trusts_size_and_time_and_always_does_not() {
    let restored = Restored::new();
    // Changed in a way that its size and time do not show.
    let hidden = restored.target().join("large");
    let time = fs::metadata(&hidden).expect("there").modified().expect("a time");
    let file = file_of(hidden);
    file.write_all_at(b"changed", 1_000_000).expect("written");
    file.set_times(fs::FileTimes::new().set_modified(time)).expect("a time");
    // Changed for all to see.
    fs::write(restored.target().join("sub/5"), b"other").expect("a file");
    let report = restored.again(Overwrite::IfChanged, false);
    assert_eq!((report.files_restored, report.files_unchanged), (1, 20));
    let report = restored.again(Overwrite::Always, false);
    assert!(report.bytes_written < 200_000, "{report:?}");
    restored.assert_whole("always");
}

#[test]
fn damaged_files_are_mended_in_place_with_little_to_write() {
    let restored = Restored::new();
    let large = restored.target().join("large");
    let file = file_of(large.clone());
    file.write_all_at(&[0; 10], 12_345).expect("written");
    file.write_all_at(&[0; 10], 4_000_000).expect("written");
    file.set_len(LARGE_BYTES as u64 - 5).expect("shortened");
    let inode = fs::metadata(&large).expect("there").ino();
    let report = restored.again(Overwrite::Always, false);
    restored.assert_whole("mended");
    assert!(report.bytes_written < 3 * 40_000, "three chunks are damaged: {report:?}");
    assert_eq!(fs::metadata(&large).expect("there").ino(), inode, "the file itself was mended");
    // Longer than it should be, and nothing else.
    file_of(large).set_len(LARGE_BYTES as u64 + 100_000).expect("lengthened");
    let report = restored.again(Overwrite::Always, false);
    restored.assert_whole("shortened");
    assert_eq!(report.bytes_written, 0, "{report:?}");
}

#[test]
fn delete_takes_what_the_snapshot_does_not_hold_and_no_more() {
    let restored = Restored::new();
    let target = restored.target();
    fs::create_dir_all(target.join("extra/deep")).expect("folders");
    fs::write(target.join("extra/deep/file"), b"x").expect("a file");
    fs::write(target.join("sub/extra"), b"x").expect("a file");
    let outside = restored.folder.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("precious"), b"x").expect("a file");
    std::os::unix::fs::symlink(&outside, target.join("sub/link")).expect("a link");
    let report = restored.again(Overwrite::Always, false);
    assert_eq!(report.deleted, 0);
    assert!(target.join("sub/extra").exists());
    let report = restored.again(Overwrite::Always, true);
    assert_eq!(report.deleted, 3);
    restored.assert_whole("deleted");
    assert!(outside.join("precious").exists(), "a link is removed, not followed");
}

#[test]
fn other_kinds_in_the_way_give_way() {
    let restored = Restored::new();
    let target = restored.target();
    fs::remove_file(target.join("sub/1")).expect("removed");
    std::os::unix::fs::symlink("/etc/passwd", target.join("sub/1")).expect("a link");
    fs::remove_file(target.join("sub/2")).expect("removed");
    fs::hard_link(target.join("sub/3"), target.join("sub/2")).expect("a link");
    let passwords = fs::read("/etc/passwd").expect("readable");
    restored.again(Overwrite::Always, false);
    restored.assert_whole("other kinds");
    assert_eq!(fs::read("/etc/passwd").expect("readable"), passwords);
}

/// Ends the run when so many bytes have been handled.
struct EndsAfter {
    bytes: u64,
    seen: AtomicU64,
}

impl Observer for EndsAfter {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Progress { bytes, .. } = event {
            self.seen.fetch_add(*bytes, Ordering::Relaxed);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.seen.load(Ordering::Relaxed) >= self.bytes
    }
}

#[test]
fn an_interrupted_restore_goes_on_where_it_ended() {
    let folder = disk_folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    fs::create_dir(&source).expect("a folder");
    fs::write(source.join("large"), noise(1, 40 << 20)).expect("a file");
    (0..20).for_each(|n| fs::write(source.join(n.to_string()), noise(n, 300_000)).expect("a file"));
    let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
    let (snapshot, wanted) = (runs::save(&repo, &source), Tree::read(&source));
    for bytes in [1, 5 << 20, 20 << 20] {
        let ends = EndsAfter { bytes, seen: AtomicU64::new(0) };
        let options = RestoreOptions { resources: runs::resources(1), ..restore_options(&target) };
        let error = restore(&repo, &snapshot, &options, &ends).expect_err("interrupted");
        assert_eq!(error.kind(), Kind::Interrupted, "{error}");
        for (path, seen) in Tree::read(&target).entries {
            let is_part = path.ends_with(b".ckpt-part");
            let right = wanted.entries.get(&path).map(|wanted| wanted.content);
            assert!(is_part || Some(seen.content) == right, "half a file has its final name: {path:?}");
        }
        let report = runs::restore(&repo, &snapshot, &target).expect("goes on");
        Tree::read(&target).assert_is(&wanted, "gone on");
        assert!(report.bytes_reused >= bytes, "what was there is written again: {report:?}");
        assert!(report.bytes_reused + report.bytes_written == report.bytes_total, "{report:?}");
        fs::remove_dir_all(&target).expect("removed");
    }
}

#[test]
fn several_roots_come_back_beside_each_other() {
    let folder = disk_folder();
    let make = |name: &str, seed| {
        let root = folder.path().join(name);
        fs::create_dir_all(root.join("sub")).expect("folders");
        fs::write(root.join("sub/file"), noise(seed, 10_000)).expect("a file");
        root
    };
    let mut roots = vec![make("one", 1), make("two", 2)];
    let single = folder.path().join("single");
    fs::write(&single, noise(3, 5_000)).expect("a file");
    roots.push(single.clone());
    roots.sort();
    let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
    let report = runs::backup_paths(&repo, roots.clone(), 2).expect("backs up");
    let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
    let target = folder.path().join("target");
    runs::restore(&repo, &snapshot, &target).expect("restores");
    for root in &roots {
        let found = find_below(&target, root.file_name().expect("a name").as_ref());
        Tree::read(&found).assert_is(&Tree::read(root), "one of several roots");
    }
    // A root that is a file, alone.
    let snapshot = runs::save(&repo, &single);
    let target = folder.path().join("target of a file");
    runs::restore(&repo, &snapshot, &target).expect("restores");
    Tree::read(&target.join("single")).assert_is(&Tree::read(&single), "a file alone");
    let again = runs::backup(&repo, &single, 2).expect("backs up");
    assert_eq!((again.bytes_read, again.files_unchanged), (0, 1));
}

fn find_below(target: &Path, name: &Path) -> PathBuf {
    let found = walkdir::WalkDir::new(target).into_iter().flatten().find(|item| Path::new(item.file_name()) == name);
    found.unwrap_or_else(|| panic!("{} is not below {}", name.display(), target.display())).into_path()
}

#[test]
fn a_stream_comes_back_whole_and_a_failed_one_leaves_no_snapshot() {
    let repo = runs::open(&runs::simulated(PACK_BYTES_MIN)).expect("opens");
    for bytes in [0usize, 1, 70_000, (4 << 20) - 1, 4 << 20, 9_000_001] {
        let content = noise(bytes as u64, bytes);
        let input = Input::Stream {
            name: "stream".to_owned(),
            reader: Box::new(content.as_slice()),
            finish: Box::new(|| Ok(())),
        };
        let report = backup::backup(&repo, input, &runs::backup_options(2), &Silent).expect("backs up");
        repo.refresh(&Silent).expect("refreshes");
        let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
        let folder = disk_folder();
        runs::restore(&repo, &snapshot, folder.path()).expect("restores");
        assert!(fs::read(folder.path().join("stream")).expect("restored") == content, "{bytes} bytes");
    }
    let before = repo.snapshots().len();
    let input = Input::Stream {
        name: "stream".to_owned(),
        reader: Box::new([1u8; 50_000].as_slice()),
        finish: Box::new(|| Err(Error::new(Kind::Failed, "the command failed"))),
    };
    backup::backup(&repo, input, &runs::backup_options(2), &Silent).expect_err("it is not whole");
    repo.refresh(&Silent).expect("refreshes");
    assert_eq!(repo.snapshots().len(), before);
}

#[test]
fn a_file_that_only_got_another_time_is_read_and_not_stored_again() {
    let restored = Restored::new();
    let source = restored.folder.path().join("source");
    let later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    file_of(source.join("large")).set_times(fs::FileTimes::new().set_modified(later)).expect("a time");
    let report = runs::backup(&restored.repo, &source, 2).expect("backs up");
    assert_eq!((report.bytes_read, report.bytes_new, report.files_changed), (LARGE_BYTES as u64, 0, 1));
}

/// The target's own files are looked at, and the calls of the process that makes them.
#[test]
fn files_are_durable_before_they_have_their_names_and_what_names_a_checkpoint_comes_last() {
    if let Some(reason) = strace::missing() {
        return not_run("the order in which a restore makes files durable", reason);
    }
    let place = Place::with_repository();
    let source = place.path("source");
    fs::create_dir_all(&source).expect("a folder");
    // By its name `latest` lies between the others; only what it is makes it the last.
    let files = [("small", noise(1, 3_000)), ("large", noise(2, 9 << 20)), ("latest", b"small".to_vec())];
    files.iter().for_each(|(name, content)| fs::write(source.join(name), content).expect("a file"));
    let (id, log) = (place.backup("source"), place.path("log"));
    let command = place.command(&["restore", &id, "--target", &place.text("target"), "--threads", "2"]);
    expect(strace::traced(&command, &[], &log), 0);
    let calls: Vec<_> =
        strace::calls(&log).into_iter().filter(|call| call.text.contains(&place.text("target"))).collect();
    let is_barrier = |call: &strace::Call, part: &str| {
        call.name == "syncfs" || (matches!(call.name.as_str(), "fsync" | "fdatasync") && call.text.contains(part))
    };
    let named = |name: &str| {
        let ends = format!("\"{name}\"");
        let is_it = |call: &strace::Call| call.name.starts_with("rename") && call.text.contains(&ends);
        calls.iter().rposition(is_it).unwrap_or_else(|| panic!("{name} never got its name"))
    };
    for (name, _) in &files {
        let renamed = named(name);
        let part = calls[renamed].text.split('"').find(|text| text.ends_with(".ckpt-part")).expect("a part");
        let is_write = |call: &strace::Call| call.name.starts_with("pwrite") && call.text.contains(part);
        let written = calls.iter().rposition(is_write).unwrap_or_else(|| panic!("{name} was never written"));
        let synced = calls[written..renamed].iter().any(|call| is_barrier(call, part));
        assert!(written < renamed && synced, "{name} has its name before its content is durable");
    }
    let others = named("small").max(named("large"));
    assert!(others < named("latest") && calls[others..named("latest")].iter().any(|call| call.name == "syncfs"));
    assert!(calls[named("latest")..].iter().any(|call| call.name == "syncfs"), "the last name is made durable, too");
}

#[test]
fn nothing_is_deleted_from_a_target_while_something_of_the_snapshot_cannot_be_read() {
    let folder = disk_folder();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    [&source, &target].into_iter().for_each(|path| fs::create_dir(path).expect("a folder"));
    fs::write(source.join("lost"), noise(1, 10_000)).expect("a file");
    fs::write(target.join("surplus"), b"the only copy").expect("a file");
    let storage = runs::simulated(PACK_BYTES_MIN);
    let snapshot = runs::save(&runs::open(&storage).expect("opens"), &source);
    let repo = runs::open(&storage).expect("opens");
    for pack in repo.index().packs().expect("known").into_iter().filter(|pack| pack.kind == PackKind::Data) {
        assert!(storage.remove(&names::pack(pack.id).expect("a name")));
    }
    let options = RestoreOptions { delete: true, ..restore_options(&target) };
    let report = restore(&repo, &snapshot, &options, &Silent).expect("restores what it can");
    assert_eq!((report.damaged.count, report.deleted), (1, 0));
    assert_eq!(fs::read(target.join("surplus")).expect("still there"), b"the only copy");
}
