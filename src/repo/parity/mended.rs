//! Packs that are damaged and readable all the same: what is lost of them is computed once and kept.
//!
//! Kept is only what was lost, a few hundredths of a pack at most; the rest is read from the pack as ever. Content is
//! compared with its id as ever, too.

use super::located::Source;
use super::sidecar::{self, Sidecar};
use super::{column_ranges, read_columns};
use crate::bytes::ByteRange;
use crate::codec::parity::{Columns, Shape, reconstruct};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{PackId, RepositoryId};
use crate::repo::pack::{self, PackSummary};
use crate::repo::{Repo, names};
use crate::storage::{ObjectName, Storage};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The most bytes of lost shards that are kept. What goes beyond is computed again when it is needed again.
const KEPT_BYTES_MAX: usize = 48 << 20;

/// A pack with what it has lost.
#[derive(Debug)]
pub struct Patched {
    name: ObjectName,
    shape: Shape,
    /// Where each shard was found to be right.
    places: Vec<Option<u64>>,
    /// The bytes of those that were not.
    patches: BTreeMap<usize, Vec<u8>>,
    /// The length that the pack has.
    bytes_found: u64,
}

/// What is left of a pack and of its parity: enough to compute the rest.
pub(super) struct Remains {
    name: ObjectName,
    shape: Shape,
    places: Vec<Option<u64>>,
    lost: Vec<usize>,
    parity_name: ObjectName,
    /// As many parity shards as are lost of the pack, and where they lie.
    given: Vec<(usize, u64)>,
    bytes_found: u64,
}

impl Remains {
    /// Looks at all of the pack. An error if more of it is lost than can be computed.
    pub(super) fn find(storage: &dyn Storage, repository: RepositoryId, pack: PackId) -> Result<Remains> {
        let mut source = Source::open(storage, names::pack(pack)?)?;
        let mut sidecar = Sidecar::open(storage, repository, pack, source.bytes)?;
        let shape = sidecar.shape;
        // By the length alone, so that nothing is allocated for what a forged object claims.
        let there = usize::try_from(source.bytes.div_ceil(shape.shard_bytes as u64)).unwrap_or(usize::MAX);
        refuse_beyond(&mut source, &shape, shape.data_shards.saturating_sub(there), shape.parity_shards)?;
        let shift = sidecar::shift(shape.pack_bytes, source.bytes);
        let is_right = |shard: usize, bytes: &[u8]| sidecar.is_right(shard, bytes);
        let places = source.locate(shape.data_shards, &|shard| shape.place(shard), shift, &is_right);
        let lost: Vec<usize> = (0..shape.data_shards).filter(|&shard| places[shard].is_none()).collect();
        refuse_beyond(&mut source, &shape, lost.len(), shape.parity_shards)?;
        let parity = if lost.is_empty() { Vec::new() } else { sidecar.locate(true) };
        let given = parity.iter().enumerate().filter_map(|(n, place)| Some((n, (*place)?))).take(lost.len());
        let given: Vec<(usize, u64)> = given.collect();
        refuse_beyond(&mut sidecar.source, &shape, lost.len(), given.len())?;
        let (parity_name, bytes_found) = (sidecar.source.name, source.bytes);
        Ok(Remains { name: source.name, shape, places, lost, parity_name, given, bytes_found })
    }

