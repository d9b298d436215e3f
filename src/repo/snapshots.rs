//! Snapshots: what a backup saved, when, of what, and how to choose one.
//!
//! A snapshot is the object `snapshots/<id>`, created exclusively as the last step of a transaction. The same name holds
//! [`Outcome::Revoked`] or [`Outcome::Repacked`] when the transaction ended otherwise. Nothing here is ever rewritten:
//! forgetting makes a marker, changing tags makes a numbered record.

use super::audit::AuditHead;
use super::bounded::{List, Notes};
use super::checkpoints::{self, CheckpointRecord, RECORDS_MAX, StoredRecord, holds_step, steps_in_words, steps_of};
use super::document::{self, DocumentKind};
use super::keys::Keys;
use super::names;
use super::stream::StreamRef;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::metadata::FileTime;
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet};

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A snapshot was saved.
    Saved(Box<Snapshot>),
    /// It was given up, by itself or by a prune; nothing it wrote is visible.
    Revoked,
    /// It was a prune's own: packs were rewritten, no snapshot came of it.
    Repacked,
}

/// One saved state of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name: the transaction's id.
    pub id: SnapshotId,
    /// When the backup began: everything older than this is in it.
    pub started: FileTime,
    /// When it was committed.
    pub finished: FileTime,
    /// The host it was made on.
    pub host: String,
    /// The name of the source, when one was given.
    pub source: Option<String>,
    /// The absolute paths that were backed up, sorted.
    pub roots: Vec<Vec<u8>>,
    /// Its tags now.
    pub tags: BTreeSet<String>,
    /// What the user noted about it.
    pub meta: BTreeMap<String, String>,
    /// Its entries; none if it holds nothing.
    pub tree: Option<StreamRef>,
    /// The snapshot that unchanged files were taken from.
    pub parent: Option<SnapshotId>,
    /// What it holds and what it added.
    pub totals: Totals,
    /// How many files were left out or changed while they were read.
    pub problems: u64,
    /// The program that made it: `ckpt 0.1.0`.
    pub program: String,
    /// The checkpoints that it holds.
    pub checkpoints: Vec<CheckpointRecord>,
    /// How far the audit log went when it was saved; none in what a program without one saved.
    pub audit: Option<AuditHead>,
}

/// Counts of a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Totals {
    /// Regular files.
    #[n(0)]
    pub files: u64,
    /// Directories.
    #[n(1)]
    pub directories: u64,
    /// Symbolic links, pipes and devices.
    #[n(2)]
    pub others: u64,
    /// Bytes of all files, holes included.
    #[n(3)]
    pub bytes: u64,
    /// Bytes of content that no earlier snapshot held.
    #[n(4)]
    pub bytes_new: u64,
    /// Bytes that this snapshot added to the packs.
    #[n(5)]
    pub bytes_stored: u64,
}

impl Snapshot {
    /// The identity of its source, for parents and policies: `--source NAME`, or the host and the paths.
    pub fn source_key(&self) -> String {
        source_key(&self.host, self.source.as_deref(), &self.roots)
    }

    /// True if files were left out or changed while they were read.
    pub fn is_incomplete(&self) -> bool {
        self.problems > 0
    }
}

/// The identity of a source, see [`Snapshot::source_key`].
pub fn source_key(host: &str, source: Option<&str>, roots: &[Vec<u8>]) -> String {
    match source {
        Some(name) => name.to_owned(),
        None => {
            let paths: Vec<_> = roots.iter().map(|r| String::from_utf8_lossy(r)).collect();
            format!("{host}:{}", paths.join(","))
        }
    }
}

/// The most roots, tags and notes of a snapshot that are believed.
const LIST_MAX: usize = 65_536;

