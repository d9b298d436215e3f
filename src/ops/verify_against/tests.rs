//! Directories that are, and are not, what a snapshot holds.

use super::*;
use crate::events::Silent;
use crate::repo::test_support::{self, Node, contents, noise};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

fn compare(repo: &Repo, snapshot: &Snapshot, directory: &Path, subpath: Option<&str>) -> AgainstReport {
    let resources = Resources { threads: 3, memory_bytes: 1 << 24 };
    verify_against(repo, snapshot, directory, subpath.map(str::as_bytes), resources, &Silent).expect("compares")
}

fn differences(report: &AgainstReport) -> Vec<(String, String)> {
    assert_eq!(report.difference_count, report.differences.len() as u64);
    report.differences.iter().map(|d| (String::from_utf8_lossy(&d.path).into_owned(), d.what.clone())).collect()
}

/// Gives what the snapshot holds the modes and times that `test_support` records.
fn settle(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    let file = File::open(path).expect("opens");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).expect("utimens");
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("writes");
    settle(path, 0o644);
}

/// A repository with one snapshot, and a directory that holds the same.
fn same() -> (Repo, Snapshot, tempfile::TempDir) {
    same_in(&test_support::storage())
}

fn same_in(storage: &crate::storage::simulated::SimulatedStorage) -> (Repo, Snapshot, tempfile::TempDir) {
    let repo = test_support::open(storage);
    let snapshot = test_support::save(
        &repo,
        10,
        &[
            ("a", Node::Directory),
            ("a/big", Node::File(noise(1, 20_000_000))),
            ("a/link", Node::Link("big")),
            ("a-b", Node::File(noise(2, 10))),
            ("empty", Node::File(vec![])),
            ("holes", Node::Sparse(noise(3, 5000), 3 << 20, noise(4, 10))),
        ],
    );
    let target = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(target.path().join("a")).expect("made");
    std::os::unix::fs::symlink("big", target.path().join("a/link")).expect("linked");
    for (path, bytes) in contents(&repo, &snapshot).expect("sound") {
        if !["", "a", "a/link"].contains(&path.as_str()) {
            put(&target.path().join(path), &bytes);
        }
    }
    settle(&target.path().join("a"), 0o755);
    (repo, snapshot, target)
}

#[test]
fn a_sealed_snapshot_is_compared_by_its_own_ids() {
    let (repo, snapshot, target) = same_in(&test_support::encrypted_storage());
    assert_eq!(differences(&compare(&repo, &snapshot, target.path(), None)), []);
    put(&target.path().join("a-b"), &noise(9, 10));
    let found = differences(&compare(&repo, &snapshot, target.path(), None));
    assert!(matches!(&found[..], [(path, _)] if path == "a-b"), "{found:?}");
}

#[test]
fn the_same_is_the_same() {
    let (repo, snapshot, target) = same();
    let report = compare(&repo, &snapshot, target.path(), None);
    assert_eq!(differences(&report), []);
    assert_eq!((report.files_checked, report.bytes_checked), (4, snapshot.totals.bytes));
    assert!(report.damaged.is_empty());
    let part = compare(&repo, &snapshot, &target.path().join("a"), Some("a"));
    assert_eq!((differences(&part), part.files_checked), (vec![], 1));
    let file = tempfile::tempdir().expect("a directory");
    put(&file.path().join("a-b"), &noise(2, 10));
    assert_eq!(differences(&compare(&repo, &snapshot, file.path(), Some("a-b"))), []);
}

#[test]
fn every_difference_is_told() {
    let (repo, snapshot, target) = same();
    let at = |path: &str| target.path().join(path);
    let mut big = noise(1, 20_000_000);
    big[15_000_000] ^= 1;
    put(&at("a/big"), &big);
    std::fs::remove_file(at("a/link")).expect("removed");
    std::os::unix::fs::symlink("other", at("a/link")).expect("linked");
    settle(&at("a"), 0o700);
    std::fs::remove_file(at("a-b")).expect("removed");
    put(&at("empty"), b"x");
    std::fs::create_dir(at("extra")).expect("made");
    put(&at("extra/more"), b"x");
    let holes = contents(&repo, &snapshot).expect("sound")["holes"].clone();
    put(&at("holes"), &[&holes[..100_000], &[1], &holes[100_001..]].concat());
    put(&at("zz"), b"");
    let found = differences(&compare(&repo, &snapshot, target.path(), None));
    let wanted = [
        ("a", "mode 700, not 755"),
        ("a-b", "missing"),
        ("a/big", "the content differs within bytes 14999552 to 15003648"),
        ("a/link", "the link has another target"),
        ("empty", "1 bytes, not 0"),
        ("extra", "not in the snapshot"),
        ("holes", "the content differs within bytes 5000 to 3150728"),
        ("zz", "not in the snapshot"),
    ];
    assert_eq!(found, wanted.map(|(path, what)| (path.to_owned(), what.to_owned())));
    // Another kind, and another time.
    std::fs::remove_file(at("empty")).expect("removed");
    std::fs::create_dir(at("empty")).expect("made");
    let file = File::open(at("holes")).expect("opens");
    file.set_modified(SystemTime::UNIX_EPOCH).expect("utimens");
    let found = differences(&compare(&repo, &snapshot, target.path(), None));
    assert!(found.contains(&("empty".to_owned(), "of another kind".to_owned())), "{found:?}");
    assert!(found.contains(&("holes".to_owned(), "another time of modification".to_owned())), "{found:?}");
}

#[test]
fn several_roots_lie_under_their_names() {
    let repo = test_support::open(&test_support::storage());
    let nodes: &[(&str, Node)] = &[("x", Node::File(noise(1, 10)))];
    let file: &[(&str, Node)] = &[("", Node::File(noise(2, 10)))];
    let snapshot = test_support::save_roots(&repo, 10, &[("/srv/one", nodes), ("/srv/two.bin", file)]);
    let target = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(target.path().join("one")).expect("made");
    put(&target.path().join("one/x"), &noise(1, 10));
    put(&target.path().join("two.bin"), &noise(2, 10));
    settle(&target.path().join("one"), 0o755);
    assert_eq!(differences(&compare(&repo, &snapshot, target.path(), None)), []);
    put(&target.path().join("three"), b"");
    put(&target.path().join("two.bin"), &noise(3, 10));
    let found = differences(&compare(&repo, &snapshot, target.path(), None));
    assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["three", "two.bin"]);
    assert_eq!(differences(&compare(&repo, &snapshot, &target.path().join("one"), Some("one"))), []);
}

#[test]
fn what_is_not_there_is_an_error() {
    let (repo, snapshot, target) = same();
    let resources = Resources { threads: 1, memory_bytes: 1 << 20 };
    let refused = |directory: &Path, subpath: Option<&[u8]>| {
        verify_against(&repo, &snapshot, directory, subpath, resources, &Silent).expect_err("not there").kind()
    };
    assert_eq!(refused(&target.path().join("nowhere"), None), Kind::NotFound);
    assert_eq!(refused(target.path(), Some(b"nowhere")), Kind::NotFound);
}
