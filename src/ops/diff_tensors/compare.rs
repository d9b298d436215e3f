//! Compares the tensors of two files, block by block on several threads, in bounded memory.
//!
//! A tensor whose chunks are the same is not read. Sums are added in the order of blocks, so that they come out the same
//! whatever the number of threads.

use super::numbers::{self, Sums};
use super::{Described, Numbers, TensorChange, TensorChangeKind};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ops::ahead::read_stretch;
use crate::ops::tensors::{TensorFile, TensorFilter, check_interrupt};
use crate::repo::Repo;
use crate::repo::frame_cache::FrameCache;
use crate::source::layout::Tensor;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one thread compares at once: the length to which numbers are cut, so that blocks mostly are chunks.
const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks whose results are kept until they are added up.
const BATCH_BLOCKS: usize = 1024;

/// Compares tensors.
pub(super) struct Comparer<'a> {
    pub(super) frames: FrameCache<'a>,
    pub(super) filter: &'a TensorFilter,
    pub(super) observer: &'a dyn Observer,
    pool: rayon::ThreadPool,
    bytes_read: AtomicU64,
}

/// What comparing two files has shown.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Everything but what is the same.
    pub(super) changes: Vec<TensorChange>,
    /// Tensors that are the same.
    pub(super) unchanged: u64,
}

/// A stretch of a tensor on both sides.
struct Block<'t> {
    change: usize,
    tensor: &'t Tensor,
    before: ByteRange,
    after: ByteRange,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        filter: &'a TensorFilter,
        observer: &'a dyn Observer,
        threads: usize,
    ) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .build()
            .map_err(|error| Error::new(Kind::Failed, format!("starting threads: {error}")))?;
        Ok(Comparer { frames: FrameCache::new(repo), filter, observer, pool, bytes_read: AtomicU64::new(0) })
    }

    /// Bytes of content that were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// All tensors of a file that has no counterpart.
    pub(super) fn alone(&self, file: &TensorFile, is_before: bool) -> Compared {
        let meant = file.layout.tensors.iter().filter(|tensor| self.filter.matches(&tensor.name));
        let change = |tensor| if is_before { change(Some(tensor), None) } else { change(None, Some(tensor)) };
        Compared { changes: meant.map(change).collect(), unchanged: 0 }
    }

    /// In the order of the second file; what is only in the first comes last.
    pub(super) fn compare(&self, before: &TensorFile, after: &TensorFile) -> Result<Compared> {
        let meant = |tensor: &&Tensor| self.filter.matches(&tensor.name);
        let mut old: HashMap<&str, &Tensor> = HashMap::new();
        for tensor in before.layout.tensors.iter().filter(meant) {
            old.entry(&tensor.name).or_insert(tensor);
        }
        let mut compared = Compared::default();
        let mut sums: Vec<Sums> = Vec::new();
        let mut batch: Vec<Block<'_>> = Vec::new();
        for tensor in after.layout.tensors.iter().filter(meant) {
            check_interrupt(self.observer)?;
            let change = change(old.remove(tensor.name.as_str()), Some(tensor));
            let places = change.places;
            if let Some((from, to)) = places {
                if before.stretches(from).eq(after.stretches(to)) {
                    compared.unchanged += 1;
                    continue;
                }
                for (before_range, after_range) in blocks(from, to, numbers::unit_bytes(tensor.dtype))? {
                    let change = compared.changes.len();
                    batch.push(Block { change, tensor, before: before_range, after: after_range });
                    if batch.len() == BATCH_BLOCKS {
                        sums.resize(compared.changes.len() + 1, Sums::default());
                        self.add_up(before, after, &mut batch, &mut sums)?;
                    }
                }
            }
            compared.changes.push(change);
        }
        sums.resize(compared.changes.len(), Sums::default());
        self.add_up(before, after, &mut batch, &mut sums)?;
        conclude(&mut compared, &sums);
        let left =
            before.layout.tensors.iter().filter(meant).filter(|tensor| {
                old.get(tensor.name.as_str()).is_some_and(|kept| std::ptr::eq::<Tensor>(*kept, *tensor))
            });
        compared.changes.extend(left.map(|tensor| change(Some(tensor), None)));
        Ok(compared)
    }

    fn add_up(
        &self,
        before: &TensorFile,
        after: &TensorFile,
        batch: &mut Vec<Block<'_>>,
        sums: &mut [Sums],
    ) -> Result<()> {
        let compared: Result<Vec<(usize, Sums)>> = self.pool.install(|| {
            let one = |block: &Block<'_>| Ok((block.change, self.compare_block(before, after, block)?));
            batch.par_iter().map(one).collect()
        });
        for (change, found) in compared? {
            if let Some(sum) = sums.get_mut(change) {
                *sum += found;
            }
        }
        batch.clear();
        Ok(())
    }

    fn compare_block(&self, before: &TensorFile, after: &TensorFile, block: &Block<'_>) -> Result<Sums> {
        check_interrupt(self.observer)?;
        let is_same = before.stretches(block.before).eq(after.stretches(block.after));
        let dtype = block.tensor.dtype;
        // What is the same counts for the norm of what was before, and only there.
        if is_same && !numbers::has_norm(dtype) {
            return Ok(Sums::default());
        }
        let old = self.read(before, block.before)?;
        if is_same {
            return Ok(numbers::compare(dtype, &old, &old));
        }
        let new = self.read(after, block.after)?;
        Ok(numbers::compare(dtype, &old, &new))
    }

    fn read(&self, file: &TensorFile, range: ByteRange) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(usize::try_from(range.len().min(2 * BLOCK_BYTES)).unwrap_or(0));
        for stretch in file.stretches(range) {
            read_stretch(&self.frames, stretch, &mut content)
                .map_err(|error| error.while_doing(String::from_utf8_lossy(&file.file.path)))?;
        }
        if content.len() as u64 != range.len() {
            let text = format!("{} bytes of {} are listed", content.len(), range.len());
            return Err(Error::damaged(text).while_doing(String::from_utf8_lossy(&file.file.path)));
        }
        self.bytes_read.fetch_add(range.len(), Ordering::Relaxed);
        self.observer.on_event(&Event::Progress { bytes: range.len(), files: 0 });
        Ok(content)
    }
}

