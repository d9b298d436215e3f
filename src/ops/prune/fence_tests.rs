//! The commit fence, step by step: writers, restores and other prunes beside a prune, kills, clocks that jump, no room.

use super::tests::{Contents, assert_intact, forget, mixed, options, pack_names};
use super::*;
use crate::events::Silent;
use crate::ids::SnapshotId;
use crate::repo::audit::AuditHead;
use crate::repo::condemned::{self, RunState, Seen};
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, contents, noise, open, time, writer};
use crate::repo::transaction::{self, Transaction};
use crate::repo::{names, records};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use crate::storage::{ObjectName, Storage};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const HOUR: i64 = 3600;

/// A process of another host, which nobody here can look at.
fn elsewhere() -> WriterRecord {
    WriterRecord { host: "elsewhere".into(), process: 7, started: 77, ..writer() }
}

fn at(seconds: i64, silence_seconds: u64) -> PruneOptions {
    PruneOptions { now: time(seconds), silence: Duration::from_secs(silence_seconds), ..options() }
}

fn prune_at(storage: &SimulatedStorage, seconds: i64, silence_seconds: u64) -> Result<PruneReport> {
    prune(&open(storage), &at(seconds, silence_seconds), &Silent)
}

fn assert_busy(result: Result<PruneReport>, words: &str) {
    let error = result.expect_err("somebody is waited for");
    assert!(error.kind() == Kind::Busy && error.to_string().contains(words), "{error}");
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a name")
}

fn exists(storage: &SimulatedStorage, text: &str) -> bool {
    storage.names().contains(&name(text))
}

/// Content that only a forgotten snapshot of [`mixed`] holds, and some that nothing does.
fn nodes() -> Vec<(&'static str, Node)> {
    vec![("a", Node::File(noise(1, 31_000))), ("new", Node::File(noise(300, 20_000)))]
}

/// What a writer has stored on the way to its snapshot.
fn written(transaction: &Transaction<'_>) -> Snapshot {
    test_support::write(transaction, 9, &[("/other", &nodes())])
}

fn assert_all_whole(storage: &SimulatedStorage, why: &str) {
    let repo = open(storage);
    for snapshot in repo.snapshots() {
        let found = contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {}: {e}", snapshot.id));
        if snapshot.roots == [b"/other".to_vec()] {
            for (name, node) in nodes() {
                let Node::File(bytes) = node else { continue };
                assert!(found[name] == bytes, "{why}: {name} differs");
            }
        }
    }
}

