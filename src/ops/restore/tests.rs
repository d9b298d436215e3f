//! Restores from repositories in which chunks are coded against others.

use super::*;
use crate::bytes::ByteRange;
use crate::events::Silent;
use crate::ids::SnapshotId;
use crate::repo::Cache;
use crate::repo::pack::{PackKind, PackSummary};
use crate::repo::test_support::{self, CHUNK_BYTES, Node, noise, store};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use crate::storage::{Listed, ObjectName, ObjectWriter, Owner, Storage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Notes which ranges of which packs are read.
struct Watched {
    storage: SimulatedStorage,
    ranges: Mutex<Vec<(String, ByteRange)>>,
}

impl Storage for Watched {
    fn describe(&self) -> String {
        self.storage.describe()
    }

    fn create(&self, folder: &str) -> Result<Box<dyn ObjectWriter>> {
        self.storage.create(folder)
    }

    fn replace(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        self.storage.replace(name, bytes)
    }

    fn read(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.storage.read(name, bytes_max)
    }

    fn read_range(&self, name: &ObjectName, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        self.ranges.lock().expect("whole").push((name.as_str().to_owned(), range));
        self.storage.read_range(name, range, into)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.storage.list(folder)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.storage.size(name)
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        self.storage.delete(name)
    }

    fn sync_folder(&self, folder: &str) -> Result<()> {
        self.storage.sync_folder(folder)
    }

    fn delete_abandoned(&self, owner: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64> {
        self.storage.delete_abandoned(owner)
    }
}

/// A repository whose packs of content have been stored by the test, chunk by chunk.
struct Fixture {
    storage: SimulatedStorage,
    packs: Vec<PackSummary>,
    files: BTreeMap<String, Vec<u8>>,
    snapshot: Option<Snapshot>,
    target: tempfile::TempDir,
}

/// A chunk, and the contents of its bases.
type Stored<'a> = (&'a [u8], &'a [&'a [u8]]);

impl Fixture {
    fn new() -> Fixture {
        Fixture {
            storage: test_support::storage(),
            packs: Vec::new(),
            files: BTreeMap::new(),
            snapshot: None,
            target: tempfile::tempdir().expect("a directory"),
        }
    }

