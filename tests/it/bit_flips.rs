//! Single flipped bits, truncations and swaps in a small repository of every kind of object.
//!
//! Each is found by `verify --read-data`; a restore afterwards delivers exactly the right bytes or reports damage, never
//! wrong bytes with success. Which bits are flipped follows from `CKPT_TEST_SEED`; how many of them, beside those of the
//! regions that every object has, from `CKPT_TEST_FLIPS` (0: every bit of every object). Many more are flipped a dozen at a time,
//! one in each of a dozen objects, each of which has to be named.

use crate::support::runs::{self, PACK_BYTES_MIN};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights};
use crate::support::{Chance, in_parallel, noise, quick_folder, say, seed, setting};
use ckpt::events::Silent;
use ckpt::ids::{ChunkId, PackId};
use ckpt::ops::tag;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{names, quarantine};
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;

/// One in so many of the cases is made of a sealed repository, too.
const SEALED_SHARE: usize = 5;

/// A repository that has objects of every kind, and what its live snapshots hold.
struct Sample {
    objects: BTreeMap<ObjectName, Vec<u8>>,
    live: Vec<(Snapshot, Tree)>,
}

impl Sample {
    fn new(is_encrypted: bool) -> Sample {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("sub")).expect("folders");
        let write = |name: &str, bytes: &[u8]| fs::write(source.join(name), bytes).expect("a file");
        let storage = runs::simulated_as(is_encrypted, PACK_BYTES_MIN);
        let repo = runs::open(&storage).expect("a new repository");
        write("noise", &noise(1, 60_000));
        write("text", &b"some text that shrinks\n".repeat(2_000));
        let waves: Vec<u8> = (0..10_000u32).flat_map(|n| (1.0 + f32::sin(n as f32) / 50.0).to_le_bytes()).collect();
        write("sub/weights", &waves);
        let mut numbers = weights(8, 36_000);
        let model = |numbers: &[f32]| safetensors(&[Tensor::new("w", "BF16", narrow(numbers))], 0);
        write("sub/moving.safetensors", &model(&numbers));
        let doomed = runs::save(&repo, &source);
        write("noise", &noise(2, 70_000));
        numbers = trained(&numbers, 1);
        write("sub/moving.safetensors", &model(&numbers));
        let first = (runs::save(&repo, &source), Tree::read(&source));
        runs::forget(&repo, &doomed).expect("forgotten");
        ckpt::ops::prune::prune(&repo, &runs::prune_options(), &Silent).expect("pruned");
        write("sub/new", &noise(3, 50_000));
        write("sub/moving.safetensors", &model(&trained(&numbers, 2)));
        std::os::unix::fs::symlink("sub/new", source.join("link")).expect("a link");
        let second = (runs::save(&repo, &source), Tree::read(&source));
        assert_eq!(runs::deltas_between_packs(&storage), 2, "both versions stand on the one that was forgotten");
        tag::tag(&repo, &[second.0.id], &["good".to_owned()], &[], None).expect("tagged");
        // A killed run leaves its announcement.
        let dead = storage.another_host();
        let dying = runs::open(&dead).expect("opens");
        dead.crash_at(dead.steps() + 9);
        write("noise", &noise(4, 70_000));
        runs::backup(&dying, &source, 1).expect_err("it is killed");
        let repo = runs::open(&storage).expect("opens");
        // Of a pack that nothing needs.
        let bad = HashSet::from([ChunkId::from_bytes([3; 32])]);
        quarantine::set_aside(&repo, PackId::from_bytes([7; 32]), Some(&bad), runs::now()).expect("set aside");
        let verified = runs::verify_all(&repo).expect("verifies");
        assert_eq!(verified.damage_count, 0, "{:?}", verified.damage);
        Sample { objects: storage.objects(), live: vec![first, second] }
    }

    fn folders(&self) -> BTreeSet<&str> {
        self.objects.keys().filter_map(|name| name.as_str().split('/').next()).collect()
    }

    /// Fails unless damage is found by verification and does not reach a restored file. `why` says what was damaged.
    /// With `is_mended` nothing may be lost.
    fn check(&self, storage: &SimulatedStorage, with_restore: bool, is_mended: bool, why: &str) {
        let repo = runs::open(storage).unwrap_or_else(|e| panic!("{why}: the whole repository is closed: {e}"));
        let verified = runs::verify_all(&repo);
        assert!(verified.as_ref().is_ok_and(|report| report.damage_count > 0), "{why}: not found: {verified:?}");
        let is_lost = verified.is_ok_and(|report| report.damage.iter().any(|damage| !damage.files.is_empty()));
        assert!(!(is_lost && is_mended), "{why}: files are lost");
        if with_restore {
            self.check_restores(storage, is_mended, why);
        }
    }

    fn check_restores(&self, storage: &SimulatedStorage, is_mended: bool, why: &str) {
        let repo = runs::open(storage).unwrap_or_else(|e| panic!("{why}: {e}"));
        for (snapshot, wanted) in &self.live {
            let Some(snapshot) = repo.snapshot(snapshot.id) else {
                // Gone from the list only with a word on why.
                assert!(!repo.damage().is_empty(), "{why}: a snapshot is gone in silence");
                continue;
            };
            let target = quick_folder();
            let is_told = match runs::restore(&repo, &snapshot, target.path()) {
                Ok(report) => !report.damaged.is_empty() || !report.failed.is_empty(),
                Err(_) => true,
            };
            let found = Tree::read(target.path());
            assert!(!(is_told && is_mended), "{why}: not everything is restored");
            if !is_told {
                found.assert_is(wanted, why);
            }
            for (path, seen) in found.entries.iter().filter(|(_, seen)| seen.content.is_some()) {
                let right = wanted.entries.get(path).and_then(|wanted| wanted.content);
                let is_part = path.ends_with(b".ckpt-part");
                assert!(is_part || seen.content == right, "{why}: wrong bytes in {}", String::from_utf8_lossy(path));
            }
        }
    }
}

