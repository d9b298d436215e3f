//! What only the simulation has: power cuts at every step, scripted faults, the log.

use super::*;
use ckpt::storage::simulated::{Fault, Operation};

/// What one crash point must leave, whatever the power cut takes.
#[test]
fn a_crash_at_any_step_of_publishing_leaves_the_object_whole_or_absent() {
    let bytes = content(10_000);
    let mut outcomes = [0; 3];
    for step in 0..6 {
        let storage = SimulatedStorage::new();
        publish(&storage, "packs/ab/old", b"old");
        storage.crash_at(storage.steps() + step);
        let reported = create_new(&storage, &name("packs/ab/x"), &bytes);
        assert_eq!(storage.is_dead(), step < 5);
        for seed in 0..64 {
            let after = storage.after_power_cut(seed);
            assert_eq!(after.read(&name("packs/ab/old"), 9).expect("it was durable"), b"old");
            let found = after.read(&name("packs/ab/x"), u64::MAX);
            match (&reported, found) {
                (_, Ok(found)) => assert!(found == bytes, "torn at step {step}, seed {seed}"),
                (Err(_), Err(error)) => assert_eq!(error.kind(), Kind::Missing),
                (Ok(_), Err(error)) => panic!("lost what was reported, seed {seed}: {error}"),
            }
            let freed = abandoned_bytes(&after);
            outcomes[usize::from(freed > 0) + usize::from(freed > 0 && freed < 10_000)] += 1;
            assert_eq!(abandoned_bytes(&after), 0);
            // The same seed leaves the same.
            assert_eq!(storage.after_power_cut(seed).objects(), after.objects());
        }
    }
    assert!(outcomes.iter().all(|count| *count > 10), "nothing, whole or torn leftovers: {outcomes:?}");
}

#[test]
fn a_name_that_no_sync_has_covered_may_be_lost_until_anyone_syncs_its_folder() {
    let publish_half = || {
        let storage = SimulatedStorage::new();
        storage.crash_at(4);
        create_new(&storage, &name("snapshots/a"), b"x").expect_err("it dies before the folder's sync");
        storage
    };
    let survivors =
        |storage: &SimulatedStorage| (0..64).filter(|seed| storage.after_power_cut(*seed).names().len() == 1).count();
    let storage = publish_half();
    assert!((10..54).contains(&survivors(&storage)));
    let other = storage.another_host();
    assert_eq!(names_in(&other, "snapshots"), ["snapshots/a"], "seen, though not durable");
    other.sync_folder("snapshots").expect("synced");
    assert_eq!(survivors(&storage), 64);

    let storage = publish_half();
    let taken = create_new(&storage.another_host(), &name("snapshots/a"), b"y").expect("an answer");
    assert_eq!(taken, Published::AlreadyExists);
    assert_eq!(survivors(&storage), 64, "who is told that a name is taken may rely on it");
}

#[test]
fn a_deletion_holds_once_it_is_reported() {
    for step in 0..3 {
        let storage = SimulatedStorage::new();
        publish(&storage, "packs/a", b"x");
        storage.crash_at(storage.steps() + step);
        let reported = storage.delete(&name("packs/a"));
        let left = (0..64).filter(|seed| storage.after_power_cut(*seed).names().len() == 1).count();
        match step {
            0 => assert_eq!(left, 64),
            1 => assert!((10..54).contains(&left)),
            _ => assert!(reported.expect("reported") && left == 0),
        }
    }
}

#[test]
fn the_log_shows_the_steps_of_a_publication() {
    let storage = SimulatedStorage::new();
    publish(&storage, "packs/ab/x", b"12345");
    let calls: Vec<_> = storage.calls().into_iter().map(|call| (call.operation, call.name, call.bytes)).collect();
    let call = |operation, name: &str, bytes| (operation, name.to_owned(), bytes);
    assert_eq!(
        calls,
        [
            call(Operation::Create, "packs", 0),
            call(Operation::Write, "packs/ab/x", 5),
            call(Operation::Sync, "packs/ab/x", 5),
            call(Operation::Name, "packs/ab/x", 5),
            call(Operation::SyncFolder, "packs/ab", 0),
        ]
    );
    assert_eq!(storage.steps(), 5);
}

#[test]
fn scripted_faults_hit_the_steps_they_name() {
    let storage = SimulatedStorage::new();
    storage.fail(1..2, |operation, _| operation == Operation::Write, Fault::Error(Kind::NoSpace));
    publish(&storage, "packs/a", b"a");
    assert_eq!(create_new(&storage, &name("packs/b"), b"b").expect_err("full").kind(), Kind::NoSpace);
    assert_eq!(abandoned_bytes(&storage), 0, "a failed publication leaves nothing");
    publish(&storage, "packs/b", b"b");

    let of_c = |operation, name: &str| operation == Operation::Name && name == "packs/c";
    storage.fail(0..1, of_c, Fault::Ambiguous(Kind::Unreachable));
    assert_eq!(create_new(&storage, &name("packs/c"), b"c").expect_err("unclear").kind(), Kind::Unreachable);
    assert_eq!(storage.read(&name("packs/c"), 1).expect("it was published all the same"), b"c");

    storage.fail(0..u64::MAX, |operation, _| operation == Operation::Write, Fault::Short(2));
    publish(&storage, "packs/d", b"12345");
    storage.heal();
    assert_eq!(storage.read(&name("packs/d"), 5).expect("readable"), b"12");
}

#[test]
fn tests_can_damage_copy_and_rebuild_what_is_stored() {
    let storage = SimulatedStorage::new();
    publish(&storage, "packs/a", b"abc");
    publish(&storage, "packs/b", b"abc");
    let copy = storage.copy();
    assert!(copy.corrupt(&name("packs/a"), 1, 1) && !copy.corrupt(&name("packs/a"), 3, 1));
    assert!(copy.truncate(&name("packs/b"), 1) && !copy.truncate(&name("packs/z"), 1));
    assert_eq!(copy.read(&name("packs/a"), 3).expect("readable"), b"acc");
    assert_eq!(copy.read(&name("packs/b"), 3).expect("readable"), b"a");
    assert!(copy.remove(&name("packs/a")) && !copy.remove(&name("packs/a")));
    assert_eq!(storage.read(&name("packs/a"), 3).expect("a copy is independent"), b"abc");
    assert_eq!(SimulatedStorage::holding(storage.objects()).names(), [name("packs/a"), name("packs/b")]);
    copy.insert(name("packs/a"), b"new".to_vec());
    assert_eq!(copy.names().len(), 2);
}

#[test]
fn a_gate_sees_each_step_before_it_happens() {
    let storage = SimulatedStorage::new();
    let watched = storage.clone();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&seen);
    storage.set_gate(move |call| {
        log.lock().expect("no panic").push((call.operation, watched.names().len()));
    });
    publish(&storage, "keys/a", b"x");
    use Operation::{Create, Name, Sync, SyncFolder, Write};
    assert_eq!(*seen.lock().expect("no panic"), [(Create, 0), (Write, 0), (Sync, 0), (Name, 0), (SyncFolder, 1)]);
}
