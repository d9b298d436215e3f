//! Power cuts: a backup, a prune, a forget and an init are cut at every step, and what is left is used with no repair.
//!
//! A crash point is one step of one run together with one choice of what the medium kept: everything (a killed process)
//! or what a seed of the simulation leaves. After each, every committed snapshot has its exact content, the new one is
//! whole or absent (and there if success had been reported), and the next run succeeds and stores again only what was
//! lost. `CKPT_TEST_SEED` chooses other data and other cuts, `CKPT_TEST_CUTS` how many power cuts are made of each step.

use crate::support::runs::{self, PACK_BYTES_MIN, contents};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights, wide};
use crate::support::{in_parallel, noise, quick_folder, say, seed, setting};
use ckpt::error::Result;
use ckpt::ids::{ChunkId, PackId};
use ckpt::ops::prune::prune;
use ckpt::repo::pack::{PackKind, summary_of};
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A source in its second state, and a repository that durably holds the first.
struct Scene {
    _folder: TempDir,
    source: PathBuf,
    storage: SimulatedStorage,
    first: (Snapshot, Tree),
    second: Tree,
    /// New content of the second state, in bytes of chunks.
    bytes_new: u64,
    seed: u64,
}

/// Zeros with a spot of noise in each MiB: many segments and packs, little content.
fn speckled(seed: u64, bytes: usize) -> Vec<u8> {
    let spot = |number| noise(seed + number, 100_000).into_iter().chain(std::iter::repeat_n(0, (1 << 20) - 100_000));
    (0..).flat_map(spot).take(bytes).collect()
}

/// How large the files of a scene are.
#[derive(Clone, Copy)]
struct Sizes {
    large: usize,
    small: usize,
    /// Elements of the tensors, of which the second state has another version; none if there are no tensors.
    tensor: usize,
    pack_bytes: u64,
}

/// Tensors of the first state, or of the second: a new version, and one tensor in two precisions.
fn write_tensors(source: &Path, seed: u64, elements: usize, is_second: bool) {
    let write = |name: &str, dtype, bytes| {
        let file = safetensors(&[Tensor::new(name, dtype, bytes)], 0);
        fs::write(source.join(format!("sub/{name}-{dtype}.safetensors")), file).expect("a file");
    };
    let (moving, pair) = (weights(seed + 5, elements), weights(seed + 6, elements));
    match is_second {
        false => write("moving", "BF16", narrow(&moving)),
        true => {
            write("moving", "BF16", narrow(&trained(&moving, seed + 7)));
            write("pair", "BF16", narrow(&pair));
            write("pair", "F32", wide(&pair));
        }
    }
}

impl Scene {
    fn new(seed: u64, sizes: Sizes) -> Scene {
        Scene::on(runs::simulated(sizes.pack_bytes), seed, sizes)
    }