    /// The bytes of the lost shards, from all others and as many parity shards.
    fn compute(&self, storage: &dyn Storage) -> Result<BTreeMap<usize, Vec<u8>>> {
        let Remains { name, shape, places, lost, parity_name, given, .. } = self;
        let mut patches: BTreeMap<usize, Vec<u8>> = lost.iter().map(|&shard| (shard, Vec::new())).collect();
        if lost.is_empty() {
            return Ok(patches);
        }
        let numbers: Vec<usize> = given.iter().map(|(number, _)| *number).collect();
        let (mut data, mut parity) = (Vec::new(), Vec::new());
        for (column, width) in column_ranges(shape) {
            read_columns(storage, name, shape, places, (column, width), &mut data)?;
            parity.clear();
            for (_, at) in given {
                storage.read_range(parity_name, ByteRange::new(at + column as u64, width as u64)?, &mut parity)?;
            }
            let columns = Columns { width, data: &data, lost, given: &numbers, parity: &parity };
            let computed = reconstruct(shape, &columns)?;
            for (patch, bytes) in patches.values_mut().zip(computed.chunks_exact(width)) {
                patch.extend_from_slice(bytes);
            }
        }
        for (&shard, patch) in &mut patches {
            patch.truncate(shape.place(shard).1);
        }
        Ok(patches)
    }
}

impl Patched {
    /// Looks at all of the pack and computes what is lost, if it can be.
    pub(super) fn reconstruct(storage: &dyn Storage, repository: RepositoryId, pack: PackId) -> Result<Patched> {
        let remains = Remains::find(storage, repository, pack)?;
        let patches = remains.compute(storage)?;
        let Remains { name, shape, places, bytes_found, .. } = remains;
        Ok(Patched { name, shape, places, patches, bytes_found })
    }

    /// The length that the pack should have.
    pub fn bytes(&self) -> u64 {
        self.shape.pack_bytes
    }

    /// How many of its shards were bad.
    pub fn shards_bad(&self) -> usize {
        self.patches.len()
    }

    /// True if nothing is wrong with the pack.
    pub fn is_whole(&self) -> bool {
        self.patches.is_empty()
            && self.bytes_found == self.shape.pack_bytes
            && self.places.iter().enumerate().all(|(n, place)| *place == Some(self.shape.place(n).0))
    }

    /// Appends exactly `range` of the pack as it should be to `into`.
    pub fn read_range(&self, storage: &dyn Storage, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        if range.end() > self.shape.pack_bytes {
            return Err(Error::damaged(format!("{} has {} bytes", self.name, self.shape.pack_bytes)));
        }
        let mut at = range.offset();
        while at < range.end() {
            let shard = usize::try_from(at / self.shape.shard_bytes as u64).unwrap_or(usize::MAX);
            let (begins, len) = self.shape.place(shard);
            let end = range.end().min(begins + len as u64);
            if let Some(patch) = self.patches.get(&shard) {
                let index = |at: u64| usize::try_from(at - begins).unwrap_or(usize::MAX);
                into.extend_from_slice(patch.get(index(at)..index(end)).unwrap_or_default());
                at = end;
                continue;
            }
            let Some(place) = self.places.get(shard).copied().flatten() else {
                return Err(Error::damaged(format!("a part of {} is lost", self.name)));
            };
            let end = self.run_end(shard, place).min(range.end());
            storage.read_range(&self.name, ByteRange::new(place + (at - begins), end - at)?, into)?;
            at = end;
        }
        Ok(())
    }

    /// Where the shards end that lie right behind this one, in the pack as it should be.
    fn run_end(&self, shard: usize, place: u64) -> u64 {
        let first = self.shape.place(shard).0;
        let goes_on = |n: &usize| self.places[*n] == Some(place + (self.shape.place(*n).0 - first));
        let last = (shard..self.places.len()).take_while(goes_on).last().unwrap_or(shard);
        let (at, len) = self.shape.place(last);
        at + len as u64
    }

    fn kept_bytes(&self) -> usize {
        self.patches.values().map(Vec::len).sum()
    }
}

/// An error if more is lost than there is to compute it from; that of the storage if it would not be read.
fn refuse_beyond(source: &mut Source<'_>, shape: &Shape, lost: usize, given: usize) -> Result<()> {
    if lost <= given {
        return Ok(());
    }
    let text = format!(
        "{} cannot be mended by parity: of its {} shards {lost} or more are lost, {given} can be computed",
        source.name, shape.data_shards
    );
    Err(source.take_failure().unwrap_or_else(|| Error::damaged(text)))
}

