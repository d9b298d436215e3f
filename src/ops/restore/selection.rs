//! Which entries of a snapshot are restored, and to which path of the target.
//!
//! One backed-up directory's contents land in the target itself, a single file under its name; several roots each under
//! their last component, or under their whole path if two share it. A part of the snapshot lands like a root of its own.

use super::{Destination, RestoreOptions};
use crate::error::Result;
use crate::ids::ChunkId;
use crate::paths::is_beneath;
use crate::repo::Repo;
use crate::repo::entry::Entry;
use crate::repo::paths::resolve_subpath;
use crate::repo::snapshots::Snapshot;
use crate::source::excludes::{Excludes, Includes};

/// A subtree of the snapshot and where it goes.
struct Part {
    root: u32,
    /// Relative to the root; the entry there and everything beneath it is selected.
    path: Vec<u8>,
    /// Where a directory's contents go, relative to the target.
    as_directory: Vec<u8>,
    /// Where anything else goes.
    as_file: Vec<u8>,
}

/// See the module.
pub(super) struct Selection<'a> {
    repo: &'a Repo,
    snapshot: &'a Snapshot,
    parts: Vec<Part>,
    includes: Includes,
    excludes: Excludes,
    fetch: Box<dyn Fn(ChunkId) -> Result<Vec<u8>> + Send + Sync + 'a>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(repo: &'a Repo, snapshot: &'a Snapshot, options: &RestoreOptions) -> Result<Selection<'a>> {
        let wanted = match &options.subpath {
            Some(subpath) => resolve_subpath(snapshot, subpath)?,
            None => (0u32..).zip(&snapshot.roots).map(|(root, _)| (root, Vec::new())).collect(),
        };
        let in_place = matches!(options.target, Destination::InPlace);
        let last_names: Vec<Vec<u8>> = wanted.iter().map(|(root, path)| last_name(snapshot, *root, path)).collect();
        let parts = wanted
            .iter()
            .zip(&last_names)
            .map(|((root, path), last)| {
                let whole = whole_path(snapshot, *root, path);
                let is_alone = wanted.len() == 1;
                let clashes = last_names.iter().filter(|other| *other == last).count() > 1;
                let (as_directory, as_file) = match () {
                    () if in_place => (whole.clone(), whole),
                    () if is_alone => (Vec::new(), last.clone()),
                    () if clashes || last.is_empty() => (whole.clone(), whole),
                    () => (last.clone(), last.clone()),
                };
                Part { root: *root, path: path.clone(), as_directory, as_file }
            })
            .collect();
        Ok(Selection {
            repo,
            snapshot,
            parts,
            includes: Includes::new(&options.includes)?,
            excludes: Excludes::new(&options.excludes, &[])?,
            fetch: Box::new(|id| repo.read_chunk(id)),
        })
    }

    /// The selected entries with their paths relative to the target, in order. A part of the list of files that cannot
    /// be read comes as an error, and the walk goes on.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<(Vec<u8>, Entry)>> + '_ {
        // With --include, directories come only when something in them does.
        let mut pending: Vec<(Vec<u8>, Entry)> = Vec::new();
        let mut excluded: Option<(u32, Vec<u8>)> = None;
        let mut ready = std::collections::VecDeque::new();
        let places = self.parts.iter().map(|part| (part.root, part.path.clone())).collect();
        let mut entries = self.repo.entries_within(self.fetch.as_ref(), self.snapshot.tree, places);
        std::iter::from_fn(move || {
            loop {
                if let Some(item) = ready.pop_front() {
                    return Some(Ok(item));
                }
                let entry = match entries.next()? {
                    Ok(entry) => entry,
                    Err(error) => return Some(Err(error)),
                };
                let Some(target) = self.target_path(&entry) else { continue };
                let is_inside =
                    |(root, folder): &(u32, Vec<u8>)| *root == entry.root && is_beneath(&entry.path, folder);
                if excluded.as_ref().is_some_and(is_inside) {
                    continue;
                }
                if self.excludes.excludes(&entry.path, entry.is_directory()) {
                    excluded = Some((entry.root, entry.path.clone()));
                    continue;
                }
                if self.includes.is_everything() {
                    return Some(Ok((target, entry)));
                }
                pending.retain(|(path, _)| is_beneath(&target, path) && *path != target);
                if self.includes.includes(&entry.path, entry.is_directory()) {
                    ready.extend(pending.drain(..));
                    ready.push_back((target, entry));
                } else if entry.is_directory() {
                    pending.push((target, entry));
                }
            }
        })
    }

    fn target_path(&self, entry: &Entry) -> Option<Vec<u8>> {
        let part = self.parts.iter().find(|p| p.root == entry.root && is_beneath(&entry.path, &p.path))?;
        let rest = entry.path.get(part.path.len()..)?;
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        Some(match (rest.is_empty(), entry.is_directory()) {
            (true, false) => part.as_file.clone(),
            (true, true) => part.as_directory.clone(),
            (false, _) if part.as_directory.is_empty() => rest.to_vec(),
            (false, _) => [&part.as_directory, b"/".as_slice(), rest].concat(),
        })
    }

    /// Brings the chunks of metadata.
    pub(super) fn fetch(&self) -> &(dyn Fn(ChunkId) -> Result<Vec<u8>> + Send + Sync) {
        self.fetch.as_ref()
    }

    /// Directories of the target above which nothing is restored: the places where parts begin.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|p| [p.as_directory.as_slice(), p.as_file.as_slice()])
    }
}

/// The absolute path of a part without its leading `/`, cleaned of empty components.
fn whole_path(snapshot: &Snapshot, root: u32, path: &[u8]) -> Vec<u8> {
    let root = usize::try_from(root).ok().and_then(|n| snapshot.roots.get(n)).map_or(&[][..], Vec::as_slice);
    let components = root.split(|b| *b == b'/').chain(path.split(|b| *b == b'/'));
    components.filter(|c| !c.is_empty() && *c != b"." && *c != b"..").collect::<Vec<_>>().join(&b'/')
}

fn last_name(snapshot: &Snapshot, root: u32, path: &[u8]) -> Vec<u8> {
    let whole = whole_path(snapshot, root, path);
    whole.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec()
}