    /// As [`Scene::new`], in this empty repository.
    fn on(storage: SimulatedStorage, seed: u64, sizes: Sizes) -> Scene {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("sub/empty")).expect("folders");
        let write = |name: &str, bytes: Vec<u8>| fs::write(source.join(name), bytes).expect("a file");
        let half = sizes.large / 2;
        write("large", [speckled(seed, half), speckled(seed + 1000, half)].concat());
        write("sub/kept", noise(seed + 1, sizes.small));
        write("sub/text", b"the same line\n".repeat(sizes.small / 14));
        write("gone", noise(seed + 2, sizes.small));
        write("empty", Vec::new());
        if sizes.tensor > 0 {
            write_tensors(&source, seed, sizes.tensor, false);
        }
        let repo = runs::open(&storage).expect("a new repository");
        let first = (runs::save(&repo, &source), Tree::read(&source));
        // The second half is new, so that the middle of the file is known already.
        write("large", [speckled(seed, half), speckled(seed + 2000, half)].concat());
        write("sub/new", noise(seed + 4, sizes.small));
        fs::remove_file(source.join("gone")).expect("removed");
        std::os::unix::fs::symlink("sub/new", source.join("link")).expect("a link");
        if sizes.tensor > 0 {
            write_tensors(&source, seed, sizes.tensor, true);
        }
        let second = Tree::read(&source);
        let whole = storage.copy();
        let report = runs::backup(&runs::open(&whole).expect("opens"), &source, 1).expect("an undisturbed backup");
        assert!(sizes.tensor == 0 || runs::deltas_between_packs(&whole) > 1, "versions and precisions are coded so");
        Scene { _folder: folder, source, storage, first, second, bytes_new: report.bytes_new, seed }
    }

    /// The steps of an undisturbed second backup.
    fn steps(&self, threads: usize) -> u64 {
        let storage = self.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        let before = storage.steps();
        backup(&repo, &self.source, threads).expect("an undisturbed backup");
        storage.steps() - before
    }

    /// Cuts the second backup at every step; returns how many images of the storage were checked.
    fn cut_everywhere(&self, threads: usize, cuts: u64) -> u64 {
        // Threads race, so that a run may have a few steps more; the crash is then in its very last ones.
        let steps = self.steps(threads) + 3;
        in_parallel(steps, |step| self.cut_at(step, threads, cuts))
    }

    fn cut_at(&self, step: u64, threads: usize, cuts: u64) -> u64 {
        let storage = self.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        storage.crash_at(storage.steps() + step);
        let reported = backup(&repo, &self.source, threads);
        for cut in 0..=cuts {
            let image = match cut {
                0 => storage.copy(),
                _ => storage.after_power_cut(self.seed.wrapping_add(step << 8) + cut),
            };
            let why = format!("seed {}, {threads} threads, crash at step {step}, power cut {cut}", self.seed);
            self.check(&image, reported.is_ok(), (step + cut).is_multiple_of(8), &why);
        }
        cuts + 1
    }

    /// What every image must satisfy; `on_disk` restores as well, else only the repository is read.
    fn check(&self, image: &SimulatedStorage, was_reported: bool, on_disk: bool, why: &str) {
        let repo = runs::open(image).unwrap_or_else(|e| panic!("{why}: does not open: {e}"));
        assert!(repo.damage().is_empty(), "{why}: {:?}", repo.damage());
        let snapshots = repo.snapshots();
        assert!(snapshots.iter().any(|s| s.id == self.first.0.id), "{why}: the first snapshot is gone");
        let has_second = snapshots.len() == 2;
        assert!(snapshots.len() <= 2 && (has_second || !was_reported), "{why}: {} snapshots", snapshots.len());
        for snapshot in &snapshots {
            self.check_content(&repo, snapshot, on_disk, why);
        }
        let (left, waiting) = self.new_content_in(image, &repo);
        let report = runs::backup(&repo, &self.source, 1).unwrap_or_else(|e| panic!("{why}: the next backup: {e}"));
        assert!(report.problems.is_empty() && !report.retried_after_revocation, "{why}: {report:?}");
        // What was coded against something that is gone counts again once that has been stored again: whether before it is its
        // own turn, threads decide.
        let found = self.bytes_new - report.bytes_new;
        let text = format!("{why}: {left} bytes of content had survived, and {waiting} that lacked their bases");
        assert!((left..=left + waiting).contains(&found), "{text}; {found} were found");
        // A new process with an empty cache sees the same.
        let repo = runs::open(&image.another_host()).unwrap_or_else(|e| panic!("{why}: does not open again: {e}"));
        let saved = report.snapshot.and_then(|id| repo.snapshot(id)).unwrap_or_else(|| panic!("{why}: no snapshot"));
        self.check_content(&repo, &saved, on_disk, why);
        assert_eq!(repo.snapshots().len(), snapshots.len() + 1, "{why}");
        self.check_durable(image, &saved, why);
    }

    /// What was reported survives a power cut, also where it relies on what a killed run had not made durable.
    fn check_durable(&self, image: &SimulatedStorage, saved: &Snapshot, why: &str) {
        let repo = runs::open(&image.after_power_cut(self.seed)).unwrap_or_else(|e| panic!("{why}: then cut: {e}"));
        for id in [self.first.0.id, saved.id] {
            let snapshot =
                repo.snapshot(id).unwrap_or_else(|| panic!("{why}: lost by a power cut after it was reported"));
            self.check_content(&repo, &snapshot, false, &format!("{why}, then a power cut"));
        }
    }

    fn check_content(&self, repo: &Repo, snapshot: &Snapshot, on_disk: bool, why: &str) {
        let wanted = if snapshot.id == self.first.0.id { &self.first.1 } else { &self.second };
        let found = contents(repo, snapshot).unwrap_or_else(|e| panic!("{why}: {e}"));
        found.assert_is(wanted, why);
        if on_disk {
            let target = quick_folder();
            let report = runs::restore(repo, snapshot, target.path()).unwrap_or_else(|e| panic!("{why}: {e}"));
            assert!(report.damaged.is_empty() && report.failed.is_empty(), "{why}: {report:?}");
            Tree::read(target.path()).assert_is(wanted, why);
        }
    }

    /// Content of the second state in packs that the image has and the first backup had not written: that for which all is
    /// there that it was coded against, and the rest.
    fn new_content_in(&self, image: &SimulatedStorage, repo: &Repo) -> (u64, u64) {
        let before: HashSet<_> = self.storage.names().into_iter().collect();
        let objects = image.objects();
        let packs =
            objects.iter().filter_map(|(name, object)| Some((name, frames_of(object, names::pack_id(name)?, repo)?)));
        let (old, mut new): (Vec<_>, Vec<_>) = packs.partition(|(name, _)| before.contains(*name));
        let mut there: HashSet<ChunkId> = old.iter().flat_map(|(_, frames)| frames).flat_map(chunks_of).collect();
        let mut bytes = 0;
        loop {
            let known = there.len();
            for (_, frames) in &mut new {
                let (usable, rest): (Vec<_>, Vec<_>) =
                    std::mem::take(frames).into_iter().partition(|f| f.bases.iter().all(|base| there.contains(base)));
                bytes += usable.iter().map(|frame| u64::from(frame.raw_bytes)).sum::<u64>();
                there.extend(usable.iter().flat_map(chunks_of));
                *frames = rest;
            }
            if there.len() == known {
                let waiting = new.iter().flat_map(|(_, frames)| frames).map(|frame| u64::from(frame.raw_bytes)).sum();
                return (bytes, waiting);
            }
        }
    }
}

