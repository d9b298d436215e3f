//! The gear hash: which positions of a byte stream may end a chunk.
//!
//! The hash is `h = (h << 1) + TABLE[byte]` in 64 bits. A byte's contribution leaves the word after 64 steps, so the
//! hash at a position depends on the last [`WINDOW_BYTES`] bytes only: whether a position is a candidate is a local
//! property of the data, and parts of a file can be looked at in any order and in parallel.
//!
//! Bit `k` of the hash depends on the last `k + 1` bytes only. The test therefore looks at the highest bits, which
//! depend on the whole window: "the top `n` bits are zero" is the single comparison `h < 2^(64 - n)`, and a larger
//! `n` selects a subset of the positions of a smaller one.
//!
//! Data whose hash matches again and again (constant bytes, short periods) would make every position a candidate. A
//! match counts only if none of the [`QUIET_BYTES`] positions before it matches: still a local property, now of
//! [`CONTEXT_BYTES`] bytes before a position, and it bounds the candidates of any data, under any key, to one in 65.
//! On ordinary data it drops 1 match in 1,000 at the default sizes.
//!
//! This file knows nothing of chunk sizes; selecting among the candidates is `chunker.rs`'s.
//!
//! Sources: gear hash: Xia et al., "Ddelta", Performance Evaluation 79 (2014); two nested masks: Xia et al.,
//! "FastCDC", USENIX ATC 2016.

use std::fmt;

/// The number of bytes that decide a hash.
pub const WINDOW_BYTES: usize = 64;

/// The number of positions before a match that must not match themselves.
pub const QUIET_BYTES: usize = 64;

/// The number of bytes before a segment that decide, with the segment, its candidates.
pub const CONTEXT_BYTES: usize = WINDOW_BYTES - 1 + QUIET_BYTES;

/// The key of the table in repositories without encryption. Its text is its only meaning; with another key the same
/// data is cut elsewhere.
pub const PLAIN_KEY: [u8; 32] = *b"ckpt: gear table without a key 1";

/// The context string of the derivation of tables from keys (BLAKE3 `derive_key`).
const TABLE_CONTEXT: &str = "ckpt gear table v1";

/// How many parts of a segment are hashed side by side: one hash is a chain of dependent steps of two cycles, so one
/// alone leaves most of a core idle. Measured on one core of a Zen 5 machine, GB/s: 1.9 with one lane, 3.7 with two,
/// 3.9 with three, 2.9 to 3.9 with four, 2.4 with six or eight, whose hashes no longer fit into registers. A branch
/// for each byte, never taken, beat every way to test several hashes at once (minimum, AND of pairs, borrows: 2.8 to
/// 3.3); without any test the loop reaches 6.3.
const LANES: usize = 3;

/// Segments shorter than this are scanned as one lane: the lanes' warming up would cost more than they gain.
const LANES_FROM_BYTES: usize = 8 << 10;

/// The 256 random words of the gear hash.
#[derive(Clone)]
pub struct GearTable([u64; 256]);

impl GearTable {
    /// The table of `key`, the same on every machine: 2,048 bytes of BLAKE3 output as little-endian words.
    pub fn new(key: &[u8; 32]) -> Self {
        let mut bytes = [0u8; 2048];
        blake3::Hasher::new_derive_key(TABLE_CONTEXT).update(key).finalize_xof().fill(&mut bytes);
        let (words, _) = bytes.as_chunks::<8>();
        GearTable(std::array::from_fn(|i| u64::from_le_bytes(words[i])))
    }

    /// A table in which every position matches every test: the worst case for whoever holds candidates.
    #[cfg(test)]
    pub(super) fn zeros() -> Self {
        GearTable([0; 256])
    }

