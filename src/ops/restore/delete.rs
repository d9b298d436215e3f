//! `restore --delete`: removes from restored directories what the snapshot does not hold.
//!
//! Walks the selection beside the target, a directory's names at a time; only directories that the selection holds are
//! looked into. Never called when anything of the snapshot could not be read. What cannot be looked into or removed is
//! booked, and the rest goes on.

use super::selection::Selection;
use crate::error::{Error, Result};
use crate::paths::is_beneath;
use crate::source::part_file::is_part_name;
use crate::source::target::Target;
use std::collections::VecDeque;

/// How to delete.
pub(super) struct Deletion<'a> {
    pub(super) target: &'a Target,
    /// Parts stay: they may hold what stood under the names of files that could not be restored.
    pub(super) keeps_parts: bool,
    /// Books a failure; an error ends the run.
    pub(super) failed: &'a mut dyn FnMut(Vec<u8>, Error) -> Result<()>,
}

/// A directory of the target whose names are compared with the entries to come.
struct Open {
    path: Vec<u8>,
    /// Names in it that have not been matched yet, sorted.
    names: VecDeque<Vec<u8>>,
}

impl Deletion<'_> {
    /// Removes the surplus and returns how many entries that were, not counting what lay beneath them.
    pub(super) fn surplus(&mut self, selection: &Selection<'_>) -> Result<u64> {
        let mut open: Vec<Open> = Vec::new();
        let mut deleted = 0;
        for item in selection.entries() {
            let (path, entry) = item?;
            let (parent, name) = split(&path);
            // What is not in any open directory (its own was not selected) must not close those it lies beneath.
            while open.last().is_some_and(|d| path.is_empty() || !is_beneath(parent, &d.path)) {
                deleted += open.pop().map_or(Ok(0), |mut directory| self.delete_below(&mut directory, None))?;
            }
            if let Some(directory) = open.last_mut().filter(|d| d.path == parent) {
                deleted += self.delete_below(directory, Some(name))?;
            }
            if entry.is_directory() {
                match self.target.list_children(&path) {
                    Ok(names) => open.push(Open { names: names.into(), path }),
                    Err(error) => (self.failed)(path, error)?,
                }
            }
        }
        while let Some(mut directory) = open.pop() {
            deleted += self.delete_below(&mut directory, None)?;
        }
        Ok(deleted)
    }

    /// Removes the names before `until`, or all that are left, and passes over `until` itself.
    fn delete_below(&mut self, directory: &mut Open, until: Option<&[u8]>) -> Result<u64> {
        let mut deleted = 0;
        while let Some(name) = directory.names.front() {
            if until.is_some_and(|until| name.as_slice() > until) {
                break;
            }
            let Some(name) = directory.names.pop_front() else { break };
            if until == Some(name.as_slice()) || self.keeps_parts && is_part_name(&name) {
                continue;
            }
            let path = if directory.path.is_empty() { name } else { [&directory.path, &b"/"[..], &name].concat() };
            match self.target.remove(&path) {
                Ok(()) => deleted += 1,
                Err(error) => (self.failed)(path, error)?,
            }
        }
        Ok(deleted)
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}
