//! What a transaction may rely on, when chunks are coded against others.
//!
//! A home may be used if its pack was there and not condemned when the transaction began, and whole when it was first met, or
//! is the transaction's own. A chunk may be relied on if it has such a home all of whose bases may be relied on, or if this
//! run is storing it: nothing is visible before every pack of the run is durable. After a killed run a delta may be durable
//! and its base not; its home is none then, and the chunk is stored again.
//!
//! # Why no ring arises
//!
//! Call a chunk *founded* if it has a home that needs nothing, or one whose bases are all founded without it. What is
//! looked for here is always a founded chunk, found in rounds: first what needs nothing, then what needs only what was
//! found before. Homes may form rings (`X` was coded against `Y`, lost that home, was stored alone, and `Y` was coded against
//! it), but a snapshot is committed only if every chunk of it is founded in packs that it relies on.
//!
//! - *Frames of one run.* Before a chunk is coded against a base, the base must be founded without that chunk
//!   ([`super::Transaction::rely_on_base`]), where a chunk that is underway counts as needing all that it was ever allowed
//!   to need. All allowances are given under one lock, and each is kept until the chunk's pack is known; so the base stays
//!   founded without the chunk, and the new home is founded whatever becomes of the others.
//! - *Several writers.* A run uses no pack that was named after it began, so what it relies on does not change beneath it,
//!   and founded chunks of two runs are founded in the union of their packs.
//! - *Condemned and missing packs* are not used at all. One that comes back, or was spared after all, adds homes, and with
//!   more homes no chunk ceases to be founded.
//! - *Prune* deletes a pack only if every chunk of every live snapshot is founded in those that stay, and copies frames with
//!   the bases they have; a home that needs nothing is never given up for one that does.

use super::{State, Transaction};
use crate::error::{Kind, Result};
use crate::ids::{ChunkId, PackId};
use crate::repo::chain::DEPTH_MAX;
use crate::repo::index::Home;
use crate::repo::names;
use crate::sabotage::is_planted;
use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

/// The most chunks that need one another in a row below one that is being stored. Less than readers accept, since a chunk
/// underway may come to need others after it has been allowed as a base.
const DEPTH_WRITTEN_MAX: usize = DEPTH_MAX / 4;

/// For fewer chunks than this, asking the index for each takes no time that anybody notices.
const FORESEEN_CHUNKS_MIN: u64 = 10_000;
/// Where the index has so many rows for each chunk that will be asked for, reading all takes as long as asking for each.
const FORESEEN_SHARE_MAX: u64 = 4;

/// How a chunk can be had.
enum Footing {
    /// This run is storing it; it may come to need these.
    Underway(Vec<ChunkId>),
    /// It lies in this pack, and needs these.
    Stored(PackId, Vec<ChunkId>),
}

/// The chunks asked for, and what they need, as far as they may be relied on.
pub(super) struct Reliance {
    founded: HashMap<ChunkId, Footing>,
}

/// A chunk whose homes all need others.
struct Candidate {
    id: ChunkId,
    /// Ways to have it, the preferred first.
    ways: Vec<Footing>,
}

impl Reliance {
    /// Looks up `ids` and what they need; `without` is the chunk that none of them may need.
    pub(super) fn of(
        transaction: &Transaction<'_>,
        state: &State,
        ids: &[ChunkId],
        without: Option<ChunkId>,
    ) -> Result<Reliance> {
        let mut reliance = Reliance { founded: HashMap::with_capacity(ids.len()) };
        let mut candidates = Vec::new();
        let mut seen: HashSet<ChunkId> = without.into_iter().filter(|_| !is_planted("base-needs-its-delta")).collect();
        let mut ahead: Vec<ChunkId> = ids.iter().copied().filter(|&id| seen.insert(id)).collect();
        let rounds = if without.is_some() { DEPTH_WRITTEN_MAX } else { DEPTH_MAX };
        for _ in 0..=rounds {
            if ahead.is_empty() {
                break;
            }
            let found = reliance.look_up(transaction, state, &ahead, without.is_some())?;
            ahead.clear();
            let needed = found.iter().flat_map(|candidate| &candidate.ways).flat_map(Footing::needs);
            ahead.extend(needed.copied().filter(|id| seen.insert(*id)));
            candidates.extend(found);
        }
        for _ in 0..rounds {
            let before = candidates.len();
            reliance.add_round(&mut candidates);
            if candidates.is_empty() || candidates.len() == before {
                break;
            }
        }
        Ok(reliance)
    }