    /// The hash after `byte`, from the hash before it.
    #[inline(always)]
    pub(super) fn roll(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.0[usize::from(byte)])
    }

    /// Reports every match in `segment`, in no particular order.
    ///
    /// `before` is what precedes the segment in the stream: its last [`CONTEXT_BYTES`] bytes count; if there are
    /// fewer, the stream begins with them. `limit` is the test: a position matches if its hash is below.
    pub(super) fn scan(&self, before: &[u8], segment: &[u8], limit: u64, matches: &mut impl FnMut(Match)) {
        let mut rest = Lane::warmed_up(self, before, 0, limit);
        let lane_bytes = segment.len() / (LANES * 8) * 8;
        if segment.len() < LANES_FROM_BYTES {
            return self.scan_one(&mut rest, segment, limit, matches);
        }
        let (head, tail) = segment.split_at(lane_bytes * LANES);
        let mut lanes: [Lane; LANES] = std::array::from_fn(|i| match i {
            0 => rest.clone(),
            _ => Lane::warmed_up(self, &head[..i * lane_bytes], i * lane_bytes, limit),
        });
        self.scan_lanes(&mut lanes, head, limit, matches);
        let [.., last] = &mut lanes;
        last.position = head.len();
        self.scan_one(last, tail, limit, matches);
    }

    /// Hashes `bytes`, which begin where the lane stands.
    fn scan_one(&self, lane: &mut Lane, bytes: &[u8], limit: u64, matches: &mut impl FnMut(Match)) {
        let mut hash = lane.hash;
        for (i, &byte) in bytes.iter().enumerate() {
            hash = self.roll(hash, byte);
            if hash < limit {
                lane.matched(lane.position + i + 1, hash, matches);
            }
        }
        lane.hash = hash;
        lane.position += bytes.len();
    }

    /// Hashes equal parts of `head` side by side, one for each lane; only the lanes' record of matches is kept
    /// current, and the hashes at the end.
    #[expect(clippy::needless_range_loop, reason = "the indices run across the lanes, not along one of them")]
    fn scan_lanes(&self, lanes: &mut [Lane; LANES], head: &[u8], limit: u64, matches: &mut impl FnMut(Match)) {
        let lane_bytes = head.len() / LANES;
        let steps = lane_bytes / 8;
        // One length for all lanes, known before the loop: no bounds are checked inside it.
        let words: [&[[u8; 8]]; LANES] =
            std::array::from_fn(|i| &head[i * lane_bytes..][..lane_bytes].as_chunks::<8>().0[..steps]);
        let mut hashes: [u64; LANES] = std::array::from_fn(|i| lanes[i].hash);
        for step in 0..steps {
            for byte in 0..8 {
                for lane in 0..LANES {
                    hashes[lane] = self.roll(hashes[lane], words[lane][step][byte]);
                    if hashes[lane] < limit {
                        let position = lanes[lane].position + step * 8 + byte + 1;
                        lanes[lane].matched(position, hashes[lane], matches);
                    }
                }
            }
        }
        for (lane, hash) in lanes.iter_mut().zip(hashes) {
            lane.hash = hash;
        }
    }
}

impl fmt::Debug for GearTable {
    // The table of an encrypted repository tells where its chunks end: it stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GearTable")
    }
}

/// A position whose hash is below the limit, with no other such position shortly before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// The offset in the segment behind the byte that completed the hash: where a chunk would end.
    pub(super) end: usize,
    /// The hash there.
    pub(super) hash: u64,
}

/// The state of hashing one stretch of a segment.
#[derive(Clone)]
struct Lane {
    hash: u64,
    /// Offset in the segment of the next byte.
    position: usize,
    /// The next position at which a match counts.
    quiet_until: usize,
}

impl Lane {
    /// The lane that begins at `position` of the segment, behind `before`.
    fn warmed_up(table: &GearTable, before: &[u8], position: usize, limit: u64) -> Lane {
        let before = &before[before.len().saturating_sub(CONTEXT_BYTES)..];
        let mut lane = Lane { hash: 0, position, quiet_until: 0 };
        // Hashes over less than a full window are exact only where the stream itself begins with `before`; those of
        // the last QUIET_BYTES positions are exact in either case, and only they matter.
        let settled = before.len().saturating_sub(QUIET_BYTES);
        for (i, &byte) in before.iter().enumerate() {
            lane.hash = table.roll(lane.hash, byte);
            if i >= settled && lane.hash < limit {
                // The position is `i + 1 - before.len()` from the lane's begin, and quiet reaches beyond that.
                lane.quiet_until = position + (i + 1 + QUIET_BYTES + 1 - before.len());
            }
        }
        lane
    }

    /// Notes a match at `end` and reports it if the positions before it were quiet.
    #[cold]
    #[inline(never)]
    fn matched(&mut self, end: usize, hash: u64, matches: &mut impl FnMut(Match)) {
        if end >= self.quiet_until {
            matches(Match { end, hash });
        }
        self.quiet_until = end + QUIET_BYTES + 1;
    }
}
