//! What every storage promises, checked alike on each implementation; what only one of them has is in `local.rs` and
//! `simulated.rs`.

mod local;
mod replace;
mod simulated;

use ckpt::bytes::ByteRange;
use ckpt::error::Kind;
use ckpt::storage::local::LocalStorage;
use ckpt::storage::simulated::SimulatedStorage;
use ckpt::storage::{Listed, ObjectName, Published, Storage, create_new};
use std::sync::Barrier;

const MIB: usize = 1 << 20;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a sound name")
}

/// Bytes without a short period, so that a shifted or repeated block shows.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (i >> 12) as u8).collect()
}

fn on_each(check: impl Fn(&dyn Storage)) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    check(&LocalStorage::open(directory.path()).expect("an existing directory"));
    check(&SimulatedStorage::new());
}

fn publish(storage: &dyn Storage, text: &str, bytes: &[u8]) {
    let published =
        create_new(storage, &name(text), bytes).unwrap_or_else(|error| panic!("publishing {text}: {error}"));
    assert_eq!(published, Published::Created, "{text}");
}

fn names_in(storage: &dyn Storage, folder: &str) -> Vec<String> {
    storage.list(folder).expect("a listing").into_iter().map(|listed| listed.name.to_string()).collect()
}

fn read_range(storage: &dyn Storage, text: &str, offset: u64, len: u64) -> ckpt::error::Result<Vec<u8>> {
    let mut into = b"before".to_vec();
    let result = storage.read_range(&name(text), ByteRange::new(offset, len).expect("a range"), &mut into);
    assert!(into.starts_with(b"before"));
    assert!(result.is_ok() || into.len() == 6, "a failed read leaves nothing in the buffer");
    result.map(|()| into.split_off(6))
}

#[test]
fn of_eight_writers_racing_for_one_name_exactly_one_gets_it() {
    on_each(|storage| {
        for round in 0..20 {
            let barrier = Barrier::new(8);
            let winners: Vec<u8> = std::thread::scope(|scope| {
                let race = |writer: u8| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let mut object = storage.create("race").expect("a writer");
                        object.write(&[writer; 5000]).expect("written");
                        barrier.wait();
                        let published = object.publish(&name(&format!("race/{round}"))).expect("an answer");
                        (published == Published::Created).then_some(writer)
                    })
                };
                let racers: Vec<_> = (0..8).map(race).collect();
                racers.into_iter().filter_map(|racer| racer.join().expect("no panic")).collect()
            });
            assert_eq!(winners.len(), 1, "round {round} was won by {winners:?}");
            let stored = storage.read(&name(&format!("race/{round}")), 5000).expect("readable");
            assert_eq!(stored, [winners[0]; 5000]);
        }
        assert_eq!(storage.list("race").expect("a listing").len(), 20);
        assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0, "losers leave nothing");
    });
}

#[test]
fn what_was_published_is_listed_sorted_at_any_depth() {
    on_each(|storage| {
        assert_eq!(storage.list("packs").expect("an absent folder is empty"), []);
        for (text, len) in [("packs/b0/x", 3), ("packs/b/x", 2), ("packs/b.x", 1), ("packs/a/b/c/d", 0), ("pack/y", 1)]
        {
            publish(storage, text, &content(len));
            assert!(names_in(storage, text.split('/').next().expect("a folder")).contains(&text.to_owned()));
        }
        let listed = |text: &str, bytes| Listed { name: name(text), bytes };
        assert_eq!(
            storage.list("packs").expect("a listing"),
            [listed("packs/a/b/c/d", 0), listed("packs/b.x", 1), listed("packs/b/x", 2), listed("packs/b0/x", 3)]
        );
        assert_eq!(names_in(storage, "pack"), ["pack/y"]);
    });
}

#[test]
fn objects_of_every_size_come_back_as_they_were() {
    on_each(|storage| {
        let around = |at: usize| [at - 1, at, at + 1];
        let sizes = [vec![0, 1], around(4096).into(), around(MIB).into(), around(8 * MIB).into(), vec![20 * MIB + 17]];
        let all = content(20 * MIB + 17);
        for size in sizes.concat() {
            for pieces_of in [size.max(1), 300_007] {
                let text = format!("packs/{size}.{pieces_of}");
                let mut writer = storage.create("packs").expect("a writer");
                for piece in all[..size].chunks(pieces_of) {
                    writer.write(piece).expect("written");
                }
                assert_eq!(writer.publish(&name(&text)).expect("published"), Published::Created);
                assert_eq!(storage.size(&name(&text)).expect("a size"), Some(size as u64));
                assert!(storage.read(&name(&text), size as u64).expect("readable") == all[..size], "{text} differs");
            }
        }
        assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0);
    });
}

