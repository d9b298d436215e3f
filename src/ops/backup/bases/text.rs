//! For a chunk of anything but numbers: the chunks of the earlier version that hold the same stretch.
//!
//! Where a stretch has gone follows from where its neighbours were found, at first from the lengths of both files. A few windows of the
//! chunk, looked for in what is there, prove it and give the exact shift.

use super::super::shared::Shared;
use super::numbers::{self, Offer};
use super::{PlannedRun, RunBase};
use crate::codec::Relation;
use crate::error::Result;
use crate::ids::ChunkId;
use memchr::memmem;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Chunks that are offered together.
const CHUNKS_MAX: usize = 3;
/// Windows of the chunk that are looked for, and their length.
const WINDOWS: usize = 8;
const WINDOW_BYTES: usize = 48;
/// Shifts that differ by less belong together: something between was inserted or removed.
const AGREEING_BYTES: u64 = 8 << 10;
/// How far beyond its expected place a stretch is looked for.
const MARGIN_BYTES: u64 = 48 << 10;

/// The base for the chunk `raw` named `id`, which begins `within` bytes behind the start of its run; none if the stretch is
/// not where it should be.
pub(crate) fn offer(
    shared: &Shared<'_>,
    id: ChunkId,
    planned: &PlannedRun,
    base: &RunBase,
    within: u64,
    raw: &[u8],
) -> Result<Option<Offer>> {
    for guess in guesses(planned, base, within) {
        let from = guess.saturating_sub(MARGIN_BYTES);
        let to = guess.saturating_add(raw.len() as u64).saturating_add(MARGIN_BYTES);
        let around = covering(base, from, to);
        let Some(mut stretch) = read(shared, id, base, around.clone())? else { continue };
        let Some((at, found)) = find(raw, &stretch.content) else { continue };
        let begins = (stretch.first + found as u64).saturating_sub(at as u64);
        planned.shift.store(begins.cast_signed().wrapping_sub(within.cast_signed()), Ordering::Relaxed);
        // Now the place is known exactly: exactly those chunks.
        let exactly = covering(base, begins, begins.saturating_add(raw.len() as u64));
        if exactly != around {
            let Some(other) = read(shared, id, base, exactly)? else { return Ok(None) };
            stretch = other;
        }
        let Stretch { content, chunks, .. } = stretch;
        let mut depth = 0;
        for &chunk in &chunks {
            match numbers::depth(shared, chunk, shared.delta_depth.saturating_sub(1))? {
                Some(steps) => depth = depth.max(steps + 1),
                None => return Ok(None),
            }
        }
        if shared.transaction.rely_on_base(id, &chunks)?.contains(&false) {
            return Ok(None);
        }
        let relation = Relation::Text;
        return Ok(Some(Offer { chunks, content, relation, stored_bytes_max: usize::MAX, depth }));
    }
    Ok(None)
}

/// Where the stretch may begin in the run of the base, the likeliest first.
fn guesses(planned: &PlannedRun, base: &RunBase, within: u64) -> Vec<u64> {
    let mut guesses = Vec::with_capacity(4);
    let shift = planned.shift.load(Ordering::Relaxed);
    if shift != i64::MIN {
        guesses.extend(within.checked_add_signed(shift));
    }
    let proportional = u128::from(within) * u128::from(base.range.len()) / u128::from(planned.range.len()).max(1);
    // What was appended moves nothing, what was changed all over moves everything in proportion.
    guesses.extend([u64::try_from(proportional).unwrap_or(u64::MAX), within]);
    guesses.dedup_by_key(|guess| *guess / MARGIN_BYTES);
    guesses.retain(|guess| *guess < base.range.len());
    guesses
}

/// The chunks that hold a range of the base's run, by their numbers in its file.
fn covering(base: &RunBase, from: u64, to: u64) -> Range<usize> {
    let start = base.range.offset();
    let end = start.saturating_add(to).min(base.range.end());
    let numbers = base.file.covering(start.saturating_add(from), end);
    numbers.start..numbers.end.min(numbers.start + CHUNKS_MAX)
}

/// Some chunks of the base.
struct Stretch {
    /// Where they begin, relative to the run of the base.
    first: u64,
    /// Their contents, one behind the other.
    content: Vec<u8>,
    chunks: Vec<ChunkId>,
}

/// Reads chunks of the base; none if there are none, or if they cannot be a base of `id`.
fn read(shared: &Shared<'_>, id: ChunkId, base: &RunBase, numbers: Range<usize>) -> Result<Option<Stretch>> {
    let Some(placed) = base.file.chunks.get(numbers) else { return Ok(None) };
    let Some(first) = placed.first().map(|chunk| chunk.offset.saturating_sub(base.range.offset())) else {
        return Ok(None);
    };
    let mut stretch = Stretch { first, content: Vec::new(), chunks: Vec::with_capacity(placed.len()) };
    for chunk in placed {
        if chunk.child.id == ChunkId::HOLE || chunk.child.id == id {
            return Ok(None);
        }
        let Some(bytes) = numbers::read(shared, chunk.child.id)? else { return Ok(None) };
        stretch.content.extend_from_slice(&bytes);
        stretch.chunks.push(chunk.child.id);
    }
    Ok(Some(stretch))
}

/// A place of `raw` and where it stands in `content`, if a few windows do: at the same shift for two of them, since one alone may be
/// something that rows have in common.
fn find(raw: &[u8], content: &[u8]) -> Option<(usize, usize)> {
    let mut hits: Vec<(usize, usize)> = Vec::with_capacity(WINDOWS);
    for number in 0..WINDOWS {
        let at = raw.len().saturating_sub(WINDOW_BYTES) * number / (WINDOWS - 1);
        let Some(window) = raw.get(at..at + WINDOW_BYTES) else { break };
        // Runs of one byte stand everywhere.
        if window.iter().all(|byte| *byte == window[0]) {
            continue;
        }
        let Some(found) = memmem::find(content, window) else { continue };
        let shift = |(at, found): (usize, usize)| found as i64 - at as i64;
        let agrees = |&&hit: &&(usize, usize)| shift(hit).abs_diff(shift((at, found))) < AGREEING_BYTES;
        if let Some(&hit) = hits.iter().find(agrees) {
            return Some(hit);
        }
        hits.push((at, found));
    }
    hits.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_is_there_tells_the_shift() {
        let base: Vec<u8> = (0..50_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut raw = base[40_000..140_000].to_vec();
        raw[0] ^= 1;
        let (at, found) = find(&raw, &base).expect("most of it is there");
        assert_eq!(found - at, 40_000);
        assert_eq!(find(&[7; 1000], &base), None);
        assert_eq!(find(&[1, 2, 3], &base), None);
        assert_eq!(find(&raw, &[]), None);
    }
}