    /// A pack of these chunks, each in a frame of its own.
    fn pack(&mut self, chunks: &[Stored<'_>]) {
        self.packs.push(store(&test_support::open(&self.storage), chunks));
    }

    /// A file of these chunks, which are in packs already.
    fn file(&mut self, path: &str, chunks: &[&[u8]]) {
        assert!(chunks.iter().all(|chunk| chunk.len() == CHUNK_BYTES));
        self.files.insert(path.to_owned(), chunks.concat());
    }

    fn save(&mut self) {
        let repo = test_support::open(&self.storage);
        let nodes: Vec<(&str, Node)> =
            self.files.iter().map(|(path, bytes)| (path.as_str(), Node::File(bytes.clone()))).collect();
        self.snapshot = Some(test_support::save(&repo, 10, &nodes));
    }

    /// As [`Fixture::save`], but nothing of the files is in the repository then: for tables that no sound writer makes.
    fn save_without_content(&mut self) {
        self.save();
        let repo = test_support::open(&self.storage);
        let packs = repo.index().packs().expect("known").into_iter().filter(|pack| pack.kind == PackKind::Data);
        let packs = packs.map(|pack| crate::repo::names::pack(pack.id).expect("a name"));
        let indexes = self.storage.names().into_iter().filter(|name| name.as_str().starts_with("index/"));
        for name in packs.chain(indexes) {
            assert!(self.storage.remove(&name));
        }
    }

    /// Restores all, with what was read of the packs that the test stored.
    fn restore(&self, threads: usize) -> (RestoreReport, Vec<(String, ByteRange)>) {
        let watched = Arc::new(Watched { storage: self.storage.clone(), ranges: Mutex::default() });
        let repo = Repo::open_storage(watched.clone(), &Cache::Memory, &Silent).expect("opens");
        watched.ranges.lock().expect("whole").clear();
        let options = self.options(Resources { threads, memory_bytes: 1 << 26 });
        let report = restore(&repo, self.snapshot.as_ref().expect("saved"), &options, &Silent).expect("restores");
        let names: Vec<String> = self.packs.iter().map(|pack| self.name(pack).as_str().to_owned()).collect();
        let mut ranges = std::mem::take(&mut *watched.ranges.lock().expect("whole"));
        ranges.retain(|(name, _)| names.contains(name));
        (report, ranges)
    }

    fn options(&self, resources: Resources) -> RestoreOptions {
        RestoreOptions {
            target: Destination::Directory(self.target.path().to_owned()),
            subpath: None,
            includes: vec![],
            excludes: vec![],
            overwrite: Overwrite::IfChanged,
            delete: false,
            dry_run: false,
            resources,
        }
    }

    /// Restores all while reads of content, and listings if so, fail with errors of this kind.
    fn restore_failing(&self, kind: Kind, lists_fail: bool) -> Result<RestoreReport> {
        let repo = test_support::open(&self.storage);
        // What the list of files is read from is still there.
        let packs: Vec<String> = self.packs.iter().map(|pack| self.name(pack).as_str().to_owned()).collect();
        let is_meant = move |operation, name: &str| match operation {
            Operation::ReadRange => packs.iter().any(|pack| pack == name),
            operation => lists_fail && operation == Operation::List,
        };
        let resources = Resources { threads: 2, memory_bytes: 1 << 26 };
        self.storage.fail(0..u64::MAX, is_meant, Fault::Error(kind));
        let report = restore(&repo, self.snapshot.as_ref().expect("saved"), &self.options(resources), &Silent);
        self.storage.heal();
        report
    }

    fn name(&self, pack: &PackSummary) -> ObjectName {
        crate::repo::names::pack(pack.id).expect("a name")
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.target.path().join(path)
    }

    /// Restores all, which must succeed and read every frame of every pack exactly once.
    fn assert_restores_reading_once(&self) {
        let (report, mut ranges) = self.restore(2);
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{report:?}");
        self.assert_content(&[]);
        let frames: u64 = self.packs.iter().flat_map(frames).map(|(_, bytes)| bytes).sum();
        assert_eq!((ranges.iter().map(|(_, range)| range.len()).sum::<u64>(), report.bytes_fetched), (frames, frames));
        ranges.sort_by(|a, b| (&a.0, a.1.offset()).cmp(&(&b.0, b.1.offset())));
        assert!(ranges.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1.end() <= pair[1].1.offset()));
    }

    /// All files are there and right but for these.
    fn assert_content(&self, missing: &[&str]) {
        for (path, bytes) in &self.files {
            match missing.contains(&path.as_str()) {
                true => assert!(!self.at(path).exists(), "{path}"),
                false => assert!(std::fs::read(self.at(path)).expect("restored") == *bytes, "{path}"),
            }
        }
    }

    /// Restores all; exactly these files must be named damaged, and everything else be right.
    fn assert_damaged(&self, damaged: &[&str]) -> RestoreReport {
        let (report, _) = self.restore(2);
        let mut named: Vec<_> = report.damaged.kept.iter().map(|problem| file_name(&problem.path)).collect();
        named.sort();
        assert_eq!(named, damaged);
        assert!(report.damaged.kept.iter().all(|problem| problem.error.kind() == Kind::Damaged), "{report:?}");
        self.assert_content(damaged);
        report
    }
}

fn file_name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).rsplit('/').next().unwrap_or_default().to_owned()
}

/// Where each frame of a pack begins, and its bytes.
fn frames(pack: &PackSummary) -> Vec<(u64, u64)> {
    pack.frames().expect("sound").iter().map(|frame| (frame.offset, u64::from(frame.stored_bytes))).collect()
}

/// Chunk `n` of version `version` of a file: all versions differ in a few bytes.
fn chunk(n: u64, version: u64) -> Vec<u8> {
    let mut bytes = noise(n, CHUNK_BYTES);
    if version > 0 {
        bytes[100..150].copy_from_slice(&noise(1_000_000 + 1000 * version + n, 50));
    }
    bytes
}

fn slices(chunks: &[Vec<u8>]) -> Vec<&[u8]> {
    chunks.iter().map(Vec::as_slice).collect()
}

