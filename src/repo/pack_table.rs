//! The table of a pack: which frames it holds in which order, and which chunks lie in each.
//!
//! The same bytes are the footer of the pack itself and a section of an index object, so the index can be rebuilt
//! from either. Frames lie back to back and chunks fill their frame in order, so no offset is stored.
//!
//! One frame's record, integers little-endian (`docs/FORMAT.md`, "Pack table"):
//!
//! ```text
//! 4  bytes of the frame as stored        1  codec         1  number of base chunks
//! 4  bytes of its content                2  number of chunks
//! then for each base  32 id
//! then for each chunk 32 id, 4 bytes of content
//! ```

use crate::codec::FRAME_RAW_BYTES_MAX;
use crate::error::{Error, Result};
use crate::ids::ChunkId;

/// The most base chunks that one frame may name.
pub const BASES_MAX: usize = 8;
/// The most chunks that share one frame.
pub const FRAME_CHUNKS_MAX: usize = u16::MAX as usize;
const RECORD_BYTES: usize = 12;
const CHUNK_BYTES: usize = ChunkId::BYTES + 4;

/// One frame of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRecord {
    /// Where the frame begins in the pack. Derived when a table is read, not stored.
    pub offset: u64,
    /// Bytes of the frame as stored.
    pub stored_bytes: u32,
    /// Bytes of its content.
    pub raw_bytes: u32,
    /// The code of its codec, for statistics; the frame itself says it again.
    pub codec: u8,
    /// The chunks that must be known to decode it.
    pub bases: Vec<ChunkId>,
    /// The chunks in it, in order, with their lengths.
    pub chunks: Vec<(ChunkId, u32)>,
}

impl FrameRecord {
    /// The record of a frame that holds one chunk and needs no base.
    pub fn single(id: ChunkId, raw_bytes: usize, stored_bytes: usize, codec: u8) -> Result<FrameRecord> {
        FrameRecord::group(vec![(id, narrow(raw_bytes)?)], stored_bytes, codec)
    }

    /// The record of a frame that holds one chunk and can be decoded only with these, in order.
    pub fn delta(
        id: ChunkId,
        raw_bytes: usize,
        stored_bytes: usize,
        codec: u8,
        bases: Vec<ChunkId>,
    ) -> Result<FrameRecord> {
        Ok(FrameRecord { bases, ..FrameRecord::single(id, raw_bytes, stored_bytes, codec)? })
    }

    /// The record of a frame that holds these chunks in order and needs no base.
    pub fn group(chunks: Vec<(ChunkId, u32)>, stored_bytes: usize, codec: u8) -> Result<FrameRecord> {
        let raw_bytes = chunks.iter().try_fold(0u32, |sum, &(_, bytes)| sum.checked_add(bytes));
        let raw_bytes = raw_bytes.ok_or_else(|| Error::damaged("a frame of more than 4 GiB"))?;
        Ok(FrameRecord { offset: 0, stored_bytes: narrow(stored_bytes)?, raw_bytes, codec, bases: Vec::new(), chunks })
    }
}

fn narrow(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::damaged(format!("a frame of {bytes} bytes")))
}

/// Appends the record of one frame to a table.
pub fn append(table: &mut Vec<u8>, frame: &FrameRecord) -> Result<()> {
    let covered: u64 = frame.chunks.iter().map(|&(_, bytes)| u64::from(bytes)).sum();
    let count = u16::try_from(frame.chunks.len()).ok().filter(|&n| n > 0);
    let is_possible = covered == u64::from(frame.raw_bytes)
        && has_possible_bases(frame.bases.len(), frame.chunks.len())
        && !needs_itself(frame);
    let (Some(count), true) = (count, is_possible) else {
        return Err(Error::damaged("a frame's record does not add up"));
    };
    table.extend_from_slice(&frame.stored_bytes.to_le_bytes());
    table.extend_from_slice(&frame.raw_bytes.to_le_bytes());
    table.push(frame.codec);
    table.push(u8::try_from(frame.bases.len()).unwrap_or(u8::MAX));
    table.extend_from_slice(&count.to_le_bytes());
    for base in &frame.bases {
        table.extend_from_slice(base.as_bytes());
    }
    for (id, bytes) in &frame.chunks {
        table.extend_from_slice(id.as_bytes());
        table.extend_from_slice(&bytes.to_le_bytes());
    }
    Ok(())
}

/// A frame that needs others holds one chunk, so that the chunk and not only its frame has these bases.
fn has_possible_bases(bases: usize, chunks: usize) -> bool {
    bases == 0 || (bases <= BASES_MAX && chunks == 1)
}

fn needs_itself(frame: &FrameRecord) -> bool {
    frame.chunks.iter().any(|(id, _)| frame.bases.contains(id))
}

/// Reads a table whose first frame begins at `first_offset`; every record is checked before it is believed.
/// Returns the frames and the offset behind the last one.
pub fn parse(table: &[u8], first_offset: u64) -> Result<(Vec<FrameRecord>, u64)> {
    let mut rest = table;
    let mut frames = Vec::new();
    let mut offset = first_offset;
    while !rest.is_empty() {
        let frame = parse_record(&mut rest, offset)?;
        offset = offset
            .checked_add(u64::from(frame.stored_bytes))
            .ok_or_else(|| Error::damaged("a pack's table runs past the largest offset"))?;
        frames.push(frame);
    }
    Ok((frames, offset))
}

