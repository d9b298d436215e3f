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
#[cfg(target_arch = "x86_64")]
use super::parity_gfni::GfniTransform;
use crate::aligned::AlignedBuffer;
use crate::error::Result;
use reed_solomon_simd::engine::{DefaultEngine, Engine, ShardsRefMut};

/// What the code works on at once.
const BLOCK_BYTES: usize = 64;

pub(super) type Block = [u8; BLOCK_BYTES];

/// Takes a pack in, group by group. One that has ended can begin again, without new memory.
pub struct ParityStream {
    engine: DefaultEngine,
    /// Where the processor has what it takes.
    #[cfg(target_arch = "x86_64")]
    fast: Option<GfniTransform>,
    shard_bytes: usize,
    /// Data shards of a group.
    group_shards: usize,
    /// One column of a group.
    column: AlignedBuffer,
    /// The sum of the transforms: column after column, in each the groups' shards.
    sums: AlignedBuffer,
    /// Checksums of the data shards so far.
    checksums: Vec<u8>,
    shards: usize,
}

impl ParityStream {
    /// For packs that end soon after `pack_bytes`; see [`Shape::of`] for the errors.
    pub fn for_packs_of(pack_bytes: u64) -> Result<ParityStream> {
        Shape::of(pack_bytes.saturating_add(1)).map(|shape| ParityStream::new(&shape))
    }

    /// For packs that are divided as one of this shape is.
    pub fn new(shape: &Shape) -> ParityStream {
        let group_shards = shape.parity_shards.next_power_of_two();
        ParityStream {
            engine: DefaultEngine::new(),
            #[cfg(target_arch = "x86_64")]
            fast: GfniTransform::detect(),
            shard_bytes: shape.shard_bytes,
            group_shards,
            column: AlignedBuffer::new(group_shards * width(shape.shard_bytes)),
            sums: AlignedBuffer::new(group_shards * shape.shard_bytes),
            checksums: Vec::new(),
            shards: 0,
        }
    }

    /// Bytes of a group.
    pub fn group_bytes(&self) -> usize {
        self.group_shards * self.shard_bytes
    }

    /// Bytes of a shard.
    pub fn shard_bytes(&self) -> usize {
        self.shard_bytes
    }

    /// Computes checksums of the next bytes of the pack: a multiple of [`ParityStream::shard_bytes`], but for the last time.
    /// All bytes have to come here as well as to [`ParityStream::absorb`], and can come here earlier, while what has just
    /// been written is in the cache of the processor.
    pub fn check(&mut self, bytes: &[u8]) {
        bytes.chunks(self.shard_bytes).for_each(|shard| self.checksums.extend_from_slice(&checksum(shard)));
    }

    /// Takes the next bytes of the pack: a multiple of [`ParityStream::group_bytes`], but for the last time.
    pub fn absorb(&mut self, bytes: &[u8]) {
        for group in bytes.chunks(self.group_bytes()) {
            self.absorb_group(group);
            self.shards += group.len().div_ceil(self.shard_bytes);
        }
    }

    /// Adds the transform of a group, all but the last one of full length.
    fn absorb_group(&mut self, bytes: &[u8]) {
        // Where a group stands decides its transform: the first comes after as many parity shards.
        let place = self.shards + self.group_shards;
        #[cfg(target_arch = "x86_64")]
        if let Some(fast) = &mut self.fast {
            fast.prepare(self.group_shards, place, &self.engine);
        }
        let width = width(self.shard_bytes);
        let column = self.column.as_mut_slice();
        for (at, sum) in self.sums.as_mut_slice().chunks_exact_mut(column.len()).enumerate() {
            let group = Group { bytes, shard_bytes: self.shard_bytes, at: at * width, width };
            let (column, sum) = (blocks(column), blocks(sum));
            #[cfg(target_arch = "x86_64")]
            if let Some(fast) = &self.fast {
                fast.add_inverse(&group, column, sum);
                continue;
            }
            group.gather(column.as_flattened_mut());
            let mut shards = ShardsRefMut::new(self.group_shards, width / BLOCK_BYTES, column);
            self.engine.ifft(&mut shards, 0, self.group_shards, group.count(), place);
            add(sum, column);
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
            && self.shards == shape.data_shards
            && self.checksums.len() == shape.data_shards * CHECKSUM_BYTES;
        if !is_foreseen {
            return Ok(None);
        }
        let width = width(self.shard_bytes);
        parity.clear();
        parity.resize(shape.parity_bytes(), 0);
        for (at, sum) in self.sums.as_mut_slice().chunks_exact_mut(self.column.len()).enumerate() {
            let mut column = ShardsRefMut::new(self.group_shards, width / BLOCK_BYTES, blocks(sum));
            self.engine.fft(&mut column, 0, self.group_shards, shape.parity_shards, 0);
            let computed = sum.chunks_exact(width);
            for (from, into) in computed.zip(parity.chunks_exact_mut(self.shard_bytes)) {
                into[at * width..(at + 1) * width].copy_from_slice(from);
            }
        }
        Ok(Some(&self.checksums))
    }

    /// Forgets what was taken in.
    pub fn clear(&mut self) {
        self.sums.as_mut_slice().fill(0);
        self.checksums.clear();
        self.shards = 0;
    }
}

/// One column of a group of shards, where they are.
pub(super) struct Group<'b> {
    /// The group; a last one may end early.
    bytes: &'b [u8],
    shard_bytes: usize,
    /// Where in each shard the column begins, and how wide it is.
    at: usize,
    width: usize,
}

