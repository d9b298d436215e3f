//! What `verify` and `repair` have in common: finding out what is damaged, and who is hit.
//!
//! Everything is read from the storage; the index of this host only finds things, and is itself compared with the packs'
//! own tables. Nothing is changed in the repository. Damage is collected and never ends the run.

mod bases;
pub(crate) mod data;
pub(crate) mod documents;
pub(crate) mod found;
pub(crate) mod hits;
pub(crate) mod packs;
pub(crate) mod reachable;

use crate::error::{Error, Kind, Result};
use crate::events::Observer;

/// An error if the user has asked the run to end.
pub(crate) fn check_interrupt(observer: &dyn Observer) -> Result<()> {
    if observer.is_interrupted() {
        return Err(Error::new(Kind::Interrupted, "interrupted while checking the repository"));
    }
    Ok(())
}
