//! Deleting what final lists say, once it is due: step 7 of the fence.
//!
//! Decided is decided: any prune carries out what any earlier one has decided, in any order, and being killed costs nothing.
//! The delay spares restores that run; it is counted from the record of the decision by the clock that the caller gives, and a
//! clock that is wrong only makes it longer or shorter. It needs no room.

use super::{PruneReport, Run};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::PackId;
use crate::repo::condemned::Condemned;
use crate::repo::{names, quarantine};
use crate::sabotage::is_planted;
use std::collections::HashMap;

impl Run<'_> {
    /// Deletes the packs of final lists that are due, with their parity, and counts those that wait. A dry run counts only.
    pub(super) fn carry_out(&self, report: &mut PruneReport) -> Result<()> {
        let condemned = Condemned::read(self.repo)?;
        (report.packs_waiting, report.bytes_waiting, report.waiting_until) = (0, 0, None);
        let due_at: HashMap<PackId, i64> = condemned
            .ends
            .iter()
            .flat_map(|end| {
                let due =
                    end.seconds.saturating_add(i64::try_from(self.options.delete_delay.as_secs()).unwrap_or(i64::MAX));
                end.packs.iter().map(move |pack| (*pack, due))
            })
            .collect();
        if due_at.is_empty() {
            return Ok(());
        }
        let mut due: Vec<(PackId, u64)> = Vec::new();
        for listed in self.repo.storage().list(names::PACKS)? {
            let Some(id) = names::pack_id(&listed.name) else { continue };
            match due_at.get(&id) {
                Some(&at) if at > self.options.now.seconds && !is_planted("delete-delay-ignored") => {
                    report.packs_waiting += 1;
                    report.bytes_waiting += listed.bytes;
                    let first = report.waiting_until.map_or(at, |until| until.min(at));
                    report.waiting_until = Some(first);
                }
                Some(_) => due.push((id, listed.bytes)),
                None => {}
            }
        }
        if self.options.dry_run && !is_planted("dry-run-deletes") {
            report.packs_due = due.len() as u64;
            report.bytes_due = due.iter().map(|(_, bytes)| bytes).sum();
            return Ok(());
        }
        self.delete_packs(&due, report)?;
        for id in quarantine::ids(self.repo.storage())?.into_iter().filter(|id| due_at.contains_key(id)) {
            quarantine::take_back(self.repo.storage(), id)?;
        }
        let is_due = |id: &PackId| due_at.get(id).is_some_and(|&at| at <= self.options.now.seconds);
        self.delete_parity(&is_due)?;
        let rows: Vec<PackId> = self.repo.index().dead_packs()?.into_iter().filter(is_due).collect();
        if rows.is_empty() { Ok(()) } else { self.repo.index().remove_packs(&rows) }
    }

    fn delete_packs(&self, due: &[(PackId, u64)], report: &mut PruneReport) -> Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let bytes_total = due.iter().map(|(_, bytes)| bytes).sum();
        self.observer.on_event(&Event::Phase { name: "deleting", bytes_total: Some(bytes_total), files_total: None });
        // A decision that another host has just recorded may be carried out only once no power cut takes it back.
        if !is_planted("decision-unsynced") {
            self.repo.storage().sync_folder(names::CONDEMNED)?;
        }
        for (id, bytes) in due {
            // An interruption leaves the rest to the next prune.
            if self.observer.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while deleting packs"));
            }
            if self.repo.storage().delete(&names::pack(*id)?)? {
                report.packs_removed += 1;
                report.bytes_removed += bytes;
            }
            self.observer.on_event(&Event::Progress { bytes: *bytes, files: 0 });
        }
        Ok(())
    }

    /// Deletes the parity of packs that are dead and due; also where a run was killed between the pack and its parity.
    fn delete_parity(&self, is_due: &dyn Fn(&PackId) -> bool) -> Result<()> {
        for listed in self.repo.storage().list(names::PARITY)? {
            if names::parity_id(&listed.name).is_some_and(|id| is_due(&id)) {
                self.repo.storage().delete(&listed.name)?;
            }
        }
        Ok(())
    }

    /// The packs in the storage, with their lengths.
    pub(super) fn packs_present(&self) -> Result<HashMap<PackId, u64>> {
        let listed = self.repo.storage().list(names::PACKS)?;
        Ok(listed.iter().filter_map(|l| Some((names::pack_id(&l.name)?, l.bytes))).collect())
    }
}
