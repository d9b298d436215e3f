//! `backup`: saves the state of a source as a snapshot.
//!
//! Data flows one way: the *feed* walks the source beside the parent snapshot and says what has to be read; the
//! *coordinator* cuts that into tasks and keeps all order; *workers* read, scan, hash and code; *lanes* write packs. What
//! comes out in order goes into the tree, and the transaction commits it. All memory beyond small constants is file
//! content under way, which the coordinator bounds. Cuts, and so chunks, are the same whatever the number of threads.

mod approach;
mod assembly;
mod bases;
mod big_file;
mod coordinator;
mod deferred;
mod feed;
mod forecast;
mod gate;
mod held;
mod metadata_sink;
mod packs;
mod pipeline;
mod reading;
mod scan_ahead;
mod shared;
mod storer;
mod worker;

pub use gate::Unfinished;

use super::{Problems, Resources};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::SnapshotId;
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::audit;
use crate::repo::checkpoints::CheckpointRecord;
use crate::repo::records::WriterRecord;
use crate::repo::snapshots::{Snapshot, Totals, source_key};
use crate::repo::stream::StreamRef;
use crate::repo::transaction::Transaction;
use crate::source::excludes::Excludes;
use crate::source::scan::ScanOptions;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What is backed up.
pub enum Input<'a> {
    /// Files and directories: absolute paths, sorted, without duplicates.
    Paths(Vec<PathBuf>),
    /// A stream that is saved as one file.
    Stream {
        /// The name of the file.
        name: String,
        /// Where the bytes come from.
        reader: Box<dyn Read + Send + 'a>,
        /// Called at the end of the stream; an error means that the stream is not whole, and no snapshot is made.
        finish: Box<dyn FnOnce() -> Result<()> + Send + 'a>,
    },
}

/// How to back up.
pub struct BackupOptions<'a> {
    /// The host that the snapshot names.
    pub host: String,
    /// The name of the source, instead of host and paths.
    pub source: Option<String>,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// Notes of the snapshot.
    pub meta: BTreeMap<String, String>,
    /// Patterns of paths to leave out, in gitignore syntax.
    pub excludes: Vec<String>,
    /// Files that hold such patterns.
    pub exclude_from: Vec<PathBuf>,
    /// Keep to the file systems of the given paths.
    pub one_file_system: bool,
    /// Do everything except storing.
    pub dry_run: bool,
    /// Make no snapshot if it would equal its parent.
    pub skip_if_unchanged: bool,
    /// Read unchanged files too.
    pub reread: bool,
    /// How content is coded.
    pub compression: Compression,
    /// Cut all files by their content, whatever is in them.
    pub cuts_by_content: bool,
    /// How many steps a chunk may be from one that stands alone; 0: nothing is coded against earlier versions.
    pub delta_depth: u8,
    /// At most this many bytes of source a second.
    pub limit_read: Option<u64>,
    /// A checkpoint counts as left alone if nothing in its directory was modified within this time.
    pub settle: Duration,
    /// What becomes of unfinished checkpoints.
    pub unfinished: Unfinished,
    /// This run, as other hosts are to know it.
    pub writer: WriterRecord,
    /// When the run began.
    pub started: FileTime,
    /// The clock.
    pub now: &'a (dyn Fn() -> FileTime + Sync),
    /// How much of the machine to use.
    pub resources: Resources,
}

