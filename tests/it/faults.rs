//! Scripted faults of the storage: what is reported, what stands afterwards, and that the next run goes on.

use crate::support::runs;
use crate::support::trees::Tree;
use crate::support::world::{World, assert_backed_up, plain_backup};
use crate::support::{noise, quick_folder};
use ckpt::error::Kind;
use ckpt::events::Silent;
use ckpt::ops::backup::{Input, backup};
use ckpt::repo::names;
use ckpt::repo::snapshots::Outcome;
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::{Fault, Operation, SimulatedStorage};
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn a_full_storage_is_told_at_whichever_write_and_costs_nothing() {
    let world = World::new();
    for until in [1, u64::MAX] {
        let mut write = 0u64;
        loop {
            let storage = world.after_a_change();
            let repo = runs::open(&storage).expect("opens");
            let hit = write..write.saturating_add(until);
            storage.fail(hit, |operation, _| operation == Operation::Write, Fault::Error(Kind::NoSpace));
            let why = format!("no space at write {write}, {until} times");
            let result = plain_backup(&repo, &world.source());
            storage.heal();
            world.assert_saved(&storage, &why);
            world.assert_goes_on(&storage, &why);
            match result {
                Err(error) => assert_eq!(error.kind(), Kind::NoSpace, "{why}: {error}"),
                Ok(report) => {
                    assert_backed_up(&repo, &report, &world.source(), &why);
                    break;
                }
            }
            write += 1;
        }
        assert!(write >= 4, "a transaction, packs, an index object and a snapshot are written, not {write}");
    }
}

#[test]
fn an_error_or_an_unclear_answer_at_any_step_never_passes_for_success() {
    let world = World::new();
    let kinds = [
        Fault::Error(Kind::Unreachable),
        Fault::Ambiguous(Kind::Unreachable),
        Fault::Error(Kind::NoSpace),
        Fault::Error(Kind::Denied),
    ];
    for fault in kinds {
        let mut failures = 0;
        for step in 0..48 {
            let storage = world.after_a_change();
            let repo = runs::open(&storage).expect("opens");
            storage.fail(step..step + 1, |_, _| true, fault);
            let result = plain_backup(&repo, &world.source());
            storage.heal();
            let why = format!("{fault:?} at step {step}: {result:?}");
            failures += u64::from(result.is_err());
            if let Ok(report) = result {
                assert_backed_up(&runs::open(&storage.another_host()).expect("opens"), &report, &world.source(), &why);
            }
            world.assert_saved(&storage, &why);
            world.assert_goes_on(&storage, &why);
        }
        assert!(failures > 5, "{fault:?} hardly ever mattered");
    }
}

#[test]
fn an_unclear_answer_at_the_commit_is_decided_by_what_stands_there() {
    let world = World::new();
    let at_commit = |operation, name: &str| operation == Operation::Name && name.starts_with("snapshots/");
    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    storage.fail(0..1, at_commit, Fault::Ambiguous(Kind::Unreachable));
    let report = plain_backup(&repo, &world.source()).expect("it was stored");
    assert!(!report.retried_after_revocation);
    assert_backed_up(&repo, &report, &world.source(), "stored, but reported as failed");
    let id = report.snapshot.expect("a snapshot");
    for cut in 0..16 {
        let image = storage.after_power_cut(cut);
        assert!(runs::open(&image).expect("opens").snapshot(id).is_some(), "what was reported is durable, cut {cut}");
    }

    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    storage.fail(0..1, at_commit, Fault::Error(Kind::Unreachable));
    plain_backup(&repo, &world.source()).expect_err("nothing was stored");
    assert_eq!(runs::open(&storage).expect("opens").snapshots().len(), 1);

    // Stored, reported as failed, and unreadable: whatever is reported, a success has to be there.
    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    storage.fail(0..1, at_commit, Fault::Ambiguous(Kind::Unreachable));
    let reads = |operation, name: &str| operation == Operation::Read && name.starts_with("snapshots/");
    storage.fail(0..1, reads, Fault::Error(Kind::Unreachable));
    plain_backup(&repo, &world.source()).expect_err("nobody knows");
    storage.heal();
    world.assert_goes_on(&storage, "after an outcome that nobody knew");
}

