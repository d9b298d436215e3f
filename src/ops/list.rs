//! Lists what a snapshot holds, entry by entry, in the order of paths.
//!
//! Memory stays bounded whatever the number of entries. A part of the list that cannot be read is counted and passed over.

use crate::error::{Kind, Result};
use crate::paths::is_beneath;
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::{Repo, paths};

/// What was listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListReport {
    /// Entries that were visited.
    pub entries: u64,
    /// Parts of the list of files that could not be read.
    pub damaged: u64,
}

/// Calls `visit` for what lies in the directory `subpath` (or in the backed-up directory, when none is given): its direct
/// children or, if `recursive`, everything beneath. A file is listed itself, and so is each root when several are meant.
///
/// [`Kind::NotFound`] if nothing is there.
pub fn list(
    repo: &Repo,
    snapshot: &Snapshot,
    subpath: Option<&[u8]>,
    recursive: bool,
    visit: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<ListReport> {
    repo.keys().require(PackKind::Tree)?;
    let wanted = paths::resolve_subpath(snapshot, subpath.unwrap_or_default())?;
    let mut report = ListReport::default();
    let mut is_there = false;
    let mut failure = None;
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    for entry in repo.entries_within(&fetch, snapshot.tree, wanted.clone()) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.kind() == Kind::Damaged => {
                report.damaged += 1;
                failure = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some((_, folder)) = wanted.iter().find(|(root, path)| *root == entry.root && is_beneath(&entry.path, path))
        else {
            continue;
        };
        is_there = true;
        if is_listed(&entry, folder, recursive, wanted.len() > 1) {
            report.entries += 1;
            visit(&entry)?;
        }
    }
    match failure {
        _ if is_there => Ok(report),
        Some(error) => Err(error),
        None if subpath.is_none_or(<[u8]>::is_empty) => Ok(report),
        None => {
            // Also a backed-up file is found by its own name; otherwise this is the error that says what there is.
            let entry = paths::find_entry(repo, snapshot, subpath.unwrap_or_default())?;
            visit(&entry)?;
            Ok(ListReport { entries: 1, ..report })
        }
    }
}

/// Whether an entry at or beneath `folder` is shown.
fn is_listed(entry: &Entry, folder: &[u8], recursive: bool, folder_itself: bool) -> bool {
    let rest = entry.path.get(folder.len()..).unwrap_or_default();
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    if rest.is_empty() {
        return folder_itself || !entry.is_directory();
    }
    recursive || (!folder_itself && !rest.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node, noise};

    fn listed(subpath: Option<&str>, recursive: bool) -> Result<Vec<String>, Kind> {
        let repo = test_support::open(&test_support::storage());
        let snapshot = test_support::save(
            &repo,
            10,
            &[
                ("a", Node::Directory),
                ("a/b", Node::Directory),
                ("a/b/c", Node::File(noise(1, 10))),
                ("a/d", Node::Link("x")),
                ("e", Node::File(vec![])),
            ],
        );
        let mut found = Vec::new();
        let visit = &mut |entry: &Entry| {
            found.push(String::from_utf8_lossy(&entry.path).into_owned());
            Ok(())
        };
        let report = list(&repo, &snapshot, subpath.map(str::as_bytes), recursive, visit).map_err(|e| e.kind())?;
        assert_eq!(report, ListReport { entries: found.len() as u64, damaged: 0 });
        Ok(found)
    }

    #[test]
    fn a_directory_lists_what_is_in_it_and_a_file_itself() {
        assert_eq!(listed(None, false).expect("there"), ["a", "e"]);
        assert_eq!(listed(None, true).expect("there"), ["a", "a/b", "a/b/c", "a/d", "e"]);
        assert_eq!(listed(Some("a"), false).expect("there"), ["a/b", "a/d"]);
        assert_eq!(listed(Some("/data/a"), true).expect("there"), ["a/b", "a/b/c", "a/d"]);
        assert_eq!(listed(Some("a/b/c"), false).expect("there"), ["a/b/c"]);
        assert_eq!(listed(Some("e/"), false).expect("there"), ["e"]);
        assert_eq!(listed(Some("nothing"), false), Err(Kind::NotFound));
        assert_eq!(listed(Some("/other"), false), Err(Kind::NotFound));
    }

    #[test]
    fn a_folder_in_a_long_list_costs_a_few_reads() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let names: Vec<String> = (0..50_000).map(|n| format!("folder{:03}/{n:06}", n / 500)).collect();
        let folders: Vec<String> = (0..100).map(|n| format!("folder{n:03}")).collect();
        let mut nodes: Vec<(&str, Node)> = names.iter().map(|name| (name.as_str(), Node::File(vec![]))).collect();
        nodes.extend(folders.iter().map(|name| (name.as_str(), Node::Directory)));
        nodes.sort_by(|a, b| crate::paths::compare_paths(a.0.as_bytes(), b.0.as_bytes()));
        let snapshot = test_support::save(&repo, 10, &nodes);
        let reads_of = |subpath: &str, found: u64| {
            storage.clear_calls();
            let report = list(&repo, &snapshot, Some(subpath.as_bytes()), false, &mut |_| Ok(())).expect("there");
            assert_eq!(report, ListReport { entries: found, damaged: 0 });
            storage.calls().len()
        };
        let all = reads_of("", 100);
        for (subpath, found) in [("folder077", 500), ("folder077/038999", 1)] {
            let reads = reads_of(subpath, found);
            assert!(reads <= 20 && reads * 4 < all, "{reads} reads for {subpath}, {all} for the whole list");
        }
    }

    #[test]
    fn several_roots_are_listed_themselves() {
        let repo = test_support::open(&test_support::storage());
        let nodes: &[(&str, Node)] = &[("x", Node::File(noise(1, 10)))];
        let snapshot = test_support::save_roots(&repo, 10, &[("/one", nodes), ("/two", nodes)]);
        let mut found = Vec::new();
        let mut visit = |entry: &Entry| {
            found.push(paths::absolute_path(&snapshot, entry));
            Ok(())
        };
        list(&repo, &snapshot, None, false, &mut visit).expect("there");
        list(&repo, &snapshot, Some(b"two"), false, &mut visit).expect("there");
        assert_eq!(found, [&b"/one"[..], b"/two", b"/two/x"]);
    }
}
