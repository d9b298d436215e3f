//! Damaged and missing packs: mended as a whole, or set aside.
//!
//! What is put in the place of a pack has been compared with the pack's name, whatever it came from. One pack at a time is held
//! in memory.

use super::{Means, Work};
use crate::bytes::ByteRange;
use crate::error::{Kind, Result};
use crate::events::Event;
use crate::ids::PackId;
use crate::ops::examine::packs::Packs;
use crate::repo::{names, pack, parity, quarantine};
use std::collections::HashMap;

/// Makes packs ordinary again that were set aside and have been found sound: somebody has put them back.
pub(super) fn release(work: &mut Work<'_>, packs: &Packs, sound: &[PackId]) -> Result<()> {
    let released: Vec<PackId> =
        sound.iter().copied().filter(|id| packs.quarantine.contains(id) && !packs.bad.packs.contains_key(id)).collect();
    if released.is_empty() {
        return Ok(());
    }
    if !work.options.dry_run {
        // Who put it back may not have waited until the name was durable.
        work.repo.storage().sync_folder(names::PACKS)?;
    }
    for id in released {
        take_back(work, id)?;
        work.note(names::pack(id)?, Means::Released);
    }
    Ok(())
}

/// Mends what can be mended; what was, is not bad any more.
pub(super) fn mend(work: &mut Work<'_>, packs: &mut Packs) -> Result<()> {
    let known: HashMap<PackId, u64> = work.repo.index().packs()?.iter().map(|p| (p.id, p.bytes)).collect();
    let mut bad: Vec<PackId> = packs.bad.packs.keys().copied().collect();
    bad.sort_unstable();
    let files_total = Some(bad.len() as u64);
    work.observer.on_event(&Event::Phase { name: "mending packs", bytes_total: None, files_total });
    for id in bad {
        work.check_interrupt()?;
        let present = packs.present.get(&id).copied();
        if let Some((bytes, means)) = find_bytes(work, id, present, known.get(&id).copied())? {
            let name = names::pack(id)?;
            work.replace(&name, &bytes)?;
            packs.present.insert(id, bytes.len() as u64);
            packs.bad.packs.remove(&id);
            learn(work, id, &bytes)?;
            if packs.quarantine.contains(&id) {
                take_back(work, id)?;
            }
            work.note(name, means);
        }
        work.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    Ok(())
}

/// The bytes of the pack, compared with its name, and where they are from.
fn find_bytes(
    work: &Work<'_>,
    id: PackId,
    present: Option<u64>,
    known: Option<u64>,
) -> Result<Option<(Vec<u8>, Means)>> {
    if let (Some(present), Some(known)) = (present, known)
        && known < present
    {
        let mut front = Vec::new();
        let read = work.repo.storage().read_range(&names::pack(id)?, ByteRange::new(0, known)?, &mut front);
        if read.is_ok() && blake3::hash(&front).as_bytes() == id.as_bytes() {
            return Ok(Some((front, Means::CutOff)));
        }
    }
    match parity::mend(work.repo, id) {
        Ok(mended) => return Ok(Some((mended.bytes, Means::Parity))),
        Err(error) if matches!(error.kind(), Kind::Missing | Kind::Damaged | Kind::Unreachable) => {}
        Err(error) => return Err(error),
    }
    Ok(work.copies.pack(id)?.map(|(bytes, place)| (bytes, Means::Copy(place))))
}

/// Tells the index of this host what the pack holds: it may have gone by a damaged table.
fn learn(work: &Work<'_>, id: PackId, bytes: &[u8]) -> Result<()> {
    let index = work.repo.index();
    let summary = pack::summary_of(work.repo.keys(), bytes, id, work.repo.id())?;
    let listing = index.index_objects_listing(&[id])?;
    if work.options.dry_run {
        return Ok(());
    }
    index.remove_packs(&[id])?;
    index.add_packs(std::slice::from_ref(&summary), listing.into_iter().next())
}

fn take_back(work: &Work<'_>, id: PackId) -> Result<()> {
    if !work.options.dry_run {
        work.write_down()?;
        quarantine::take_back(work.repo.storage(), id)?;
    }
    Ok(())
}

/// Sets aside what is still bad, durably; those packs of which that, or so much, was not known before.
pub(super) fn set_aside(work: &mut Work<'_>, packs: &mut Packs) -> Result<Vec<PackId>> {
    let mut fresh: Vec<PackId> = Vec::new();
    for (id, bad) in &packs.bad.packs {
        if !packs.quarantine.covers(id, bad.as_ref()) {
            fresh.push(*id);
        }
    }
    fresh.sort_unstable();
    for id in &fresh {
        work.check_interrupt()?;
        if !work.options.dry_run {
            work.write_down()?;
            let bad = packs.bad.packs.get(id).and_then(Option::as_ref);
            quarantine::set_aside(work.repo, *id, bad, work.options.now)?;
        }
    }
    Ok(fresh)
}