/// Both ranges, which are of one length, cut at the same places into whole units.
fn blocks(
    before: ByteRange,
    after: ByteRange,
    unit_bytes: u64,
) -> Result<impl Iterator<Item = (ByteRange, ByteRange)>> {
    let step = (BLOCK_BYTES / unit_bytes).max(1) * unit_bytes;
    let count = before.len().div_ceil(step);
    let part = move |range: ByteRange, number: u64| {
        let at = number * step;
        ByteRange::new(range.offset() + at, step.min(range.len() - at))
    };
    // Within ranges whose ends are known not to overflow.
    Ok((0..count).filter_map(move |number| Some((part(before, number).ok()?, part(after, number).ok()?))))
}

/// A tensor of both sides or of one, not compared yet.
fn change(before: Option<&Tensor>, after: Option<&Tensor>) -> TensorChange {
    let (kind, places) = match (before, after) {
        (Some(old), Some(new)) if (old.dtype, &old.shape) != (new.dtype, &new.shape) => {
            (TensorChangeKind::Reshaped, None)
        }
        (Some(old), Some(new)) => match (old.place, new.place) {
            (Some(from), Some(to)) if from.len() == to.len() => (TensorChangeKind::Changed, Some((from, to))),
            _ => (TensorChangeKind::NotCompared, None),
        },
        (None, _) => (TensorChangeKind::Added, None),
        (Some(_), None) => (TensorChangeKind::Removed, None),
    };
    let name = after.or(before).map(|tensor| tensor.name.clone()).unwrap_or_default();
    let described = |tensor: Option<&Tensor>| tensor.map(Described::new);
    TensorChange { name, kind, before: described(before), after: described(after), numbers: None, places }
}

/// Gives each change its numbers; what turned out to be the same is none.
fn conclude(compared: &mut Compared, sums: &[Sums]) {
    let mut sums = sums.iter();
    let Compared { changes, unchanged } = compared;
    changes.retain_mut(|change| {
        let (Some(found), Some((place, _))) = (sums.next(), change.places) else { return true };
        let Some(dtype) = change.after.as_ref().map(|described| described.dtype) else { return true };
        if found.changed == 0 {
            *unchanged += 1;
            return false;
        }
        let norm = |squares: f64| Some(squares.sqrt()).filter(|norm| norm.is_finite() && numbers::has_norm(dtype));
        change.numbers = Some(Numbers {
            elements: place.len() / numbers::unit_bytes(dtype),
            elements_changed: found.changed,
            norm_change: norm(found.change_squares),
            norm_before: norm(found.before_squares),
            nonfinite_before: found.nonfinite_before,
            nonfinite_after: found.nonfinite_after,
        });
        true
    });
}