#[test]
fn a_writer_at_work_is_waited_for_and_the_next_prune_goes_on() {
    let (storage, live) = mixed();
    let before = pack_names(&storage);
    let repo = open(&storage.another_host());
    let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
    let snapshot = written(&transaction);
    let error = prune_at(&storage, 1000, 900).expect_err("it may live");
    assert_eq!(error.kind(), Kind::Busy);
    let text = format!("{error} {}", error.hint().unwrap_or_default());
    for words in ["elsewhere", "process 7", "1970-01-01T00:01:17Z", "condemned/1", "goes on"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(before.iter().all(|pack| exists(&storage, pack)), "nothing has gone");
    assert!(exists(&storage, "condemned/1") && !exists(&storage, "condemned/1.end"));
    let saved = transaction.commit(snapshot).expect("commits");
    let report = prune_at(&storage, 1001, 900).expect("goes on");
    assert!(exists(&storage, "condemned/1.end") && report.packs_removed > 0);
    assert_intact(&storage, &live, "after a prune in two runs");
    assert!(open(&storage).snapshot(saved.id).is_some());
    assert_all_whole(&storage, "what became live meanwhile was spared");
    let last = prune_at(&storage, 1002, 900).expect("prunes");
    assert_eq!((last.packs_deleted, last.packs_repacked, last.bytes_unused_left), (0, 0, 0));
}

#[test]
fn who_gives_no_sign_of_life_between_two_prunes_is_revoked_and_who_does_is_not() {
    let (storage, live) = mixed();
    let repo = open(&storage.another_host());
    let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
    let snapshot = written(&transaction);
    let id = transaction.id();
    assert_busy(prune_at(&storage, 1000, 900), "elsewhere");
    assert_busy(prune_at(&storage, 1100, 900), "elsewhere");
    transaction.sign_of_life(time(1200)).expect("lives");
    transaction.sign_of_life(time(1500)).expect("lives");
    assert_eq!(storage.list(names::TRANSACTIONS).expect("lists").len(), 2, "one sign is kept");
    // Seen anew at 2000; a clock that jumps back sees nothing but that, and begins to count again.
    assert_busy(prune_at(&storage, 2000, 900), "elsewhere");
    assert_busy(prune_at(&storage, 500, 900), "elsewhere");
    assert_busy(prune_at(&storage, 1399, 900), "elsewhere");
    let report = prune_at(&storage, 1400, 900).expect("it has been silent");
    assert_eq!(report.transactions_ended, 1);
    assert!(storage.list(names::TRANSACTIONS).expect("lists").is_empty());
    assert_eq!(transaction.sign_of_life(time(3000)).expect_err("it has lost its name").kind(), Kind::Busy);
    assert_eq!(transaction.commit(snapshot).expect_err("too late").kind(), Kind::Busy);
    assert!(open(&storage).snapshot(id).is_none());
    assert_intact(&storage, &live, "after a revocation");
    prune_at(&storage, 4000, 900).expect("prunes");
    assert!(storage.list(names::TRANSACTIONS).expect("lists").is_empty());
}

#[test]
fn a_dead_writer_is_ended_though_there_is_nothing_to_delete() {
    let storage = test_support::storage();
    test_support::save(&open(&storage), 1, &[("a", Node::File(noise(1, 5000)))]);
    let repo = open(&storage.another_host());
    let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
    written(&transaction);
    let packs = pack_names(&storage).len();
    // One that may just have begun is not even noted.
    let day = 24 * HOUR;
    for (seconds, lists) in [(1000, 0), (77 + day, 1), (78 + day, 1)] {
        prune_at(&storage, seconds, 900).expect("nothing to wait for");
        let ends = storage.names().iter().filter(|name| name.as_str().ends_with(".end")).count();
        assert_eq!((ends, pack_names(&storage).len()), (lists, packs), "{seconds}");
    }
    let report = prune_at(&storage, 77 + day + 900, 900).expect("prunes");
    assert!(report.transactions_ended == 1 && report.packs_removed > 0, "{report:?}");
    assert!(storage.list(names::TRANSACTIONS).expect("lists").is_empty());
}

#[test]
fn who_began_after_a_list_was_made_is_not_waited_for() {
    let (storage, live) = mixed();
    let repos = [open(&storage.another_host()), open(&storage.another_host())];
    let first = Transaction::begin(&repos[0], &elsewhere()).expect("begins");
    assert_busy(prune_at(&storage, 1000, 900), "elsewhere");
    let second = Transaction::begin(&repos[1], &elsewhere()).expect("begins");
    let snapshot = written(&second);
    first.abandon().expect("gives up");
    // The list of the first prune ends; the next one has the second writer to wait for.
    assert_busy(prune_at(&storage, 1001, 900), "elsewhere");
    assert!(exists(&storage, "condemned/1.end"));
    second.commit(snapshot).expect("nothing it relies on is gone");
    assert_all_whole(&storage, "a writer across the end of a list");
    prune_at(&storage, 1002, 900).expect("prunes");
    assert_intact(&storage, &live, "after three prunes");
    assert_all_whole(&storage, "a writer across the end of a list");
}

#[test]
fn a_list_is_taken_over_from_a_collector_that_is_dead_silent_or_has_left() {
    let (original, live) = mixed();
    let garbage: Vec<PackId> = {
        let dry = PruneOptions { dry_run: true, max_unused: MaxUnused::Unlimited, ..options() };
        let report = prune(&open(&original), &dry, &Silent).expect("plans");
        report.verdicts.iter().filter(|v| v.verdict == Verdict::Unneeded).map(|v| v.id).collect()
    };
    assert!(!garbage.is_empty());
    let abandoned_by = |collector: &WriterRecord| {
        let storage = original.copy();
        condemned::create_list(&open(&storage), 1, &garbage, collector, time(900)).expect("condemned");
        storage
    };
    let assert_done = |storage: &SimulatedStorage, result: Result<PruneReport>| {
        result.expect("goes on");
        let gone = garbage.iter().all(|id| !exists(storage, names::pack(*id).expect("a name").as_str()));
        assert!(gone && exists(storage, "condemned/1.end"));
        assert_intact(storage, &live, "after a list was taken over");
    };
    // Its process is gone.
    let storage = abandoned_by(&WriterRecord { process: 0x7fff_fff0, ..writer() });
    assert_done(&storage, prune_at(&storage, 1000, 900));
    // Another host's: met, then silent.
    let storage = abandoned_by(&elsewhere());
    assert_busy(prune_at(&storage, 1000, 900), "another prune is at work (host elsewhere");
    assert_busy(prune_at(&storage, 1100, 900), "another prune");
    let run = condemned::Run { seconds: 1200, collector: elsewhere(), state: RunState::AtWork, waiting: None };
    condemned::append_run(&open(&storage), 1, 0, &run).expect("it lives");
    assert_busy(prune_at(&storage, 2000, 900), "another prune");
    assert_busy(prune_at(&storage, 2899, 900), "another prune");
    assert_done(&storage, prune_at(&storage, 2900, 900));
    // It has left.
    let storage = abandoned_by(&elsewhere());
    let waiting = Some(vec![Seen { id: SnapshotId::from_bytes([3; 16]), sign: 0, since: 900 }]);
    let run = condemned::Run { seconds: 1200, collector: elsewhere(), state: RunState::Left, waiting };
    condemned::append_run(&open(&storage), 1, 0, &run).expect("it left");
    assert_done(&storage, prune_at(&storage, 1300, 900));
    // The user says so; and a process of this host that lives is waited for.
    let storage = abandoned_by(&elsewhere());
    let alone = PruneOptions { assume_alone: true, ..at(1000, 900) };
    assert_done(&storage, prune(&open(&storage), &alone, &Silent));
    let own = WriterRecord { process: 4_000_000, ..writer() };
    let storage = abandoned_by(&WriterRecord { process: std::process::id(), ..writer() });
    for seconds in [1000, 9_000_000] {
        let options = PruneOptions { writer: own.clone(), ..at(seconds, 900) };
        assert_busy(prune(&open(&storage), &options, &Silent), "another prune");
    }
    assert_eq!(pack_names(&storage), pack_names(&original));
}

#[test]
fn a_list_is_given_up_when_something_live_has_no_home() {
    let (storage, live) = mixed();
    let repo = open(&storage.another_host());
    let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
    assert_busy(prune_at(&storage, 1000, 0), "elsewhere");
    transaction.abandon().expect("gives up");
    let known = open(&storage).index().packs().expect("known");
    let lost = known.iter().map(|pack| names::pack(pack.id).expect("a name")).find(|pack| {
        let without = storage.copy();
        without.remove(pack);
        let repo = open(&without);
        contents(&repo, &live[1].0).is_err()
    });
    let lost = lost.expect("a needed pack");
    let bytes = storage.objects()[&lost].clone();
    assert!(storage.remove(&lost));
    let before = pack_names(&storage);
    let error = prune_at(&storage, 1001, 0).expect_err("refuses");
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    assert_eq!(pack_names(&storage), before);
    assert!(condemned::Condemned::read(&open(&storage)).expect("lists").ends[0].packs.is_empty(), "given up");
    storage.insert(lost, bytes);
    prune_at(&storage, 1002, 0).expect("prunes");
    assert_intact(&storage, &live, "after a list was given up");
}

#[test]
fn what_is_decided_goes_after_the_delay_whatever_clocks_do_and_restores_go_on_meanwhile() {
    let (storage, live) = mixed();
    let delayed = |seconds| PruneOptions { delete_delay: Duration::from_secs(72 * 3600), ..at(seconds, 0) };
    let doomed = test_support::save(&open(&storage), 20, &[("x", Node::File(noise(400, 50_000)))]);
    // A restore that began before the snapshot was forgotten; its index is that of a host where other runs go on.
    let restoring = open(&storage);
    let wanted = contents(&restoring, &doomed).expect("sound");
    forget(&storage, doomed.id);
    let before = pack_names(&storage);
    let report = prune(&open(&storage), &delayed(1000), &Silent).expect("prunes");
    assert!(before.iter().all(|pack| exists(&storage, pack)), "nothing has gone");
    assert!(report.packs_waiting > 0 && report.bytes_waiting > 50_000 && report.packs_removed == 0, "{report:?}");
    assert_eq!(report.waiting_until, Some(1000 + 72 * HOUR));
    restoring.refresh(&Silent).expect("refreshes");
    assert_eq!(contents(&restoring, &doomed).expect("still there"), wanted);
    assert_intact(&storage, &live, "while packs wait");
    // A writer does not rely on what is going.
    let again = test_support::save(&open(&storage), 21, &[("x", Node::File(noise(400, 50_000)))]);
    for seconds in [1000 + 72 * HOUR - 1, -300_000_000] {
        let report = prune(&open(&storage), &delayed(seconds), &Silent).expect("prunes");
        assert!(report.packs_waiting > 0 && report.packs_removed == 0);
    }
    let dry = PruneOptions { dry_run: true, ..delayed(1000 + 72 * HOUR) };
    let planned = prune(&open(&storage), &dry, &Silent).expect("plans");
    let report = prune(&open(&storage), &delayed(1000 + 72 * HOUR), &Silent).expect("prunes");
    assert!(report.packs_removed > 0);
    assert_eq!((planned.packs_due, planned.bytes_due), (report.packs_removed, report.bytes_removed));
    // A jump far ahead takes the rest; what is live stays whole.
    let report = prune(&open(&storage), &delayed(300_000_000), &Silent).expect("prunes");
    assert_eq!((report.packs_waiting, report.waiting_until), (0, None));
    assert_intact(&storage, &live, "after clocks jumped");
    assert_eq!(contents(&open(&storage), &again).expect("sound"), wanted);
    restoring.refresh(&Silent).expect("refreshes");
    assert_eq!(contents(&restoring, &again).expect("moved, and found again"), wanted);
}

#[test]
fn without_any_room_what_was_decided_goes_and_what_is_not_recorded_stays() {
    let (storage, live) = mixed();
    let delayed = |seconds| PruneOptions { delete_delay: Duration::from_secs(3600), ..at(seconds, 0) };
    prune(&open(&storage), &delayed(1000), &Silent).expect("prunes");
    let full = |storage: &SimulatedStorage| {
        storage.fail(
            0..u64::MAX,
            |o, _| matches!(o, Operation::Create | Operation::Write),
            Fault::Error(Kind::NoSpace),
        );
    };
    full(&storage);
    let report = prune(&open(&storage), &delayed(9000), &Silent).expect("nothing is left to record");
    assert!(report.packs_removed > 0);
    storage.heal();
    forget(&storage, live[0].0.id);
    full(&storage);
    let before = pack_names(&storage);
    let error = prune(&open(&storage), &at(9000, 0), &Silent).expect_err("nothing can be recorded");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(error.hint().is_some(), "{error}");
    assert_eq!(pack_names(&storage), before);
    storage.heal();
    prune(&open(&storage), &at(9000, 0), &Silent).expect("prunes");
    assert_intact(&storage, &live[1..], "after a full disk");
}

/// Runs `other` once before the step number `step` that this host takes from now.
fn before_step(storage: &SimulatedStorage, step: u64, other: impl Fn(SimulatedStorage) + Send + Sync + 'static) {
    let (host, seen, elsewhere) = (storage.host(), AtomicU64::new(0), storage.another_host());
    storage.set_gate(move |call| {
        if call.host == host && seen.fetch_add(1, Ordering::SeqCst) == step {
            other(elsewhere.clone());
        }
    });
}

#[test]
fn a_prune_before_any_step_of_a_prune() {
    let (original, live) = mixed();
    let steps = {
        let storage = original.copy();
        let repo = open(&storage);
        let before = storage.steps();
        prune(&repo, &options(), &Silent).expect("prunes");
        storage.steps() - before
    };
    for step in 0..steps {
        for delay in [0, 100] {
            let storage = original.copy();
            let repo = open(&storage);
            let options = PruneOptions { delete_delay: Duration::from_secs(delay), ..options() };
            let second = PruneOptions { writer: WriterRecord { host: "other".into(), ..writer() }, ..options.clone() };
            let result = Arc::new(Mutex::new(None));
            let into = Arc::clone(&result);
            before_step(&storage, step, move |other| {
                *into.lock().expect("whole") = Some(prune(&open(&other), &second, &Silent));
            });
            let first = prune(&repo, &options, &Silent);
            storage.set_gate(|_| {});
            let other = result.lock().expect("whole").take();
            let why = format!("step {step}, delay {delay}: {first:?}, the other {other:?}");
            for result in [Some(first), other].into_iter().flatten() {
                assert!(result.is_ok() || result.is_err_and(|error| error.kind() == Kind::Busy), "{why}");
            }
            assert_intact(&storage, &live, &why);
            let alone = PruneOptions { assume_alone: true, now: time(5000), ..options };
            prune(&open(&storage), &alone, &Silent).expect(&why);
            let last = prune(&open(&storage), &PruneOptions { now: time(9000), ..alone.clone() }, &Silent).expect(&why);
            assert_eq!((last.packs_deleted, last.packs_repacked, last.packs_waiting), (0, 0, 0), "{why}");
            assert_intact(&storage, &live, &why);
        }
    }
}

/// Two prunes, the second of which takes the writer for dead or not, before any step of a writer.
#[test]
fn two_prunes_before_any_step_of_a_writer() {
    let (original, live) = mixed();
    let write = |storage: &SimulatedStorage| -> Result<Snapshot> {
        let repo = Repo::open_storage(Arc::new(storage.clone()), &crate::repo::Cache::Memory, &Silent)?;
        let transaction = Transaction::begin(&repo, &elsewhere())?;
        let snapshot = test_support::try_write(&transaction, 9, &[("/other", &nodes())]);
        let snapshot = snapshot.map_err(|error| transaction.reason_for(error))?;
        transaction.commit(snapshot)
    };
    let steps = {
        let storage = original.copy();
        write(&storage).expect("commits");
        storage.steps()
    };
    let mut revoked = [0, 0];
    for step in 0..steps {
        for silence in [0, 1_000_000] {
            let storage = original.copy();
            before_step(&storage, step, move |other| {
                for seconds in [1000, 2000] {
                    let result = prune(&open(&other), &at(seconds, silence), &Silent);
                    assert!(result.is_ok() || result.is_err_and(|error| error.kind() == Kind::Busy), "{step}");
                }
            });
            let result = write(&storage);
            storage.set_gate(|_| {});
            let why = format!("step {step}, silence {silence}: {result:?}");
            match result {
                Ok(saved) => assert!(open(&storage).snapshot(saved.id).is_some(), "{why}"),
                // Two prunes are a day to what belongs to nobody yet: the announcement itself, before it has its name.
                Err(error) if error.kind() == Kind::Unreachable && step < steps / 2 => {}
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Busy, "{why}");
                    revoked[usize::from(silence > 0)] += 1;
                }
            }
            assert_intact(&storage, &live, &why);
            assert_all_whole(&storage, &why);
            prune_at(&storage, 3000, silence).expect(&why);
            assert_intact(&storage, &live, &why);
            assert_all_whole(&storage, &why);
        }
    }
    assert!(revoked[0] > 3 && revoked[1] == 0, "{revoked:?}");
}