#[test]
fn reads_that_fail_once_are_made_again_and_those_that_always_fail_are_told() {
    let world = World::new();
    for pack in world.packs() {
        for hit in [0..1, 1..2, 0..u64::MAX] {
            let storage = world.storage.copy();
            let repo = runs::open(&storage).expect("opens");
            let is_permanent = hit.end == u64::MAX;
            let name = pack.to_string();
            let why = format!("reads {hit:?} of {pack} fail");
            let matching = move |operation, of: &str| operation == Operation::ReadRange && of == name;
            storage.fail(hit, matching, Fault::Error(Kind::Unreachable));
            let target = quick_folder();
            let result = runs::restore(&repo, &world.saved.0, target.path());
            let is_whole = result.as_ref().is_ok_and(|report| report.damaged.is_empty() && report.failed.is_empty());
            if is_whole {
                Tree::read(target.path()).assert_is(&world.saved.1, &why);
            }
            assert!(!(is_permanent && is_whole), "{why}: nothing was told");
            let found = Tree::read(target.path());
            assert_only_right_files(&found, &world.saved.1, &why);
        }
    }
}

/// Every file that is there is one of the wanted ones.
fn assert_only_right_files(found: &Tree, wanted: &Tree, why: &str) {
    for (path, seen) in found.entries.iter().filter(|(_, seen)| seen.content.is_some()) {
        let wanted = wanted.entries.get(path).and_then(|wanted| wanted.content);
        // Parts of unfinished files have names of their own.
        let is_part = path.ends_with(b".ckpt-part");
        assert!(is_part || seen.content == wanted, "{why}: wrong bytes in {:?}", String::from_utf8_lossy(path));
    }
}

#[test]
fn an_object_that_was_cut_short_in_silence_is_found_and_stored_again() {
    let world = World::new();
    for (folder, kept) in [("packs/", 0), ("packs/", 1), ("packs/", 200), ("index/", 0), ("index/", 100)] {
        let storage = world.after_a_change();
        let repo = runs::open(&storage).expect("opens");
        let writes = move |operation, name: &str| operation == Operation::Write && name.starts_with(folder);
        storage.fail(0..1, writes, Fault::Short(kept));
        let why = format!("an object in {folder} kept {kept} bytes");
        let result = plain_backup(&repo, &world.source());
        storage.heal();
        let repo = runs::open(&storage).expect("opens");
        let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert!(verified.damage_count > 0 || result.is_err(), "{why}: nobody noticed");
        world.assert_saved(&storage, &why);
        world.assert_goes_on(&storage, &why);
    }
}

/// Puts a revocation under the name of the next snapshots, just before they are named.
fn revoke_next(storage: &SimulatedStorage, times: u64) {
    let (watched, seen) = (storage.clone(), AtomicU64::new(0));
    storage.set_gate(move |call| {
        let is_commit = call.operation == Operation::Name && call.name.starts_with("snapshots/");
        if is_commit && seen.fetch_add(1, Ordering::Relaxed) < times {
            let name = ObjectName::new(&*call.name).expect("it was one");
            let id = names::snapshot_id(names::SNAPSHOTS, &name).expect("a snapshot's name");
            watched.insert(name, Outcome::Revoked.seal(&ckpt::repo::keys::Keys::plain(), id).expect("sealed"));
        }
    });
}

#[test]
fn a_revoked_backup_runs_once_more_and_a_stream_says_so() {
    let world = World::new();
    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    revoke_next(&storage, 1);
    let report = plain_backup(&repo, &world.source()).expect("the second attempt commits");
    assert!(report.retried_after_revocation);
    assert_backed_up(&repo, &report, &world.source(), "revoked once");

    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    revoke_next(&storage, 2);
    assert_eq!(plain_backup(&repo, &world.source()).expect_err("revoked twice").kind(), Kind::Busy);
    storage.set_gate(|_| {});
    world.assert_goes_on(&storage, "revoked twice");

    let storage = world.after_a_change();
    let repo = runs::open(&storage).expect("opens");
    revoke_next(&storage, 1);
    let content = noise(5, 100_000);
    let reader = Box::new(content.as_slice());
    let input = Input::Stream { name: "stream".to_owned(), reader, finish: Box::new(|| Ok(())) };
    let error = backup(&repo, input, &runs::backup_options(2), &Silent).expect_err("it cannot be read twice");
    assert_eq!(error.kind(), Kind::Busy);
    world.assert_saved(&storage, "a revoked stream");
}
