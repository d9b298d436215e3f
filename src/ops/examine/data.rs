//! Reading packs whole: their bytes against their name, every frame decoded, every chunk against its id.
//!
//! A frame that needs others is decoded against their contents, from whatever home has them. If none has, that is not the
//! frame's fault: what is at fault is found out by [`bases`](super::bases), and who is hit follows from that.
//!
//! Several packs at a time, each through a small window, so that memory stays bounded and what was hashed is decoded
//! while it is still in the processor's cache.

use super::found::{BadPacks, Found};
use super::{bases, check_interrupt};
use crate::bytes::ByteRange;
use crate::codec::Decoder;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, PackId};
use crate::ops::Resources;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack;
use crate::repo::pack_table::FrameRecord;
use crate::repo::quarantine::Quarantine;
use crate::repo::{Repo, names};
use crate::sabotage::is_planted;
use crate::storage::ObjectName;
use crate::threads;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of a pack is read at once, if memory allows: larger frames are read alone.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
const WINDOW_BYTES_MIN: u64 = 64 << 10;

/// Threads beyond those that compute: while some wait for the disk, the others have work.
const WAITING_THREADS: usize = 2;

/// Which packs to read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Subset {
    /// All.
    All,
    /// One of several parts that together are all packs; a pack stays in its part.
    Part {
        /// From 1.
        part: u32,
        /// How many there are.
        of: u32,
    },
    /// So much of all bytes, those packs first that were not read for the longest time.
    Percent(f64),
    /// So many bytes, likewise.
    Bytes(u64),
    /// As many packs as this time allows, likewise.
    Duration(Duration),
}

impl Subset {
    /// When to begin no further pack, if the choice is one of time.
    pub(crate) fn deadline(&self, begun: Instant) -> Option<Instant> {
        match self {
            Subset::Duration(duration) => begun.checked_add(*duration),
            _ => None,
        }
    }

    /// An error of [`Kind::Usage`] if nothing can be meant by it.
    pub(crate) fn check(&self) -> Result<()> {
        match *self {
            Subset::Part { part, of } if part == 0 || part > of => {
                Err(Error::new(Kind::Usage, format!("there is no part {part} of {of}")).with_hint("parts count from 1"))
            }
            Subset::Percent(percent) if !(percent > 0.0 && percent <= 100.0) => {
                Err(Error::new(Kind::Usage, format!("{percent} % of the data cannot be read")))
            }
            _ => Ok(()),
        }
    }

    /// The packs to read, in order.
    pub(crate) fn choose(&self, repo: &Repo, present: &BTreeMap<PackId, u64>) -> Result<Vec<(PackId, u64)>> {
        let reads = repo.index().pack_reads()?;
        let mut chosen: Vec<(PackId, u64)> = present.iter().map(|(id, bytes)| (*id, *bytes)).collect();
        if let Subset::Part { part, of } = *self {
            chosen.retain(|(id, _)| part_of(id, of) == part);
        }
        chosen.sort_by_key(|(id, _)| (reads.get(id).copied().unwrap_or(i64::MIN), *id));
        let limit = match *self {
            Subset::Percent(percent) => {
                let total: u64 = present.values().sum();
                (total as f64 * percent / 100.0).ceil() as u64
            }
            Subset::Bytes(bytes) => bytes,
            _ => u64::MAX,
        };
        let mut bytes = 0u64;
        chosen.retain(|(_, pack_bytes)| {
            let is_wanted = bytes < limit;
            bytes = bytes.saturating_add(*pack_bytes);
            is_wanted
        });
        Ok(chosen)
    }
}

/// The part, from 1, that a pack belongs to: its name is as good as random and never changes.
pub(crate) fn part_of(id: &PackId, of: u32) -> u32 {
    let front = id.as_bytes()[..8].try_into().map_or(0, u64::from_le_bytes);
    u32::try_from(front % u64::from(of.max(1))).unwrap_or(0) + 1
}

