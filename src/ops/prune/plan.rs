//! What stays, what goes and what is copied: decided from the survey, nothing changed.

use super::{MaxUnused, PruneReport};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::repo::index::KnownPack;
use crate::repo::index::survey::{Survey, Usage};
use crate::repo::index_object::IndexWriter;
use crate::repo::pack;
use crate::repo::reach::{self, Unreadable};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, names};
use std::collections::{HashMap, HashSet};

/// Sorted into what stays, what is copied and goes, and what goes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The packs that stay, the most preferred home first.
    pub(super) staying: Vec<PlannedPack>,
    /// The packs whose live chunks are copied, the sparsest last; they rank behind those that stay.
    pub(super) sparse: Vec<PlannedPack>,
    /// Known packs without a live chunk, or whose live chunks all have another home.
    unused: Vec<PlannedPack>,
    /// Objects under the names of packs that no index knows: unfinished business of killed runs, unreadable.
    orphans: Vec<(PackId, u64)>,
}

/// A pack and what is needed of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedPack {
    pub(super) id: PackId,
    pub(super) bytes: u64,
    is_listed: bool,
    all: Usage,
    used: Usage,
}

impl PlannedPack {
    fn unused_bytes(&self) -> u64 {
        self.all.bytes.saturating_sub(self.used.bytes)
    }

    /// Thousandths of its frames that are needed.
    fn density(&self) -> u64 {
        self.used.bytes.saturating_mul(1000) / self.all.bytes.max(1)
    }
}

impl Plan {
    /// The packs that go without being copied, with their lengths.
    pub(super) fn unneeded(&self) -> Vec<(PackId, u64)> {
        self.unused.iter().map(|p| (p.id, p.bytes)).chain(self.orphans.iter().copied()).collect()
    }

    /// Every pack that goes.
    pub(super) fn all_victims(&self) -> Vec<PackId> {
        self.unneeded().into_iter().map(|(id, _)| id).chain(self.sparse.iter().map(|p| p.id)).collect()
    }

    /// Every pack that stays as long as nothing has been copied, by rank.
    pub(super) fn staying_and_sparse(&self) -> Vec<PackId> {
        self.staying.iter().chain(&self.sparse).map(|p| p.id).collect()
    }

    /// Puts the numbers into the report.
    pub(super) fn describe(&self, report: &mut PruneReport) {
        let unneeded = self.unneeded();
        report.packs_kept = self.staying.len() as u64;
        report.packs_deleted = unneeded.len() as u64;
        report.packs_repacked = self.sparse.len() as u64;
        report.bytes_repacked = self.sparse.iter().map(|p| p.used.bytes).sum();
        let gone = unneeded.iter().map(|(_, bytes)| bytes).chain(self.sparse.iter().map(|p| &p.bytes)).sum::<u64>();
        report.bytes_freed = gone.saturating_sub(report.bytes_repacked);
        report.bytes_unused_left = self.staying.iter().map(PlannedPack::unused_bytes).sum();
    }

    /// Lists packs that stay and that no index object lists, for a reader may be without them otherwise.
    pub(super) fn list_unlisted(&self, repo: &Repo) -> Result<()> {
        let unlisted: Vec<_> = self.staying.iter().chain(&self.sparse).filter(|p| !p.is_listed).collect();
        if unlisted.is_empty() {
            return Ok(());
        }
        // A killed writer may not have made their names durable, and what is listed is relied on.
        repo.storage().sync_folder(names::PACKS)?;
        let id = random_index_id()?;
        let mut index = IndexWriter::create(repo, SnapshotId::from_bytes(*id.as_bytes()))?;
        for pack in &unlisted {
            index.append(&pack::read_summary(repo, pack.id, pack.bytes)?)?;
        }
        index.finish(id)?;
        repo.index().list_packs(id, &unlisted.iter().map(|p| p.id).collect::<Vec<_>>())?;
        repo.index().finish_index_object(id)
    }
}

