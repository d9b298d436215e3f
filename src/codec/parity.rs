//! Parity: a few shards computed from all of a pack, from which lost parts of it are computed again.
//!
//! A pack is looked at as data shards of equal length, each a stretch of neighbouring bytes, so that a hole in one place
//! costs no more than as many spots of rot. Of data and parity shards together any as many as there are data shards give
//! back all. How many there are and how long follows from the length of the pack alone, see [`Shape`].
//!
//! The code works on words at the same place of every shard, so shards are fed in narrow columns: the columns of all of
//! them fit into the processor's cache. `docs/FORMAT.md`, "Parity", says what the code is.
//!
//! Nothing here notices damage: which shards are right is for the caller to know, by [`checksum`]. Deliberately not here:
//! objects, names, reading.

use crate::error::{Error, Kind, Result};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use twox_hash::XxHash3_64;

/// The longest pack that can have parity: the longest that a repository may be set to, and room for its table.
pub const PACK_BYTES_MAX: u64 = 1 << 31;
/// Data shards for each parity shard.
const DATA_PER_PARITY: u64 = 32;
/// The fewest parity shards, however short the pack.
const PARITY_SHARDS_MIN: u64 = 2;
/// The binary logarithm of the shortest shard: the code works on blocks of 64 bytes.
const SHARD_EXPONENT_MIN: u32 = 6;
/// Bytes of a shard that are encoded at once: 4,096 of them fit into the cache of a core.
pub(super) const COLUMN_BYTES: usize = 1 << 10;
/// The same for decoding, where each call costs a millisecond beside what each byte costs.
const DECODING_COLUMN_BYTES: usize = 4 << 10;
/// Bytes of a checksum.
pub const CHECKSUM_BYTES: usize = 8;

/// How a pack of some length is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the pack.
    pub pack_bytes: u64,
    /// Bytes of each shard. The last data shard is filled up with zeros that are stored nowhere.
    pub shard_bytes: usize,
    /// How many shards the pack makes.
    pub data_shards: usize,
    /// How many are computed from them.
    pub parity_shards: usize,
}

impl Shape {
    /// The one rule. A pack of `2^e` bytes or more has shards of `2^(e / 2 + 1)` bytes, but at least 64, and above 64 MiB
    /// `2^(e - 12)`, so that there never are more than 8,192; and one parity shard for every 32 begun, at least two.
    pub fn of(pack_bytes: u64) -> Result<Shape> {
        if pack_bytes == 0 || pack_bytes > PACK_BYTES_MAX {
            let text = format!("a pack of {pack_bytes} bytes cannot have parity, at most {PACK_BYTES_MAX} can");
            return Err(Error::damaged(text));
        }
        let magnitude = pack_bytes.ilog2();
        let exponent = (magnitude / 2 + 1).max(magnitude.saturating_sub(12)).max(SHARD_EXPONENT_MIN);
        let data_shards = pack_bytes.div_ceil(1 << exponent);
        let parity_shards = data_shards.div_ceil(DATA_PER_PARITY).max(PARITY_SHARDS_MIN);
        // All of them are small by the bound above.
        let narrow = |n: u64| usize::try_from(n).map_err(|_| Error::new(Kind::Failed, "parity beyond this machine"));
        Ok(Shape {
            pack_bytes,
            shard_bytes: 1 << exponent,
            data_shards: narrow(data_shards)?,
            parity_shards: narrow(parity_shards)?,
        })
    }

    /// All shards of both kinds.
    pub fn shards(&self) -> usize {
        self.data_shards + self.parity_shards
    }

    /// Bytes of all parity shards.
    pub fn parity_bytes(&self) -> usize {
        self.parity_shards * self.shard_bytes
    }

    /// Where a data shard begins in the pack, and how many of its bytes lie there.
    pub fn place(&self, shard: usize) -> (u64, usize) {
        let at = shard as u64 * self.shard_bytes as u64;
        let bytes = self.pack_bytes.saturating_sub(at).min(self.shard_bytes as u64);
        (at, usize::try_from(bytes).unwrap_or(self.shard_bytes))
    }
}

/// What tells a right shard from a wrong one: XXH3 of its bytes, those of the pack only, little-endian.
///
/// Who changes bytes on purpose can fit a checksum to them, and gains no more than by damaging them: what is made of
/// shards is held against an id. So it need only be fast: all of a pack goes through it beside the hash of the pack.
pub fn checksum(shard: &[u8]) -> [u8; CHECKSUM_BYTES] {
    XxHash3_64::oneshot(shard).to_le_bytes()
}

