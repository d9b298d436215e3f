//! Ends the life of snapshots, by id or by a policy for each source.
//!
//! A forgotten snapshot gets a durable marker and is gone from every list; its data goes with the next prune. Nothing is
//! marked before everything has been decided and checked. Policies are [`retention`]'s.

use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::SnapshotId;
use crate::metadata::FileTime;
use crate::ops::retention::{self, Policy};
use crate::repo::audit::{self, Action, Actor};
use crate::repo::document::DocumentKind;
use crate::repo::snapshots::{Narrow, Outcome, Snapshot};
use crate::repo::{Repo, names, records};
use crate::sabotage::is_planted;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// What to forget: `ids`, or what `policy` does not keep of the snapshots that `narrow` admits.
#[derive(Debug, Clone)]
pub struct ForgetOptions {
    /// These.
    pub ids: Vec<SnapshotId>,
    /// All but what this keeps, for each source by itself.
    pub policy: Option<Policy>,
    /// Which snapshots the policy is about.
    pub narrow: Narrow,
    /// Decides and changes nothing.
    pub dry_run: bool,
    /// The time now, for the markers and to know what lies in the future.
    pub now: FileTime,
    /// Who forgets, for the audit log.
    pub actor: Actor,
    /// Whose hours, days, weeks, months and years are counted.
    pub time_zone: TimeZone,
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForgetReport {
    /// What the policy keeps, source by source, newest first.
    pub kept: Vec<Kept>,
    /// What was forgotten, or would have been.
    pub forgotten: Vec<SnapshotId>,
}

/// A snapshot that the policy keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub id: SnapshotId,
    /// The rules that keep it.
    pub reasons: Vec<String>,
}

/// Decides and, unless it is a dry run, marks.
///
/// [`Kind::Usage`] without ids and policy, and for a policy that would keep nothing of a source: that is never meant, and
/// ids say it if it is. [`Kind::NotFound`] if an id is not there.
pub fn forget(repo: &Repo, options: &ForgetOptions, observer: &dyn Observer) -> Result<ForgetReport> {
    repo.keys().require_deleting()?;
    let report = match &options.policy {
        Some(_) if !options.ids.is_empty() => {
            return Err(Error::new(Kind::Usage, "snapshots and a policy are given, and only one of them can decide"));
        }
        Some(policy) => by_policy(repo, policy, options)?,
        None => by_id(repo, options)?,
    };
    if options.dry_run {
        return Ok(report);
    }
    observer.on_event(&Event::Phase {
        name: "forgetting",
        bytes_total: None,
        files_total: Some(report.forgotten.len() as u64),
    });
    if is_planted("audit-record-after-action") {
        for &id in &report.forgotten {
            records::create_forgotten(repo, id, options.now, audit::AuditHead::NONE)?;
        }
    }
    let audit = match report.forgotten.is_empty() {
        true => return Ok(report),
        false => audit::append(repo, &options.actor, &action(&report), options.now)?,
    };
    for &id in &report.forgotten {
        if observer.is_interrupted() {
            return Err(Error::new(Kind::Interrupted, "interrupted while forgetting snapshots"));
        }
        records::create_forgotten(repo, id, options.now, audit)?;
        observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    repo.refresh(observer)?;
    Ok(report)
}

fn action(report: &ForgetReport) -> Action {
    let objects = report.forgotten.iter().map(|id| id.to_hex()).collect();
    Action { name: "forget", objects, details: BTreeMap::new() }
}

fn by_id(repo: &Repo, options: &ForgetOptions) -> Result<ForgetReport> {
    if options.ids.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing says what to forget")
            .with_hint("give the ids of snapshots, or a policy such as --keep-daily 7 --keep-weekly 4"));
    }
    let mut report = ForgetReport::default();
    for &id in &options.ids {
        if repo.snapshot(id).is_none() && !repo.vanished().contains(&id) && !is_damaged_snapshot(repo, id)? {
            return Err(
                Error::new(Kind::NotFound, format!("no snapshot {id}")).with_hint("`ckpt snapshots` lists them")
            );
        }
        if !report.forgotten.contains(&id) {
            report.forgotten.push(id);
        }
    }
    Ok(report)
}

/// True for a name that is taken by something unreadable: forgetting it is how prune gets going again.
fn is_damaged_snapshot(repo: &Repo, id: SnapshotId) -> Result<bool> {
    if repo.storage().size(&names::forgotten(id)?)?.is_some() && records::counts(repo, id)? {
        return Ok(false);
    }
    match repo.storage().read(&names::snapshot(id)?, DocumentKind::Snapshot.object_bytes_max()) {
        Ok(object) => Ok(Outcome::open(repo.keys(), id, &object).is_err()),
        Err(error) if error.kind() == Kind::Missing => Ok(false),
        Err(error) if error.kind() == Kind::Damaged => Ok(true),
        Err(error) => Err(error),
    }
}

