//! Files of tensors from the source to the repository and back: where they are cut, what they are coded against, and what becomes
//! of them when they change at the wrong moment.
//!
//! `CKPT_TEST_SEED` chooses other data, `CKPT_TEST_FILES` how many files the mixtures have.

use crate::support::program::{Place, expect};
use crate::support::runs::{self, backup_options, contents};
use crate::support::trees::{Content, Tree};
use crate::support::weights::{Tensor, element_bytes, narrow, npz, safetensors, torch, trained, weights, wide};
use crate::support::{Chance, noise, quick_folder, say, seed, setting};
use ckpt::codec::Compression;
use ckpt::events::{Event, Observer, Silent};
use ckpt::ids::ChunkId;
use ckpt::ops::backup::{BackupOptions, BackupReport, Input, backup};
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A source and a repository in memory.
struct Bench {
    folder: TempDir,
    storage: SimulatedStorage,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: quick_folder(), storage: runs::simulated(4 << 20) }
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        // Another inode: it counts as changed whatever the clock says.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("a file");
    }

    fn back_up(&self, options: &BackupOptions<'_>) -> (BackupReport, Snapshot) {
        let repo = runs::open(&self.storage).expect("opens");
        let report = backup(&repo, Input::Paths(vec![self.source()]), options, &Silent).expect("backs up");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        repo.refresh(&Silent).expect("refreshes");
        let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
        (report, snapshot)
    }

    fn save(&self, threads: usize) -> (BackupReport, Snapshot) {
        self.back_up(&backup_options(threads))
    }

    fn assert_holds(&self, snapshot: &Snapshot, wanted: &Tree, why: &str) {
        let repo = runs::open(&self.storage).expect("opens");
        contents(&repo, snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(wanted, why);
        let target = quick_folder();
        let report = runs::restore(&repo, snapshot, target.path()).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{why}: {report:?}");
        Tree::read(target.path()).assert_is(wanted, why);
    }

    fn assert_is_sound(&self, why: &str) {
        let verified = runs::verify_all(&runs::open(&self.storage).expect("opens")).expect("verifies");
        assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
    }

    /// The frames of all packs.
    fn frames(&self) -> Vec<FrameRecord> {
        runs::frames(&self.storage).into_values().flatten().collect()
    }

    fn deltas(&self) -> usize {
        self.frames().iter().filter(|frame| !frame.bases.is_empty()).count()
    }

    /// How many steps the chunk that is furthest from one that stands alone is from it.
    fn depth(&self) -> usize {
        let frames = self.frames();
        let needs: HashMap<ChunkId, &[ChunkId]> =
            frames.iter().flat_map(|frame| frame.chunks.iter().map(|(id, _)| (*id, frame.bases.as_slice()))).collect();
        fn steps(needs: &HashMap<ChunkId, &[ChunkId]>, id: ChunkId) -> usize {
            needs[&id].iter().map(|base| 1 + steps(needs, *base)).max().unwrap_or(0)
        }
        needs.keys().map(|id| steps(&needs, *id)).max().unwrap_or(0)
    }

    /// The chunks of each file, with where they begin.
    fn chunks(&self, snapshot: &Snapshot) -> BTreeMap<String, Vec<(u64, ChunkId)>> {
        let repo = runs::open(&self.storage).expect("opens");
        let fetch = |id| repo.read_chunk(id);
        let mut found = BTreeMap::new();
        for entry in repo.entries(&fetch, snapshot.tree).map(|entry| entry.expect("sound")) {
            let Some(content) = entry.content else { continue };
            let (mut at, mut chunks) = (0, Vec::new());
            for child in repo.content_chunks(&fetch, content).map(|child| child.expect("sound")) {
                chunks.push((at, child.id));
                at += child.bytes;
            }
            assert_eq!(at, entry.metadata.size);
            found.insert(String::from_utf8(entry.path.clone()).expect("text"), chunks);
        }
        found
    }
}

/// Some tensors of fp32, together of about so many bytes.
fn tensors(seed: u64, bytes: usize) -> Vec<Tensor> {
    let shares = [0.5, 0.2, 0.299, 0.001];
    let tensor = |(n, share): (usize, f64)| {
        let count = (bytes as f64 * share) as usize / 4;
        Tensor::new(&format!("layer{n}"), "F32", wide(&weights(seed + n as u64, count)))
    };
    shares.into_iter().enumerate().map(tensor).collect()
}