#[test]
fn ranges_are_exact_and_end_where_the_object_ends() {
    on_each(|storage| {
        let bytes = content(9 * MIB + 5);
        publish(storage, "packs/ab/x", &bytes);
        let end = bytes.len() as u64;
        for (offset, len) in [
            (0, 0),
            (0, 1),
            (0, end),
            (end, 0),
            (end - 1, 1),
            (4095, 2),
            (4096, 4096),
            (8 * MIB as u64 - 1, 3),
            (7, 5_000_000),
        ] {
            let found = read_range(storage, "packs/ab/x", offset, len).expect("readable");
            assert!(found == bytes[offset as usize..][..len as usize], "{len} bytes at {offset} differ");
        }
        for (offset, len) in [(0, end + 1), (end, 1), (end + 1, 0), (u64::MAX - 1, 1), (1, u64::MAX - 1)] {
            let error = read_range(storage, "packs/ab/x", offset, len).expect_err("beyond the end");
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
        }
        // A buffer that is used again, with more room than is asked for.
        let mut buffer = Vec::with_capacity(4 * MIB);
        for (offset, len) in [(1, 10), (2 * MIB, 100), (3, MIB)] {
            buffer.clear();
            let range = ByteRange::new(offset as u64, len as u64).expect("a range");
            storage.read_range(&name("packs/ab/x"), range, &mut buffer).expect("readable");
            assert!(buffer == bytes[offset..offset + len]);
        }
        publish(storage, "packs/empty", b"");
        assert_eq!(read_range(storage, "packs/empty", 0, 0).expect("readable"), b"");
        assert_eq!(read_range(storage, "packs/empty", 0, 1).expect_err("empty").kind(), Kind::Damaged);
    });
}

#[test]
fn many_objects_are_read_at_once_by_many_threads() {
    on_each(|storage| {
        let text = |i: usize| format!("packs/{i:02}/x");
        (0..40).for_each(|i| publish(storage, &text(i), &content(10_000 + i)));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for step in 0..400 {
                        let i = (step * 7 + thread) % 40;
                        let found = read_range(storage, &text(i), 5000, 5000 + i as u64).expect("readable");
                        assert_eq!(found, content(10_000 + i)[5000..]);
                    }
                });
            }
        });
    });
}

#[test]
fn absent_objects_are_missing() {
    on_each(|storage| {
        publish(storage, "keys/a", b"x");
        for absent in ["keys/b", "none/b", "keys/a/b"] {
            assert_eq!(storage.read(&name(absent), 9).expect_err("absent").kind(), Kind::Missing);
            assert_eq!(read_range(storage, absent, 0, 0).expect_err("absent").kind(), Kind::Missing);
            assert_eq!(storage.size(&name(absent)).expect("no error"), None);
            assert!(!storage.delete(&name(absent)).expect("no error"));
        }
    });
}

#[test]
fn an_object_longer_than_expected_is_damaged() {
    on_each(|storage| {
        publish(storage, "keys/a", b"12345");
        assert_eq!(storage.read(&name("keys/a"), 5).expect("readable"), b"12345");
        assert_eq!(storage.read(&name("keys/a"), 4).expect_err("too long").kind(), Kind::Damaged);
    });
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    on_each(|storage| {
        for len in [0, 10, 3 * MIB, 9 * MIB] {
            let mut writer = storage.create("packs").expect("a writer");
            writer.write(&content(len)).expect("written");
            drop(writer);
        }
        assert_eq!(storage.list("packs").expect("a listing"), []);
        assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0);
    });
}

#[test]
fn a_taken_name_keeps_its_first_content() {
    on_each(|storage| {
        publish(storage, "snapshots/a", b"first");
        let again = create_new(storage, &name("snapshots/a"), b"second").expect("an answer");
        assert_eq!(again, Published::AlreadyExists);
        assert_eq!(storage.read(&name("snapshots/a"), 100).expect("readable"), b"first");
        assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0);
    });
}

#[test]
fn a_deleted_object_is_gone_and_its_name_is_free() {
    on_each(|storage| {
        publish(storage, "packs/ab/x", b"first");
        assert_eq!(read_range(storage, "packs/ab/x", 0, 5).expect("readable"), b"first");
        assert!(storage.delete(&name("packs/ab/x")).expect("deleted"));
        assert_eq!(read_range(storage, "packs/ab/x", 0, 5).expect_err("deleted").kind(), Kind::Missing);
        assert_eq!(storage.list("packs").expect("a listing"), []);
        assert!(!storage.delete(&name("packs/ab/x")).expect("no error"));
        publish(storage, "packs/ab/x", b"other");
        assert_eq!(read_range(storage, "packs/ab/x", 0, 5).expect("readable"), b"other");
    });
}

#[test]
fn a_name_outside_the_folder_that_was_begun_is_refused() {
    on_each(|storage| {
        for wrong in ["keys/a", "packs", "packs2/a"] {
            assert!(storage.create("packs").expect("a writer").publish(&name(wrong)).is_err(), "{wrong}");
        }
        for folder in ["", ".", "..", "a/b", "/", "A", "tmp-1"] {
            assert!(storage.create(folder).is_err() && storage.list(folder).is_err(), "{folder:?}");
            assert!(storage.sync_folder(folder).is_err(), "{folder:?}");
        }
        assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0);
    });
}

#[test]
fn a_folder_can_be_synced_whether_it_exists_or_not() {
    on_each(|storage| {
        storage.sync_folder("packs").expect("an absent folder");
        publish(storage, "packs/ab/x", b"x");
        storage.sync_folder("packs").expect("a folder with folders");
    });
}
