//! Verification of small repositories, sound and damaged in every way.

use super::*;
use crate::events::Silent;
use crate::repo::audit::AuditHead;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, noise, time, writer};
use crate::repo::transaction::Transaction;
use crate::repo::{condemned, names};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use crate::storage::{ObjectName, Storage};
use std::time::Duration;

pub(super) fn options(read_data: Option<Subset>) -> VerifyOptions {
    let resources = Resources { threads: 2, memory_bytes: 1 << 24 };
    VerifyOptions { read_data, resources, now: time(1000) }
}

pub(super) fn run(storage: &SimulatedStorage, read_data: Option<Subset>) -> VerifyReport {
    verify(&test_support::open(storage), &options(read_data), &Silent).expect("verifies")
}

/// Every kind of object, several of most.
fn repository() -> (SimulatedStorage, Snapshot, Snapshot) {
    let storage = test_support::storage();
    let repo = test_support::open(&storage);
    let first = test_support::save(
        &repo,
        1,
        &[
            ("big", Node::File(noise(1, 90_000))),
            ("holes", Node::Sparse(noise(2, 6000), 1 << 20, noise(3, 10))),
            ("text", Node::File(b"some words, again and again. ".repeat(700))),
            ("zeros", Node::File(vec![0; 20_000])),
        ],
    );
    let second =
        test_support::save(&repo, 2, &[("big", Node::File(noise(1, 90_000))), ("new", Node::File(noise(4, 9000)))]);
    let third = test_support::save(&repo, 3, &[("gone", Node::Directory)]);
    records::create_forgotten(&repo, third.id, time(4), AuditHead::NONE).expect("marked");
    records::create_tags(&repo, first.id, 1, &["best".to_owned()].into()).expect("tagged");
    records::create_transaction(&repo, crate::ids::SnapshotId::from_bytes([9; 16]), &test_support::writer())
        .expect("open");
    let dead = crate::ids::PackId::from_bytes([4; 32]);
    condemned::create_list(&repo, 1, &[dead], &writer(), time(4)).expect("condemned");
    condemned::create_end(&repo, 1, &[dead], time(4)).expect("ended");
    let report = run(&storage, Some(Subset::All));
    assert_eq!((report.damage, report.packs_read), (vec![], report.packs_total));
    (storage, first, second)
}

pub(super) fn files_of(report: &VerifyReport) -> Vec<(crate::ids::SnapshotId, String)> {
    let mut files: Vec<_> = report.damage.iter().flat_map(|d| &d.files).cloned().collect();
    files.sort();
    files.dedup();
    files.into_iter().map(|(id, path)| (id, String::from_utf8_lossy(&path).into_owned())).collect()
}

#[test]
fn a_pack_under_another_name_is_found_though_all_in_it_fits_together() {
    let (storage, ..) = repository();
    let pack = storage.objects().into_iter().find(|(name, _)| names::pack_id(name).is_some()).expect("a pack");
    let wrong = names::pack(crate::ids::PackId::from_bytes([3; 32])).expect("a name");
    storage.insert(wrong.clone(), pack.1);
    let report = run(&storage, Some(Subset::All));
    assert!(report.damage.iter().any(|damage| damage.object.as_str() == wrong.as_str()), "{:?}", report.damage);
}

/// A pack that was written with another content than its table says.
#[test]
fn wrong_content_is_found_though_the_bytes_of_its_pack_match_the_name() {
    let (storage, ..) = repository();
    let repo = test_support::open(&storage);
    let transaction = Transaction::begin(&repo, &writer()).expect("begins");
    let (record, _) = test_support::frame_of(&repo, &noise(50, 4000), &[]);
    let (_, frame) = test_support::frame_of(&repo, &noise(51, 4000), &[]);
    let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
    pack.append(&frame, &[record]).expect("as long as the other");
    let written = transaction.finish_pack(pack).expect("durable");
    transaction.commit_repacked().expect("commits");
    assert_eq!(run(&storage, None).damage, vec![], "only reading it tells");
    let report = run(&storage, Some(Subset::All));
    let objects: Vec<&str> = report.damage.iter().map(|damage| damage.object.as_str()).collect();
    assert_eq!(objects, [names::pack(written.id).expect("a name").as_str()]);
}

