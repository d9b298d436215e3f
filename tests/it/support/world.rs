//! A small source and a simulated repository that holds it: where tests of faults and damage begin.

use super::runs::{self, PACK_BYTES_MIN, contents};
use super::trees::Tree;
use super::{noise, quick_folder};
use ckpt::error::Result;
use ckpt::events::Silent;
use ckpt::ops::backup::{BackupReport, Input, backup};
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::SimulatedStorage;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A source and a repository that holds it.
pub struct World {
    folder: TempDir,
    pub storage: SimulatedStorage,
    /// The snapshot, and the source as it was then.
    pub saved: (Snapshot, Tree),
}

impl World {
    pub fn new() -> World {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("sub")).expect("folders");
        fs::write(source.join("a"), noise(1, 150_000)).expect("a file");
        fs::write(source.join("sub/b"), noise(2, 90_000)).expect("a file");
        fs::write(source.join("sub/c"), b"text\n".repeat(5_000)).expect("a file");
        let storage = runs::simulated(PACK_BYTES_MIN);
        let repo = runs::open(&storage).expect("a new repository");
        let saved = (runs::save(&repo, &source), Tree::read(&source));
        World { folder, storage, saved }
    }

    pub fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    /// A copy of the storage, and a change of the source since it was saved.
    pub fn after_a_change(&self) -> SimulatedStorage {
        fs::write(self.source().join("new"), noise(7, 120_000)).expect("a file");
        self.storage.copy()
    }

    pub fn packs(&self) -> Vec<ObjectName> {
        self.storage.names().into_iter().filter(|name| names::pack_id(name).is_some()).collect()
    }

    pub fn assert_saved(&self, storage: &SimulatedStorage, why: &str) {
        let repo = runs::open(storage).unwrap_or_else(|e| panic!("{why}: {e}"));
        let snapshot = repo.snapshot(self.saved.0.id).unwrap_or_else(|| panic!("{why}: the snapshot is gone"));
        contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(&self.saved.1, why);
    }

    /// The next backup with a new index succeeds and holds the source as it is.
    pub fn assert_goes_on(&self, storage: &SimulatedStorage, why: &str) {
        let repo = runs::open(storage).unwrap_or_else(|e| panic!("{why}: {e}"));
        let report = runs::backup(&repo, &self.source(), 2).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert_backed_up(&repo, &report, &self.source(), why);
    }
}

/// The snapshot of the report is there and holds `source` as it is now.
pub fn assert_backed_up(repo: &Repo, report: &BackupReport, source: &Path, why: &str) {
    assert!(report.problems.is_empty(), "{why}: {:?}", report.problems);
    repo.refresh(&Silent).unwrap_or_else(|e| panic!("{why}: {e}"));
    let snapshot = report.snapshot.and_then(|id| repo.snapshot(id)).unwrap_or_else(|| panic!("{why}: no snapshot"));
    contents(repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(&Tree::read(source), why);
}

pub fn plain_backup(repo: &Repo, source: &Path) -> Result<BackupReport> {
    backup(repo, Input::Paths(vec![source.to_owned()]), &runs::backup_options(2), &Silent)
}