fn by_policy(repo: &Repo, policy: &Policy, options: &ForgetOptions) -> Result<ForgetReport> {
    policy.check()?;
    let all = repo.snapshots();
    let mut sources: BTreeMap<String, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in all.iter().filter(|s| options.narrow.admits(s)) {
        sources.entry(snapshot.source_key()).or_default().push(snapshot);
    }
    let mut report = ForgetReport::default();
    for (source, snapshots) in sources {
        let decided = retention::decide(policy, &snapshots, &options.time_zone, options.now)?;
        let (kept, forgotten): (Vec<_>, Vec<_>) = decided.into_iter().partition(|d| !d.reasons.is_empty());
        if kept.is_empty() && !is_planted("policy-keeps-nothing") {
            return Err(Error::new(Kind::Usage, format!("the policy would keep no snapshot of {source}"))
                .with_hint("keep at least the newest with --keep-last 1, or forget snapshots by their ids"));
        }
        report.kept.extend(kept.into_iter().map(|d| Kept { id: d.id, reasons: d.reasons }));
        report.forgotten.extend(forgotten.into_iter().map(|d| d.id));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::repo::test_support::{self, Node, time};

    fn options() -> ForgetOptions {
        ForgetOptions {
            ids: vec![],
            policy: None,
            narrow: Narrow::default(),
            dry_run: false,
            now: time(10_000_000),
            actor: Actor { host: "h".to_owned(), process: 1, user: 0 },
            time_zone: TimeZone::UTC,
        }
    }

    fn keep_last(count: u32) -> ForgetOptions {
        ForgetOptions { policy: Some(Policy { last: Some(count), ..Policy::default() }), ..options() }
    }

    fn refused(repo: &Repo, options: &ForgetOptions) -> Kind {
        let before = repo.snapshots();
        let error = forget(repo, options, &Silent).expect_err("refused");
        repo.refresh(&Silent).expect("refreshes");
        assert_eq!(repo.snapshots(), before);
        error.kind()
    }

    #[test]
    fn a_policy_applies_to_each_source_by_itself() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let nodes: &[(&str, Node)] = &[("a", Node::Directory)];
        let save = |root: &str, seconds| test_support::save_roots(&repo, seconds, &[(root, nodes)]).id;
        let (a1, a2, a3) = (save("/a", 1), save("/a", 2), save("/a", 3));
        let b1 = save("/b", 1);
        let dry = forget(&repo, &ForgetOptions { dry_run: true, ..keep_last(2) }, &Silent).expect("decides");
        assert_eq!(repo.snapshots().len(), 4);
        let report = forget(&repo, &keep_last(2), &Silent).expect("forgets");
        assert_eq!(report, dry);
        assert_eq!(report.forgotten, [a1]);
        assert_eq!(report.kept.iter().map(|k| k.id).collect::<Vec<_>>(), [a3, a2, b1]);
        let live: Vec<_> = test_support::open(&storage).snapshots().iter().map(|s| s.id).collect();
        assert!(live.len() == 3 && !live.contains(&a1));
    }

    #[test]
    fn nothing_is_forgotten_without_a_reason() {
        let repo = test_support::open(&test_support::storage());
        let id = test_support::save(&repo, 1, &[("a", Node::Directory)]).id;
        assert_eq!(refused(&repo, &options()), Kind::Usage);
        assert_eq!(refused(&repo, &ForgetOptions { policy: Some(Policy::default()), ..options() }), Kind::Usage);
        let by_tag = Policy { tags: vec!["none-has-it".into()], ..Policy::default() };
        assert_eq!(refused(&repo, &ForgetOptions { policy: Some(by_tag), ..options() }), Kind::Usage);
        let absent = SnapshotId::from_bytes([3; 16]);
        assert_eq!(refused(&repo, &ForgetOptions { ids: vec![id, absent], ..options() }), Kind::NotFound);
        assert_eq!(refused(&repo, &ForgetOptions { ids: vec![id], ..keep_last(1) }), Kind::Usage);
    }

    #[test]
    fn by_id_also_the_last_and_also_a_damaged_one() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let (a, b) = (
            test_support::save(&repo, 1, &[("a", Node::Directory)]).id,
            test_support::save(&repo, 2, &[("a", Node::Directory)]).id,
        );
        let name = names::snapshot(b).expect("a name");
        let bytes = storage.objects()[&name].len();
        assert!(storage.corrupt(&name, 40, 1) && storage.corrupt(&name, bytes / 2 + 40, 1));
        let repo = test_support::open(&storage);
        assert_eq!(repo.snapshots().len(), 1);
        let report = forget(&repo, &ForgetOptions { ids: vec![a, b, a], ..options() }, &Silent).expect("forgets");
        assert_eq!(report.forgotten, [a, b]);
        let again = test_support::open(&storage);
        assert!(again.snapshots().is_empty() && again.damage().is_empty());
        assert_eq!(refused(&again, &ForgetOptions { ids: vec![a], ..options() }), Kind::NotFound);
    }
}
