//! Several runs on one host: who may put a database in place, and what the others find.

use super::tests::{Ended, REPOSITORY, begun, is_declined, pack_of};
use super::*;
use crate::events::Silent;
use crate::ids::SnapshotId;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

const OBJECT: IndexId = IndexId::from_bytes([2; 16]);

fn open(folder: &Path) -> Index {
    Index::open(folder, REPOSITORY, &Silent).expect("opens")
}

fn known(index: &Index) -> Vec<PackId> {
    index.packs().expect("an index").iter().map(|pack| pack.id).collect()
}

/// Counts warnings.
#[derive(Default)]
struct Warned(AtomicU64);

impl Observer for Warned {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::Warning { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

#[test]
fn a_database_whose_making_was_cut_short_is_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = open(folder.path());
    index.query(|db| db.execute_batch("PRAGMA user_version=0")).expect("an index");
    let error = schema::open(index.path()).expect_err("half made");
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    drop(index);
    let warned = Warned::default();
    let index = Index::open(folder.path(), REPOSITORY, &warned).expect("made anew");
    assert_eq!(warned.0.into_inner(), 1);
    assert!(index.is_empty().expect("an index"));
}

/// One run builds, another finds that the old database was removed and builds, too.
#[test]
fn a_build_whose_database_was_removed_puts_nothing_in_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, third) = (open(folder.path()), folder.path().join(REPOSITORY.to_hex()));
    let mut first = begun(&one);
    first.add(&pack_of(1), OBJECT).expect("added");
    // By hand, as hints say.
    fs::remove_dir_all(&third).expect("removed");
    let other = open(folder.path());
    let mut second = begun(&other);
    second.add(&pack_of(2), OBJECT).expect("added");
    std::thread::scope(|scope| {
        // It waits for the other, and goes on with what that one makes.
        let first = scope.spawn(|| first.finish(&Silent));
        assert!(second.finish(&Silent).expect("made"));
        assert!(!first.join().expect("no panic").expect("ends"));
    });
    assert_eq!(known(&open(folder.path())), [pack_of(2).id]);
    assert_eq!(known(&one), [pack_of(2).id]);
    drop((one, other));
    let left: Vec<_> = fs::read_dir(&third).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("building")), "{left:?}");
}

#[test]
fn who_finds_damage_late_leaves_what_others_have_made_in_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, late) = (open(folder.path()), open(folder.path()));
    one.remove().expect("removed");
    let one = open(folder.path());
    one.add_packs(&[pack_of(1)], None).expect("added");
    late.remove().expect("it has been removed before");
    assert_eq!(known(&open(folder.path())), [pack_of(1).id]);
    assert!(late.packs().is_err(), "it is closed");
}

#[test]
fn who_cannot_build_goes_on_with_the_database_that_has_the_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = open(folder.path());
    open(folder.path()).remove().expect("removed");
    let other = open(folder.path());
    assert!(is_declined(&one), "another has it open");
    one.add_packs(&[pack_of(1)], None).expect("added");
    assert_eq!(known(&other), [pack_of(1).id]);
}

#[test]
fn whoever_opens_a_new_one_at_the_same_moment_can() {
    for _ in 0..40 {
        let folder = tempfile::tempdir().expect("a folder");
        let all = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    all.wait();
                    assert!(open(folder.path()).is_empty().expect("an index"));
                });
            }
        });
    }
}

#[test]
fn of_two_that_find_it_empty_one_makes_it_and_the_other_goes_on_with_that() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = std::sync::Barrier::new(2);
    let run = |index: Index| {
        both.wait();
        // On a machine that is slow enough they miss each other: then both try again.
        let mut beginnings = (0..100).map(|_| index.begin_build(&Silent).expect("locks"));
        let is_builder = match beginnings.find(|beginning| !matches!(beginning, Beginning::Declined)) {
            Some(Beginning::Build(mut build)) => {
                build.add(&pack_of(3), OBJECT).expect("added");
                assert!(build.finish(&Silent).expect("made"));
                true
            }
            Some(_) => false,
            None => panic!("neither makes it"),
        };
        assert_eq!(known(&index), [pack_of(3).id]);
        is_builder
    };
    let made = std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| open(folder.path())).map(|index| scope.spawn(|| run(index)));
        runs.map(|run| run.join().expect("no panic"))
    });
    assert!(made[0] != made[1], "{made:?}");
}

#[test]
fn a_build_can_be_interrupted_while_it_inserts_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = open(folder.path());
    let mut build = begun(&index);
    build.add(&pack_of(1), OBJECT).expect("added");
    let error = build.finish(&Ended).expect_err("interrupted");
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(index.is_empty().expect("an index"));
}

#[test]
fn an_index_is_made_in_a_folder_whose_name_is_not_utf8() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    let index = open(&folder);
    index.add_snapshots(&[(SnapshotId::from_bytes([3; 16]), [5])]).expect("kept");
    let mut build = begun(&index);
    build.add(&pack_of(1), OBJECT).expect("added");
    assert!(build.finish(&Silent).expect("made"));
    assert_eq!(index.snapshots().expect("an index").len(), 1, "what comes from elsewhere is kept");
    assert_eq!(index.packs().expect("an index").len(), 1);
}
