//! What a transaction relies on when chunks are coded against others.

use super::*;
use crate::events::Silent;
use crate::repo::test_support::{self, Node, contents, open, store, store_pack, version, writer};
use crate::storage::Storage;
use crate::storage::simulated::{Operation, SimulatedStorage};

fn id(number: u64) -> ChunkId {
    ChunkId::of(&version(number))
}

fn begin(repo: &Repo) -> Transaction<'_> {
    repo.refresh(&Silent).expect("refreshes");
    Transaction::begin(repo, &writer()).expect("begins")
}

fn remove(storage: &SimulatedStorage, pack: &PackSummary) {
    assert!(storage.remove(&names::pack(pack.id).expect("a name")));
}

#[test]
fn a_chunk_whose_base_is_absent_is_stored_again() {
    let storage = test_support::storage();
    let repo = open(&storage);
    let anchor = store(&repo, &[(&version(0), &[])]);
    let middle = store(&repo, &[(&version(1), &[&version(0)])]);
    store(&repo, &[(&version(2), &[&version(1)])]);
    let claims = |ids: &[u64]| {
        let repo = open(&storage);
        let transaction = begin(&repo);
        let ids: Vec<_> = ids.iter().map(|&n| id(n)).collect();
        let claims = transaction.claim(&ids).expect("claims");
        let relied = transaction.lock().relied.len();
        (claims, relied)
    };
    assert_eq!(claims(&[2]), (vec![Claim::Known], 3), "the whole chain is relied on");
    assert_eq!(claims(&[0]), (vec![Claim::Known], 1));
    let whole = storage.copy();
    remove(&storage, &anchor);
    assert_eq!(claims(&[2, 1, 0]), (vec![Claim::New; 3], 0));
    let storage = whole;
    remove(&storage, &middle);
    let repo = open(&storage);
    let transaction = begin(&repo);
    assert_eq!(transaction.known(&[id(2), id(1), id(0)]).expect("known"), [false, false, true]);
    assert_eq!(transaction.rely_on_base(id(9), &[id(2), id(1), id(0)]).expect("known"), [false, false, true]);
    // Once the middle is stored again, what stands on it counts.
    assert_eq!(transaction.claim(&[id(1)]).expect("claims"), [Claim::New]);
    store_pack(&transaction, &[(&version(1), &[])]);
    assert_eq!(transaction.claim(&[id(2)]).expect("claims"), [Claim::Known]);
}

#[test]
fn packs_of_bases_are_looked_at_again_before_the_commit() {
    for lost in [0, 1] {
        let storage = test_support::storage();
        let repo = open(&storage);
        let packs = [store(&repo, &[(&version(0), &[])]), store(&repo, &[(&version(1), &[&version(0)])])];
        let transaction = begin(&repo);
        let snapshot = test_support::write(&transaction, 5, &[("/data", &[("v", Node::File(version(1)))])]);
        remove(&storage, &packs[lost]);
        assert_eq!(transaction.commit(snapshot).expect_err("a pack is gone").kind(), Kind::Damaged);
    }
}

#[test]
fn a_base_condemned_before_the_run_is_not_used() {
    let storage = test_support::storage();
    let repo = open(&storage);
    let anchor = store(&repo, &[(&version(0), &[])]);
    store(&repo, &[(&version(1), &[&version(0)])]);
    crate::repo::condemned::create_list(&repo, 1, &[anchor.id], &writer(), test_support::time(4)).expect("condemned");
    let transaction = begin(&repo);
    assert_eq!(transaction.claim(&[id(1), id(0)]).expect("claims"), [Claim::New; 2]);
}

