//! The plan of a restore: which parts of which packs are read, in which order, and what comes out of them. Pure.
//!
//! Frames are sorted by pack and place and gathered into reads; a small gap between two wanted frames is read along,
//! because another request costs more. A frame that stands on others is read in one unit with them: units are cut along
//! the frames that stand alone, and hold everything that stands on those. So every frame is read once, however many
//! places its chunks go to and however many frames need it, but for a base that two units need.
//!
//! Within a unit no content is kept longer than something ahead needs it, and reads are ordered so that what is kept at
//! any time stays near the bound that the caller sets, however large the unit.

mod chains;
mod graph;
mod units;

#[cfg(test)]
mod tests;

pub(super) use chains::Chains;

use crate::ids::{ChunkId, PackId};
use crate::repo::index::Home;
use graph::Graph;

/// Frames further apart than this are read by themselves.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// A read is not continued beyond this many bytes of frames.
const READ_BYTES_MAX: u64 = 6 << 20;
/// How many chunks that cannot be planned make a unit.
const ELSEWHERE_CHUNKS: usize = 64;

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

/// A base chunk, in the content that a frame before it in the unit has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlannedBase {
    /// The place that the content was kept in.
    pub(super) slot: u32,
    /// Where the chunk begins in it.
    pub(super) at: u32,
    /// Bytes of the chunk.
    pub(super) bytes: u32,
}

/// That the content of a frame is kept for frames behind it in the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keep {
    /// A place of its own in the unit.
    pub(super) slot: u32,
    /// How many bases are taken from it until it can be let go.
    pub(super) times: u32,
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
    /// What its content is for, in the order of files and places; nothing if it is only a base.
    pub(super) uses: Vec<Use>,
    /// What it is decoded against, in order.
    pub(super) bases: Vec<PlannedBase>,
    /// Whether it is a base itself.
    pub(super) keep: Option<Keep>,
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

    /// True if frame after frame the content would go to files in far more pieces than file after file: chunks that
    /// several files share, or parts of files that were stored in turns.
    pub(super) fn alternates(&self) -> bool {
        let mut wants: Vec<&Want> = self.frames.iter().flat_map(|f| &f.uses).map(|found| &found.want).collect();
        let in_turn = pieces(&wants);
        if in_turn == 1 {
            return false;
        }
        wants.sort_unstable_by_key(|want| (want.job, want.offset));
        pieces(&wants) <= in_turn / 2
    }
}

/// How many runs of files these chunks are, one behind the other.
fn pieces(wants: &[&Want]) -> usize {
    let goes_on = |pair: &&[&Want]| {
        let end = pair[0].offset.saturating_add(pair[0].bytes.into());
        (pair[0].job, end) == (pair[1].job, pair[1].offset)
    };
    wants.len() - wants.windows(2).filter(goes_on).count()
}

/// Work for one thread, in order; it shares nothing with other units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// What is read; every base comes before what stands on it.
    pub(super) reads: Vec<PlannedRead>,
    /// Chunks that cannot be had by the plan, because a base of theirs has no home or the tables lead in a circle.
    pub(super) elsewhere: Vec<Want>,
}

/// Plans the reading of chunks from their homes. `kept_bytes_max` is about how much content one unit may keep for
/// frames that stand on it.
pub(super) fn plan(mut wanted: Vec<(Home, Want)>, chains: &Chains, kept_bytes_max: u64) -> Vec<Unit> {
    wanted.sort_unstable_by_key(|(home, want)| (home.pack, home.frame_offset, want.job, want.offset));
    let graph = Graph::new(&wanted, chains);
    let mut units = units::cut(&graph, kept_bytes_max);
    let mut elsewhere = graph.elsewhere();
    elsewhere.sort_unstable_by_key(|want| (want.job, want.offset));
    let alone = |wants: &[Want]| Unit { reads: Vec::new(), elsewhere: wants.to_vec() };
    units.extend(elsewhere.chunks(ELSEWHERE_CHUNKS).map(alone));
    units
}
