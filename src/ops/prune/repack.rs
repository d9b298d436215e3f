//! Copying what is needed out of sparse packs, as a transaction of its own.
//!
//! Every chunk is decoded and compared with its id on the way. A frame of which everything is needed is copied as it is,
//! with its bases if it has any: they stay or are copied, too. What is needed of another is coded anew.

use super::Run;
use super::plan::Plan;
use crate::bytes::ByteRange;
use crate::codec::{Compression, Encoder};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::{ChunkId, PackId};
use crate::ops::signs;
use crate::repo::frame_cache::FrameCache;
use crate::repo::index::survey::Survey;
use crate::repo::pack::{PackKind, PackWriter};
use crate::repo::pack_table::FrameRecord;
use crate::repo::transaction::Transaction;
use std::collections::HashSet;

/// What came of copying.
pub(super) struct Repacked {
    /// The packs that were written: durable, and listed unless it failed.
    pub(super) written: Vec<PackId>,
    /// Why not everything was copied: then what was written is of no use.
    pub(super) failure: Option<Error>,
}

/// Copies what is needed of sparse packs. An error means that the transaction could not even begin.
pub(super) fn repack(run: &Run<'_>, survey: &Survey<'_>, plan: &Plan) -> Result<Repacked> {
    let (repo, observer) = (run.repo, run.observer);
    let bytes_total = plan.sparse.iter().map(|p| p.bytes).sum();
    observer.on_event(&Event::Phase { name: "copying", bytes_total: Some(bytes_total), files_total: None });
    let transaction = Transaction::begin(repo, &run.options.writer)?;
    let id = transaction.id();
    let done = signs::giving(observer, &|| transaction.sign_of_life(run.options.now), || {
        let mut copier = Copier::new(&transaction, survey)?;
        for (position, pack) in plan.sparse.iter().enumerate() {
            if observer.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while copying"));
            }
            copier.copy(pack.id, pack.bytes, plan.staying.len() + position)?;
            observer.on_event(&Event::Progress { bytes: pack.bytes, files: 0 });
        }
        copier.finish()
    });
    let failure = match done {
        Ok(written) => match transaction.commit_repacked() {
            Ok(()) => return Ok(Repacked { written, failure: None }),
            Err(error) => error,
        },
        Err(error) => {
            let error = transaction.reason_for(error);
            // If even this fails, the next prune sees that this process is gone.
            let _ = transaction.abandon();
            error
        }
    };
    let known = repo.index().packs()?;
    let written = known.iter().filter(|pack| pack.transaction == id).map(|pack| pack.id).collect();
    Ok(Repacked { written, failure: Some(failure) })
}

struct Copier<'t> {
    transaction: &'t Transaction<'t>,
    survey: &'t Survey<'t>,
    encoder: Encoder,
    frames: FrameCache<'t>,
    /// Chunks that were copied: a pack may hold one twice.
    copied: HashSet<ChunkId>,
    data: Option<PackWriter>,
    tree: Option<PackWriter>,
    written: Vec<PackId>,
}

impl<'t> Copier<'t> {
    fn new(transaction: &'t Transaction<'t>, survey: &'t Survey<'t>) -> Result<Self> {
        Ok(Copier {
            transaction,
            survey,
            encoder: Encoder::new(Compression::Auto)?,
            frames: FrameCache::new(transaction.repo()),
            copied: HashSet::new(),
            data: None,
            tree: None,
            written: Vec::new(),
        })
    }

    fn copy(&mut self, id: PackId, bytes: u64, rank: usize) -> Result<()> {
        let repo = self.transaction.repo();
        let summary = repo.pack_summary(id, bytes)?;
        self.copied.clear();
        for frame in summary.frames()? {
            let mut needed = Vec::with_capacity(frame.chunks.len());
            for &(chunk, _) in &frame.chunks {
                needed.push(self.survey.belongs(chunk, rank, frame.offset)? && self.copied.insert(chunk));
            }
            if needed.contains(&true) {
                self.copy_frame(id, summary.kind, frame, &needed)?;
            }
        }
        Ok(())
    }

    fn copy_frame(&mut self, pack: PackId, kind: PackKind, frame: FrameRecord, needed: &[bool]) -> Result<()> {
        let repo = self.transaction.repo();
        let (mut stored, mut content) = (Vec::new(), Vec::new());
        if let Err(error) = self.read_frame(pack, &frame, &mut stored, &mut content)
            && error.kind() != Kind::Damaged
        {
            return Err(error);
        }
        let mut at = 0;
        let mut is_sound = true;
        let mut kept = Vec::new();
        let mut raw = Vec::new();
        for (&(id, bytes), &is_needed) in frame.chunks.iter().zip(needed) {
            let chunk = content.get(at..at + bytes as usize).filter(|chunk| repo.chunk_id(chunk) == id);
            at += bytes as usize;
            is_sound &= chunk.is_some();
            match (is_needed, chunk) {
                (false, _) => continue,
                (true, Some(chunk)) => raw.extend_from_slice(chunk),
                // Damaged here: another home of it may serve.
                (true, None) => raw.extend_from_slice(&repo.read_chunk(id)?),
            }
            kept.push((id, bytes));
        }
        if is_sound && kept.len() == frame.chunks.len() {
            let record = FrameRecord { stored_bytes: length(&stored)?, ..frame };
            return self.append(kind, &stored, record);
        }
        let mut coded = Vec::new();
        let codec = self.encoder.encode(&raw, &mut coded)?;
        let record = FrameRecord {
            offset: 0,
            stored_bytes: length(&coded)?,
            raw_bytes: length(&raw)?,
            codec: codec.code(),
            bases: Vec::new(),
            chunks: kept,
        };
        self.append(kind, &coded, record)
    }

    fn read_frame(&self, pack: PackId, frame: &FrameRecord, stored: &mut Vec<u8>, content: &mut Vec<u8>) -> Result<()> {
        let repo = self.transaction.repo();
        let range = ByteRange::new(frame.offset, u64::from(frame.stored_bytes))?;
        repo.read_pack(pack, range, stored)?;
        repo.open_frame(pack, frame.offset, stored)?;
        match frame.chunks.first().filter(|_| !frame.bases.is_empty()) {
            None => repo.with_decoder(|decoder| decoder.decode(stored, content)),
            Some((id, _)) => {
                let base = self.frames.read_bases(*id, &frame.bases)?;
                repo.with_decoder(|decoder| decoder.decode_against(stored, &base, content))
            }
        }
    }

    fn append(&mut self, kind: PackKind, stored: &[u8], record: FrameRecord) -> Result<()> {
        let slot = if kind == PackKind::Tree { &mut self.tree } else { &mut self.data };
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.transaction.create_pack(kind)?,
        };
        writer.append(stored, &[record])?;
        if writer.bytes() >= u64::from(self.transaction.repo().config().pack_bytes) {
            self.written.push(self.transaction.finish_pack(writer)?.id);
        } else {
            *slot = Some(writer);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PackId>> {
        for writer in [self.data.take(), self.tree.take()].into_iter().flatten() {
            self.written.push(self.transaction.finish_pack(writer)?.id);
        }
        Ok(self.written)
    }
}

fn length(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| Error::new(Kind::Failed, "a frame is longer than any may be"))
}