#[test]
fn a_chunk_underway_is_a_base_for_others_but_never_for_what_it_needs() {
    let storage = test_support::storage();
    let repo = open(&storage);
    // From a killed run: 5 was coded against 1, and 1 was not made durable.
    store(&repo, &[(&version(5), &[&version(1)])]);
    let transaction = begin(&repo);
    let may = |chunk: u64, bases: &[u64]| {
        let bases: Vec<_> = bases.iter().map(|&n| id(n)).collect();
        transaction.rely_on_base(id(chunk), &bases).expect("an answer")
    };
    assert_eq!(may(1, &[5, 0]), [false, false]);
    let claimed = transaction.claim(&[id(1), id(2), id(3)]).expect("claims");
    assert_eq!(claimed, [Claim::New; 3]);
    assert_eq!(may(1, &[5]), [false], "5 needs 1");
    assert_eq!(may(2, &[1, 2, 5]), [true, false, true]);
    assert_eq!(may(1, &[2]), [false], "2 may be coded against 1");
    assert_eq!(may(3, &[2]), [true]);
    assert_eq!(may(1, &[3, 2]), [false, false], "through two others");
    // The same when they are stored: 2 in a pack, 1 still underway.
    store_pack(&transaction, &[(&version(2), &[&version(1)])]);
    assert_eq!(may(1, &[2, 3]), [false, false]);
    assert_eq!(may(3, &[2]), [true]);
    store_pack(&transaction, &[(&version(3), &[&version(2)])]);
    assert_eq!(may(1, &[3]), [false]);
    let refused = transaction.commit_repacked().expect_err("1 was never stored, and others need it");
    assert_eq!(refused.kind(), Kind::Failed);
}

#[test]
fn what_a_killed_run_left_is_used_with_its_bases_or_not_at_all() {
    // The delta durable and the base not, the base and not the delta, both.
    for (has_base, has_delta) in [(false, true), (true, false), (true, true)] {
        let storage = test_support::storage();
        let repo = open(&storage);
        let killed = begin(&repo);
        let base = store_pack(&killed, &[(&version(0), &[])]);
        let delta = store_pack(&killed, &[(&version(1), &[&version(0)])]);
        drop(killed);
        [(base, has_base), (delta, has_delta)].iter().filter(|(_, is_kept)| !is_kept).for_each(|(p, _)| {
            remove(&storage, p);
        });
        let repo = open(&storage);
        let saved = test_support::save(&repo, 5, &[("v", Node::File(version(1)))]);
        let fresh = open(&storage.another_host());
        let read = contents(&fresh, &saved).expect("sound");
        assert_eq!(read["v"], version(1), "base {has_base}, delta {has_delta}");
        let listed = fresh.index().packs().expect("known").iter().filter(|p| p.is_listed).count();
        // Its own tree and, if anything of the killed run was of use, both of its packs.
        assert_eq!(listed, if has_base && has_delta { 3 } else { 2 });
        assert_eq!(storage.list(names::TRANSACTIONS).expect("lists").len(), 1);
    }
}

#[test]
fn random_runs_never_make_a_ring() {
    for seed in 0..60u64 {
        let storage = test_support::storage();
        let mut chance = seed;
        let mut draw = |n: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % n
        };
        let mut committed = Vec::new();
        for _ in 0..4 {
            let repo = open(&storage);
            let transaction = begin(&repo);
            if draw(2) == 0 {
                transaction.foresee(u64::MAX, u64::MAX).expect("an index");
            }
            let numbers: Vec<u64> = (0..6).filter(|_| draw(3) > 0).collect();
            let ids: Vec<_> = numbers.iter().map(|&n| id(n)).collect();
            let claims = transaction.claim(&ids).expect("claims");
            let new: Vec<u64> = numbers.iter().zip(claims).filter(|(_, c)| *c == Claim::New).map(|(n, _)| *n).collect();
            // Everything is decided before anything is stored, then stored in any order, and a pack may get lost.
            let mut decided: Vec<(u64, Option<u64>)> = Vec::new();
            for &chunk in &new {
                let wish = draw(6);
                let may = transaction.rely_on_base(id(chunk), &[id(wish)]).expect("an answer")[0];
                decided.insert(draw(decided.len() as u64 + 1) as usize, (chunk, may.then_some(wish)));
            }
            let is_killed = draw(3) == 0;
            for (chunk, base) in decided {
                if is_killed && draw(2) == 0 {
                    continue;
                }
                let base = base.map(version);
                store_pack(&transaction, &[(&version(chunk), &base.iter().map(Vec::as_slice).collect::<Vec<_>>())]);
            }
            if !is_killed {
                transaction.commit_repacked().expect("commits");
                committed.extend(numbers);
            }
        }
        let repo = open(&storage);
        for number in committed {
            let read = repo.read_chunk(id(number)).unwrap_or_else(|e| panic!("seed {seed}: version {number}: {e}"));
            assert_eq!(read, version(number), "seed {seed}");
        }
    }
}

