//! What kind of repository this is, and when it was last looked after.

use crate::error::Result;
use crate::ids::{RepositoryId, SlotId};
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::checkpoints::steps_of;
use crate::repo::key_slots::Slots;
use crate::repo::keys::Role;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

/// The parameters of a repository and its state in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoReport {
    /// Its id.
    pub id: RepositoryId,
    /// Where it is, in words.
    pub location: String,
    /// The version of its layout.
    pub format_version: u32,
    /// When `init` made it.
    pub created: FileTime,
    /// The smallest chunk in bytes, except at an end.
    pub chunk_min: u64,
    /// The chunk size that is aimed at.
    pub chunk_average: u64,
    /// The largest chunk.
    pub chunk_max: u64,
    /// The size of a pack at which the next one is begun.
    pub pack_bytes: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// What the key that opened it allows; none if it is not encrypted.
    pub role: Option<Role>,
    /// The slot of that key.
    pub slot: Option<SlotId>,
    /// Key slots.
    pub slots: u64,
    /// Whether its packs have parity.
    pub parity: bool,
    /// True if `init` saw that names are created exclusively there.
    pub exclusive_create: bool,
    /// Where the index of this host lies.
    pub cache_path: PathBuf,
    /// Live snapshots.
    pub snapshots: u64,
    /// Packs that are known.
    pub packs: u64,
    /// When a run last read packs and found everything sound.
    pub last_verified: Option<FileTime>,
    /// Packs that no run has ever read whole.
    pub packs_never_read: u64,
    /// Different finished checkpoints in all snapshots, told apart by source and path.
    pub checkpoints: u64,
    /// The steps of those.
    pub steps: BTreeSet<u64>,
}

/// Gathers it; reads nothing but the index and the key slots.
pub fn info(repo: &Repo) -> Result<InfoReport> {
    let config = repo.config();
    let packs = repo.index().packs()?;
    let reads = repo.index().pack_reads()?;
    let snapshots = repo.snapshots();
    let finished = snapshots.iter().flat_map(|snapshot| {
        let of_this = snapshot.checkpoints.iter().filter(|record| record.unfinished.is_none());
        of_this.map(|record| (snapshot.source_key(), record.absolute_path(snapshot)))
    });
    let checkpoints = finished.collect::<HashSet<_>>().len() as u64;
    Ok(InfoReport {
        id: repo.id(),
        location: repo.storage().describe(),
        format_version: config.format_version,
        created: config.created(),
        chunk_min: config.chunk_min.into(),
        chunk_average: config.chunk_average.into(),
        chunk_max: config.chunk_max.into(),
        pack_bytes: config.pack_bytes.into(),
        encrypted: config.encryption != 0,
        role: repo.keys().bundle().map(|bundle| bundle.role),
        slot: repo.slot(),
        slots: if config.encryption == 0 { 0 } else { Slots::read(repo.storage(), repo.id())?.count() as u64 },
        parity: config.parity != 0,
        exclusive_create: config.exclusive_create,
        cache_path: repo.index().path().to_owned(),
        snapshots: snapshots.len() as u64,
        packs: packs.len() as u64,
        last_verified: repo.index().last_run("verify", "sound")?.map(|seconds| FileTime { seconds, nanoseconds: 0 }),
        packs_never_read: packs.iter().filter(|p| !reads.contains_key(&p.id)).count() as u64,
        checkpoints,
        steps: steps_of(snapshots.iter()),
    })
}
