//! What differs between two snapshots, path by path.
//!
//! The two lists of entries are read side by side in the order of paths, so memory stays bounded. Content is compared by
//! its name, not read. Snapshots of the same roots are compared below each root, others by absolute paths.

use crate::error::{Error, Result};
use crate::metadata::{FileKind, Metadata};
use crate::paths::{compare_paths, is_beneath};
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::tree::Entries;
use crate::repo::{Repo, paths};
use std::cmp::Ordering;
use std::iter::Peekable;

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only in the second snapshot.
    Added,
    /// Only in the first.
    Removed,
    /// Other content, another link target or another device number.
    Modified,
    /// The same content with other metadata: mode, owner, time of modification, extended attributes.
    MetadataOnly,
    /// A file in one, say, and a directory in the other.
    TypeChanged,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The absolute path; for parts of snapshots, the path below them.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
    /// The entry in the first snapshot.
    pub before: Option<Entry>,
    /// The entry in the second.
    pub after: Option<Entry>,
}

/// The differences in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffReport {
    /// Entries only in the second snapshot.
    pub added: u64,
    /// Entries only in the first.
    pub removed: u64,
    /// Entries whose content or type changed.
    pub modified: u64,
    /// Entries of which only metadata changed.
    pub metadata_only: u64,
    /// Entries that are the same.
    pub unchanged: u64,
    /// Bytes of the files that were added or modified, as they are in the second snapshot.
    pub bytes_added: u64,
    /// Bytes of the files that were removed or modified, as they were in the first.
    pub bytes_removed: u64,
}

/// Calls `visit` for every difference between `a` and `b`, in the order of paths.
///
/// [`Kind::Damaged`](crate::error::Kind::Damaged) if a part of either list cannot be read: what is in it would be missed.
pub fn diff(
    repo: &Repo,
    a: &Snapshot,
    b: &Snapshot,
    visit: &mut dyn FnMut(&Change) -> Result<()>,
) -> Result<DiffReport> {
    repo.keys().require(PackKind::Tree)?;
    let mut differ = Differ { a, b, is_relative: false, report: DiffReport::default(), visit };
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    if a.roots != b.roots {
        let before = AbsoluteOrder::new(repo, a, &fetch);
        let after = AbsoluteOrder::new(repo, b, &fetch);
        differ.merge(before, after, |(x, _), (y, _)| compare_paths(x, y), |(_, entry)| entry)?;
    } else if a.tree == b.tree {
        differ.report.unchanged = a.totals.files + a.totals.directories + a.totals.others;
    } else {
        let (before, after) = (repo.entries(&fetch, a.tree), repo.entries(&fetch, b.tree));
        differ.merge(before, after, Entry::compare, |entry| entry)?;
    }
    Ok(differ.report)
}

/// Like [`diff`] for a part of each snapshot: what lies in the one directory is compared with what lies in the other, and
/// paths are relative to them. A side without a part is its single backed-up directory.
///
/// [`Kind::NotFound`](crate::error::Kind::NotFound) if nothing is there.
pub fn diff_parts(
    repo: &Repo,
    a: (&Snapshot, Option<&[u8]>),
    b: (&Snapshot, Option<&[u8]>),
    visit: &mut dyn FnMut(&Change) -> Result<()>,
) -> Result<DiffReport> {
    repo.keys().require(PackKind::Tree)?;
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let entries = |(snapshot, part): (&Snapshot, Option<&[u8]>)| {
        let part = part.unwrap_or_default();
        let top = paths::find_entry(repo, snapshot, part)?;
        let bytes = top.path.len();
        let is_in = move |entry: &Entry| entry.root == top.root && is_beneath(&entry.path, &top.path);
        Ok::<_, Error>((bytes, is_in))
    };
    let (a_bytes, is_in_a) = entries(a)?;
    let (b_bytes, is_in_b) = entries(b)?;
    // Entries of the other side are found by the path below the part.
    let side = |snapshot: &Snapshot, bytes: usize, is_in: Box<dyn Fn(&Entry) -> bool>| {
        let wanted = move |item: &Result<Entry>| item.as_ref().map_or(true, &is_in);
        repo.entries(&fetch, snapshot.tree).filter(wanted).map(move |item| item.map(|entry| below(entry, bytes)))
    };
    let before = side(a.0, a_bytes, Box::new(is_in_a));
    let after = side(b.0, b_bytes, Box::new(is_in_b));
    let mut differ = Differ { a: a.0, b: b.0, is_relative: true, report: DiffReport::default(), visit };
    differ.merge(before, after, |x, y| compare_paths(&x.path, &y.path), |entry| entry)?;
    Ok(differ.report)
}

