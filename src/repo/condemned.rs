//! What prunes have condemned and decided: the collector's records of the commit fence.
//!
//! * `condemned/<n>`: the packs that prune number n means to delete. As long as it has no end, nobody may begin to rely on
//!   them.
//! * `condemned/<n>.<k>`: the k-th run at that list: that a collector is at work, that it has left the list to the next run,
//!   whom it waits for. These decide nothing; they save waiting and double work.
//! * `condemned/<n>.end`: the decision. Its packs are dead for ever, whether their files still exist or not. An end without
//!   packs gives the list up.
//!
//! Ends never change, so each is read once on a host and kept in its index, as the object that was read: its checksum is
//! compared every time. Memory: 32 bytes for each pack that was ever deleted.
//!
//! Deliberately not here: who may create which of them when (`ops/prune`, `docs/FORMAT.md`).

use super::Repo;
use super::audit::{self, Action, Actor, AuditHead};
use super::audit_heads::StandingHead;
use super::bounded::{List, Packs};
use super::document::{self, DocumentKind};
use super::names::{self, CondemnedPart};
use super::records::{self, WriterRecord};
use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, SnapshotId};
use crate::metadata::FileTime;
use crate::sabotage::is_planted;
use crate::storage::{Listed, ObjectName, Published};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, HashSet};

/// Runs that may append to one list at the same moment before one of them gives up.
const APPEND_ATTEMPTS_MAX: u64 = 64;

/// The most open transactions that a record of a run names: far more than any repository has.
const WAITING_MAX: usize = 100_000;

/// The body of all three kinds of record.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    seconds: i64,
    #[n(1)]
    packs: Packs,
    #[n(2)]
    collector: Option<WriterRecord>,
    #[n(3)]
    state: Option<u8>,
    #[n(4)]
    waiting: Option<List<StoredSeen, WAITING_MAX>>,
    /// Its own name: what stands under another's is refused.
    #[n(5)]
    name: Option<String>,
    #[n(6)]
    audit: Option<AuditHead>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct StoredSeen {
    #[n(0)]
    id: ByteVec,
    #[n(1)]
    sign: u64,
    #[n(2)]
    since: i64,
}

/// Lists, runs and ends, as far as they are recorded.
#[derive(Debug, Default)]
pub struct Condemned {
    /// The list without an end, if there is one; of several, which no prune makes, the first.
    pub open: Option<OpenList>,
    /// The ends, by number.
    pub ends: Vec<End>,
    /// The number of the newest list.
    pub last_number: u64,
    /// What the newest run that waited for anybody saw, at whatever list.
    pub seen: Vec<Seen>,
    dead: HashSet<PackId>,
    doubtful: HashSet<PackId>,
}

/// A list that nobody has decided about.
#[derive(Debug, Clone)]
pub struct OpenList {
    /// Its number.
    pub number: u64,
    /// Its packs.
    pub packs: HashSet<PackId>,
    /// The newest run at it; without one, the run that made it.
    pub newest: Option<Run>,
    /// The number of the newest run; 0 if there is none beside the one that made it.
    pub runs: u64,
}

/// A decision.
#[derive(Debug, Clone)]
pub struct End {
    /// The number of the list.
    pub number: u64,
    /// When it was decided, seconds since 1970 by the clock of whoever did.
    pub seconds: i64,
    /// The packs that are dead; none if the list was given up.
    pub packs: Vec<PackId>,
}

/// What a run at a list did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// When, seconds since 1970.
    pub seconds: i64,
    /// Who is meant.
    pub collector: WriterRecord,
    /// How that collector stands to the list.
    pub state: RunState,
    /// The transactions that have to end before the list can become final; none if they have not been listed yet.
    pub waiting: Option<Vec<Seen>>,
}

/// How a collector stands to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It is at work on it, as far as it knows.
    AtWork,
    /// It has left it to the next run.
    Left,
    /// Another run has met it at work, and looks whether it goes on.
    Met,
}

/// A transaction that was seen open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: SnapshotId,
    /// The number of its newest sign of life; 0 if it had given none.
    pub sign: u64,
    /// Since when no newer one has been seen, seconds since 1970.
    pub since: i64,
}

impl Condemned {
    /// Reads every list.
    pub fn read(repo: &Repo) -> Result<Condemned> {
        Condemned::of(repo, &repo.storage().list(names::CONDEMNED)?)
    }

    /// As [`Condemned::read`], and never from a cache of the file system: everything recorded before this is seen.
    pub fn read_fresh(repo: &Repo) -> Result<Condemned> {
        Condemned::of(repo, &repo.storage().list_fresh(names::CONDEMNED)?)
    }

