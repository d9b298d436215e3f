//! What the hosts of one history have tried and achieved, and the look at whether the repository keeps it.

use crate::support::runs::{self, contents};
use crate::support::trees::Tree;
use ckpt::ids::SnapshotId;
use ckpt::repo::Repo;
use ckpt::repo::snapshots::Snapshot;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, BTreeSet};

/// What must be, and what may be.
#[derive(Default)]
pub struct Ledger {
    /// The source of each attempt of a backup; its snapshot carries the number as a tag.
    attempts: Vec<Tree>,
    /// Snapshots that were reported or seen, with the numbers of their attempts.
    saved: BTreeMap<SnapshotId, usize>,
    /// Snapshots that somebody has begun to forget.
    doomed: BTreeSet<SnapshotId>,
    /// How often each thing happened.
    pub counts: BTreeMap<String, u64>,
}

impl Ledger {
    /// A backup of `source` begins; the tag of its snapshot.
    pub fn begin(&mut self, source: Tree) -> String {
        self.attempts.push(source);
        format!("attempt-{}", self.attempts.len() - 1)
    }

    pub fn save(&mut self, id: SnapshotId, tag: &str) {
        self.saved.insert(id, attempt(tag));
    }

    pub fn doom(&mut self, id: SnapshotId) {
        self.doomed.insert(id);
    }

    pub fn is_doomed(&self, id: SnapshotId) -> bool {
        self.doomed.contains(&id)
    }

    pub fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// What the snapshot is to hold.
    pub fn wanted(&self, snapshot: &Snapshot) -> &Tree {
        let tag = snapshot.tags.iter().find(|tag| tag.starts_with("attempt-")).expect("every backup is tagged");
        &self.attempts[attempt(tag)]
    }

    /// Every snapshot that is there holds what it is to hold, and every one that has to be there is.
    pub fn check(&mut self, storage: &SimulatedStorage, why: &str) -> Repo {
        let repo = runs::open(&storage.another_host()).unwrap_or_else(|e| panic!("{why}: {e}"));
        let live = repo.snapshots();
        assert_eq!(repo.damage(), Vec::<String>::new(), "{why}");
        for snapshot in &live {
            let found = contents(&repo, snapshot);
            let found = found.unwrap_or_else(|e| panic!("{why}: snapshot {} of {:?}: {e}", snapshot.id, snapshot.tags));
            found.assert_is(self.wanted(snapshot), why);
            let tag = snapshot.tags.iter().next().expect("a tag");
            // Its writer may have died between the commit and the report.
            self.saved.insert(snapshot.id, attempt(tag));
        }
        for (id, attempt) in self.saved.iter().filter(|(id, _)| !self.doomed.contains(id)) {
            assert!(live.iter().any(|s| s.id == *id), "{why}: snapshot {id} of attempt {attempt} is gone");
        }
        repo
    }

    /// After a loss of power: what was only seen, and not reported, may be gone.
    pub fn lose_power(&mut self, storage: &SimulatedStorage, reported: &BTreeSet<SnapshotId>) {
        let repo = runs::open(&storage.another_host()).expect("opens");
        self.saved.retain(|id, _| reported.contains(id) || repo.snapshot(*id).is_some());
    }
}

fn attempt(tag: &str) -> usize {
    tag.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a tag of ours")
}