/// Stores chunks in one pack, each on the chunk of the same number in `bases`.
fn pack_on(fixture: &mut Fixture, chunks: &[Vec<u8>], bases: &[Vec<u8>]) {
    let bases: Vec<[&[u8]; 1]> = bases.iter().map(|base| [base.as_slice()]).collect();
    let stored: Vec<Stored<'_>> =
        chunks.iter().zip(&bases).map(|(chunk, base)| (chunk.as_slice(), &base[..])).collect();
    fixture.pack(&stored);
}

fn pack_alone(fixture: &mut Fixture, chunks: &[Vec<u8>]) {
    let stored: Vec<Stored<'_>> = chunks.iter().map(|chunk| (chunk.as_slice(), &[][..])).collect();
    fixture.pack(&stored);
}

fn chunks(version: u64) -> Vec<Vec<u8>> {
    (0..20).map(|n| chunk(n, version)).collect()
}

#[test]
fn ten_versions_of_a_file_are_restored_with_every_frame_read_once() {
    let mut fixture = Fixture::new();
    pack_alone(&mut fixture, &chunks(0));
    fixture.file("v0", &slices(&chunks(0)));
    for version in 1..10 {
        pack_on(&mut fixture, &chunks(version), &chunks(0));
        fixture.file(&format!("v{version}"), &slices(&chunks(version)));
    }
    fixture.save();
    fixture.assert_restores_reading_once();
}

#[test]
fn the_newest_version_alone_is_restored_with_its_anchor_read_once() {
    let mut fixture = Fixture::new();
    pack_alone(&mut fixture, &chunks(0));
    pack_on(&mut fixture, &chunks(1), &chunks(0));
    // Twice in one file, and in another file besides.
    let twice = [chunks(1), chunks(1)].concat();
    fixture.file("new", &slices(&twice));
    fixture.file("same", &slices(&chunks(1)));
    fixture.save();
    fixture.assert_restores_reading_once();
}

#[test]
fn chains_of_five_are_restored_with_every_frame_read_once() {
    let mut fixture = Fixture::new();
    pack_alone(&mut fixture, &chunks(0));
    // The packs of a chain lie in any order, and the last has two bases.
    for version in 1..5 {
        pack_on(&mut fixture, &chunks(version), &chunks(version - 1));
    }
    let last = chunk(7, 5);
    fixture.pack(&[(&last, &[&chunk(7, 4), &chunk(8, 4)])]);
    fixture.file("v3", &slices(&chunks(3)));
    fixture.file("v4", &slices(&chunks(4)));
    fixture.file("last", &[&last]);
    fixture.save();
    fixture.assert_restores_reading_once();
}

#[test]
fn a_delta_on_a_delta_on_an_anchor_in_one_snapshot_is_restored_with_every_frame_read_once() {
    let mut fixture = Fixture::new();
    pack_alone(&mut fixture, &chunks(0));
    pack_on(&mut fixture, &chunks(1), &chunks(0));
    // Two chunks on each, as numbers in another precision have.
    let on_first: Vec<Vec<u8>> = (0..20).flat_map(|n| [chunk(n, 2), chunk(n, 3)]).collect();
    let bases: Vec<Vec<u8>> = (0..20).flat_map(|n| [chunk(n, 1), chunk(n, 1)]).collect();
    pack_on(&mut fixture, &on_first, &bases);
    fixture.file("model", &slices(&chunks(1)));
    fixture.file("optimizer", &slices(&on_first));
    fixture.save();
    fixture.assert_restores_reading_once();
}

/// Three versions on one anchor, a file that has nothing to do with them, and a file on the second version.
fn family() -> Fixture {
    let mut fixture = Fixture::new();
    pack_alone(&mut fixture, &chunks(0));
    pack_on(&mut fixture, &chunks(1), &chunks(0));
    pack_on(&mut fixture, &chunks(2), &chunks(0));
    pack_on(&mut fixture, &chunks(3), &chunks(2));
    fixture.file("v0", &slices(&chunks(0)));
    fixture.file("v1", &slices(&chunks(1)));
    fixture.file("v2", &slices(&chunks(2)));
    fixture.file("v3", &slices(&chunks(3)));
    let other: Vec<Vec<u8>> = (100..110).map(|n| chunk(n, 0)).collect();
    pack_alone(&mut fixture, &other);
    fixture.file("other", &slices(&other));
    fixture.save();
    fixture
}

