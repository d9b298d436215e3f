//! Arbitrary trees there and back: content, metadata, links, attributes and holes; the same chunks with any threads.
//!
//! On a real file system, through a repository on that file system. Cases follow from proptest's own seeds; a failure
//! prints the tree, and `PROPTEST_CASES` makes more of them.

use crate::support::keys::{KeysOf, init_encrypted};
use crate::support::runs::{self, PACK_BYTES_MIN};
use crate::support::trees::Tree;
use crate::support::{disk_folder, noise, setting};
use ckpt::events::Silent;
use ckpt::ops::init::init;
use ckpt::repo::keys::Role;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Cache, Repo};
use ckpt::storage;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Sizes around those at which files are handled in another way.
const SIZES: [usize; 13] =
    [0, 1, 4095, 4096, 4097, 65_535, 65_536, 1 << 20, (1 << 20) + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20];

/// What stands at a path.
#[derive(Debug, Clone)]
enum Node {
    Empty,
    /// Noise by seed and size.
    File(u64, usize),
    /// Runs of content and holes by their lengths, beginning with a hole if the flag says so.
    Sparse(bool, Vec<usize>),
    Link(Vec<u8>),
    Fifo,
    /// Another name of the first regular file.
    HardLink,
}

/// An entry with its metadata.
#[derive(Debug, Clone)]
struct Item {
    folder: u8,
    name: Vec<u8>,
    node: Node,
    mode: u32,
    seconds: u64,
    nanoseconds: u32,
    attribute: Option<Vec<u8>>,
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![Just(b'\n'), Just(0xff), Just(b' '), Just(b'*'), Just(1), Just(b'.'), b'a'..=b'z', any::<u8>()];
    let is_name = |name: &Vec<u8>| !name.iter().any(|b| *b == b'/' || *b == 0) && name != b"." && name != b"..";
    prop_oneof![9 => prop::collection::vec(byte, 1..12), 1 => Just(vec![b'n'; 255])].prop_filter("no name", is_name)
}

fn nodes() -> impl Strategy<Value = Node> {
    let sizes = prop_oneof![4 => 0usize..20_000, 3 => prop::sample::select(SIZES.to_vec())];
    let run = prop_oneof![1usize..10_000, Just(4096), Just(65_536), 100_000usize..600_000];
    prop_oneof![
        1 => Just(Node::Empty),
        8 => (0u64..20, sizes).prop_map(|(seed, bytes)| Node::File(seed, bytes)),
        3 => (any::<bool>(), prop::collection::vec(run, 1..6)).prop_map(|(begin, runs)| Node::Sparse(begin, runs)),
        2 => prop::collection::vec(1u8.., 1..40).prop_map(Node::Link),
        1 => Just(Node::Fifo),
        2 => Just(Node::HardLink),
    ]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let modes = prop_oneof![3 => Just(0o644), 1 => 0u32..0o1000, 1 => Just(0o4755), 1 => Just(0o2711)];
    let attribute = prop::option::weighted(0.3, prop::collection::vec(any::<u8>(), 0..200));
    let item = (0u8..6, names(), nodes(), modes, 0u64..4_000_000_000, 0u32..1_000_000_000, attribute);
    let item = item.prop_map(|(folder, name, node, mode, seconds, nanoseconds, attribute)| Item {
        folder,
        name,
        node,
        mode,
        seconds,
        nanoseconds,
        attribute,
    });
    prop::collection::vec(item, 0..14)
}

/// Makes the tree. An item whose place is taken is left out.
fn make(root: &Path, items: &[Item]) {
    const FOLDERS: [&[u8]; 6] = [b"", b"d", b"d/e", b"d/e/f\xfe", b"d-", b"z"];
    for folder in FOLDERS {
        fs::create_dir_all(root.join(OsStr::from_bytes(folder))).expect("a folder");
    }
    let mut first_file = None;
    for item in items {
        let place = root.join(OsStr::from_bytes(FOLDERS[usize::from(item.folder)])).join(OsStr::from_bytes(&item.name));
        if fs::symlink_metadata(&place).is_ok() {
            continue;
        }
        match &item.node {
            Node::Empty => fs::write(&place, b"").expect("a file"),
            Node::File(seed, bytes) => fs::write(&place, noise(*seed, *bytes)).expect("a file"),
            Node::Sparse(begins_with_hole, runs) => write_sparse(&place, *begins_with_hole, runs),
            Node::Link(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &place).expect("a link"),
            Node::Fifo => {
                rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                    .expect("a pipe");
            }
            Node::HardLink => match &first_file {
                Some(first) => fs::hard_link(first, &place).expect("a hard link"),
                None => continue,
            },
        }
        if matches!(item.node, Node::Empty | Node::File(..) | Node::Sparse(..)) {
            finish_file(&place, item);
            first_file.get_or_insert(place);
        }
    }
}

