//! Everything that live snapshots need: is it there, and who is hit where it is not?

use super::found::Found;
use super::hits;
use super::packs::Packs;
use crate::error::{Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, PackId};
use crate::repo::index::survey::Survey;
use crate::repo::reach;
use crate::repo::{Repo, names};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The most lost chunks for which hit files are looked for: bounds memory when nearly everything is lost.
const LOST_MAX: usize = 500_000;

/// What was walked.
pub(super) struct Live {
    pub(super) snapshots: u64,
    pub(super) chunks: u64,
}

/// Walks every live snapshot, finds chunks without a sound home, and names the files that need them.
pub(super) fn check(repo: &Repo, packs: &Packs, found: &mut Found, observer: &dyn Observer) -> Result<Live> {
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
    survey.mark_bases()?;
    let mut lost: HashMap<ChunkId, usize> = HashMap::new();
    for item in unreadable {
        let object = object_of(repo, item.chunk)?;
        let at = found.add(&object, item.error.to_string());
        found.add_file(at, item.snapshot, item.path.as_deref().unwrap_or_default());
        lost.insert(item.chunk, at);
    }
    find_homeless(repo, &survey, packs, found, &mut lost)?;
    find_bad(repo, &survey, packs, found, &mut lost)?;
    if !lost.is_empty() {
        observer.on_event(&Event::Phase {
            name: "finding the files that are hit",
            bytes_total: None,
            files_total: None,
        });
        hits::find(repo, &snapshots, &lost, found, observer)?;
    }
    Ok(Live { snapshots: snapshots.len() as u64, chunks: survey.live_chunks()? })
}

/// Live chunks that are in no pack, or only in packs of which nothing can be relied on.
fn find_homeless(
    repo: &Repo,
    survey: &Survey<'_>,
    packs: &Packs,
    found: &mut Found,
    lost: &mut HashMap<ChunkId, usize>,
) -> Result<()> {
    let usable: Vec<PackId> = packs.present.keys().filter(|id| !packs.bad.is_whole_bad(id)).copied().collect();
    survey.set_usable(&usable)?;
    let (_, homeless) = survey.homeless(LOST_MAX)?;
    let lost_count = homeless.len();
    for id in homeless {
        let at = found.add(&object_of(repo, id)?, "chunks that snapshots need are not there");
        lost.entry(id).or_insert(at);
    }
    let listed: HashSet<PackId> = repo.index().packs()?.iter().filter(|p| p.is_listed).map(|p| p.id).collect();
    survey.set_usable(&usable.into_iter().filter(|id| listed.contains(id)).collect::<Vec<_>>())?;
    let (unlisted, _) = survey.homeless(0)?;
    if let Some(count) = unlisted.checked_sub(lost_count as u64).filter(|&count| count > 0 && lost_count < LOST_MAX) {
        let text =
            format!("{count} chunks that snapshots need are in packs that no index object lists: one is missing");
        found.add(names::INDEX, text);
    }
    Ok(())
}

/// Live chunks that are bad in each of their homes.
fn find_bad(
    repo: &Repo,
    survey: &Survey<'_>,
    packs: &Packs,
    found: &mut Found,
    lost: &mut HashMap<ChunkId, usize>,
) -> Result<()> {
    let bad: BTreeSet<ChunkId> = packs.bad.packs.values().flatten().flatten().copied().collect();
    for id in bad {
        let homes = repo.index().homes(&[id])?.pop().unwrap_or_default();
        if lost.len() < LOST_MAX
            && !lost.contains_key(&id)
            && homes.iter().all(|home| packs.bad.is_bad(&home.pack, &id))
            && survey.is_live(id)?
        {
            let at = found.add(&object_of(repo, id)?, "chunks that snapshots need are damaged in it");
            lost.insert(id, at);
        }
    }
    Ok(())
}

/// The object to blame for a chunk that cannot be had: its first home.
fn object_of(repo: &Repo, id: ChunkId) -> Result<String> {
    match repo.index().homes(&[id])?.pop().unwrap_or_default().first() {
        Some(home) => Ok(names::pack(home.pack)?.to_string()),
        None => Ok(format!("chunk {id}")),
    }
}
