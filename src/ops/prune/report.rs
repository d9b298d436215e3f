//! What a prune reports: totals, and in a dry run what would become of every pack.
//!
//! Numbers and words only; nothing is decided here.

use crate::ids::PackId;

/// What was done, or would have been.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that were decided to go because nothing in them is needed.
    pub packs_deleted: u64,
    /// Packs that were decided to go after what is needed of them was copied.
    pub packs_repacked: u64,
    /// Bytes of the packs that this run decided on, less those copied.
    pub bytes_freed: u64,
    /// Bytes of frames that were copied.
    pub bytes_repacked: u64,
    /// Bytes in the packs that stay that no snapshot needs.
    pub bytes_unused_left: u64,
    /// Packs, among those kept, that nothing needs yet and whose writer may be at work.
    pub packs_of_writers: u64,
    /// Their bytes.
    pub bytes_of_writers: u64,
    /// Packs that this run has removed, whoever decided on them.
    pub packs_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// In a dry run: packs that were decided on earlier and may be removed now.
    pub packs_due: u64,
    /// Their bytes.
    pub bytes_due: u64,
    /// Packs that were decided on and wait for their delay to pass.
    pub packs_waiting: u64,
    /// Their bytes.
    pub bytes_waiting: u64,
    /// When the first of them may be removed, seconds since 1970.
    pub waiting_until: Option<i64>,
    /// Index objects that were merged into one.
    pub index_objects_merged: u64,
    /// Open transactions of dead writers that were ended.
    pub transactions_ended: u64,
    /// Bytes of unfinished objects that killed writers had left.
    pub temporary_bytes_freed: u64,
    /// In a dry run: every pack and what would become of it.
    pub verdicts: Vec<PackVerdict>,
}

/// What becomes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackVerdict {
    /// The pack.
    pub id: PackId,
    /// Its length.
    pub bytes: u64,
    /// The bytes of frames in it that snapshots need.
    pub bytes_used: u64,
    /// What becomes of it, and why.
    pub verdict: Verdict,
}

/// What becomes of a pack, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays: enough of it is needed.
    Stays,
    /// It stays: nothing of it is needed yet, but its writer may be at work.
    OfWriter,
    /// What is needed of it is copied, then it goes.
    Sparse,
    /// It goes: nothing of it is needed, or all of it lies elsewhere, too.
    Unneeded,
    /// It goes: it cannot be read or is not whole, and nothing needs it.
    Unreadable,
}

impl Verdict {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Stays => "stays, enough of it is needed",
            Verdict::OfWriter => "stays, the backup that writes it has not ended",
            Verdict::Sparse => "goes once what is needed of it is packed again, which is little",
            Verdict::Unneeded => "goes, nothing of it is needed or all of it lies elsewhere too",
            Verdict::Unreadable => "goes, it cannot be read and nothing needs it",
        }
    }
}