#[derive(Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    outcome: u8,
    #[n(1)]
    started: Option<(i64, u32)>,
    #[n(2)]
    finished: Option<(i64, u32)>,
    #[n(3)]
    host: Option<String>,
    #[n(4)]
    source: Option<String>,
    #[n(5)]
    roots: Option<List<minicbor::bytes::ByteVec, LIST_MAX>>,
    #[n(6)]
    tags: Option<List<String, LIST_MAX>>,
    #[n(7)]
    meta: Option<Notes<LIST_MAX>>,
    #[n(8)]
    tree: Option<StreamRef>,
    #[cbor(n(9), with = "minicbor::bytes")]
    parent: Option<Vec<u8>>,
    #[n(10)]
    totals: Option<Totals>,
    #[n(11)]
    problems: Option<u64>,
    #[n(12)]
    program: Option<String>,
    #[cbor(n(13), with = "minicbor::bytes")]
    id: Vec<u8>,
    #[n(14)]
    checkpoints: Option<List<StoredRecord, RECORDS_MAX>>,
    #[n(15)]
    audit: Option<AuditHead>,
}

impl Outcome {
    /// The object that stands under `snapshots/<id>`.
    pub fn seal(&self, keys: &Keys, id: SnapshotId) -> Result<Vec<u8>> {
        let (outcome, snapshot) = match self {
            Outcome::Saved(snapshot) => (0, Some(snapshot)),
            Outcome::Revoked => (1, None),
            Outcome::Repacked => (2, None),
        };
        let time = |t: FileTime| (t.seconds, t.nanoseconds);
        let stored = Stored {
            outcome,
            started: snapshot.map(|s| time(s.started)),
            finished: snapshot.map(|s| time(s.finished)),
            host: snapshot.map(|s| s.host.clone()),
            source: snapshot.and_then(|s| s.source.clone()),
            roots: snapshot.map(|s| List(s.roots.iter().map(|r| r.clone().into()).collect())),
            tags: snapshot.map(|s| List(s.tags.iter().cloned().collect())),
            meta: snapshot.map(|s| Notes(s.meta.clone())),
            tree: snapshot.and_then(|s| s.tree),
            parent: snapshot.and_then(|s| s.parent).map(|p| p.as_bytes().to_vec()),
            totals: snapshot.map(|s| s.totals),
            problems: snapshot.map(|s| s.problems),
            program: snapshot.map(|s| s.program.clone()),
            id: id.as_bytes().to_vec(),
            checkpoints: snapshot.and_then(|s| checkpoints::to_stored(&s.checkpoints)).map(List),
            audit: snapshot.and_then(|s| s.audit),
        };
        document::seal(keys, DocumentKind::Snapshot, &names::snapshot(id)?, &document::encode(&stored)?)
    }

    /// Reads the object that stands under `snapshots/<id>`; also whether both copies in it are sound.
    pub fn open(keys: &Keys, id: SnapshotId, object: &[u8]) -> Result<(Outcome, bool)> {
        let opened = document::open(keys, DocumentKind::Snapshot, &names::snapshot(id)?, object)?;
        let stored: Stored = document::decode(&opened.body, "a snapshot")?;
        if stored.id != id.as_bytes() {
            return Err(Error::damaged("the snapshot of another transaction stands under this name"));
        }
        let outcome = match stored.outcome {
            0 => Outcome::Saved(Box::new(from_stored(id, stored)?)),
            1 => Outcome::Revoked,
            2 => Outcome::Repacked,
            other => {
                return Err(Error::new(Kind::FormatTooNew, format!("a transaction ended in the unknown way {other}")));
            }
        };
        Ok((outcome, opened.both_copies_sound))
    }
}

fn from_stored(id: SnapshotId, stored: Stored) -> Result<Snapshot> {
    let short = || Error::damaged("a snapshot lacks a field");
    let time = |t: Option<(i64, u32)>| match t.ok_or_else(short)? {
        (seconds, nanoseconds @ 0..=999_999_999) => Ok(FileTime { seconds, nanoseconds }),
        _ => Err(Error::damaged("a snapshot has an impossible time")),
    };
    let roots: Vec<Vec<u8>> = stored.roots.ok_or_else(short)?.0.into_iter().map(Vec::from).collect();
    Ok(Snapshot {
        id,
        started: time(stored.started)?,
        finished: time(stored.finished)?,
        host: stored.host.ok_or_else(short)?,
        source: stored.source,
        checkpoints: checkpoints::from_stored(stored.checkpoints.map(|list| list.0).unwrap_or_default(), roots.len())?,
        roots,
        tags: stored.tags.unwrap_or_default().0.into_iter().collect(),
        meta: stored.meta.unwrap_or_default().0,
        tree: stored.tree,
        parent: stored.parent.map(|p| SnapshotId::from_slice(&p)).transpose()?,
        totals: stored.totals.unwrap_or_default(),
        problems: stored.problems.unwrap_or(0),
        program: stored.program.unwrap_or_default(),
        audit: stored.audit,
    })
}