fn chunks_of(frame: &FrameRecord) -> impl Iterator<Item = ChunkId> {
    frame.chunks.iter().map(|(id, _)| *id)
}

/// The frames of a pack of data.
fn frames_of(object: &[u8], id: PackId, repo: &Repo) -> Option<Vec<FrameRecord>> {
    let summary = summary_of(repo.keys(), object, id, repo.id()).expect("a published pack is whole");
    let frames = summary.frames().expect("a published table is sound");
    (summary.kind == PackKind::Data).then_some(frames)
}

/// A backup and nothing else: what comes after it may fail on a dead host.
fn backup(repo: &Repo, source: &Path, threads: usize) -> Result<ckpt::ops::backup::BackupReport> {
    use ckpt::ops::backup::{Input, backup};
    let options = runs::backup_options(threads);
    backup(repo, Input::Paths(vec![source.to_owned()]), &options, &ckpt::events::Silent)
}

fn cuts() -> u64 {
    setting("CKPT_TEST_CUTS", 3)
}

#[test]
fn a_backup_of_a_large_file_cut_at_any_step() {
    let sizes = Sizes { large: 18 << 20, small: 20_000, tensor: 0, pack_bytes: 256 << 10 };
    let scene = Scene::new(seed(), sizes);
    let checked = scene.cut_everywhere(2, 1);
    say(&format!("power_cut: {checked} crash points of a backup of a large file, seed {}", seed()));
    assert!(checked > 75, "{checked}");
}

#[test]
fn a_backup_cut_at_any_step() {
    let sizes = Sizes { large: 400_000, small: 30_000, tensor: 0, pack_bytes: PACK_BYTES_MIN };
    let mut checked = 0;
    for number in 0..setting("CKPT_TEST_SCENES", 5) {
        let scene = Scene::new(seed() + 100 * number, sizes);
        checked += [1, 2].iter().map(|&threads| scene.cut_everywhere(threads, cuts())).sum::<u64>();
    }
    say(&format!("power_cut: {checked} crash points of backups, seed {}", seed()));
    assert!(checked > 1_000, "{checked}");
}

