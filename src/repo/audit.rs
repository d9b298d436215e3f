//! The audit log: who was about to forget, delete, repair or change keys, in records that are chained by hash.
//!
//! `audit/<n>` names the hash of `audit/<n-1>`, so an edited, removed or inserted record breaks the chain. What was done because
//! of a record (markers of forgotten snapshots, lists of condemned packs), and every snapshot that is saved later, carries the
//! *head* of the chain as its writer saw it, so that a chain cut off at its end is noticed, too.
//!
//! A record is durable before the action begins: an action without a record cannot come from this program, while a record whose
//! action was cut short is possible. Deliberately not here: what is found when a chain is checked (`ops::audit`), and any
//! protection against someone who rewrites the log and everything that names it; in an encrypted repository that takes a key.

use super::bounded::{List, Notes};
use super::document::{self, DocumentKind};
use super::records::WriterRecord;
use super::{Repo, names};
use crate::error::{Error, Kind, Result};
use crate::metadata::FileTime;
use crate::sabotage::is_planted;
use crate::storage::{self, Published};
use minicbor::decode::{self, Decoder};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// The most objects that one record names; a longer action has several records.
pub const OBJECTS_MAX: usize = 10_000;

/// The most details of a record that are believed.
const DETAILS_MAX: usize = 1_000;

/// How often a number that another writer has taken is tried again with the next.
const ATTEMPTS_MAX: u32 = 1_000;

/// The end of a chain: the newest record's number and the hash of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuditHead {
    /// The record's number; 0 stands for a chain without records.
    #[n(0)]
    pub number: u64,
    /// BLAKE3 of the body of that record; zeros for a chain without records.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

impl AuditHead {
    /// The head of a chain without records.
    pub const NONE: AuditHead = AuditHead { number: 0, hash: [0; 32] };
}

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The host it runs on.
    pub host: String,
    /// Its process number there.
    pub process: u32,
    /// The number of the user it runs as.
    pub user: u32,
}

impl Actor {
    /// The process of a record, as the user that asks.
    pub fn of(writer: &WriterRecord) -> Actor {
        Actor { host: writer.host.clone(), process: writer.process, user: rustix::process::geteuid().as_raw() }
    }

    /// The process that asks.
    pub fn of_this_process() -> Actor {
        Actor {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: std::process::id(),
            user: rustix::process::geteuid().as_raw(),
        }
    }
}

/// What is about to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// `forget`, `prune`, `key add` ...
    pub name: &'static str,
    /// The objects or ids it is about.
    pub objects: Vec<String>,
    /// What else there is to say, by name.
    pub details: BTreeMap<String, String>,
}

/// One record as stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuditRecord {
    /// Its number, that of its name.
    #[n(0)]
    pub number: u64,
    /// The hash of the body of the record before; zeros in the first.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub previous: [u8; 32],
    /// When it was written, seconds since 1970.
    #[n(2)]
    pub seconds: i64,
    /// The host of the process that wrote it.
    #[n(3)]
    pub host: String,
    /// The number of that process.
    #[n(4)]
    pub process: u32,
    /// The number of the user that it ran as.
    #[n(5)]
    pub user: u32,
    /// What was about to be done.
    #[n(6)]
    pub action: String,
    /// The objects or ids that it was about.
    #[cbor(n(7), decode_with = "decode_objects")]
    pub objects: Vec<String>,
    /// What else there was to say, by name.
    #[cbor(n(8), decode_with = "decode_details")]
    pub details: BTreeMap<String, String>,
    /// The program: `ckpt 0.1.0`.
    #[n(9)]
    pub program: String,
}

fn decode_objects<'b, C>(d: &mut Decoder<'b>, context: &mut C) -> Result<Vec<String>, decode::Error> {
    List::<String, OBJECTS_MAX>::decode(d, context).map(|list| list.0)
}

fn decode_details<'b, C>(d: &mut Decoder<'b>, context: &mut C) -> Result<BTreeMap<String, String>, decode::Error> {
    Notes::<DETAILS_MAX>::decode(d, context).map(|notes| notes.0)
}

/// A record with the hash of its body and whether both copies of it are sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRecord {
    /// The record.
    pub record: AuditRecord,
    /// BLAKE3 of its body.
    pub hash: [u8; 32],
    /// False if one of the two copies is damaged.
    pub both_copies_sound: bool,
}

/// Writes down what `actor` is about to do, durably, and returns the new head; several records if it is about many objects.
///
/// Of several writers that come at once each gets a number of its own, one after the other.
pub fn append(repo: &Repo, actor: &Actor, action: &Action, now: FileTime) -> Result<AuditHead> {
    let mut head = head(repo)?;
    let mut parts: Vec<&[String]> = action.objects.chunks(OBJECTS_MAX).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    for part in parts {
        head = append_one(repo, actor, action, part, now, head)?;
    }
    // For this host alone: the next check here notices a chain that ends before it.
    repo.index().remember_audit_head(&head)?;
    Ok(head)
}

