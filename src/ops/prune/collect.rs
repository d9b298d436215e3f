//! Condemning, waiting, looking again and deciding: steps 3 to 6 of the fence.
//!
//! Guarantees: a final list leaves every chunk of every live snapshot founded in packs that are whole, listed and in no final
//! list. Whatever goes wrong, the list is given up or stays for the next prune; two collectors may be at one list at once, and
//! the first end wins.

use super::plan::{self, Plan, Soundness, Surroundings, refuse_homeless};
use super::writers::{self, Waited};
use super::{PruneReport, Run, live, no_room_for_records};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::{PackId, SnapshotId};
use crate::ops::signs;
use crate::repo::condemned::{self, Condemned, OpenList, RunState, Seen};
use crate::repo::index::KnownPack;
use crate::repo::index::survey::Survey;
use crate::repo::names;
use crate::repo::snapshots::Snapshot;
use crate::sabotage::is_planted;
use crate::storage::Published;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

/// How a list ended, as far as this run is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With these packs dead.
    Final(Vec<PackId>),
    /// Another run was faster: everything has to be looked at anew.
    Taken,
}

/// One collector's view of what is live.
pub(super) struct Collector<'r> {
    run: Run<'r>,
    survey: &'r Survey<'r>,
    marked: HashSet<SnapshotId>,
    soundness: Soundness,
    /// False until homes that have a choice were read: a pack may only go because of one that is sound.
    is_compared: bool,
}