#[test]
fn a_sound_repository_has_no_damage() {
    let (storage, ..) = repository();
    let structure = run(&storage, None);
    assert_eq!((structure.damage_count, structure.snapshots_checked, structure.packs_read), (0, 2, 0));
    assert!(structure.packs_never_read == 0 && structure.oldest_read == Some(time(1000)), "{structure:?}");
    let data = run(&storage, Some(Subset::All));
    assert_eq!((data.damage_count, data.packs_read), (0, data.packs_total));
    let pack_bytes: u64 = test_support::open(&storage).index().packs().expect("known").iter().map(|p| p.bytes).sum();
    assert_eq!(data.bytes_read, pack_bytes);
    assert!(data.chunks_checked >= structure.chunks_checked && structure.chunks_checked > 30);
}

#[test]
fn every_sampled_bit_flip_is_found() {
    const SEED: u64 = 0x5eed;
    let (original, ..) = repository();
    let objects: Vec<(ObjectName, usize)> =
        original.objects().into_iter().map(|(name, bytes)| (name, bytes.len() * 8)).collect();
    let mut seed = SEED;
    let mut draw = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    for (name, bits) in &objects {
        for n in 0..40 {
            // The borders of an object are where formats have their seams.
            let bit = match n {
                0..16 => n * 8 + draw(8),
                16..24 => bits - 1 - (n - 16) * 8,
                _ => draw(*bits),
            };
            let storage = original.copy();
            assert!(storage.corrupt(name, bit / 8, 1 << (bit % 8)));
            let report = run(&storage, Some(Subset::All));
            assert!(report.damage_count > 0, "seed {SEED}: bit {bit} of {name} went unnoticed");
            let is_named = report.damage.iter().any(|d| d.object == name.as_str());
            assert!(is_named, "seed {SEED}: bit {bit} of {name} is blamed on {:?}", report.damage);
        }
    }
}

#[test]
fn damage_to_content_names_the_snapshots_and_files_that_it_hits() {
    let (original, first, second) = repository();
    let repo = test_support::open(&original);
    let fetch = |id| repo.read_chunk(id);
    let content = |snapshot: &Snapshot, path: &[u8]| {
        let entry = repo.entries(&fetch, snapshot.tree).map(|e| e.expect("sound")).find(|e| e.path == path);
        repo.content_chunks(&fetch, entry.expect("there").content.expect("not empty"))
            .next()
            .expect("some")
            .expect("sound")
            .id
    };
    for (chunk, hit) in [
        (content(&second, b"new"), vec![(second.id, "/data/new")]),
        (content(&first, b"big"), vec![(first.id, "/data/big"), (second.id, "/data/big")]),
    ] {
        let home = repo.locate(&[chunk]).expect("known")[0][0];
        let storage = original.copy();
        let name = names::pack(home.pack).expect("a name");
        assert!(
            storage.corrupt(&name, (home.frame_offset + 8 + u64::from(home.at)) as usize, 1),
            "noise is stored raw"
        );
        assert_eq!(run(&storage, None).damage_count, 0, "the structure is sound");
        let report = run(&storage, Some(Subset::All));
        let mut hit: Vec<_> = hit.into_iter().map(|(id, path)| (id, path.to_owned())).collect();
        hit.sort();
        assert_eq!((report.damage_count, files_of(&report)), (1, hit), "{:?}", report.damage);
        // A pack that is gone hits at least the same, and the structure shows it.
        assert!(storage.remove(&name));
        let gone = run(&storage, None);
        assert!(gone.damage[0].what.contains("missing"), "{:?}", gone.damage);
        assert!(files_of(&report).iter().all(|file| files_of(&gone).contains(file)));
    }
}

