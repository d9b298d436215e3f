//! Prunes of small repositories: what goes, what stays, and what every crash, fault and race leaves.

use super::*;
use crate::error::Kind;
use crate::events::Silent;
use crate::ids::{ChunkId, SnapshotId};
use crate::repo::audit::AuditHead;
use crate::repo::pack::PackKind;
use crate::repo::pack_table::FrameRecord;
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, contents, noise, time, writer};
use crate::repo::transaction::Transaction;
use crate::repo::{names, records};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use crate::storage::{Published, Storage};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) type Contents = BTreeMap<String, Vec<u8>>;

pub(super) fn options() -> PruneOptions {
    PruneOptions {
        dry_run: false,
        max_unused: MaxUnused::Bytes(0),
        resources: Resources { threads: 2, memory_bytes: 1 << 26 },
        now: time(1000),
        writer: writer(),
        assume_alone: false,
        delete_delay: Duration::ZERO,
        silence: Duration::ZERO,
    }
}

pub(super) fn forget(storage: &SimulatedStorage, id: SnapshotId) {
    assert_eq!(
        records::create_forgotten(&test_support::open(storage), id, time(5), AuditHead::NONE).expect("marked"),
        Published::Created
    );
}

pub(super) fn pack_names(storage: &SimulatedStorage) -> Vec<String> {
    let names = storage.names();
    names.iter().filter(|n| names::pack_id(n).is_some()).map(ToString::to_string).collect()
}

/// Snapshots that share files, and chunks that are coded against others, two of them forgotten; what the others hold.
pub(super) fn mixed() -> (SimulatedStorage, Vec<(Snapshot, Contents)>) {
    let storage = test_support::storage();
    let repo = test_support::open(&storage);
    let file = |seed: u64| Node::File(noise(seed, 30_000 + seed as usize * 1000));
    let a = test_support::save(
        &repo,
        1,
        &[("a", file(1)), ("b", file(2)), ("c", file(3)), ("d", file(4)), ("g", file(150))],
    );
    let b = test_support::save(&repo, 2, &[("b", file(2)), ("e", file(5)), ("f", Node::File(vec![0; 50_000]))]);
    let c = test_support::save(&repo, 3, &[("c", file(3)), ("b", file(2)), ("e", file(5))]);
    // 3 stands on 2, 2 on 1, 1 on the anchor; only 1 and 3 are files of what stays, and no pack is needed as a whole.
    let d = test_support::save_versions(&repo, 4, &[(0, &[]), (40, &[]), (41, &[0])], &[0, 40, 41]);
    let e = test_support::save_versions(&repo, 5, &[(1, &[0]), (42, &[40, 0]), (2, &[1])], &[1]);
    let f = test_support::save_versions(&repo, 6, &[(3, &[2]), (43, &[2])], &[3]);
    let live = [b, c, e, f].map(|s| (s.clone(), contents(&repo, &s).expect("sound")));
    forget(&storage, a.id);
    forget(&storage, d.id);
    (storage, live.into())
}

pub(super) fn assert_intact(storage: &SimulatedStorage, live: &[(Snapshot, Contents)], why: &str) {
    let repo = test_support::open(storage);
    for (snapshot, wanted) in live {
        let found = contents(&repo, &repo.snapshot(snapshot.id).expect(why));
        assert!(found.is_ok_and(|found| found == *wanted), "{why}: {} lost something", snapshot.id);
    }
}

#[test]
fn a_copy_goes_only_if_the_one_that_stays_is_sound() {
    // Which of two equal packs is preferred hangs on their names, which are random: several times, to see both.
    (0..8).for_each(prune_beside_a_damaged_copy);
}

/// The content is stored twice: in a pack that is damaged, and again after that pack had been away.
fn prune_beside_a_damaged_copy(seed: u64) {
    let storage = test_support::storage();
    let big = [("a", Node::File(noise(seed, 60_000)))];
    let first = test_support::save(&test_support::open(&storage), 1, &big);
    let is_pack = |name: &crate::storage::ObjectName| names::pack_id(name).is_some();
    let mut packs: Vec<_> = storage.objects().into_iter().filter(|(name, _)| is_pack(name)).collect();
    packs.sort_by_key(|(_, bytes)| bytes.len());
    let (name, mut bytes) = packs.pop().expect("a pack of data");
    assert!(storage.remove(&name));
    let second = test_support::save(&test_support::open(&storage), 2, &big);
    let wanted = contents(&test_support::open(&storage), &second).expect("sound");
    bytes[1000] ^= 1;
    storage.insert(name.clone(), bytes);
    forget(&storage, first.id);
    prune(&test_support::open(&storage), &options(), &Silent).expect("prunes");
    assert_intact(&storage, &[(second, wanted)], "after a prune beside a damaged copy");
    assert!(!storage.names().contains(&name), "the damaged copy is of no use");
}

