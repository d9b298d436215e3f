//! Walking a directory in the order of a snapshot's entries.

use super::content::Shared;
use crate::error::Result;
use crate::paths::compare_paths;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// A walk through the directory in the order of entries.
pub(super) struct Local {
    base: PathBuf,
    under: Vec<u8>,
    walk: walkdir::IntoIter,
    next: Option<(Vec<u8>, DirEntry)>,
    is_done: bool,
}

impl Local {
    pub(super) fn new(directory: &Path, under: Vec<u8>, descend: bool) -> Local {
        let base = if under.is_empty() { directory.to_owned() } else { directory.join(OsStr::from_bytes(&under)) };
        let depth = if descend { usize::MAX } else { 0 };
        // Only the directory that the user named may itself be a link.
        let walk =
            WalkDir::new(&base).follow_root_links(under.is_empty()).max_depth(depth).sort_by_file_name().into_iter();
        Local { base, under, walk, next: None, is_done: false }
    }

    /// A path as it is shown: relative to the directory.
    pub(super) fn shown(&self, path: &[u8]) -> Vec<u8> {
        match (self.under.is_empty(), path.is_empty()) {
            (true, _) => path.to_vec(),
            (false, true) => self.under.clone(),
            (false, false) => [self.under.as_slice(), path].join(&b'/'),
        }
    }

    /// What stands at `path`, if anything does. All that comes before it is not in the snapshot.
    pub(super) fn advance_to(&mut self, path: &[u8], shared: &Shared<'_>) -> Result<Option<DirEntry>> {
        loop {
            self.peek(shared);
            let Some((at, entry)) = self.next.take() else { return Ok(None) };
            match compare_paths(&at, path) {
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Greater => {
                    self.next = Some((at, entry));
                    return Ok(None);
                }
                std::cmp::Ordering::Less => self.extra(&at, &entry, shared),
            }
        }
    }

    pub(super) fn rest_is_extra(&mut self, shared: &Shared<'_>) -> Result<()> {
        loop {
            self.peek(shared);
            let Some((at, entry)) = self.next.take() else { return Ok(()) };
            self.extra(&at, &entry, shared);
        }
    }

    /// A directory that is not in the snapshot is one difference, however much is in it.
    fn extra(&mut self, at: &[u8], entry: &DirEntry, shared: &Shared<'_>) {
        if entry.file_type().is_socket() {
            return;
        }
        shared.differ(&self.shown(at), "not in the snapshot");
        if entry.file_type().is_dir() {
            self.walk.skip_current_dir();
        }
    }

    fn peek(&mut self, shared: &Shared<'_>) {
        while self.next.is_none() && !self.is_done {
            match self.walk.next() {
                None => self.is_done = true,
                Some(Ok(entry)) => {
                    let path = entry.path().strip_prefix(&self.base).unwrap_or(entry.path());
                    self.next = Some((path.as_os_str().as_bytes().to_vec(), entry));
                }
                Some(Err(error)) => {
                    let path = error.path().and_then(|p| p.strip_prefix(&self.base).ok()).unwrap_or(Path::new(""));
                    // The base itself: that it is missing is said of its entry.
                    if !path.as_os_str().is_empty() {
                        shared.differ(&self.shown(path.as_os_str().as_bytes()), format!("cannot be listed: {error}"));
                    }
                }
            }
        }
    }
}
