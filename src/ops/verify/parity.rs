//! The parity of packs: is it there and sound, and which damaged packs does it mend?
//!
//! A pack that can be mended costs no file, since it is read through its parity, but it is damage. A pack without parity
//! is not: nothing in a repository needs any, and a killed run may leave such a pack. It is counted.

use crate::error::{Error, Result};
use crate::events::{Event, Observer};
use crate::ids::PackId;
use crate::ops::Resources;
use crate::ops::examine::check_interrupt;
use crate::ops::examine::documents::report;
use crate::ops::examine::found::Found;
use crate::ops::examine::packs::Packs;
use crate::repo::parity::{self, ParityState};
use crate::repo::{Repo, names};
use crate::threads;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is said of a damaged pack.
const MENDABLE: &str = "its parity can mend it: run `ckpt repair`";
const BEYOND: &str = "its parity cannot mend it";

/// Checks the parity of every pack, all of it if the pack is one of `read`, and takes from the bad packs those that can be
/// mended. Returns how many packs have none though the repository is to have some.
pub(super) fn check(
    repo: &Repo,
    packs: &mut Packs,
    read: &HashSet<PackId>,
    resources: Resources,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<u64> {
    let mut present = HashSet::new();
    for object in repo.storage().list(names::PARITY)? {
        match names::parity_id(&object.name) {
            Some(id) => drop(present.insert(id)),
            None => drop(found.add(object.name.as_str(), "nothing of this name belongs here")),
        }
    }
    let missing = packs.present.keys().filter(|id| !present.contains(id)).count() as u64;
    check_states(repo, packs, &present, read, resources, found, observer)?;
    let bad: Vec<PackId> = packs.bad.packs.keys().filter(|id| present.contains(id)).copied().collect();
    for id in bad {
        check_interrupt(observer)?;
        let is_mendable = parity::can_mend(repo, id);
        // Set aside is what a repair could not mend.
        if !is_mendable && packs.quarantine.contains(&id) {
            continue;
        }
        let what = if is_mendable { MENDABLE } else { BEYOND };
        let at = found.add(names::pack(id)?.as_str(), what);
        if is_mendable {
            found.set_mendable(at);
            packs.bad.packs.remove(&id);
        }
    }
    Ok(if repo.config().parity == 0 { 0 } else { missing })
}

fn check_states(
    repo: &Repo,
    packs: &Packs,
    present: &HashSet<PackId>,
    read: &HashSet<PackId>,
    resources: Resources,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<()> {
    let all: Vec<(PackId, u64)> =
        packs.present.iter().filter(|(id, _)| present.contains(id)).map(|(id, bytes)| (*id, *bytes)).collect();
    if all.is_empty() {
        return Ok(());
    }
    let files_total = Some(all.len() as u64);
    observer.on_event(&Event::Phase { name: "checking parity", bytes_total: None, files_total });
    let next = AtomicUsize::new(0);
    let collected = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            while let Some(&(id, bytes)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                if observer.is_interrupted() {
                    return;
                }
                // Of a pack that is not what it was, the length says nothing about its parity.
                let bytes = (!packs.bad.is_whole_bad(&id)).then_some(bytes);
                let what = match parity::check(repo, id, bytes, read.contains(&id)) {
                    Ok(ParityState::Damaged(what)) => Error::damaged(what),
                    Ok(_) => continue,
                    Err(error) => error,
                };
                collected.lock().unwrap_or_else(PoisonError::into_inner).push((id, what));
                observer.on_event(&Event::Progress { bytes: 0, files: 1 });
            }
        };
        threads::start_some(scope, resources.threads.min(all.len()), || work).map(drop)
    })?;
    check_interrupt(observer)?;
    let mut collected = collected.into_inner().unwrap_or_else(PoisonError::into_inner);
    collected.sort_by_key(|(id, _)| *id);
    for (id, error) in collected {
        // Parity of a pack that cannot be mended is of no use, and goes with the pack.
        if packs.quarantine.contains(&id) {
            continue;
        }
        let at = report(found, &names::parity(id)?, &error)?;
        // The pack is there, so it can be made again.
        if !packs.bad.packs.contains_key(&id) {
            found.set_mendable(at);
        }
    }
    Ok(())
}