/// What reading packs has shown.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) sound: Vec<PackId>,
    /// All that were read, sound or not.
    pub(crate) read: HashSet<PackId>,
    pub(crate) bad: BadPacks,
}

/// One run over the packs.
pub(crate) struct Run<'a> {
    pub(crate) repo: &'a Repo,
    pub(crate) resources: Resources,
    pub(crate) observer: &'a dyn Observer,
    /// When to begin no further pack.
    pub(crate) deadline: Option<Instant>,
    /// What is known already to be damaged and set aside.
    pub(crate) quarantine: &'a Quarantine,
}

impl Run<'_> {
    /// Reads these packs, each with its length.
    pub(crate) fn read(&self, chosen: &[(PackId, u64)], found: &mut Found) -> Result<Read> {
        let bytes_total = chosen.iter().map(|(_, bytes)| bytes).sum();
        self.observer.on_event(&Event::Phase {
            name: "reading packs",
            bytes_total: Some(bytes_total),
            files_total: None,
        });
        let threads = (self.resources.threads + WAITING_THREADS).clamp(1, chosen.len().max(1));
        let share = self.resources.memory_bytes / (4 * threads as u64);
        let window_bytes = share.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let bases = FrameCache::new(self.repo);
        let failures = std::thread::scope(|scope| -> Result<Vec<Error>> {
            let work = || -> Result<()> {
                let mut reader = Reader::new(self.repo, &bases, self.observer, window_bytes)?;
                while let Some(&(id, bytes)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Ok(());
                    }
                    let checked = reader.check(id, bytes)?;
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(checked);
                }
                Ok(())
            };
            let running = threads::start_some(scope, threads, || work)?;
            let lost = || Error::new(Kind::Failed, "a thread that reads packs has ended");
            Ok(running.into_iter().filter_map(|t| t.join().map_or_else(|_| Some(lost()), Result::err)).collect())
        })?;
        if let Some(error) = failures.into_iter().next() {
            return Err(error);
        }
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|checked| checked.id);
        let unread: BTreeSet<ChunkId> = results.iter().flat_map(|checked| &checked.unread_bases).copied().collect();
        let mut read = Read::default();
        let readable = bases::find_faults(&bases, self.repo, unread, found, &mut read.bad)?;
        let mut reader = Reader::new(self.repo, &bases, self.observer, window_bytes)?;
        reader.blames_frames = true;
        let is_unjudged = |checked: &&mut Checked| {
            !checked.unread_bases.is_disjoint(&readable) && !is_planted("undecoded-frames-pass")
        };
        for checked in results.iter_mut().filter(is_unjudged) {
            *checked = reader.check(checked.id, checked.bytes)?;
            if let Some(base) = checked.unread_bases.intersection(&readable).next() {
                let text = format!("chunk {} can be read at some times and not at others", base.short());
                return Err(Error::new(Kind::Unreachable, text).with_hint("see to the storage, then verify again"));
            }
        }
        collect(results, self.quarantine, found, read)
    }
}

fn collect(results: Vec<Checked>, quarantine: &Quarantine, found: &mut Found, mut read: Read) -> Result<Read> {
    for checked in results {
        read.packs += 1;
        read.read.insert(checked.id);
        read.bytes += checked.bytes;
        read.chunks += checked.chunks;
        if checked.faults.is_empty() {
            read.sound.push(checked.id);
            continue;
        }
        // What is set aside is known: it is no news, and what it costs is told with the chunks that are lost.
        if !quarantine.covers(&checked.id, checked.bad_chunks.as_ref()) {
            found.add(names::pack(checked.id)?.as_str(), checked.faults.join("; "));
        }
        match checked.bad_chunks {
            None => read.bad.add_whole(checked.id),
            Some(chunks) => read.bad.add_chunks(checked.id, chunks),
        }
    }
    Ok(read)
}