/// The places of an object to hit: both ends, around all the fields of headers and trailers, the middle where a second
/// copy begins, and so many others.
fn places(bytes: usize, more: usize, chance: &mut Chance) -> BTreeSet<usize> {
    let near = |at: usize, reach: usize| at.saturating_sub(reach)..at.saturating_add(reach).min(bytes);
    let mut places: BTreeSet<usize> = (0..24.min(bytes)).collect();
    places.extend(near(bytes / 2, 6));
    places.extend(near(bytes, 12));
    places.extend((0..bytes.min(72)).step_by(5));
    places.extend((bytes.saturating_sub(72)..bytes).step_by(5));
    places.extend((0..more).map(|_| chance.index(bytes)));
    places
}

fn sampled_flips(sample: &Sample, chance: &mut Chance) -> Vec<(ObjectName, usize, u8)> {
    let wanted = usize::try_from(setting("CKPT_TEST_FLIPS", 700)).expect("a count");
    let total: usize = sample.objects.values().map(Vec::len).sum();
    let mut flips = Vec::new();
    for (name, bytes) in &sample.objects {
        if wanted == 0 {
            flips.extend((0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (name.clone(), at, 1 << bit))));
            continue;
        }
        let share = wanted * bytes.len() / total;
        let places = places(bytes.len(), share, chance);
        flips.extend(places.into_iter().map(|at| (name.clone(), at, 1u8 << chance.below(8))));
    }
    flips
}

#[test]
fn every_flipped_bit_is_found_and_none_is_restored() {
    let sample = Sample::new(false);
    let checked = check_flips(&sample, &sampled_flips(&sample, &mut Chance(seed())));
    assert!(checked >= 2_000, "{checked}");
}

#[test]
fn flipped_bits_of_a_sealed_repository_are_found_and_none_is_restored() {
    let sample = Sample::new(true);
    let flips: Vec<_> = sampled_flips(&sample, &mut Chance(seed())).into_iter().step_by(SEALED_SHARE).collect();
    let checked = check_flips(&sample, &flips);
    assert!(checked >= 400, "{checked}");
}

fn check_flips(sample: &Sample, flips: &[(ObjectName, usize, u8)]) -> u64 {
    // Slots are not sealed with the keys that they hold: what becomes of theirs is in `src/repo/key_slots/tests.rs`.
    for folder in names::FOLDERS.into_iter().filter(|folder| *folder != names::KEYS) {
        assert!(sample.folders().contains(folder), "nothing lies in {folder}");
    }
    let checked = in_parallel(flips.len() as u64, |number| {
        let (name, at, bit) = &flips[usize::try_from(number).expect("an index")];
        let storage = SimulatedStorage::holding(sample.objects.clone());
        assert!(storage.corrupt(name, *at, *bit));
        let is_mended = name.as_str().starts_with("packs/") || name.as_str().starts_with("parity/");
        let why = format!("seed {}, byte {at} of {name} xor {bit}", seed());
        sample.check(&storage, number.is_multiple_of(4), is_mended, &why);
        1
    });
    let bytes: usize = sample.objects.values().map(Vec::len).sum();
    say(&format!("bit_flips: {checked} flips in {} objects of {bytes} bytes, seed {}", sample.objects.len(), seed()));
    checked
}

