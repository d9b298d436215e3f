//! What stays, what goes and what is copied: planned from the survey, nothing changed.
//!
//! A plan decides nothing: what is condemned by it is looked at again (`collect.rs`).

use super::{MaxUnused, PackVerdict, PruneReport, Run, Verdict};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::repo::condemned::Condemned;
use crate::repo::index::KnownPack;
use crate::repo::index::survey::{Survey, Usage};
use crate::repo::index_object::IndexWriter;
use crate::repo::pack::{self, PackKind};
use crate::repo::quarantine::Quarantine;
use crate::repo::reach::{self, Unreadable};
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, names};
use crate::sabotage::is_planted;
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
    /// Packs that nothing needs yet and whose writer may be at work.
    of_writers: Vec<PlannedPack>,
    /// How many of those that stay are sparse, but cannot be copied with this key.
    pub(super) unopened: usize,
}

/// A pack and what is needed of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedPack {
    pub(super) id: PackId,
    pub(super) bytes: u64,
    kind: PackKind,
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

    /// Every pack and what becomes of it.
    pub(super) fn verdicts(&self) -> Vec<PackVerdict> {
        let of = |packs: &[PlannedPack], verdict| {
            let judged = |p: &PlannedPack| PackVerdict { id: p.id, bytes: p.bytes, bytes_used: p.used.bytes, verdict };
            packs.iter().map(judged).collect::<Vec<_>>()
        };
        let orphans = self.orphans.iter().map(|&(id, bytes)| PackVerdict {
            id,
            bytes,
            bytes_used: 0,
            verdict: Verdict::Unreadable,
        });
        let mut verdicts: Vec<_> = of(&self.staying, Verdict::Stays)
            .into_iter()
            .chain(of(&self.sparse, Verdict::Sparse))
            .chain(of(&self.unused, Verdict::Unneeded))
            .chain(of(&self.of_writers, Verdict::OfWriter))
            .chain(orphans)
            .collect();
        verdicts.sort_by_key(|verdict| verdict.id);
        verdicts
    }

    /// Puts the numbers into the report.
    pub(super) fn describe(&self, report: &mut PruneReport) {
        let unneeded = self.unneeded();
        report.packs_kept = (self.staying.len() + self.of_writers.len()) as u64;
        report.packs_of_writers = self.of_writers.len() as u64;
        report.bytes_of_writers = self.of_writers.iter().map(|p| p.bytes).sum();
        report.packs_deleted = unneeded.len() as u64;
        report.packs_repacked = self.sparse.len() as u64;
        report.bytes_repacked = self.sparse.iter().map(|p| p.used.bytes).sum();
        let gone = unneeded.iter().map(|(_, bytes)| bytes).chain(self.sparse.iter().map(|p| &p.bytes)).sum::<u64>();
        report.bytes_freed = gone.saturating_sub(report.bytes_repacked);
        report.bytes_unused_left = self.staying.iter().map(PlannedPack::unused_bytes).sum();
    }

    /// Corrects the report when not all victims went: what something new needs stays.
    pub(super) fn describe_rescued(&self, victims: &[PackId], dead: &[PackId], report: &mut PruneReport) {
        let dead: HashSet<&PackId> = dead.iter().collect();
        let sparse: HashSet<PackId> = self.sparse.iter().map(|pack| pack.id).collect();
        let bytes_of: HashMap<PackId, u64> =
            self.unneeded().into_iter().chain(self.sparse.iter().map(|p| (p.id, p.bytes))).collect();
        for id in victims.iter().filter(|id| !dead.contains(id)) {
            let counted = if sparse.contains(id) { &mut report.packs_repacked } else { &mut report.packs_deleted };
            *counted = counted.saturating_sub(1);
            report.packs_kept += 1;
            report.bytes_freed = report.bytes_freed.saturating_sub(bytes_of.get(id).copied().unwrap_or(0));
        }
    }

    /// Lists packs that stay and that no index object lists, for a reader may be without them otherwise.
    pub(super) fn list_unlisted(&self, repo: &Repo) -> Result<()> {
        let unlisted = self.staying.iter().chain(&self.sparse).filter(|p| !p.is_listed);
        list_packs(repo, &unlisted.map(|p| (p.id, p.bytes)).collect::<Vec<_>>())
    }
}

