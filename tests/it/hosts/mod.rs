//! Several hosts at work on one repository, in an order that follows from a seed.
//!
//! Up to eight hosts share a simulated storage. Each runs one process after the other: backups of a small source of its
//! own, whose content others have as well and whose tensors are coded against versions of any host; forget, prune,
//! restore, verify. One host goes on at a time, for a few steps or for many; some sleep while others run whole prunes, some
//! are killed at any step, clocks are wrong by up to ten years, prunes take living writers for dead, and at times all lose
//! power. After each prune, and at the end, every snapshot that was committed and not forgotten holds what its source
//! held, and so does every other that is there; at last a prune and a backup with nobody beside them go on without a hand.
//!
//! One history in four is of an encrypted repository, in which hosts have roles: most may only add, and whatever a role does not allow
//! is refused.
//!
//! The usual run has 500 seeds; `CKPT_TEST_HOSTS` asks for more, `CKPT_TEST_SEED` for others. A seed that fails is printed:
//! `CKPT_TEST_SEED=<seed> CKPT_TEST_HOSTS=1` plays it alone, some times over: the choices are the same each time, but threads
//! within one host may meet otherwise.
//!
//! Deliberately not here: rot, full disks, listings that lag behind.

mod host;
mod ledger;
mod turns;

use crate::support::runs::{self, PACK_BYTES_MIN};
use crate::support::{Chance, in_parallel, quick_folder, say, seed, setting};
use ckpt::events::Silent;
use ckpt::ops::prune::{PruneOptions, prune};
use ckpt::storage::simulated::SimulatedStorage;
use host::{Host, Shared};
use ledger::Ledger;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use turns::Turns;

/// One in so many histories is of an encrypted repository, with hosts of all roles.
const ENCRYPTED_SHARE: u64 = 4;
/// How often a single seed is played: threads within a host may meet in another order each time.
const PLAYS_OF_ONE: u64 = 20;
/// After so many failures the rest is not looked at.
const FAILURES_MAX: usize = 5;

/// Takes the host away when its thread ends, however it does: the others must not wait for it.
struct Seat<'a>(&'a Turns, usize);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// One history; what happened how often.
fn play(seed: u64) -> (BTreeMap<String, u64>, u64) {
    let mut chance = Chance(seed);
    let folder = quick_folder();
    let is_encrypted = seed.is_multiple_of(ENCRYPTED_SHARE);
    let mut storage = runs::simulated_as(is_encrypted, PACK_BYTES_MIN);
    let ledger = Mutex::new(Ledger::default());
    let reported = Mutex::new(BTreeSet::new());
    let mut hosts: Vec<Host> = (0..2 + chance.index(7)).map(|n| Host::new(n, folder.path(), seed)).collect();
    let mut steps = 0;
    for _ in 0..=chance.below(2) {
        let cut_at = (chance.below(4) == 0).then(|| chance.below(1200));
        let turns = Arc::new(Turns::new(chance.below(u64::MAX), hosts.len(), cut_at));
        let gate = Arc::clone(&turns);
        storage.set_gate(move |call| gate.gate(call));
        let storage_of_hosts = storage.clone();
        let shared = Shared {
            seed,
            storage: storage_of_hosts,
            is_encrypted,
            turns: &turns,
            ledger: &ledger,
            reported: &reported,
        };
        let processes = 1 + chance.below(3);
        std::thread::scope(|scope| {
            for (number, host) in hosts.iter_mut().enumerate() {
                let (shared, turns) = (&shared, &turns);
                scope.spawn(move || {
                    let _seat = Seat(turns, number);
                    turns.wait(number);
                    host.work(shared, processes);
                });
            }
        });
        steps += turns.steps();
        let mut ledger = ledger.lock().expect("no panic");
        if turns.is_cut() {
            storage = storage.after_power_cut(chance.below(u64::MAX));
            ledger.lose_power(&storage, &reported.lock().expect("no panic"));
            ledger.count("power lost");
        }
        storage.set_gate(|_| {});
        ledger.check(&storage, &format!("seed {seed}: after a round"));
    }
    let ledger = ledger.into_inner().expect("no panic");
    (settle(&storage, ledger, seed), steps)
}

/// Nothing needs a hand: the last prune, with nobody beside it, and what it leaves is whole.
fn settle(storage: &SimulatedStorage, mut ledger: Ledger, seed: u64) -> BTreeMap<String, u64> {
    let why = format!("seed {seed}: at last");
    let repo = runs::open(&storage.another_host()).unwrap_or_else(|e| panic!("{why}: {e}"));
    let alone = PruneOptions { assume_alone: true, ..runs::prune_options() };
    prune(&repo, &alone, &Silent).unwrap_or_else(|e| panic!("{why}: {e}"));
    let repo = ledger.check(storage, &why);
    let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
    assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
    ledger.counts
}

#[test]
fn many_hosts_at_once_lose_nothing() {
    let (first, count) = (seed(), setting("CKPT_TEST_HOSTS", 500));
    let begun = Instant::now();
    let (counts, failed) = (Mutex::new(BTreeMap::<String, u64>::new()), Mutex::new(Vec::new()));
    let plays = if count == 1 { PLAYS_OF_ONE } else { count };
    let steps = in_parallel(plays, |number| {
        let seed = if count == 1 { first } else { first + number };
        if failed.lock().expect("no panic").len() >= FAILURES_MAX {
            return 0;
        }
        let Ok((seen, steps)) = std::panic::catch_unwind(|| play(seed)) else {
            say(&format!("hosts: CKPT_TEST_SEED={seed} CKPT_TEST_HOSTS=1 plays the failing history alone"));
            failed.lock().expect("no panic").push(seed);
            return 0;
        };
        let mut counts = counts.lock().expect("no panic");
        seen.into_iter().for_each(|(what, n)| *counts.entry(what).or_default() += n);
        steps
    });
    let counts = counts.into_inner().expect("no panic");
    let listed: Vec<String> = counts.iter().map(|(what, n)| format!("{n} x {what}")).collect();
    say(&format!("hosts: {}", listed.join(", ")));
    say(&format!("hosts: {plays} histories, {count} seeds from {first}, {steps} steps, {:.1?}", begun.elapsed()));
    assert_eq!(failed.into_inner().expect("no panic"), [0; 0], "these seeds fail");
}
