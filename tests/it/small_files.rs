//! Many small files: which of them share a frame, what a damaged one costs, and that nothing depends on who was faster.

use crate::support::runs;
use crate::support::trees::Tree;
use crate::support::{noise, quick_folder};
use ckpt::events::Silent;
use ckpt::ids::PackId;
use ckpt::ops::init::{InitOptions, init_storage};
use ckpt::ops::restore::{RestoreOptions, restore};
use ckpt::ops::verify::Damage;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The most content of a frame that is shared, and the smallest chunk that is cut by content.
const SHARED_BYTES_MAX: u64 = 1 << 20;
const CHUNK_BYTES_MIN: usize = 64 << 10;

/// Lines that no other seed has, and that compress.
fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let words = noise(seed, bytes / 8 + 16);
    let mut lines: Vec<u8> =
        words.iter().flat_map(|word| format!("word {} of {seed}\n", word % 50).into_bytes()).collect();
    lines.truncate(bytes);
    lines
}

/// Numbers of single precision, which have a codec of their own.
fn numbers(seed: u64, bytes: usize) -> Vec<u8> {
    let to_number =
        |word: &[u8]| f32::from(i16::from_le_bytes([word[0], word[1]])) / 32768.0 + 1e-9 * f32::from(word[2]);
    noise(seed, bytes).chunks_exact(4).flat_map(|word| to_number(word).to_le_bytes()).collect()
}

/// About 3 MiB in many files of five directories, with all that makes one special.
fn source_files() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for number in 0..300u64 {
        let bytes = 1 + usize::try_from(number * number % 9_000).expect("small");
        files.insert(format!("{}/{number:03}", number / 60), text(number, bytes));
    }
    for number in 0..12u64 {
        let bytes = 70_000 + usize::try_from(number * 7_000).expect("small");
        files.insert(format!("{}/m{number}", number % 5), text(1_000 + number, bytes));
    }
    for (name, bytes) in [("below", CHUNK_BYTES_MIN - 1), ("at", CHUNK_BYTES_MIN), ("above", CHUNK_BYTES_MIN + 1)] {
        files.insert(format!("edge/{name}"), text(2_000 + bytes as u64, bytes));
    }
    files.insert("edge/empty".to_owned(), Vec::new());
    files.insert("4/noise".to_owned(), noise(1, 100_000));
    files.insert("4/numbers".to_owned(), numbers(2, 100_000));
    files.insert("0/same".to_owned(), text(7, 5_000));
    files.insert("3/same".to_owned(), text(7, 5_000));
    files
}