#[test]
fn of_a_dozen_flipped_bits_in_a_dozen_objects_each_is_named() {
    let sample = Sample::new(runs::is_encrypted_by_setting());
    let wanted = setting("CKPT_TEST_FLIPS_TOGETHER", 20_000);
    let of_folder = |folder: &str| -> Vec<&ObjectName> {
        sample.objects.keys().filter(|name| name.as_str().split('/').next() == Some(folder)).collect()
    };
    let others: Vec<&ObjectName> = sample.objects.keys().filter(|n| !n.as_str().starts_with("config/")).collect();
    let configs = of_folder(names::CONFIG);
    let checked = in_parallel(wanted.div_ceil(12), |number| {
        let mut chance = Chance(seed() ^ (number << 20));
        // One of the parameters alone: with all of them damaged there is no repository.
        let mut hit = BTreeSet::from([configs[chance.index(configs.len())]]);
        while hit.len() < 12 {
            hit.insert(others[chance.index(others.len())]);
        }
        let storage = SimulatedStorage::holding(sample.objects.clone());
        let mut why = format!("seed {}, case {number}:", seed());
        for name in &hit {
            let (at, bit) = (chance.index(sample.objects[*name].len()), 1u8 << chance.below(8));
            assert!(storage.corrupt(name, at, bit));
            why.push_str(&format!(" byte {at} of {name} xor {bit};"));
        }
        let repo = runs::open(&storage).unwrap_or_else(|e| panic!("{why}: the whole repository is closed: {e}"));
        let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
        let named: BTreeSet<&str> = verified.damage.iter().map(|damage| damage.object.as_str()).collect();
        for name in &hit {
            assert!(named.contains(name.as_str()), "{why} {name} is not named: {named:?}");
        }
        if number.is_multiple_of(50) {
            sample.check_restores(&storage, false, &why);
        }
        hit.len() as u64
    });
    say(&format!("bit_flips: {checked} flips, a dozen at a time, seed {}", seed()));
    assert!(checked >= wanted, "{checked}");
}

#[test]
fn every_truncation_is_found_and_nothing_wrong_is_restored() {
    check_truncations(&Sample::new(false), 1);
}

#[test]
fn truncations_of_a_sealed_repository_are_found_and_nothing_wrong_is_restored() {
    check_truncations(&Sample::new(true), SEALED_SHARE);
}

fn check_truncations(sample: &Sample, share: usize) {
    let mut chance = Chance(seed());
    let mut cuts = Vec::new();
    for (name, bytes) in &sample.objects {
        let len = bytes.len();
        let lengths: BTreeSet<usize> =
            [0, 1, 16, 63, 64, len / 2, len / 2 + 1, len - 65, len - 32, len - 1, chance.index(len)].into();
        cuts.extend(lengths.into_iter().filter(|kept| *kept < len).map(|kept| (name.clone(), kept)));
    }
    let cuts: Vec<_> = cuts.into_iter().step_by(share).collect();
    let checked = in_parallel(cuts.len() as u64, |number| {
        let (name, kept) = &cuts[usize::try_from(number).expect("an index")];
        let storage = SimulatedStorage::holding(sample.objects.clone());
        assert!(storage.truncate(name, *kept));
        sample.check(&storage, true, name.as_str().starts_with("parity/"), &format!("{name} truncated to {kept}"));
        1
    });
    say(&format!("bit_flips: {checked} truncations"));
}

#[test]
fn objects_that_changed_places_are_found_and_nothing_wrong_is_restored() {
    check_exchanges(&Sample::new(false), 1);
}

#[test]
fn sealed_objects_that_changed_places_are_found_and_nothing_wrong_is_restored() {
    check_exchanges(&Sample::new(true), SEALED_SHARE);
}

fn check_exchanges(sample: &Sample, share: usize) {
    let names: Vec<&ObjectName> = sample.objects.keys().collect();
    let pairs = (0..names.len()).flat_map(|a| (0..names.len()).filter(move |b| *b != a).map(move |b| (a, b)));
    let pairs: Vec<(usize, usize)> = pairs.step_by(share).collect();
    let checked = in_parallel(pairs.len() as u64, |number| {
        let (a, b) = pairs[usize::try_from(number).expect("an index")];
        let (a, b) = (names[a], names[b]);
        if sample.objects[a] == sample.objects[b] {
            return 0;
        }
        let storage = SimulatedStorage::holding(sample.objects.clone());
        // One stands in for the other; or, for each pair once, they swap.
        storage.insert(a.clone(), sample.objects[b].clone());
        if a < b {
            storage.insert(b.clone(), sample.objects[a].clone());
        }
        sample.check(&storage, number.is_multiple_of(4), false, &format!("{b} under the name {a}"));
        1
    });
    say(&format!("bit_flips: {checked} objects under wrong names"));
}
