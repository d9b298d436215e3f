//! Encrypted repositories through the operations: everything works as in plain ones, each role does its part, and the
//! storage learns nothing it should not.

use crate::support::keys::KeysOf;
use crate::support::runs::{self, PACK_BYTES_MIN};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights};
use crate::support::{noise, quick_folder};
use ckpt::error::{Error, Kind};
use ckpt::events::Silent;
use ckpt::ops::verify::{VerifyOptions, verify};
use ckpt::repo::keys::Role;
use ckpt::repo::pack::PackKind;
use ckpt::repo::{Cache, Repo, names};
use ckpt::storage::simulated::{Operation, SimulatedStorage};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const MARKER: &[u8] = b"words that stand in no stored object";

/// A small source with some of everything.
fn write_source(source: &Path, version: u64) -> Tree {
    fs::create_dir_all(source.join("folder-to-hide")).expect("folders");
    let numbers = (0..version).fold(weights(8, 36_000), |numbers, n| trained(&numbers, n));
    let model = safetensors(&[Tensor::new("w", "BF16", narrow(&numbers))], 0);
    fs::write(source.join("model.safetensors"), model).expect("a file");
    fs::write(source.join("folder-to-hide/text"), MARKER.repeat(500)).expect("a file");
    fs::write(source.join("noise"), noise(version, 150_000)).expect("a file");
    for number in 0..40u64 {
        fs::write(source.join(format!("small{number}")), noise(100 + number, 3000)).expect("a file");
    }
    Tree::read(source)
}

fn pack_calls(storage: &SimulatedStorage) -> Vec<String> {
    let reads = |operation| matches!(operation, Operation::Read | Operation::ReadRange);
    let calls = storage.calls();
    calls.into_iter().filter(|c| reads(c.operation) && c.name.starts_with("packs/")).map(|c| c.name).collect()
}

fn is_wrong_key<T>(outcome: Result<T, Error>) -> bool {
    outcome.is_err_and(|error| error.kind() == Kind::WrongKey && error.hint().is_some())
}

#[test]
fn an_encrypted_repository_is_backed_up_restored_verified_forgotten_and_pruned_as_any_other() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    let storage = runs::simulated_encrypted(PACK_BYTES_MIN);
    let repo = runs::open(&storage).expect("opens");
    let mut saved = Vec::new();
    for version in 0..3 {
        let tree = write_source(&source, version);
        saved.push((runs::save(&repo, &source), tree));
    }
    assert!(runs::deltas_between_packs(&storage) > 0, "numbers are coded against earlier ones");
    let check = |live: &[(ckpt::repo::snapshots::Snapshot, Tree)], why: &str| {
        let repo = runs::open(&storage).expect("opens");
        let verified = runs::verify_all(&repo).expect("verifies");
        assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
        assert!(verified.packs_read > 0);
        for (snapshot, tree) in live {
            let target = tempfile::tempdir_in(folder.path()).expect("a folder");
            runs::restore(&repo, snapshot, target.path()).expect("restores");
            Tree::read(target.path()).assert_is(tree, why);
        }
    };
    check(&saved, "as saved");
    let forgotten = saved.remove(0).0;
    runs::forget(&repo, &forgotten).expect("forgotten");
    let report = ckpt::ops::prune::prune(&repo, &runs::prune_options(), &Silent).expect("prunes");
    assert!(report.packs_deleted + report.packs_repacked > 0, "{report:?}");
    check(&saved, "after the prune");
    // Without index objects all tables come from the packs.
    for name in storage.names().into_iter().filter(|name| name.as_str().starts_with("index/")) {
        storage.remove(&name);
    }
    let repo = runs::open(&storage).expect("opens");
    for (snapshot, tree) in &saved {
        runs::contents(&repo, snapshot).expect("reads").assert_is(tree, "without an index");
    }
    for (name, object) in storage.objects() {
        for marker in [MARKER, b"folder-to-hide", b"safetensors", b"small7", b"host"] {
            assert!(!object.windows(marker.len()).any(|w| w == marker), "{name} shows {marker:?}");
        }
    }
}