fn append_one(
    repo: &Repo,
    actor: &Actor,
    action: &Action,
    objects: &[String],
    now: FileTime,
    mut head: AuditHead,
) -> Result<AuditHead> {
    for _ in 0..ATTEMPTS_MAX {
        let record = AuditRecord {
            number: head.number + 1,
            previous: if is_planted("audit-chain-cut") { [0; 32] } else { head.hash },
            seconds: now.seconds,
            host: actor.host.clone(),
            process: actor.process,
            user: actor.user,
            action: action.name.to_owned(),
            objects: objects.to_vec(),
            details: action.details.clone(),
            program: concat!("ckpt ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let body = document::encode(&record)?;
        let name = names::audit(record.number)?;
        let object = document::seal(repo.keys(), DocumentKind::Audit, &name, &body)?;
        let published = storage::create_new(repo.storage(), &name, &object)
            .map_err(|e| e.while_doing("writing down in the audit log what is to be done"))?;
        match published {
            Published::Created => {
                return Ok(AuditHead { number: record.number, hash: *blake3::hash(&body).as_bytes() });
            }
            Published::AlreadyExists => head = head_at(repo, record.number)?,
        }
    }
    Err(Error::new(Kind::Busy, "others write to the audit log without pause").with_hint("run the command again"))
}

/// The head of the chain as it is now.
pub fn head(repo: &Repo) -> Result<AuditHead> {
    match numbers(repo)?.last() {
        None => Ok(AuditHead::NONE),
        Some(&number) => head_at(repo, number),
    }
}

/// The head that ends with this record.
///
/// One that cannot be read is no reason to stop what keeps data safe: the chain goes on from zeros, which its check shows.
fn head_at(repo: &Repo, number: u64) -> Result<AuditHead> {
    match read(repo, number) {
        Ok(read) => Ok(AuditHead { number, hash: read.hash }),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing) => Ok(AuditHead { number, hash: [0; 32] }),
        Err(error) => Err(error),
    }
}

/// The numbers of the records that are there, ascending.
pub fn numbers(repo: &Repo) -> Result<Vec<u64>> {
    let listed = repo.storage().list(names::AUDIT)?;
    let mut numbers: Vec<u64> = listed.iter().filter_map(|l| names::audit_number(&l.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads one record. [`Kind::Damaged`] also if it carries another number than its name.
pub fn read(repo: &Repo, number: u64) -> Result<ReadRecord> {
    let name = names::audit(number)?;
    let opened = document::read(repo.storage(), repo.keys(), DocumentKind::Audit, &name)?;
    let record: AuditRecord = document::decode(&opened.body, name.as_str())?;
    if record.number != number {
        return Err(Error::damaged(format!("{name} holds the record of number {}", record.number)));
    }
    let hash = *blake3::hash(&opened.body).as_bytes();
    Ok(ReadRecord { record, hash, both_copies_sound: opened.both_copies_sound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, time};

    fn action(objects: usize) -> Action {
        let objects = (0..objects).map(|n| n.to_string()).collect();
        Action { name: "test", objects, details: BTreeMap::from([("why".to_owned(), "because".to_owned())]) }
    }

    fn actor() -> Actor {
        Actor { host: "h".to_owned(), process: 7, user: 1000 }
    }

    #[test]
    fn records_follow_each_other_and_name_the_one_before() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        assert_eq!(head(&repo).expect("readable"), AuditHead::NONE);
        let first = append(&repo, &actor(), &action(1), time(10)).expect("written");
        // Another host, which knows nothing of the first.
        let other = test_support::open(&storage.another_host());
        let second = append(&other, &actor(), &action(0), time(20)).expect("written");
        assert_eq!((first.number, second.number), (1, 2));
        assert_eq!(head(&repo).expect("readable"), second);
        let read = read(&repo, 2).expect("sound");
        assert_eq!((read.record.previous, read.hash, read.both_copies_sound), (first.hash, second.hash, true));
        assert_eq!((read.record.host.as_str(), read.record.process, read.record.user), ("h", 7, 1000));
        assert_eq!(read.record.details["why"], "because");
    }

    #[test]
    fn an_action_about_very_many_objects_has_several_records() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let head = append(&repo, &actor(), &action(2 * OBJECTS_MAX + 1), time(10)).expect("written");
        assert_eq!(head.number, 3);
        let count: usize = (1..=3).map(|n| read(&repo, n).expect("sound").record.objects.len()).sum();
        assert_eq!(count, 2 * OBJECTS_MAX + 1);
    }

    #[test]
    fn a_number_that_is_taken_meanwhile_is_not_used_twice() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let stale = AuditHead::NONE;
        let first = append(&repo, &actor(), &action(1), time(10)).expect("written");
        let second = append_one(&repo, &actor(), &action(1), &[], time(11), stale).expect("written");
        assert_eq!(second.number, 2);
        assert_eq!(read(&repo, 2).expect("sound").record.previous, first.hash);
    }

    #[test]
    fn a_damaged_newest_record_does_not_stop_what_follows() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        append(&repo, &actor(), &action(1), time(10)).expect("written");
        storage.insert(names::audit(1).expect("a name"), vec![1; 100]);
        let head = append(&repo, &actor(), &action(1), time(11)).expect("written");
        assert_eq!(head.number, 2);
        assert_eq!(read(&repo, 2).expect("sound").record.previous, [0; 32]);
        assert_eq!(read(&repo, 1).expect_err("not a document").kind(), Kind::Damaged);
    }
}