/// A fresh name for an index object.
pub(super) fn random_index_id() -> Result<IndexId> {
    let mut random = [0u8; IndexId::BYTES];
    getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    Ok(IndexId::from_bytes(random))
}

/// Marks what is live and sorts the packs. [`Kind::Damaged`] if anything live cannot be read or has no home.
pub(super) fn plan(
    repo: &Repo,
    survey: &Survey<'_>,
    snapshots: &[Snapshot],
    max_unused: MaxUnused,
    observer: &dyn Observer,
) -> Result<Plan> {
    mark(repo, survey, snapshots, observer)?;
    observer.on_event(&Event::Phase { name: "planning", bytes_total: None, files_total: None });
    let mut present: HashMap<PackId, u64> = HashMap::new();
    for listed in repo.storage().list(names::PACKS)? {
        present.extend(names::pack_id(&listed.name).map(|id| (id, listed.bytes)));
    }
    let known = repo.index().packs()?;
    let mut whole: Vec<&KnownPack> = known.iter().filter(|p| present.get(&p.id) == Some(&p.bytes)).collect();
    survey.set_usable(&whole.iter().map(|p| p.id).collect::<Vec<_>>())?;
    let spoilt = spoilt_homes(repo, survey, &present)?;
    whole.retain(|p| !spoilt.contains(&p.id));
    let mut packs = rank_by_density(survey, &whole)?;
    refuse_homeless(survey)?;
    let used = survey.used()?;
    for (pack, used) in packs.iter_mut().zip(used) {
        pack.used = used;
    }
    let whole_ids: HashSet<PackId> = whole.iter().map(|p| p.id).collect();
    let mut orphans: Vec<_> = present.into_iter().filter(|(id, _)| !whole_ids.contains(id)).collect();
    orphans.sort_unstable();
    // By count, not by bytes: a chunk may be so small a part of its frame that its share rounds to nothing.
    let (needed, unused): (Vec<_>, Vec<_>) = packs.into_iter().partition(|p| p.used.chunks > 0);
    let (staying, sparse) = choose_sparse(needed, max_unused);
    let mut plan = Plan { staying, sparse, unused, orphans };
    settle_homes(survey, &mut plan)?;
    Ok(plan)
}

/// Packs that share chunks with others, or hold what such chunks are coded against, and do not hold the bytes they should. A copy may only go because another
/// stays if that other one is sound, and only reading it tells. Such packs are few: what two hosts stored at once, or
/// what was stored again after damage.
fn spoilt_homes(repo: &Repo, survey: &Survey<'_>, present: &HashMap<PackId, u64>) -> Result<HashSet<PackId>> {
    let mut spoilt = HashSet::new();
    for id in survey.contested()? {
        let bytes = present.get(&id).copied().unwrap_or(0);
        match pack::matches_its_name(repo.storage(), id, bytes) {
            Ok(true) => {}
            Ok(false) => drop(spoilt.insert(id)),
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing) => drop(spoilt.insert(id)),
            Err(error) => return Err(error),
        }
    }
    Ok(spoilt)
}

fn mark(repo: &Repo, survey: &Survey<'_>, snapshots: &[Snapshot], observer: &dyn Observer) -> Result<()> {
    let bytes_total = snapshots.iter().filter_map(|s| s.tree).map(|t| t.bytes).sum();
    observer.on_event(&Event::Phase { name: "marking", bytes_total: Some(bytes_total), files_total: None });
    let mut first: Option<Unreadable> = None;
    reach::mark(repo, survey, snapshots, observer, &mut |found| first = first.take().or(Some(found)))?;
    match first {
        None => Ok(()),
        Some(found) => Err(refusal(Error::damaged(format!(
            "snapshot {} cannot be read completely: {}",
            found.snapshot.short(),
            found.error
        )))),
    }
}