/// New content that stands on old content, and on content of the same run, in packs of their own.
#[test]
fn a_backup_of_versions_and_precisions_cut_at_any_step() {
    let sizes = Sizes { large: 0, small: 3_000, tensor: 60_000, pack_bytes: PACK_BYTES_MIN };
    let scene = Scene::new(seed(), sizes);
    let checked: u64 = [1, 2].iter().map(|&threads| scene.cut_everywhere(threads, cuts())).sum();
    say(&format!("power_cut: {checked} crash points of backups of versions, seed {}", seed()));
    assert!(checked > 200, "{checked}");
}

/// Three snapshots, of which the first is to be forgotten, with what the others hold; and the source as of the last.
struct Past {
    _folder: TempDir,
    source: PathBuf,
    storage: SimulatedStorage,
    doomed: Snapshot,
    live: Vec<(Snapshot, Tree)>,
}

impl Past {
    fn new(seed: u64) -> Past {
        Past::on(runs::simulated(PACK_BYTES_MIN), seed)
    }

    /// As [`Past::new`], in this empty repository.
    fn on(storage: SimulatedStorage, seed: u64) -> Past {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(&source).expect("a folder");
        let write = |name: &str, seed, bytes| fs::write(source.join(name), noise(seed, bytes)).expect("a file");
        let repo = runs::open(&storage).expect("a new repository");
        ["a", "b", "c", "d"].iter().zip(seed..).for_each(|(name, seed)| write(name, seed, 40_000));
        let doomed = runs::save(&repo, &source);
        write("a", seed + 10, 90_000);
        fs::remove_file(source.join("c")).expect("removed");
        let second = (runs::save(&repo, &source), Tree::read(&source));
        write("e", seed + 11, 70_000);
        let third = (runs::save(&repo, &source), Tree::read(&source));
        Past { _folder: folder, source, storage, doomed, live: vec![second, third] }
    }

    fn check(&self, image: &SimulatedStorage, why: &str) -> Repo {
        let repo = runs::open(image).unwrap_or_else(|e| panic!("{why}: does not open: {e}"));
        assert!(repo.damage().is_empty(), "{why}: {:?}", repo.damage());
        for (snapshot, wanted) in &self.live {
            let snapshot = repo.snapshot(snapshot.id).unwrap_or_else(|| panic!("{why}: a live snapshot is gone"));
            contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(wanted, why);
        }
        repo
    }

    /// A backup and a prune after the image, in either order, with nothing lost.
    fn go_on(&self, image: &SimulatedStorage, prune_first: bool, why: &str) {
        for prunes in [prune_first, !prune_first] {
            let repo = self.check(image, why);
            if prunes {
                prune(&repo, &runs::prune_options(), &ckpt::events::Silent).unwrap_or_else(|e| panic!("{why}: {e}"));
            } else {
                let report = runs::backup(&repo, &self.source, 1).unwrap_or_else(|e| panic!("{why}: {e}"));
                let saved = report.snapshot.and_then(|id| repo.snapshot(id)).expect("saved");
                contents(&repo, &saved).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(&self.live[1].1, why);
            }
        }
        let repo = self.check(&image.after_power_cut(seed()), why);
        let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
    }
}

/// Cuts `work` at each of its steps, with so many power cuts each; returns how many images were checked.
fn cut_each(
    storage: &SimulatedStorage,
    cuts: u64,
    work: impl Fn(&Repo) -> Result<()> + Sync,
    check: impl Fn(&SimulatedStorage, &Result<()>, u64, &str) + Sync,
) -> u64 {
    let steps = {
        let storage = storage.copy();
        let repo = runs::open(&storage).expect("opens");
        let before = storage.steps();
        work(&repo).expect("undisturbed");
        storage.steps() - before
    };
    in_parallel(steps + 1, |step| {
        let storage = storage.copy();
        let repo = runs::open(&storage).expect("opens");
        storage.crash_at(storage.steps() + step);
        let reported = work(&repo);
        for cut in 0..=cuts {
            let image = match cut {
                0 => storage.copy(),
                _ => storage.after_power_cut(seed().wrapping_add(step << 8) + cut),
            };
            check(&image, &reported, step + cut, &format!("seed {}, crash at step {step}, cut {cut}", seed()));
        }
        cuts + 1
    })
}

