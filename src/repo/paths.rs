//! Paths of people and paths of entries: which part of a snapshot a subpath names, and where an entry once lay.
//!
//! A subpath is absolute, or relative to the single backed-up directory; with several roots a relative one begins with the
//! last component of a root. Paths are bytes. Nothing here looks at a file system, so links are not followed and `..` is
//! refused.

use super::Repo;
use super::entry::Entry;
use super::frame_cache::FrameCache;
use super::snapshots::Snapshot;
use super::tree::{Place, Within};
use crate::error::{Error, Kind, Result};
use crate::paths::is_beneath;

/// Where in `snapshot` the subpath may lie: roots by their index, each with a path relative to it.
///
/// An absolute path above several roots names all of them. [`Kind::NotFound`] with the roots in the text when it cannot lie
/// in the snapshot; whether anything is there is for the caller to see.
pub fn resolve_subpath(snapshot: &Snapshot, subpath: &[u8]) -> Result<Vec<Place>> {
    let is_absolute = subpath.first() == Some(&b'/');
    let wanted = clean(subpath)?;
    let roots = || (0u32..).zip(snapshot.roots.iter().map(|root| join_components(root)));
    let found: Vec<Place> = if wanted.is_empty() {
        roots().map(|(number, _)| (number, Vec::new())).collect()
    } else if is_absolute {
        roots()
            .filter_map(|(number, root)| match beneath(&wanted, &root) {
                Some(rest) => Some((number, rest)),
                None => is_beneath(&root, &wanted).then(|| (number, Vec::new())),
            })
            .collect()
    } else if let [only] = snapshot.roots.as_slice() {
        // What came from a stream has a plain name for its root, and nothing beneath it.
        let is_stream = only.first() != Some(&b'/') && join_components(only) == wanted;
        vec![(0, if is_stream { Vec::new() } else { wanted })]
    } else {
        roots().filter_map(|(number, root)| Some((number, beneath(&wanted, last_component(&root))?))).collect()
    };
    if found.is_empty() { Err(not_in(snapshot, subpath)) } else { Ok(found) }
}

/// The first entry that `subpath` names. A single backed-up file is also found by its own name.
///
/// [`Kind::NotFound`] if there is none; [`Kind::Damaged`] if there is none and a part of the list of files is unreadable.
pub fn find_entry(repo: &Repo, snapshot: &Snapshot, subpath: &[u8]) -> Result<Entry> {
    let wanted = resolve_subpath(snapshot, subpath)?;
    let own_name = match snapshot.roots.as_slice() {
        [root] if clean(subpath)? == last_component(&join_components(root)) => Some((0, Vec::new())),
        _ => None,
    };
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let mut damage = None;
    let mut entry_at = |place: &Place| {
        for entry in Within::new(&fetch, snapshot.tree, place.clone()) {
            match entry {
                Ok(entry) => return Some(entry).filter(|entry| entry.path == place.1),
                Err(error) => damage = Some(error),
            }
        }
        None
    };
    let named = wanted.iter().find_map(&mut entry_at);
    let found = named.or_else(|| own_name.and_then(|place| entry_at(&place)).filter(|entry| !entry.is_directory()));
    match (found, damage) {
        (Some(entry), _) => Ok(entry),
        (None, Some(error)) => Err(error.while_doing(format!("looking for {}", String::from_utf8_lossy(subpath)))),
        (None, None) => Err(not_in(snapshot, subpath)),
    }
}

/// Where the entry lay when it was backed up.
pub fn absolute_path(snapshot: &Snapshot, entry: &Entry) -> Vec<u8> {
    let root = usize::try_from(entry.root).ok().and_then(|n| snapshot.roots.get(n));
    let mut path = root.cloned().unwrap_or_default();
    if !entry.path.is_empty() {
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.path);
    }
    path
}

/// The last component of a path; all of it if there is only one, nothing for `/`.
pub fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').find(|part| !part.is_empty()).unwrap_or_default()
}