/// A run that stores what it has to of four versions and saves them as files; the packs of deltas come before those of their
/// bases. Returns how many it had to store.
fn back_up_deltas(storage: &SimulatedStorage) -> usize {
    let repo = open(storage);
    let transaction = begin(&repo);
    let numbers = [0, 1, 2, 3];
    let claims = transaction.claim(&numbers.map(id)).expect("claims");
    let is_new = |number: u64| claims[number as usize] == Claim::New;
    let mut stored = 0;
    // 3 on 2 and 10, 2 on 1, 1 on 0; 10 is there from before.
    for (number, bases) in [(3, vec![2, 10]), (2, vec![1]), (1, vec![0]), (0, vec![])] {
        if !is_new(number) {
            continue;
        }
        let ids: Vec<_> = bases.iter().map(|&n| id(n)).collect();
        let may = transaction.rely_on_base(id(number), &ids).expect("an answer");
        let bases = if may.contains(&false) { Vec::new() } else { bases };
        test_support::store_versions(&transaction, &[(number, bases.as_slice())]);
        stored += 1;
    }
    let names = ["v0", "v1", "v2", "v3"];
    let nodes: Vec<_> = names.iter().zip(numbers).map(|(name, n)| (*name, Node::File(version(n)))).collect();
    let snapshot = test_support::write(&transaction, 20, &[("/data", &nodes)]);
    transaction.commit(snapshot).expect("commits");
    stored
}

fn assert_whole(storage: &SimulatedStorage, why: &str) -> usize {
    let repo = open(storage);
    for snapshot in repo.snapshots() {
        for (name, bytes) in contents(&repo, &snapshot).expect(why) {
            let number = name.strip_prefix('v').and_then(|n| n.parse().ok());
            assert!(number.is_none_or(|n| bytes == version(n)), "{why}: {name}");
        }
    }
    repo.snapshots().len()
}

#[test]
fn a_crash_at_any_step_of_a_run_that_stores_deltas_before_their_bases_loses_nothing() {
    let original = test_support::storage();
    test_support::save_versions(&open(&original), 10, &[(10, &[]), (11, &[10])], &[10, 11]);
    let steps = {
        let storage = original.copy();
        assert_eq!(back_up_deltas(&storage), 4);
        assert_eq!(back_up_deltas(&storage), 0, "all of it is known now");
        assert_eq!(assert_whole(&storage, "undisturbed"), 3);
        let once = original.copy();
        let before = once.steps();
        back_up_deltas(&once);
        once.steps() - before
    };
    let mut were_stored_again = HashSet::new();
    for step in 0..steps {
        let storage = original.copy();
        storage.crash_at(storage.steps() + step);
        // A dead storage ends the run by a failed expectation.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| back_up_deltas(&storage)));
        for seed in 0..6 {
            let why = format!("crash at step {step}, power cut with seed {seed}");
            let image = if seed == 0 { storage.copy() } else { storage.after_power_cut(seed) };
            let before = assert_whole(&image, &why);
            let stored = back_up_deltas(&image);
            were_stored_again.insert(stored);
            assert_eq!(assert_whole(&image, &why), before + 1, "{why}");
            // After a kill alone, names are there that no power cut has been through: who relies on them makes them durable.
            for again in if seed == 0 { 0..8 } else { seed..seed + 1 } {
                let why = format!("{why}, then cut again with seed {again}");
                assert_eq!(assert_whole(&image.after_power_cut(again), &why), before + 1, "{why}");
            }
            assert_eq!(back_up_deltas(&image), 0, "{why}: stored {stored} again, and now all is known");
        }
    }
    // Nothing was of use without the anchor, whose pack came last; with it, all was.
    assert_eq!(were_stored_again, HashSet::from([0, 4]));
}

#[test]
fn chains_of_one_run_end_far_above_what_readers_accept() {
    let repo = open(&test_support::storage());
    let transaction = begin(&repo);
    let mut deepest = 0;
    for number in 0..40 {
        assert_eq!(transaction.claim(&[id(number)]).expect("claims"), [Claim::New]);
        let may = number > 0 && transaction.rely_on_base(id(number), &[id(number - 1)]).expect("an answer")[0];
        deepest = if may { deepest + 1 } else { 0 };
        assert!(deepest <= 20, "{number}");
        let bases = if may { vec![number - 1] } else { vec![] };
        test_support::store_versions(&transaction, &[(number, bases.as_slice())]);
    }
    transaction.commit_repacked().expect("commits");
    assert_eq!(repo.read_chunk(id(39)).expect("sound"), version(39));
}