/// Damage is a reason to delete nothing: what looks unused may be what a repair needs.
pub(super) fn refusal(error: Error) -> Error {
    error.while_doing("nothing is deleted").with_hint(
        "`ckpt verify` names everything that is hit; back up or repair what is damaged, or forget those snapshots",
    )
}

/// Ranks the packs so that a chunk with several homes is needed where most is needed anyway.
fn rank_by_density(survey: &Survey<'_>, whole: &[&KnownPack]) -> Result<Vec<PlannedPack>> {
    let ids: Vec<PackId> = whole.iter().map(|p| p.id).collect();
    survey.set_usable(&ids)?;
    let mut packs: Vec<PlannedPack> = whole
        .iter()
        .zip(survey.usage()?)
        .map(|(p, (all, live))| PlannedPack { id: p.id, bytes: p.bytes, is_listed: p.is_listed, all, used: live })
        .collect();
    packs.sort_by_key(|p| (!p.is_listed, std::cmp::Reverse((p.density(), p.all.bytes)), p.id));
    survey.set_usable(&packs.iter().map(|p| p.id).collect::<Vec<_>>())?;
    Ok(packs)
}

/// An error if any live chunk cannot be had from usable packs.
pub(super) fn refuse_homeless(survey: &Survey<'_>) -> Result<()> {
    match survey.homeless(1)? {
        (0, _) => Ok(()),
        (count, some) => {
            let example = some.first().map(|id| format!(", {} for one", id.short())).unwrap_or_default();
            let text = format!(
                "{count} chunks that snapshots need are in no whole pack, or need others that are in none{example}"
            );
            Err(refusal(Error::damaged(text)))
        }
    }
}

/// The sparsest packs, as many as bring the unused bytes of the rest under the limit.
fn choose_sparse(needed: Vec<PlannedPack>, max_unused: MaxUnused) -> (Vec<PlannedPack>, Vec<PlannedPack>) {
    let used: u64 = needed.iter().map(|p| p.used.bytes).sum();
    let limit = match max_unused {
        MaxUnused::Unlimited => u64::MAX,
        MaxUnused::Bytes(bytes) => bytes,
        // Of all bytes, used and unused together. A float is exact enough for a limit and saturates when converted.
        MaxUnused::Percent(percent) if percent >= 100.0 => u64::MAX,
        MaxUnused::Percent(percent) => (used as f64 * percent.max(0.0) / (100.0 - percent.max(0.0))) as u64,
    };
    let mut unused: u64 = needed.iter().map(PlannedPack::unused_bytes).sum();
    let mut by_density: Vec<PackId> = needed.iter().filter(|p| p.unused_bytes() > 0).map(|p| p.id).collect();
    let of: HashMap<PackId, PlannedPack> = needed.iter().map(|p| (p.id, *p)).collect();
    by_density.sort_by_key(|id| (of[id].density(), std::cmp::Reverse(of[id].unused_bytes()), *id));
    let mut chosen = HashSet::new();
    for id in by_density {
        if unused <= limit {
            break;
        }
        unused -= of[&id].unused_bytes();
        chosen.insert(id);
    }
    needed.into_iter().partition(|p| !chosen.contains(&p.id))
}

/// Ranks what stays before what is copied, and lets a pack go that is not needed any more once its chunks are.
fn settle_homes(survey: &Survey<'_>, plan: &mut Plan) -> Result<()> {
    survey.set_usable(&plan.staying_and_sparse())?;
    let used = survey.used()?;
    for (pack, used) in plan.staying.iter_mut().chain(&mut plan.sparse).zip(used) {
        pack.used = used;
    }
    let (needed, unused): (Vec<_>, Vec<_>) =
        std::mem::take(&mut plan.sparse).into_iter().partition(|p| p.used.chunks > 0);
    plan.sparse = needed;
    plan.unused.extend(unused);
    // The ranks are positions, so the packs that went must not leave gaps.
    survey.set_usable(&plan.staying_and_sparse())
}