/// What a selector says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorBase {
    /// The one whose id begins with these hexadecimal digits, at least four.
    Id(String),
    /// The newest.
    Latest,
    /// The newest with this tag.
    Tag(String),
    /// The newest that was begun at or before this instant.
    At(FileTime),
    /// The newest that holds the finished checkpoint of this step.
    Step(u64),
}

/// What narrows a choice of snapshots; everything given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Made on this host.
    pub host: Option<String>,
    /// Of the source with this name or key.
    pub source: Option<String>,
    /// Of which this absolute path is a root, or lies beneath one.
    pub path: Option<Vec<u8>>,
    /// Carrying all these tags.
    pub tags: Vec<String>,
}

impl Narrow {
    /// True if the snapshot fits.
    pub fn admits(&self, snapshot: &Snapshot) -> bool {
        let key = snapshot.source_key();
        self.host.as_ref().is_none_or(|host| *host == snapshot.host)
            && self.source.as_ref().is_none_or(|s| snapshot.source.as_ref() == Some(s) || key == *s)
            && self.path.as_ref().is_none_or(|p| snapshot.roots.iter().any(|r| crate::paths::is_beneath(p, r)))
            && self.tags.iter().all(|tag| snapshot.tags.contains(tag))
    }

    fn is_empty(&self) -> bool {
        *self == Narrow::default()
    }
}

/// Chooses one of `snapshots`.
///
/// [`Kind::NotFound`] if none fits; [`Kind::Usage`] if an id prefix fits several, or if the newest of several sources was
/// asked for without saying which.
pub fn select<'a>(snapshots: &'a [Snapshot], base: &SelectorBase, narrow: &Narrow) -> Result<&'a Snapshot> {
    let fitting: Vec<&Snapshot> = snapshots.iter().filter(|s| narrow.admits(s)).collect();
    let newest = |list: &mut dyn Iterator<Item = &&'a Snapshot>| list.max_by_key(|s| (s.started, s.id)).copied();
    match base {
        SelectorBase::Id(prefix) => select_by_id(&fitting, prefix),
        SelectorBase::Tag(tag) => newest(&mut fitting.iter().filter(|s| s.tags.contains(tag)))
            .ok_or_else(|| not_found(snapshots, &format!("no snapshot has the tag {tag:?}"))),
        SelectorBase::Latest => {
            one_source(&fitting, narrow)?;
            newest(&mut fitting.iter()).ok_or_else(|| not_found(snapshots, "no snapshot fits"))
        }
        SelectorBase::At(instant) => {
            one_source(&fitting, narrow)?;
            newest(&mut fitting.iter().filter(|s| s.started <= *instant))
                .ok_or_else(|| not_found(snapshots, "no snapshot is as old as that"))
        }
        SelectorBase::Step(step) => {
            let holding: Vec<&Snapshot> = fitting.iter().copied().filter(|s| holds_step(s, *step, narrow)).collect();
            // A step of another run would look just as good.
            one_source(&holding, narrow)?;
            newest(&mut holding.iter()).ok_or_else(|| no_step(snapshots, &fitting, *step))
        }
    }
}

fn select_by_id<'a>(fitting: &[&'a Snapshot], prefix: &str) -> Result<&'a Snapshot> {
    let prefix = prefix.to_ascii_lowercase();
    let mut matches = fitting.iter().filter(|s| s.id.to_hex().starts_with(&prefix));
    match (matches.next(), matches.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Error::new(Kind::NotFound, format!("no snapshot's id begins with {prefix}"))
            .with_hint("`ckpt snapshots` lists them")),
        (Some(a), Some(b)) => Err(Error::new(
            Kind::Usage,
            format!("{prefix} is the beginning of several ids, {} and {} among them", a.id, b.id),
        )
        .with_hint("give more digits")),
    }
}