#[test]
fn what_no_snapshot_needs_goes_and_the_rest_stays_readable() {
    let (storage, live) = mixed();
    let before = storage.objects();
    let dry = PruneOptions { dry_run: true, ..options() };
    let planned = prune(&test_support::open(&storage), &dry, &Silent).expect("plans");
    assert_eq!(storage.objects(), before);
    let repo = test_support::open(&storage);
    let report = prune(&repo, &options(), &Silent).expect("prunes");
    assert!(!planned.verdicts.is_empty());
    let is_as_planned = PruneReport { verdicts: Vec::new(), packs_removed: 0, bytes_removed: 0, ..report.clone() };
    assert_eq!(is_as_planned, PruneReport { verdicts: Vec::new(), ..planned });
    assert!(report.packs_deleted > 0 && report.packs_repacked > 0 && report.bytes_freed > 60_000, "{report:?}");
    assert_eq!(report.bytes_unused_left, 0);
    assert_intact(&storage, &live, "after a prune");
    let after = stats(&test_support::open(&storage));
    assert_eq!(after, stats(&repo), "the index of this host agrees with one made anew");
    let again = prune(&repo, &options(), &Silent).expect("prunes");
    assert_eq!((again.packs_deleted, again.packs_repacked, again.bytes_unused_left), (0, 0, 0));
}

fn stats(repo: &Repo) -> (Vec<crate::repo::index::KnownPack>, (u64, u64)) {
    (repo.index().packs().expect("an index"), repo.index().unique_chunks().expect("an index"))
}

#[test]
fn a_limit_of_unused_bytes_spares_copying() {
    let (storage, live) = mixed();
    let unlimited = PruneOptions { max_unused: MaxUnused::Unlimited, ..options() };
    let report = prune(&test_support::open(&storage), &unlimited, &Silent).expect("prunes");
    assert!(report.packs_repacked == 0 && report.packs_deleted > 0 && report.bytes_unused_left > 0, "{report:?}");
    let left = report.bytes_unused_left;
    let generous = PruneOptions { max_unused: MaxUnused::Bytes(left), ..options() };
    let report = prune(&test_support::open(&storage), &generous, &Silent).expect("prunes");
    assert_eq!((report.packs_repacked, report.packs_deleted), (0, 0));
    let strict = PruneOptions { max_unused: MaxUnused::Percent(0.1), ..options() };
    let report = prune(&test_support::open(&storage), &strict, &Silent).expect("prunes");
    assert!(report.packs_repacked > 0 && report.bytes_unused_left < left, "{report:?}");
    assert_intact(&storage, &live, "after three prunes");
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_the_next_prune_goes_on() {
    let (original, live) = mixed();
    let steps = {
        let storage = original.copy();
        prune(&test_support::open(&storage), &options(), &Silent).expect("prunes");
        storage.steps()
    };
    assert!(steps > 60, "{steps}");
    for step in 0..steps {
        let storage = original.copy();
        let repo = Repo::open_storage(std::sync::Arc::new(storage.clone()), &crate::repo::Cache::Memory, &Silent);
        let Ok(repo) = repo else { continue };
        storage.crash_at(storage.steps() + step);
        let _ = prune(&repo, &options(), &Silent);
        for seed in 0..3 {
            let why = format!("crash at step {step}, power cut with seed {seed}");
            let survived = if seed == 0 { storage.another_host() } else { storage.after_power_cut(seed) };
            assert_intact(&survived, &live, &why);
            let next = prune(&test_support::open(&survived), &options(), &Silent);
            assert!(next.is_ok(), "{why}: {next:?}");
            assert_intact(&survived, &live, &why);
            let last = prune(&test_support::open(&survived), &options(), &Silent).expect("prunes");
            assert_eq!((last.packs_deleted, last.packs_repacked), (0, 0), "{why}");
        }
    }
}

#[test]
fn an_error_at_any_step_loses_nothing() {
    let (original, live) = mixed();
    let steps = {
        let storage = original.copy();
        let repo = test_support::open(&storage);
        let before = storage.steps();
        prune(&repo, &options(), &Silent).expect("prunes");
        storage.steps() - before
    };
    assert!(steps > 60, "{steps}");
    for kind in [Kind::NoSpace, Kind::Unreachable] {
        for step in 0..steps {
            let storage = original.copy();
            let repo = test_support::open(&storage);
            storage.fail(
                step..step + 1,
                |_, _| true,
                if step % 2 == 0 { Fault::Error(kind) } else { Fault::Ambiguous(kind) },
            );
            let done = prune(&repo, &options(), &Silent);
            storage.heal();
            let why = format!("{kind:?} at step {step}: {done:?}");
            assert_intact(&storage, &live, &why);
            assert!(prune(&test_support::open(&storage), &options(), &Silent).is_ok(), "{why}");
            assert_intact(&storage, &live, &why);
        }
    }
}

#[test]
fn without_any_room_unused_packs_still_go() {
    let (storage, live) = mixed();
    let repo = test_support::open(&storage);
    let before = pack_names(&storage).len();
    storage.fail(
        0..u64::MAX,
        |o, name| o == Operation::Write && name.starts_with("packs/"),
        Fault::Error(Kind::NoSpace),
    );
    storage.fail(
        0..u64::MAX,
        |o, name| o == Operation::Write && name.starts_with("index/"),
        Fault::Error(Kind::NoSpace),
    );
    let error = prune(&repo, &options(), &Silent).expect_err("copying needs room");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("packs without any use have been deleted"), "{error}");
    assert!(pack_names(&storage).len() < before);
    assert_intact(&storage, &live, "no room for packs");
    // Not even room for a record: said so, and nothing goes.
    let (storage, live) = mixed();
    let repo = test_support::open(&storage);
    storage.fail(0..u64::MAX, |o, _| o == Operation::Write, Fault::Error(Kind::NoSpace));
    let before = pack_names(&storage);
    let error = prune(&repo, &options(), &Silent).expect_err("nothing can be recorded");
    assert!(error.kind() == Kind::NoSpace && error.to_string().contains("no room even"), "{error}");
    assert_eq!(pack_names(&storage), before);
    assert_intact(&storage, &live, "no room at all");
}

