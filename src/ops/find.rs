//! Finds entries by name or path in snapshots.
//!
//! Parts of a list of files that cannot be read are counted and passed over.

use crate::error::{Error, Kind, Result};
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, paths};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What to look for.
#[derive(Debug, Clone, Default)]
pub struct FindOptions {
    /// Globs, any of which may match: on the name, or on the whole path (absolute, or relative to its root) if the glob
    /// has a `/` in it. `*` does not cross a `/`, `**` does.
    pub patterns: Vec<String>,
    /// Whether `A` and `a` are the same.
    pub ignore_case: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FindReport {
    /// Entries that matched, in all snapshots together.
    pub matches: u64,
    /// Parts of lists of files that could not be read.
    pub damaged: u64,
}

/// Calls `visit` for every entry of `snapshots` that a pattern matches. [`Kind::Usage`] if a pattern is none.
pub fn find(
    repo: &Repo,
    snapshots: &[Snapshot],
    options: &FindOptions,
    visit: &mut dyn FnMut(&Snapshot, &Entry) -> Result<()>,
) -> Result<FindReport> {
    repo.keys().require(PackKind::Tree)?;
    let (by_path, by_name) = options.patterns.iter().partition::<Vec<_>, _>(|pattern| pattern.contains('/'));
    let (by_path, by_name) = (globs(&by_path, options)?, globs(&by_name, options)?);
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let mut report = FindReport::default();
    for snapshot in snapshots {
        for entry in repo.entries(&fetch, snapshot.tree) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if error.kind() == Kind::Damaged => {
                    report.damaged += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let path = paths::absolute_path(snapshot, &entry);
            let is_match = |globs: &GlobSet, bytes: &[u8]| globs.is_match(OsStr::from_bytes(bytes));
            if is_match(&by_name, paths::last_component(&path))
                || (!by_path.is_empty() && (is_match(&by_path, &path) || is_match(&by_path, &entry.path)))
            {
                report.matches += 1;
                visit(snapshot, &entry)?;
            }
        }
    }
    Ok(report)
}

fn globs(patterns: &[&String], options: &FindOptions) -> Result<GlobSet> {
    let usage = |pattern: &str, error: globset::Error| {
        Error::new(Kind::Usage, format!("{pattern:?} is not a pattern: {}", error.kind()))
            .with_hint("`*` stands for any characters, `?` for one, `[ab]` for one of these; `\\` quotes the next one")
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .backslash_escape(true)
            .case_insensitive(options.ignore_case)
            .build()
            .map_err(|e| usage(pattern, e))?;
        set.add(glob);
    }
    set.build().map_err(|e| usage("the whole of the patterns", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node, noise};

    fn found(pattern: &str, ignore_case: bool) -> Result<Vec<String>, Kind> {
        let repo = test_support::open(&test_support::storage());
        let file = || Node::File(noise(1, 10));
        let nodes = [("run", Node::Directory), ("run/Model.bin", file()), ("run/x.json", file()), ("y.bin", file())];
        let snapshot = test_support::save(&repo, 10, &nodes);
        let options = FindOptions { patterns: vec![pattern.to_owned()], ignore_case };
        let mut found = Vec::new();
        let report = find(&repo, &[snapshot], &options, &mut |_, entry| {
            found.push(String::from_utf8_lossy(&entry.path).into_owned());
            Ok(())
        });
        assert_eq!(report.map_err(|e| e.kind())?.matches, found.len() as u64);
        Ok(found)
    }

    #[test]
    fn patterns_match_names_or_whole_paths() {
        assert_eq!(found("*.bin", false).expect("sound"), ["run/Model.bin", "y.bin"]);
        assert_eq!(found("model.*", false).expect("sound"), [""; 0]);
        assert_eq!(found("model.*", true).expect("sound"), ["run/Model.bin"]);
        assert_eq!(found("run/*", false).expect("sound"), ["run/Model.bin", "run/x.json"]);
        assert_eq!(found("/data/*", false).expect("sound"), ["run", "y.bin"]);
        assert_eq!(found("/data/**", false).expect("sound").len(), 4);
        assert_eq!(found("data", false).expect("sound"), [""]);
        assert_eq!(found("[", false), Err(Kind::Usage));
    }
}