#[test]
fn the_same_tensors_are_stored_once_whatever_they_stand_in() {
    for bytes in [3 * MIB, 11 * MIB] {
        let mut cuts = Vec::new();
        for threads in [1, 4] {
            let bench = Bench::new();
            let mut list = tensors(seed(), bytes);
            let content: usize = list.iter().map(|tensor| tensor.bytes.len()).sum();
            bench.write("first.safetensors", &safetensors(&list, 0));
            assert!(bench.save(threads).0.bytes_new > content as u64);
            list.reverse();
            // Names of versions would lead to deltas: chunks are known before anybody looks for a base.
            let files = [
                ("renamed/other.safetensors", safetensors(&list, 0)),
                ("longer.safetensors", safetensors(&list, 3000)),
                ("long.safetensors", safetensors(&list, 70_000)),
                ("arrays.npz", npz(&list)),
                ("state.pt", torch(&list)),
                ("without_extension", safetensors(&list, 500)),
            ];
            for (name, file) in files {
                // A small file of that name is cut by content.
                if bytes < 4 * MIB && !name.contains('.') {
                    continue;
                }
                bench.write(name, &file);
                let (report, _) = bench.save(threads);
                assert_eq!(report.bytes_new as usize, file.len() - content, "{name}, {bytes} bytes, {threads} threads");
            }
            let (_, last) = bench.save(threads);
            bench.assert_holds(&last, &Tree::read(&bench.source()), "containers");
            cuts.push(bench.chunks(&last));
        }
        assert_eq!(cuts[0], cuts[1], "the same cuts with any number of threads");
    }
}

#[test]
fn a_tensor_of_a_small_file_is_known_in_a_large_one() {
    let bench = Bench::new();
    let list = tensors(seed(), 2 * MIB);
    bench.write("small.safetensors", &safetensors(&list, 0));
    bench.save(2);
    let more = Tensor::new("more", "U8", noise(5, 7 * MIB + 3));
    let large = safetensors(&[vec![more], list.clone()].concat(), 0);
    bench.write("large.safetensors", &large);
    let content: usize = list.iter().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(bench.save(2).0.bytes_new as usize, large.len() - content);
}

/// Whether something stood at its path before must not change where a file is cut, or it would be stored twice.
#[test]
fn a_file_that_is_only_touched_is_not_stored_again() {
    for (name, bytes) in [("blob", 2 * MIB), ("blob", 6 * MIB), ("a.safetensors", 2 * MIB), ("a.safetensors", 50_000)] {
        let bench = Bench::new();
        let file = safetensors(&tensors(seed(), bytes), 0);
        bench.write(name, &file);
        let (_, first) = bench.save(2);
        bench.write(name, &file);
        let (report, second) = bench.save(2);
        assert_eq!((report.bytes_new, report.files_changed), (0, 1), "{name} of {bytes} bytes");
        assert_eq!(bench.chunks(&first), bench.chunks(&second));
    }
}

#[test]
fn options_that_turn_cuts_or_deltas_off_do() {
    let list = tensors(seed(), 6 * MIB);
    let numbers = weights(9, MIB);
    let make = |change: &dyn Fn(&mut BackupOptions<'_>)| {
        let bench = Bench::new();
        let mut snapshots = Vec::new();
        for step in 0..3u64 {
            bench.write("fixed.safetensors", &safetensors(&list, 10));
            bench.write("moving.safetensors", &safetensors(&[tensor_at(&numbers, step)], 0));
            bench.write("table.csv", format!("{step}\n{}", "some,row,of,text\n".repeat(20_000)).as_bytes());
            let mut options = backup_options(2);
            change(&mut options);
            snapshots.push((bench.back_up(&options).1, Tree::read(&bench.source())));
        }
        for (snapshot, wanted) in &snapshots {
            bench.assert_holds(snapshot, wanted, "whatever the options");
        }
        let chunks = bench.chunks(&snapshots[2].0);
        (bench, chunks)
    };
    let header = safetensors(&list, 10).len() - list.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
    let begins = |chunks: &BTreeMap<String, Vec<(u64, ChunkId)>>, at: usize| {
        chunks["fixed.safetensors"].iter().any(|(begin, _)| *begin == at as u64)
    };
    let second = header + list[0].bytes.len();
    let (usual, chunks) = make(&|_| {});
    assert!(usual.deltas() > 0 && usual.depth() <= 4 && begins(&chunks, header) && begins(&chunks, second));
    let (flat, chunks) = make(&|options| options.delta_depth = 0);
    assert!(flat.deltas() == 0 && begins(&chunks, second));
    let (off, chunks) = make(&|options| options.compression = Compression::Off);
    assert!(off.deltas() == 0 && begins(&chunks, second));
    let (_, chunks) = make(&|options| options.cuts_by_content = true);
    assert!(!begins(&chunks, header) && !begins(&chunks, second));
}

