//! The small records beside snapshots: open transactions, markers of forgotten snapshots, tags, history.
//!
//! Each is a document under a name of [`super::names`]; a type here says what its body holds. What prunes record has a file
//! of its own, `condemned.rs`.

use super::audit::AuditHead;
use super::bounded::Packs;
use super::document::{self, DocumentKind};
use super::{Repo, names};
use crate::error::{Kind, Result};
use crate::ids::{HistoryId, PackId, SnapshotId};
use crate::metadata::FileTime;
use crate::storage::{self, Listed, ObjectName, Published};
use minicbor::{Decode, Encode};
use std::collections::{BTreeSet, HashSet};

/// A writer that has begun: who it is, for messages and for judging whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WriterRecord {
    /// The host it runs on.
    #[n(0)]
    pub host: String,
    /// Its process number there.
    #[n(1)]
    pub process: u32,
    /// When it began, seconds since 1970.
    #[n(2)]
    pub started: i64,
    /// The identity of the boot of that host, so that a process number from before is not taken for a living one.
    #[n(3)]
    pub boot: String,
    /// When it gave this sign of life, seconds since 1970; none in its announcement.
    #[n(4)]
    pub signed: Option<i64>,
}

impl WriterRecord {
    /// The record of the process that asks. The host is the machine's own name, whatever a snapshot is to say.
    pub fn of_this_process(started: FileTime) -> WriterRecord {
        WriterRecord {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: std::process::id(),
            started: started.seconds,
            boot: this_boot(),
            signed: None,
        }
    }
}

/// The identity of this boot of this host and of the space of process numbers that this process sees, since containers
/// may share a host's name and boot; empty where the system does not tell.
pub fn this_boot() -> String {
    let Ok(boot) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else { return String::new() };
    let space = std::fs::read_link("/proc/self/ns/pid").map(|space| space.to_string_lossy().into_owned());
    format!("{} {}", boot.trim(), space.unwrap_or_default()).trim_end().to_owned()
}

/// A marker: who and when, for people.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Marker {
    #[n(0)]
    seconds: i64,
    #[n(1)]
    audit: Option<AuditHead>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct TagSet {
    #[n(0)]
    tags: BTreeSet<String>,
}

/// What a run verified.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HistoryRecord {
    /// `verify` ...
    #[n(0)]
    pub operation: String,
    /// When it began, seconds since 1970.
    #[n(1)]
    pub started: i64,
    /// When it ended, seconds since 1970.
    #[n(2)]
    pub finished: i64,
    /// `sound` or `damaged`.
    #[n(3)]
    pub outcome: String,
    /// The packs that were read whole and found sound.
    #[n(4)]
    packs: Packs,
}

impl HistoryRecord {
    /// A record of `operation` with the packs it found sound.
    pub fn new(operation: &str, started: FileTime, finished: FileTime, outcome: &str, packs: &[PackId]) -> Self {
        HistoryRecord {
            operation: operation.to_owned(),
            started: started.seconds,
            finished: finished.seconds,
            outcome: outcome.to_owned(),
            packs: Packs(packs.to_vec()),
        }
    }

    /// The packs that were read whole and found sound.
    pub fn packs(&self) -> &[PackId] {
        &self.packs.0
    }
}

/// Creates `transactions/<id>` exclusively.
pub fn create_transaction(repo: &Repo, id: SnapshotId, writer: &WriterRecord) -> Result<Published> {
    create(repo, DocumentKind::Transaction, &names::transaction(id)?, writer)
}

/// Reads who began the transaction.
pub fn read_transaction(repo: &Repo, id: SnapshotId) -> Result<WriterRecord> {
    read_writer(repo, &names::transaction(id)?)
}

/// An error if what stands under a name of [`names::TRANSACTIONS`] is no announcement and no sign of life.
pub fn check_transaction(repo: &Repo, name: &ObjectName) -> Result<()> {
    read_writer(repo, name).map(|_| ())
}

fn read_writer(repo: &Repo, name: &ObjectName) -> Result<WriterRecord> {
    document::decode(&document::read(repo.storage(), repo.keys(), DocumentKind::Transaction, name)?.body, name.as_str())
}

/// Creates sign of life number `number` of a transaction, exclusively.
pub fn create_sign_of_life(
    repo: &Repo,
    id: SnapshotId,
    number: u64,
    writer: &WriterRecord,
    now: FileTime,
) -> Result<Published> {
    let sign = WriterRecord { signed: Some(now.seconds), ..writer.clone() };
    create(repo, DocumentKind::Transaction, &names::sign_of_life(id, number)?, &sign)
}

