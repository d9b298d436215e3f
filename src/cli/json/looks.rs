//! The data of commands that answer with one document.

use super::checkpoints::CheckpointItem;
use super::{path_text, time_text};
use ckpt::metadata::FileKind;
use ckpt::repo::entry::Entry;
use ckpt::repo::snapshots::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// A repository that was created.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InitDocument {
    /// Its id.
    pub repository: String,
    /// Where it stands.
    pub location: String,
    /// Whether the storage creates names exclusively, which safe pruning beside backups needs.
    pub exclusive_create: bool,
    /// The key slot of the first key, an admin's; null without encryption.
    pub key_slot: Option<String>,
    /// What the user should know about the place.
    pub notes: Vec<String>,
}

/// The snapshots of a repository.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotsDocument {
    /// Oldest first.
    pub snapshots: Vec<SnapshotItem>,
    /// How many snapshots could not be read because they are damaged.
    pub damaged: u64,
}

/// A snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotItem {
    /// Its id.
    pub id: String,
    /// When the backup began.
    pub started: Option<String>,
    /// When it was complete.
    pub finished: Option<String>,
    /// The host that was backed up.
    pub host: String,
    /// The name given with `--source`.
    pub source: Option<String>,
    /// What policies and parents go by: the source's name, or host and paths.
    pub source_key: String,
    /// The paths that were backed up.
    pub roots: Vec<RootItem>,
    /// Sorted.
    pub tags: Vec<String>,
    /// What was given with `--meta`.
    pub meta: BTreeMap<String, String>,
    /// The snapshot that unchanged files were compared with.
    pub parent: Option<String>,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, pipes, devices.
    pub others: u64,
    /// Bytes of content of all files.
    pub bytes: u64,
    /// Bytes of content that the repository did not hold before.
    pub bytes_new: u64,
    /// Bytes that the new content takes in the repository.
    pub bytes_stored: u64,
    /// Files that could not be saved as asked.
    pub problems: u64,
    /// True if something is missing.
    pub incomplete: bool,
    /// The program that made it.
    pub program: String,
    /// The checkpoints in it.
    pub checkpoints: Vec<CheckpointItem>,
}

/// A path that was backed up.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RootItem {
    /// The absolute path, or the name given with `--stdin`.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
}

/// A file, directory or other entry of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EntryItem {
    /// The path that was backed up and holds the entry.
    pub root: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub root_bytes: Option<String>,
    /// The path below the root; empty for the root itself.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// `file`, `directory`, `symlink`, `fifo`, `char_device` or `block_device`.
    pub kind: String,
    /// Permission bits.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Bytes of content.
    pub bytes: u64,
    /// When the content last changed.
    pub mtime: Option<String>,
    /// Where a symbolic link points.
    pub target: Option<String>,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub target_bytes: Option<String>,
    /// True if the file changed while it was read: its content may mix two states.
    pub changed_while_read: bool,
}

/// What stands before the entries of `ls`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListHead {
    /// The snapshot that was listed.
    pub snapshot: String,
    /// The checkpoints in the part of it that was listed.
    pub checkpoints: Vec<CheckpointItem>,
}

/// What stands behind the entries of `ls`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListTail {
    /// How many entries there are.
    pub entries_total: u64,
    /// How many parts of the listing could not be read because they are damaged.
    pub damaged: u64,
}

/// `ls`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListDocument {
    #[serde(flatten)]
    head: ListHead,
    /// Sorted by path.
    entries: Vec<EntryItem>,
    #[serde(flatten)]
    tail: ListTail,
}

/// What stands before the changes of `diff`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffHead {
    /// The snapshot on the left.
    pub before: String,
    /// The snapshot on the right.
    pub after: String,
}

/// What stands behind the changes of `diff`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffTail {
    /// Entries only in `after`.
    pub added: u64,
    /// Entries only in `before`.
    pub removed: u64,
    /// Entries whose content or kind differs.
    pub modified: u64,
    /// Entries whose metadata alone differs.
    pub metadata_only: u64,
    /// Entries that are the same.
    pub unchanged: u64,
    /// Bytes of content that were added.
    pub bytes_added: u64,
    /// Bytes of content that were removed.
    pub bytes_removed: u64,
}

/// An entry that differs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffChange {
    /// The path.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// `added`, `removed`, `modified`, `metadata_only` or `type_changed`.
    pub change: String,
    /// Bytes of content before.
    pub bytes_before: Option<u64>,
    /// Bytes of content after.
    pub bytes_after: Option<u64>,
}

/// `diff`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffDocument {
    #[serde(flatten)]
    head: DiffHead,
    /// Sorted by path.
    changes: Vec<DiffChange>,
    #[serde(flatten)]
    tail: DiffTail,
}

/// What stands before the matches of `find`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FindHead {
    /// What was looked for.
    pub patterns: Vec<String>,
    /// How many snapshots were searched.
    pub snapshots_searched: u64,
}

/// What stands behind the matches of `find`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FindTail {
    /// How many matches there are.
    pub matches_total: u64,
    /// How many parts of lists of files could not be read because they are damaged.
    pub damaged: u64,
}

/// An entry that matches.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FindMatch {
    /// The snapshot that holds it.
    pub snapshot: String,
    /// The entry.
    #[serde(flatten)]
    pub entry: EntryItem,
}

