//! Lanes: each writes one data pack at a time from what the workers hand over.
//!
//! A batch is never divided between packs, so what was read together lies together and is restored in long runs.

use crate::error::Result;
use crate::repo::pack::PackKind;
use crate::repo::pack_table::FrameRecord;
use crate::repo::transaction::Transaction;
use crossbeam_channel::{Receiver, Sender};

/// Frames that lie back to back.
#[derive(Debug, Default)]
pub(super) struct FrameBatch {
    /// Their bytes.
    pub(super) bytes: Vec<u8>,
    /// What they are, in order.
    pub(super) records: Vec<FrameRecord>,
}

/// Writes batches into packs until there are no more; batches go back through `empty` to be filled again.
pub(super) fn run(
    transaction: &Transaction<'_>,
    full: &Receiver<FrameBatch>,
    empty: &Sender<FrameBatch>,
) -> Result<()> {
    let pack_bytes_max = u64::from(transaction.repo().config().pack_bytes);
    let mut open = None;
    for mut batch in full {
        let mut pack = match open.take() {
            Some(pack) => pack,
            None => transaction.create_pack(PackKind::Data)?,
        };
        pack.append(&batch.bytes, &batch.records)?;
        batch.bytes.clear();
        batch.records.clear();
        // Nobody may be left to fill it: then it is dropped.
        let _ = empty.send(batch);
        if pack.bytes() >= pack_bytes_max {
            transaction.finish_pack(pack)?;
        } else {
            open = Some(pack);
        }
    }
    if let Some(pack) = open {
        transaction.finish_pack(pack)?;
    }
    Ok(())
}
