//! Parity computed while a pack is being written, so that nobody has to keep the pack or read it again.
//!
//! The code adds up one transform for every group of data shards, as many in each as there are parity shards, counted up
//! to a power of two; a last transform of the sum gives the parity shards. So groups can be taken in as they are written,
//! while they are still in the processor's cache, and all that is kept is the sum. The bytes are those of
//! [`ParityEncoder`](super::parity::ParityEncoder).
//!
//! Deliberately not here: packs of another length than was foreseen. How shards are cut follows from the length, which is
//! known only at the end; [`ParityStream::finish`] then has nothing to give.

use super::parity::{CHECKSUM_BYTES, COLUMN_BYTES, Shape, checksum};
use crate::error::Result;
use reed_solomon_simd::engine::{DefaultEngine, Engine, ShardsRefMut};

/// What the code works on at once.
const BLOCK_BYTES: usize = 64;

type Block = [u8; BLOCK_BYTES];

/// Takes a pack in, group by group. One that has ended can begin again, without new memory.
pub struct ParityStream {
    engine: DefaultEngine,
    shard_bytes: usize,
    /// Data shards of a group.
    group_shards: usize,
    /// One column of a group.
    column: Vec<Block>,
    /// The sum of the transforms: column after column, in each the groups' shards.
    sums: Vec<Block>,
    /// Checksums of the data shards so far.
    checksums: Vec<u8>,
    shards: usize,
}

impl ParityStream {
    /// For packs that end soon after `pack_bytes`; see [`Shape::of`] for the errors.
    pub fn for_packs_of(pack_bytes: u64) -> Result<ParityStream> {
        let shape = Shape::of(pack_bytes.saturating_add(1))?;
        let group_shards = shape.parity_shards.next_power_of_two();
        let blocks = group_shards * shape.shard_bytes / BLOCK_BYTES;
        Ok(ParityStream {
            engine: DefaultEngine::new(),
            shard_bytes: shape.shard_bytes,
            group_shards,
            column: vec![[0; BLOCK_BYTES]; group_shards * width(shape.shard_bytes) / BLOCK_BYTES],
            sums: vec![[0; BLOCK_BYTES]; blocks],
            checksums: Vec::new(),
            shards: 0,
        })
    }

    /// Bytes of a group.
    pub fn group_bytes(&self) -> usize {
        self.group_shards * self.shard_bytes
    }

    /// Takes the next bytes of the pack: a multiple of [`ParityStream::group_bytes`], but for the last time.
    pub fn absorb(&mut self, bytes: &[u8]) {
        for group in bytes.chunks(self.group_bytes()) {
            let count = group.len().div_ceil(self.shard_bytes);
            let width = width(self.shard_bytes);
            for (at, sum) in self.sums.chunks_exact_mut(self.column.len()).enumerate() {
                let shards = self.column.as_flattened_mut().chunks_exact_mut(width).enumerate();
                for (number, into) in shards {
                    let from = group.len().min(number * self.shard_bytes + at * width);
                    let end = group.len().min(from + width).min((number + 1) * self.shard_bytes);
                    let here = group.get(from..end).unwrap_or_default();
                    into[..here.len()].copy_from_slice(here);
                    into[here.len()..].fill(0);
                }
                let mut column = ShardsRefMut::new(self.group_shards, width / BLOCK_BYTES, &mut self.column);
                // Where a group stands decides its transform: the first comes after as many parity shards.
                let place = self.shards + self.group_shards;
                self.engine.ifft(&mut column, 0, self.group_shards, count, place);
                add(sum, &self.column);
            }
            group.chunks(self.shard_bytes).for_each(|shard| self.checksums.extend_from_slice(&checksum(shard)));
            self.shards += count;
        }
    }

