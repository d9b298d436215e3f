//! The last line of commands that write JSON lines.

use super::tensors::RestoreTensorsSummary;
use super::{AuditSummary, CheckpointItem};
use schemars::JsonSchema;
use serde::Serialize;

/// How a long command ended, by command.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Summary {
    /// `backup`.
    Backup(BackupSummary),
    /// `restore`.
    Restore(RestoreSummary),
    /// `restore --tensor`.
    RestoreTensors(RestoreTensorsSummary),
    /// `verify`.
    Verify(VerifySummary),
    /// `verify SELECTOR --against DIR`.
    VerifyAgainst(AgainstSummary),
    /// `repair`.
    Repair(RepairSummary),
    /// `forget`; with `--prune`, a summary of `prune` follows.
    Forget(ForgetSummary),
    /// `prune`.
    Prune(PruneSummary),
    /// `audit verify`.
    Audit(AuditSummary),
}

/// What `backup` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BackupSummary {
    /// The new snapshot; null after a dry run, or when nothing changed and `--skip-if-unchanged` was given.
    pub snapshot: Option<String>,
    /// The snapshot that unchanged files were compared with.
    pub parent: Option<String>,
    /// True if nothing was stored because of `--dry-run`.
    pub dry_run: bool,
    /// Files that the parent did not hold.
    pub files_new: u64,
    /// Files that differ from the parent's.
    pub files_changed: u64,
    /// Files that were not read because they are the parent's.
    pub files_unchanged: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, pipes, devices.
    pub others: u64,
    /// Sockets, which cannot be saved.
    pub sockets_skipped: u64,
    /// Entries that an exclusion left out.
    pub entries_excluded: u64,
    /// Bytes of content of all files.
    pub bytes_logical: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes of content that the repository did not hold before.
    pub bytes_new: u64,
    /// Bytes that they take in the repository.
    pub bytes_stored: u64,
    /// Chunks that the repository did not hold before.
    pub chunks_new: u64,
    /// Files and checkpoints that could not be saved as asked.
    pub problems: u64,
    /// The checkpoints that were saved.
    pub checkpoints: Vec<CheckpointItem>,
    /// Checkpoints that were left out because they are unfinished.
    pub checkpoints_left_out: u64,
    /// Whether the backup was done twice because a prune revoked the first try.
    pub retried_after_revocation: bool,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// What `restore` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RestoreSummary {
    /// The snapshot that was restored.
    pub snapshot: String,
    /// Where to; null for `--in-place`.
    pub target: Option<String>,
    /// True if nothing was written because of `--dry-run`.
    pub dry_run: bool,
    /// Files that were written.
    pub files_restored: u64,
    /// Files that were right already.
    pub files_unchanged: u64,
    /// Files that `--overwrite never` left as they were.
    pub files_kept: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, pipes, devices.
    pub others: u64,
    /// Entries that `--delete` removed.
    pub deleted: u64,
    /// Bytes of content of what was selected.
    pub bytes_total: u64,
    /// Bytes that were read from the repository.
    pub bytes_fetched: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Bytes that the target held already.
    pub bytes_reused: u64,
    /// Files left out because the repository's copy is damaged.
    pub damaged: u64,
    /// Files that the target refused.
    pub failed: u64,
    /// Owners, permissions or attributes that could not be set.
    pub metadata_issues: Vec<String>,
    /// What a dry run would do; null otherwise.
    pub planned: Option<Vec<PlannedItem>>,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// What a dry run would do with one entry.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedItem {
    /// The path below the target.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// What would happen to it.
    pub action: String,
    /// Bytes of content.
    pub bytes: u64,
}