#[test]
fn without_a_base_only_what_stands_on_it_is_left_out() {
    let fixture = family();
    assert!(fixture.storage.remove(&fixture.name(&fixture.packs[2])));
    fixture.assert_damaged(&["v2", "v3"]);
    let fixture = family();
    assert!(fixture.storage.remove(&fixture.name(&fixture.packs[0])));
    fixture.assert_damaged(&["v0", "v1", "v2", "v3"]);
}

#[test]
fn a_damaged_base_damages_what_stands_on_it_and_nothing_else() {
    let fixture = family();
    let (offset, bytes) = frames(&fixture.packs[3])[5];
    let middle = usize::try_from(offset + bytes / 2).expect("small");
    assert!(fixture.storage.corrupt(&fixture.name(&fixture.packs[3]), middle, 1));
    fixture.assert_damaged(&["v3"]);
    let fixture = family();
    let (offset, bytes) = frames(&fixture.packs[0])[5];
    let middle = usize::try_from(offset + bytes / 2).expect("small");
    assert!(fixture.storage.corrupt(&fixture.name(&fixture.packs[0]), middle, 1));
    fixture.assert_damaged(&["v0", "v1", "v2", "v3"]);
}

#[test]
fn a_damaged_base_with_another_home_damages_nothing() {
    let mut fixture = family();
    pack_alone(&mut fixture, &chunks(0));
    for pack in [0, fixture.packs.len() - 1] {
        let copy = Fixture {
            storage: fixture.storage.copy(),
            packs: fixture.packs.clone(),
            files: fixture.files.clone(),
            snapshot: fixture.snapshot.clone(),
            target: tempfile::tempdir().expect("a directory"),
        };
        assert!(copy.storage.remove(&copy.name(&copy.packs[pack])));
        copy.assert_damaged(&[]);
    }
}

#[test]
fn circles_in_forged_tables_are_damage_and_end() {
    let mut fixture = Fixture::new();
    fixture.file("alone", &slices(&chunks(0)));
    fixture.file("circle", &[&chunk(1, 2)]);
    fixture.file("on it", &[&chunk(0, 0), &chunk(2, 1)]);
    fixture.save_without_content();
    pack_alone(&mut fixture, &chunks(0));
    fixture.pack(&[(&chunk(1, 1), &[&chunk(1, 2)]), (&chunk(1, 2), &[&chunk(1, 3)])]);
    fixture.pack(&[(&chunk(1, 3), &[&chunk(1, 1), &chunk(0, 0)]), (&chunk(2, 1), &[&chunk(0, 0), &chunk(1, 1)])]);
    fixture.assert_damaged(&["circle", "on it"]);
}

#[test]
fn chains_that_are_too_long_are_damage() {
    let mut fixture = Fixture::new();
    let links: Vec<Vec<u8>> = (0..=65).map(|n| chunk(n, 0)).collect();
    fixture.file("just short enough", &[&links[64]]);
    fixture.file("too long", &[&links[65]]);
    fixture.save_without_content();
    pack_alone(&mut fixture, &links[..1]);
    for pair in links.windows(2) {
        fixture.pack(&[(&pair[1], &[&pair[0]])]);
    }
    fixture.assert_damaged(&["too long"]);
}