#[test]
fn a_prune_cut_at_any_step() {
    let mut checked = 0;
    for number in 0..2 {
        let past = Past::new(seed() + 50 * number);
        runs::forget(&runs::open(&past.storage).expect("opens"), &past.doomed).expect("forgotten");
        let work = |repo: &Repo| prune(repo, &runs::prune_options(), &ckpt::events::Silent).map(|_| ());
        let check = |image: &_, _: &_, number: u64, why: &str| past.go_on(image, number.is_multiple_of(2), why);
        checked += cut_each(&past.storage, cuts(), work, check);
    }
    say(&format!("power_cut: {checked} crash points of prunes, seed {}", seed()));
    assert!(checked > 300, "{checked}");
}

#[test]
fn a_backup_and_a_prune_of_a_sealed_repository_cut_at_any_step() {
    let storage = || runs::simulated_encrypted(PACK_BYTES_MIN);
    let sizes = Sizes { large: 0, small: 20_000, tensor: 60_000, pack_bytes: PACK_BYTES_MIN };
    let mut checked = Scene::on(storage(), seed(), sizes).cut_everywhere(1, cuts().div_ceil(4));
    let past = Past::on(storage(), seed());
    runs::forget(&runs::open(&past.storage).expect("opens"), &past.doomed).expect("forgotten");
    let work = |repo: &Repo| prune(repo, &runs::prune_options(), &ckpt::events::Silent).map(|_| ());
    let check = |image: &_, _: &_, number: u64, why: &str| past.go_on(image, number.is_multiple_of(2), why);
    checked += cut_each(&past.storage, cuts().div_ceil(4), work, check);
    say(&format!("power_cut: {checked} crash points of a sealed repository, seed {}", seed()));
    assert!(checked > 200, "{checked}");
}

#[test]
fn a_forget_cut_at_any_step_has_happened_or_not() {
    let past = Past::new(seed());
    let work = |repo: &Repo| runs::forget(repo, &past.doomed);
    let check = |image: &SimulatedStorage, reported: &Result<()>, number: u64, why: &str| {
        let repo = past.check(image, why);
        let is_live = repo.snapshot(past.doomed.id).is_some();
        assert!(!(is_live && reported.is_ok()), "{why}: it was reported and has not happened");
        if number.is_multiple_of(4) {
            past.go_on(image, true, why);
        }
    };
    let checked = cut_each(&past.storage, 8, work, check);
    say(&format!("power_cut: {checked} crash points of a forget, seed {}", seed()));
}

#[test]
fn an_init_cut_at_any_step_can_be_used_or_done_again() {
    let options = runs::init_options("simulated", PACK_BYTES_MIN);
    let init = |storage: &SimulatedStorage| ckpt::ops::init::init_storage(storage, &options);
    let steps = {
        let storage = SimulatedStorage::new();
        init(&storage).expect("undisturbed");
        storage.steps()
    };
    for step in 0..=steps {
        let storage = SimulatedStorage::new();
        storage.crash_at(step);
        let reported = init(&storage).is_ok();
        for cut in 0..8 {
            let why = format!("crash at step {step}, cut {cut}");
            let image = if cut == 0 { storage.copy() } else { storage.after_power_cut(seed() + cut) };
            let opened = runs::open(&image);
            assert!(opened.is_ok() || !reported, "{why}: it was reported");
            if opened.is_err() {
                init(&image).unwrap_or_else(|e| panic!("{why}: neither opens nor can be made: {e}"));
            }
            let folder = quick_folder();
            fs::write(folder.path().join("a"), b"a").expect("a file");
            runs::save(&runs::open(&image).expect("opens"), folder.path());
        }
    }
}