#[test]
fn damage_to_anything_needed_stops_all_deletion() {
    let (original, live) = mixed();
    // The tree of a live snapshot, its object, and a whole pack of content.
    let repo = test_support::open(&original);
    let tree = live[0].0.tree.expect("a tree");
    let home = repo.locate(&[tree.root]).expect("known")[0][0];
    let content = repo.index().packs().expect("known").into_iter().find(|p| {
        p.kind == PackKind::Data && {
            let storage = original.copy();
            storage.remove(&names::pack(p.id).expect("a name"));
            contents(&test_support::open(&storage), &live[1].0).is_err()
        }
    });
    let content = names::pack(content.expect("a needed pack").id).expect("a name");
    let snapshot = names::snapshot(live[0].0.id).expect("a name");
    for case in 0..4 {
        let storage = original.copy();
        match case {
            0 => assert!(storage.corrupt(&names::pack(home.pack).expect("a name"), home.frame_offset as usize, 64)),
            1 => {
                let bytes = storage.objects()[&snapshot].len();
                assert!(storage.corrupt(&snapshot, 50, 1) && storage.corrupt(&snapshot, bytes - 50, 1));
            }
            2 => assert!(storage.remove(&content)),
            _ => assert!(storage.truncate(&content, 5000)),
        }
        let before = pack_names(&storage);
        let repo = test_support::open(&storage);
        let error = prune(&repo, &options(), &Silent).expect_err("refuses");
        assert_eq!(error.kind(), Kind::Damaged, "case {case}: {error}");
        assert!(error.hint().is_some_and(|h| h.contains("verify")));
        assert_eq!(pack_names(&storage), before, "case {case}");
        // Forgetting what is hit is the way on.
        for (snapshot, _) in &live {
            forget(&storage, snapshot.id);
        }
        prune(&test_support::open(&storage), &options(), &Silent).expect("prunes");
    }
}

