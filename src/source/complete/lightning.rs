//! Lightning: a file for each checkpoint, or a directory called like one with a distributed checkpoint in it.

use super::dcp;
use super::folder::{Folder, Verdict};

/// A sharded checkpoint has `meta.pt` beside its shards.
pub(super) fn check(folder: &Folder) -> Verdict {
    match dcp::is_dcp(folder) && !folder.has(b"meta.pt") {
        true => Err("meta.pt is not there".to_owned()),
        false => Ok(()),
    }
}
