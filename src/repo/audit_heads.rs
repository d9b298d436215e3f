//! Heads of the audit log that stand in other objects: what makes a log that was cut off at its end show.
//!
//! Markers of forgotten snapshots and lists of prunes follow a record each; snapshots carry the head that their writer saw.

use super::audit::AuditHead;
use super::records;
use super::{Repo, names};
use crate::error::{Kind, Result};

/// A head, and the object that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingHead {
    /// The name of the object.
    pub place: String,
    /// The head; none where an object that follows a record has none.
    pub head: Option<AuditHead>,
}

/// All that live snapshots, markers and lists carry. What cannot be read is passed over: verification names it.
pub fn read(repo: &Repo) -> Result<Vec<StandingHead>> {
    let storage = repo.storage();
    let mut heads = Vec::new();
    for listed in storage.list(names::FORGOTTEN)? {
        let Some(id) = names::snapshot_id(names::FORGOTTEN, &listed.name) else { continue };
        if let Some(head) = readable(records::read_forgotten(repo, id))? {
            heads.push(StandingHead { place: listed.name.as_str().to_owned(), head });
        }
    }
    for snapshot in repo.snapshots() {
        if let Some(head) = snapshot.audit {
            heads.push(StandingHead { place: names::snapshot(snapshot.id)?.as_str().to_owned(), head: Some(head) });
        }
    }
    Ok(heads)
}

fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Missing) => Ok(None),
        Err(error) => Err(error),
    }
}