#[test]
fn open_transactions_are_waited_for_or_revoked() {
    let (original, live) = mixed();
    let id = SnapshotId::from_bytes([8; 16]);
    let with = |host: &str, boot: &str, process: u32| {
        let storage = original.copy();
        let record = records::WriterRecord { host: host.into(), boot: boot.into(), process, started: 77, signed: None };
        records::create_transaction(&test_support::open(&storage), id, &record).expect("created");
        storage
    };
    let own = PruneOptions { writer: records::WriterRecord { process: 4_000_000, ..writer() }, ..options() };
    let elsewhere = with("elsewhere", "boot", 1);
    let error = prune(&test_support::open(&elsewhere), &own, &Silent).expect_err("may be alive");
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("elsewhere") && error.to_string().contains("1970-01-01T00:01:17Z"), "{error}");
    let alive = with("here", "boot", std::process::id());
    assert_eq!(prune(&test_support::open(&alive), &own, &Silent).expect_err("alive").kind(), Kind::Busy);
    assert_eq!(pack_names(&alive), pack_names(&original));
    let alone = PruneOptions { assume_alone: true, ..own.clone() };
    for (storage, options) in
        [(elsewhere, &alone), (with("here", "another boot", 1), &own), (with("here", "boot", 0x7fff_fff0), &own)]
    {
        let report = prune(&test_support::open(&storage), options, &Silent).expect("prunes");
        assert_eq!(report.transactions_ended, 1);
        assert!(storage.names().contains(&names::snapshot(id).expect("a name")), "revoked");
        assert!(storage.list(names::TRANSACTIONS).expect("lists").is_empty());
        assert_intact(&storage, &live, "after a revocation");
    }
}

#[test]
fn a_writer_that_begins_or_ends_meanwhile_stops_the_deletion() {
    let (original, live) = mixed();
    for commits in [false, true] {
        for trigger in
            [(Operation::List, "transactions"), (Operation::Create, "condemned"), (Operation::List, "snapshots")]
        {
            for nth in 0..4 {
                let storage = original.copy();
                let repo = test_support::open(&storage);
                let other = storage.another_host();
                let (seen, fired) = (std::sync::atomic::AtomicUsize::new(0), AtomicBool::new(false));
                storage.set_gate(move |call| {
                    let is_trigger = call.host == 0 && (call.operation, call.name.as_str()) == trigger;
                    if !is_trigger || seen.fetch_add(1, Ordering::SeqCst) != nth || fired.swap(true, Ordering::SeqCst) {
                        return;
                    }
                    let repo = test_support::open(&other);
                    // Content that only the forgotten snapshot held: it may be relied on, unless it is condemned.
                    let nodes: &[(&str, Node)] = &[("a", Node::File(noise(1, 31_000)))];
                    let transaction =
                        Transaction::begin(&repo, &records::WriterRecord { host: "other".into(), ..writer() })
                            .expect("begins");
                    let snapshot = test_support::write(&transaction, 9, &[("/other", nodes)]);
                    if commits {
                        transaction.commit(snapshot).expect("commits");
                    }
                });
                let done = prune(&repo, &options(), &Silent);
                storage.set_gate(|_| {});
                let why = format!("{commits} {trigger:?} {nth}: {done:?}");
                assert_intact(&storage, &live, &why);
                let repo = test_support::open(&storage);
                for snapshot in repo.snapshots() {
                    assert!(contents(&repo, &snapshot).is_ok(), "{why}: {} lost something", snapshot.host);
                }
            }
        }
    }
}

#[test]
fn the_base_of_a_difference_stays_with_it() {
    let storage = test_support::storage();
    let repo = test_support::open(&storage);
    let (base, difference) = (noise(1, 4000), noise(2, 4000));
    let transaction = Transaction::begin(&repo, &writer()).expect("begins");
    let mut encoder = crate::codec::Encoder::new(crate::codec::Compression::Off).expect("an encoder");
    for (chunk, bases) in [(&base, vec![]), (&difference, vec![ChunkId::of(&base)])] {
        let mut frame = Vec::new();
        let codec = encoder.encode(chunk, &mut frame).expect("encodes").code();
        let record = FrameRecord {
            offset: 0,
            stored_bytes: frame.len() as u32,
            raw_bytes: chunk.len() as u32,
            codec,
            bases,
            chunks: vec![(ChunkId::of(chunk), chunk.len() as u32)],
        };
        let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
        pack.append(&frame, &[record]).expect("appends");
        transaction.finish_pack(pack).expect("durable");
    }
    transaction.commit_repacked().expect("commits");
    let snapshot = test_support::save(&repo, 1, &[("d", Node::File(difference))]);
    prune(&repo, &options(), &Silent).expect("prunes");
    assert!(repo.read_chunk(ChunkId::of(&base)).is_ok(), "the base is needed to decode");
    forget(&storage, snapshot.id);
    prune(&repo, &options(), &Silent).expect("prunes");
    assert_eq!(pack_names(&storage).len(), 0);
}

