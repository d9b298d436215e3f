//! Everything that live snapshots need: is it there, and who is hit where it is not?

use super::found::Found;
use super::hits;
use super::packs::Packs;
use crate::error::{Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, PackId};
use crate::repo::index::survey::Survey;
use crate::repo::reach;
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, names};
use std::collections::{HashMap, HashSet};

/// The most lost chunks for which hit files are looked for: bounds memory when nearly everything is lost.
const LOST_MAX: usize = 500_000;

/// What was walked, and what of it cannot be had.
pub(crate) struct Live {
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) chunks: u64,
    /// Chunks that cannot be had, each with the position of the damage that is to blame.
    pub(crate) lost: HashMap<ChunkId, usize>,
    /// Those of them that are nodes or lists of files.
    pub(crate) lost_nodes: HashSet<ChunkId>,
    /// True if needed chunks lie in packs that no index object lists.
    pub(crate) needs_unlisted: bool,
}

/// Walks every live snapshot and finds chunks that cannot be had.
pub(crate) fn check(repo: &Repo, packs: &Packs, found: &mut Found, observer: &dyn Observer) -> Result<Live> {
    repo.refresh(observer)?;
    match repo.learn_unlisted_packs() {
        // Named with the small objects already; what is known serves.
        Err(error) if error.kind() != Kind::Damaged => return Err(error),
        _ => {}
    }
    let snapshots = repo.snapshots();
    let bytes_total = snapshots.iter().filter_map(|s| s.tree).map(|t| t.bytes).sum();
    observer.on_event(&Event::Phase { name: "walking snapshots", bytes_total: Some(bytes_total), files_total: None });
    let survey = repo.index().survey()?;
    let mut unreadable = Vec::new();
    reach::mark(repo, &survey, &snapshots, observer, &mut |found| unreadable.push(found))?;
    let mut lost: HashMap<ChunkId, usize> = HashMap::new();
    let mut lost_nodes = HashSet::new();
    for item in unreadable {
        let object = object_of(repo, item.chunk)?;
        let at = found.add(&object, item.error.to_string());
        found.add_file(at, item.snapshot, item.path.as_deref().unwrap_or_default());
        lost.insert(item.chunk, at);
        lost_nodes.insert(item.chunk);
    }
    let (chunks, needs_unlisted) = find_lost(repo, &survey, packs, found, &mut lost)?;
    Ok(Live { snapshots, chunks, lost, lost_nodes, needs_unlisted })
}

impl Live {
    /// Adds the files that need what is lost to the damage that is to blame.
    pub(crate) fn name_files(&self, repo: &Repo, found: &mut Found, observer: &dyn Observer) -> Result<()> {
        if self.lost.is_empty() {
            return Ok(());
        }
        observer.on_event(&Event::Phase {
            name: "finding the files that are hit",
            bytes_total: None,
            files_total: None,
        });
        let is_lost = |id: &ChunkId| self.lost.contains_key(id);
        hits::find(repo, &self.snapshots, &is_lost, observer, &mut |hit| {
            if let Some(&at) = self.lost.get(&hit.chunk) {
                found.add_file(at, hit.snapshot.id, &hit.path());
            }
        })
    }
}

/// Finds live chunks that cannot be had: those in no pack, those that are bad in each of their homes or lie only in packs of
/// which nothing can be relied on, and those that need such. Returns how many are live, with what they need, and whether an index
/// object is missing.
fn find_lost(
    repo: &Repo,
    survey: &Survey<'_>,
    packs: &Packs,
    found: &mut Found,
    lost: &mut HashMap<ChunkId, usize>,
) -> Result<(u64, bool)> {
    let usable: Vec<PackId> = packs.present.keys().filter(|id| !packs.bad.is_whole_bad(id)).copied().collect();
    survey.set_bad(packs.bad.chunks())?;
    survey.set_usable(&usable)?;
    let live = survey.live_chunks()?;
    let (_, homeless) = survey.homeless(LOST_MAX)?;
    let lost_count = homeless.len();
    for id in homeless {
        let at = blame(repo, survey, packs, id, found)?;
        lost.entry(id).or_insert(at);
    }
    let listed: HashSet<PackId> = repo.index().packs()?.iter().filter(|p| p.is_listed).map(|p| p.id).collect();
    survey.set_usable(&usable.into_iter().filter(|id| listed.contains(id)).collect::<Vec<_>>())?;
    let (unlisted, _) = survey.homeless(0)?;
    let missing = unlisted.checked_sub(lost_count as u64).filter(|&count| count > 0 && lost_count < LOST_MAX);
    if let Some(count) = missing {
        let text =
            format!("{count} chunks that snapshots need are in packs that no index object lists: one is missing");
        found.add(names::INDEX, text);
    }
    Ok((live, missing.is_some()))
}

/// Adds the damage by which a chunk is lost, and says where it stands in the report. Of a chunk that lies somewhere and is
/// lost only with its bases, that is the damage to the first of them that is lost.
fn blame(repo: &Repo, survey: &Survey<'_>, packs: &Packs, id: ChunkId, found: &mut Found) -> Result<usize> {
    let mut id = id;
    let mut seen = HashSet::new();
    loop {
        let homes = repo.index().homes(&[id])?.pop().unwrap_or_default();
        let is_usable = |pack: &PackId| packs.present.contains_key(pack) && !packs.bad.is_whole_bad(pack);
        let sound = homes.iter().find(|h| is_usable(&h.pack) && !packs.bad.is_bad(&h.pack, &id));
        if let Some(home) = sound.filter(|_| seen.insert(id)) {
            let bases = repo.index().bases_at(&[(id, *home)])?.pop().unwrap_or_default();
            let mut next = None;
            for base in bases {
                if next.is_none() && survey.is_lost(base)? {
                    next = Some(base);
                }
            }
            if let Some(base) = next {
                id = base;
                continue;
            }
        }
        // The first home is the one to blame: see `object_of`.
        let what = match homes.first() {
            Some(home) if sound == Some(home) => {
                "chunks that snapshots need cannot be had, since they need one another"
            }
            Some(home) if is_usable(&home.pack) => "chunks that snapshots need are damaged in it",
            _ => "chunks that snapshots need are not there",
        };
        return Ok(found.add(&object_of(repo, id)?, what));
    }
}

/// The object to blame for a chunk that cannot be had: its first home.
fn object_of(repo: &Repo, id: ChunkId) -> Result<String> {
    match repo.index().homes(&[id])?.pop().unwrap_or_default().first() {
        Some(home) => Ok(names::pack(home.pack)?.to_string()),
        None => Ok(format!("chunk {id}")),
    }
}