fn parse_record(rest: &mut &[u8], offset: u64) -> Result<FrameRecord> {
    let head = take(rest, RECORD_BYTES)?;
    let stored_bytes = le_u32(&head[0..4]);
    let raw_bytes = le_u32(&head[4..8]);
    let (codec, base_count) = (head[8], usize::from(head[9]));
    let chunk_count = usize::from(u16::from_le_bytes([head[10], head[11]]));
    if u64::from(raw_bytes) > FRAME_RAW_BYTES_MAX || chunk_count == 0 || !has_possible_bases(base_count, chunk_count) {
        return Err(Error::damaged("a record in a pack's table is out of bounds"));
    }
    let bases = take(rest, base_count * ChunkId::BYTES)?
        .chunks_exact(ChunkId::BYTES)
        .map(ChunkId::from_slice)
        .collect::<Result<Vec<_>>>()?;
    let mut covered = 0u64;
    // Memory only for chunks that are there.
    let entries = take(rest, chunk_count * CHUNK_BYTES)?;
    let mut chunks = Vec::with_capacity(chunk_count);
    for entry in entries.chunks_exact(CHUNK_BYTES) {
        let (id, bytes) = entry.split_at(ChunkId::BYTES);
        covered += u64::from(le_u32(bytes));
        chunks.push((ChunkId::from_slice(id)?, le_u32(bytes)));
    }
    if covered != u64::from(raw_bytes) {
        return Err(Error::damaged("the chunks in a pack's table do not fill their frame"));
    }
    let frame = FrameRecord { offset, stored_bytes, raw_bytes, codec, bases, chunks };
    if needs_itself(&frame) {
        return Err(Error::damaged("a chunk in a pack's table is its own base"));
    }
    Ok(frame)
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8]> {
    let (taken, left) =
        rest.split_at_checked(bytes).ok_or_else(|| Error::damaged("a pack's table ends in the middle of a record"))?;
    *rest = left;
    Ok(taken)
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_round_trips_with_offsets_derived() {
        let frames = [
            FrameRecord {
                offset: 64,
                stored_bytes: 10,
                raw_bytes: 30,
                codec: 1,
                bases: vec![],
                chunks: vec![(ChunkId::of(b"a"), 10), (ChunkId::of(b"b"), 20)],
            },
            FrameRecord {
                offset: 74,
                stored_bytes: 5,
                raw_bytes: 7,
                codec: 2,
                bases: vec![ChunkId::of(b"c")],
                chunks: vec![(ChunkId::of(b"d"), 7)],
            },
        ];
        let mut table = Vec::new();
        for frame in &frames {
            append(&mut table, frame).expect("adds up");
        }
        assert_eq!(parse(&table, 64).expect("own bytes"), (frames.to_vec(), 79));
        for len in (1..table.len()).filter(|&len| len != 12 + 72) {
            assert!(parse(&table[..len], 64).is_err(), "{len}");
        }
    }

    #[test]
    fn a_record_that_does_not_add_up_is_not_written() {
        let frame = FrameRecord {
            offset: 0,
            stored_bytes: 1,
            raw_bytes: 2,
            codec: 0,
            bases: vec![],
            chunks: vec![(ChunkId::of(b"a"), 1)],
        };
        assert!(append(&mut Vec::new(), &frame).is_err());
    }

    #[test]
    fn a_frame_with_bases_holds_one_chunk_and_at_most_eight_bases() {
        let id = |n: u8| ChunkId::of(&[n]);
        let delta = |bases: u8| FrameRecord::delta(id(0), 7, 5, 2, (1..=bases).map(id).collect()).expect("a record");
        let mut table = Vec::new();
        append(&mut table, &delta(8)).expect("eight bases");
        assert_eq!(parse(&table, 64).expect("own bytes").0[0].bases, delta(8).bases);
        assert!(append(&mut Vec::new(), &delta(9)).is_err());
        let two = FrameRecord { chunks: vec![(id(0), 3), (id(9), 4)], ..delta(1) };
        assert!(append(&mut Vec::new(), &two).is_err());
        let on_itself = FrameRecord { bases: vec![id(1), id(0)], ..delta(0) };
        assert!(append(&mut Vec::new(), &on_itself).is_err());
        // The same in a table that somebody else wrote: one base too many, a second chunk, its own base.
        let mut group = Vec::new();
        append(&mut group, &FrameRecord { bases: vec![], ..two }).expect("a group");
        let mut forged = group.clone();
        forged[9] = 1;
        forged.splice(12..12, [7; 32]);
        assert!(parse(&forged, 64).is_err());
        let mut forged = Vec::new();
        append(&mut forged, &delta(1)).expect("one base");
        forged.copy_within(44..76, 12);
        assert!(parse(&forged, 64).is_err());
    }
}