#[test]
fn leftovers_of_killed_writers_go() {
    let (storage, live) = mixed();
    prune(&test_support::open(&storage), &options(), &Silent).expect("prunes");
    let before = pack_names(&storage);
    let repo = test_support::open(&storage);
    let killed = Transaction::begin(&repo, &writer()).expect("begins");
    test_support::write(&killed, 5, &[("/x", &[("x", Node::File(noise(77, 100_000)))])]);
    drop(killed);
    storage.insert(names::pack(crate::ids::PackId::from_bytes([3; 32])).expect("a name"), vec![1; 500]);
    assert!(pack_names(&storage).len() > before.len() + 1);
    let report = prune(&test_support::open(&storage), &options(), &Silent).expect("prunes");
    assert_eq!((report.transactions_ended, pack_names(&storage)), (1, before));
    assert_intact(&storage, &live, "after a cleaning");
}

#[test]
fn random_histories_keep_every_live_snapshot() {
    for seed in 0..40u64 {
        let storage = test_support::storage();
        let mut live: Vec<(Snapshot, Contents)> = Vec::new();
        let mut chance = seed;
        let mut draw = |n: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % n
        };
        for step in 0..12 {
            let repo = test_support::open(&storage);
            match draw(3) {
                0 if !live.is_empty() => {
                    let gone = live.swap_remove(draw(live.len() as u64) as usize);
                    forget(&storage, gone.0.id);
                }
                1 => {
                    let max_unused =
                        [MaxUnused::Bytes(0), MaxUnused::Percent(20.0), MaxUnused::Unlimited][draw(3) as usize];
                    let report = prune(&repo, &PruneOptions { max_unused, ..options() }, &Silent).expect("prunes");
                    assert!(max_unused != MaxUnused::Bytes(0) || report.bytes_unused_left == 0, "seed {seed}");
                }
                _ => {
                    let names: Vec<String> = (0..draw(6) + 1).map(|n| format!("f{n}")).collect();
                    let nodes: Vec<(&str, Node)> = names
                        .iter()
                        .map(|n| (n.as_str(), Node::File(noise(draw(8), 500 + draw(3) as usize * 20_000))))
                        .collect();
                    let saved = test_support::save(&repo, step, &nodes);
                    let wanted = contents(&repo, &saved).expect("sound");
                    live.push((saved, wanted));
                }
            }
            assert_intact(&storage, &live, &format!("seed {seed}, step {step}"));
        }
    }
}

/// One listing proves nothing, so what a listing lacks stays in the index; and an index object goes only behind its heir.
#[test]
fn a_merged_index_has_all_of_the_old_ones_before_they_go() {
    let (storage, _) = mixed();
    let listed = || {
        let packs = test_support::open(&storage).index().packs().expect("known");
        packs.into_iter().filter(|pack| pack.is_listed).map(|pack| pack.id).collect::<std::collections::BTreeSet<_>>()
    };
    let (repo, before) = (test_support::open(&storage), listed());
    let old: Vec<IndexId> = storage.names().iter().filter_map(names::index_id).collect();
    let hidden = storage.names().into_iter().find(|name| names::pack_id(name).is_some()).expect("a pack");
    let bytes = storage.objects()[&hidden].clone();
    assert!(old.len() > 1 && storage.remove(&hidden));
    storage.clear_calls();
    assert_eq!(merge::merge(&repo, &old).expect("merges"), old.len() as u64);
    let calls = storage.calls();
    let first = |operation| calls.iter().position(|c| c.operation == operation && c.name.starts_with("index/"));
    assert!(first(Operation::Name).expect("the heir") < first(Operation::Delete).expect("the old ones"));
    storage.insert(hidden, bytes);
    assert_eq!(listed(), before);
}

/// Bytes that were stored as they are decode whatever becomes of them: only their id tells.
#[test]
fn what_is_copied_is_compared_with_its_id() {
    let (storage, _) = mixed();
    let repo = test_support::open(&storage);
    let data =
        |id: &PackId| repo.index().packs().expect("known").iter().any(|p| p.id == *id && p.kind == PackKind::Data);
    let mut sparse = prune(&repo, &PruneOptions { dry_run: true, ..options() }, &Silent).expect("plans").verdicts;
    sparse.retain(|v| v.verdict == Verdict::Sparse && data(&v.id));
    assert!(!sparse.is_empty());
    for PackVerdict { id, bytes, .. } in &sparse {
        for frame in repo.pack_summary(*id, *bytes).expect("sound").frames().expect("sound") {
            let last = usize::try_from(frame.offset).expect("small") + frame.stored_bytes as usize - 1;
            assert!(storage.corrupt(&names::pack(*id).expect("a name"), last, 1));
        }
    }
    prune(&test_support::open(&storage), &options(), &Silent).expect_err("it cannot be copied");
    let left = storage.names();
    assert!(sparse.iter().all(|v| left.contains(&names::pack(v.id).expect("a name"))), "and stays");
}