/// The entry with its path below a directory whose own path has so many bytes.
fn below(mut entry: Entry, bytes: usize) -> Entry {
    let rest = entry.path.split_off(bytes.min(entry.path.len()));
    entry.path = rest.strip_prefix(b"/").map(<[u8]>::to_vec).unwrap_or(rest);
    entry
}

struct Differ<'a> {
    a: &'a Snapshot,
    b: &'a Snapshot,
    /// Paths are told as they are, not as they lay in the source.
    is_relative: bool,
    report: DiffReport,
    visit: &'a mut dyn FnMut(&Change) -> Result<()>,
}

impl Differ<'_> {
    fn merge<T>(
        &mut self,
        before: impl Iterator<Item = Result<T>>,
        after: impl Iterator<Item = Result<T>>,
        compare: impl Fn(&T, &T) -> Ordering,
        entry: impl Fn(T) -> Entry,
    ) -> Result<()> {
        let (mut before, mut after) = (before.peekable(), after.peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => return Ok(()),
                (Some(Ok(x)), Some(Ok(y))) => compare(x, y),
                (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
                (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
            };
            let x = if order.is_le() { before.next().transpose()?.map(&entry) } else { None };
            let y = if order.is_ge() { after.next().transpose()?.map(&entry) } else { None };
            self.compare(x, y)?;
        }
    }

    fn compare(&mut self, before: Option<Entry>, after: Option<Entry>) -> Result<()> {
        let (snapshot, known) = if after.is_some() { (self.b, &after) } else { (self.a, &before) };
        let path_of = |entry: &Entry| match (self.is_relative, entry.path.is_empty()) {
            (false, _) => paths::absolute_path(snapshot, entry),
            (true, true) => b".".to_vec(),
            (true, false) => entry.path.clone(),
        };
        let path = known.as_ref().map(path_of).unwrap_or_default();
        let Some(kind) = kind_of(before.as_ref(), after.as_ref()) else {
            self.report.unchanged += 1;
            return Ok(());
        };
        match kind {
            ChangeKind::Added => self.report.added += 1,
            ChangeKind::Removed => self.report.removed += 1,
            ChangeKind::Modified | ChangeKind::TypeChanged => self.report.modified += 1,
            ChangeKind::MetadataOnly => self.report.metadata_only += 1,
        }
        if kind != ChangeKind::MetadataOnly {
            self.report.bytes_removed += before.as_ref().map_or(0, |e| e.metadata.size);
            self.report.bytes_added += after.as_ref().map_or(0, |e| e.metadata.size);
        }
        (self.visit)(&Change { path, kind, before, after })
    }
}

fn kind_of(before: Option<&Entry>, after: Option<&Entry>) -> Option<ChangeKind> {
    let (before, after) = match (before, after) {
        (Some(before), Some(after)) => (before, after),
        (None, Some(_)) => return Some(ChangeKind::Added),
        (Some(_), None) => return Some(ChangeKind::Removed),
        (None, None) => return None,
    };
    let (old, new) = (&before.metadata, &after.metadata);
    if std::mem::discriminant::<FileKind>(&old.kind) != std::mem::discriminant(&new.kind) {
        Some(ChangeKind::TypeChanged)
    } else if before.content != after.content || old.kind != new.kind {
        Some(ChangeKind::Modified)
    } else if restored_metadata(old) != restored_metadata(new) {
        Some(ChangeKind::MetadataOnly)
    } else {
        None
    }
}

/// What a restore would bring back, as opposed to what only helps to notice changes.
fn restored_metadata(metadata: &Metadata) -> impl PartialEq + '_ {
    (metadata.mode, metadata.uid, metadata.gid, metadata.mtime, &metadata.xattrs)
}

/// The entries of a snapshot in the order of their absolute paths: its roots merged.
///
/// Roots are sorted as bytes and may contain one another, so one walk over all of them need not be in this order. A path
/// that two roots hold comes once.
struct AbsoluteOrder<'a> {
    snapshot: &'a Snapshot,
    roots: Vec<Peekable<Box<dyn Iterator<Item = Result<Entry>> + 'a>>>,
    last: Option<Vec<u8>>,
}

