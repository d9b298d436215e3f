//! Content-defined cuts: where the chunks of data without a known layout end.
//!
//! Work is in two steps. [`Chunker::scan`] finds the candidate positions of one segment of a stream; it is pure, and
//! the segments of a file can be scanned in parallel. A [`Cutter`] then goes through the candidates in order and
//! selects those that end a chunk. The cuts depend on the bytes, the sizes and the table only: never on how the
//! stream was divided into segments nor on the number of threads.
//!
//! The selection is FastCDC's (Xia et al., USENIX ATC 2016) with normalised chunking of level 2: no chunk is shorter
//! than `min` (but the last of a stream); from there to the normal point only a strict candidate ends it (2 bits more
//! than the average calls for), behind it a loose one does (2 bits fewer), at `max` it ends anyway.
//!
//! What this file does not do: read, hash or store chunks, or cut at tensor starts. How candidates are found, and how
//! many there can be, is in `gear.rs`.

use super::gear::GearTable;
pub use super::gear::{CONTEXT_BYTES, PLAIN_KEY};
use crate::bytes::{ByteCount, KIB, MIB};
use crate::error::{Error, Kind, Result};
use std::sync::Arc;

/// Bits by which the strict test is harder and the loose one easier than the average calls for. FastCDC measured
/// level 2 as the best compromise between even sizes and found duplicates.
const NORMALISATION_BITS: u32 = 2;

/// The sizes of chunks in bytes; recorded in the repository's configuration, for other sizes give other cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    min: u64,
    average: u64,
    max: u64,
}

impl ChunkSizes {
    /// The smallest average: below it, matches would silence each other (see `gear.rs`).
    pub const AVERAGE_LEAST: u64 = 4 * KIB;
    /// The largest `max`: bounds the memory that one chunk takes, whatever a configuration says.
    pub const MAX_MOST: u64 = 16 * MIB;
    /// The smallest `min`: one window of the hash.
    pub const MIN_LEAST: u64 = 64;

    /// Chunks of `min` to `max` bytes, `average` in the mean over random data.
    ///
    /// Errors (`Usage`): `average` is not a power of two from 4 KiB to 8 MiB, `min` is not within 64 bytes and half the
    /// average, or `max` is not within twice the average and 16 MiB.
    pub fn new(min: u64, average: u64, max: u64) -> Result<Self> {
        let possible = average.is_power_of_two()
            && (Self::AVERAGE_LEAST..=Self::MAX_MOST / 2).contains(&average)
            && (Self::MIN_LEAST..=average / 2).contains(&min)
            && (average * 2..=Self::MAX_MOST).contains(&max);
        if !possible {
            let sizes = format!("{}, {}, {}", ByteCount(min), ByteCount(average), ByteCount(max));
            return Err(Error::new(Kind::Usage, format!("chunk sizes (min, average, max) {sizes} cannot be used"))
                .with_hint(
                    "the average is a power of two from 4 KiB to 8 MiB, min at least 64 bytes and at most half of it, \
                     max at least twice of it and at most 16 MiB",
                ));
        }
        Ok(ChunkSizes { min, average, max })
    }

    /// The least bytes of a chunk that is not the last of its stream.
    pub const fn min(self) -> u64 {
        self.min
    }

    /// The mean of the bytes of a chunk over random data.
    pub const fn average(self) -> u64 {
        self.average
    }

    /// The most bytes of a chunk.
    pub const fn max(self) -> u64 {
        self.max
    }

    /// The length from which a loose candidate ends a chunk.
    ///
    /// With strict candidates every `S = 4 * average` bytes and loose ones every `L = average / 4`, the mean length
    /// is `min + S * (1 - e) + L * e` where `e = exp((min - normal) / S)`. The `normal` for which that is `average`
    /// is, to 2 % for all allowed `min`, the line below; integers, so that every machine cuts alike.
    const fn normal(self) -> u64 {
        self.average / 8 * 7 - self.min / 5
    }

    /// Hashes below this are loose candidates.
    const fn loose_limit(self) -> u64 {
        1 << (u64::BITS - (self.average.ilog2() - NORMALISATION_BITS))
    }

    /// Hashes below this are strict candidates, and loose ones too.
    const fn strict_limit(self) -> u64 {
        1 << (u64::BITS - (self.average.ilog2() + NORMALISATION_BITS))
    }
}

impl Default for ChunkSizes {
    /// 64 KiB, 256 KiB, 1 MiB: a quarter and four times the average, so that 1 % of the chunks or fewer are cut at
    /// `max`, where the content does not decide.
    fn default() -> Self {
        ChunkSizes { min: 64 * KIB, average: 256 * KIB, max: MIB }
    }
}