fn tensor_at(numbers: &[f32], step: u64) -> Tensor {
    let moved = (0..step).fold(numbers.to_vec(), |numbers, step| trained(&numbers, step + 1));
    Tensor::new("w", "BF16", narrow(&moved))
}

/// Precisions in turns, each a little further on: every file could stand on the one before.
#[test]
fn no_chunk_is_further_from_one_that_stands_alone_than_asked_for() {
    for (depth, threads) in [(1, 1), (2, 2), (4, 1)] {
        let bench = Bench::new();
        let mut numbers = weights(seed(), 100_000);
        for number in 0..9u64 {
            numbers = trained(&numbers, number);
            let tensor = match number % 2 {
                0 => Tensor::new("w", "BF16", narrow(&numbers)),
                _ => Tensor::new("w", "F32", wide(&numbers)),
            };
            let name = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis"][number as usize];
            bench.write(&format!("{name}.safetensors"), &safetensors(&[tensor], 0));
        }
        let (_, snapshot) = bench.back_up(&BackupOptions { delta_depth: depth, ..backup_options(threads) });
        assert!(bench.deltas() > 0 && bench.depth() <= usize::from(depth), "{} of {depth}", bench.depth());
        bench.assert_holds(&snapshot, &Tree::read(&bench.source()), "precisions in turns");
    }
}

/// Meddles once, when the library asks for the so-manieth time whether it is to stop: at any moment of a run.
struct Meddler<F> {
    asked: AtomicU64,
    at: u64,
    meddle: F,
    told: AtomicU64,
}

impl<F: Fn() + Send + Sync> Observer for Meddler<F> {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::FileProblem { .. }) {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_interrupted(&self) -> bool {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.at {
            (self.meddle)();
        }
        false
    }
}

/// Waits until files that are changed now get another time than `path` has.
fn let_the_clock_move_on(path: &Path) {
    let time = |path: &Path| fs::metadata(path).map(|m| (m.ctime(), m.ctime_nsec())).expect("there");
    let (before, probe) = (time(path), path.with_extension("clock"));
    while {
        File::create(&probe).expect("a file");
        let now = time(&probe);
        fs::remove_file(&probe).expect("removed");
        now <= before
    } {}
}

/// What may be done to a file while it is read.
#[derive(Debug, Clone, Copy)]
enum Change {
    Shorten,
    Lengthen,
    Rewrite,
    Replace,
    Remove,
}

fn change(path: &Path, how: Change, len: u64) {
    let open = || File::options().write(true).open(path).expect("there");
    let bytes = fs::metadata(path).expect("there").len();
    match how {
        Change::Shorten => open().set_len(len).expect("shortened"),
        Change::Lengthen => open().write_all_at(&noise(4, 100_000), bytes).expect("written"),
        Change::Rewrite => open().write_all_at(&noise(5, 50_000), len.min(bytes - 50_000)).expect("written"),
        Change::Replace => {
            fs::write(path.with_extension("new"), noise(6, 300_000)).expect("a file");
            fs::rename(path.with_extension("new"), path).expect("replaced");
        }
        Change::Remove => fs::remove_file(path).expect("removed"),
    }
}

