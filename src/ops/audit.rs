//! Reads the audit log, and checks that nothing was taken from it or changed in it.
//!
//! A log is whole if its numbers have no gap, every record names the hash of the one before, and every *head* that stands
//! elsewhere is in it: in the markers of forgotten snapshots, in the lists of prunes, in snapshots, and in the memory of this
//! host. So an edit, a removal and a log cut off at its end are noticed, the last if anything was done or saved after what is
//! gone, or if this host has seen it.

use crate::error::{Kind, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::audit::{self, AuditHead, AuditRecord, ReadRecord};
use crate::repo::audit_heads::{self, StandingHead};
use crate::sabotage::is_planted;
use std::collections::HashMap;

/// The most problems that are told one by one.
const PROBLEMS_KEPT_MAX: usize = 1_000;

/// The records of the log, oldest first, and what could not be read.
#[derive(Debug, Default)]
pub struct AuditList {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// One sentence for each record that cannot be read.
    pub damage: Vec<String>,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Records that were read.
    pub records: u64,
    /// Heads that stand elsewhere and were looked up.
    pub heads: u64,
    /// The end of the log, if there is any record.
    pub head: Option<AuditHead>,
    /// What is wrong, a sentence each, at most a thousand.
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problems_count: u64,
}

impl AuditReport {
    fn add(&mut self, problem: String) {
        self.problems_count += 1;
        if self.problems.len() < PROBLEMS_KEPT_MAX {
            self.problems.push(problem);
        }
    }
}

/// Reads all records.
pub fn list(repo: &Repo) -> Result<AuditList> {
    let mut list = AuditList::default();
    for number in audit::numbers(repo)? {
        match audit::read(repo, number) {
            Ok(read) => list.records.push(read.record),
            Err(error) if is_damage(error.kind()) => list.damage.push(format!("audit/{number}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Ok(list)
}

/// Checks the log. What is wrong is in the report; an error means that the check itself could not be done.
pub fn verify(repo: &Repo, observer: &dyn Observer) -> Result<AuditReport> {
    let mut report = AuditReport::default();
    // Read before the log: what is done meanwhile has its record by the time the log is read.
    let heads = audit_heads::read(repo)?;
    let numbers = audit::numbers(repo)?;
    observer.on_event(&Event::Phase {
        name: "checking the audit log",
        bytes_total: None,
        files_total: Some(numbers.len() as u64),
    });
    let mut hashes = HashMap::new();
    let mut last = Some(AuditHead::NONE);
    let mut expected = 1;
    for number in numbers {
        if number > expected {
            report.add(gap(expected, number - 1));
            last = None;
        }
        expected = number + 1;
        last = match audit::read(repo, number) {
            Ok(read) => Some(check_link(&read, last, &mut report)),
            Err(error) if is_damage(error.kind()) => {
                report.add(format!("audit/{number} cannot be read: {error}"));
                None
            }
            Err(error) => return Err(error),
        };
        hashes.extend(last.map(|head| (number, head.hash)));
        report.head = last.or(report.head);
        observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    let seen = repo
        .index()
        .audit_head()
        .map(|head| StandingHead { place: "this host, from an earlier look,".to_owned(), head: Some(head) });
    for standing in heads.iter().chain(&seen) {
        check_head(standing, expected, &hashes, &mut report);
    }
    // Only a sound log is worth remembering: the next check would compare with it.
    if let (0, Some(head)) = (report.problems_count, &report.head) {
        repo.index().remember_audit_head(head)?;
    }
    Ok(report)
}

fn is_damage(kind: Kind) -> bool {
    matches!(kind, Kind::Damaged | Kind::Missing)
}

fn gap(from: u64, to: u64) -> String {
    match from == to {
        true => format!("audit/{from} is gone"),
        false => format!("audit/{from} to audit/{to} are gone"),
    }
}

/// Compares a record with the one before it, if that could be read; the head that it makes.
fn check_link(read: &ReadRecord, before: Option<AuditHead>, report: &mut AuditReport) -> AuditHead {
    let number = read.record.number;
    report.records += 1;
    if !read.both_copies_sound {
        report.add(format!("audit/{number}: one of its two copies is damaged; the other serves"));
    }
    if before.is_some_and(|before| before.hash != read.record.previous) {
        let text = match number {
            1 => "audit/1 follows another record, and none is before it".to_owned(),
            _ => format!("audit/{} is not the record that audit/{number} follows: one of them was changed", number - 1),
        };
        report.add(text);
    }
    AuditHead { number, hash: read.hash }
}

/// Looks a head up that stands somewhere else; `end` is the number after the last record.
fn check_head(standing: &StandingHead, end: u64, hashes: &HashMap<u64, [u8; 32]>, report: &mut AuditReport) {
    report.heads += 1;
    let place = &standing.place;
    let Some(head) = standing.head else {
        report.add(format!("{place} was made without a record in the audit log"));
        return;
    };
    // Zeros stand for a record that could not be read when it was followed.
    if head.number == 0 || head.hash == [0; 32] {
        return;
    }
    match hashes.get(&head.number) {
        Some(hash) if *hash == head.hash => {}
        Some(_) => report.add(format!("audit/{} was changed: {place} knows it otherwise", head.number)),
        None if head.number >= end && !is_planted("audit-end-cut-unseen") => {
            report.add(format!("audit/{} is gone from the end of the log: {place} knows it", head.number));
        }
        // A gap or an unreadable record, told already.
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::ids::RepositoryId;
    use crate::metadata::FileTime;
    use crate::ops::forget::{ForgetOptions, forget};
    use crate::repo::audit::Actor;
    use crate::repo::snapshots::Narrow;
    use crate::repo::test_support::{self, Node, save, time};
    use crate::repo::{Cache, condemned, document, names};
    use crate::storage::ObjectName;
    use crate::storage::simulated::SimulatedStorage;
    use std::sync::Arc;

    /// A repository of which five snapshots were forgotten, one by one.
    fn scene() -> SimulatedStorage {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        for n in 0..5 {
            let id = save(&repo, n, &[("/f", Node::File(vec![1; 10]))]).id;
            forget_one(&repo, id, time(100 + n)).expect("forgets");
        }
        storage
    }

    fn forget_one(repo: &Repo, id: crate::ids::SnapshotId, now: FileTime) -> Result<()> {
        repo.refresh(&Silent)?;
        let options = ForgetOptions {
            ids: vec![id],
            policy: None,
            narrow: Narrow::default(),
            dry_run: false,
            now,
            actor: Actor { host: "h".to_owned(), process: 1, user: 0 },
            time_zone: jiff::tz::TimeZone::UTC,
        };
        forget(repo, &options, &Silent).map(drop)
    }

    fn problems(storage: &SimulatedStorage) -> Vec<String> {
        verify(&test_support::open(storage), &Silent).expect("the check itself works").problems
    }

    fn name(number: u64) -> ObjectName {
        names::audit(number).expect("a name")
    }

    #[test]
    fn a_log_that_nobody_touched_is_whole() {
        let storage = scene();
        let report = verify(&test_support::open(&storage), &Silent).expect("works");
        assert_eq!((report.records, report.problems_count), (5, 0), "{report:?}");
        assert!(report.heads >= 5);
        let list = list(&test_support::open(&storage)).expect("readable");
        assert!(list.damage.is_empty() && list.records.iter().all(|r| r.action == "forget" && r.objects.len() == 1));
    }

    #[test]
    fn every_removal_is_noticed_the_last_record_too() {
        for number in 1..=5 {
            let storage = scene();
            assert!(storage.remove(&name(number)));
            let found = problems(&storage);
            assert!(found.iter().any(|p| p.contains(&format!("audit/{number} is gone"))), "{number}: {found:?}");
        }
        let storage = scene();
        (1..=5).for_each(|number| assert!(storage.remove(&name(number))));
        assert!(!problems(&storage).is_empty(), "the markers still name records");
    }

    #[test]
    fn every_truncation_of_the_log_is_noticed() {
        for kept in 0..5 {
            let storage = scene();
            (kept + 1..=5).for_each(|number| assert!(storage.remove(&name(number))));
            assert!(!problems(&storage).is_empty(), "{kept} records kept");
        }
    }

    /// The record with another body, its checksums right.
    fn edit(storage: &SimulatedStorage, number: u64) {
        let repo = test_support::open(storage);
        let mut record = audit::read(&repo, number).expect("sound").record;
        record.host = "somebody else".to_owned();
        let body = document::encode(&record).expect("encodes");
        let object = document::seal(repo.keys(), document::DocumentKind::Audit, &name(number), &body).expect("small");
        storage.insert(name(number), object);
    }

    #[test]
    fn every_edit_is_noticed_the_last_record_too() {
        for number in 1..=5 {
            let storage = scene();
            edit(&storage, number);
            let found = problems(&storage);
            assert!(found.iter().any(|p| p.contains(&format!("audit/{number}"))), "{number}: {found:?}");
        }
    }

    #[test]
    fn a_record_swapped_with_another_or_rotten_is_noticed() {
        let storage = scene();
        let objects = storage.objects();
        storage.insert(name(2), objects[&name(3)].clone());
        storage.insert(name(3), objects[&name(2)].clone());
        assert!(problems(&storage).len() >= 2);
        for at in [20, 500] {
            let storage = scene();
            let bytes = storage.objects()[&name(5)].len();
            assert!(storage.corrupt(&name(5), at.min(bytes - 1), 1));
            assert_eq!(problems(&storage).len(), 1, "one copy serves, and that is said");
        }
    }

    #[test]
    fn a_marker_without_a_record_is_noticed() {
        let storage = scene();
        let repo = test_support::open(&storage);
        let id = save(&repo, 9, &[("/f", Node::File(vec![2; 10]))]).id;
        // A map with the time alone: what a program without a log would write.
        let body = [0xa1, 0x00, 0x01];
        let name = names::forgotten(id).expect("a name");
        let object = document::seal(repo.keys(), document::DocumentKind::Forgotten, &name, &body).expect("small");
        storage.insert(name, object);
        let found = problems(&storage);
        assert!(found.len() == 1 && found[0].contains("without a record"), "{found:?}");
    }

    #[test]
    fn a_prune_is_in_the_log_and_its_list_misses_a_record_that_is_gone() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let packs = [crate::ids::PackId::from_bytes([3; 32])];
        condemned::create_list(&repo, 1, &[], &test_support::writer(), time(1)).expect("a list without packs");
        condemned::create_list(&repo, 2, &packs, &test_support::writer(), time(2)).expect("a list");
        let list = list(&repo).expect("readable");
        let [record] = list.records.as_slice() else { panic!("{:?}", list.records) };
        assert_eq!((record.action.as_str(), record.objects.as_slice()), ("prune", &["condemned/2".to_owned()][..]));
        assert_eq!(record.details["packs"], "1");
        assert_eq!(problems(&storage), [] as [&str; 0]);
        assert!(storage.remove(&name(1)));
        assert!(problems(&storage).iter().any(|p| p.contains("audit/1 is gone")), "{:?}", problems(&storage));
    }

    #[test]
    fn what_this_host_has_seen_is_missed_when_nothing_else_names_it() {
        let storage = test_support::storage();
        let cache = tempfile::tempdir().expect("a folder");
        let open = |storage: &SimulatedStorage| {
            Repo::open_storage(Arc::new(storage.clone()), &Cache::Folder(cache.path().to_owned()), &Silent)
        };
        let before = storage.copy();
        let repo = open(&storage).expect("opens");
        let actor = Actor { host: "h".to_owned(), process: 1, user: 0 };
        let action = audit::Action { name: "key remove", objects: vec![], details: Default::default() };
        audit::append(&repo, &actor, &action, time(5)).expect("written");
        assert_eq!(repo.id(), RepositoryId::from_bytes([5; 16]));
        drop(repo);
        // The whole repository as it was before: nothing in it is inconsistent.
        let report = verify(&open(&before).expect("opens"), &Silent).expect("works");
        assert!(report.problems.iter().any(|p| p.contains("this host")), "{report:?}");
    }
}