#[test]
fn a_lost_list_of_files_is_told_with_its_snapshot() {
    let (storage, first, _) = repository();
    let repo = test_support::open(&storage);
    let home = repo.locate(&[first.tree.expect("a tree").root]).expect("known")[0][0];
    assert!(storage.corrupt(&names::pack(home.pack).expect("a name"), home.frame_offset as usize, 64));
    for read_data in [None, Some(Subset::All)] {
        let report = run(&storage, read_data);
        assert_eq!(report.damage_count, 1, "{:?}", report.damage);
        assert!(files_of(&report).contains(&(first.id, String::new())), "{:?}", report.damage);
    }
}

#[test]
fn truncated_emptied_and_lost_objects_are_found() {
    let (original, ..) = repository();
    let mut unneeded = 0;
    for name in original.names() {
        let bytes = original.objects()[&name].len();
        for keep in [0, 1, bytes / 2, bytes - 1] {
            let storage = original.copy();
            storage.truncate(&name, keep);
            let done = verify(&test_support::open(&storage), &options(None), &Silent);
            assert!(done.is_ok_and(|r| r.damage_count > 0), "{name} with {keep} bytes of {bytes}");
        }
        let storage = original.copy();
        storage.remove(&name);
        let folder = name.as_str().split('/').next().expect("a folder");
        if [names::CONFIG, names::PACKS, names::INDEX].contains(&folder) {
            let report = run(&storage, None);
            // What only a forgotten snapshot needed is no loss, but it is counted.
            assert!(report.damage_count > 0 || report.packs_unlisted == 1, "{name} is gone");
            unneeded += u32::from(report.damage_count == 0);
        }
    }
    assert_eq!(unneeded, 1);
}

#[test]
fn the_packs_not_read_for_the_longest_time_come_first() {
    let (storage, ..) = repository();
    let history: Vec<_> = storage.names().into_iter().filter(|n| names::history_id(n).is_some()).collect();
    history.iter().for_each(|name| assert!(storage.remove(name)));
    let total = run(&storage, None).packs_total;
    assert!(total > 3);
    for n in 1..=total {
        let report = run(&storage, Some(Subset::Bytes(1)));
        assert_eq!((report.packs_read, report.packs_never_read), (1, total - n));
    }
    assert_eq!(run(&storage, Some(Subset::Percent(100.0))).packs_read, total);
    assert_eq!(run(&storage, Some(Subset::Duration(Duration::ZERO))).packs_read, 0);
    assert_eq!(run(&storage, Some(Subset::Duration(Duration::from_secs(3600)))).packs_read, total);
    let parts: u64 = (1..=3).map(|part| run(&storage, Some(Subset::Part { part, of: 3 })).packs_read).sum();
    assert_eq!(parts, total);
}

#[test]
fn a_repository_that_cannot_be_written_is_verified_all_the_same() {
    let (storage, ..) = repository();
    storage.fail(0..u64::MAX, |operation, _| operation == Operation::Create, Fault::Error(Kind::Denied));
    let before = storage.list(names::HISTORY).expect("lists").len();
    let repo = test_support::open(&storage);
    let report = verify(&repo, &options(Some(Subset::All)), &Silent).expect("verifies");
    assert_eq!((report.damage_count, report.packs_never_read), (0, 0));
    assert_eq!(storage.list(names::HISTORY).expect("lists").len(), before);
}

#[test]
fn a_wrong_index_cache_is_noticed_and_mended() {
    let (storage, first, _) = repository();
    let repo = test_support::open(&storage);
    let mut wrong = repo.index().packs().expect("known");
    let pack = wrong.pop().expect("a pack");
    let mut summary = crate::repo::pack::read_summary(&repo, pack.id, pack.bytes).expect("sound");
    // The same pack with its first chunk under another id.
    summary.table[12] ^= 1;
    repo.index().remove_packs(&[pack.id]).expect("an index");
    repo.index().add_packs(&[summary], None).expect("an index");
    let report = verify(&repo, &options(None), &Silent).expect("verifies");
    assert_eq!(report.damage.iter().filter(|d| d.object.starts_with("pack")).count(), 0, "{:?}", report.damage);
    assert!(test_support::contents(&repo, &first).is_ok());
    assert_eq!(verify(&repo, &options(None), &Silent).expect("verifies").packs_checked, report.packs_total);
}