#[test]
fn a_prune_that_waits_is_killed_at_any_step_and_gone_on_with() {
    let (original, live) = mixed();
    let began = |storage: &SimulatedStorage, then: &dyn Fn(Transaction<'_>, Snapshot)| {
        let repo = open(&storage.another_host());
        let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
        let snapshot = written(&transaction);
        then(transaction, snapshot);
    };
    let count = AtomicU64::new(u64::MAX);
    let mut step = 0;
    while step <= count.load(Ordering::Relaxed) {
        let storage = original.copy();
        began(&storage, &|transaction, snapshot| {
            let dying = storage.another_host();
            let repo = open(&dying);
            let before = dying.steps();
            if step > 0 {
                dying.crash_at(before + step - 1);
            }
            let result = prune(&repo, &at(1000, 900), &Silent);
            if step == 0 {
                assert_eq!(result.expect_err("waits").kind(), Kind::Busy);
                count.store(dying.steps() - before, Ordering::Relaxed);
            }
            let why = format!("killed at step {step}");
            let saved = transaction.commit(snapshot).expect(&why);
            for seed in 0..2 {
                let image = if seed == 0 { storage.copy() } else { storage.after_power_cut(step + seed) };
                let report = prune_at(&image, 2000, 900).expect(&why);
                assert!(report.packs_removed > 0, "{why}");
                assert!(open(&image).snapshot(saved.id).is_some(), "{why}");
                assert_intact(&image, &live, &why);
                assert_all_whole(&image, &why);
            }
        });
        step += 1;
    }
    assert!(step > 20, "{step}");
}

