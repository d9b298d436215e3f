//! What becomes of one entry, by what stands under its name; and where nothing needs to be looked for.

use super::Overwrite;
use crate::error::Result;
use crate::metadata::FileKind;
use crate::paths::is_beneath;
use crate::repo::entry::Entry;
use crate::source::target::Target;

/// What to do with one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing stands there.
    Create,
    /// Something else stands there.
    Update,
    /// It is right as it is.
    Unchanged,
    /// It stays because nothing is to be overwritten.
    Keep,
}

/// A part of the target in which nothing stands but what this run puts there, each name once: the directory of a root that
/// was made last, or was found to be absent.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The whole target was empty.
    is_everything: bool,
    directory: Option<(u32, Vec<u8>)>,
}

impl Fresh {
    /// Before anything is made.
    pub(super) fn at_start(target: Option<&Target>) -> Result<Fresh> {
        let is_everything =
            target.map_or(Ok(true), |target| target.list_children(b"").map(|names| names.is_empty()))?;
        Ok(Fresh { is_everything, directory: None })
    }

    /// True if nothing can stand at the path; `root` is that of its entry, since roots may contain each other.
    pub(super) fn covers(&self, root: u32, path: &[u8]) -> bool {
        let is_below = |(of, above): &(u32, Vec<u8>)| *of == root && path != above && is_beneath(path, above);
        self.is_everything || self.directory.as_ref().is_some_and(is_below)
    }

    /// A directory has come by: it is new, or stood there before.
    pub(super) fn note(&mut self, root: u32, path: &[u8], is_new: bool) {
        if !is_new {
            self.directory = None;
        } else if !self.covers(root, path) {
            self.directory = Some((root, path.to_vec()));
        }
    }
}

/// What to do with the entry, and how many bytes stand allocated under its name.
pub(super) fn action(
    target: Option<&Target>,
    fresh: &Fresh,
    overwrite: Overwrite,
    path: &[u8],
    entry: &Entry,
) -> Result<(Action, u64)> {
    let existing = match target {
        Some(_) if path.is_empty() => return Ok((Action::Update, 0)),
        Some(target) if !fresh.covers(entry.root, path) => target.existing(path)?,
        _ => None,
    };
    let Some(existing) = existing else { return Ok((Action::Create, 0)) };
    let allocated = existing.allocated;
    let wanted = &entry.metadata;
    let Some(current) = existing.metadata else { return Ok((Action::Update, allocated)) };
    let action = match (&wanted.kind, overwrite) {
        (FileKind::Directory, _) if current.kind == FileKind::Directory => Action::Update,
        (_, Overwrite::Never) => Action::Keep,
        (FileKind::Regular, Overwrite::IfChanged) => {
            let is_right = current.kind == FileKind::Regular
                && (current.size, current.mtime) == (wanted.size, wanted.mtime)
                && (current.mode, current.uid, current.gid) == (wanted.mode, wanted.uid, wanted.gid);
            if is_right { Action::Unchanged } else { Action::Update }
        }
        _ => Action::Update,
    };
    Ok((action, allocated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_a_new_directory_of_the_same_root_is_fresh() {
        let mut fresh = Fresh::default();
        assert!(!fresh.covers(0, b"a"));
        fresh.note(0, b"a", true);
        assert!(fresh.covers(0, b"a/x") && fresh.covers(0, b"a/b/x"));
        assert!(!fresh.covers(0, b"a") && !fresh.covers(0, b"ab") && !fresh.covers(1, b"a/x"));
        fresh.note(0, b"a/b", true);
        assert!(fresh.covers(0, b"a/x"), "what is new within it changes nothing");
        fresh.note(0, b"a/c", false);
        assert!(!fresh.covers(0, b"a/c/x"), "somebody else has made it");
        fresh.note(0, b"d", true);
        assert!(fresh.covers(0, b"d/x") && !fresh.covers(0, b"a/x"));
    }
}
