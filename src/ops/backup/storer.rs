//! The storer of a worker: hashes chunks, looks them up, codes those that are new and hands them to the lanes.
//!
//! Small chunks share frames, so that the general codec sees more than one of them; chunks of one batch stay together.

use super::packs::FrameBatch;
use super::shared::Shared;
use super::worker::ChunkPlace;
use crate::codec::Encoder;
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;
use crate::repo::pack_table::{FRAME_CHUNKS_MAX, FrameRecord};
use crate::repo::stream::Child;
use crate::repo::transaction::Claim;
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::Ordering;

/// Chunks below the repository's smallest cut are ends and small files: they share frames of up to this many bytes.
const GROUP_BYTES: usize = 1 << 20;

/// See the module.
pub(super) struct Storer<'a> {
    shared: &'a Shared<'a>,
    encoder: Encoder,
    full: &'a Sender<FrameBatch>,
    empty: &'a Receiver<FrameBatch>,
    batch: FrameBatch,
    group: Vec<u8>,
    group_chunks: Vec<(ChunkId, u32)>,
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
            joined: Vec::new(),
            group_below: usize::try_from(shared.chunker.sizes().min()).unwrap_or(usize::MAX),
        })
    }

    /// Stores chunks that lie in segments; their ids in order.
    pub(super) fn store_places(&mut self, places: &[ChunkPlace]) -> Result<Vec<Child>> {
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
            chunks.push(match place.second {
                Some(_) => &joined[from..end],
                None => &place.first.0.bytes()[place.first.1.clone()],
            });
            from = end;
        }
        let children = self.store(&chunks)?;
        self.joined = joined;
        Ok(children)
    }

    /// Stores chunks and hands over what was new of them; their ids in order.
    pub(super) fn store(&mut self, chunks: &[&[u8]]) -> Result<Vec<Child>> {
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        let claims = self.shared.transaction.claim(&ids)?;
        for ((chunk, id), claim) in chunks.iter().zip(&ids).zip(claims) {
            if claim == Claim::Known {
                continue;
            }
            self.shared.chunks_new.fetch_add(1, Ordering::Relaxed);
            self.shared.bytes_new.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if chunk.len() < self.group_below {
                self.add_to_group(chunk, *id)?;
            } else {
                let before = self.batch.bytes.len();
                let codec = self.encoder.encode(chunk, &mut self.batch.bytes)?;
                let stored = self.batch.bytes.len() - before;
                self.batch.records.push(FrameRecord::single(*id, chunk.len(), stored, codec.code())?);
            }
        }
        self.flush_group()?;
        self.hand_over()?;
        Ok(ids.iter().zip(chunks).map(|(&id, chunk)| Child { id, bytes: chunk.len() as u64 }).collect())
    }

    fn add_to_group(&mut self, chunk: &[u8], id: ChunkId) -> Result<()> {
        if self.group.len() + chunk.len() > GROUP_BYTES || self.group_chunks.len() == FRAME_CHUNKS_MAX {
            self.flush_group()?;
        }
        self.group.extend_from_slice(chunk);
        self.group_chunks.push((id, u32::try_from(chunk.len()).unwrap_or(u32::MAX)));
        Ok(())
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
