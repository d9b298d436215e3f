//! Pointers such as `latest` are read after everything beside them, so that what they name is seen first.

use super::worker::SmallFile;
use crate::paths::is_beneath;
use crate::source::complete::is_pointer;

/// A pointer is a short text.
const POINTER_BYTES_MAX: u64 = 4096;
/// No pointer is waited for while more entries than this wait behind it.
const WAITING_MAX: u64 = 100_000;

/// The pointers that wait.
#[derive(Default)]
pub(super) struct Deferred(Vec<SmallFile>);

impl Deferred {
    /// Keeps `file` if it is a pointer, else gives it back.
    pub(super) fn keep(&mut self, file: SmallFile) -> Option<SmallFile> {
        let path = &file.found.path;
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if path.is_empty() || file.found.metadata.size > POINTER_BYTES_MAX || !is_pointer(name) {
            return Some(file);
        }
        self.0.push(file);
        None
    }

    /// The pointers whose turn has come: the scan is at `place`, past their directory, or at its end; or too many
    /// entries wait for them.
    pub(super) fn due(&mut self, place: Option<(u32, &[u8])>, newest_sequence: u64) -> Vec<SmallFile> {
        let is_waiting = |file: &SmallFile| {
            let path = &file.found.path;
            let folder = path.iter().rposition(|&b| b == b'/').map_or(&[][..], |end| &path[..end]);
            place.is_some_and(|(root, path)| root == file.found.root && is_beneath(path, folder))
                && newest_sequence.saturating_sub(file.sequence) < WAITING_MAX
        };
        let (waiting, due) = std::mem::take(&mut self.0).into_iter().partition(is_waiting);
        self.0 = waiting;
        due
    }
}