fn write_sparse(place: &Path, begins_with_hole: bool, runs: &[usize]) {
    let file = File::create(place).expect("a file");
    let mut offset = 0;
    for (number, &bytes) in runs.iter().enumerate() {
        if (number % 2 == 0) != begins_with_hole {
            file.write_all_at(&noise(number as u64, bytes), offset).expect("written");
        }
        offset += bytes as u64;
    }
    file.set_len(offset).expect("a length");
}

fn finish_file(place: &Path, item: &Item) {
    if let Some(value) = &item.attribute {
        let name = CString::new("user.test").expect("a name");
        rustix::fs::setxattr(place, &name, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
    }
    let time = SystemTime::UNIX_EPOCH + Duration::new(item.seconds, item.nanoseconds);
    let file = File::options().write(true).open(place).expect("opens");
    file.set_times(FileTimes::new().set_modified(time)).expect("times");
    fs::set_permissions(place, Permissions::from_mode(item.mode)).expect("a mode");
}

/// A repository on disk with an index in memory.
fn repository(folder: &Path) -> Repo {
    let location = folder.join("repository").to_str().expect("text").to_owned();
    if !Path::new(&location).exists() {
        let options = runs::init_options(&location, 4 * PACK_BYTES_MIN);
        match runs::is_encrypted_by_setting() {
            true => init_encrypted(storage::create(&location).expect("a folder").as_ref(), &options),
            false => drop(init(&options, None).expect("a new repository")),
        }
    }
    Repo::open_with(&location, &Cache::Memory, &KeysOf(Role::Admin), &Silent).expect("opens")
}

/// Blocks of all files by path.
fn blocks(root: &Path) -> BTreeMap<Vec<u8>, u64> {
    let items = walkdir::WalkDir::new(root).into_iter().flatten().filter(|item| item.file_type().is_file());
    let key = |path: &Path| path.strip_prefix(root).expect("beneath").as_os_str().as_bytes().to_vec();
    items.map(|item| (key(item.path()), item.metadata().expect("readable").blocks() * 512)).collect()
}

fn assert_restores(repo: &Repo, snapshot: &Snapshot, source: &Path, target: &Path) {
    let report = runs::restore(repo, snapshot, target).expect("restores");
    assert!(report.damaged.is_empty() && report.failed.is_empty(), "{report:?}");
    assert!(report.metadata_issues.is_empty(), "{:?}", report.metadata_issues);
    Tree::read(target).assert_is(&Tree::read(source), "restored");
    // A hole may lose its ragged edges to the blocks of the file system, and each run of content a block at each end.
    for (path, original) in blocks(source) {
        let restored = blocks(target)[&path];
        assert!(restored <= original + (64 << 10), "{path:?} took {original} and now takes {restored}");
    }
}

fn cases() -> u32 {
    u32::try_from(setting("PROPTEST_CASES", 24)).expect("a count")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn arbitrary_trees_come_back_as_they_were(items in items()) {
        let folder = disk_folder();
        let source = folder.path().join("source");
        fs::create_dir(&source).expect("a folder");
        make(&source, &items);
        let repo = repository(folder.path());
        let first = runs::save(&repo, &source);
        assert_restores(&repo, &first, &source, &folder.path().join("target"));

        let again = runs::backup(&repo, &source, 2).expect("backs up again");
        prop_assert_eq!((again.bytes_read, again.bytes_new, again.chunks_new), (0, 0, 0));
        let again = again.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
        prop_assert_eq!(again.tree, first.tree);
        prop_assert_eq!(again.parent, Some(first.id));
    }

    #[test]
    fn the_tree_is_the_same_with_any_number_of_threads(items in items()) {
        let folder = disk_folder();
        let source = folder.path().join("source");
        fs::create_dir(&source).expect("a folder");
        make(&source, &items);
        let trees = [1, 2, 5].map(|threads| {
            let storage = runs::simulated(PACK_BYTES_MIN);
            let repo = runs::open(&storage).expect("opens");
            let report = runs::backup(&repo, &source, threads).expect("backs up");
            (report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved").tree, report.bytes_new)
        });
        prop_assert_eq!(trees[0], trees[1]);
        prop_assert_eq!(trees[0], trees[2]);
    }
}

#[test]
fn files_of_every_size_around_a_boundary_come_back() {
    let folder = disk_folder();
    let source = folder.path().join("source");
    fs::create_dir(&source).expect("a folder");
    for bytes in SIZES {
        fs::write(source.join(format!("{bytes}")), noise(bytes as u64, bytes)).expect("a file");
    }
    let large = File::create(source.join("holes")).expect("a file");
    large.write_all_at(&noise(1, 100_000), 20 << 20).expect("written");
    large.write_all_at(&noise(2, 3), 41 << 20).expect("written");
    large.set_len(64 << 20).expect("a length");
    let repo = repository(folder.path());
    let report = runs::backup(&repo, &source, 2).expect("backs up");
    assert!(report.bytes_read < report.bytes_logical - (60 << 20), "holes are not read: {report:?}");
    let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
    assert_restores(&repo, &snapshot, &source, &folder.path().join("target"));
}
