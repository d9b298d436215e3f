//! A prune, or a second backup, that runs in the middle of a backup or a restore: at each of its steps in turn.
//!
//! The other run begins and ends while the first is held before one step, so that every order of a pair is seen at the
//! granularity of whole runs. Whatever is reported as saved is whole, and nothing live is lost.

use crate::support::runs::{self, PACK_BYTES_MIN, contents};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights};
use crate::support::world::{World, plain_backup};
use crate::support::{in_parallel, noise, quick_folder, say};
use ckpt::error::Kind;
use ckpt::events::Silent;
use ckpt::ops::prune::{PruneOptions, prune};
use ckpt::repo::keys::Role;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::{Operation, SimulatedStorage};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tempfile::TempDir;

/// A repository with something to prune, two live snapshots, and a source that has changed since the last.
struct Scene {
    _folder: TempDir,
    source: PathBuf,
    storage: SimulatedStorage,
    live: Vec<(Snapshot, Tree)>,
}

impl Scene {
    fn new() -> Scene {
        Scene::on(runs::simulated(PACK_BYTES_MIN))
    }

    /// As [`Scene::new`], in this empty repository.
    fn on(storage: SimulatedStorage) -> Scene {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(&source).expect("a folder");
        let write = |name: &str, seed| fs::write(source.join(name), noise(seed, 60_000)).expect("a file");
        let repo = runs::open(&storage).expect("opens");
        let numbers = weights(21, 36_000);
        // Each version is coded against the first, which is to be forgotten.
        let write_version = |step| {
            let tensor =
                Tensor::new("w", "BF16", narrow(&if step == 0 { numbers.clone() } else { trained(&numbers, step) }));
            fs::write(source.join("moving.safetensors"), safetensors(&[tensor], 0)).expect("a file");
        };
        ["a", "b", "c"].iter().zip(1..).for_each(|(name, seed)| write(name, seed));
        write_version(0);
        let doomed = runs::save(&repo, &source);
        write("a", 11);
        write_version(1);
        fs::remove_file(source.join("c")).expect("removed");
        let second = (runs::save(&repo, &source), Tree::read(&source));
        write("d", 12);
        write_version(2);
        let third = (runs::save(&repo, &source), Tree::read(&source));
        runs::forget(&repo, &doomed).expect("forgotten");
        // Comes back from what only the forgotten snapshot holds, and what nothing holds.
        write("c", 3);
        write("e", 13);
        write_version(3);
        assert_eq!(runs::deltas_between_packs(&storage), 2, "both versions stand on the first");
        Scene { _folder: folder, source, storage, live: vec![second, third] }
    }

    fn check(&self, storage: &SimulatedStorage, saved: Option<Snapshot>, why: &str) {
        let repo = runs::open(&storage.another_host()).unwrap_or_else(|e| panic!("{why}: {e}"));
        let saved = saved.map(|snapshot| (snapshot, Tree::read(&self.source)));
        for (snapshot, wanted) in self.live.iter().chain(&saved) {
            let snapshot = repo.snapshot(snapshot.id).unwrap_or_else(|| panic!("{why}: a snapshot is gone"));
            contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(wanted, why);
        }
        let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
    }
}