/// A position at which a chunk may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Offset in the segment, in bytes: the chunk would end before the byte there.
    pub end: u64,
    /// Ends a chunk below the normal length too.
    pub is_strict: bool,
}

/// The candidates of one segment, in order. At most one for every 65 bytes, in practice one for every 64 KiB at the
/// default sizes; reuse it from segment to segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    list: Vec<Candidate>,
    segment_len: u64,
}

impl Candidates {
    /// No candidates.
    pub fn new() -> Self {
        Self::default()
    }

    /// The candidates, by position.
    pub fn iter(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.list.iter().copied()
    }

    /// The bytes of the segment.
    pub fn segment_len(&self) -> u64 {
        self.segment_len
    }
}

/// Finds candidates and selects cuts for one set of sizes and one table. Cheap to clone and to share.
#[derive(Debug, Clone)]
pub struct Chunker {
    sizes: ChunkSizes,
    table: Arc<GearTable>,
}

impl Chunker {
    /// The chunker of a repository: its sizes and its key, [`PLAIN_KEY`] where nothing is encrypted.
    pub fn new(sizes: ChunkSizes, key: &[u8; 32]) -> Self {
        Chunker { sizes, table: Arc::new(GearTable::new(key)) }
    }

    /// The sizes it cuts to.
    pub fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// Replaces the content of `out` by the candidates of `segment`.
    ///
    /// `before` holds the bytes of the stream right before the segment. The last [`CONTEXT_BYTES`] of them count; a
    /// shorter `before` says that the stream begins with it.
    pub fn scan(&self, before: &[u8], segment: &[u8], out: &mut Candidates) {
        let strict_limit = self.sizes.strict_limit();
        out.list.clear();
        out.segment_len = segment.len() as u64;
        self.table.scan(before, segment, self.sizes.loose_limit(), &mut |found| {
            out.list.push(Candidate { end: found.end as u64, is_strict: found.hash < strict_limit });
        });
        out.list.sort_unstable_by_key(|candidate| candidate.end);
    }

    /// The selection of cuts for a new stream.
    pub fn cutter(&self) -> Cutter {
        Cutter { sizes: self.sizes, chunk_start: 0, position: 0 }
    }

    /// The ends of all chunks of `data`, a stream of its own; the last is its length, and empty data has none.
    pub fn cut_all(&self, data: &[u8]) -> Vec<usize> {
        // Nothing ends before the smallest size: there is nothing to look for.
        if !data.is_empty() && data.len() as u64 <= self.sizes.min() {
            return vec![data.len()];
        }
        let (mut candidates, mut cuts) = (Candidates::new(), Vec::new());
        self.scan(&[], data, &mut candidates);
        let mut cutter = self.cutter();
        cutter.push(&candidates, &mut cuts);
        cutter.finish(&mut cuts);
        cuts.into_iter().map(|cut| usize::try_from(cut).expect("an offset in a slice fits")).collect()
    }
}

/// Selects the cuts of one stream from the candidates of its segments, pushed in order.
///
/// Each decision needs only what lies before it, so every push yields all cuts up to the end of its segment.
#[derive(Debug, Clone)]
pub struct Cutter {
    sizes: ChunkSizes,
    /// Offset in the stream where the chunk under way begins.
    chunk_start: u64,
    /// Offset in the stream of the end of what was pushed.
    position: u64,
}

impl Cutter {
    /// Takes the next segment's candidates and appends the ends of chunks in it: offsets in the stream.
    pub fn push(&mut self, candidates: &Candidates, cuts: &mut Vec<u64>) {
        let normal = self.sizes.normal();
        for candidate in candidates.iter() {
            let end = self.position + candidate.end;
            self.cut_at_max(end, cuts);
            let len = end - self.chunk_start;
            if len >= normal || (candidate.is_strict && len >= self.sizes.min) {
                cuts.push(end);
                self.chunk_start = end;
            }
        }
        self.position += candidates.segment_len;
        self.cut_at_max(self.position, cuts);
    }

    /// Ends the stream: what remains is the last chunk.
    pub fn finish(self, cuts: &mut Vec<u64>) {
        if self.position > self.chunk_start {
            cuts.push(self.position);
        }
    }

