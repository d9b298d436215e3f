//! Index objects and the headers and tables of packs, held against one another and against the index of this host.

use super::check_interrupt;
use super::documents::report;
use super::found::{BadPacks, Found};
use crate::error::{Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, PackId};
use crate::ops::Resources;
use crate::repo::index::Home;
use crate::repo::pack::{self, PackSummary};
use crate::repo::quarantine::Quarantine;
use crate::repo::{Repo, index_object, names};
use crate::sabotage::is_planted;
use crate::threads;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is known of the packs after the structure was checked.
pub(crate) struct Packs {
    /// The packs in the storage that are not dead, with their lengths.
    pub(crate) present: BTreeMap<PackId, u64>,
    /// How many of them no index object lists.
    pub(crate) unlisted: u64,
    /// Those that are missing or damaged.
    pub(crate) bad: BadPacks,
    /// What is known already to be damaged and set aside.
    pub(crate) quarantine: Quarantine,
}

impl Packs {
    /// Counts what is set aside as bad, but for packs that were just read whole and found `sound`.
    pub(crate) fn heed_quarantine(&mut self, sound: &[PackId]) {
        let sound: HashSet<&PackId> = sound.iter().collect();
        for (id, bad) in self.quarantine.iter().filter(|(id, _)| !sound.contains(id)) {
            match bad {
                None => self.bad.add_whole(*id),
                Some(chunks) => self.bad.add_chunks(*id, chunks.iter().copied().collect()),
            }
        }
    }
}

/// A pack as an index object or its own table tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    bytes: u64,
    table: [u8; 32],
}

impl Print {
    fn of(summary: &PackSummary) -> Print {
        Print { bytes: summary.bytes, table: *blake3::hash(&summary.table).as_bytes() }
    }
}

/// Checks all of them; packs of `dead` are passed over.
pub(crate) fn check(
    repo: &Repo,
    dead: &HashSet<PackId>,
    resources: Resources,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<Packs> {
    let listed = check_index_objects(repo, dead, found, observer)?;
    let mut present = BTreeMap::new();
    for object in repo.storage().list(names::PACKS)? {
        match names::pack_id(&object.name) {
            Some(id) if !dead.contains(&id) => {
                present.insert(id, object.bytes);
            }
            Some(_) => {}
            None => {
                found.add(object.name.as_str(), "nothing of this name belongs here");
            }
        }
    }
    let mut quarantine = Quarantine::read(repo)?;
    quarantine.retain(|id| !dead.contains(id));
    let mut packs = Packs { unlisted: 0, bad: BadPacks::default(), present, quarantine };
    packs.unlisted = packs.present.keys().filter(|id| !listed.contains_key(id)).count() as u64;
    for id in listed.keys().filter(|id| !packs.present.contains_key(id) && !is_planted("verify-missing-pack-unseen")) {
        if !packs.quarantine.covers(id, None) {
            found.add(names::pack(*id)?.as_str(), "it is missing");
        }
        packs.bad.add_whole(*id);
    }
    check_tables(repo, &mut packs, &listed, resources, found, observer)?;
    Ok(packs)
}

/// Reads every index object; what each of them says of each pack.
fn check_index_objects(
    repo: &Repo,
    dead: &HashSet<PackId>,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<HashMap<PackId, Print>> {
    let objects = repo.storage().list(names::INDEX)?;
    let bytes_total = objects.iter().map(|l| l.bytes).sum();
    observer.on_event(&Event::Phase { name: "checking the index", bytes_total: Some(bytes_total), files_total: None });
    let mut prints: HashMap<PackId, Print> = HashMap::new();
    for object in objects {
        check_interrupt(observer)?;
        let Some(id) = names::index_id(&object.name) else {
            found.add(object.name.as_str(), "nothing of this name belongs here");
            continue;
        };
        let mut differs = None;
        let read = index_object::read(repo, id, &mut |summary| {
            let print = Print::of(&summary);
            if !dead.contains(&summary.id) && *prints.entry(summary.id).or_insert(print) != print {
                differs = Some(summary.id);
            }
            Ok(())
        });
        match read {
            Ok(true) => {}
            Ok(false) => {
                found.add(object.name.as_str(), "it is damaged; what it lists is read from the packs");
            }
            // Merged away by a prune since the listing.
            Err(error) if error.kind() == Kind::Missing => {}
            Err(error) => {
                report(found, &object.name, &error)?;
            }
        }
        if let Some(pack) = differs {
            found.add(object.name.as_str(), format!("it tells of pack {pack} otherwise than another index object"));
        }
        observer.on_event(&Event::Progress { bytes: object.bytes, files: 0 });
    }
    Ok(prints)
}

/// Reads header and table of every pack, several at a time.
fn check_tables(
    repo: &Repo,
    packs: &mut Packs,
    listed: &HashMap<PackId, Print>,
    resources: Resources,
    found: &mut Found,
    observer: &dyn Observer,
) -> Result<()> {
    let files_total = Some(packs.present.len() as u64);
    observer.on_event(&Event::Phase { name: "checking packs", bytes_total: None, files_total });
    let cached = fold_index(repo)?;
    let all: Vec<(PackId, u64)> = packs.present.iter().map(|(id, bytes)| (*id, *bytes)).collect();
    let next = AtomicUsize::new(0);
    let collected = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        let work = || {
            while let Some(&(id, bytes)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                if observer.is_interrupted() {
                    return;
                }
                let checked = check_table(repo, id, bytes, listed.get(&id), cached.get(&id).copied());
                observer.on_event(&Event::Progress { bytes: 0, files: 1 });
                let mut collected = collected.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match checked {
                    Ok(None) => {}
                    Ok(Some(stale)) => collected.1.push(stale),
                    Err(error) => collected.0.push((id, error)),
                }
            }
        };
        threads::start_some(scope, resources.threads, || work).map(drop)
    })?;
    check_interrupt(observer)?;
    let (mut damaged, stale) = collected.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    damaged.sort_by_key(|(id, _)| *id);
    for (id, error) in damaged {
        if !packs.quarantine.covers(&id, None) {
            report(found, &names::pack(id)?, &error)?;
        }
        packs.bad.add_whole(id);
    }
    renew(repo, &stale, observer)
}

