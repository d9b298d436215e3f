//! Lanes: each writes data packs from what the workers hand over.
//!
//! A batch is not divided between packs, so what was read together lies together and is restored in long runs. In an encrypted
//! repository each frame goes to one of a few open packs at random: the lengths of frames in the order of their file would tell
//! which public weights they hold.

use crate::error::{Error, Kind, Result};
use crate::repo::config::Config;
use crate::repo::pack::{PackKind, PackWriter};
use crate::repo::pack_table::FrameRecord;
use crate::repo::transaction::Transaction;
use crossbeam_channel::{Receiver, Sender};

/// Packs over which a lane of an encrypted repository spreads frames. Each takes staging memory.
const SHUFFLED_PACKS: usize = 3;

/// Frames that lie back to back.
#[derive(Debug, Default)]
pub(super) struct FrameBatch {
    /// Their bytes.
    pub(super) bytes: Vec<u8>,
    /// What they are, in order.
    pub(super) records: Vec<FrameRecord>,
}

/// How many packs a lane has open.
pub(super) fn packs_at_once(config: &Config) -> usize {
    if config.is_encrypted() { SHUFFLED_PACKS } else { 1 }
}

/// Writes batches into packs until there are no more; batches go back through `empty` to be filled again.
pub(super) fn run(
    transaction: &Transaction<'_>,
    full: &Receiver<FrameBatch>,
    empty: &Sender<FrameBatch>,
) -> Result<()> {
    let packs = packs_at_once(transaction.repo().config());
    let mut lane = Lane {
        transaction,
        pack_bytes_max: u64::from(transaction.repo().config().pack_bytes),
        open: (0..packs).map(|_| None).collect(),
    };
    let mut dice = Dice::new()?;
    for mut batch in full {
        if packs > 1 {
            lane.spread(&batch, &mut dice)?;
        } else {
            lane.append(0, &batch.bytes, &batch.records)?;
        }
        batch.bytes.clear();
        batch.records.clear();
        // Nobody may be left to fill it: then it is dropped.
        let _ = empty.send(batch);
    }
    lane.open.into_iter().flatten().try_for_each(|pack| transaction.finish_pack(pack).map(drop))
}

struct Lane<'t> {
    transaction: &'t Transaction<'t>,
    pack_bytes_max: u64,
    open: Vec<Option<PackWriter>>,
}

impl Lane<'_> {
    fn spread(&mut self, batch: &FrameBatch, dice: &mut Dice) -> Result<()> {
        let mut rest = batch.bytes.as_slice();
        for record in &batch.records {
            let (frame, behind) = rest.split_at(usize::try_from(record.stored_bytes).unwrap_or(0).min(rest.len()));
            rest = behind;
            self.append(dice.throw(self.open.len()), frame, std::slice::from_ref(record))?;
        }
        Ok(())
    }

    fn append(&mut self, number: usize, bytes: &[u8], records: &[FrameRecord]) -> Result<()> {
        let Some(slot) = self.open.get_mut(number) else { return Ok(()) };
        let mut pack = match slot.take() {
            Some(pack) => pack,
            None => self.transaction.create_pack(PackKind::Data)?,
        };
        pack.append(bytes, records)?;
        if pack.bytes() >= self.pack_bytes_max {
            self.transaction.finish_pack(pack)?;
        } else {
            *slot = Some(pack);
        }
        Ok(())
    }
}

/// Random numbers that nobody can foresee, without a system call for each.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new() -> Result<Dice> {
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
        Ok(Dice(blake3::Hasher::new_keyed(&seed).finalize_xof()))
    }

    /// A number below `count`, which is small.
    fn throw(&mut self, count: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(0) % count.max(1)
    }
}