#[test]
fn a_host_that_may_only_add_sees_what_is_unchanged_and_reads_nothing_back() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    let storage = runs::simulated_encrypted(PACK_BYTES_MIN);
    let first_tree = write_source(&source, 0);
    let repo = runs::open_as(&storage, Role::Put).expect("opens");
    let first = runs::save(&repo, &source);
    fs::write(source.join("new"), noise(77, 50_000)).expect("a file");
    let second_tree = Tree::read(&source);
    storage.clear_calls();
    let report = runs::backup(&repo, &source, 2).expect("backs up");
    assert_eq!((report.files_new, report.files_changed), (1, 0), "{report:?}");
    assert_eq!(report.bytes_read, 50_000);
    assert_eq!(pack_calls(&storage), Vec::<String>::new(), "nothing is read from packs");
    let second = repo.snapshot(report.snapshot.expect("saved")).expect("listed");
    // A changed model meets no base that this host could read, and is stored all the same.
    let third_tree = write_source(&source, 1);
    let third = runs::save(&repo, &source);
    // Without what it has kept it reads all files again, and stores nothing twice.
    let fresh = runs::open_as(&storage, Role::Put).expect("opens");
    let report = runs::backup(&fresh, &source, 2).expect("backs up");
    assert_eq!((report.files_unchanged, report.bytes_new), (0, 0), "{report:?}");

    let target = folder.path().join("target");
    assert!(is_wrong_key(runs::restore(&fresh, &third, &target)) && !target.exists());
    assert!(is_wrong_key(runs::contents(&fresh, &third)) && is_wrong_key(runs::verify_all(&fresh)));
    assert!(is_wrong_key(runs::forget(&fresh, &third)));
    assert!(is_wrong_key(ckpt::ops::prune::prune(&fresh, &runs::prune_options(), &Silent)));
    let list = ckpt::ops::list::list(&fresh, &third, None, true, &mut |_| Ok(()));
    assert!(is_wrong_key(list));
    let reader = runs::open_as(&storage, Role::Read).expect("opens");
    for (snapshot, tree) in [(first, first_tree), (second, second_tree), (third, third_tree)] {
        runs::contents(&reader, &snapshot).expect("reads").assert_is(&tree, "saved by a host that cannot read it");
    }
    assert!(is_wrong_key(runs::backup(&reader, &source, 2)), "a read key adds nothing");
    let verified = runs::verify_all(&reader).expect("verifies");
    assert_eq!(verified.damage_count, 0, "{:?}", verified.damage);
}

#[test]
fn a_host_that_may_only_add_passes_over_what_is_unchanged_whatever_others_deleted() {
    let folder = quick_folder();
    let (source, cache) = (folder.path().join("source"), Cache::Folder(folder.path().join("cache")));
    let storage = runs::simulated_encrypted(PACK_BYTES_MIN);
    let put_repo = || {
        let storage = Arc::new(storage.another_host());
        Repo::open_storage_with(storage, &cache, &KeysOf(Role::Put), &Silent).expect("opens")
    };
    write_source(&source, 0);
    let doomed = runs::save(&put_repo(), &source);
    fs::remove_file(source.join("noise")).expect("removed");
    let second = runs::backup(&put_repo(), &source, 2).expect("backs up");
    assert_eq!((second.files_changed, second.bytes_read), (0, 0), "{second:?}");
    let admin = runs::open(&storage).expect("opens");
    runs::forget(&admin, &doomed).expect("forgotten");
    let pruned = ckpt::ops::prune::prune(&admin, &runs::prune_options(), &Silent).expect("prunes");
    assert!(pruned.packs_deleted + pruned.packs_repacked > 0, "{pruned:?}");
    let third = runs::backup(&put_repo(), &source, 2).expect("backs up");
    assert_eq!((third.files_changed, third.bytes_read, third.bytes_new), (0, 0, 0), "packs moved: {third:?}");
    // What is gone is read and stored again.
    fs::write(source.join("noise"), noise(0, 150_000)).expect("a file");
    let repo = put_repo();
    let fourth = runs::backup(&repo, &source, 2).expect("backs up");
    assert_eq!((fourth.files_new, fourth.bytes_new), (1, 150_000), "{fourth:?}");
    let admin = runs::open(&storage).expect("opens");
    let saved = fourth.snapshot.and_then(|id| admin.snapshot(id)).expect("listed");
    runs::contents(&admin, &saved).expect("reads").assert_is(&Tree::read(&source), "the fourth");
}