#[test]
fn what_a_snapshot_needs_has_its_name_before_it() {
    let storage = test_support::storage_with_parity();
    let repo = open(&storage);
    storage.clear_calls();
    test_support::save(&repo, 1, &[("a", Node::File(test_support::noise(1, 100_000)))]);
    let calls = storage.calls();
    let named: Vec<&str> =
        calls.iter().filter(|call| call.operation == Operation::Name).map(|call| call.name.as_str()).collect();
    let first = |folder: &str| named.iter().position(|name| name.starts_with(folder)).expect("one of each");
    let last = |folder: &str| named.iter().rposition(|name| name.starts_with(folder)).expect("one of each");
    let order = [first("transactions/"), last("packs/"), last("index/"), first("snapshots/")];
    assert!(order.is_sorted() && last("parity/") < last("index/"), "{named:?}");
    // A prune that does not see the announcement has condemned before, and that must be seen here.
    let announced = calls.iter().position(|c| c.operation == Operation::Name && c.name.starts_with("transactions/"));
    let looked = calls.iter().position(|c| c.operation == Operation::List && c.name == names::CONDEMNED);
    assert!(announced < looked, "{announced:?}, {looked:?}");
}

#[test]
fn a_pack_that_is_to_go_is_not_used_while_it_is_there() {
    let storage = test_support::storage();
    let repo = open(&storage);
    let pack = store(&repo, &[(&version(0), &[])]);
    let other = open(&storage);
    let now = test_support::time(5);
    crate::repo::condemned::create_list(&other, 1, &[pack.id], &writer(), now).expect("listed");
    crate::repo::condemned::create_end(&other, 1, &[pack.id], now).expect("decided");
    assert_eq!(begin(&repo).claim(&[id(0)]).expect("claims"), [Claim::New]);
}

#[test]
fn what_was_foreseen_has_the_answer_that_asking_gives() {
    let storage = test_support::storage();
    let repo = open(&storage);
    let packs: Vec<PackSummary> = (0..5).map(|n| store(&repo, &[(&version(n), &[])])).collect();
    store(&repo, &[(&version(5), &[&version(0)])]);
    store(&repo, &[(&version(6), &[&version(1)])]);
    store(&repo, &[(&version(2), &[&version(0)])]);
    // Missing from the start, condemned, twice there of which the whole one is cut short, and cut short.
    remove(&storage, &packs[1]);
    crate::repo::condemned::create_list(&repo, 1, &[packs[3].id], &writer(), test_support::time(4)).expect("condemned");
    for cut in [&packs[2], &packs[4]] {
        assert!(storage.truncate(&names::pack(cut.id).expect("a name"), 100));
    }
    let ids: Vec<ChunkId> = (0..9).map(id).collect();
    let answers = |foreseen: bool| {
        let repo = open(&storage.copy());
        let transaction = begin(&repo);
        if foreseen {
            transaction.foresee(u64::MAX, u64::MAX).expect("an index");
            assert!(transaction.standing.get().is_some_and(Option::is_some));
        }
        store_pack(&transaction, &[(&version(7), &[])]);
        let known = transaction.known(&ids).expect("an answer");
        let relied: std::collections::BTreeMap<_, _> = transaction.lock().relied.clone().into_iter().collect();
        (known, relied)
    };
    let (known, relied) = answers(false);
    assert_eq!(known, [true, false, true, false, false, true, false, true, false]);
    assert_eq!(relied.len(), 3);
    assert_eq!(answers(true), (known, relied));
}

#[test]
fn only_many_questions_are_foreseen() {
    let storage = test_support::storage();
    let repo = open(&storage);
    store(&repo, &[(&version(0), &[])]);
    let transaction = begin(&repo);
    transaction.foresee(100, u64::MAX).expect("an index");
    assert!(transaction.standing.get().is_none());
    transaction.foresee(1 << 20, 10).expect("an index");
    assert!(transaction.standing.get().is_some_and(Option::is_none), "too little memory");
}