impl<'a> AbsoluteOrder<'a> {
    fn new(repo: &Repo, snapshot: &'a Snapshot, fetch: &'a crate::repo::tree::FetchChunk<'a>) -> Self {
        let of_root = |number: u32| {
            let entries: Entries<'a> = repo.entries(fetch, snapshot.tree);
            let wanted = move |entry: &Result<Entry>| entry.as_ref().map_or(true, |e| e.root == number);
            let boxed: Box<dyn Iterator<Item = Result<Entry>> + 'a> = Box::new(entries.filter(wanted));
            boxed.peekable()
        };
        let roots = (0u32..).zip(&snapshot.roots).map(|(number, _)| of_root(number)).collect();
        AbsoluteOrder { snapshot, roots, last: None }
    }
}

impl Iterator for AbsoluteOrder<'_> {
    type Item = Result<(Vec<u8>, Entry)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut first: Option<(usize, Vec<u8>)> = None;
            for (number, root) in self.roots.iter_mut().enumerate() {
                let path = match root.peek() {
                    None => continue,
                    Some(Ok(entry)) => paths::absolute_path(self.snapshot, entry),
                    Some(Err(_)) => return root.next().map(|failed| failed.map(|entry| (Vec::new(), entry))),
                };
                if first.as_ref().is_none_or(|(_, best)| compare_paths(&path, best).is_lt()) {
                    first = Some((number, path));
                }
            }
            let (number, path) = first?;
            let entry = self.roots.get_mut(number)?.next()?;
            if self.last.as_ref() == Some(&path) {
                continue;
            }
            self.last = Some(path.clone());
            return Some(entry.map(|entry| (path, entry)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node, noise};

    fn differences(repo: &Repo, a: &Snapshot, b: &Snapshot) -> (Vec<(String, ChangeKind)>, DiffReport) {
        let mut found = Vec::new();
        let report = diff(repo, a, b, &mut |change| {
            found.push((String::from_utf8_lossy(&change.path).into_owned(), change.kind));
            Ok(())
        });
        (found, report.expect("sound"))
    }

    fn file(seed: u64) -> Node {
        Node::File(noise(seed, 9000))
    }

    #[test]
    fn every_kind_of_change_is_told_apart() {
        let repo = test_support::open(&test_support::storage());
        let a = test_support::save(
            &repo,
            10,
            &[("gone", file(1)), ("kept", file(2)), ("link", Node::Link("x")), ("mod", file(3)), ("type", file(4))],
        );
        let b = test_support::save(
            &repo,
            20,
            &[
                ("kept", file(2)),
                ("link", Node::Link("y")),
                ("mod", file(5)),
                ("new", file(6)),
                ("type", Node::Directory),
            ],
        );
        let (found, report) = differences(&repo, &a, &b);
        let wanted = [
            ("/data/gone", ChangeKind::Removed),
            ("/data/link", ChangeKind::Modified),
            ("/data/mod", ChangeKind::Modified),
            ("/data/new", ChangeKind::Added),
            ("/data/type", ChangeKind::TypeChanged),
        ];
        assert_eq!(found, wanted.map(|(path, kind)| (path.to_owned(), kind)));
        let expected = DiffReport {
            added: 1,
            removed: 1,
            modified: 3,
            metadata_only: 0,
            unchanged: 2,
            bytes_added: 18_000,
            bytes_removed: 27_000,
        };
        assert_eq!(report, expected);
        assert_eq!(differences(&repo, &a, &a), (vec![], DiffReport { unchanged: 6, ..DiffReport::default() }));
    }

    #[test]
    fn snapshots_of_other_roots_are_compared_by_absolute_path() {
        let repo = test_support::open(&test_support::storage());
        let a = test_support::save_roots(
            &repo,
            10,
            &[("/d", &[("e-f", file(1)), ("e/x", file(2)), ("e", Node::Directory)] as &[_])],
        );
        // Sorted as bytes, the file "e-f" comes before what is in "e".
        let b = test_support::save_roots(
            &repo,
            20,
            &[("/d/e-f", &[("", file(1))] as &[_]), ("/d/e", &[("x", file(2)), ("y", file(3))] as &[_])],
        );
        let (found, report) = differences(&repo, &a, &b);
        assert_eq!(found, [("/d".to_owned(), ChangeKind::Removed), ("/d/e/y".to_owned(), ChangeKind::Added)]);
        assert_eq!(report.unchanged, 3);
    }
}