/// What became of one pack.
struct Checked {
    id: PackId,
    bytes: u64,
    chunks: u64,
    faults: Vec<String>,
    /// None: nothing in it can be relied on.
    bad_chunks: Option<HashSet<ChunkId>>,
    /// Chunks that frames of it need and that could not be read from anywhere.
    unread_bases: HashSet<ChunkId>,
}

/// Reads packs one after another, reusing its buffers.
struct Reader<'a> {
    repo: &'a Repo,
    bases: &'a FrameCache<'a>,
    observer: &'a dyn Observer,
    window_bytes: u64,
    /// What frames need has been looked into: one whose bases can all be read and that is not decoded is at fault itself.
    blames_frames: bool,
    decoder: Decoder,
    window: Vec<u8>,
    content: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(repo: &'a Repo, bases: &'a FrameCache<'a>, observer: &'a dyn Observer, window_bytes: u64) -> Result<Self> {
        let decoder = Decoder::new()?;
        let (window, content) = (Vec::new(), Vec::new());
        Ok(Reader { repo, bases, observer, window_bytes, blames_frames: false, decoder, window, content })
    }

    fn check(&mut self, id: PackId, bytes: u64) -> Result<Checked> {
        let mut checked = Checked {
            id,
            bytes,
            chunks: 0,
            faults: Vec::new(),
            bad_chunks: Some(HashSet::new()),
            unread_bases: HashSet::new(),
        };
        if let Err(error) = self.read_pack(&mut checked) {
            if error.kind() == Kind::WrongKey || error.is_about_this_run() {
                return Err(error);
            }
            checked.faults.push(error.to_string());
            checked.bad_chunks = None;
        }
        Ok(checked)
    }

    fn read_pack(&mut self, checked: &mut Checked) -> Result<()> {
        let name = names::pack(checked.id)?;
        let summary = pack::read_summary(self.repo, checked.id, checked.bytes)?;
        let frames = summary.frames()?;
        let mut hasher = blake3::Hasher::new();
        self.hash_range(&name, 0, summary.header_bytes(), &mut hasher)?;
        let mut rest = frames.as_slice();
        let mut bad_frames = 0u64;
        while let Some(first) = rest.first() {
            check_interrupt(self.observer)?;
            let (group, group_bytes) = self.group(rest);
            self.load(&name, first.offset, group_bytes)?;
            hasher.update(&self.window);
            for frame in group {
                let at = usize::try_from(frame.offset - first.offset).unwrap_or(usize::MAX);
                let bad = self.check_frame(checked.id, frame, at, &mut checked.unread_bases)?;
                bad_frames += u64::from(!bad.is_empty());
                checked.chunks += frame.chunks.len() as u64;
                if let Some(chunks) = &mut checked.bad_chunks {
                    chunks.extend(bad);
                }
            }
            self.observer.on_event(&Event::Progress { bytes: group_bytes, files: 0 });
            rest = &rest[group.len()..];
        }
        let end = frames.last().map_or(summary.header_bytes(), |f| f.offset + u64::from(f.stored_bytes));
        self.hash_range(&name, end, checked.bytes - end, &mut hasher)?;
        if bad_frames > 0 && !is_planted("verify-chunks-not-compared") {
            checked.faults.push(format!("{bad_frames} of its {} frames do not hold their chunks", frames.len()));
        }
        if hasher.finalize().as_bytes() != checked.id.as_bytes() && !is_planted("verify-pack-name-not-compared") {
            checked.faults.push("its bytes do not match its name".to_owned());
        }
        Ok(())
    }

    /// The next frames that fit into the window, at least one, and their bytes.
    fn group<'f>(&self, frames: &'f [FrameRecord]) -> (&'f [FrameRecord], u64) {
        let mut bytes = 0;
        let mut count = 0;
        for frame in frames {
            let more = u64::from(frame.stored_bytes);
            if count > 0 && bytes + more > self.window_bytes {
                break;
            }
            bytes += more;
            count += 1;
        }
        (&frames[..count], bytes)
    }

    fn load(&mut self, name: &ObjectName, offset: u64, bytes: u64) -> Result<()> {
        let range = ByteRange::new(offset, bytes)?;
        self.window.clear();
        let read = self.repo.storage().read_range(name, range, &mut self.window);
        if read.as_ref().is_err_and(|e| e.kind() == Kind::Unreachable) {
            // A disk or network often has it the second time.
            self.window.clear();
            return self.repo.storage().read_range(name, range, &mut self.window);
        }
        read
    }

    fn hash_range(&mut self, name: &ObjectName, mut at: u64, bytes: u64, hasher: &mut blake3::Hasher) -> Result<()> {
        let end = at + bytes;
        while at < end {
            let now = (end - at).min(self.window_bytes);
            self.load(name, at, now)?;
            hasher.update(&self.window);
            at += now;
        }
        Ok(())
    }

    /// The chunks of the frame that are not what they should be. `at` is where it begins in the window. If it cannot be
    /// decoded because a base is not to be had, that is not its fault, and the base is noted. An error if another key would
    /// open it, or if this run could not go on.
    fn check_frame(
        &mut self,
        pack: PackId,
        frame: &FrameRecord,
        at: usize,
        unread_bases: &mut HashSet<ChunkId>,
    ) -> Result<Vec<ChunkId>> {
        let stored = usize::try_from(frame.stored_bytes).unwrap_or(usize::MAX);
        self.content.clear();
        let stored = self.window.get_mut(at..at.saturating_add(stored)).unwrap_or_default();
        let stored = match self.repo.open_frame_in(pack, frame.offset, stored) {
            Err(error) if error.kind() == Kind::WrongKey => return Err(error),
            opened => opened.unwrap_or_default(),
        };
        let decoded = match frame.chunks.first().filter(|_| !frame.bases.is_empty()) {
            None => self.decoder.decode(stored, &mut self.content),
            Some((id, _)) => match self.bases.read_bases(*id, &frame.bases) {
                Ok(base) => self.decoder.decode_against(stored, &base, &mut self.content),
                Err(error) if error.kind() == Kind::WrongKey || error.is_about_this_run() => return Err(error),
                Err(error) => {
                    // No frame counts as sound that was not decoded: once it is known which bases can be read, the pack is
                    // looked at again.
                    let bases =
                        frame.bases.iter().filter(|base| !self.blames_frames || self.bases.read(**base).is_err());
                    let bases: Vec<ChunkId> = bases.copied().collect();
                    if !bases.is_empty() {
                        unread_bases.extend(bases);
                        return Ok(Vec::new());
                    }
                    Err(error)
                }
            },
        };
        if decoded.is_err() {
            self.content.clear();
        }
        let mut bad = Vec::new();
        let mut rest = self.content.as_slice();
        for &(id, bytes) in &frame.chunks {
            let (chunk, tail) = rest.split_at(rest.len().min(usize::try_from(bytes).unwrap_or(usize::MAX)));
            rest = tail;
            if chunk.len() as u64 != u64::from(bytes) || self.repo.chunk_id(chunk) != id {
                bad.push(id);
            }
        }
        if !rest.is_empty() && bad.is_empty() {
            bad.extend(frame.chunks.iter().map(|(id, _)| *id));
        }
        Ok(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_cover_everything() {
        for of in [1, 2, 7, 30] {
            let mut counts = vec![0; of as usize];
            for n in 0..3000u32 {
                let id = PackId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
                counts[part_of(&id, of) as usize - 1] += 1;
            }
            assert_eq!(counts.iter().sum::<u32>(), 3000);
            assert!(counts.iter().all(|&c| c > 3000 / of / 2), "{counts:?}");
        }
        assert!(Subset::Part { part: 0, of: 3 }.check().is_err() && Subset::Part { part: 4, of: 3 }.check().is_err());
        assert!(Subset::Percent(0.0).check().is_err() && Subset::Percent(f64::NAN).check().is_err());
        assert!(Subset::Part { part: 3, of: 3 }.check().is_ok() && Subset::Percent(100.0).check().is_ok());
    }
}