#[test]
fn a_prune_key_deletes_what_nothing_needs_and_leaves_sparse_contents_to_an_admin() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    let storage = runs::simulated_encrypted(PACK_BYTES_MIN);
    let repo = runs::open(&storage).expect("opens");
    fs::create_dir_all(&source).expect("a folder");
    // Packs of the first run are half needed, a pack of the second is not needed at all.
    for number in 0..20u64 {
        fs::write(source.join(format!("file{number}")), noise(number, 20_000)).expect("a file");
    }
    let first = runs::save(&repo, &source);
    (0..10u64).for_each(|number| fs::remove_file(source.join(format!("file{number}"))).expect("removed"));
    fs::write(source.join("short-lived"), noise(500, 200_000)).expect("a file");
    let second = runs::save(&repo, &source);
    fs::remove_file(source.join("short-lived")).expect("removed");
    let third = (runs::save(&repo, &source), Tree::read(&source));

    let pruner = runs::open_as(&storage, Role::Prune).expect("opens");
    runs::forget(&pruner, &first).expect("forgotten");
    runs::forget(&pruner, &second).expect("forgotten");
    let pack_ids = || {
        let known = runs::open(&storage).expect("opens").index().packs().expect("an index").into_iter();
        known.filter(|pack| pack.kind == PackKind::Data).map(|pack| pack.id).collect::<BTreeSet<_>>()
    };
    let before = pack_ids();
    let report = ckpt::ops::prune::prune(&pruner, &runs::prune_options(), &Silent).expect("prunes");
    assert!(report.packs_deleted > 0, "{report:?}");
    let after = pack_ids();
    assert!(after.len() < before.len() && after.is_subset(&before), "of contents whole packs go, and none is written");
    let packs = |repo: &ckpt::repo::Repo| {
        let known = repo.index().packs().expect("an index").into_iter();
        known.filter(|p| p.kind == PackKind::Data).map(|p| p.bytes).sum::<u64>()
    };
    let admin = runs::open(&storage).expect("opens");
    let left = packs(&admin);
    runs::contents(&admin, &third.0).expect("reads").assert_is(&third.1, "after the prune");
    let structure = VerifyOptions { read_data: None, resources: runs::resources(2), now: runs::now() };
    assert_eq!(verify(&pruner, &structure, &Silent).expect("verifies").damage_count, 0);
    assert!(is_wrong_key(runs::verify_all(&pruner)) && is_wrong_key(runs::restore(&pruner, &third.0, folder.path())));

    let report = ckpt::ops::prune::prune(&admin, &runs::prune_options(), &Silent).expect("prunes");
    assert!(report.packs_repacked > 0, "sparse packs had stayed: {report:?}");
    let admin = runs::open(&storage).expect("opens");
    assert!(packs(&admin) < left.min(250_000), "an admin copies what is needed");
    runs::contents(&admin, &third.0).expect("reads").assert_is(&third.1, "after the admin's prune");
}

#[test]
fn frames_of_a_file_are_spread_over_several_packs() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    fs::create_dir_all(&source).expect("a folder");
    fs::write(source.join("big"), noise(1, 400_000)).expect("a file");
    let storage = runs::simulated_encrypted(1 << 20);
    let repo = runs::open(&storage).expect("opens");
    let report = runs::backup(&repo, &source, 1).expect("backs up");
    let known = repo.index().packs().expect("an index");
    assert_eq!(known.iter().filter(|p| p.kind == PackKind::Data).count(), 3, "one lane keeps three packs open");
    let snapshot = repo.snapshot(report.snapshot.expect("saved")).expect("listed");
    runs::contents(&repo, &snapshot).expect("reads").assert_is(&Tree::read(&source), "spread");
    assert!(storage.names().iter().all(|name| names::pack_id(name).is_some() || !name.as_str().starts_with("packs/")));
}