/// What `verify` found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VerifySummary {
    /// Snapshots whose structure was checked.
    pub snapshots_checked: u64,
    /// Packs whose presence and table were checked.
    pub packs_checked: u64,
    /// Packs whose data were read.
    pub packs_read: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Chunks that were checked.
    pub chunks_checked: u64,
    /// All packs.
    pub packs_total: u64,
    /// Packs that killed runs left behind; the next run uses them, or a prune deletes them.
    pub packs_unlisted: u64,
    /// Packs without parity in a repository where packs get some; no damage.
    pub packs_without_parity: u64,
    /// Packs that a repair has set aside because they are damaged or missing.
    pub packs_set_aside: u64,
    /// Packs whose data were never read and verified.
    pub packs_never_read: u64,
    /// When the pack that was read longest ago was read.
    pub oldest_read: Option<String>,
    /// How much damage there is.
    pub damage_count: u64,
    /// The first of it.
    pub damage: Vec<DamageItem>,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// A damaged object.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DamageItem {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The first of the files that need it.
    pub files: Vec<DamagedFile>,
    /// True if `ckpt repair` can put it right with what the repository holds.
    pub mendable: bool,
}

/// A file that needs a damaged object.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DamagedFile {
    /// The snapshot.
    pub snapshot: String,
    /// The file.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
}

/// What `repair` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RepairSummary {
    /// True if nothing was changed because of `--dry-run`.
    pub dry_run: bool,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Bytes of those packs.
    pub bytes_read: u64,
    /// What was, or would be, mended.
    pub mended: Vec<MendedItem>,
    /// How many damaged objects cannot be mended.
    pub left_count: u64,
    /// The first of them.
    pub left: Vec<DamageItem>,
    /// Packs that are set aside because they are damaged or missing.
    pub packs_set_aside: u64,
    /// Chunks that were stored again, read from what is left of damaged packs.
    pub chunks_from_remains: u64,
    /// Chunks that were stored again, read from other repositories.
    pub chunks_from_copies: u64,
    /// Chunks that were stored again, read from files of this host.
    pub chunks_from_sources: u64,
    /// Packs that had no parity and have some now.
    pub parity_added: u64,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// An object that was mended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MendedItem {
    /// Its name.
    pub object: String,
    /// By what, in words.
    pub means: String,
}

/// How a directory compares with a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AgainstSummary {
    /// The snapshot.
    pub snapshot: String,
    /// The directory.
    pub directory: String,
    /// Files that were compared.
    pub files_checked: u64,
    /// Bytes that were compared.
    pub bytes_checked: u64,
    /// How many differences there are.
    pub difference_count: u64,
    /// The first of them.
    pub differences: Vec<DifferenceItem>,
    /// Files that could not be compared because the repository's copy is damaged.
    pub damaged: u64,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// An entry that differs from the snapshot's.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DifferenceItem {
    /// The path below the directory.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// What differs.
    pub what: String,
}

/// What `forget` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ForgetSummary {
    /// True if nothing was forgotten because of `--dry-run`.
    pub dry_run: bool,
    /// Snapshots that a policy keeps, and why.
    pub kept: Vec<KeptItem>,
    /// The ids of the snapshots that are, or would be, forgotten.
    pub forgotten: Vec<String>,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// A snapshot that is kept.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeptItem {
    /// Its id.
    pub id: String,
    /// The rules that keep it.
    pub reasons: Vec<String>,
}

/// What `prune` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PruneSummary {
    /// True if nothing was changed because of `--dry-run`.
    pub dry_run: bool,
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that were, or would be, deleted.
    pub packs_deleted: u64,
    /// Packs whose used content was, or would be, packed again.
    pub packs_repacked: u64,
    /// Bytes that were freed.
    pub bytes_freed: u64,
    /// Bytes that were packed again.
    pub bytes_repacked: u64,
    /// Bytes in packs that no snapshot uses and that stay.
    pub bytes_unused_left: u64,
    /// Index objects that were merged.
    pub index_objects_merged: u64,
    /// Backups that had died and were ended.
    pub transactions_ended: u64,
    /// Bytes of unfinished objects that killed runs had left, and that were freed.
    pub temporary_bytes_freed: u64,
    /// How long it took.
    pub seconds_elapsed: f64,
}
