//! Index objects: written anew from the tables of packs, then the damaged ones go.
//!
//! What a damaged object still says of packs that are not there is kept, since a pack that is missing in one listing is not
//! proven gone; only final lists take packs out of the index.

use super::{Means, Work};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::ops::examine::found::Found;
use crate::ops::examine::packs::Packs;
use crate::repo::index_object::{self, IndexWriter};
use crate::repo::names;
use crate::repo::pack::{self, PackSummary};
use crate::storage::ObjectName;
use std::collections::{BTreeSet, HashSet};

/// The index objects among what the structure showed to be damaged. Packs are in a map of their own; the rest is left.
pub(super) fn sort_out(work: &mut Work<'_>, found: Found) -> Result<BTreeSet<IndexId>> {
    let mut damaged = BTreeSet::new();
    for damage in found.damage {
        let name = ObjectName::new(damage.object.as_str())?;
        match names::index_id(&name) {
            Some(id) => drop(damaged.insert(id)),
            None if names::pack_id(&name).is_some() => {}
            None => drop(work.left.add(name.as_str(), damage.what)),
        }
    }
    Ok(damaged)
}

/// Writes one object that lists every pack which no sound one lists, and removes the damaged ones.
pub(super) fn rebuild(
    work: &mut Work<'_>,
    packs: &Packs,
    dead: &HashSet<PackId>,
    damaged: &BTreeSet<IndexId>,
) -> Result<()> {
    let files_total = Some(packs.present.len() as u64);
    work.observer.on_event(&Event::Phase { name: "writing the index anew", bytes_total: None, files_total });
    if !work.options.dry_run {
        work.write_down()?;
        // What is listed is durable: the writer of an unlisted pack may have died before it was.
        work.repo.storage().sync_folder(names::PACKS)?;
        Rebuild { work, dead, damaged, id: random_id()?, writer: None, listed: HashSet::new() }.run(packs)?;
        for id in damaged {
            work.repo.storage().delete(&names::index(*id)?)?;
        }
        work.repo.index().remove_index_objects(&damaged.iter().copied().collect::<Vec<_>>())?;
    }
    for id in damaged {
        work.note(names::index(*id)?, Means::WrittenAnew);
    }
    if damaged.is_empty() {
        work.note(names::INDEX, Means::WrittenAnew);
    }
    Ok(())
}

struct Rebuild<'a> {
    work: &'a Work<'a>,
    dead: &'a HashSet<PackId>,
    damaged: &'a BTreeSet<IndexId>,
    id: IndexId,
    writer: Option<IndexWriter>,
    listed: HashSet<PackId>,
}

impl Rebuild<'_> {
    fn run(mut self, packs: &Packs) -> Result<()> {
        let repo = self.work.repo;
        for (&id, &bytes) in &packs.present {
            self.work.check_interrupt()?;
            if !packs.bad.is_whole_bad(&id) && self.is_wanted(id)? {
                match pack::read_summary(repo, id, bytes) {
                    Ok(summary) => self.append(&summary)?,
                    // Deleted by a prune since it was listed.
                    Err(error) if error.kind() == Kind::Missing => {}
                    Err(error) => return Err(error),
                }
            }
            self.work.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
        }
        for &old in self.damaged {
            let read = index_object::read(repo, old, &mut |summary| {
                if self.is_wanted(summary.id)? { self.append(&summary) } else { Ok(()) }
            });
            match read {
                Ok(_) => {}
                // Nothing of it can be read: the packs have told what there is.
                Err(error) if matches!(error.kind(), Kind::Missing | Kind::Damaged | Kind::Unreachable) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(writer) = self.writer else { return Ok(()) };
        writer.finish(self.id)?;
        repo.index().list_packs(self.id, &self.listed.iter().copied().collect::<Vec<_>>())?;
        repo.index().finish_index_object(self.id)
    }

    /// True unless the pack is dead, or listed in the new object or in a sound one.
    fn is_wanted(&self, id: PackId) -> Result<bool> {
        if self.dead.contains(&id) || self.listed.contains(&id) {
            return Ok(false);
        }
        Ok(self.work.repo.index().index_objects_listing(&[id])?.iter().all(|index| self.damaged.contains(index)))
    }

    fn append(&mut self, summary: &PackSummary) -> Result<()> {
        let repo = self.work.repo;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let by = SnapshotId::from_bytes(*self.id.as_bytes());
                self.writer.insert(IndexWriter::create(repo, by)?)
            }
        };
        writer.append(repo.keys(), summary)?;
        self.listed.insert(summary.id);
        repo.index().add_packs(std::slice::from_ref(summary), None)
    }
}

fn random_id() -> Result<IndexId> {
    let mut random = [0u8; IndexId::BYTES];
    getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    Ok(IndexId::from_bytes(random))
}