    /// The parity shards of the pack that was taken in, one behind the other, in place of what `parity` held, and the
    /// checksums of its data shards; none if a pack of this length is divided in another way than was foreseen.
    pub fn finish(&mut self, pack_bytes: u64, parity: &mut Vec<u8>) -> Result<Option<&[u8]>> {
        let shape = Shape::of(pack_bytes)?;
        let is_foreseen = shape.shard_bytes == self.shard_bytes
            && shape.parity_shards.next_power_of_two() == self.group_shards
            // Fewer data shards than that are coded in another way.
            && shape.data_shards > self.group_shards
            && self.checksums.len() == shape.data_shards * CHECKSUM_BYTES;
        if !is_foreseen {
            return Ok(None);
        }
        let width = width(self.shard_bytes);
        parity.clear();
        parity.resize(shape.parity_bytes(), 0);
        for (at, sum) in self.sums.chunks_exact_mut(self.column.len()).enumerate() {
            let mut column = ShardsRefMut::new(self.group_shards, width / BLOCK_BYTES, sum);
            self.engine.fft(&mut column, 0, self.group_shards, shape.parity_shards, 0);
            let computed = sum.as_flattened().chunks_exact(width);
            for (from, into) in computed.zip(parity.chunks_exact_mut(self.shard_bytes)) {
                into[at * width..(at + 1) * width].copy_from_slice(from);
            }
        }
        Ok(Some(&self.checksums))
    }

    /// Forgets what was taken in.
    pub fn clear(&mut self) {
        self.sums.as_flattened_mut().fill(0);
        self.checksums.clear();
        self.shards = 0;
    }
}

/// Bytes of a shard that are worked on at once: so many of all shards of a group fit into the cache of a core.
fn width(shard_bytes: usize) -> usize {
    COLUMN_BYTES.min(shard_bytes)
}

/// Addition in the field of the code.
fn add(sum: &mut [Block], more: &[Block]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum ^= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::parity::ParityEncoder;
    use crate::codec::synthetic::random as noise;

    #[test]
    fn a_stream_gives_the_very_bytes_that_the_whole_pack_gives() {
        for (foreseen, lengths) in [
            (1u64 << 20, vec![(1 << 20) + 1, (1 << 20) + 70_000, (2 << 20) - 1, 1_500_000]),
            (70_000, vec![70_001, 100_000, 131_071]),
        ] {
            let mut stream = ParityStream::for_packs_of(foreseen).expect("a pack");
            for pack_bytes in lengths {
                let pack = noise(pack_bytes as u64, pack_bytes);
                // In pieces of one group, of several, and all at once.
                for groups in [1, 3, 1000] {
                    stream.clear();
                    pack.chunks(groups * stream.group_bytes()).for_each(|piece| stream.absorb(piece));
                    let shape = Shape::of(pack.len() as u64).expect("a pack");
                    let (mut streamed, mut whole) = (Vec::new(), Vec::new());
                    let checksums =
                        stream.finish(pack.len() as u64, &mut streamed).expect("a pack").map(<[u8]>::to_vec);
                    ParityEncoder::default().encode(&pack, &shape, &mut whole).expect("encodes");
                    assert!(streamed == whole, "{pack_bytes} bytes, {groups} groups at once");
                    assert_eq!(checksums, Some(pack.chunks(shape.shard_bytes).flat_map(checksum).collect()));
                }
            }
        }
    }

    #[test]
    fn a_pack_of_another_length_than_was_foreseen_gets_nothing() {
        let mut stream = ParityStream::for_packs_of(1 << 20).expect("a pack");
        for pack_bytes in [1usize, 1000, 500_000, (1 << 20) - 1, (2 << 20) + 1, 5 << 20] {
            stream.clear();
            stream.absorb(&noise(1, pack_bytes));
            assert!(stream.finish(pack_bytes as u64, &mut Vec::new()).expect("a pack").is_none(), "{pack_bytes}");
        }
        // What was taken in is not what is asked for.
        stream.clear();
        stream.absorb(&noise(1, 1_500_000));
        assert!(stream.finish(1_600_000, &mut Vec::new()).expect("a pack").is_none());
    }
}
