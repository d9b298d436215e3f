//! A file that stands where one is to be restored, and that becomes its part.
//!
//! Only one that is ours alone: a link, a file of another owner or with other names is left where it is, and so is one that we
//! may not write or that another process is writing a restore into.

use super::apply::system_mode;
use super::confined::{Place, open_name};
use super::part_file::{PART_MODE, lock};
use super::placing::stat_name;
use super::stat::FileStatus;
use crate::sabotage::is_planted;
use rustix::fs::{OFlags, RenameFlags, fchmod, renameat_with};
use std::fs::File;

/// What has to be known of it to put it back.
#[derive(Debug)]
pub(super) struct OldFile {
    mode: u32,
}

impl OldFile {
    /// Gives it the name of the part. None if it is not to be used, if an earlier run has left a part, which then serves,
    /// or if the file system cannot rename without replacing.
    pub(super) fn take(place: &Place, part: &[u8]) -> Option<(File, OldFile)> {
        if !stat_name(&place.parent, &place.name).is_ok_and(|status| status.is_regular()) {
            return None;
        }
        // Another kind of entry put there since must not block the opening.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(open_name(&place.parent, &place.name, flags).ok()?);
        let status = FileStatus::from_std(&file.metadata().ok()?);
        let is_ours = status.uid == rustix::process::geteuid().as_raw();
        if !status.is_regular() || status.links != 1 || !is_ours || !lock(&file) {
            return None;
        }
        renameat_with(&place.parent, &place.name[..], &place.parent, part, RenameFlags::NOREPLACE).ok()?;
        let old = OldFile { mode: status.mode };
        let is_it = stat_name(&place.parent, part).is_ok_and(|named| named.is_same_file(&status));
        if !is_it || status.mode != PART_MODE && fchmod(&file, system_mode(PART_MODE)).is_err() {
            old.put_back(&file, place, part);
            return None;
        }
        Some((file, old))
    }

    /// Gives it its own name and mode again, unless something else has that name by now.
    pub(super) fn put_back(&self, file: &File, place: &Place, part: &[u8]) {
        if is_planted("old-file-not-put-back") {
            return;
        }
        // Best effort: what cannot be put back stays as a part, which the next restore of the same content goes on with.
        if self.mode != PART_MODE {
            let _ = fchmod(file, system_mode(self.mode));
        }
        let _ = renameat_with(&place.parent, part, &place.parent, &place.name[..], RenameFlags::NOREPLACE);
    }
}