fn one_source(fitting: &[&Snapshot], narrow: &Narrow) -> Result<()> {
    let sources: BTreeSet<String> = fitting.iter().map(|s| s.source_key()).collect();
    if sources.len() <= 1 || !narrow.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = sources.into_iter().collect();
    Err(Error::new(Kind::Usage, format!("the repository holds several sources: {}", list.join("; ")))
        .with_hint("say which with --source, --host or --path, or give a snapshot's id"))
}

fn no_step(all: &[Snapshot], fitting: &[&Snapshot], step: u64) -> Error {
    let there = steps_in_words(&steps_of(fitting.iter().copied()));
    let there = if there.is_empty() { "none at all" } else { &there };
    not_found(all, &format!("no snapshot holds a finished checkpoint of step {step}; what there is: {there}"))
}

fn not_found(all: &[Snapshot], what: &str) -> Error {
    if all.is_empty() {
        Error::new(Kind::NotFound, "the repository holds no snapshot yet").with_hint("make one with `ckpt backup PATH`")
    } else {
        Error::new(Kind::NotFound, what).with_hint("`ckpt snapshots` lists them")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn snapshot(n: u8, host: &str, seconds: i64) -> Snapshot {
        Snapshot {
            id: SnapshotId::from_bytes([n; 16]),
            started: FileTime { seconds, nanoseconds: 1 },
            finished: FileTime { seconds: seconds + 1, nanoseconds: 0 },
            host: host.to_owned(),
            source: None,
            roots: vec![b"/data".to_vec()],
            tags: BTreeSet::from([format!("t{n}")]),
            meta: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            tree: None,
            parent: Some(SnapshotId::from_bytes([9; 16])),
            totals: Totals { files: 1, bytes: 2, ..Totals::default() },
            problems: 3,
            program: "ckpt test".to_owned(),
            checkpoints: Vec::new(),
            audit: Some(AuditHead { number: 4, hash: [n; 32] }),
        }
    }

    #[test]
    fn every_outcome_round_trips_and_is_bound_to_its_name() {
        let saved = snapshot(1, "h", 5);
        for outcome in [Outcome::Saved(Box::new(saved.clone())), Outcome::Revoked, Outcome::Repacked] {
            let object = outcome.seal(&Keys::plain(), saved.id).expect("small");
            assert_eq!(Outcome::open(&Keys::plain(), saved.id, &object).expect("own bytes"), (outcome, true));
            assert!(Outcome::open(&Keys::plain(), SnapshotId::from_bytes([2; 16]), &object).is_err());
        }
    }

    #[test]
    fn selection_by_id_tag_time_and_source() {
        let all = [snapshot(0x11, "a", 10), snapshot(0x12, "a", 20), snapshot(0x21, "a", 30)];
        let pick = |base| select(&all, &base, &Narrow::default()).map(|s| s.id.as_bytes()[0]).map_err(|e| e.kind());
        assert_eq!(pick(SelectorBase::Latest), Ok(0x21));
        assert_eq!(pick(SelectorBase::Id("1212".into())), Ok(0x12));
        assert_eq!(pick(SelectorBase::Id("1".into())), Err(Kind::Usage));
        assert_eq!(pick(SelectorBase::Id("ffff".into())), Err(Kind::NotFound));
        assert_eq!(pick(SelectorBase::Tag("t17".into())), Ok(0x11));
        assert_eq!(pick(SelectorBase::At(FileTime { seconds: 20, nanoseconds: 1 })), Ok(0x12));
        assert_eq!(pick(SelectorBase::At(FileTime { seconds: 20, nanoseconds: 0 })), Ok(0x11));
        assert_eq!(pick(SelectorBase::At(FileTime { seconds: 1, nanoseconds: 0 })), Err(Kind::NotFound));
    }

    #[test]
    fn latest_of_several_sources_needs_narrowing() {
        let all = [snapshot(1, "a", 10), snapshot(2, "b", 20)];
        assert_eq!(
            select(&all, &SelectorBase::Latest, &Narrow::default()).map_err(|e| e.kind()).err(),
            Some(Kind::Usage)
        );
        let narrow = Narrow { host: Some("a".into()), ..Narrow::default() };
        assert_eq!(select(&all, &SelectorBase::Latest, &narrow).expect("one fits").id, all[0].id);
    }
}
