//! Stores chunks of metadata: leaves of the tree, nodes, chunk lists.
//!
//! They go into packs of their own, so that looking at a snapshot reads little. A host whose key cannot open those packs
//! keeps what it stores in its index, too, so that the next run sees what has not changed. Used by the coordinator alone.

use crate::codec::{Compression, Encoder};
use crate::error::Result;
use crate::ids::ChunkId;
use crate::repo::pack::{PackKind, PackWriter};
use crate::repo::pack_table::FrameRecord;
use crate::repo::transaction::{Claim, Transaction};

/// How much is gathered before it goes into the index.
const KEPT_LOT_BYTES: usize = 8 << 20;

/// See the module.
pub(super) struct MetadataSink<'t> {
    transaction: &'t Transaction<'t>,
    encoder: Encoder,
    frame: Vec<u8>,
    pack: Option<PackWriter>,
    /// What goes into the index of this host with the next lot; none if the repository can be asked.
    kept: Option<Vec<(ChunkId, Vec<u8>)>>,
    kept_bytes: usize,
    /// Bytes added to packs.
    pub(super) bytes_stored: u64,
}

impl<'t> MetadataSink<'t> {
    pub(super) fn new(transaction: &'t Transaction<'t>) -> Result<MetadataSink<'t>> {
        let encoder = Encoder::new(Compression::Auto)?;
        let kept = (!transaction.repo().keys().opens(PackKind::Tree)).then(Vec::new);
        Ok(MetadataSink { transaction, encoder, frame: Vec::new(), pack: None, kept, kept_bytes: 0, bytes_stored: 0 })
    }

    /// Stores a chunk unless the repository holds it, and returns its id.
    pub(super) fn store(&mut self, chunk: &[u8]) -> Result<ChunkId> {
        let id = self.transaction.repo().chunk_id(chunk);
        self.keep(id, chunk)?;
        if self.transaction.claim(&[id])?.as_slice() != [Claim::New] {
            return Ok(id);
        }
        self.frame.clear();
        let codec = self.encoder.encode(chunk, &mut self.frame)?;
        let record = FrameRecord::single(id, chunk.len(), self.frame.len(), codec.code())?;
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => self.transaction.create_pack(PackKind::Tree)?,
        };
        pack.append(&self.frame, &[record])?;
        self.bytes_stored += u64::try_from(self.frame.len()).unwrap_or(u64::MAX);
        if pack.bytes() >= u64::from(self.transaction.repo().config().pack_bytes) {
            self.transaction.finish_pack(pack)?;
        } else {
            self.pack = Some(pack);
        }
        Ok(id)
    }

    fn keep(&mut self, id: ChunkId, chunk: &[u8]) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.push((id, chunk.to_vec()));
        self.kept_bytes += chunk.len();
        if self.kept_bytes >= KEPT_LOT_BYTES { self.flush_kept() } else { Ok(()) }
    }

    fn flush_kept(&mut self) -> Result<()> {
        self.kept_bytes = 0;
        match self.kept.as_mut().map(std::mem::take) {
            Some(kept) if !kept.is_empty() => self.transaction.repo().index().keep_trees(&kept),
            _ => Ok(()),
        }
    }

    /// Ends the last pack.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.flush_kept()?;
        if let Some(pack) = self.pack {
            self.transaction.finish_pack(pack)?;
        }
        Ok(self.bytes_stored)
    }
}