    fn of(repo: &Repo, listed: &[Listed]) -> Result<Condemned> {
        // For each list whether it was seen, its runs, and whether it has an end.
        let mut lists: BTreeMap<u64, (bool, Vec<u64>, bool)> = BTreeMap::new();
        for (number, part) in listed.iter().filter_map(|l| names::condemned_part(&l.name)) {
            let entry = lists.entry(number).or_default();
            match part {
                CondemnedPart::List => entry.0 = true,
                CondemnedPart::Run(run) => entry.1.push(run),
                CondemnedPart::End => entry.2 = true,
            }
        }
        let mut condemned =
            Condemned { last_number: lists.keys().last().copied().unwrap_or(0), ..Condemned::default() };
        condemned.read_ends(repo, lists.iter().filter(|(_, (.., is_ended))| *is_ended).map(|(number, _)| *number))?;
        for (&number, (is_listed, runs, is_ended)) in &lists {
            if *is_listed && !is_ended {
                condemned.add_open(repo, number, runs)?;
            }
        }
        condemned.seen = match &condemned.open {
            Some(open) => open.newest.as_ref().and_then(|run| run.waiting.clone()).unwrap_or_default(),
            None => last_seen(repo, lists.iter().next_back().map(|(n, (_, runs, _))| (*n, runs.as_slice()))),
        };
        Ok(condemned)
    }

    fn read_ends(&mut self, repo: &Repo, numbers: impl Iterator<Item = u64>) -> Result<()> {
        let mut kept = repo.index().ends()?;
        for number in numbers {
            let name = names::condemned_end(number)?;
            let from_index = kept.remove(&number).and_then(|object| open(repo, &object, &name).ok());
            let stored = match from_index {
                Some(stored) => stored,
                None => {
                    let object = repo.storage().read(&name, 2 * (document::BODY_BYTES_MAX + 48))?;
                    let stored = open(repo, &object, &name)?;
                    repo.index().add_end(number, &object)?;
                    stored
                }
            };
            let end = End { number, seconds: stored.seconds, packs: stored.packs.0 };
            self.dead.extend(end.packs.iter().copied());
            self.ends.push(end);
        }
        Ok(())
    }

    fn add_open(&mut self, repo: &Repo, number: u64, runs: &[u64]) -> Result<()> {
        let stored = read(repo, number, CondemnedPart::List)?;
        let packs: HashSet<PackId> = stored.packs.0.iter().copied().collect();
        self.doubtful.extend(packs.iter().copied());
        if self.open.is_some() {
            return Ok(());
        }
        let newest = runs.iter().copied().max().unwrap_or(0);
        let run = match newest {
            0 => run_of(&stored),
            // What a run says decides nothing: if it cannot be read, the list was left.
            _ => read(repo, number, CondemnedPart::Run(newest)).ok().as_ref().and_then(run_of),
        };
        self.open = Some(OpenList { number, packs, newest: run, runs: newest });
        Ok(())
    }

    /// True if nobody may begin to rely on the pack: it is in a list without an end, or in a final one.
    pub fn contains(&self, pack: &PackId) -> bool {
        let is_doubtful = self.doubtful.contains(pack) && !is_planted("condemned-packs-relied-on");
        is_doubtful || self.is_dead(pack)
    }

    /// True if the pack is in a final list.
    pub fn is_dead(&self, pack: &PackId) -> bool {
        self.dead.contains(pack)
    }

    /// The packs of all final lists.
    pub fn into_dead(self) -> HashSet<PackId> {
        self.dead
    }
}

/// Creates list number `number`; `collector` is the run that is going to decide about it. That it is about to is in the audit
/// log before, unless the list is empty.
pub fn create_list(
    repo: &Repo,
    number: u64,
    packs: &[PackId],
    collector: &WriterRecord,
    now: FileTime,
) -> Result<Published> {
    let audit = match packs.is_empty() {
        true => None,
        false => Some(audit::append(repo, &Actor::of(collector), &action(number, packs), now)?),
    };
    let body = Stored {
        seconds: now.seconds,
        packs: Packs(packs.to_vec()),
        collector: Some(collector.clone()),
        state: Some(0),
        waiting: None,
        name: None,
        audit,
    };
    create(repo, &names::condemned(number)?, body)
}

fn action(number: u64, packs: &[PackId]) -> Action {
    let details = BTreeMap::from([("packs".to_owned(), packs.len().to_string())]);
    // Which packs, the list itself says for ever.
    Action { name: "prune", objects: vec![format!("{}/{number}", names::CONDEMNED)], details }
}

