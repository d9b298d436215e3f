//! How an object is written in a simulated storage: the steps of a file system, one by one.
//!
//! Each step may be the last one before a crash. What a power cut takes of them is not decided here.

use super::memory::Stored;
use super::{Operation, SimulatedStorage};
use crate::error::Result;
use crate::storage::{ObjectName, ObjectWriter, Published, check_folder_of};
use std::sync::Arc;

/// An object that is being written.
pub(super) struct SimulatedWriter {
    pub(super) storage: SimulatedStorage,
    pub(super) folder: String,
    pub(super) temporary: u64,
    pub(super) bytes: Vec<u8>,
}

impl ObjectWriter for SimulatedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.storage.lock().hosts[self.storage.host].check_alive()?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(mut self: Box<Self>, name: &ObjectName) -> Result<Published> {
        self.place(name, false)
    }
}

impl SimulatedWriter {
    /// The steps of publishing; with `over`, in the place of what has the name.
    pub(super) fn place(&mut self, name: &ObjectName, over: bool) -> Result<Published> {
        check_folder_of(name, &self.folder)?;
        let bytes = Arc::new(std::mem::take(&mut self.bytes));
        let (text, len, id) = (name.as_str(), bytes.len() as u64, self.temporary);
        self.storage.step(Operation::Write, text, len, |memory, kept| {
            let whole = kept == len;
            let kept = bytes.get(..usize::try_from(kept).unwrap_or(usize::MAX)).unwrap_or_default();
            let temporary = memory.temporary(id)?;
            temporary.was_met = false;
            temporary.bytes = if whole { Arc::clone(&bytes) } else { Arc::new(kept.to_vec()) };
            Ok(())
        })?;
        self.storage.step(Operation::Sync, text, len, |memory, _| {
            memory.temporary(id)?.synced = true;
            Ok(())
        })?;
        let published = self.storage.step(Operation::Name, text, len, |memory, _| {
            if memory.objects.contains_key(name) && !over {
                return Ok(Published::AlreadyExists);
            }
            let bytes = Arc::clone(&memory.temporary(id)?.bytes);
            memory.temporaries.remove(&id);
            if let Some(old) = memory.objects.remove(name).filter(|old| old.durable) {
                memory.replaced.insert(name.clone(), old.bytes);
            }
            memory.objects.insert(name.clone(), Stored { bytes, durable: false });
            Ok(Published::Created)
        })?;
        self.storage.sync_names_beside(name)?;
        Ok(published)
    }
}

impl Drop for SimulatedWriter {
    fn drop(&mut self) {
        let mut memory = self.storage.lock();
        // A dead host tidies nothing up.
        if !memory.hosts[self.storage.host].is_dead() {
            memory.temporaries.remove(&self.temporary);
        }
    }
}
