//! How others know that a transaction is open: its announcement, its signs of life, and their end.
//!
//! A sign is a small object beside the announcement; there is one at most, or two for a moment. They decide nothing: a prune
//! waits for whoever gives signs, and takes the name that decides from whoever does not.

use super::Transaction;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::metadata::FileTime;
use crate::repo::snapshots::Outcome;
use crate::repo::{Repo, names, records};
use crate::storage;
use std::sync::PoisonError;

impl Transaction<'_> {
    /// Says that this writer lives, so that no prune takes it for dead. To be called every few minutes, from any thread.
    ///
    /// [`Kind::Busy`] if a prune has revoked this transaction all the same: it cannot succeed any more. That a sign cannot
    /// be written is no error: the run goes on, and at worst is revoked.
    pub fn sign_of_life(&self, now: FileTime) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if self.has_ended() {
            return Err(revoked());
        }
        let mut last = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let next = *last + 1;
        if records::create_sign_of_life(self.repo, self.id, next, writer, now).is_ok() {
            *last = next;
            // Only now: there is a sign at any moment.
            if let Ok(earlier) = names::sign_of_life(self.id, next - 1)
                && next > 1
            {
                let _ = self.repo.storage().delete(&earlier);
            }
        }
        Ok(())
    }

    pub(super) fn last_sign(&self) -> u64 {
        *self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn revoked() -> Error {
    Error::new(Kind::Busy, "a prune has revoked this backup, which looked dead to it")
        .with_hint("run the backup again: what it stored is reused")
}

/// Ends an open transaction as revoked and removes its announcement and its sign of life number `sign`, if that is above 0;
/// harmless if it has ended otherwise.
pub fn revoke(repo: &Repo, id: SnapshotId, sign: u64) -> Result<()> {
    // Whoever took the name, it is durable when this returns.
    storage::create_new(repo.storage(), &names::snapshot(id)?, &Outcome::Revoked.seal(repo.keys(), id)?)?;
    remove_announcement(repo, id, sign)
}

/// Removes what announced a transaction, which must have durably ended.
pub fn remove_announcement(repo: &Repo, id: SnapshotId, sign: u64) -> Result<()> {
    if sign > 0 {
        repo.storage().delete(&names::sign_of_life(id, sign)?)?;
    }
    repo.storage().delete(&names::transaction(id)?)?;
    Ok(())
}