fn write(files: &BTreeMap<String, Vec<u8>>, source: &Path) {
    for (path, content) in files {
        let path = source.join(path);
        fs::create_dir_all(path.parent().expect("below the source")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
}

/// The files in a folder, and an empty repository with the usual sizes of chunks and packs.
struct Scene {
    folder: TempDir,
    source: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    storage: SimulatedStorage,
}

impl Scene {
    fn new() -> Scene {
        let (folder, files) = (quick_folder(), source_files());
        let source = folder.path().join("source");
        write(&files, &source);
        let storage = SimulatedStorage::new();
        let options = InitOptions { chunk_sizes: None, ..runs::init_options("simulated", 64 << 20) };
        init_storage(&storage, &options).expect("an empty storage takes a repository");
        Scene { folder, source, files, storage }
    }

    /// Saves the files, and what frames there are then.
    fn save(&self) -> (Snapshot, Vec<Held>) {
        let repo = runs::open(&self.storage).expect("opens");
        let snapshot = runs::save(&repo, &self.source);
        (snapshot, frames_of(&self.storage, &repo, &self.files))
    }
}

/// A frame, its pack, and the files that it holds.
struct Held {
    pack: PackId,
    frame: FrameRecord,
    paths: BTreeSet<String>,
}

impl Held {
    fn is_shared(&self) -> bool {
        self.frame.chunks.len() > 1
    }
}

/// The frames that hold chunks of these files.
fn frames_of(storage: &SimulatedStorage, repo: &Repo, files: &BTreeMap<String, Vec<u8>>) -> Vec<Held> {
    let paths_of = |frame: &FrameRecord| {
        let holds = |content: &Vec<u8>| frame.chunks.iter().any(|(id, _)| *id == repo.chunk_id(content));
        files.iter().filter(|(_, content)| holds(content)).map(|(path, _)| path.clone()).collect()
    };
    let of_pack = |(pack, frames): (PackId, Vec<FrameRecord>)| {
        frames.into_iter().map(move |frame| Held { pack, paths: paths_of(&frame), frame })
    };
    let all = runs::frames(storage).into_iter().flat_map(of_pack);
    all.filter(|held| !held.paths.is_empty()).collect()
}

#[test]
fn files_of_several_directories_share_filled_frames_and_numbers_have_their_own() {
    let (_, frames) = Scene::new().save();
    let shared: Vec<&Held> = frames.iter().filter(|held| held.is_shared()).collect();
    let raw = |held: &Held| u64::from(held.frame.raw_bytes);
    let bytes: u64 = shared.iter().map(|held| raw(held)).sum();
    assert!(shared.len() as u64 <= bytes.div_ceil(SHARED_BYTES_MAX) + 1, "{} for {bytes} bytes", shared.len());
    assert!(shared.iter().all(|held| raw(held) <= SHARED_BYTES_MAX));
    let directories = |held: &Held| held.paths.iter().map(|path| path[..1].to_owned()).collect::<BTreeSet<_>>().len();
    assert!(shared.iter().any(|held| directories(held) > 1));
    for held in &frames {
        let is_special = held.paths.contains("4/noise") || held.paths.contains("4/numbers");
        assert_eq!(held.is_shared(), !is_special, "{:?}", held.paths);
    }
    let held: Vec<_> = frames.iter().flat_map(|held| &held.frame.chunks).map(|(id, _)| *id).collect();
    assert_eq!(held.len(), held.iter().collect::<BTreeSet<_>>().len(), "what is twice in a frame is stored once");
    assert!(frames.iter().any(|held| held.paths.contains("0/same") && held.paths.contains("3/same")));
}

#[test]
fn any_number_of_threads_brings_back_the_same_with_hard_links_and_one_frame_for_one_file() {
    let Scene { folder, source, files, storage } = Scene::new();
    fs::hard_link(source.join("0/001"), source.join("4/linked")).expect("a link");
    let wanted = Tree::read(&source);
    for threads in [1, 3] {
        let repo = runs::open(&storage).expect("opens");
        let saved = runs::backup(&repo, &source, threads).expect("saves").snapshot.expect("a snapshot");
        let snapshot = repo.snapshot(saved).expect("listed");
        let target = folder.path().join(format!("target-{threads}"));
        let resources = runs::resources(threads);
        let options = RestoreOptions { resources, ..runs::restore_options(&target) };
        let report = restore(&repo, &snapshot, &options, &Silent).expect("restores");
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{report:?}");
        assert_eq!(report.files_restored, files.len() as u64 + 1);
        Tree::read(&target).assert_is(&wanted, &format!("{threads} threads"));
        let options =
            RestoreOptions { includes: vec!["2/150".to_owned()], ..runs::restore_options(&folder.path().join("one")) };
        let report = restore(&repo, &snapshot, &options, &Silent).expect("restores");
        assert!(report.bytes_fetched < SHARED_BYTES_MAX, "{report:?}");
        assert_eq!(fs::read(folder.path().join("one/2/150")).expect("restored"), files["2/150"]);
    }
}

#[test]
fn a_damaged_shared_frame_costs_its_own_files_and_no_other() {
    let scene = Scene::new();
    let (snapshot, frames) = scene.save();
    let Scene { folder, source, files, storage } = scene;
    let shared = frames.iter().filter(|held| held.is_shared());
    let Held { pack, frame, paths: lost } = shared.min_by_key(|held| held.paths.len()).expect("some are shared");
    let middle = usize::try_from(frame.offset + u64::from(frame.stored_bytes) / 2).expect("fits");
    assert!(storage.corrupt(&names::pack(*pack).expect("a name"), middle, 0x55));
    assert!(storage.remove(&names::parity(*pack).expect("a name")));
    assert!(!lost.is_empty() && lost.len() < files.len());

    let repo = runs::open(&storage).expect("opens");
    let report = runs::verify_all(&repo).expect("verifies");
    let beginning = source.as_os_str().len() + 1;
    let of_verify = report.damage.iter().flat_map(|damage| &damage.files);
    let of_verify: Vec<String> =
        of_verify.map(|(_, path)| String::from_utf8_lossy(&path[beginning..]).into_owned()).collect();
    assert!(of_verify.iter().all(|path| lost.contains(path)), "{of_verify:?}");
    let kept_max = Damage::FILES_KEPT_MAX;
    assert_eq!(of_verify.len(), lost.len().min(kept_max), "{:?}", report.damage);

    let target = folder.path().join("target");
    let report = runs::restore(&repo, &snapshot, &target).expect("restores the rest");
    let of_restore: BTreeSet<String> =
        report.damaged.kept.iter().map(|problem| String::from_utf8_lossy(&problem.path).into_owned()).collect();
    assert_eq!((of_restore.len() as u64, &of_restore), (report.damaged.count, lost));
    for (path, content) in &files {
        match lost.contains(path) {
            true => assert!(!target.join(path).exists(), "{path}"),
            false => assert_eq!(&fs::read(target.join(path)).expect(path), content, "{path}"),
        }
    }
}