/// Headers of more than a MiB are cut by content, so a file has both kinds of cuts.
#[test]
fn files_that_change_while_they_are_read_are_told_and_never_put_together_wrongly() {
    let list = tensors(seed(), 8 * MIB);
    let original = safetensors(&list, 5 * MIB);
    let mut chance = Chance(seed());
    let mut counts = BTreeMap::new();
    for number in 0..setting("CKPT_TEST_FILES", 60) {
        let how = [Change::Shorten, Change::Lengthen, Change::Rewrite, Change::Replace, Change::Remove]
            [chance.index(5).min(if number % 3 == 0 { 0 } else { 4 })];
        let (len, threads) = (chance.below(original.len() as u64), [1, 2, 4][chance.index(3)]);
        let bench = Bench::new();
        bench.write("x.safetensors", &original);
        let path = bench.source().join("x.safetensors");
        let_the_clock_move_on(&path);
        let observer = Meddler {
            asked: AtomicU64::new(0),
            at: chance.below(16),
            meddle: || change(&path, how, len),
            told: AtomicU64::new(0),
        };
        let why = format!("seed {}, number {number}: {how:?} to {len}, at {}, {threads} threads", seed(), observer.at);
        let repo = runs::open(&bench.storage).expect("opens");
        let report = backup(&repo, Input::Paths(vec![bench.source()]), &backup_options(threads), &observer)
            .unwrap_or_else(|e| panic!("{why}: {e}"));
        repo.refresh(&Silent).expect("refreshes");
        let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
        let found = contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}"));
        let is_told = report.problems.count > 0;
        assert_eq!(is_told, observer.told.load(Ordering::Relaxed) > 0, "{why}");
        let of = |bytes: &[u8]| Content { bytes: bytes.len() as u64, hash: blake3::hash(bytes) };
        let stored = found.entries.get(b"x.safetensors".as_slice()).and_then(|seen| seen.content);
        let now = fs::read(&path).ok();
        let is_one_state = stored.is_some_and(|stored| {
            let first = usize::try_from(stored.bytes).expect("small");
            let is_start = |of_what: &[u8]| of_what.get(..first).is_some_and(|start| of(start) == stored);
            // Short of its end only what was cut short.
            (stored == of(&original))
                || now.as_deref().is_some_and(|now| stored == of(now))
                || (is_told && is_start(&original))
        });
        // Of a file that is written to two states may be mixed, which is told; nothing else may be.
        let is_mixed =
            matches!(how, Change::Rewrite) && is_told && stored.is_some_and(|s| s.bytes == original.len() as u64);
        let is_left_out = stored.is_none() && (is_told || now.is_none());
        assert!(is_one_state || is_mixed || is_left_out, "{why}: {stored:?}, told: {is_told}");
        *counts.entry(format!("{how:?}, told: {is_told}")).or_insert(0) += 1;
        bench.assert_is_sound(&why);
    }
    say(&format!("tensor_cuts: files that changed: {counts:?}, seed {}", seed()));
}

/// Checkpoints of one run stand on each other; the older is rewritten or removed at any moment.
#[test]
fn bases_of_the_same_run_that_change_or_vanish_spoil_nothing() {
    let numbers = weights(seed(), 700_000);
    let later = trained(&numbers, 1);
    let file = |numbers: &[f32]| safetensors(&[Tensor::new("w", "BF16", narrow(numbers))], 0);
    let (first, second) = (file(&numbers), file(&later));
    let write = |bench: &Bench| {
        bench.write("run/1/w.safetensors", &first);
        bench.write("run/2/w.safetensors", &second);
    };
    let bench = Bench::new();
    write(&bench);
    bench.save(1);
    let undisturbed = bench.deltas();
    assert!(undisturbed > 0, "the second stands on the first");
    let mut with_deltas = 0;
    for at in 0..24 {
        for how in [Change::Rewrite, Change::Shorten, Change::Remove, Change::Replace] {
            let bench = Bench::new();
            write(&bench);
            let path = bench.source().join("run/1/w.safetensors");
            let_the_clock_move_on(&path);
            let meddle = || change(&path, how, 700_000);
            let observer = Meddler { asked: AtomicU64::new(0), at, meddle, told: AtomicU64::new(0) };
            let why = format!("{how:?} at {at}");
            let repo = runs::open(&bench.storage).expect("opens");
            let threads = 1 + usize::from(at % 2 == 1);
            let report = backup(&repo, Input::Paths(vec![bench.source()]), &backup_options(threads), &observer)
                .unwrap_or_else(|e| panic!("{why}: {e}"));
            repo.refresh(&Silent).expect("refreshes");
            let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
            let found = contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}"));
            let stored = found.entries[b"run/2/w.safetensors".as_slice()].content.map(|content| content.hash);
            assert_eq!(stored, Some(blake3::hash(&second)), "{why}");
            bench.assert_is_sound(&why);
            with_deltas += u64::from((1..undisturbed).contains(&bench.deltas()));
        }
    }
    say(&format!("tensor_cuts: {with_deltas} runs lost some bases on the way"));
}

