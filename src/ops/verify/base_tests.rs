//! Verification of repositories in which chunks are coded against others.

use super::tests::{files_of, options, run};
use super::*;
use crate::events::Silent;
use crate::ids::ChunkId;
use crate::ops::examine::data::part_of;
use crate::repo::names;
use crate::repo::pack_table::FrameRecord;
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, open, save_versions, store, version};
use crate::repo::transaction::Transaction;
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};

fn id(number: u64) -> ChunkId {
    ChunkId::of(&version(number))
}

fn pack_of(storage: &SimulatedStorage, number: u64) -> PackId {
    open(storage).index().homes(&[id(number)]).expect("an index")[0][0].pack
}

fn name_of(storage: &SimulatedStorage, number: u64) -> crate::storage::ObjectName {
    names::pack(pack_of(storage, number)).expect("a name")
}

/// 1 and 2 stand on 0, 3 stands on 2, and 4 on nothing; each in a pack of its own.
fn repository() -> (SimulatedStorage, Snapshot) {
    let storage = test_support::storage();
    let repo = open(&storage);
    save_versions(&repo, 1, &[(0, &[])], &[]);
    save_versions(&repo, 2, &[(1, &[0])], &[]);
    save_versions(&repo, 3, &[(2, &[0])], &[]);
    save_versions(&repo, 4, &[(3, &[2])], &[]);
    let saved = save_versions(&repo, 5, &[(4, &[])], &[1, 3, 4]);
    let report = run(&storage, Some(Subset::All));
    assert_eq!((report.damage, report.packs_read), (vec![], report.packs_total));
    (storage, saved)
}

fn hit(snapshot: &Snapshot, numbers: &[u64]) -> Vec<(crate::ids::SnapshotId, String)> {
    numbers.iter().map(|n| (snapshot.id, format!("/data/v{n}"))).collect()
}

#[test]
fn damage_to_an_anchor_names_all_that_stands_on_it() {
    let (original, saved) = repository();
    for (number, files) in [(0, vec![1, 3]), (2, vec![3]), (3, vec![3]), (4, vec![4])] {
        let storage = original.copy();
        let name = name_of(&storage, number);
        // The codec's own number: no frame can be read then, whatever it is coded against.
        assert!(storage.corrupt(&name, 64, 0x80));
        assert_eq!(run(&storage, None).damage_count, 0, "the structure is sound");
        let report = run(&storage, Some(Subset::All));
        assert_eq!((report.damage_count, files_of(&report)), (1, hit(&saved, &files)), "{:?}", report.damage);
        assert_eq!(report.damage[0].object, name.as_str());
        assert_eq!(report.packs_never_read, 0);
        // A pack that is gone hits the same, and the structure shows it.
        assert!(storage.remove(&name));
        let gone = run(&storage, None);
        assert_eq!((gone.damage_count, files_of(&gone)), (1, hit(&saved, &files)), "{:?}", gone.damage);
        assert!(gone.damage[0].object == name.as_str() && gone.damage[0].what.contains("missing"), "{:?}", gone.damage);
        // Nothing is known of it any more: the chunk itself is named.
        for object in storage.names().into_iter().filter(|n| names::index_id(n).is_some()) {
            assert!(storage.remove(&object));
        }
        let unknown = run(&storage, None);
        assert_eq!(files_of(&unknown), hit(&saved, &files), "{:?}", unknown.damage);
        let chunk = format!("chunk {}", id(number));
        assert!(unknown.damage.iter().any(|d| d.object == chunk), "{:?}", unknown.damage);
    }
}

#[test]
fn a_part_that_holds_only_what_stands_on_damage_names_it_too() {
    let (storage, saved) = repository();
    let anchor = name_of(&storage, 0);
    assert!(storage.corrupt(&anchor, 64, 0x80));
    let of = 100_000;
    let part = part_of(&pack_of(&storage, 3), of);
    let report = run(&storage, Some(Subset::Part { part, of }));
    assert_eq!((report.packs_read, report.damage_count), (1, 1), "{:?}", report.damage);
    // 2, on which 3 stands, could not be had, and the fault is that of the anchor.
    assert_eq!((report.damage[0].object.as_str(), files_of(&report)), (anchor.as_str(), hit(&saved, &[1, 3])));
}

#[test]
fn another_home_of_an_anchor_saves_what_stands_on_it() {
    let (storage, _) = repository();
    let anchor = name_of(&storage, 0);
    store(&open(&storage), &[(&version(0), &[])]);
    assert!(storage.corrupt(&anchor, 64, 0x80));
    let report = run(&storage, Some(Subset::All));
    assert_eq!((report.damage_count, files_of(&report)), (1, vec![]), "{:?}", report.damage);
}

#[test]
fn a_chunk_needs_no_base_while_it_is_stored_alone() {
    let (storage, _) = repository();
    store(&open(&storage), &[(&version(1), &[]), (&version(3), &[])]);
    let anchor = name_of(&storage, 0);
    assert!(storage.remove(&anchor));
    let report = run(&storage, None);
    // The pack is missing, and that is told; but nothing is hit.
    assert_eq!((report.damage_count, files_of(&report)), (1, vec![]), "{:?}", report.damage);
}