/// The damaged packs that a run has met so far.
#[derive(Default)]
pub(in crate::repo) struct MendedPacks {
    known: RwLock<Known>,
    /// Held while a pack is looked at: who comes meanwhile most likely needs the same.
    at_work: Mutex<()>,
    listener: Mutex<Option<Arc<dyn Observer>>>,
}

#[derive(Default)]
struct Known {
    /// None: it cannot be mended, or nothing is wrong with it.
    packs: HashMap<PackId, Option<Arc<Patched>>>,
    /// Those that can be, in the order in which they were met.
    order: VecDeque<PackId>,
    bytes: usize,
}

impl Known {
    fn add(&mut self, pack: PackId, patched: Option<Arc<Patched>>) {
        if let Some(patched) = &patched {
            self.bytes += patched.kept_bytes();
            self.order.push_back(pack);
        }
        self.packs.insert(pack, patched);
        while self.bytes > KEPT_BYTES_MAX && self.order.len() > 1 {
            let oldest = self.order.pop_front().and_then(|oldest| self.packs.remove(&oldest)).flatten();
            self.bytes -= oldest.map_or(0, |oldest| oldest.kept_bytes());
        }
    }
}

impl Repo {
    /// Says from now on to `listener` which packs are read with the help of their parity, as a warning for each.
    pub fn report_mended_to(&self, listener: Arc<dyn Observer>) {
        *lock(&self.mended.listener) = Some(listener);
    }

    /// The packs that were read with the help of their parity so far.
    pub fn mended_packs(&self) -> Vec<PackId> {
        let known = self.mended.known.read().unwrap_or_else(PoisonError::into_inner);
        known.order.iter().copied().collect()
    }

    /// Appends exactly `range` of a pack to `into`: as it is stored, or as it should be if it was mended before.
    pub fn read_pack(&self, pack: PackId, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        match self.mended(pack).flatten() {
            Some(patched) => patched.read_range(self.storage(), range, into),
            None => self.storage().read_range(&names::pack(pack)?, range, into),
        }
    }

    /// Header and table of a pack of `bytes` bytes; from the mended pack if its own cannot be read and that can be had.
    pub fn pack_summary(&self, id: PackId, bytes: u64) -> Result<PackSummary> {
        let read = pack::read_summary(self, id, bytes);
        if !read.as_ref().is_err_and(|error| error.kind() == Kind::Damaged) || !self.mend_in_memory(id) {
            return read;
        }
        match super::mend(self, id) {
            Ok(mended) => pack::summary_of(self.keys(), &mended.bytes, id, self.id()),
            Err(_) => read,
        }
    }

    /// Tries to mend a pack that could not be read as it should, in memory and once; true if reading it may now succeed.
    pub(in crate::repo) fn mend_in_memory(&self, pack: PackId) -> bool {
        if let Some(known) = self.mended(pack) {
            return known.is_some();
        }
        let _at_work = lock(&self.mended.at_work);
        if let Some(known) = self.mended(pack) {
            return known.is_some();
        }
        let found = Patched::reconstruct(self.storage(), self.id(), pack).ok();
        // One that is whole now was only hard to read, or was mended by another run: it is worth a second look, once.
        let is_worth_reading = found.is_some();
        let found = found.filter(|patched| !patched.is_whole());
        if let (Some(patched), Some(listener)) = (&found, lock(&self.mended.listener).clone()) {
            let text =
                format!("{} is damaged and is read with the help of its parity: run `ckpt repair`", patched.name);
            listener.on_event(&Event::Warning { text: &text });
        }
        self.mended.known.write().unwrap_or_else(PoisonError::into_inner).add(pack, found.map(Arc::new));
        is_worth_reading
    }

    fn mended(&self, pack: PackId) -> Option<Option<Arc<Patched>>> {
        let known = self.mended.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.packs.is_empty() { None } else { known.packs.get(&pack).cloned() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