#[test]
fn copying_that_was_revoked_is_begun_anew() {
    let (storage, live) = mixed();
    let (other, fired) = (storage.another_host(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&fired);
    storage.set_gate(move |call| {
        let is_copying = call.host == 0 && call.operation == Operation::Write && call.name.starts_with("packs/");
        if is_copying && fired.fetch_add(1, Ordering::SeqCst) == 0 {
            for listed in other.list(names::TRANSACTIONS).expect("lists") {
                let (id, _) = names::announced(&listed.name).expect("a transaction");
                transaction::revoke(&open(&other), id, 0).expect("revoked");
            }
        }
    });
    let report = prune(&open(&storage), &options(), &Silent).expect("prunes");
    storage.set_gate(|_| {});
    // What had been copied until then counts, so that there may be nothing left to copy.
    assert!(report.packs_removed > 0 && report.bytes_unused_left == 0, "{report:?}");
    assert!(count.load(Ordering::SeqCst) > 0, "nothing was copied");
    assert_intact(&storage, &live, "after copying twice");
}

#[test]
fn the_unfinished_pack_of_a_writer_at_work_stays() {
    let (storage, _) = mixed();
    let repo = open(&storage.another_host());
    let transaction = Transaction::begin(&repo, &elsewhere()).expect("begins");
    let (record, frame) = test_support::frame_of(&repo, &noise(500, 5000), &[]);
    let mut pack = transaction.create_pack(crate::repo::pack::PackKind::Data).expect("a pack");
    pack.append(&frame, &[record]).expect("appends");
    for seconds in [1000, 1001, 1002] {
        assert_busy(prune_at(&storage, seconds, 900), "elsewhere");
    }
    transaction.finish_pack(pack).expect("it is still there");
    transaction.abandon().expect("gives up");
    prune_at(&storage, 1003, 900).expect("prunes");
}

#[test]
fn parity_goes_with_its_pack_and_not_before() {
    let (storage, live) = mixed();
    let packs = open(&storage).index().packs().expect("known");
    packs.iter().for_each(|pack| storage.insert(names::parity(pack.id).expect("a name"), vec![1; 100]));
    let waits = PruneOptions { delete_delay: Duration::from_secs(60), ..options() };
    prune(&open(&storage), &waits, &Silent).expect("prunes");
    assert_eq!(storage.list(names::PARITY).expect("lists").len(), packs.len());
    prune(&open(&storage), &options(), &Silent).expect("prunes");
    for pack in packs {
        let [of_pack, of_parity] = [names::pack(pack.id), names::parity(pack.id)].map(|n| n.expect("a name"));
        assert_eq!(storage.names().contains(&of_pack), storage.names().contains(&of_parity), "{of_pack}");
    }
    assert_intact(&storage, &live, "after a prune");
}

#[test]
fn each_end_is_read_once_on_a_host() {
    let (storage, _) = mixed();
    prune(&open(&storage), &options(), &Silent).expect("prunes");
    let repo = open(&storage);
    let reads =
        || storage.calls().iter().filter(|c| c.operation == Operation::Read && c.name.ends_with(".end")).count();
    storage.clear_calls();
    let first = condemned::Condemned::read(&repo).expect("lists");
    assert_eq!(reads(), 0, "opening has read them");
    assert!(first.ends.iter().all(|end| !end.packs.is_empty()));
    // One that was spoilt here is read again.
    repo.index().add_end(1, b"spoilt").expect("an index");
    let again = condemned::Condemned::read(&repo).expect("lists");
    assert_eq!((reads(), again.into_dead()), (1, first.into_dead()));
}

#[test]
fn a_marker_that_a_power_cut_takes_back_is_not_acted_on() {
    for step in 0..6 {
        let (storage, mut live) = mixed();
        let doomed = test_support::save(&open(&storage), 20, &[("x", Node::File(noise(400, 50_000)))]);
        live.push((doomed.clone(), contents(&open(&storage), &doomed).expect("sound")));
        let forgetting = storage.another_host();
        let forgetter = open(&forgetting);
        forgetting.crash_at(forgetting.steps() + step);
        let marked = records::create_forgotten(&forgetter, doomed.id, time(5), AuditHead::NONE).is_ok();
        prune(&open(&storage), &options(), &Silent).expect("prunes");
        for seed in 0..16 {
            let image = storage.after_power_cut(seed);
            let repo = open(&image);
            let is_live = repo.snapshot(doomed.id).is_some();
            assert!(!(is_live && marked));
            let kept: Vec<(Snapshot, Contents)> =
                live.iter().filter(|(s, _)| s.id != doomed.id || is_live).cloned().collect();
            assert_intact(&image, &kept, &format!("forgetting died at step {step}, power cut {seed}"));
        }
    }
}

#[test]
fn a_decision_that_comes_too_late_is_not_carried_out() {
    let (storage, live) = mixed();
    let (other, end) = (storage.another_host(), names::condemned_end(1).expect("a name"));
    let is_first = AtomicU64::new(0);
    let late = end.clone();
    storage.set_gate(move |call| {
        let is_it = call.host == 0 && call.operation == Operation::Name && call.name == late.as_str();
        if is_it && is_first.fetch_add(1, Ordering::Relaxed) == 0 {
            condemned::create_end(&open(&other), 1, &[], time(10)).expect("the first end");
        }
    });
    prune(&open(&storage), &options(), &Silent).expect("begins anew");
    let standing = condemned::Condemned::read(&open(&storage)).expect("lists").ends;
    assert!(standing[0].packs.is_empty() && standing.len() > 1, "given up, and decided on in a later list");
    assert_intact(&storage, &live, "nothing that was not decided on went");
}