    /// Adds what needs nothing; the rest, with what it needs.
    fn look_up(
        &mut self,
        transaction: &Transaction<'_>,
        state: &State,
        ids: &[ChunkId],
        follow_declared: bool,
    ) -> Result<Vec<Candidate>> {
        let index = transaction.repo.index();
        let mut found = Vec::new();
        let mut frames: Vec<(ChunkId, Home)> = Vec::new();
        let ids = &self.add_foreseen(transaction, state, ids)?;
        let all_homes = index.likely_homes(ids)?;
        transaction.look_at_packs(state, all_homes.iter().flatten().map(|home| home.pack))?;
        for (&id, homes) in ids.iter().zip(all_homes) {
            let is_near = |h: &&Home| state.written.contains(&h.pack) || state.relied.contains_key(&h.pack);
            let usable = || homes.iter().filter(|h| transaction.may_use(state, h.pack));
            let alone = usable().find(|h| h.base_count == 0 && is_near(h)).or(usable().find(|h| h.base_count == 0));
            let declared = state.declared.get(&id).filter(|_| follow_declared).cloned().unwrap_or_default();
            match (alone, state.underway.contains(&id)) {
                (Some(home), _) => drop(self.founded.insert(id, Footing::Stored(home.pack, Vec::new()))),
                (None, true) if declared.is_empty() => drop(self.founded.insert(id, Footing::Underway(declared))),
                (None, true) => found.push(Candidate { id, ways: vec![Footing::Underway(declared)] }),
                (None, false) => {
                    let near = usable().filter(is_near);
                    frames.extend(near.chain(usable().filter(|h| !is_near(h))).map(|home| (id, *home)));
                }
            }
        }
        for ((id, home), bases) in frames.iter().zip(index.bases_at(&frames)?) {
            if bases.len() != usize::from(home.base_count) {
                continue;
            }
            let way = Footing::Stored(home.pack, bases);
            match found.last_mut().filter(|last| last.id == *id) {
                Some(last) => last.ways.push(way),
                None => found.push(Candidate { id: *id, ways: vec![way] }),
            }
        }
        Ok(found)
    }

    /// Adds what is known without asking the index; the rest.
    fn add_foreseen(&mut self, transaction: &Transaction<'_>, state: &State, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let Some(Some(standing)) = transaction.standing.get() else { return Ok(ids.to_vec()) };
        let packs: Vec<_> = ids.iter().map(|id| standing.pack_of(id)).collect();
        transaction.look_at_packs(state, packs.iter().flatten().copied())?;
        let mut rest = Vec::new();
        for (&id, pack) in ids.iter().zip(packs) {
            let may_use = |pack: &PackId| transaction.may_use(state, *pack) || is_planted("foreseen-packs-unchecked");
            match pack.filter(may_use) {
                Some(pack) => drop(self.founded.insert(id, Footing::Stored(pack, Vec::new()))),
                None => rest.push(id),
            }
        }
        Ok(rest)
    }

    /// Moves those candidates to the founded chunks that need only what was founded before this round.
    fn add_round(&mut self, candidates: &mut Vec<Candidate>) {
        let mut added = Vec::new();
        candidates.retain_mut(|candidate| {
            let is_founded = |way: &Footing| way.needs().iter().all(|base| self.founded.contains_key(base));
            let Some(at) = candidate.ways.iter().position(is_founded) else { return true };
            added.push((candidate.id, candidate.ways.swap_remove(at)));
            false
        });
        self.founded.extend(added);
    }

    /// True if the chunk may be relied on: then it is, with all that it needs.
    pub(super) fn rely(&self, state: &mut State, id: ChunkId) -> bool {
        let asked_for = id;
        let mut ahead = vec![id];
        let mut seen = HashSet::new();
        while let Some(id) = ahead.pop() {
            // Only the first can be absent: what is founded needs what is founded.
            let Some(footing) = self.founded.get(&id) else { return false };
            if !seen.insert(id) {
                continue;
            }
            match footing {
                // Who claims a chunk again may drop it again; what others need must be stored.
                Footing::Underway(_) if id == asked_for => {}
                Footing::Underway(_) => drop(state.awaited.insert(id)),
                Footing::Stored(pack, _) if state.written.contains(pack) => {}
                Footing::Stored(pack, _) => {
                    if let Some(&bytes) = state.sizes.get(pack) {
                        state.relied.insert(*pack, bytes);
                    }
                }
            }
            if !is_planted("bases-not-relied-on") {
                ahead.extend_from_slice(footing.needs());
            }
        }
        true
    }
}

impl Footing {
    fn needs(&self) -> &[ChunkId] {
        match self {
            Footing::Underway(needs) | Footing::Stored(_, needs) => needs,
        }
    }
}

impl Transaction<'_> {
    /// Prepares for questions about `chunks` chunks of earlier runs, with at most so much memory: answers are the same, and come
    /// sooner if these are a fair part of all.
    pub fn foresee(&self, chunks: u64, memory_bytes: u64) -> Result<()> {
        if chunks >= FORESEEN_CHUNKS_MIN && self.standing.get().is_none() {
            let standing = self.repo.index().standing(chunks.saturating_mul(FORESEEN_SHARE_MAX), memory_bytes)?;
            let _ = self.standing.set(standing);
        }
        Ok(())
    }

    /// Packs that another run on this host adds meanwhile are left alone: that run may yet be revoked.
    fn may_use(&self, state: &State, pack: PackId) -> bool {
        let is_whole = || self.looked_at.lock().unwrap_or_else(PoisonError::into_inner).get(&pack) == Some(&true);
        state.written.contains(&pack) || (state.sizes.contains_key(&pack) && !self.absent.contains(&pack) && is_whole())
    }

    /// Finds out which of these packs are there and whole, once for each: one that was cut short is as good as
    /// missing. Before the commit those that are relied on are looked at again.
    fn look_at_packs(&self, state: &State, packs: impl Iterator<Item = PackId>) -> Result<()> {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        for pack in packs.filter(|pack| !self.absent.contains(pack)) {
            let Some(&bytes) = state.sizes.get(&pack).filter(|_| !looked_at.contains_key(&pack)) else { continue };
            let found = match self.repo.storage().size(&names::pack(pack)?) {
                // Something that is no object has the name.
                Err(error) if error.kind() == Kind::Damaged => None,
                found => found?,
            };
            looked_at.insert(pack, found == Some(bytes) || super::is_missing_overlooked());
        }
        Ok(())
    }
}