impl<'a> BackupOptions<'a> {
    /// A backup that begins now and of which nothing special is asked: no checkpoint has to have been left alone for a time.
    pub fn usual(host: &str, now: &'a (dyn Fn() -> FileTime + Sync), resources: Resources) -> Self {
        BackupOptions {
            host: host.to_owned(),
            source: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            excludes: Vec::new(),
            exclude_from: Vec::new(),
            one_file_system: false,
            dry_run: false,
            skip_if_unchanged: false,
            reread: false,
            compression: Compression::Auto,
            cuts_by_content: false,
            delta_depth: 4,
            limit_read: None,
            settle: Duration::ZERO,
            unfinished: Unfinished::Skip,
            writer: WriterRecord::of_this_process(now()),
            started: now(),
            now,
            resources,
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct BackupReport {
    /// The snapshot; none after a dry run, or if nothing had changed and that was asked for.
    pub snapshot: Option<SnapshotId>,
    /// The snapshot that unchanged files were taken from.
    pub parent: Option<SnapshotId>,
    /// Files that the parent did not have.
    pub files_new: u64,
    /// Files that the parent had otherwise.
    pub files_changed: u64,
    /// Files that were not read.
    pub files_unchanged: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, pipes and devices.
    pub others: u64,
    /// Sockets, which are not stored.
    pub sockets_skipped: u64,
    /// Entries that a pattern left out; what lies beneath them is not counted.
    pub entries_excluded: u64,
    /// Bytes of all files, holes included.
    pub bytes_logical: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes of content that the repository did not hold.
    pub bytes_new: u64,
    /// Bytes that were added to packs.
    pub bytes_stored: u64,
    /// Chunks that the repository did not hold.
    pub chunks_new: u64,
    /// Files that were left out or changed while they were read, and checkpoints that were left out.
    pub problems: Problems,
    /// The checkpoints that are in the snapshot, or would be, with their absolute paths.
    pub checkpoints: Vec<(Vec<u8>, CheckpointRecord)>,
    /// Checkpoints that are not in it because they are unfinished.
    pub checkpoints_left_out: u64,
    /// Files that belong to no checkpoint.
    files_beside: u64,
    /// True if this run's first transaction was revoked and it began again.
    pub retried_after_revocation: bool,
}

/// What a run brought in.
struct Harvest {
    tree: Option<StreamRef>,
    report: BackupReport,
}

/// Saves a snapshot.
pub fn backup(
    repo: &Repo,
    mut input: Input<'_>,
    options: &BackupOptions<'_>,
    observer: &dyn Observer,
) -> Result<BackupReport> {
    match attempt(repo, &mut input, options, observer) {
        // A stream cannot be read twice.
        Err(error) if error.kind() == Kind::Busy && matches!(input, Input::Paths(_)) => {
            observer.on_event(&Event::Warning { text: &format!("{error}; trying once more") });
            let mut report = attempt(repo, &mut input, options, observer)?;
            report.retried_after_revocation = true;
            Ok(report)
        }
        other => other,
    }
}

fn attempt(
    repo: &Repo,
    input: &mut Input<'_>,
    options: &BackupOptions<'_>,
    observer: &dyn Observer,
) -> Result<BackupReport> {
    let roots: Vec<Vec<u8>> = match input {
        Input::Paths(paths) => paths.iter().map(|p| p.as_os_str().as_bytes().to_vec()).collect(),
        Input::Stream { name, .. } => vec![name.as_bytes().to_vec()],
    };
    let scan = ScanOptions {
        excludes: Excludes::new(&options.excludes, &options.exclude_from)?,
        one_file_system: options.one_file_system,
    };
    let parent = newest_of_source(repo, options, &roots);
    let transaction = match options.dry_run {
        true => Transaction::rehearse(repo)?,
        false => Transaction::begin(repo, &options.writer)?,
    };
    let harvested = pipeline::run(&transaction, input, &scan, parent.as_ref(), options, observer);
    repo.storage().remarks().iter().for_each(|text| observer.on_event(&Event::Detail { text }));
    let harvest = match harvested {
        Ok(harvest) => harvest,
        Err(error) => {
            let error = transaction.reason_for(error);
            // The error matters more than whether the announcement could be taken back.
            let _ = transaction.abandon();
            return Err(error);
        }
    };
    conclude(transaction, harvest, parent, roots, options)
}

fn conclude(
    transaction: Transaction<'_>,
    harvest: Harvest,
    parent: Option<Snapshot>,
    roots: Vec<Vec<u8>>,
    options: &BackupOptions<'_>,
) -> Result<BackupReport> {
    let Harvest { tree, mut report } = harvest;
    report.parent = parent.as_ref().map(|p| p.id);
    if let Some(error) = nothing_finished(&report) {
        transaction.abandon()?;
        return Err(error);
    }
    let is_unchanged = parent.as_ref().is_some_and(|p| p.tree == tree);
    if options.dry_run || (options.skip_if_unchanged && is_unchanged) {
        transaction.abandon()?;
        return Ok(report);
    }
    let snapshot = Snapshot {
        id: transaction.id(),
        started: options.started,
        finished: (options.now)(),
        host: options.host.clone(),
        source: options.source.clone(),
        roots,
        tags: options.tags.iter().cloned().collect::<BTreeSet<_>>(),
        meta: options.meta.clone(),
        tree,
        parent: report.parent,
        totals: Totals {
            files: report.files_new + report.files_changed + report.files_unchanged,
            directories: report.directories,
            others: report.others,
            bytes: report.bytes_logical,
            bytes_new: report.bytes_new,
            bytes_stored: report.bytes_stored,
        },
        problems: report.problems.count,
        program: concat!("ckpt ", env!("CARGO_PKG_VERSION")).to_owned(),
        checkpoints: report.checkpoints.iter().map(|(_, record)| record.clone()).collect(),
        // Read now, so that no later record can be cut off unseen.
        audit: Some(audit::head(transaction.repo())?),
    };
    report.snapshot = Some(transaction.commit(snapshot)?.id);
    Ok(report)
}

/// The error of a run that found checkpoints and nothing else, and none of them finished.
fn nothing_finished(report: &BackupReport) -> Option<Error> {
    if report.checkpoints_left_out == 0 || !report.checkpoints.is_empty() || report.files_beside > 0 {
        return None;
    }
    let first = report.problems.kept.first();
    let reason = first
        .map_or_else(String::new, |problem| format!(": {}: {}", String::from_utf8_lossy(&problem.path), problem.error));
    let text = match report.checkpoints_left_out {
        1 => format!("no snapshot was made, because the checkpoint is not finished{reason}"),
        count => format!("no snapshot was made, because none of {count} checkpoints is finished; the first{reason}"),
    };
    Some(
        Error::new(Kind::Failed, text)
            .with_hint("wait until the trainer has written it, or store it as it is with --unfinished keep"),
    )
}

/// The newest snapshot of the same source with the same roots: what unchanged files are taken from.
fn newest_of_source(repo: &Repo, options: &BackupOptions<'_>, roots: &[Vec<u8>]) -> Option<Snapshot> {
    let key = source_key(&options.host, options.source.as_deref(), roots);
    let is_ours = |s: &Snapshot| s.source_key() == key && s.roots == roots;
    repo.snapshots().into_iter().filter(is_ours).max_by_key(|s| (s.started, s.id))
}

/// The error of a run that the user has asked to end.
fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted; what was stored so far is reused by the next backup")
}
