//! Adds, removes and sets the tags of snapshots.
//!
//! A change is a new numbered record, created exclusively: of two hosts that change one snapshot at once, the second
//! sees what the first has done and changes that.

use crate::error::{Error, Kind, Result};
use crate::events::Silent;
use crate::ids::SnapshotId;
use crate::repo::{Repo, names, records};
use crate::storage::Published;
use std::collections::BTreeSet;

/// How often a change is tried again because another host was faster.
const ATTEMPTS_MAX: u32 = 100;

/// The longest tag in bytes.
const TAG_BYTES_MAX: usize = 128;

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TagReport {
    /// Snapshots whose tags are others now.
    pub changed: u64,
}

/// Gives the snapshots `ids` the tags of `set`, if given, or those they have; then adds and removes.
///
/// [`Kind::Usage`] if a tag has other characters than `[A-Za-z0-9._-]`; [`Kind::NotFound`] if a snapshot is not there.
/// Both are found before anything is changed.
pub fn tag(
    repo: &Repo,
    ids: &[SnapshotId],
    add: &[String],
    remove: &[String],
    set: Option<&[String]>,
) -> Result<TagReport> {
    repo.keys().require_adding()?;
    add.iter().chain(remove).chain(set.unwrap_or_default()).try_for_each(|tag| check_tag(tag))?;
    for &id in ids {
        if repo.snapshot(id).is_none() {
            return Err(
                Error::new(Kind::NotFound, format!("no snapshot {id}")).with_hint("`ckpt snapshots` lists them")
            );
        }
    }
    let wanted = |now: &BTreeSet<String>| -> BTreeSet<String> {
        let mut tags = set.map_or_else(|| now.clone(), |set| set.iter().cloned().collect());
        tags.extend(add.iter().cloned());
        tags.retain(|tag| !remove.contains(tag));
        tags
    };
    let mut report = TagReport::default();
    for &id in ids {
        report.changed += u64::from(change(repo, id, &wanted)?);
    }
    if report.changed > 0 {
        repo.refresh(&Silent)?;
    }
    Ok(report)
}

/// An error unless `tag` is one: selectors and files name tags, so they are plain words.
pub fn check_tag(tag: &str) -> Result<()> {
    let is_sound = !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if is_sound {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{tag:?} cannot be a tag"))
        .with_hint(format!("a tag has up to {TAG_BYTES_MAX} letters, digits, dots, underscores and hyphens")))
}

fn change(repo: &Repo, id: SnapshotId, wanted: &dyn Fn(&BTreeSet<String>) -> BTreeSet<String>) -> Result<bool> {
    for _ in 0..ATTEMPTS_MAX {
        let last = last_change(repo, id)?;
        let now = match last {
            Some(change) => records::read_tags(repo, id, change)?,
            None => repo.snapshot(id).map(|s| s.tags).unwrap_or_default(),
        };
        let tags = wanted(&now);
        if tags == now {
            return Ok(false);
        }
        let next = last.map_or(Some(1), |change| change.checked_add(1));
        let next = next.ok_or_else(|| Error::damaged(format!("the tags of {id} have the last number there is")))?;
        if records::create_tags(repo, id, next, &tags)? == Published::Created {
            return Ok(true);
        }
    }
    Err(Error::new(Kind::Busy, format!("the tags of {id} are changed by others all the time")))
}

fn last_change(repo: &Repo, id: SnapshotId) -> Result<Option<u64>> {
    let listed = repo.storage().list(names::TAGS)?;
    Ok(listed.iter().filter_map(|l| names::tags_change(&l.name)).filter(|(of, _)| *of == id).map(|(_, n)| n).max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, Node};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn tags_of(repo: &Repo, id: SnapshotId) -> Vec<String> {
        repo.snapshot(id).expect("live").tags.into_iter().collect()
    }

    #[test]
    fn tags_are_added_removed_and_set() {
        let repo = test_support::open(&test_support::storage());
        let id = test_support::save(&repo, 10, &[("a", Node::Directory)]).id;
        let change = |add: &[&str], remove: &[&str], set: Option<&[&str]>| {
            let set = set.map(words);
            tag(&repo, &[id], &words(add), &words(remove), set.as_deref()).expect("changes").changed
        };
        assert_eq!(change(&["best", "b"], &[], None), 1);
        assert_eq!(change(&["best"], &["c"], None), 0);
        assert_eq!(change(&["c"], &["b"], None), 1);
        assert_eq!(tags_of(&repo, id), ["best", "c"]);
        assert_eq!(change(&[], &[], Some(&["only"])), 1);
        assert_eq!(tags_of(&repo, id), ["only"]);
        assert_eq!(change(&[], &[], Some(&[])), 1);
        assert_eq!(tags_of(&repo, id), [""; 0]);
    }

    #[test]
    fn what_is_no_tag_or_no_snapshot_is_refused_before_anything_changes() {
        let repo = test_support::open(&test_support::storage());
        let id = test_support::save(&repo, 10, &[("a", Node::Directory)]).id;
        for wrong in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
            let error = tag(&repo, &[id], &words(&["good", wrong]), &[], None).expect_err(wrong);
            assert_eq!(error.kind(), Kind::Usage);
        }
        let absent = SnapshotId::from_bytes([9; 16]);
        let error = tag(&repo, &[id, absent], &words(&["good"]), &[], None).expect_err("absent");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(tags_of(&repo, id), [""; 0]);
    }

    #[test]
    fn of_racing_changes_none_is_lost() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let id = test_support::save(&repo, 10, &[("a", Node::Directory)]).id;
        std::thread::scope(|scope| {
            for n in 0..8 {
                let repo = test_support::open(&storage.another_host());
                scope.spawn(move || {
                    for m in 0..4 {
                        tag(&repo, &[id], &[format!("t{n}-{m}")], &[], None).expect("tags");
                    }
                });
            }
        });
        repo.refresh(&Silent).expect("refreshes");
        assert_eq!(tags_of(&repo, id).len(), 32);
    }
}