/// Runs `other` once, when the host of `storage` is about to take its step number `step` from now; true once it has.
fn at_step(storage: &SimulatedStorage, step: u64, other: impl Fn(&Repo) + Send + Sync + 'static) -> Arc<AtomicBool> {
    let (host, seen, done) = (storage.host(), AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let begun = Arc::clone(&done);
    let elsewhere = storage.another_host();
    storage.set_gate(move |call| {
        let is_it = call.host == host && seen.fetch_add(1, Ordering::Relaxed) == step;
        if is_it && !done.swap(true, Ordering::Relaxed) {
            other(&runs::open(&elsewhere).expect("opens"));
        }
    });
    begun
}

/// A prune that takes the first run for dead, since both are in this process; or one that sees that it is alive.
fn prune_beside(takes_it_for_dead: bool) -> PruneOptions {
    let options = runs::prune_options();
    let writer = WriterRecord { process: 1, ..options.writer.clone() };
    if takes_it_for_dead { options } else { PruneOptions { writer, ..options } }
}

#[test]
fn a_prune_at_any_step_of_a_backup() {
    prunes_beside_backups(&Scene::new(), Role::Admin, 1);
}

#[test]
fn a_prune_at_any_step_of_a_backup_by_a_host_that_may_only_add() {
    prunes_beside_backups(&Scene::on(runs::simulated_encrypted(PACK_BYTES_MIN)), Role::Put, 2);
}

/// Of the first 56 steps of a backup every `stride`th.
fn prunes_beside_backups(scene: &Scene, writer: Role, stride: u64) {
    for takes_it_for_dead in [true, false] {
        let retried = AtomicU64::new(0);
        let checked = in_parallel(56 / stride, |number| {
            let step = number * stride;
            let storage = scene.storage.copy();
            let repo = runs::open_as(&storage, writer).expect("opens");
            at_step(&storage, step, move |repo| {
                let result = prune(repo, &prune_beside(takes_it_for_dead), &Silent);
                let is_busy = result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
                assert!(result.is_ok() || is_busy && !takes_it_for_dead, "step {step}: {result:?}");
            });
            let why = format!("a prune before step {step} of a backup, which it takes for dead: {takes_it_for_dead}");
            let report = match plain_backup(&repo, &scene.source) {
                Ok(report) => report,
                // A prune that sees no writer takes away unfinished files, also of one that is just about to begin.
                Err(error) if error.kind() == Kind::Unreachable => {
                    storage.set_gate(|_| {});
                    runs::backup(&repo, &scene.source, 2).unwrap_or_else(|e| panic!("{why}: once more: {e}"))
                }
                Err(error) => panic!("{why}: {error}"),
            };
            storage.set_gate(|_| {});
            retried.fetch_add(u64::from(report.retried_after_revocation), Ordering::Relaxed);
            repo.refresh(&Silent).expect("refreshes");
            scene.check(&storage, report.snapshot.and_then(|id| repo.snapshot(id)), &why);
            1
        });
        let retried = retried.into_inner();
        say(&format!("races: {checked} prunes in a backup, {retried} revoked it"));
        assert_eq!(retried > 0, takes_it_for_dead);
    }
}

#[test]
fn a_backup_at_any_step_of_a_prune() {
    let scene = Scene::new();
    in_parallel(200, |step| {
        let storage = scene.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        let saved = Arc::new(std::sync::Mutex::new(None));
        let (source, into) = (scene.source.clone(), Arc::clone(&saved));
        at_step(&storage, step, move |repo| {
            let report = plain_backup(repo, &source).unwrap_or_else(|e| panic!("beside step {step}: {e}"));
            repo.refresh(&Silent).expect("refreshes");
            *into.lock().expect("no panic") = report.snapshot.and_then(|id| repo.snapshot(id));
        });
        let result = prune(&repo, &runs::prune_options(), &Silent);
        storage.set_gate(|_| {});
        let why = format!("a backup before step {step} of a prune: {result:?}");
        assert!(result.is_ok() || result.is_err_and(|error| error.kind() == Kind::Busy), "{why}");
        let saved = saved.lock().expect("no panic").take();
        scene.check(&storage, saved, &why);
        1
    });
}

#[test]
fn a_prune_at_any_step_of_a_restore_moves_content_and_hides_none() {
    let scene = Scene::new();
    in_parallel(28, |step| {
        let storage = scene.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        at_step(&storage, step, |repo| {
            prune(repo, &runs::prune_options(), &Silent).expect("nobody writes");
        });
        let (snapshot, wanted) = &scene.live[1];
        let (target, why) = (quick_folder(), format!("a prune before step {step} of a restore"));
        let report = runs::restore(&repo, snapshot, target.path()).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert!(report.damaged.is_empty() && report.failed.is_empty(), "{why}: {report:?}");
        Tree::read(target.path()).assert_is(wanted, &why);
        1
    });
}

/// What lies where is listed at one moment, what is needed at another: neither order makes damage of a backup, nor a prune
/// that deletes at once.
#[test]
fn a_backup_and_a_prune_at_any_step_of_a_verification_are_no_damage() {
    let scene = Scene::new();
    in_parallel(60, |number| {
        let (step, is_backup) = (number / 2, number % 2 == 0);
        let storage = scene.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        let source = scene.source.clone();
        at_step(&storage, step, move |repo| match is_backup {
            true => drop(plain_backup(repo, &source).expect("saved")),
            false => drop(prune(repo, &runs::prune_options(), &Silent).expect("nobody writes")),
        });
        let report = runs::verify_all(&repo).unwrap_or_else(|e| panic!("step {step}, a backup: {is_backup}: {e}"));
        storage.set_gate(|_| {});
        assert_eq!(report.damage_count, 0, "step {step}, a backup: {is_backup}: {:?}", report.damage);
        1
    });
}

#[test]
fn two_backups_at_once_are_both_whole() {
    let scene = Scene::new();
    in_parallel(56, |step| {
        let storage = scene.storage.copy();
        let repo = runs::open(&storage).expect("opens");
        let source = scene.source.clone();
        let has_begun = at_step(&storage, step, move |repo| {
            plain_backup(repo, &source).unwrap_or_else(|e| panic!("beside step {step}: {e}"));
        });
        let why = format!("another backup before step {step}");
        let report = plain_backup(&repo, &scene.source).unwrap_or_else(|e| panic!("{why}: {e}"));
        repo.refresh(&Silent).expect("refreshes");
        let listed = runs::open(&storage.another_host()).expect("opens").snapshots().len();
        assert_eq!(listed, 3 + usize::from(has_begun.load(Ordering::Relaxed)), "{why}");
        scene.check(&storage, report.snapshot.and_then(|id| repo.snapshot(id)), &why);
        1
    });
}

#[test]
fn a_pack_that_vanishes_during_a_backup_fails_it_and_the_next_one_mends_it() {
    let world = World::new();
    let pack = world.packs()[0].clone();
    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    let (meddler, gone) = (storage.clone(), pack.clone());
    storage.set_gate(move |call| {
        // New content is being written, so what is known was decided on.
        if call.operation == Operation::Write && call.name.starts_with(names::PACKS) {
            meddler.remove(&gone);
        }
    });
    let error = plain_backup(&repo, &world.source()).expect_err("it relies on a pack that is gone");
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    assert!(error.to_string().contains(pack.as_str().rsplit('/').next().expect("an id")), "{error}");
    storage.set_gate(|_| {});
    world.assert_goes_on(&storage, "after a pack had vanished");
}