/// The head of the audit log that list `number` follows; none if it is empty.
pub fn audit_head(repo: &Repo, number: u64) -> Result<Option<StandingHead>> {
    let stored = read(repo, number, CondemnedPart::List)?;
    let place = format!("{}/{number}", names::CONDEMNED);
    Ok((!stored.packs.0.is_empty()).then_some(StandingHead { place, head: stored.audit }))
}

/// Creates the end of list number `number`: `packs` are dead from now on. The first end wins.
pub fn create_end(repo: &Repo, number: u64, packs: &[PackId], now: FileTime) -> Result<Published> {
    let packs = Packs(packs.to_vec());
    let body =
        Stored { seconds: now.seconds, packs, collector: None, state: None, waiting: None, name: None, audit: None };
    create(repo, &names::condemned_end(number)?, body)
}

/// Records a run at a list behind run number `after`; the number it got.
pub fn append_run(repo: &Repo, number: u64, after: u64, run: &Run) -> Result<u64> {
    let seen = |seen: &Seen| StoredSeen { id: seen.id.as_bytes().to_vec().into(), sign: seen.sign, since: seen.since };
    let body = Stored {
        seconds: run.seconds,
        packs: Packs::default(),
        collector: Some(run.collector.clone()),
        state: Some(run.state as u8),
        waiting: run.waiting.as_ref().map(|waiting| List(waiting.iter().map(seen).collect())),
        name: None,
        audit: None,
    };
    for next in (after + 1..).take(usize::try_from(APPEND_ATTEMPTS_MAX).unwrap_or(1)) {
        let name = names::condemned_run(number, next)?;
        if create(repo, &name, body.clone())? == Published::Created {
            return Ok(next);
        }
    }
    Err(Error::new(Kind::Busy, format!("too many prunes are at work on condemned/{number}")))
}

/// Reads whatever stands under a name of [`names::CONDEMNED`] and checks that it can be one.
pub fn check(repo: &Repo, name: &ObjectName) -> Result<()> {
    let (number, part) =
        names::condemned_part(name).ok_or_else(|| Error::damaged("nothing of this name belongs here"))?;
    read(repo, number, part).map(|_| ())
}

fn read(repo: &Repo, number: u64, part: CondemnedPart) -> Result<Stored> {
    let name = match part {
        CondemnedPart::List => names::condemned(number)?,
        CondemnedPart::Run(run) => names::condemned_run(number, run)?,
        CondemnedPart::End => names::condemned_end(number)?,
    };
    let opened = document::read(repo.storage(), repo.keys(), DocumentKind::Condemned, &name)?;
    decode(&opened.body, &name)
}

fn open(repo: &Repo, object: &[u8], name: &ObjectName) -> Result<Stored> {
    let opened = document::open(repo.keys(), DocumentKind::Condemned, name, object).map_err(|e| e.while_doing(name))?;
    decode(&opened.body, name)
}

fn decode(body: &[u8], name: &ObjectName) -> Result<Stored> {
    let stored: Stored = document::decode(body, name.as_str())?;
    match &stored.name {
        Some(own) if own != name.as_str() => Err(Error::damaged(format!("{own} stands under the name {name}"))),
        _ => Ok(stored),
    }
}

fn create(repo: &Repo, name: &ObjectName, body: Stored) -> Result<Published> {
    let body = Stored { name: Some(name.to_string()), ..body };
    records::create(repo, DocumentKind::Condemned, name, &body)
}

/// What the newest run at a list that has ended saw; nothing if there is none or it cannot be read.
fn last_seen(repo: &Repo, list: Option<(u64, &[u64])>) -> Vec<Seen> {
    let newest = list.and_then(|(number, runs)| Some((number, *runs.iter().max()?)));
    let stored = newest.and_then(|(number, run)| read(repo, number, CondemnedPart::Run(run)).ok());
    stored.as_ref().and_then(run_of).and_then(|run| run.waiting).unwrap_or_default()
}

fn run_of(stored: &Stored) -> Option<Run> {
    let state = match stored.state? {
        0 => RunState::AtWork,
        1 => RunState::Left,
        _ => RunState::Met,
    };
    let seen = |s: &StoredSeen| Some(Seen { id: SnapshotId::from_slice(&s.id).ok()?, sign: s.sign, since: s.since });
    let waiting = stored.waiting.as_ref().map(|waiting| waiting.0.iter().map(seen).collect::<Option<Vec<_>>>());
    Some(Run {
        seconds: stored.seconds,
        collector: stored.collector.clone()?,
        state,
        // One that cannot be read is as if nobody had been listed yet: then everybody is waited for.
        waiting: waiting.flatten(),
    })
}