impl<'r> Collector<'r> {
    /// Begins with nothing marked.
    pub(super) fn new(run: Run<'r>, survey: &'r Survey<'r>) -> Collector<'r> {
        Collector { run, survey, marked: HashSet::new(), soundness: Soundness::default(), is_compared: false }
    }

    /// Marks what is live and sorts the packs.
    pub(super) fn plan(&mut self, snapshots: &[Snapshot], surroundings: Surroundings<'_>) -> Result<Plan> {
        self.mark(snapshots)?;
        let plan = plan::plan(&self.run, self.survey, surroundings, &mut self.soundness)?;
        self.is_compared = true;
        Ok(plan)
    }

    /// Marks what these snapshots need, but for those marked before; true if there were any others.
    fn mark(&mut self, snapshots: &[Snapshot]) -> Result<bool> {
        let fresh: Vec<Snapshot> = snapshots.iter().filter(|s| !self.marked.contains(&s.id)).cloned().collect();
        if fresh.is_empty() {
            return Ok(false);
        }
        plan::mark(self.run.repo, self.survey, &fresh, self.run.observer)?;
        self.marked.extend(fresh.iter().map(|s| s.id));
        Ok(true)
    }

    /// Takes packs for sound that were written just now, each chunk decoded and compared.
    pub(super) fn trust(&mut self, written: &[PackId]) {
        self.soundness.trust(written);
    }

    /// Condemns `victims`; none if another prune is at it.
    pub(super) fn condemn(&self, victims: &[PackId]) -> Result<Option<OpenList>> {
        let run = &self.run;
        let condemned = Condemned::read_fresh(run.repo).map_err(no_room_for_records)?;
        if condemned.open.is_some() {
            return Ok(None);
        }
        let number = condemned.last_number + 1;
        // What the end before this one says is acted on from here: it must not vanish.
        run.repo.storage().sync_folder(names::CONDEMNED)?;
        let (writer, now) = (&run.options.writer, run.options.now);
        match condemned::create_list(run.repo, number, victims, writer, now) {
            Ok(Published::Created) => {}
            Ok(Published::AlreadyExists) => return Ok(None),
            Err(error) => return Err(no_room_for_records(error)),
        }
        let packs = victims.iter().copied().collect();
        Ok(Some(OpenList { number, packs, newest: None, runs: 0 }))
    }

    /// Notes who is open, in a list of nothing: the next prune knows then who gave no sign of life.
    pub(super) fn note(&self, seen: Vec<Seen>) -> Result<()> {
        let Some(mut list) = self.condemn(&[])? else { return Ok(()) };
        self.run.record_run(&mut list, RunState::Left, Some(seen));
        self.end(list.number, Vec::new()).map(|_| ())
    }

    /// Brings a list to its end, giving signs of life meanwhile. `seen` is what an earlier run saw, `preferred` packs that
    /// are to stay, the most preferred home first.
    ///
    /// [`Kind::Busy`] if open transactions have to end first: the list stays open for the next prune.
    pub(super) fn collect(
        &mut self,
        list: OpenList,
        seen: &[Seen],
        preferred: &[PackId],
        report: &mut PruneReport,
    ) -> Result<Ended> {
        let run = self.run;
        let list = Mutex::new(list);
        let lock = || list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Given only once everybody who had to end has: whoever goes on from there waits for nobody.
        let sign = || {
            run.record_run(&mut lock(), RunState::AtWork, Some(Vec::new()));
            Ok(())
        };
        // Not held while working: the signs change it.
        let begun = lock().clone();
        let waiting = self.wait(&begun, seen, report)?;
        if !waiting.is_empty() && !is_planted("open-writers-ignored") {
            let mut list = lock();
            let seen: Vec<Seen> = waiting.iter().map(|waited| waited.seen).collect();
            let is_told =
                |newest: &condemned::Run| newest.state == RunState::Left && newest.waiting.as_ref() == Some(&seen);
            if !list.newest.as_ref().is_some_and(is_told) {
                run.record_run(&mut list, RunState::Left, Some(seen));
            }
            return Err(writers::busy(&waiting, begun.number));
        }
        let decided = signs::giving(run.observer, &sign, || self.decide(&begun.packs, preferred));
        match decided {
            Ok(packs) => self.end(begun.number, packs),
            // Nobody can go on with a list while something live has no home.
            Err(error) if error.kind() == Kind::Damaged => {
                let _ = self.end(begun.number, Vec::new());
                Err(error)
            }
            Err(error) => {
                run.record_run(&mut lock(), RunState::Left, Some(Vec::new()));
                Err(error)
            }
        }
    }

    /// Who has to end before the list can: transactions that were open when it was made, for later ones know of it.
    fn wait(&self, list: &OpenList, seen: &[Seen], report: &mut PruneReport) -> Result<Vec<Waited>> {
        let mut waiting = self.run.settle(seen, report).map_err(no_room_for_records)?;
        if let Some(listed) = list.newest.as_ref().and_then(|newest| newest.waiting.as_ref()) {
            let listed: HashSet<SnapshotId> = listed.iter().map(|seen| seen.id).collect();
            waiting.retain(|waited| listed.contains(&waited.seen.id));
        }
        Ok(waiting)
    }

    /// The packs of the list that nothing live needs, now that no writer can come to rely on any of them.
    fn decide(&mut self, list: &HashSet<PackId>, preferred: &[PackId]) -> Result<Vec<PackId>> {
        let repo = self.run.repo;
        for is_last_try in [false, true] {
            // In this order: what a snapshot needs was listed before it was there.
            let snapshots = live::snapshots_now(repo)?;
            repo.refresh(self.run.observer)?;
            self.is_compared &= is_planted("second-mark-skipped") || !self.mark(&snapshots)?;
            match self.choose(list, preferred) {
                // One listing proves nothing: an index object may have been merged away while it was read, and packs may
                // be known by their own tables only.
                Err(error) if error.kind() == Kind::Damaged && !is_last_try => {
                    repo.storage().list_fresh(names::INDEX)?;
                    repo.learn_unlisted_packs()?;
                    self.list_unlisted(list)?;
                }
                chosen => return chosen,
            }
        }
        Err(Error::new(Kind::Failed, "no try was made"))
    }

    fn choose(&mut self, list: &HashSet<PackId>, preferred: &[PackId]) -> Result<Vec<PackId>> {
        self.soundness.heed_quarantine(self.run.repo, self.survey)?;
        let mut packs = self.packs_by_preference(list, preferred)?;
        packs.retain(|id| !self.soundness.is_spoilt(id));
        self.survey.set_usable(&packs)?;
        if !self.is_compared {
            if self.soundness.compare(self.run.repo, self.survey)? {
                packs.retain(|id| !self.soundness.is_spoilt(id));
                self.survey.set_usable(&packs)?;
            }
            self.is_compared = true;
        }
        if !is_planted("homeless-chunks-accepted") {
            refuse_homeless(self.survey)?;
        }
        let used = self.survey.used()?;
        let needed: HashSet<PackId> =
            packs.iter().zip(used).filter(|(_, used)| used.chunks > 0).map(|(id, _)| *id).collect();
        let mut dead: Vec<PackId> = list.iter().copied().filter(|id| !needed.contains(id)).collect();
        dead.sort_unstable();
        Ok(dead)
    }

    /// Every pack that is whole and listed, those of the list behind the others, and behind all those that are set aside.
    fn packs_by_preference(&self, list: &HashSet<PackId>, preferred: &[PackId]) -> Result<Vec<PackId>> {
        let ranks: HashMap<PackId, usize> = preferred.iter().enumerate().map(|(rank, id)| (*id, rank)).collect();
        let mut packs: Vec<PackId> =
            self.whole_packs()?.into_iter().filter(|pack| pack.is_listed).map(|pack| pack.id).collect();
        let is_last = |id: &PackId| self.soundness.is_set_aside(id);
        packs.sort_by_key(|id| (is_last(id), list.contains(id), ranks.get(id).copied().unwrap_or(usize::MAX), *id));
        Ok(packs)
    }

    fn whole_packs(&self) -> Result<Vec<KnownPack>> {
        let present = self.run.packs_present()?;
        let known = self.run.repo.index().packs()?;
        Ok(known.into_iter().filter(|pack| present.get(&pack.id) == Some(&pack.bytes)).collect())
    }

    /// Lists whole packs outside of the list that no index object lists, so that they count as homes.
    fn list_unlisted(&self, list: &HashSet<PackId>) -> Result<()> {
        let packs = self.whole_packs()?;
        let unlisted: Vec<(PackId, u64)> =
            packs.iter().filter(|p| !p.is_listed && !list.contains(&p.id)).map(|p| (p.id, p.bytes)).collect();
        plan::list_packs(self.run.repo, &unlisted)
    }

    fn end(&self, number: u64, packs: Vec<PackId>) -> Result<Ended> {
        let run = &self.run;
        for pack in packs.iter().filter(|_| is_planted("deleted-before-decided")) {
            run.repo.storage().delete(&names::pack(*pack)?)?;
        }
        match condemned::create_end(run.repo, number, &packs, run.options.now) {
            Ok(Published::Created) => {
                let text = format!("condemned/{number} has ended: {} packs are to be deleted", packs.len());
                run.observer.on_event(&Event::Detail { text: &text });
                run.repo.index().mark_dead(&packs)?;
                Ok(Ended::Final(packs))
            }
            Ok(Published::AlreadyExists) if is_planted("lost-decision-carried-out") => {
                packs.iter().try_for_each(|pack| run.repo.storage().delete(&names::pack(*pack)?).map(drop))?;
                Ok(Ended::Final(packs))
            }
            Ok(Published::AlreadyExists) => Ok(Ended::Taken),
            Err(error) => Err(no_room_for_records(error)),
        }
    }
}
