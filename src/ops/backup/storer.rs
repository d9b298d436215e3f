//! The storer of a worker: hashes chunks, looks them up, codes those that are new and hands them to the lanes.
//!
//! Small chunks share frames, so that the general codec sees more than one of them; chunks of one batch stay together. A chunk that
//! may have a base is offered it, and stands in a frame of its own.

use super::bases::recent::RecentChunk;
use super::bases::{BasePlan, PlannedRun, numbers, text};
use super::packs::FrameBatch;
use super::shared::Shared;
use super::worker::ChunkPlace;
use crate::codec::{Base, Codec, Encoder, Relation};
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;
use crate::repo::pack_table::{FRAME_CHUNKS_MAX, FrameRecord};
use crate::repo::stream::Child;
use crate::repo::transaction::Claim;
use crate::source::scan::Found;
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Chunks below the repository's smallest cut are ends and small files: they share frames of up to this many bytes. So do
/// longer chunks of small files, if the general codec is the one for them.
pub(super) const GROUP_BYTES: usize = 1 << 20;
/// Shorter chunks are not offered a base: what their frame and their base's name take would eat the gain.
const DELTA_BYTES_MIN: usize = 8 << 10;

/// A chunk to be stored.
pub(super) struct Incoming<'b> {
    pub(super) bytes: &'b [u8],
    /// Where it begins in its file, and the run that it belongs to.
    pub(super) offset: u64,
    pub(super) run: Option<u32>,
}

/// A chunk that nobody has stored, and its id.
type NewChunk<'c, 'b> = (&'c Incoming<'b>, ChunkId);

/// The file that chunks come from.
#[derive(Clone)]
pub(super) struct Origin {
    /// Where the chunks can be read again.
    pub(super) file: Arc<Found>,
    /// What they may be coded against.
    pub(super) bases: Option<Arc<BasePlan>>,
}

/// How a chunk was stored.
struct Stored {
    /// Bytes of its frame.
    bytes: usize,
    bases: Vec<ChunkId>,
    depth: u8,
}

impl Stored {
    fn alone(bytes: usize) -> Stored {
        Stored { bytes, bases: Vec::new(), depth: 0 }
    }
}

/// See the module.
pub(super) struct Storer<'a> {
    shared: &'a Shared<'a>,
    encoder: Encoder,
    full: &'a Sender<FrameBatch>,
    empty: &'a Receiver<FrameBatch>,
    batch: FrameBatch,
    group: Vec<u8>,
    group_chunks: Vec<(ChunkId, u32)>,
    /// A group ends when it has reached this length, so that the groups of one batch are of about the same.
    group_ends_at: usize,
    joined: Vec<u8>,
    group_below: usize,
}

