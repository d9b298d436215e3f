//! Going straight to a place in the list of files.
//!
//! Entries are in order, and nodes lead down to any leaf, so the first entries of some leaves tell where a place lies: about a
//! dozen chunks in a list of a million entries. Nodes carry no paths; that is all that there is to go by.
//!
//! What is given out is what walking the whole list would give. Where a part cannot be read on the way down, the list is
//! walked from its beginning, so that what is lost is told as always.

use super::{Children, Entries, FetchChunk};
use crate::error::{Error, Result};
use crate::paths::{compare_paths, is_beneath};
use crate::repo::entry::{self, Entry};
use crate::repo::stream::{self, Child, StreamRef};
use std::cmp::Ordering;

/// A place in the list: a root, and a path relative to it.
pub type Place = (u32, Vec<u8>);

/// The entries at a place and beneath it, in order, with errors as [`Entries`] has them.
pub struct Within<'a> {
    entries: Option<Entries<'a>>,
    place: Place,
}

impl<'a> Within<'a> {
    /// What of the tree `stream` is at `place` or beneath it.
    pub fn new(fetch: &'a FetchChunk<'a>, stream: Option<StreamRef>, place: Place) -> Within<'a> {
        let mut entries = Entries::new(fetch, stream);
        let is_beginning = place.0 == 0 && place.1.is_empty();
        if let Some(stream) = stream.filter(|_| !is_beginning)
            && let (Ok(ahead), Some(leaves)) = (descend(fetch, stream, &place), &mut entries.leaves)
        {
            leaves.ahead = ahead;
        }
        Within { entries: Some(entries), place }
    }
}

impl Iterator for Within<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let entry = match self.entries.as_mut()?.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            if entry.root == self.place.0 && is_beneath(&entry.path, &self.place.1) {
                return Some(Ok(entry));
            }
            if compare(&entry, &self.place) == Ordering::Greater {
                self.entries = None;
                return None;
            }
        }
    }
}

fn compare(entry: &Entry, (root, path): &Place) -> Ordering {
    entry.root.cmp(root).then_with(|| compare_paths(&entry.path, path))
}

/// What is ahead of a walk that begins with the leaf in which `place` lies, or would lie.
fn descend(fetch: &FetchChunk<'_>, stream: StreamRef, place: &Place) -> Result<Vec<(Child, u8)>> {
    let mut ahead = Vec::new();
    let mut at = (Child { id: stream.root, bytes: stream.bytes }, stream.depth);
    while let (node, depth @ 1..) = at {
        let children = Children::open(fetch, node)?;
        // The last child that begins at the place or before it; the first, if none does.
        let (mut from, mut to) = (0, children.len());
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            let first = first_entry(fetch, children[middle], depth - 1)?;
            if compare(&first, place) == Ordering::Greater { to = middle } else { from = middle }
        }
        ahead.extend(children.iter().skip(from + 1).rev().map(|child| (*child, depth - 1)));
        at = (*children.get(from).ok_or_else(|| Error::damaged("a node without children"))?, depth - 1);
    }
    ahead.push(at);
    Ok(ahead)
}

fn first_entry(fetch: &FetchChunk<'_>, mut child: Child, depth: u8) -> Result<Entry> {
    for _ in 0..depth {
        child = *Children::open(fetch, child)?.first().ok_or_else(|| Error::damaged("a node without children"))?;
    }
    let leaf = fetch(child.id)?;
    if leaf.len() as u64 != child.bytes {
        return Err(Error::damaged(format!("leaf {} has another length than its node says", child.id)));
    }
    entry::take(&mut leaf.as_slice())
}

