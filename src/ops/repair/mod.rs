//! Finds damage and mends what can be mended; what cannot is set aside and named, with the files that it costs.
//!
//! For each damaged thing there is an order of means, the surest first:
//!
//! - a small document: the sound one of its two copies, the other objects of parameters, what this host's index keeps of a
//!   snapshot, another copy of the repository. Only the very bytes that were written are put back, so no transaction comes to
//!   have ended otherwise than it did;
//! - a pack: its parity, its own beginning if something was added behind its end, a pack of the same name elsewhere;
//!   always compared with the name;
//! - index objects and parity: written anew from packs;
//! - chunks that snapshots need and that no sound pack holds: what is readable of damaged packs, other repositories, files of
//!   this host that still hold them; compared with the id and stored again by an ordinary transaction that ends as repacked;
//! - a pack for which nothing helped is set aside (`quarantine/<id>`), and deleted by nobody but a later prune.
//!
//! # Killed at any step
//!
//! Each step leaves the repository as it was or better, and the next run finds what is still to do. An object is replaced as a
//! whole or not at all. A damaged pack is set aside before its chunks are stored again, so that the transaction does not rely on it. A
//! damaged index object goes after the one that lists the same packs is durable. What is removed without a replacement says
//! nothing that is still needed: records of verifications, announcements of writers that have ended.
//!
//! # In an encrypted repository
//!
//! It takes an admin key: with less, what is damaged and what is only closed to the key look alike, and what cannot be read
//! would be set aside. A copy of the repository is opened with the same keys. What does not open is not what was written, so
//! a marker of a forgotten snapshot that does not is left for a human to judge.
//!
//! # Beside others
//!
//! Repair deletes no pack and ends no transaction, so it waits for nobody and nobody for it. Two repairs write the same
//! bytes under the same names. A pack that a prune decides to delete while it is mended may come back once more; its name is
//! in a final list, everyone passes it over, and the next prune removes it again.

mod copies;
mod documents;
mod index;
mod packs;
mod parameters;
mod rescue;
mod sidecars;
mod sources;
#[cfg(test)]
mod tests;

pub use super::examine::found::Damage;
pub use parameters::mend_parameters;

use super::Resources;
use super::examine::found::Found;
use super::examine::{check_interrupt, data, packs as examined};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::PackId;
use crate::metadata::FileTime;
use crate::repo::Repo;
use crate::repo::audit::{self, Action, Actor};
use crate::repo::condemned::Condemned;
use crate::repo::records::WriterRecord;
use crate::storage::{ObjectName, Storage};
use copies::Copies;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// How to repair.
#[derive(Clone)]
pub struct RepairOptions {
    /// Other repositories: plain copies of this one, or any that may hold the same packs or chunks.
    pub from: Vec<Arc<dyn Storage>>,
    /// The host, as snapshots call it, whose files may be read where this runs; none to leave files alone.
    pub sources_of_host: Option<String>,
    /// Which packs to read whole.
    pub read: ReadChoice,
    /// Makes parity for every pack that has none, also where packs get none when they are written.
    pub add_parity: bool,
    /// Finds out and says what would be done, and changes nothing.
    pub dry_run: bool,
    /// How much of the machine to use.
    pub resources: Resources,
    /// The time now, for records.
    pub now: FileTime,
    /// This run, as other hosts are to know it.
    pub writer: WriterRecord,
    /// Who repairs, for the audit log.
    pub actor: Actor,
}

/// Which packs are read whole to find damage. Structure and records are always checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadChoice {
    /// All.
    All,
    /// None: what the structure shows, and what is set aside already.
    Structure,
    /// Those whose ids begin with one of these.
    Packs(Vec<String>),
}

