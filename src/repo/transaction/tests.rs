//! What a transaction relies on when chunks are coded against others.

use super::*;
use crate::events::Silent;
use crate::repo::test_support::{self, Node, contents, open, store, store_pack, version, writer};
use crate::storage::Storage;
use crate::storage::simulated::SimulatedStorage;

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
    records::create_pack_list(&storage, &names::condemned(1).expect("a name"), &[anchor.id], test_support::time(4))
        .expect("condemned");
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