/// `find`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FindDocument {
    #[serde(flatten)]
    head: FindHead,
    /// By snapshot, oldest first.
    matches: Vec<FindMatch>,
    #[serde(flatten)]
    tail: FindTail,
}

/// `stats`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StatsDocument {
    /// Live snapshots.
    pub snapshots: u64,
    /// Bytes of content of all snapshots, each counted in full.
    pub logical_bytes: u64,
    /// Bytes of the distinct chunks among them.
    pub unique_bytes: u64,
    /// Bytes that those chunks take when coded.
    pub stored_bytes: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Bytes of the parity of packs.
    pub parity_bytes: u64,
    /// Bytes of all objects.
    pub repository_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// What each codec holds.
    pub by_codec: Vec<CodecItem>,
}

/// What one codec holds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CodecItem {
    /// Its name.
    pub codec: String,
    /// Frames.
    pub frames: u64,
    /// Their bytes before coding.
    pub raw_bytes: u64,
    /// Their bytes after coding.
    pub stored_bytes: u64,
}

/// `info`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InfoDocument {
    /// The repository's id.
    pub repository: String,
    /// Where it stands.
    pub location: String,
    /// The version of its format.
    pub format_version: u32,
    /// When it was created.
    pub created: Option<String>,
    /// The least bytes of a chunk.
    pub chunk_bytes_min: u64,
    /// The usual bytes of a chunk.
    pub chunk_bytes_average: u64,
    /// The most bytes of a chunk.
    pub chunk_bytes_max: u64,
    /// The bytes at which a pack is complete.
    pub pack_bytes: u64,
    /// Whether content is encrypted.
    pub encrypted: bool,
    /// What the key that opened it allows: `put`, `read`, `prune` or `admin`; null without encryption.
    pub role: Option<String>,
    /// The slot of that key.
    pub key_slot: Option<String>,
    /// How many key slots there are.
    pub key_slots: u64,
    /// Whether packs carry parity.
    pub parity: bool,
    /// Whether the storage creates names exclusively, which safe pruning beside backups needs.
    pub exclusive_create: bool,
    /// Where this host keeps its index.
    pub cache_path: String,
    /// Live snapshots.
    pub snapshots: u64,
    /// Packs.
    pub packs: u64,
    /// When data were last read and verified.
    pub last_verified: Option<String>,
    /// Packs whose data were never read and verified.
    pub packs_never_read: u64,
    /// Different finished checkpoints in all snapshots.
    pub checkpoints: u64,
    /// The steps of those, sorted.
    pub steps: Vec<u64>,
}

/// `tag`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TagDocument {
    /// How many snapshots have other tags now.
    pub changed: u64,
}

impl SnapshotItem {
    /// The item of `snapshot`.
    pub fn new(snapshot: &Snapshot) -> Self {
        let roots = snapshot.roots.iter().map(|root| {
            let (path, path_bytes) = path_text(root);
            RootItem { path, path_bytes }
        });
        SnapshotItem {
            id: snapshot.id.to_hex(),
            started: time_text(snapshot.started),
            finished: time_text(snapshot.finished),
            host: snapshot.host.clone(),
            source: snapshot.source.clone(),
            source_key: snapshot.source_key(),
            roots: roots.collect(),
            tags: snapshot.tags.iter().cloned().collect(),
            meta: snapshot.meta.clone(),
            parent: snapshot.parent.map(|id| id.to_hex()),
            files: snapshot.totals.files,
            directories: snapshot.totals.directories,
            others: snapshot.totals.others,
            bytes: snapshot.totals.bytes,
            bytes_new: snapshot.totals.bytes_new,
            bytes_stored: snapshot.totals.bytes_stored,
            problems: snapshot.problems,
            incomplete: snapshot.is_incomplete(),
            program: snapshot.program.clone(),
            checkpoints: snapshot.checkpoints.iter().map(|record| CheckpointItem::new(snapshot, record)).collect(),
        }
    }
}

impl EntryItem {
    /// The item of `entry`, which belongs to `snapshot`.
    pub fn new(snapshot: &Snapshot, entry: &Entry) -> Self {
        let root = usize::try_from(entry.root).ok().and_then(|root| snapshot.roots.get(root));
        let (root, root_bytes) = path_text(root.map_or(&[], Vec::as_slice));
        let (path, path_bytes) = path_text(&entry.path);
        let metadata = &entry.metadata;
        let (kind, target) = match &metadata.kind {
            FileKind::Regular => ("file", None),
            FileKind::Directory => ("directory", None),
            FileKind::Symlink { target } => ("symlink", Some(path_text(target))),
            FileKind::Fifo => ("fifo", None),
            FileKind::CharDevice { .. } => ("char_device", None),
            FileKind::BlockDevice { .. } => ("block_device", None),
        };
        let (target, target_bytes) = target.map_or((None, None), |(text, bytes)| (Some(text), bytes));
        EntryItem {
            root,
            root_bytes,
            path,
            path_bytes,
            kind: kind.to_owned(),
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            bytes: metadata.size,
            mtime: time_text(metadata.mtime),
            target,
            target_bytes,
            changed_while_read: entry.changed_while_read,
        }
    }
}