/// By what an object was mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// The other one of its two copies.
    OwnCopy,
    /// Another object of the parameters.
    OtherParameters,
    /// What this host's index cache keeps of it.
    Cache,
    /// The same object of the repository at this place.
    Copy(String),
    /// Its parity.
    Parity,
    /// What had been added behind its end was cut off.
    CutOff,
    /// It follows from others and was written anew.
    WrittenAnew,
    /// It was of no more use and was removed, for this reason.
    Removed(&'static str),
    /// It was set aside, and nothing that snapshots need is lost with it.
    SetAside,
    /// It was set aside before and is sound again.
    Released,
}

/// An object that was damaged, and is not any more or does no harm any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Its name.
    pub object: String,
    /// By what.
    pub means: Means,
}

/// What was found and what became of it.
#[derive(Debug, Default)]
pub struct RepairReport {
    /// What was mended, or would be.
    pub mended: Vec<Mended>,
    /// What could not be mended, with the files that it costs, at most [`Damage::KEPT_MAX`] items.
    pub left: Vec<Damage>,
    /// How many objects could not be mended.
    pub left_count: u64,
    /// Packs that are set aside now, sound frames in them still serve.
    pub packs_set_aside: u64,
    /// Chunks that were stored again, read from what is left of damaged packs.
    pub chunks_from_remains: u64,
    /// Chunks that were stored again, read from other repositories.
    pub chunks_from_copies: u64,
    /// Chunks that were stored again, read from files of this host.
    pub chunks_from_sources: u64,
    /// Packs that had no parity and have some now.
    pub parity_added: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Bytes of those packs.
    pub bytes_read: u64,
}

/// Repairs. What cannot be mended is in the report; an error means that the repair could not go on, and may be run again.
/// [`Kind::WrongKey`], before anything is changed, if the keys are not those of an admin.
pub fn repair(repo: &Repo, options: &RepairOptions, observer: &dyn Observer) -> Result<RepairReport> {
    repo.keys().require_repairing()?;
    let mut work = Work::new(repo, options, observer);
    observer.on_event(&Event::Phase { name: "checking records", bytes_total: None, files_total: None });
    documents::mend(&mut work)?;
    repo.refresh(observer)?;
    // A list that cannot be read is told with the records; what it would say is then not known.
    let dead = Condemned::read(repo).map(Condemned::into_dead).unwrap_or_default();
    let mut found = Found::default();
    let mut packs = examined::check(repo, &dead, options.resources, &mut found, observer)?;
    let damaged_index = index::sort_out(&mut work, found)?;
    let sound = read_packs(&mut work, &mut packs)?;
    packs.heed_quarantine(&sound);
    packs::release(&mut work, &packs, &sound)?;
    packs::mend(&mut work, &mut packs)?;
    let aside = packs::set_aside(&mut work, &mut packs)?;
    sidecars::mend(&mut work, &packs)?;
    let is_index_anew = !damaged_index.is_empty();
    if is_index_anew {
        index::rebuild(&mut work, &packs, &dead, &damaged_index)?;
    }
    rescue::rescue(&mut work, &mut packs, &dead, is_index_anew)?;
    work.conclude(&packs, &aside)
}

/// Reads the packs that are asked for; those that are sound.
fn read_packs(work: &mut Work<'_>, packs: &mut examined::Packs) -> Result<Vec<PackId>> {
    let all = || packs.present.iter().map(|(id, bytes)| (*id, *bytes));
    let chosen: Vec<(PackId, u64)> = match &work.options.read {
        ReadChoice::Structure => return Ok(Vec::new()),
        ReadChoice::All => all().collect(),
        ReadChoice::Packs(prefixes) => {
            let known: Vec<String> = packs.present.keys().chain(packs.bad.packs.keys()).map(|id| id.to_hex()).collect();
            if let Some(unknown) = prefixes.iter().find(|p| !known.iter().any(|id| id.starts_with(p.as_str()))) {
                return Err(Error::new(Kind::NotFound, format!("no pack's id begins with {unknown:?}"))
                    .with_hint("`ckpt verify --read-data` names the packs that are damaged"));
            }
            let is_asked_for = |id: &PackId| prefixes.iter().any(|p| id.to_hex().starts_with(p.as_str()));
            all().filter(|(id, _)| is_asked_for(id)).collect()
        }
    };
    let run = data::Run {
        repo: work.repo,
        resources: work.options.resources,
        observer: work.observer,
        deadline: None,
        quarantine: &packs.quarantine,
    };
    // What is wrong with which pack is in the map; the sentences are for those who only look.
    let read = run.read(&chosen, &mut Found::default())?;
    work.report.packs_read = read.packs;
    work.report.bytes_read = read.bytes;
    packs.bad.merge(read.bad);
    Ok(read.sound)
}