#[test]
fn a_pack_of_anchors_that_is_lost_or_damaged_is_told_and_made_up_for() {
    let bench = Bench::new();
    let mut numbers = weights(seed(), 700_000);
    let mut saved = Vec::new();
    for step in 0..3 {
        bench.write("w.safetensors", &safetensors(&[Tensor::new("w", "BF16", narrow(&numbers))], 0));
        bench.write("wide.safetensors", &safetensors(&[Tensor::new("w", "F32", wide(&numbers))], 0));
        saved.push((bench.save(2).1, Tree::read(&bench.source())));
        numbers = trained(&numbers, step);
    }
    assert!(bench.deltas() > 4);
    let anchors: Vec<ChunkId> = bench.frames().into_iter().flat_map(|frame| frame.bases).collect();
    let mut hit = 0;
    for (id, frames) in runs::frames(&bench.storage) {
        let name = names::pack(id).expect("a name");
        let anchor = frames.iter().find(|frame| frame.chunks.iter().any(|(id, _)| anchors.contains(id)));
        let Some(anchor) = anchor else { continue };
        for is_lost in [true, false] {
            hit += 1;
            let damaged = Bench { folder: quick_folder(), storage: bench.storage.copy() };
            let why = format!("{name} lost: {is_lost}");
            match is_lost {
                true => assert!(damaged.storage.remove(&name)),
                false => {
                    let place = usize::try_from(anchor.offset).expect("small") + anchor.stored_bytes as usize / 2;
                    assert!(damaged.storage.corrupt(&name, place, 4));
                    // Which would mend it.
                    assert!(damaged.storage.remove(&names::parity(id).expect("a name")));
                }
            }
            let repo = runs::open(&damaged.storage).expect("opens");
            let verified = runs::verify_all(&repo).expect("verifies");
            let files = verified.damage.iter().flat_map(|damage| &damage.files).count();
            // What stands on the anchor is at least one file beside its own.
            assert!(verified.damage_count > 0 && files > 1, "{why}: {:?}", verified.damage);
            for (snapshot, wanted) in &saved {
                assert_nothing_wrong(&repo, snapshot, wanted, &why);
            }
            if is_lost {
                bench_again(&bench, &damaged, &saved, &why);
            }
        }
    }
    assert!(hit >= 2);
}

/// Restores deliver right files or name those that are damaged.
fn assert_nothing_wrong(repo: &Repo, snapshot: &Snapshot, wanted: &Tree, why: &str) {
    let target = quick_folder();
    let report = runs::restore(repo, snapshot, target.path());
    let is_told = report.as_ref().map_or(true, |r| !r.damaged.is_empty() || !r.failed.is_empty());
    let found = Tree::read(target.path());
    for (path, wanted) in wanted.entries.iter().filter(|(_, wanted)| wanted.content.is_some()) {
        let seen = found.entries.get(path).and_then(|seen| seen.content);
        assert!(seen == wanted.content || (is_told && seen.is_none()), "{why}: {}", String::from_utf8_lossy(path));
    }
}

/// The next backup stores what was lost, though the files have not changed.
fn bench_again(bench: &Bench, damaged: &Bench, saved: &[(Snapshot, Tree)], why: &str) {
    let repo = runs::open(&damaged.storage).expect("opens");
    let again = runs::save(&repo, &bench.source());
    let (_, wanted) = saved.last().expect("three");
    damaged.assert_holds(&again, wanted, why);
    let (last, wanted) = saved.last().expect("three");
    damaged.assert_holds(last, wanted, why);
}

/// A length at, before or behind a boundary that something is cut at.
fn length(chance: &mut Chance) -> usize {
    let boundary = [4 * MIB, MIB, 256 << 10, 512 << 10, 64 << 10, 1 << 10, 4][chance.index(7)];
    (boundary * (1 + chance.index(2))).saturating_add(chance.index(5)).saturating_sub(2)
}