/// Computes parity shards. One that is kept and used again is several times as fast as a new one.
#[derive(Default)]
pub struct ParityEncoder {
    code: Option<ReedSolomonEncoder>,
}

impl ParityEncoder {
    /// The parity shards of `pack`, one behind the other, in place of what `parity` held.
    pub fn encode(&mut self, pack: &[u8], shape: &Shape, parity: &mut Vec<u8>) -> Result<()> {
        if pack.len() as u64 != shape.pack_bytes {
            return Err(Error::new(Kind::Failed, "parity was asked for a pack of another length"));
        }
        self.encode_columns(pack, shape, shape.shard_bytes, parity)
    }

    /// The same for columns of all shards, each `width` bytes, a multiple of 64: `data` and what replaces `parity` hold
    /// them one behind the other. Where `data` ends early, zeros are meant.
    pub fn encode_columns(&mut self, data: &[u8], shape: &Shape, width: usize, parity: &mut Vec<u8>) -> Result<()> {
        if width == 0 || !width.is_multiple_of(64) {
            return Err(impossible("a column of an odd width"));
        }
        parity.clear();
        parity.resize(shape.parity_shards * width, 0);
        let mut padded = Vec::new();
        let mut at = 0;
        while at < width {
            let now = COLUMN_BYTES.min(width - at);
            let code = self.code(shape, now)?;
            for shard in 0..shape.data_shards {
                let from = data.len().min(shard * width + at);
                let here = &data[from..data.len().min(from + now)];
                if here.len() == now {
                    code.add_original_shard(here).map_err(impossible)?;
                } else {
                    padded.clear();
                    padded.extend_from_slice(here);
                    padded.resize(now, 0);
                    code.add_original_shard(&padded).map_err(impossible)?;
                }
            }
            let encoded = code.encode().map_err(impossible)?;
            for (computed, shard) in encoded.recovery_iter().zip(parity.chunks_exact_mut(width)) {
                shard[at..at + now].copy_from_slice(computed);
            }
            at += now;
        }
        Ok(())
    }

    fn code(&mut self, shape: &Shape, column_bytes: usize) -> Result<&mut ReedSolomonEncoder> {
        let (data, parity) = (shape.data_shards, shape.parity_shards);
        match &mut self.code {
            Some(code) => code.reset(data, parity, column_bytes).map_err(impossible)?,
            none => *none = Some(ReedSolomonEncoder::new(data, parity, column_bytes).map_err(impossible)?),
        }
        self.code.as_mut().ok_or_else(|| impossible("no code"))
    }
}

/// Columns of shards: the same `width` bytes of each, a multiple of 64.
pub struct Columns<'a> {
    /// Bytes of each.
    pub width: usize,
    /// Those of the data shards, one behind the other; those of lost ones may hold anything.
    pub data: &'a [u8],
    /// The numbers of the data shards that are lost, ascending.
    pub lost: &'a [usize],
    /// The numbers of as many parity shards that are not.
    pub given: &'a [usize],
    /// The columns of those, one behind the other.
    pub parity: &'a [u8],
}

/// The columns of the lost data shards, one behind the other.
pub fn reconstruct(shape: &Shape, columns: &Columns<'_>) -> Result<Vec<u8>> {
    let Columns { width, data, lost, given, parity } = *columns;
    let fits = width.is_multiple_of(64)
        && data.len() == shape.data_shards * width
        && parity.len() == given.len() * width
        && lost.len() == given.len()
        && lost.is_sorted();
    if !fits {
        return Err(Error::new(Kind::Failed, "lost shards were asked for without what they are computed from"));
    }
    let mut restored = vec![0; lost.len() * width];
    if lost.is_empty() || width == 0 {
        return Ok(restored);
    }
    let narrow = width.min(DECODING_COLUMN_BYTES);
    let mut code = ReedSolomonDecoder::new(shape.data_shards, shape.parity_shards, narrow).map_err(impossible)?;
    let mut column = 0;
    while column < width {
        let now = narrow.min(width - column);
        code.reset(shape.data_shards, shape.parity_shards, now).map_err(impossible)?;
        let mut lost_ahead = lost.iter().copied().peekable();
        for (shard, bytes) in data.chunks_exact(width).enumerate() {
            if lost_ahead.next_if_eq(&shard).is_none() {
                code.add_original_shard(shard, &bytes[column..column + now]).map_err(impossible)?;
            }
        }
        for (&shard, bytes) in given.iter().zip(parity.chunks_exact(width)) {
            code.add_recovery_shard(shard, &bytes[column..column + now]).map_err(impossible)?;
        }
        let decoded = code.decode().map_err(impossible)?;
        for (&shard, into) in lost.iter().zip(restored.chunks_exact_mut(width)) {
            let computed = decoded.restored_original(shard);
            into[column..column + now].copy_from_slice(computed.ok_or_else(|| impossible("a shard is not there"))?);
        }
        column += now;
    }
    Ok(restored)
}

