//! Prunes of repositories in which chunks are coded against others.

use super::tests::{Contents, assert_intact, forget, mixed, options, pack_names};
use super::*;
use crate::events::Silent;
use crate::ids::{ChunkId, PackId};
use crate::ops::verify::{VerifyOptions, verify};
use crate::repo::names;
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, contents, open, save_versions, store_versions, version, writer};
use crate::repo::transaction::Transaction;
use crate::storage::simulated::SimulatedStorage;

fn id(number: u64) -> ChunkId {
    ChunkId::of(&version(number))
}

/// The packs that hold a version, and how many bases it has there.
fn homes(storage: &SimulatedStorage, number: u64) -> Vec<(PackId, u8)> {
    let homes = open(storage).index().homes(&[id(number)]).expect("an index").remove(0);
    homes.iter().map(|home| (home.pack, home.base_count)).collect()
}

/// Stores versions in one pack; no snapshot needs them yet.
fn store(storage: &SimulatedStorage, stored: &[(u64, &[u64])]) -> PackId {
    let repo = open(storage);
    let transaction = Transaction::begin(&repo, &writer()).expect("begins");
    let pack = store_versions(&transaction, stored).expect("something to store").id;
    transaction.commit_repacked().expect("commits");
    pack
}

fn save(storage: &SimulatedStorage, files: &[u64]) -> (Snapshot, Contents) {
    let repo = open(storage);
    let saved = save_versions(&repo, 50, &[], files);
    let wanted = contents(&repo, &saved).expect("sound");
    (saved, wanted)
}

/// What a verification of the structure finds, with the files that are hit.
fn damage_of(repo: &Repo) -> Vec<String> {
    let options = VerifyOptions { read_data: None, resources: options().resources, now: options().now };
    let report = verify(repo, &options, &Silent).expect("verifies");
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let files = |files: &[(_, Vec<u8>)]| files.iter().map(|(_, path)| text(path)).collect::<Vec<_>>().join(" ");
    report.damage.iter().map(|d| format!("{}: {}: {}", d.object, d.what, files(&d.files))).collect()
}

fn prune_all(storage: &SimulatedStorage) -> Result<PruneReport> {
    prune(&open(storage), &options(), &Silent)
}

#[test]
fn bases_of_what_stays_are_kept_and_deltas_are_copied_as_they_are() {
    let (storage, live) = mixed();
    let before: Vec<_> = (0..4).map(|n| homes(&storage, n)[0]).collect();
    let stored = |n: u64| {
        let repo = open(&storage);
        let home = repo.index().homes(&[id(n)]).expect("an index")[0][0];
        (home.frame_stored, home.codec, repo.index().bases_at(&[(id(n), home)]).expect("an index"))
    };
    let frames: Vec<_> = (0..4).map(stored).collect();
    let report = prune_all(&storage).expect("prunes");
    assert_eq!(report.bytes_unused_left, 0);
    assert_intact(&storage, &live, "after a prune");
    for number in 0..4 {
        let after = homes(&storage, number);
        assert_eq!(after.len(), 1);
        let (pack, base_count) = before[number as usize];
        assert_ne!(after[0].0, pack, "each lay beside something unused");
        assert_eq!(after[0].1, base_count);
        assert_eq!(stored(number), frames[number as usize]);
    }
    assert!((40..44).all(|number| homes(&storage, number).is_empty()));
    assert_eq!(damage_of(&open(&storage)), [""; 0]);
}

#[test]
fn an_anchor_stays_as_long_as_something_stands_on_it() {
    let storage = test_support::storage();
    let first = save_versions(&open(&storage), 1, &[(0, &[])], &[0]);
    let second = save_versions(&open(&storage), 2, &[(1, &[0])], &[1]);
    let third = save_versions(&open(&storage), 3, &[(2, &[1])], &[2]);
    let wanted = contents(&open(&storage), &third).expect("sound");
    forget(&storage, first.id);
    forget(&storage, second.id);
    prune_all(&storage).expect("prunes");
    assert_intact(&storage, &[(third.clone(), wanted)], "its bases were forgotten as files");
    assert_eq!([0, 1, 2].map(|n| homes(&storage, n).len()), [1, 1, 1]);
    forget(&storage, third.id);
    prune_all(&storage).expect("prunes");
    assert_eq!(pack_names(&storage).len(), 0, "what is not needed frees its bases");
}