/// Lists packs in an index object of their own.
pub(super) fn list_packs(repo: &Repo, packs: &[(PackId, u64)]) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    // A killed writer may not have made their names durable, and what is listed is relied on.
    repo.storage().sync_folder(names::PACKS)?;
    let id = random_index_id()?;
    let mut index = IndexWriter::create(repo, SnapshotId::from_bytes(*id.as_bytes()))?;
    for &(pack, bytes) in packs {
        index.append(repo.keys(), &pack::read_summary(repo, pack, bytes)?)?;
    }
    index.finish(id)?;
    repo.index().list_packs(id, &packs.iter().map(|(pack, _)| *pack).collect::<Vec<_>>())?;
    repo.index().finish_index_object(id)
}

/// A fresh name for an index object.
pub(super) fn random_index_id() -> Result<IndexId> {
    let mut random = [0u8; IndexId::BYTES];
    getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    Ok(IndexId::from_bytes(random))
}

/// What was looked at before anything was marked.
pub(super) struct Surroundings<'c> {
    /// The packs that were there before anything else was looked at: later ones are not to go.
    pub(super) candidates: HashSet<PackId>,
    /// The transactions that were open after that.
    pub(super) writers: HashSet<SnapshotId>,
    /// What is condemned already.
    pub(super) condemned: &'c Condemned,
}

/// Sorts the packs by what is marked. [`Kind::Damaged`] if anything live has no home.
pub(super) fn plan(
    run: &Run<'_>,
    survey: &Survey<'_>,
    surroundings: Surroundings<'_>,
    soundness: &mut Soundness,
) -> Result<Plan> {
    let Surroundings { candidates, writers, condemned } = surroundings;
    run.observer.on_event(&Event::Phase { name: "planning", bytes_total: None, files_total: None });
    // Again, for what is live may lie in packs that are new.
    let mut present = run.packs_present()?;
    present.retain(|id, _| !condemned.contains(id));
    let known = run.repo.index().packs()?;
    soundness.heed_quarantine(run.repo, survey)?;
    let mut whole: Vec<&KnownPack> = known.iter().filter(|p| present.get(&p.id) == Some(&p.bytes)).collect();
    let vanished = |p: &&KnownPack| soundness.is_set_aside(&p.id) && !present.contains_key(&p.id);
    let vanished: Vec<PackId> = known.iter().filter(vanished).map(|p| p.id).collect();
    survey.set_usable(&whole.iter().map(|p| p.id).collect::<Vec<_>>())?;
    let usage: HashMap<PackId, (Usage, Usage)> = whole.iter().map(|p| p.id).zip(survey.usage()?).collect();
    soundness.compare(run.repo, survey)?;
    whole.retain(|p| !soundness.is_spoilt(&p.id));
    let mut packs = rank_by_density(survey, &whole, &usage, soundness)?;
    refuse_homeless(survey)?;
    let used = survey.used()?;
    for (pack, used) in packs.iter_mut().zip(used) {
        pack.used = used;
    }
    let owner_of: HashMap<PackId, SnapshotId> = known.iter().map(|p| (p.id, p.transaction)).collect();
    let is_open = |id: &PackId| owner_of.get(id).is_some_and(|owner| writers.contains(owner));
    let is_of_writer = |id: &PackId| !candidates.contains(id) || is_open(id);
    let whole_ids: HashSet<PackId> = whole.iter().map(|p| p.id).collect();
    let mut orphans: Vec<_> =
        present.into_iter().filter(|(id, _)| !whole_ids.contains(id) && !is_of_writer(id)).collect();
    // What is missing and set aside leaves the index as any pack does: by a final list.
    orphans.extend(vanished.into_iter().filter(|id| !is_open(id)).map(|id| (id, 0)));
    orphans.sort_unstable();
    // By count, not by bytes: a chunk may be so small a part of its frame that its share rounds to nothing.
    let (needed, unneeded): (Vec<_>, Vec<_>) = packs.into_iter().partition(|p| p.used.chunks > 0);
    let (of_writers, unused): (Vec<_>, Vec<_>) = unneeded.into_iter().partition(|p| is_of_writer(&p.id));
    // A pack that is being written is dense soon, and its writer relies on all of it.
    let (of_open, needed): (Vec<_>, Vec<_>) = needed.into_iter().partition(|p| is_of_writer(&p.id));
    let (mut staying, sparse) = choose_sparse(needed, run.options.max_unused);
    staying.extend(of_open);
    // What cannot be opened cannot be copied; behind the others, so that a chunk is rather kept where it stays anyway.
    let (sparse, unopened): (Vec<_>, Vec<_>) = sparse.into_iter().partition(|p| run.repo.keys().opens(p.kind));
    staying.extend(&unopened);
    let mut plan = Plan { staying, sparse, unused, orphans, of_writers, unopened: unopened.len() };
    settle_homes(survey, &mut plan)?;
    Ok(plan)
}