/// Creates `forgotten/<id>`: from now on the snapshot is not live. Done already is done, unless what stands there does not
/// count, see [`forgotten`]. `audit` is the record that says who does it.
pub fn create_forgotten(repo: &Repo, id: SnapshotId, now: FileTime, audit: AuditHead) -> Result<Published> {
    let marker = Marker { seconds: now.seconds, audit: Some(audit) };
    let name = names::forgotten(id)?;
    let published = create(repo, DocumentKind::Forgotten, &name, &marker)?;
    if published == Published::AlreadyExists && !counts(repo, id)? {
        rewrite_forgotten(repo, &name, now, Some(audit))?;
        return Ok(Published::Created);
    }
    Ok(published)
}

/// The snapshots that the markers in `listed` say are forgotten; those that do not count are given to `made_up`.
///
/// Where nothing is sealed the name of a marker counts, whatever it holds, so that rot brings nothing back to life. Where
/// documents are sealed, one that does not open may have been made up by whoever can write to the storage, and would have
/// the next prune delete what the snapshot needs: there the snapshot counts as live.
pub fn forgotten(repo: &Repo, listed: &[Listed], made_up: &mut dyn FnMut(SnapshotId)) -> Result<HashSet<SnapshotId>> {
    let mut ids: HashSet<SnapshotId> =
        listed.iter().filter_map(|l| names::snapshot_id(names::FORGOTTEN, &l.name)).collect();
    if !repo.keys().is_encrypted() {
        return Ok(ids);
    }
    let known = repo.index().forgotten()?;
    let mut opened = Vec::new();
    for id in ids.clone().difference(&known) {
        if counts(repo, *id)? {
            opened.push(*id);
        } else {
            made_up(*id);
            ids.remove(id);
        }
    }
    if !opened.is_empty() {
        repo.index().add_forgotten(&opened)?;
    }
    Ok(ids)
}

/// True if the marker of this snapshot, which is there, makes it forgotten.
pub fn counts(repo: &Repo, id: SnapshotId) -> Result<bool> {
    if !repo.keys().is_encrypted() {
        return Ok(true);
    }
    match read_forgotten(repo, id) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing | Kind::Unreachable) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads which record of the audit log a marker follows.
pub fn read_forgotten(repo: &Repo, id: SnapshotId) -> Result<Option<AuditHead>> {
    let name = names::forgotten(id)?;
    let opened = document::read(repo.storage(), repo.keys(), DocumentKind::Forgotten, &name)?;
    Ok(document::decode::<Marker>(&opened.body, name.as_str())?.audit)
}

/// Writes a forgotten marker anew: where only its name counts, or where it does not count as it is.
pub fn rewrite_forgotten(repo: &Repo, name: &ObjectName, now: FileTime, audit: Option<AuditHead>) -> Result<()> {
    let body = document::encode(&Marker { seconds: now.seconds, audit })?;
    repo.storage().replace(name, &document::seal(repo.keys(), DocumentKind::Forgotten, name, &body)?)
}

/// Creates the tags of a snapshot after change number `change`, exclusively.
pub fn create_tags(repo: &Repo, id: SnapshotId, change: u64, tags: &BTreeSet<String>) -> Result<Published> {
    create(repo, DocumentKind::Tags, &names::tags(id, change)?, &TagSet { tags: tags.clone() })
}

/// Reads the tags of a snapshot after change number `change`.
pub fn read_tags(repo: &Repo, id: SnapshotId, change: u64) -> Result<BTreeSet<String>> {
    let name = names::tags(id, change)?;
    let set: TagSet =
        document::decode(&document::read(repo.storage(), repo.keys(), DocumentKind::Tags, &name)?.body, name.as_str())?;
    Ok(set.tags)
}

/// Creates a history record under a fresh id.
pub fn create_history(repo: &Repo, id: HistoryId, record: &HistoryRecord) -> Result<Published> {
    create(repo, DocumentKind::History, &names::history(id)?, record)
}

/// Reads a history record.
pub fn read_history(repo: &Repo, id: HistoryId) -> Result<HistoryRecord> {
    let name = names::history(id)?;
    document::decode(&document::read(repo.storage(), repo.keys(), DocumentKind::History, &name)?.body, name.as_str())
}

pub(super) fn create<T: Encode<()>>(
    repo: &Repo,
    kind: DocumentKind,
    name: &ObjectName,
    value: &T,
) -> Result<Published> {
    let object = document::seal(repo.keys(), kind, name, &document::encode(value)?)?;
    storage::create_new(repo.storage(), name, &object)
}