    /// Cuts chunks of the largest size up to `end`, before which no candidate is left.
    fn cut_at_max(&mut self, end: u64, cuts: &mut Vec<u64>) {
        while end - self.chunk_start >= self.sizes.max {
            self.chunk_start += self.sizes.max;
            cuts.push(self.chunk_start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gear::QUIET_BYTES;
    use super::*;
    use proptest::prelude::*;

    /// Byte at a time, as the opening comments say it.
    fn reference_cuts(chunker: &Chunker, data: &[u8]) -> Vec<usize> {
        let (sizes, mut cuts) = (chunker.sizes, Vec::new());
        let (mut hash, mut start, mut last_match) = (0u64, 0, None);
        for (i, &byte) in data.iter().enumerate() {
            hash = chunker.table.roll(hash, byte);
            let end = i + 1;
            let len = (end - start) as u64;
            let mut is_candidate = false;
            if hash < sizes.loose_limit() {
                is_candidate = last_match.is_none_or(|last| end - last > QUIET_BYTES);
                last_match = Some(end);
            }
            let is_strict = is_candidate && hash < sizes.strict_limit();
            if len == sizes.max || (is_strict && len >= sizes.min) || (is_candidate && len >= sizes.normal()) {
                cuts.push(end);
                start = end;
            }
        }
        if start < data.len() {
            cuts.push(data.len());
        }
        cuts
    }

    /// The cuts with the stream handed over in segments of the given lengths, in turn.
    fn cuts_in_segments(chunker: &Chunker, data: &[u8], segment_lens: &[usize]) -> Vec<usize> {
        let (mut cutter, mut candidates, mut cuts) = (chunker.cutter(), Candidates::new(), Vec::new());
        let (mut position, mut lens) = (0, segment_lens.iter().cycle());
        while position < data.len() {
            let end = data.len().min(position + lens.next().expect("cycled"));
            chunker.scan(
                &data[position.saturating_sub(CONTEXT_BYTES)..position],
                &data[position..end],
                &mut candidates,
            );
            assert_eq!(candidates.segment_len(), (end - position) as u64);
            cutter.push(&candidates, &mut cuts);
            position = end;
        }
        cutter.finish(&mut cuts);
        cuts.into_iter().map(|cut| usize::try_from(cut).expect("small")).collect()
    }

    fn small() -> ChunkSizes {
        ChunkSizes::new(1024, 4096, 16384).expect("allowed")
    }

    fn random(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn matching_everywhere(sizes: ChunkSizes) -> Chunker {
        Chunker { sizes, table: Arc::new(GearTable::zeros()) }
    }

    /// Stretches of random bytes, constants, short periods and copies of what came before.
    fn mixed_data() -> impl Strategy<Value = Vec<u8>> {
        let stretch = (0u8..4, any::<u64>(), 0usize..30_000, 1usize..200);
        prop::collection::vec(stretch, 0..8).prop_map(|stretches| {
            let mut data: Vec<u8> = Vec::new();
            for (kind, seed, len, period) in stretches {
                match kind {
                    0 => data.extend(random(seed, len)),
                    1 => data.extend(std::iter::repeat_n(seed.to_le_bytes()[0], len)),
                    2 => data.extend(random(seed, period).iter().cycle().take(len)),
                    _ => data.extend_from_within(data.len().saturating_sub(len)..),
                }
            }
            data
        })
    }

    proptest! {
        #[test]
        fn cuts_equal_the_reference_however_the_stream_is_segmented(
            data in mixed_data(),
            segment_lens in prop::collection::vec(prop_oneof![1usize..200, 1usize..40_000], 1..20),
            key in any::<[u8; 32]>(),
            min in prop_oneof![Just(64u64), Just(1000), Just(2048)],
            max in 8192u64..20_000,
        ) {
            let sizes = ChunkSizes::new(min, 4096, max).expect("allowed");
            for chunker in [Chunker::new(sizes, &key), matching_everywhere(sizes)] {
                let expected = reference_cuts(&chunker, &data);
                prop_assert_eq!(&chunker.cut_all(&data), &expected);
                prop_assert_eq!(&cuts_in_segments(&chunker, &data, &segment_lens), &expected);
            }
        }
    }

    #[test]
    fn cuts_equal_the_reference_at_lengths_around_each_boundary() {
        let chunker = Chunker::new(small(), &PLAIN_KEY);
        let data = random(1, 70_000);
        let zeros = vec![0; data.len()];
        let boundaries = [1, 63, 64, 127, 128, 1024, small().normal() as usize, 4096, 8192, 16384, 32768, 65536];
        for len in boundaries.iter().flat_map(|&n| [n - 1, n, n + 1]) {
            for data in [&data, &zeros] {
                assert_eq!(chunker.cut_all(&data[..len]), reference_cuts(&chunker, &data[..len]), "{len} bytes");
                assert_eq!(
                    cuts_in_segments(&chunker, &data[..len], &[1]),
                    reference_cuts(&chunker, &data[..len]),
                    "{len} bytes, one by one"
                );
            }
        }
        assert!(chunker.cut_all(&[]).is_empty());
        assert_eq!(chunker.cut_all(&[7]), [1]);
    }

    #[test]
    fn the_default_sizes_agree_with_the_reference_over_lanes_and_segments() {
        let chunker = Chunker::new(ChunkSizes::default(), &PLAIN_KEY);
        let data = random(2, 9_000_001);
        let expected = reference_cuts(&chunker, &data);
        assert_eq!(chunker.cut_all(&data), expected);
        assert_eq!(cuts_in_segments(&chunker, &data, &[1 << 20]), expected);
        assert_eq!(cuts_in_segments(&chunker, &data, &[999_983, 131_072, 8191, 8192, 8193]), expected);
    }

    #[test]
    fn the_mean_chunk_of_random_data_has_the_average_size() {
        // 2,000 chunks or more with a standard deviation of about half the mean: the error of the mean is about 1 %.
        for (min, average) in [(64, 4096), (1024, 4096), (4096, 16384), (2048, 4096)] {
            let sizes = ChunkSizes::new(min, average, average * 4).expect("allowed");
            let data = random(average + min, average as usize * 2000);
            let cuts = Chunker::new(sizes, &PLAIN_KEY).cut_all(&data);
            let mean = data.len() as f64 / cuts.len() as f64 / average as f64;
            // Small averages lose matches to the quiet rule: 6 % of the loose ones at 4 KiB.
            assert!((0.94..1.06).contains(&mean), "min {min}, average {average}: mean {mean:.3} x average");
            let (mut start, mut at_max) = (0, 0);
            for (i, &cut) in cuts.iter().enumerate() {
                assert!(cut - start <= sizes.max as usize);
                assert!(cut - start >= sizes.min as usize || i + 1 == cuts.len());
                at_max += usize::from(cut - start == sizes.max as usize);
                start = cut;
            }
            assert!(at_max * 100 <= cuts.len(), "{at_max} of {} chunks were cut at max", cuts.len());
        }
    }

    #[test]
    fn candidates_stay_few_on_data_that_matches_everywhere() {
        let chunker = matching_everywhere(small());
        let mut candidates = Candidates::new();
        chunker.scan(&[], &vec![0; 1 << 20], &mut candidates);
        assert_eq!(candidates.list, [Candidate { end: 1, is_strict: true }]);
        // Constant and periodic data under many keys: never more than one in 65.
        for key in 0..50u8 {
            let chunker = Chunker::new(small(), &[key; 32]);
            for period in 1..130 {
                let data: Vec<u8> = random(period, period as usize).iter().copied().cycle().take(20_000).collect();
                chunker.scan(&[], &data, &mut candidates);
                assert!(candidates.list.len() <= data.len() / (QUIET_BYTES + 1) + 1);
            }
        }
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let chunker = Chunker::new(small(), &PLAIN_KEY);
        let data = random(3, 400_000);
        let mut edited = data.clone();
        edited.splice(200_000..200_000, [1, 2, 3]);
        let before = chunker.cut_all(&data);
        let after: Vec<usize> =
            chunker.cut_all(&edited).iter().map(|&cut| cut - if cut > 200_000 { 3 } else { 0 }).collect();
        let kept = before.iter().filter(|cut| after.contains(cut)).count();
        assert!(kept + 6 >= before.len(), "{kept} of {} cuts kept", before.len());
    }

    #[test]
    fn another_key_gives_other_cuts_and_the_plain_key_always_the_same() {
        let data = random(4, 100_000);
        let plain = Chunker::new(small(), &PLAIN_KEY);
        assert_ne!(plain.cut_all(&data), Chunker::new(small(), &[9; 32]).cut_all(&data));
        // Pinned: if this changes, nothing deduplicates against repositories written before.
        assert_eq!(plain.cut_all(&data)[..4], [3533, 11763, 14778, 18490]);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused() {
        for (min, average, max) in [
            (63, 4096, 8192),
            (64, 2048, 8192),
            (64, 5000, 16384),
            (2049, 4096, 8192),
            (64, 4096, 8191),
            (64, 4096, (16 << 20) + 1),
            (64, 16 << 20, 32 << 20),
            (0, 0, 0),
            (u64::MAX, u64::MAX, u64::MAX),
            (64, 1 << 63, u64::MAX),
        ] {
            let error = ChunkSizes::new(min, average, max).expect_err("impossible");
            assert_eq!(error.kind(), Kind::Usage);
        }
        let default = ChunkSizes::default();
        assert_eq!(ChunkSizes::new(default.min(), default.average(), default.max()).expect("the default"), default);
    }
}