/// Which packs do not hold the bytes they should, as far as that was asked. Each is read once.
#[derive(Debug, Default)]
pub(super) struct Soundness {
    verdicts: HashMap<PackId, bool>,
    quarantine: Option<Quarantine>,
}

impl Soundness {
    /// True if the pack was found damaged.
    pub(super) fn is_spoilt(&self, id: &PackId) -> bool {
        self.verdicts.get(id) == Some(&false)
    }

    /// Reads what is set aside, once. A pack of which nothing can be relied on is no home; of others the bad chunks are known,
    /// so that their bytes need not be compared with their names, which they do not match.
    pub(super) fn heed_quarantine(&mut self, repo: &Repo, survey: &Survey<'_>) -> Result<()> {
        if self.quarantine.is_some() {
            return Ok(());
        }
        let quarantine = Quarantine::read(repo)?;
        survey.set_bad(quarantine.chunks())?;
        self.verdicts.extend(quarantine.iter().map(|(id, bad)| (*id, bad.is_some())));
        self.quarantine = Some(quarantine);
        Ok(())
    }

    /// True if the pack is set aside: every other home is better.
    pub(super) fn is_set_aside(&self, id: &PackId) -> bool {
        self.quarantine.as_ref().is_some_and(|quarantine| quarantine.contains(id))
    }

    /// Takes packs for sound.
    pub(super) fn trust(&mut self, packs: &[PackId]) {
        self.verdicts.extend(packs.iter().map(|id| (*id, true)));
    }

    /// Reads the usable packs that share chunks with others, or hold what such chunks are coded against; true if any is
    /// spoilt that was not known to be. A copy may only go because another stays if that other one is sound, and only reading it
    /// tells. Such packs are few: what two hosts stored at once, or what was stored again after damage.
    pub(super) fn compare(&mut self, repo: &Repo, survey: &Survey<'_>) -> Result<bool> {
        let mut is_any_spoilt = false;
        for id in survey.contested()? {
            if self.verdicts.contains_key(&id) {
                continue;
            }
            let bytes = repo.storage().size(&names::pack(id)?)?.unwrap_or(0);
            let is_sound = is_planted("copies-not-compared")
                || match pack::matches_its_name(repo.storage(), id, bytes) {
                    Ok(is_sound) => is_sound,
                    Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing) => false,
                    Err(error) => return Err(error),
                };
            is_any_spoilt |= !is_sound;
            self.verdicts.insert(id, is_sound);
        }
        Ok(is_any_spoilt)
    }
}

/// Marks what these snapshots need. [`Kind::Damaged`] if any of it cannot be read.
pub(super) fn mark(repo: &Repo, survey: &Survey<'_>, snapshots: &[Snapshot], observer: &dyn Observer) -> Result<()> {
    let bytes_total = snapshots.iter().filter_map(|s| s.tree).map(|t| t.bytes).sum();
    observer.on_event(&Event::Phase { name: "marking", bytes_total: Some(bytes_total), files_total: None });
    let mut first: Option<Unreadable> = None;
    reach::mark(repo, survey, snapshots, observer, &mut |found| first = first.take().or(Some(found)))?;
    match first.filter(|_| !is_planted("unreadable-snapshot-passed-over")) {
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
fn rank_by_density(
    survey: &Survey<'_>,
    whole: &[&KnownPack],
    usage: &HashMap<PackId, (Usage, Usage)>,
    soundness: &Soundness,
) -> Result<Vec<PlannedPack>> {
    let planned = |p: &&KnownPack| {
        let (all, used) = usage.get(&p.id).copied().unwrap_or_default();
        PlannedPack { id: p.id, bytes: p.bytes, kind: p.kind, is_listed: p.is_listed, all, used }
    };
    let mut packs: Vec<PlannedPack> = whole.iter().map(planned).collect();
    packs.sort_by_key(|p| {
        (soundness.is_set_aside(&p.id), !p.is_listed, std::cmp::Reverse((p.density(), p.all.bytes)), p.id)
    });
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
    if plan.sparse.is_empty() {
        return Ok(());
    }
    survey.set_usable(&plan.staying_and_sparse())?;
    let used = survey.used()?;
    for (pack, used) in plan.staying.iter_mut().chain(&mut plan.sparse).zip(used) {
        pack.used = used;
    }
    let (needed, unused): (Vec<_>, Vec<_>) =
        std::mem::take(&mut plan.sparse).into_iter().partition(|p| p.used.chunks > 0);
    plan.sparse = needed;
    if !unused.is_empty() {
        plan.unused.extend(unused);
        // The ranks are positions, so the packs that went must not leave gaps.
        survey.set_usable(&plan.staying_and_sparse())?;
    }
    Ok(())
}