impl Children<'_> {
    /// The children that a node names, which cover what it should.
    pub(super) fn open(fetch: &FetchChunk<'_>, node: Child) -> Result<Vec<Child>> {
        let children = stream::parse_node(&fetch(node.id)?)?;
        let covered = children.iter().try_fold(0u64, |sum, child| sum.checked_add(child.bytes));
        if covered != Some(node.bytes) {
            return Err(Error::damaged(format!("node {} does not cover the {} bytes it should", node.id, node.bytes)));
        }
        Ok(children)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::stored;
    use super::*;
    use crate::ids::ChunkId;
    use crate::repo::entry::tests::file;
    use std::collections::{HashMap, HashSet};
    use std::sync::Mutex;

    /// Folders of files, in two roots, as a list and as chunks.
    fn tree(folders: usize, files: usize) -> (Vec<Entry>, StreamRef, HashMap<ChunkId, Vec<u8>>) {
        let mut list = Vec::new();
        for root in 0..2 {
            list.push(Entry { root, ..file("", 0) });
            for folder in 0..folders {
                // Such that the order of components is not that of bytes.
                for name in [format!("f{folder:03}"), format!("f{folder:03}-")] {
                    list.push(Entry { root, ..file(&name, 0) });
                    list.extend((0..files).map(|n| Entry { root, ..file(&format!("{name}/{n:05}"), 1) }));
                }
            }
        }
        list.sort_by(|a, b| compare(a, &(b.root, b.path.clone())));
        let (tree, kept) = stored(&list);
        (list, tree.expect("entries"), kept)
    }

    fn beneath(list: &[Entry], place: &Place) -> Vec<Vec<u8>> {
        let is_there = |entry: &&Entry| entry.root == place.0 && is_beneath(&entry.path, &place.1);
        list.iter().filter(is_there).map(|entry| entry.path.clone()).collect()
    }

    fn places(list: &[Entry]) -> Vec<Place> {
        let mut places: Vec<Place> = list.iter().step_by(97).map(|e| (e.root, e.path.clone())).collect();
        places.extend(
            ["", "f000", "f000/", "f001-", "f001/00000", "f9", "a", "z", "f000/00003/deeper"]
                .iter()
                .flat_map(|path| [0, 1, 2].map(|root| (root, path.as_bytes().to_vec()))),
        );
        places
    }

    #[test]
    fn what_is_beneath_a_place_is_what_the_whole_list_has_there() {
        for (folders, files) in [(1, 1), (7, 300), (30, 700)] {
            let (list, tree, kept) = tree(folders, files);
            let fetch = |id: ChunkId| Ok(kept[&id].clone());
            for place in places(&list) {
                let found: Vec<_> =
                    Within::new(&fetch, Some(tree), place.clone()).map(|e| e.expect("sound").path).collect();
                assert_eq!(found, beneath(&list, &place), "{place:?} in {folders} folders of {files}");
            }
        }
    }

    #[test]
    fn a_place_in_a_long_list_costs_a_few_chunks() {
        let (list, tree, kept) = tree(40, 700);
        assert!(list.len() > 100_000 && kept.len() > 200, "{} entries in {} chunks", list.len(), kept.len());
        let read = Mutex::new(Vec::new());
        let fetch = |id: ChunkId| {
            read.lock().expect("whole").push(id);
            Ok(kept[&id].clone())
        };
        let place = (1, b"f017/00350".to_vec());
        assert_eq!(Within::new(&fetch, Some(tree), place).count(), 1);
        let read = read.into_inner().expect("whole");
        assert!(read.len() <= 24, "{} chunks of {} were read", read.len(), kept.len());
    }

    #[test]
    fn whatever_is_lost_nothing_else_is_missing_and_the_loss_is_told() {
        let (list, tree, kept) = tree(3, 250);
        for lost in kept.keys() {
            let fetch = |id: ChunkId| match id == *lost {
                true => Err(Error::damaged("lost")),
                false => Ok(kept[&id].clone()),
            };
            let all: HashSet<(u32, Vec<u8>)> =
                Entries::new(&fetch, Some(tree)).flatten().map(|entry| (entry.root, entry.path)).collect();
            for place in places(&list).into_iter().step_by(5) {
                let (good, bad): (Vec<_>, Vec<_>) =
                    Within::new(&fetch, Some(tree), place.clone()).partition(Result::is_ok);
                let good: Vec<_> = good.into_iter().flatten().map(|entry| entry.path).collect();
                let whole = beneath(&list, &place);
                let left: Vec<_> =
                    whole.iter().filter(|path| all.contains(&(place.0, (*path).clone()))).cloned().collect();
                assert_eq!(good, left, "{place:?}");
                assert!(left == whole || !bad.is_empty(), "{place:?} lacks entries and nothing is said");
            }
        }
    }
}