/// Counts and lengths follow from [`Shape`], which the code supports: nothing that is stored leads here.
fn impossible(error: impl std::fmt::Display) -> Error {
    Error::new(Kind::Failed, format!("computing parity: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::synthetic::random as noise;

    fn encoded(pack: &[u8]) -> (Shape, Vec<u8>) {
        let shape = Shape::of(pack.len() as u64).expect("a pack");
        let mut parity = Vec::new();
        ParityEncoder::default().encode(pack, &shape, &mut parity).expect("encodes");
        (shape, parity)
    }

    /// The pack after these shards were lost and computed again from those parity shards.
    fn mended(pack: &[u8], lost: &[usize], given: &[usize]) -> Vec<u8> {
        let (shape, parity) = encoded(pack);
        let mut data = pack.to_vec();
        data.resize(shape.data_shards * shape.shard_bytes, 0);
        lost.iter().for_each(|&n| data[n * shape.shard_bytes..(n + 1) * shape.shard_bytes].fill(0xaa));
        let width = shape.shard_bytes;
        let chosen: Vec<u8> = given.iter().flat_map(|&n| parity[n * width..(n + 1) * width].to_vec()).collect();
        let columns = Columns { width, data: &data, lost, given, parity: &chosen };
        let restored = reconstruct(&shape, &columns).expect("enough is given");
        for (&n, shard) in lost.iter().zip(restored.chunks_exact(width)) {
            data[n * width..(n + 1) * width].copy_from_slice(shard);
        }
        data.truncate(pack.len());
        data
    }

    #[test]
    fn shards_follow_from_the_length_and_stay_within_their_bounds() {
        let shape = |bytes| Shape::of(bytes).map(|s| (s.shard_bytes, s.data_shards, s.parity_shards)).expect("a pack");
        assert_eq!(shape(1), (64, 1, 2));
        assert_eq!(shape(128), (64, 2, 2));
        assert_eq!(shape(4096), (128, 32, 2));
        assert_eq!(shape(64 << 10), (512, 128, 4));
        assert_eq!(shape(64 << 20), (16 << 10, 4096, 128));
        assert_eq!(shape((64 << 20) + 1), (16 << 10, 4097, 129));
        assert_eq!(shape((128 << 20) - 1), (16 << 10, 8192, 256));
        assert_eq!(shape(1 << 30), (256 << 10, 4096, 128));
        assert_eq!(shape(PACK_BYTES_MAX), (512 << 10, 4096, 128));
        for bytes in (0..31).flat_map(|e| [(1u64 << e) - 1, 1 << e, (1 << e) + 1]).filter(|&n| n > 0) {
            let shape = Shape::of(bytes).expect("a pack");
            assert!(shape.data_shards <= 8192 && shape.shard_bytes.is_power_of_two(), "{shape:?}");
            let all = shape.data_shards as u64 * shape.shard_bytes as u64;
            assert!(all >= bytes && all - bytes < shape.shard_bytes as u64, "{shape:?}");
            assert!(ReedSolomonEncoder::supports(shape.data_shards, shape.parity_shards), "{shape:?}");
            assert_eq!(shape.place(shape.data_shards - 1).0 + shape.place(shape.data_shards - 1).1 as u64, bytes);
        }
        assert!(Shape::of(0).is_err() && Shape::of(PACK_BYTES_MAX + 1).is_err() && Shape::of(u64::MAX).is_err());
    }

    #[test]
    fn any_lost_shards_come_back_from_any_parity_shards_of_their_number() {
        for bytes in [1, 63, 64, 65, 128, 1000, 4096, 70_001, 300_000] {
            let pack = noise(bytes as u64, bytes);
            let shape = Shape::of(bytes as u64).expect("a pack");
            let most = shape.parity_shards.min(shape.data_shards);
            let all: Vec<usize> = (0..shape.parity_shards).collect();
            let last: Vec<usize> = (shape.data_shards - most..shape.data_shards).collect();
            let spread: Vec<usize> = (0..most).map(|n| n * shape.data_shards / most).collect();
            for lost in [&last, &spread] {
                assert_eq!(mended(&pack, lost, &all[all.len() - most..]), pack, "{bytes} bytes, {lost:?} lost");
            }
            assert_eq!(mended(&pack, &[0], &[shape.parity_shards - 1]), pack);
            assert_eq!(mended(&pack, &[], &[]), pack);
        }
    }

    #[test]
    fn an_encoder_that_is_used_again_computes_the_same() {
        let mut kept = ParityEncoder::default();
        let mut parity = Vec::new();
        for bytes in [5_000_000, 70_001, 3, 70_001] {
            let pack = noise(7, bytes);
            let (shape, fresh) = encoded(&pack);
            kept.encode(&pack, &shape, &mut parity).expect("encodes");
            assert_eq!(parity, fresh);
        }
        let shape = Shape::of(99).expect("a pack");
        assert!(kept.encode(&[0; 98], &shape, &mut parity).is_err());
    }

    #[test]
    fn too_little_to_compute_from_is_an_error() {
        let shape = Shape::of(4096).expect("a pack");
        let data = vec![0; 32 * 128];
        let none = Columns { width: 128, data: &data, lost: &[3], given: &[], parity: &[] };
        assert!(reconstruct(&shape, &none).is_err());
        let short = Columns { width: 128, data: &data[1..], lost: &[], given: &[], parity: &[] };
        assert!(reconstruct(&shape, &short).is_err());
    }

    /// The words of a polynomial's values, by the definition that `docs/FORMAT.md` gives and nothing else.
    #[test]
    fn parity_is_what_the_description_says() {
        const BASIS: [u32; 16] = [
            0x0001, 0xACCA, 0x3C0E, 0x163E, 0xC582, 0xED2E, 0x914C, 0x4012, 0x6C98, 0x10D8, 0x6A72, 0xB900, 0xFDB8,
            0xFB34, 0xFF38, 0x991E,
        ];
        let element = |word: u32| (0..16).filter(|bit| word >> bit & 1 == 1).fold(0, |sum, bit| sum ^ BASIS[bit]);
        let product = |a: u32, b: u32| {
            let long = (0..16).filter(|bit| b >> bit & 1 == 1).fold(0, |sum, bit| sum ^ a << bit);
            (16..32)
                .rev()
                .fold(long, |long, bit| if long >> bit & 1 == 1 { long ^ 0x1002D << (bit - 16) } else { long })
        };
        let inverse = |a: u32| {
            let squares = std::iter::successors(Some(a), |&square| Some(product(square, square)));
            squares.skip(1).take(15).fold(1, product)
        };
        let word = |shard: &[u8], i: usize| u32::from(shard[i]) | u32::from(shard[i + 32]) << 8;
        for bytes in [128usize, 2048, 20_000, 33_000] {
            let pack = noise(9, bytes);
            let (shape, parity) = encoded(&pack);
            let mut data = pack.clone();
            data.resize(shape.data_shards * shape.shard_bytes, 0);
            let group = shape.parity_shards.next_power_of_two();
            for j in 0..shape.parity_shards {
                let mut expected = 0;
                for first in (0..shape.data_shards).step_by(group) {
                    // Lagrange: the polynomial through the words of this group, at place j.
                    for a in 0..group.min(shape.data_shards - first) {
                        let x = |n: usize| element((group + first + n) as u32);
                        let (mut above, mut below) = (1, 1);
                        for b in (0..group).filter(|&b| b != a) {
                            above = product(above, element(j as u32) ^ x(b));
                            below = product(below, x(a) ^ x(b));
                        }
                        let value = element(word(&data[(first + a) * shape.shard_bytes..], 3));
                        expected ^= product(value, product(above, inverse(below)));
                    }
                }
                assert_eq!(element(word(&parity[j * shape.shard_bytes..], 3)), expected, "{bytes} bytes, shard {j}");
            }
        }
    }
}
