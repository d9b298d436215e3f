//! The parity of packs: what is missing or damaged is computed again from the pack, which is sound by then.
//!
//! A pack without parity is no damage, so making some is counted and not told. Whether packs get parity when they are
//! written says the repository's parameters, which never change: where they get none, each run that is asked to adds it.

use super::{Means, ReadChoice, Work};
use crate::error::{Kind, Result};
use crate::events::Event;
use crate::ids::PackId;
use crate::ops::examine::packs::Packs;
use crate::repo::names;
use crate::repo::parity::{self, ParityState};

/// Makes anew what is damaged, and what is missing where there should be some or it is asked for.
pub(super) fn mend(work: &mut Work<'_>, packs: &Packs) -> Result<()> {
    let listed = work.repo.storage().list(names::PARITY)?;
    let is_wanted = work.options.add_parity || work.repo.config().parity != 0;
    if !is_wanted && listed.is_empty() {
        return Ok(());
    }
    for object in listed.iter().filter(|object| names::parity_id(&object.name).is_none()) {
        work.left.add(object.name.as_str(), "nothing of this name belongs here");
    }
    let files_total = Some(packs.present.len() as u64);
    work.observer.on_event(&Event::Phase { name: "checking parity", bytes_total: None, files_total });
    for (&id, &bytes) in packs.present.iter().filter(|(id, _)| !packs.bad.packs.contains_key(id)) {
        work.check_interrupt()?;
        let is_read = is_read(&work.options.read, id);
        match parity::check(work.repo, id, Some(bytes), is_read) {
            Ok(ParityState::Sound) => {}
            Ok(ParityState::Absent) if !is_wanted => {}
            Ok(ParityState::Absent) => {
                if make(work, id, parity::create)? {
                    work.report.parity_added += 1;
                }
            }
            Ok(ParityState::Damaged(_)) => renew(work, id)?,
            Err(error) if error.kind() == Kind::Unreachable => renew(work, id)?,
            Err(error) => return Err(error),
        }
        work.observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    Ok(())
}

fn is_read(choice: &ReadChoice, id: PackId) -> bool {
    match choice {
        ReadChoice::All => true,
        ReadChoice::Structure => false,
        ReadChoice::Packs(prefixes) => prefixes.iter().any(|prefix| id.to_hex().starts_with(prefix.as_str())),
    }
}

fn renew(work: &mut Work<'_>, id: PackId) -> Result<()> {
    let name = names::parity(id)?;
    match make(work, id, parity::renew)? {
        true => work.note(name, Means::WrittenAnew),
        false => drop(work.left.add(name.as_str(), "it is damaged, and so is its pack: read the pack to mend both")),
    }
    Ok(())
}

/// False if the pack itself turns out to be damaged: it was not read in this run.
fn make(work: &Work<'_>, id: PackId, how: fn(&crate::repo::Repo, PackId) -> Result<()>) -> Result<bool> {
    if work.options.dry_run {
        return Ok(true);
    }
    work.write_down()?;
    match how(work.repo, id) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing | Kind::Unreachable) => Ok(false),
        Err(error) => Err(error),
    }
}
