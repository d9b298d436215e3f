//! Where a rehearsal writes to.
//!
//! Nothing is stored, and every publication succeeds.

use crate::error::Result;
use crate::storage::{ObjectName, ObjectWriter, Published};

/// Takes bytes and keeps none.
pub(super) struct Nowhere;

impl ObjectWriter for Nowhere {
    fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn publish(self: Box<Self>, _name: &ObjectName) -> Result<Published> {
        Ok(Published::Created)
    }
}
