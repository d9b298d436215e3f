//! Ready-made runs of the library: a repository, a backup, a restore, the content of a snapshot.

use super::keys::{KeysOf, init_simulated};
use super::setting;
use super::trees::{Content, Tree};
use ckpt::error::Result;
use ckpt::events::Silent;
use ckpt::ids::{ChunkId, PackId};
use ckpt::metadata::FileTime;
use ckpt::ops::backup::{self, BackupOptions, BackupReport, Input};
use ckpt::ops::init::{self, InitOptions};
use ckpt::ops::prune::{MaxUnused, PruneOptions};
use ckpt::ops::restore::{self, Destination, Overwrite, RestoreOptions, RestoreReport};
use ckpt::ops::verify::{Subset, VerifyOptions, VerifyReport, verify};
use ckpt::ops::{Resources, forget};
use ckpt::repo::audit::Actor;
use ckpt::repo::keys::Role;
use ckpt::repo::pack::summary_of;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::snapshots::{Narrow, Snapshot};
use ckpt::repo::{Cache, Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The smallest pack size that a repository may have.
pub const PACK_BYTES_MIN: u64 = 64 << 10;

/// A clock of the tests: every look at it is a second later. It is ahead of all files, or none would count as unchanged.
pub fn now() -> FileTime {
    static SECONDS: AtomicI64 = AtomicI64::new(8_000_000_000);
    FileTime { seconds: SECONDS.fetch_add(1, Ordering::Relaxed), nanoseconds: 0 }
}

/// Modest resources with so many threads.
pub fn resources(threads: usize) -> Resources {
    Resources { threads, memory_bytes: 128 << 20 }
}

/// Parameters of a small repository: chunks of about 8 KiB, so that a little content has many.
pub fn init_options(location: &str, pack_bytes: u64) -> InitOptions {
    InitOptions {
        location: location.to_owned(),
        chunk_sizes: Some((2 << 10, 8 << 10, 32 << 10)),
        pack_bytes,
        parity: true,
        now: FileTime { seconds: 1_700_000_000, nanoseconds: 0 },
    }
}

/// A repository in simulated storage; an encrypted one if `CKPT_TEST_ENCRYPTED` is not 0.
pub fn simulated(pack_bytes: u64) -> SimulatedStorage {
    if is_encrypted_by_setting() {
        return simulated_encrypted(pack_bytes);
    }
    let storage = SimulatedStorage::new();
    init::init_storage(&storage, &init_options("simulated", pack_bytes)).expect("an empty storage takes a repository");
    storage
}

/// True if tests that say nothing of it are to run on encrypted repositories.
pub fn is_encrypted_by_setting() -> bool {
    setting("CKPT_TEST_ENCRYPTED", 0) != 0
}

/// A repository in simulated storage, sealed or not whatever the setting says.
pub fn simulated_as(is_encrypted: bool, pack_bytes: u64) -> SimulatedStorage {
    if is_encrypted { simulated_encrypted(pack_bytes) } else { simulated(pack_bytes) }
}

/// An encrypted repository in simulated storage.
pub fn simulated_encrypted(pack_bytes: u64) -> SimulatedStorage {
    let storage = SimulatedStorage::new();
    init_simulated(&storage, &init_options("simulated", pack_bytes));
    storage
}

/// Opens with an index of its own, made anew; an encrypted repository with all keys.
pub fn open(storage: &SimulatedStorage) -> Result<Repo> {
    open_as(storage, Role::Admin)
}

/// As [`open`], with the keys of a role.
pub fn open_as(storage: &SimulatedStorage, role: Role) -> Result<Repo> {
    Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, &KeysOf(role), &Silent)
}

/// The usual options of a backup.
pub fn backup_options(threads: usize) -> BackupOptions<'static> {
    BackupOptions::usual("host", &now, resources(threads))
}

/// Backs up one path with usual options.
pub fn backup(repo: &Repo, path: &Path, threads: usize) -> Result<BackupReport> {
    backup_paths(repo, vec![path.to_owned()], threads)
}

/// Backs up several paths with usual options.
pub fn backup_paths(repo: &Repo, paths: Vec<PathBuf>, threads: usize) -> Result<BackupReport> {
    let report = backup::backup(repo, Input::Paths(paths), &backup_options(threads), &Silent)?;
    repo.refresh(&Silent)?;
    Ok(report)
}