#[test]
fn a_home_that_needs_no_base_is_kept_and_the_others_go_with_their_bases() {
    // Ranks among equals hang on names, which are random.
    for _ in 0..8 {
        let storage = test_support::storage();
        let anchor = store(&storage, &[(0, &[])]);
        let coded = store(&storage, &[(1, &[0]), (2, &[0])]);
        // The delta lies in the fuller pack, and the other beside something unused.
        let alone = store(&storage, &[(1, &[]), (40, &[]), (41, &[])]);
        let live = save(&storage, &[1]);
        prune_all(&storage).expect("prunes");
        assert_intact(&storage, &[live], "after a prune");
        let left = homes(&storage, 1);
        assert!(left.len() == 1 && left[0].1 == 0, "{left:?}");
        for pack in [anchor, coded, alone] {
            assert!(!storage.names().contains(&names::pack(pack).expect("a name")));
        }
    }
}

#[test]
fn homes_that_need_one_another_never_replace_the_one_that_needs_nothing() {
    for _ in 0..8 {
        let storage = test_support::storage();
        // A killed run left 1 on 2 and lost 2; then 1 was stored alone, and 2 on 1.
        let ring = store(&storage, &[(1, &[2]), (40, &[])]);
        let alone = store(&storage, &[(1, &[]), (41, &[]), (42, &[]), (43, &[])]);
        let other = store(&storage, &[(2, &[1])]);
        let live = save(&storage, &[1, 2]);
        prune_all(&storage).expect("prunes");
        assert_intact(&storage, std::slice::from_ref(&live), "a ring beside the way out of it");
        assert_eq!(homes(&storage, 1).iter().map(|h| h.1).collect::<Vec<_>>(), [0]);
        for pack in [ring, alone] {
            assert!(!storage.names().contains(&names::pack(pack).expect("a name")));
        }
        assert!(storage.names().contains(&names::pack(other).expect("a name")), "all of it is needed");
        // With two homes that both need others, one in a ring: the one that leads out stays.
        let storage = test_support::storage();
        store(&storage, &[(0, &[])]);
        store(&storage, &[(1, &[2])]);
        store(&storage, &[(1, &[0]), (40, &[])]);
        store(&storage, &[(2, &[1])]);
        let live = save(&storage, &[1, 2]);
        prune_all(&storage).expect("prunes");
        assert_intact(&storage, &[live], "a ring beside a way to the anchor");
        assert_eq!([0, 1, 2].map(|n| homes(&storage, n).len()), [1, 1, 1]);
    }
}

#[test]
fn of_two_deltas_one_stays_and_it_is_one_whose_base_is_sound() {
    for spoilt in 0..3 {
        for _ in 0..4 {
            let storage = test_support::storage();
            let anchors = [store(&storage, &[(0, &[])]), store(&storage, &[(9, &[])])];
            store(&storage, &[(1, &[0])]);
            store(&storage, &[(1, &[9])]);
            let live = save(&storage, &[1]);
            if let Some(pack) = anchors.get(spoilt) {
                assert!(storage.corrupt(&names::pack(*pack).expect("a name"), 500, 1));
            }
            prune_all(&storage).expect("prunes");
            assert_intact(&storage, &[live], "one of the anchors is damaged");
            assert_eq!(homes(&storage, 1).len(), 1);
            let left = [homes(&storage, 0).len(), homes(&storage, 9).len()];
            assert!(left == [0, 1] || left == [1, 0], "{left:?}");
            assert!(spoilt == 2 || left[spoilt] == 0, "the damaged one is of no use");
        }
    }
}

#[test]
fn two_homes_with_every_combination_of_lost_packs() {
    for is_anchor_needed in [false, true] {
        for lost in 0..8 {
            let storage = test_support::storage();
            let packs =
                [store(&storage, &[(0, &[])]), store(&storage, &[(1, &[])]), store(&storage, &[(1, &[0]), (40, &[])])];
            let live = save(&storage, if is_anchor_needed { &[0, 1] } else { &[1] });
            let is_left = [0, 1, 2].map(|n| lost & (1 << n) == 0);
            for (pack, _) in packs.iter().zip(is_left).filter(|(_, is_left)| !is_left) {
                assert!(storage.remove(&names::pack(*pack).expect("a name")));
            }
            let repo = open(&storage);
            let can_be_read = [is_left[0], is_left[1] || (is_left[0] && is_left[2])];
            for number in [0, 1] {
                assert_eq!(repo.read_chunk(id(number)).is_ok(), can_be_read[number as usize], "lost {lost:03b}");
            }
            let is_whole = can_be_read[1] && (can_be_read[0] || !is_anchor_needed);
            let why = format!("lost {lost:03b}, the anchor is needed: {is_anchor_needed}");
            assert_eq!(damage_of(&repo).iter().any(|damage| damage.contains("/data/v")), !is_whole, "{why}");
            let before = pack_names(&storage);
            let pruned = prune(&repo, &options(), &Silent);
            assert_eq!(pruned.is_ok(), is_whole, "{why}: {pruned:?}");
            if is_whole {
                assert_intact(&storage, std::slice::from_ref(&live), &why);
                assert_eq!(damage_of(&open(&storage)).iter().filter(|d| d.contains("/data/v")).count(), 0, "{why}");
            } else {
                assert_eq!(pack_names(&storage), before, "{why}");
            }
            // Whatever was lost, the next backup of the same makes both snapshots whole.
            let again = save(&storage, if is_anchor_needed { &[0, 1] } else { &[1] });
            assert_intact(&storage, &[live, again], &why);
            prune_all(&storage).expect("prunes");
        }
    }
}

