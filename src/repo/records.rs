//! The small records beside snapshots: open transactions, markers of forgotten snapshots, condemned lists, tags, history.
//!
//! Each is a document under a name of [`super::names`]; a type here says what its body holds.

use super::audit::AuditHead;
use super::bounded::Packs;
use super::document::{self, DocumentKind};
use super::{Repo, names};
use crate::error::Result;
use crate::ids::{HistoryId, PackId, SnapshotId};
use crate::metadata::FileTime;
use crate::storage::{self, ObjectName, Published};
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
}

impl WriterRecord {
    /// The record of the process that asks. The host is the machine's own name, whatever a snapshot is to say.
    pub fn of_this_process(started: FileTime) -> WriterRecord {
        WriterRecord {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: std::process::id(),
            started: started.seconds,
            boot: this_boot(),
        }
    }
}

/// The identity of this boot of this host; empty where the system does not tell.
pub fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
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
struct PackList {
    #[n(0)]
    seconds: i64,
    #[n(1)]
    packs: Packs,
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
    let name = names::transaction(id)?;
    document::decode(
        &document::read(repo.storage(), repo.keys(), DocumentKind::Transaction, &name)?.body,
        name.as_str(),
    )
}

/// Creates `forgotten/<id>`: from now on the snapshot is not live. Done already is done. `audit` is the record that says who
/// does it.
pub fn create_forgotten(repo: &Repo, id: SnapshotId, now: FileTime, audit: AuditHead) -> Result<Published> {
    let marker = Marker { seconds: now.seconds, audit: Some(audit) };
    create(repo, DocumentKind::Forgotten, &names::forgotten(id)?, &marker)
}

/// Reads which record of the audit log a marker follows.
pub fn read_forgotten(repo: &Repo, id: SnapshotId) -> Result<Option<AuditHead>> {
    let name = names::forgotten(id)?;
    let opened = document::read(repo.storage(), repo.keys(), DocumentKind::Forgotten, &name)?;
    Ok(document::decode::<Marker>(&opened.body, name.as_str())?.audit)
}

/// Writes a forgotten marker anew: for repair, since only its name counts.
pub fn rewrite_forgotten(repo: &Repo, name: &ObjectName, now: FileTime, audit: Option<AuditHead>) -> Result<()> {
    let body = document::encode(&Marker { seconds: now.seconds, audit })?;
    repo.storage().replace(name, &document::seal(repo.keys(), DocumentKind::Forgotten, name, &body)?)
}

/// Creates a condemned list or, under the name of its end, the final list.
pub fn create_pack_list(repo: &Repo, name: &ObjectName, packs: &[PackId], now: FileTime) -> Result<Published> {
    create(repo, DocumentKind::Condemned, name, &PackList { seconds: now.seconds, packs: Packs(packs.to_vec()) })
}

/// Reads a condemned or final list.
pub fn read_pack_list(repo: &Repo, name: &ObjectName) -> Result<Vec<PackId>> {
    let opened = document::read(repo.storage(), repo.keys(), DocumentKind::Condemned, name)?;
    let list: PackList = document::decode(&opened.body, name.as_str())?;
    Ok(list.packs.0)
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

/// What prunes have condemned and decided, as far as it is recorded.
#[derive(Debug, Default)]
pub struct Condemned {
    /// Packs of lists without an end: perhaps about to go. Nobody may begin to rely on them.
    pub open: HashSet<PackId>,
    /// Packs of final lists: gone, or about to be, for ever.
    pub ended: HashSet<PackId>,
    /// The number of the newest list.
    pub last_number: u64,
    /// The numbers of lists without an end.
    pub open_numbers: Vec<u64>,
}

impl Condemned {
    /// Reads every list.
    pub fn read(repo: &Repo) -> Result<Condemned> {
        let mut condemned = Condemned::default();
        let listed = repo.storage().list(names::CONDEMNED)?;
        let numbers: Vec<(u64, bool)> = listed.iter().filter_map(|l| names::condemned_number(&l.name)).collect();
        let ends: HashSet<u64> = numbers.iter().filter(|(_, is_end)| *is_end).map(|(n, _)| *n).collect();
        for &(number, is_end) in &numbers {
            condemned.last_number = condemned.last_number.max(number);
            if is_end {
                condemned.ended.extend(read_pack_list(repo, &names::condemned_end(number)?)?);
            } else if !ends.contains(&number) {
                condemned.open.extend(read_pack_list(repo, &names::condemned(number)?)?);
                condemned.open_numbers.push(number);
            }
        }
        Ok(condemned)
    }

    /// True if a writer must treat the pack as if it did not exist.
    pub fn contains(&self, pack: &PackId) -> bool {
        self.open.contains(pack) || self.ended.contains(pack)
    }
}

fn create<T: Encode<()>>(repo: &Repo, kind: DocumentKind, name: &ObjectName, value: &T) -> Result<Published> {
    let object = document::seal(repo.keys(), kind, name, &document::encode(value)?)?;
    storage::create_new(repo.storage(), name, &object)
}