impl Group<'_> {
    /// Shards that begin in it.
    pub(super) fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.shard_bytes)
    }

    /// True if its last shard is of full length.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.len().is_multiple_of(self.shard_bytes)
    }

    /// What there is of the column in one shard.
    pub(super) fn part(&self, shard: usize) -> &[u8] {
        let end = self.bytes.len().min((shard + 1) * self.shard_bytes);
        let from = end.min(shard * self.shard_bytes + self.at);
        &self.bytes[from..end.min(from + self.width)]
    }

    /// Copies the column into `column`, shard behind shard. Zeros are meant where there is nothing.
    pub(super) fn gather(&self, column: &mut [u8]) {
        for (shard, into) in column.chunks_exact_mut(self.width).enumerate() {
            let here = self.part(shard);
            into[..here.len()].copy_from_slice(here);
            into[here.len()..].fill(0);
        }
    }
}

/// Bytes of a shard that are worked on at once: so many of all shards of a group fit into the cache of a core.
fn width(shard_bytes: usize) -> usize {
    COLUMN_BYTES.min(shard_bytes)
}

/// Lengths are multiples of a block, so nothing is left over.
fn blocks(bytes: &mut [u8]) -> &mut [Block] {
    bytes.as_chunks_mut().0
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
impl ParityStream {
    /// The same as on a processor that has nothing special.
    fn without_special_instructions(mut self) -> ParityStream {
        #[cfg(target_arch = "x86_64")]
        {
            self.fast = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::parity::ParityEncoder;
    use crate::codec::synthetic::random as noise;

    /// What `stream` computes of `pack`, a piece of `groups` groups at once.
    fn streamed(stream: &mut ParityStream, pack: &[u8], groups: usize) -> (Option<Vec<u8>>, Vec<u8>) {
        stream.clear();
        pack.chunks(groups * stream.shard_bytes()).for_each(|piece| stream.check(piece));
        pack.chunks(groups * stream.group_bytes()).for_each(|piece| stream.absorb(piece));
        let mut parity = Vec::new();
        let checksums = stream.finish(pack.len() as u64, &mut parity).expect("a pack").map(<[u8]>::to_vec);
        (checksums, parity)
    }

    #[test]
    fn a_stream_gives_the_very_bytes_that_the_whole_pack_gives() {
        // Groups of 2 to 256 shards: an even and an odd number of layers, and columns of one block to sixteen.
        for (foreseen, lengths) in [
            (1000u64, vec![1001, 1500, 2047]),
            (9000, vec![9001, 12_345, 16_383]),
            (70_000, vec![70_001, 100_000, 131_071]),
            (1 << 20, vec![(1 << 20) + 1, (1 << 20) + 70_000, (2 << 20) - 1, 1_500_000]),
            (4 << 20, vec![(4 << 20) + 1, 5_000_000]),
            (64 << 20, vec![(64 << 20) + 12_345]),
        ] {
            let stream = || ParityStream::for_packs_of(foreseen).expect("a pack");
            for mut stream in [stream(), stream().without_special_instructions()] {
                for &pack_bytes in &lengths {
                    let pack = noise(pack_bytes as u64, pack_bytes);
                    let shape = Shape::of(pack.len() as u64).expect("a pack");
                    let mut whole = Vec::new();
                    ParityEncoder::default().encode(&pack, &shape, &mut whole).expect("encodes");
                    // In pieces of one group, of several, and all at once.
                    for groups in [1, 3, 1000] {
                        let (checksums, parity) = streamed(&mut stream, &pack, groups);
                        assert!(parity == whole, "{pack_bytes} bytes, {groups} groups at once");
                        assert_eq!(checksums, Some(pack.chunks(shape.shard_bytes).flat_map(checksum).collect()));
                    }
                }
            }
        }
    }

    #[test]
    fn a_pack_of_another_length_than_was_foreseen_gets_nothing() {
        let mut stream = ParityStream::for_packs_of(1 << 20).expect("a pack");
        for pack_bytes in [1usize, 1000, 500_000, (1 << 20) - 1, (2 << 20) + 1, 5 << 20] {
            let (checksums, _) = streamed(&mut stream, &noise(1, pack_bytes), 1);
            assert!(checksums.is_none(), "{pack_bytes}");
        }
        // What was taken in is not what is asked for: neither of another pack, nor without a part of it.
        let pack = noise(1, 1_500_000);
        let foreseen = |stream: &mut ParityStream, pack_bytes| {
            stream.finish(pack_bytes, &mut Vec::new()).expect("a pack").is_some()
        };
        streamed(&mut stream, &pack, 1);
        assert!(foreseen(&mut stream, 1_500_000));
        assert!(!foreseen(&mut stream, 1_600_000));
        stream.clear();
        stream.absorb(&pack);
        assert!(!foreseen(&mut stream, 1_500_000));
        stream.check(&pack[..1_400_000]);
        assert!(!foreseen(&mut stream, 1_500_000));
        stream.clear();
        stream.check(&pack);
        stream.absorb(&pack[..stream.group_bytes()]);
        assert!(!foreseen(&mut stream, 1_500_000));
    }
}