/// Backups, forgettings, prunes and power cuts in any order, each choice following from the seed.
struct History {
    storage: SimulatedStorage,
    live: Vec<(Snapshot, Contents)>,
    chance: u64,
    /// Where it is, for messages.
    why: String,
}

impl History {
    fn draw(&mut self, n: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % n
    }

    fn go_on(&mut self, step: i64) {
        match self.draw(6) {
            0 if !self.live.is_empty() => {
                let at = self.draw(self.live.len() as u64) as usize;
                let (gone, _) = self.live.swap_remove(at);
                forget(&self.storage, gone.id);
            }
            0..3 => {
                let max_unused = [MaxUnused::Bytes(0), MaxUnused::Unlimited][self.draw(2) as usize];
                let options = PruneOptions { max_unused, ..options() };
                let report = prune(&open(&self.storage), &options, &Silent).expect(&self.why);
                assert!(max_unused != MaxUnused::Bytes(0) || report.bytes_unused_left == 0, "{}", self.why);
            }
            action => self.back_up(step, action == 3),
        }
    }

    /// Some of eight versions, coded against whatever may be a base; a killed run loses its power, too.
    fn back_up(&mut self, step: i64, is_killed: bool) {
        let repo = open(&self.storage);
        let transaction = Transaction::begin(&repo, &writer()).expect("begins");
        let files: Vec<u64> = (0..8).filter(|_| self.draw(2) == 0).collect();
        let ids: Vec<_> = files.iter().map(|&n| id(n)).collect();
        let known = transaction.known(&ids).expect("known");
        // What is known is stored again sometimes, as another host does that has not seen it.
        let is_blind = self.draw(3) == 0;
        let mut stored = Vec::new();
        for (&number, _) in files.iter().zip(known).filter(|(_, is_known)| is_blind || !is_known) {
            transaction.claim(&[id(number)]).expect(&self.why);
            let wished = [self.draw(8), self.draw(8)];
            let wished = &wished[..self.draw(3) as usize];
            let wishes: Vec<_> = wished.iter().map(|&n| id(n)).collect();
            let may = transaction.rely_on_base(id(number), &wishes).expect("an answer");
            stored.push((number, if may.contains(&false) { vec![] } else { wished.to_vec() }));
        }
        for (number, bases) in &stored {
            store_versions(&transaction, &[(*number, bases.as_slice()), (100 + self.draw(50), &[])]);
        }
        if is_killed {
            drop(transaction);
            self.storage = self.storage.after_power_cut(self.chance);
            return;
        }
        let names = ["v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"];
        let nodes: Vec<_> = files.iter().map(|&n| (names[n as usize], Node::File(version(n)))).collect();
        let snapshot = test_support::write(&transaction, step, &[("/data", &nodes)]);
        let saved = transaction.commit(snapshot).expect(&self.why);
        let wanted = contents(&open(&self.storage), &saved).expect(&self.why);
        self.live.push((saved, wanted));
    }
}

#[test]
fn random_histories_of_deltas_keep_every_live_snapshot() {
    for seed in 0..60 {
        let mut history =
            History { storage: test_support::storage(), live: Vec::new(), chance: seed, why: String::new() };
        for step in 0..14 {
            history.why = format!("seed {seed}, step {step}");
            history.go_on(step);
            assert_intact(&history.storage, &history.live, &history.why);
        }
        assert_eq!(damage_of(&open(&history.storage)), [""; 0], "{}", history.why);
    }
}