/// A repair in progress.
struct Work<'a> {
    repo: &'a Repo,
    options: &'a RepairOptions,
    observer: &'a dyn Observer,
    copies: Copies<'a>,
    is_written_down: Cell<bool>,
    /// What cannot be mended.
    left: Found,
    report: RepairReport,
}

impl<'a> Work<'a> {
    fn new(repo: &'a Repo, options: &'a RepairOptions, observer: &'a dyn Observer) -> Work<'a> {
        let copies = Copies::new(repo, &options.from, observer);
        let (left, report) = (Found::default(), RepairReport::default());
        Work { repo, options, observer, copies, is_written_down: Cell::new(false), left, report }
    }

    /// Puts these bytes, which belong there, under the name.
    fn replace(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        self.write_down()?;
        self.repo.storage().replace(name, bytes)
    }

    /// Writes into the audit log that a repair begins, before its first change. A log that is damaged itself hinders none.
    fn write_down(&self) -> Result<()> {
        if self.is_written_down.replace(true) {
            return Ok(());
        }
        let from = self.options.from.iter().map(|storage| storage.describe()).collect::<Vec<_>>();
        let details = [("from".to_owned(), from.join(", "))].into_iter().filter(|(_, from)| !from.is_empty()).collect();
        let action = Action { name: "repair", objects: Vec::new(), details };
        match audit::append(self.repo, &self.options.actor, &action, self.options.now) {
            Err(error) if error.kind() == Kind::Damaged => {
                let text = format!("this repair is not in the audit log: {error}");
                self.observer.on_event(&Event::Warning { text: &text });
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Notes that an object is mended, or would be.
    fn note(&mut self, object: impl fmt::Display, means: Means) {
        let object = object.to_string();
        self.observer.on_event(&Event::Detail { text: &format!("{object}: {means}") });
        self.report.mended.push(Mended { object, means });
    }

    fn check_interrupt(&self) -> Result<()> {
        check_interrupt(self.observer)
    }

    /// The report, once it is known what is lost with the packs that were set aside in this run.
    fn conclude(mut self, packs: &examined::Packs, aside: &[PackId]) -> Result<RepairReport> {
        let blamed: HashSet<String> = self.left.damage.iter().map(|d| d.object.clone()).collect();
        for id in aside {
            let name = crate::repo::names::pack(*id)?;
            if !blamed.contains(name.as_str()) {
                self.note(name, Means::SetAside);
            }
        }
        let before = packs.quarantine.iter().filter(|(id, _)| packs.bad.packs.contains_key(id));
        let all: HashSet<&PackId> = before.map(|(id, _)| id).chain(aside).collect();
        self.report.packs_set_aside = all.len() as u64;
        self.report.left_count = self.left.count;
        self.report.left = self.left.damage;
        Ok(self.report)
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Means::OwnCopy => f.write_str("from its other copy"),
            Means::OtherParameters => f.write_str("from the other parameters"),
            Means::Cache => f.write_str("from this host's cache"),
            Means::Copy(place) => write!(f, "from {place}"),
            Means::Parity => f.write_str("by its parity"),
            Means::CutOff => f.write_str("what had been added behind its end is cut off"),
            Means::WrittenAnew => f.write_str("written anew"),
            Means::Removed(why) => write!(f, "removed, {why}"),
            Means::SetAside => f.write_str("set aside, nothing that snapshots need is lost with it"),
            Means::Released => f.write_str("sound again, no longer set aside"),
        }
    }
}