impl<'a> Storer<'a> {
    pub(super) fn new(
        shared: &'a Shared<'a>,
        full: &'a Sender<FrameBatch>,
        empty: &'a Receiver<FrameBatch>,
    ) -> Result<Storer<'a>> {
        Ok(Storer {
            shared,
            encoder: Encoder::new(shared.compression)?,
            full,
            empty,
            batch: FrameBatch::default(),
            group: Vec::new(),
            group_chunks: Vec::new(),
            group_ends_at: GROUP_BYTES,
            joined: Vec::new(),
            group_below: usize::try_from(shared.chunker.sizes().min()).unwrap_or(usize::MAX),
        })
    }

    /// Stores chunks that lie in segments; their ids in order.
    pub(super) fn store_places(
        &mut self,
        places: &[ChunkPlace],
        run: Option<u32>,
        origin: Option<&Origin>,
    ) -> Result<Vec<Child>> {
        // At most the first chunk of a segment begins in the segment before: it alone is copied together.
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        let mut ends = Vec::new();
        for place in places {
            if let Some((second, range)) = &place.second {
                joined.extend_from_slice(&place.first.0.bytes()[place.first.1.clone()]);
                joined.extend_from_slice(&second.bytes()[range.clone()]);
            }
            ends.push(joined.len());
        }
        let mut from = 0;
        let mut chunks = Vec::with_capacity(places.len());
        for (place, &end) in places.iter().zip(&ends) {
            let bytes = match place.second {
                Some(_) => &joined[from..end],
                None => &place.first.0.bytes()[place.first.1.clone()],
            };
            chunks.push(Incoming { bytes, offset: place.offset, run });
            from = end;
        }
        let children = self.store(&chunks, origin)?;
        self.joined = joined;
        Ok(children)
    }

    /// Stores chunks and hands over what was new of them; their ids in order.
    pub(super) fn store(&mut self, chunks: &[Incoming<'_>], origin: Option<&Origin>) -> Result<Vec<Child>> {
        let (children, new) = self.claim(chunks)?;
        for (chunk, id) in new {
            match origin {
                Some(origin) if chunk.bytes.len() >= DELTA_BYTES_MIN => self.store_offered(chunk, id, origin)?,
                _ if chunk.bytes.len() < self.group_below => self.add_to_group(chunk.bytes, id)?,
                _ => self.store_alone(chunk.bytes, id).map(drop)?,
            }
        }
        self.flush_group()?;
        self.hand_over()?;
        Ok(children)
    }

    /// As [`Storer::store`], for the chunks of many small files: also longer ones share frames, and these are of even length.
    pub(super) fn store_small(&mut self, chunks: &[Incoming<'_>]) -> Result<Vec<Child>> {
        let (children, new) = self.claim(chunks)?;
        let mut shared = Vec::with_capacity(new.len());
        for (chunk, id) in new {
            let bytes = chunk.bytes.len();
            if bytes < self.group_below || (bytes < GROUP_BYTES && self.encoder.suits_general(chunk.bytes)?) {
                shared.push((chunk.bytes, id));
            } else {
                self.store_alone(chunk.bytes, id)?;
            }
        }
        let bytes: usize = shared.iter().map(|(bytes, _)| bytes.len()).sum();
        self.group_ends_at = bytes.div_ceil(bytes.div_ceil(GROUP_BYTES).max(1));
        for (bytes, id) in shared {
            self.add_to_group(bytes, id)?;
        }
        self.group_ends_at = GROUP_BYTES;
        self.flush_group()?;
        self.hand_over()?;
        Ok(children)
    }

    /// The ids of chunks, and which of them are for this storer to store.
    fn claim<'c, 'b>(&self, chunks: &'c [Incoming<'b>]) -> Result<(Vec<Child>, Vec<NewChunk<'c, 'b>>)> {
        let transaction = self.shared.transaction;
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| transaction.repo().chunk_id(chunk.bytes)).collect();
        let claims = transaction.claim(&ids)?;
        let is_new = |(_, claim): &(_, Claim)| *claim == Claim::New;
        let new: Vec<_> = chunks.iter().zip(ids.iter().copied()).zip(claims).filter(is_new).map(|(n, _)| n).collect();
        let bytes_new = new.iter().map(|(chunk, _)| chunk.bytes.len() as u64).sum();
        self.shared.chunks_new.fetch_add(new.len() as u64, Ordering::Relaxed);
        self.shared.bytes_new.fetch_add(bytes_new, Ordering::Relaxed);
        let children = ids.iter().zip(chunks).map(|(&id, chunk)| Child { id, bytes: chunk.bytes.len() as u64 });
        Ok((children.collect(), new))
    }

    fn store_alone(&mut self, chunk: &[u8], id: ChunkId) -> Result<usize> {
        let before = self.batch.bytes.len();
        let codec = self.encoder.encode(chunk, &mut self.batch.bytes)?;
        let stored = self.batch.bytes.len() - before;
        self.batch.records.push(FrameRecord::single(id, chunk.len(), stored, codec.code())?);
        Ok(stored)
    }

    /// Stores a chunk against the first of its possible bases that is worth it, otherwise alone; it may become a base itself.
    fn store_offered(&mut self, chunk: &Incoming<'_>, id: ChunkId, origin: &Origin) -> Result<()> {
        let mut stored = None;
        if let Some(planned) = origin.bases.as_ref().and_then(|plan| plan.run(chunk.run)) {
            for number in 0..planned.bases.len() {
                stored = self.store_against(chunk, id, planned, number)?;
                if stored.is_some() {
                    break;
                }
            }
        }
        let Stored { bytes, bases, depth } = match stored {
            Some(stored) => stored,
            None if chunk.bytes.len() < self.group_below => {
                self.add_to_group(chunk.bytes, id)?;
                // What its part of the frame takes is not known yet.
                Stored::alone(chunk.bytes.len())
            }
            None => Stored::alone(self.store_alone(chunk.bytes, id)?),
        };
        let recent = RecentChunk {
            bases,
            depth,
            bytes: chunk.bytes.len() as u64,
            stored: bytes as u64,
            file: Arc::clone(&origin.file),
            offset: chunk.offset,
        };
        self.shared.recent.add(id, recent);
        Ok(())
    }

    /// Stores a chunk against one of its bases, or alone if that was found to be better on the way; none if nothing was stored.
    fn store_against(
        &mut self,
        chunk: &Incoming<'_>,
        id: ChunkId,
        planned: &PlannedRun,
        number: usize,
    ) -> Result<Option<Stored>> {
        let Some(base) = planned.bases.get(number) else { return Ok(None) };
        let within = chunk.offset.saturating_sub(planned.range.offset());
        let offer = match base.relation {
            Relation::Text => text::offer(self.shared, id, planned, base, within, chunk.bytes)?,
            _ => numbers::offer(self.shared, id, base, within)?,
        };
        let Some(offer) = offer else { return Ok(None) };
        let base = Base {
            content: &offer.content,
            chunks: u8::try_from(offer.chunks.len()).unwrap_or(u8::MAX),
            relation: offer.relation,
            stored_bytes_max: offer.stored_bytes_max,
        };
        let before = self.batch.bytes.len();
        let raw_bytes = chunk.bytes.len();
        let encoded = self.encoder.encode_against(chunk.bytes, &base, &mut self.batch.bytes)?;
        let bytes = self.batch.bytes.len() - before;
        if encoded.needs_base {
            let record = FrameRecord::delta(id, raw_bytes, bytes, encoded.codec.code(), offer.chunks.clone())?;
            self.batch.records.push(record);
            let is_version = matches!(offer.relation, Relation::Words { .. }) && encoded.codec == Codec::Difference;
            if let Some(&anchor) = offer.chunks.first().filter(|_| is_version) {
                self.shared.recent.count(anchor, bytes as u64);
            }
            return Ok(Some(Stored { bytes, bases: offer.chunks, depth: offer.depth }));
        }
        // Another base may be worth it, and small chunks share frames.
        if number + 1 < planned.bases.len() || raw_bytes < self.group_below {
            self.batch.bytes.truncate(before);
            return Ok(None);
        }
        self.batch.records.push(FrameRecord::single(id, raw_bytes, bytes, encoded.codec.code())?);
        Ok(Some(Stored::alone(bytes)))
    }

    fn add_to_group(&mut self, chunk: &[u8], id: ChunkId) -> Result<()> {
        if self.group.len() + chunk.len() > GROUP_BYTES || self.group_chunks.len() == FRAME_CHUNKS_MAX {
            self.flush_group()?;
        }
        self.group.extend_from_slice(chunk);
        self.group_chunks.push((id, u32::try_from(chunk.len()).unwrap_or(u32::MAX)));
        if self.group.len() >= self.group_ends_at { self.flush_group() } else { Ok(()) }
    }

    fn flush_group(&mut self) -> Result<()> {
        if self.group_chunks.is_empty() {
            return Ok(());
        }
        let before = self.batch.bytes.len();
        let codec = self.encoder.encode(&self.group, &mut self.batch.bytes)?;
        let stored = self.batch.bytes.len() - before;
        let chunks = std::mem::take(&mut self.group_chunks);
        self.batch.records.push(FrameRecord::group(chunks, stored, codec.code())?);
        self.group.clear();
        Ok(())
    }

    fn hand_over(&mut self) -> Result<()> {
        if self.batch.records.is_empty() {
            return Ok(());
        }
        self.shared.bytes_stored.fetch_add(self.batch.bytes.len() as u64, Ordering::Relaxed);
        let next = self.empty.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, next);
        // The lanes end early only with an error of their own, which is the one to report.
        self.full.send(batch).map_err(|_| Error::new(Kind::Interrupted, "the packs can no longer be written"))
    }
}