/// An error that says what the snapshot does hold.
fn not_in(snapshot: &Snapshot, subpath: &[u8]) -> Error {
    let roots: Vec<_> = snapshot.roots.iter().map(|root| String::from_utf8_lossy(root)).collect();
    let text = format!(
        "{} is not in snapshot {}, which holds {}",
        String::from_utf8_lossy(subpath),
        snapshot.id.short(),
        roots.join(", ")
    );
    Error::new(Kind::NotFound, text).with_hint(format!("`ckpt ls {}` lists what is in it", snapshot.id.short()))
}

/// The components of `path` joined by single slashes, without `.` and without a slash at either end.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.split(|&b| b == b'/').any(|part| part == b"..") {
        let shown = String::from_utf8_lossy(path);
        return Err(Error::new(Kind::Usage, format!("{shown}: a path within a snapshot cannot have \"..\" in it")));
    }
    Ok(join_components(path))
}

fn join_components(path: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    parts.join(&b'/')
}

/// What is left of `path` behind `folder`, if it lies beneath it or is it.
fn beneath(path: &[u8], folder: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(folder).filter(|_| is_beneath(path, folder))?;
    Some(rest.strip_prefix(b"/").unwrap_or(rest).to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::snapshots::tests::snapshot;
    use super::*;

    fn of(roots: &[&str]) -> Snapshot {
        Snapshot { roots: roots.iter().map(|r| r.as_bytes().to_vec()).collect(), ..snapshot(1, "h", 5) }
    }

    fn resolved(roots: &[&str], subpath: &str) -> Result<Vec<(u32, String)>, Kind> {
        let text = |(root, path): (u32, Vec<u8>)| (root, String::from_utf8(path).expect("own text"));
        match resolve_subpath(&of(roots), subpath.as_bytes()) {
            Ok(found) => Ok(found.into_iter().map(text).collect()),
            Err(error) => Err(error.kind()),
        }
    }

    #[test]
    fn subpaths_of_one_root() {
        let at = |path: &str| Ok(vec![(0, path.to_owned())]);
        assert_eq!(resolved(&["/data/run"], "a/b"), at("a/b"));
        assert_eq!(resolved(&["/data/run"], "./a//b/"), at("a/b"));
        assert_eq!(resolved(&["/data/run"], ""), at(""));
        assert_eq!(resolved(&["/data/run"], "/data/run/a"), at("a"));
        assert_eq!(resolved(&["/data/run"], "/data/run/"), at(""));
        assert_eq!(resolved(&["/data/run"], "/data"), at(""));
        assert_eq!(resolved(&["/"], "/etc/x"), at("etc/x"));
        assert_eq!(resolved(&["/"], "/"), at(""));
        assert_eq!(resolved(&["dump.sql"], "dump.sql"), at(""));
        assert_eq!(resolved(&["/data/run"], "/data/runs"), Err(Kind::NotFound));
        assert_eq!(resolved(&["/data/run"], "/other"), Err(Kind::NotFound));
        assert_eq!(resolved(&["/data/run"], "a/../b"), Err(Kind::Usage));
    }

    #[test]
    fn subpaths_of_several_roots() {
        let roots = ["/data/a", "/data/b", "/other/b"];
        assert_eq!(resolved(&roots, "a/x"), Ok(vec![(0, "x".to_owned())]));
        assert_eq!(resolved(&roots, "b"), Ok(vec![(1, String::new()), (2, String::new())]));
        assert_eq!(resolved(&roots, "/data"), Ok(vec![(0, String::new()), (1, String::new())]));
        assert_eq!(resolved(&roots, "/other/b/c"), Ok(vec![(2, "c".to_owned())]));
        assert_eq!(resolved(&roots, "c"), Err(Kind::NotFound));
        let error = resolve_subpath(&of(&roots), b"c").expect_err("no such root");
        assert!(error.to_string().contains("/data/a, /data/b, /other/b"), "{error}");
    }

    #[test]
    fn absolute_paths_of_entries() {
        let mut entry = super::super::entry::tests::file("x/y", 1);
        assert_eq!(absolute_path(&of(&["/data"]), &entry), b"/data/x/y");
        assert_eq!(absolute_path(&of(&["/"]), &entry), b"/x/y");
        entry.path.clear();
        assert_eq!(absolute_path(&of(&["/data"]), &entry), b"/data");
        assert_eq!(last_component(b"/data/run/"), b"run");
    }
}
