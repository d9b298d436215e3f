//! Repositories written by earlier versions: each has to be listed, verified and restored by every later one.
//!
//! `tests/data/v1/repository` is as `ckpt` wrote it; `tests/data/v1/expected.txt` says what is in it. Until the first
//! release the format may still change: `CKPT_WRITE_FIXTURE=1 cargo test --test it old_format` makes both anew.

use crate::support::runs;
use crate::support::trees::Tree;
use crate::support::{disk_folder, noise};
use ckpt::events::Silent;
use ckpt::ops::init::init;
use ckpt::ops::{backup, tag};
use ckpt::repo::{Cache, Repo};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1")
}

/// A little of everything that frames, trees and records can hold.
fn write_source(source: &Path, state: u64) {
    fs::create_dir_all(source.join("sub/empty")).expect("folders");
    let weights: Vec<u8> = (0..6_000u32).flat_map(|n| (1.0 + f32::sin(n as f32) / 50.0).to_le_bytes()).collect();
    fs::write(source.join("weights"), weights).expect("a file");
    fs::write(source.join("noise"), noise(state, 9_000)).expect("a file");
    fs::write(source.join("sub/text"), b"a line that repeats\n".repeat(700)).expect("a file");
    fs::write(source.join("sub/empty file"), b"").expect("a file");
    let holes = fs::File::create(source.join("holes")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&holes, b"in the middle", 200_000).expect("written");
    holes.set_len(400_000).expect("a length");
    if state > 1 && !source.join("link").is_symlink() {
        fs::hard_link(source.join("noise"), source.join("noise too")).expect("a link");
        std::os::unix::fs::symlink("sub/text", source.join("link")).expect("a link");
    }
}

fn write_fixture() {
    let folder = disk_folder();
    let source = folder.path().join("source");
    let _ = fs::remove_dir_all(fixture());
    fs::create_dir_all(fixture()).expect("a folder");
    let location = fixture().join("repository").to_str().expect("text").to_owned();
    init(&runs::init_options(&location, runs::PACK_BYTES_MIN), None).expect("a new repository");
    let repo = Repo::open(&location, &Cache::Memory, &Silent).expect("opens");
    let mut expected = String::new();
    for state in [1, 2, 3] {
        write_source(&source, state.min(2));
        if state == 3 {
            let removed = repo.snapshots()[0].clone();
            runs::forget(&repo, &removed).expect("forgotten");
            ckpt::ops::prune::prune(&repo, &runs::prune_options(), &Silent).expect("pruned");
            fs::write(source.join("third"), noise(3, 5_000)).expect("a file");
        }
        let mut options = runs::backup_options(1);
        options.source = Some("fixture".to_owned());
        let input = backup::Input::Paths(vec![source.clone()]);
        let report = backup::backup(&repo, input, &options, &Silent).expect("backs up");
        repo.refresh(&Silent).expect("refreshes");
        if state > 1 {
            let id = report.snapshot.expect("a snapshot");
            tag::tag(&repo, &[id], &[format!("state-{state}")], &[], None).expect("tagged");
            write!(expected, "snapshot state-{state}\n{}", describe(&Tree::read(&source))).expect("written");
        }
    }
    runs::verify_all(&repo).expect("verified, so that there is a history");
    fs::write(fixture().join("expected.txt"), expected).expect("written");
}

/// Everything that does not depend on who makes the fixture and when: a line for each entry.
fn describe(tree: &Tree) -> String {
    let mut text = String::new();
    for (path, seen) in &tree.entries {
        let content = seen.content.map_or_else(String::new, |c| format!(" {} {}", c.bytes, c.hash.to_hex()));
        let linked =
            seen.linked_to.as_ref().map_or_else(String::new, |to| format!(" = {}", String::from_utf8_lossy(to)));
        let _ = writeln!(text, "{:?} {:?}{content}{linked}", String::from_utf8_lossy(path), seen.kind);
    }
    text
}

/// Files only: version control keeps no empty folders, and a repository must not need any.
fn copy_files(from: &Path, to: &Path) {
    let items = walkdir::WalkDir::new(from).into_iter().map(|item| item.expect("readable"));
    for item in items.filter(|item| item.file_type().is_file()) {
        let place = to.join(item.path().strip_prefix(from).expect("beneath"));
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        fs::copy(item.path(), place).expect("copied");
    }
}

#[test]
fn version_1_is_listed_verified_restored_and_gone_on_with() {
    if std::env::var_os("CKPT_WRITE_FIXTURE").is_some() {
        write_fixture();
    }
    let folder = disk_folder();
    let copy = folder.path().join("repository");
    // A copy, since verification remembers what it read.
    copy_files(&fixture().join("repository"), &copy);
    let repo = Repo::open(copy.to_str().expect("text"), &Cache::Memory, &Silent).expect("opens");
    assert!(repo.damage().is_empty(), "{:?}", repo.damage());
    let verified = runs::verify_all(&repo).expect("verifies");
    assert_eq!(verified.damage_count, 0, "{:?}", verified.damage);
    let mut found = String::new();
    for snapshot in repo.snapshots() {
        let target = folder.path().join(snapshot.id.short());
        let report = runs::restore(&repo, &snapshot, &target).expect("restores");
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{report:?}");
        let tag = snapshot.tags.iter().next().expect("a tag");
        write!(found, "snapshot {tag}\n{}", describe(&Tree::read(&target))).expect("written");
    }
    let expected = fs::read_to_string(fixture().join("expected.txt")).expect("the fixture is complete");
    assert_eq!(found, expected);
    // And a backup into it relies on what it holds.
    let source = folder.path().join("source");
    write_source(&source, 2);
    fs::write(source.join("third"), noise(3, 5_000)).expect("a file");
    let report = runs::backup(&repo, &source, 2).expect("backs up");
    assert_eq!((report.bytes_new, report.chunks_new), (0, 0), "chunks are cut and named as ever");
}