fn mixture(chance: &mut Chance, number: u64) -> (String, Vec<u8>) {
    let count = 1 + chance.index(4);
    let list: Vec<Tensor> = (0..count)
        .map(|n| {
            let dtype = ["F32", "U8", "BF16"][chance.index(3)];
            let bytes = length(chance);
            let bytes = bytes - bytes % element_bytes(dtype);
            Tensor::new(&format!("t{n}"), dtype, noise(number * 10 + n as u64, bytes))
        })
        .collect();
    match chance.below(5) {
        0 => (format!("{number}.npz"), npz(&list.into_iter().filter(|t| t.dtype != "BF16").collect::<Vec<_>>())),
        1 => (format!("{number}.bin"), torch(&list)),
        2 => {
            // Cut anywhere: what is left is used.
            let mut file = safetensors(&list, length(chance) % MIB);
            file.truncate(chance.index(file.len()));
            (format!("{number}.safetensors"), file)
        }
        _ => (format!("{number}.safetensors"), safetensors(&list, length(chance) % (3 * MIB))),
    }
}

#[test]
fn files_of_any_layout_come_back_and_are_cut_the_same_by_any_number_of_threads() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    fs::create_dir(&source).expect("a folder");
    let mut chance = Chance(seed());
    for number in 0..setting("CKPT_TEST_FILES", 30) {
        let (name, file) = mixture(&mut chance, number);
        fs::write(source.join(name), file).expect("a file");
    }
    let empty = Tensor::new("empty", "F32", Vec::new());
    let many = |bytes| (0..10_000).map(move |n| Tensor::new(&format!("t{n}"), "U8", noise(n, bytes)));
    let special = [
        ("tiny", safetensors(&many(100).collect::<Vec<_>>(), 0)),
        ("short", safetensors(&many(1030).collect::<Vec<_>>(), 0)),
        ("empty", safetensors(&[empty.clone(), Tensor::new("b", "U8", noise(3, MIB)), empty.clone()], 70_000)),
        ("nothing", safetensors(&[empty], 70_000)),
        ("header", safetensors(&[Tensor::new("b", "U8", noise(3, MIB))], 3 * MIB)),
        ("byte", safetensors(&[Tensor::new("b", "U8", vec![7])], MIB)),
    ];
    for (name, file) in special {
        fs::write(source.join(format!("{name}.safetensors")), file).expect("a file");
    }
    let wanted = Tree::read(&source);
    let trees = [1, 2, 5].map(|threads| {
        let bench = Bench::new();
        let repo = runs::open(&bench.storage).expect("opens");
        let options = BackupOptions { unfinished: ckpt::ops::backup::Unfinished::Keep, ..backup_options(threads) };
        let report = backup(&repo, Input::Paths(vec![source.clone()]), &options, &Silent).expect("backs up");
        repo.refresh(&Silent).expect("refreshes");
        let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
        bench.assert_holds(&snapshot, &wanted, &format!("{threads} threads, seed {}", seed()));
        (snapshot.tree, report.bytes_new)
    });
    assert!(trees[0] == trees[1] && trees[0] == trees[2], "{trees:?}");
}

#[test]
fn files_that_are_cut_short_or_malformed_are_stored_as_they_are_with_a_note() {
    let place = Place::with_repository();
    let data = place.path("data");
    fs::create_dir(&data).expect("a folder");
    let whole = safetensors(&tensors(seed(), 6 * MIB), 0);
    let write = |name: &str, bytes: &[u8]| fs::write(data.join(name), bytes).expect("a file");
    write("whole.safetensors", &whole);
    write("short.safetensors", &whole[..whole.len() * 2 / 3]);
    write("headless.safetensors", &whole[..300]);
    let text = String::from_utf8_lossy(&whole[8..400]).replace("F32", "F33");
    write("wrong.safetensors", &[&whole[..8], text.as_bytes(), &whole[8 + text.len()..]].concat());
    write("behind.safetensors", &[whole.as_slice(), &noise(3, 5000)].concat());
    let wanted = Tree::read(&data);
    let arguments = ["-v", "backup", &place.text("data"), "--unfinished", "keep"];
    let output = place.run(&arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    for (name, note) in [
        ("short", "ends before its headers say"),
        ("wrong", "is cut by its content, for it is no sound safetensors file"),
        ("behind", "is cut by its content, for it is no sound safetensors file"),
    ] {
        let name = format!("{name}.safetensors");
        assert!(said.lines().any(|line| line.contains(&name) && line.contains(note)), "{name}: {said}");
    }
    assert!(!said.lines().any(|line| line.contains("whole.safetensors")), "{said}");
    expect(place.command(&["restore", "latest", "--target", &place.text("restored")]), 0);
    Tree::read(&place.path("restored")).assert_is(&wanted, "restored");
}