#[test]
fn what_a_killed_run_left_without_its_base_is_no_damage() {
    let (storage, _) = repository();
    store(&open(&storage), &[(&version(20), &[&version(21)])]);
    for read_data in [None, Some(Subset::All)] {
        let report = run(&storage, read_data);
        assert_eq!((report.damage, report.packs_never_read), (vec![], u64::from(read_data.is_none())));
    }
}

#[test]
fn chunks_that_need_one_another_are_lost_and_named() {
    let storage = test_support::storage();
    let repo = open(&storage);
    let saved = save_versions(&repo, 1, &[(1, &[]), (3, &[])], &[1, 3]);
    let alone = name_of(&storage, 1);
    store(&repo, &[(&version(1), &[&version(2)])]);
    store(&repo, &[(&version(2), &[&version(1)])]);
    assert_eq!(run(&storage, None).damage_count, 0);
    assert!(storage.remove(&alone));
    let hit = hit(&saved, &[1, 3]);
    let report = run(&storage, None);
    assert_eq!((report.damage_count, files_of(&report)), (1, hit.clone()), "{:?}", report.damage);
    assert!(report.damage[0].object == alone.as_str() && report.damage[0].what.contains("missing"));
    // Once no index object tells of the pack that is gone, there is only the ring to blame.
    for object in storage.names().into_iter().filter(|n| names::index_id(n).is_some()) {
        assert!(storage.remove(&object));
    }
    let report = run(&storage, None);
    assert_eq!(files_of(&report), hit, "{:?}", report.damage);
    let ring = report.damage.iter().find(|d| d.what.contains("need one another")).expect("told");
    assert!(ring.object.starts_with("packs/") && ring.files.len() == 1, "{ring:?}");
}

#[test]
fn a_cache_that_is_wrong_about_bases_is_mended() {
    let (storage, _) = repository();
    let repo = open(&storage);
    let home = repo.index().homes(&[id(3)]).expect("an index")[0][0];
    let known = repo.index().packs().expect("known").into_iter().find(|p| p.id == home.pack).expect("known");
    let mut summary = crate::repo::pack::read_summary(&repo, known.id, known.bytes).expect("sound");
    // The base begins behind the record's twelve bytes of lengths and counts.
    summary.table[12] ^= 1;
    repo.index().remove_packs(&[known.id]).expect("an index");
    repo.index().add_packs(&[summary], None).expect("an index");
    assert!(repo.read_chunk(id(3)).is_err());
    let report = verify(&repo, &options(None), &Silent).expect("verifies");
    assert_eq!(report.damage.iter().filter(|d| d.object.starts_with("pack")).count(), 0, "{:?}", report.damage);
    assert_eq!(repo.read_chunk(id(3)).expect("mended"), version(3));
}

#[test]
fn one_lost_base_of_two_is_no_fault_of_the_frame_nor_of_the_other() {
    let (storage, _) = repository();
    store(&open(&storage), &[(&version(20), &[&version(0), &version(21)])]);
    assert_eq!(run(&storage, Some(Subset::All)).damage, vec![]);
}

/// A pack whose bytes are those that its name tells of, and whose one frame holds another chunk than its table says.
fn store_wrong_delta(storage: &SimulatedStorage) -> PackId {
    let repo = open(storage);
    let transaction = Transaction::begin(&repo, &test_support::writer()).expect("begins");
    let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
    let (record, _) = test_support::frame_of(&repo, &version(7), &[&version(0)]);
    let (_, frame) = test_support::frame_of(&repo, &version(8), &[&version(0)]);
    let record = FrameRecord { stored_bytes: u32::try_from(frame.len()).expect("small"), ..record };
    pack.append(&frame, &[record]).expect("appends");
    let stored = transaction.finish_pack(pack).expect("durable").id;
    transaction.commit_repacked().expect("commits");
    stored
}

#[test]
fn a_frame_whose_base_could_not_be_read_for_a_while_is_looked_at_again() {
    let (storage, _) = repository();
    let (wrong, anchor) = (store_wrong_delta(&storage), name_of(&storage, 0));
    let part = part_of(&wrong, 100_000);
    let verify = || {
        let repo = open(&storage);
        verify(&repo, &options(Some(Subset::Part { part, of: 100_000 })), &Silent)
    };
    let of_anchor = |operation, name: &str| operation == Operation::ReadRange && name == anchor.as_str();
    let damage = |report: VerifyReport| report.damage.into_iter().map(|damage| damage.object).collect::<Vec<_>>();
    let expected = vec![names::pack(wrong).expect("a name").as_str().to_owned()];
    storage.clear_calls();
    assert_eq!(damage(verify().expect("runs")), expected);
    // Its header and table are read first, then what the frame needs of it.
    let last = storage.calls().iter().filter(|call| of_anchor(call.operation, &call.name)).count() as u64 - 1;
    let fail = |kind| {
        let anchor = anchor.clone();
        let is_meant = move |operation, name: &str| operation == Operation::ReadRange && name == anchor.as_str();
        storage.fail(last..last + 1, is_meant, Fault::Error(kind));
    };
    fail(Kind::Unreachable);
    assert_eq!(damage(verify().expect("runs")), expected, "the base was there again");
    storage.heal();
    fail(Kind::Interrupted);
    assert_eq!(verify().expect_err("no verdict").kind(), Kind::Interrupted);
}