/// Backs up, expecting no problem at all, and returns the snapshot.
pub fn save(repo: &Repo, path: &Path) -> Snapshot {
    let report = backup(repo, path, 2).expect("the backup succeeds");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let id = report.snapshot.expect("a snapshot was made");
    repo.snapshot(id).expect("the snapshot is listed")
}

/// The usual options of a restore.
pub fn restore_options(target: &Path) -> RestoreOptions {
    RestoreOptions {
        target: Destination::Directory(target.to_owned()),
        subpath: None,
        includes: Vec::new(),
        excludes: Vec::new(),
        overwrite: Overwrite::Always,
        delete: false,
        dry_run: false,
        resources: resources(2),
    }
}

/// Restores everything to `target`.
pub fn restore(repo: &Repo, snapshot: &Snapshot, target: &Path) -> Result<RestoreReport> {
    restore::restore(repo, snapshot, &restore_options(target), &Silent)
}

/// Reads the whole repository and checks it.
pub fn verify_all(repo: &Repo) -> Result<VerifyReport> {
    let options = VerifyOptions { read_data: Some(Subset::All), resources: resources(2), now: now() };
    verify(repo, &options, &Silent)
}

/// Options of a prune that leaves nothing unused.
pub fn prune_options() -> PruneOptions {
    PruneOptions {
        dry_run: false,
        max_unused: MaxUnused::Bytes(0),
        resources: resources(1),
        now: now(),
        writer: WriterRecord::of_this_process(now()),
        assume_alone: false,
        delete_delay: Duration::ZERO,
        silence: Duration::ZERO,
    }
}

/// Forgets one snapshot.
pub fn forget(repo: &Repo, snapshot: &Snapshot) -> Result<()> {
    let options = forget::ForgetOptions {
        ids: vec![snapshot.id],
        policy: None,
        narrow: Narrow::default(),
        dry_run: false,
        now: now(),
        actor: Actor::of_this_process(),
        time_zone: jiff::tz::TimeZone::UTC,
    };
    forget::forget(repo, &options, &Silent).map(|_| ())
}

/// The frames of every pack.
pub fn frames(storage: &SimulatedStorage) -> BTreeMap<PackId, Vec<FrameRecord>> {
    let repo = open(storage).expect("opens");
    let frames = |(name, object): (_, Vec<u8>)| {
        let id = names::pack_id(&name)?;
        let summary = summary_of(repo.keys(), &object, id, repo.id()).expect("a published pack is whole");
        Some((id, summary.frames().expect("a published table is sound")))
    };
    storage.objects().into_iter().filter_map(frames).collect()
}

/// The frames that are coded against chunks of other packs than their own.
pub fn deltas_between_packs(storage: &SimulatedStorage) -> usize {
    let packs = frames(storage);
    let holds = |frames: &[FrameRecord], id| frames.iter().any(|f| f.chunks.iter().any(|(chunk, _)| *chunk == id));
    let stands_elsewhere = |frames: &[FrameRecord], frame: &FrameRecord| frame.bases.iter().any(|&b| !holds(frames, b));
    packs.values().map(|frames| frames.iter().filter(|frame| stands_elsewhere(frames, frame)).count()).sum()
}

/// What the snapshot holds, read chunk by chunk, each once, and checked: much faster than a restore.
pub fn contents(repo: &Repo, snapshot: &Snapshot) -> Result<Tree> {
    let fetch = |id| repo.read_chunk(id);
    let mut read = HashMap::new();
    let mut found = Tree::default();
    for entry in repo.entries(&fetch, snapshot.tree) {
        let entry = entry?;
        let mut hasher = blake3::Hasher::new();
        for child in entry.content.into_iter().flat_map(|content| repo.content_chunks(&fetch, content)) {
            let child = child?;
            if child.id == ChunkId::HOLE {
                hasher.update(&vec![0; usize::try_from(child.bytes).expect("a small hole")]);
                continue;
            }
            let chunk = match read.entry(child.id) {
                Entry::Occupied(chunk) => chunk.into_mut(),
                Entry::Vacant(place) => place.insert(repo.read_chunk(child.id)?),
            };
            hasher.update(chunk);
        }
        let content = entry.is_file().then(|| Content { bytes: entry.metadata.size, hash: hasher.finalize() });
        found.add(entry.path.clone(), &entry.metadata, content);
    }
    Ok(found.normal())
}