#[test]
fn a_restore_goes_on_where_it_ended_with_the_bases_of_what_is_missing() {
    let fixture = family();
    let (report, _) = fixture.restore(2);
    assert_eq!(report.files_restored, 5);
    // The first half of one file is spoilt.
    let mut bytes = fixture.files["v3"].clone();
    bytes[..10 * CHUNK_BYTES].fill(0);
    std::fs::write(fixture.at("v3"), &bytes).expect("writes");
    let (report, ranges) = fixture.restore(2);
    assert_eq!((report.files_restored, report.files_unchanged), (1, 4));
    assert_eq!(report.bytes_reused, 10 * CHUNK_BYTES as u64);
    fixture.assert_content(&[]);
    let halves = [0, 2, 3].map(|pack| frames(&fixture.packs[pack])[..10].iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(report.bytes_fetched, halves.iter().sum::<u64>());
    assert_eq!(ranges.len(), 3);
}

#[test]
fn what_is_wrong_with_the_run_or_its_storage_is_no_damage_and_ends_it() {
    let fixture = family();
    let error = fixture.restore_failing(Kind::Interrupted, false).expect_err("no verdict on the repository");
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    let error = fixture.restore_failing(Kind::Unreachable, true).expect_err("nothing answers");
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    // As long as the rest answers, it is the places that are bad.
    let report = fixture.restore_failing(Kind::Unreachable, false).expect("leaves out what cannot be read");
    assert_eq!((report.damaged.count, report.failed.count), (5, 0), "{report:?}");
    assert_eq!(fixture.restore(2).0.files_restored, 5);
    fixture.assert_content(&[]);
}

impl Fixture {
    /// Restores all with so little memory that a window holds 16 chunks; exactly these files must be named damaged.
    fn assert_restores_in_small_windows(&self, damaged: &[&str]) {
        let repo = test_support::open(&self.storage);
        let options = self.options(Resources { threads: 2, memory_bytes: 1 << 10 });
        let report = restore(&repo, self.snapshot.as_ref().expect("saved"), &options, &Silent).expect("restores");
        let named: Vec<_> = report.damaged.kept.iter().map(|problem| file_name(&problem.path)).collect();
        assert_eq!((named, report.failed.count), (damaged.iter().map(|name| (*name).to_owned()).collect(), 0));
        self.assert_content(damaged);
        let mut names = std::fs::read_dir(self.target.path()).expect("a folder").flatten();
        assert!(!names.any(|item| item.file_name().to_string_lossy().ends_with(".ckpt-part")), "a part is left");
    }

    /// Damages what the last part of the list of a file's chunks is read from.
    fn damage_end_of_list(&self, path: &str) {
        let repo = test_support::open(&self.storage);
        let fetch = |id| repo.read_chunk(id);
        let tree = self.snapshot.as_ref().expect("saved").tree;
        let entry = repo.entries(&fetch, tree).flatten().find(|entry| entry.path == path.as_bytes()).expect("an entry");
        let top = repo.read_chunk(entry.content.expect("content").root).expect("a node");
        let last = *crate::repo::stream::parse_node(&top).expect("children").last().expect("some");
        let home = repo.locate(&[last.id]).expect("known")[0][0];
        let at = usize::try_from(home.frame_offset + u64::from(home.frame_stored) / 2).expect("small");
        assert!(self.storage.corrupt(&crate::repo::names::pack(home.pack).expect("a name"), at, 1));
    }
}

#[test]
fn a_file_of_more_chunks_than_a_window_may_have_is_restored_through_several() {
    let mut fixture = Fixture::new();
    let many: Vec<Vec<u8>> = (0..100).map(|n| chunk(n, 0)).collect();
    pack_alone(&mut fixture, &many[..60]);
    pack_alone(&mut fixture, &many[60..]);
    fixture.file("a", &[&many[0]]);
    fixture.file("big", &slices(&many));
    fixture.file("c", &slices(&many[50..70]));
    fixture.file("d", &slices(&many[..16]));
    fixture.save();
    fixture.assert_restores_in_small_windows(&[]);
    // What stands there is taken over, in whatever window it is found.
    let mut other = fixture.files["big"].clone();
    other[40 * CHUNK_BYTES..45 * CHUNK_BYTES].fill(1);
    other.extend(noise(7, 10_000));
    std::fs::write(fixture.at("big"), &other).expect("writes");
    fixture.assert_restores_in_small_windows(&[]);
    for path in ["a", "big", "c", "d"] {
        std::fs::remove_file(fixture.at(path)).expect("removed");
    }
    assert!(fixture.storage.remove(&fixture.name(&fixture.packs[1])));
    fixture.assert_restores_in_small_windows(&["big", "c"]);
}

#[test]
fn a_list_of_chunks_that_breaks_off_leaves_out_the_file_and_nothing_else() {
    let mut fixture = Fixture::new();
    let one = chunk(1, 0);
    pack_alone(&mut fixture, std::slice::from_ref(&one));
    fixture.file("a", &[&one]);
    // The same chunk over and over: a list of two parts at least, each stored by itself.
    fixture.file("big", &vec![one.as_slice(); 4096 + 300]);
    fixture.file("c", &[&one, &one]);
    fixture.save();
    fixture.assert_restores_in_small_windows(&[]);
    for path in ["a", "big", "c"] {
        std::fs::remove_file(fixture.at(path)).expect("removed");
    }
    fixture.damage_end_of_list("big");
    fixture.assert_restores_in_small_windows(&["big"]);
}
