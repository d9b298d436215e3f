//! The plan of a restore: which parts of which packs are read, in which order, and what comes out of them. Pure.
//!
//! Frames are sorted by pack and place and gathered into reads; a small gap between two wanted frames is read along,
//! because another request costs more. Every frame is read once, however many places its chunks go to.

use crate::ids::{ChunkId, PackId};
use crate::repo::index::Home;

/// Frames further apart than this are read by themselves.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// A read is not continued beyond this many bytes of frames.
const READ_BYTES_MAX: u64 = 6 << 20;

/// A chunk that a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// The number of the file in its window.
    pub(super) job: u32,
    /// Bytes of the chunk.
    pub(super) bytes: u32,
    /// Where it goes in the file.
    pub(super) offset: u64,
    /// Its id.
    pub(super) id: ChunkId,
}

/// A chunk of a frame and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Where the chunk begins in the content of the frame.
    pub(super) at: u32,
    /// What it is for.
    pub(super) want: Want,
}

/// A frame to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedFrame {
    /// Where it begins in the pack.
    pub(super) offset: u64,
    /// Its bytes as stored.
    pub(super) stored: u32,
    /// Bytes of its content.
    pub(super) raw: u32,
    /// What its content is for, in the order of files and places.
    pub(super) uses: Vec<Use>,
}

/// A range of a pack that is read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedRead {
    /// The pack.
    pub(super) pack: PackId,
    /// The frames in it, in order.
    pub(super) frames: Vec<PlannedFrame>,
}

impl PlannedRead {
    /// Where the range begins.
    pub(super) fn offset(&self) -> u64 {
        self.frames.first().map_or(0, |frame| frame.offset)
    }

    /// The bytes of the range.
    pub(super) fn bytes(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.offset + u64::from(frame.stored) - self.offset())
    }
}

/// Plans the reading of chunks from their homes.
pub(super) fn plan(mut wanted: Vec<(Home, Want)>) -> Vec<PlannedRead> {
    wanted.sort_unstable_by_key(|(home, want)| (home.pack, home.frame_offset, want.job, want.offset));
    let mut reads: Vec<PlannedRead> = Vec::new();
    for (home, want) in wanted {
        let found = Use { at: home.at, want };
        let frame = || PlannedFrame {
            offset: home.frame_offset,
            stored: home.frame_stored,
            raw: home.frame_raw,
            uses: vec![found],
        };
        let Some(read) = reads.last_mut().filter(|read| read.pack == home.pack) else {
            reads.push(PlannedRead { pack: home.pack, frames: vec![frame()] });
            continue;
        };
        if let Some(last) = read.frames.last_mut().filter(|last| last.offset == home.frame_offset) {
            last.uses.push(found);
            continue;
        }
        let end = read.offset() + read.bytes();
        let grown = home.frame_offset.saturating_add(home.frame_stored.into()).saturating_sub(read.offset());
        if home.frame_offset.saturating_sub(end) <= GAP_BYTES_MAX && grown <= READ_BYTES_MAX {
            read.frames.push(frame());
        } else {
            reads.push(PlannedRead { pack: home.pack, frames: vec![frame()] });
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pack: u8, frame: u64, at: u32, job: u32, offset: u64) -> (Home, Want) {
        let home = Home {
            pack: PackId::from_bytes([pack; 32]),
            frame_offset: frame,
            frame_stored: 1000,
            frame_raw: 2000,
            at,
            bytes: 500,
            codec: 0,
            base_count: 0,
        };
        (home, Want { job, bytes: 500, offset, id: ChunkId::of(&[pack]) })
    }

    #[test]
    fn every_want_is_planned_once_and_every_frame_is_read_once() {
        let list = vec![
            wanted(2, 64, 0, 1, 0),
            wanted(1, 1064, 0, 0, 500),
            wanted(1, 64, 0, 0, 0),
            wanted(1, 64, 500, 0, 1000),
            wanted(1, 64, 0, 7, 0),
        ];
        let reads = plan(list);
        assert_eq!(reads.len(), 2);
        assert_eq!((reads[0].offset(), reads[0].bytes(), reads[0].frames.len()), (64, 2000, 2));
        assert_eq!(reads[0].frames[0].uses.len(), 3);
        assert_eq!(reads.iter().flat_map(|r| &r.frames).map(|f| f.uses.len()).sum::<usize>(), 5);
    }

    #[test]
    fn far_frames_and_long_ranges_are_read_apart() {
        let reads = plan(vec![wanted(1, 64, 0, 0, 0), wanted(1, 64 + 1000 + GAP_BYTES_MAX + 1, 0, 0, 500)]);
        assert_eq!(reads.len(), 2);
        let dense = (0..20_000).map(|i| wanted(1, 64 + i * 1000, 0, 0, i * 500)).collect();
        let reads = plan(dense);
        assert!(reads.len() > 1 && reads.iter().all(|r| r.bytes() <= READ_BYTES_MAX));
    }
}