/// An error if the pack's own table is unreadable or not what the index objects say; its summary if the index of this host
/// does not agree with it.
fn check_table(
    repo: &Repo,
    id: PackId,
    bytes: u64,
    listed: Option<&Print>,
    cached: Option<u64>,
) -> Result<Option<PackSummary>> {
    let summary = pack::read_summary(repo, id, bytes)?;
    if let Some(listed) = listed
        && *listed != Print::of(&summary)
    {
        let text = format!("its table and length ({bytes}) are not what an index object says ({})", listed.bytes);
        return Err(crate::error::Error::damaged(text));
    }
    let mut sum = 0u64;
    for frame in summary.frames()? {
        let mut at = 0;
        for (chunk, _) in frame.chunks.iter().take(1) {
            for (ordinal, &base) in (0u8..).zip(&frame.bases) {
                sum = sum.wrapping_add(fold_base(*chunk, frame.offset, ordinal, base));
            }
        }
        for (chunk, chunk_bytes) in frame.chunks {
            let home = Home {
                pack: id,
                frame_offset: frame.offset,
                frame_stored: frame.stored_bytes,
                frame_raw: frame.raw_bytes,
                at,
                bytes: chunk_bytes,
                codec: frame.codec,
                base_count: u8::try_from(frame.bases.len()).unwrap_or(u8::MAX),
            };
            sum = sum.wrapping_add(fold(chunk, &home));
            at += chunk_bytes;
        }
    }
    Ok((cached.unwrap_or(0) != sum).then_some(summary))
}

/// For each pack a number that follows from all its rows in the index of this host, whatever their order.
fn fold_index(repo: &Repo) -> Result<HashMap<PackId, u64>> {
    let mut sums: HashMap<PackId, u64> = HashMap::new();
    repo.index().for_each_chunk(&mut |chunk, home| {
        let sum = sums.entry(home.pack).or_default();
        *sum = sum.wrapping_add(fold(chunk, &home));
    })?;
    repo.index().for_each_base(&mut |chunk, pack, frame, ordinal, base| {
        let sum = sums.entry(pack).or_default();
        *sum = sum.wrapping_add(fold_base(chunk, frame, ordinal, base));
    })?;
    Ok(sums)
}

/// Different for different rows: ids are as good as random, the rest is mixed in by odd factors.
fn fold(chunk: ChunkId, home: &Home) -> u64 {
    let place = [
        home.frame_offset,
        u64::from(home.frame_stored),
        u64::from(home.frame_raw),
        u64::from(home.at),
        u64::from(home.bytes),
        u64::from(home.codec),
        u64::from(home.base_count),
    ];
    mix(fold_id(chunk), &place)
}

/// The same for one base of a frame.
fn fold_base(chunk: ChunkId, frame_offset: u64, ordinal: u8, base: ChunkId) -> u64 {
    mix(fold_id(chunk), &[frame_offset, u64::from(ordinal) + 1, fold_id(base)])
}

fn fold_id(id: ChunkId) -> u64 {
    let words = id.as_bytes().chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_le_bytes));
    words.fold(0u64, |sum, word| sum.rotate_left(17) ^ word)
}

fn mix(start: u64, numbers: &[u64]) -> u64 {
    numbers.iter().fold(start, |sum, &n| (sum ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

/// Makes rows of the index of this host anew that do not agree with the packs. That is no damage to the repository.
fn renew(repo: &Repo, stale: &[PackSummary], observer: &dyn Observer) -> Result<()> {
    let known: HashSet<PackId> = repo.index().packs()?.into_iter().map(|p| p.id).collect();
    let wrong: Vec<PackId> = stale.iter().map(|s| s.id).filter(|id| known.contains(id)).collect();
    let listings = stale.iter().map(|s| repo.index().index_objects_listing(&[s.id])).collect::<Result<Vec<_>>>()?;
    if !wrong.is_empty() {
        let text = format!("the index cache of this host was wrong about {} packs and is mended", wrong.len());
        observer.on_event(&Event::Warning { text: &text });
        repo.index().remove_packs(&wrong)?;
    }
    for (summary, listing) in stale.iter().zip(listings) {
        repo.index().add_packs(std::slice::from_ref(summary), listing.into_iter().next())?;
    }
    Ok(())
}
