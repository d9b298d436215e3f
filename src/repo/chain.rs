//! Reading chunks that are coded against others: their bases are read first, and the bases of those.
//!
//! Every base is compared with its id before anything is decoded against it, so a damaged one is noticed where it is and
//! another home of it is tried. What a forged repository can ask for is bounded: the depth, the bytes of the bases that
//! are held at once, and the frames that one read decodes. A chunk that would need itself is refused.

use super::Repo;
use super::chunks::{slice_of, unreadable, verified_slice};
use super::index::Home;
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;
use crate::sabotage::is_planted;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The most chunks that need one another in a row. Writers stay at a few.
pub const DEPTH_MAX: usize = 64;

/// The most bytes that the bases of one frame have together.
pub const BASE_BYTES_MAX: u64 = 1 << 26;

/// The most bytes of bases that one read holds at once.
const HELD_BYTES_MAX: u64 = 1 << 28;

/// The most frames that one read decodes: far more than any chain of a writer, since what was decoded is kept.
const FRAMES_MAX: u32 = 4096;

/// Bounds of what a [`BaseCache`] keeps.
const KEPT_BYTES_MAX: usize = 32 << 20;
const KEPT_COUNT_MAX: usize = 512;

/// A few contents of chunks that others are coded against, verified; the one used last at the end.
#[derive(Default)]
pub(super) struct BaseCache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    contents: VecDeque<(ChunkId, Arc<Vec<u8>>)>,
}

impl BaseCache {
    fn get(&self, id: ChunkId) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.contents.iter().position(|(known, _)| *known == id)?;
        let found = kept.contents.remove(at)?;
        let content = Arc::clone(&found.1);
        kept.contents.push_back(found);
        Some(content)
    }

    fn put(&self, id: ChunkId, content: &Arc<Vec<u8>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contents.iter().any(|(known, _)| *known == id) {
            return;
        }
        kept.bytes += content.len();
        kept.contents.push_back((id, Arc::clone(content)));
        while kept.bytes > KEPT_BYTES_MAX || kept.contents.len() > KEPT_COUNT_MAX {
            let Some((_, gone)) = kept.contents.pop_front() else { break };
            kept.bytes -= gone.len();
        }
    }
}

/// Why a chunk could not be read at one of its homes.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) error: Error,
    /// True if something else that it needs could not be read: the pack at hand is not to blame.
    pub(super) is_of_base: bool,
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread { error, is_of_base: false }
    }
}

/// Reads at the first home that can be read; if none can, at the first whose pack can be mended by its parity.
pub(super) fn at_any_home<T>(
    repo: &Repo,
    homes: &[Home],
    failure: &mut Option<Error>,
    mut read: impl FnMut(&Home) -> std::result::Result<T, Unread>,
) -> Option<T> {
    let mut at_fault: Vec<&Home> = Vec::new();
    for home in homes {
        match read(home) {
            Ok(found) => return Some(found),
            Err(Unread { error, is_of_base }) => {
                let is_unjudged = says_more(&error);
                if !failure.as_ref().is_some_and(says_more) {
                    *failure = Some(error);
                }
                at_fault.extend((!is_of_base && !is_unjudged).then_some(home));
            }
        }
    }
    at_fault.into_iter().filter(|home| repo.mend_in_memory(home.pack)).find_map(|home| {
        let again = read(home);
        let unless_known = |unread: Unread| match &failure {
            Some(known) if says_more(known) => {}
            _ => *failure = Some(unread.error),
        };
        again.map_err(unless_known).ok()
    })
}

/// True if the home may well be sound, which is more than what is wrong with others: another key would read it, or this
/// run could not go on.
fn says_more(error: &Error) -> bool {
    error.kind() == Kind::WrongKey || error.is_about_this_run()
}

/// One read: what it has asked for so far, and what it may still ask for.
pub(super) struct Chain<'a> {
    repo: &'a Repo,
    bases: &'a BaseCache,
    /// The chunks being read, each needed by the one before it.
    reading: Vec<ChunkId>,
    held_bytes: u64,
    frames_left: u32,
}

impl<'a> Chain<'a> {
    pub(super) fn new(repo: &'a Repo, bases: &'a BaseCache) -> Chain<'a> {
        Chain { repo, bases, reading: Vec::new(), held_bytes: 0, frames_left: FRAMES_MAX }
    }

    /// The content of the frame that holds `id` at `home`, not compared with the id yet.
    pub(super) fn frame(&mut self, id: ChunkId, home: &Home) -> std::result::Result<Vec<u8>, Unread> {
        self.frames_left = self.frames_left.checked_sub(1).ok_or_else(|| {
            Error::damaged(format!("chunk {} needs more than {FRAMES_MAX} others", self.outermost(id).short()))
        })?;
        let mut content = Vec::with_capacity(usize::try_from(home.frame_raw).unwrap_or(0));
        if home.base_count == 0 {
            let frame = self.repo.read_stored(home)?;
            self.repo.with_decoder(|decoder| decoder.decode(&frame, &mut content))?;
            return Ok(content);
        }
        let bases = self.repo.index().bases_at(&[(id, *home)])?.pop().unwrap_or_default();
        if bases.len() != usize::from(home.base_count) {
            let text = format!("the index cache does not know what chunk {} needs", id.short());
            return Err(Unread { error: Error::damaged(text), is_of_base: true });
        }
        let base = self.bases_of(id, &bases).map_err(|error| Unread { error, is_of_base: true })?;
        let frame = self.repo.read_stored(home)?;
        self.repo.with_decoder(|decoder| decoder.decode_against(&frame, &base, &mut content))?;
        Ok(content)
    }

    /// The contents of `bases`, one behind the other, for a frame that holds `id`.
    pub(super) fn bases_of(&mut self, id: ChunkId, bases: &[ChunkId]) -> Result<Arc<Vec<u8>>> {
        if self.reading.contains(&id) && !is_planted("rings-of-bases-followed") {
            return Err(Error::damaged(format!("chunk {} needs itself", id.short())));
        }
        if self.reading.len() >= DEPTH_MAX {
            let outermost = self.outermost(id).short();
            return Err(Error::damaged(format!("chunk {outermost} needs more than {DEPTH_MAX} others in a row")));
        }
        let held_before = self.held_bytes;
        self.reading.push(id);
        let read = self.gather(id, bases);
        self.reading.pop();
        self.held_bytes = held_before;
        read
    }

    fn outermost(&self, id: ChunkId) -> ChunkId {
        self.reading.first().copied().unwrap_or(id)
    }

    fn gather(&mut self, id: ChunkId, bases: &[ChunkId]) -> Result<Arc<Vec<u8>>> {
        let mut contents = Vec::with_capacity(bases.len());
        let mut bytes = 0u64;
        for &base in bases {
            let content = self.base(id, base)?;
            let more = u64::try_from(content.len()).unwrap_or(u64::MAX);
            bytes = bytes.saturating_add(more);
            self.held_bytes = self.held_bytes.saturating_add(more);
            if bytes > BASE_BYTES_MAX || self.held_bytes > HELD_BYTES_MAX {
                return Err(Error::damaged(format!("chunk {} needs more of others than any may", id.short())));
            }
            contents.push(content);
        }
        match contents.pop() {
            Some(only) if contents.is_empty() => Ok(only),
            Some(last) => {
                contents.push(last);
                Ok(Arc::new(contents.iter().flat_map(|content| content.iter().copied()).collect()))
            }
            None => Ok(Arc::default()),
        }
    }

    /// The verified content of a chunk that `id` needs, from any of its homes.
    fn base(&mut self, id: ChunkId, base: ChunkId) -> Result<Arc<Vec<u8>>> {
        if let Some(kept) = self.bases.get(base) {
            return Ok(kept);
        }
        let homes = self.repo.locate(&[base])?.pop().unwrap_or_default();
        let mut failure = None;
        let repo = self.repo;
        if let Some(content) = at_any_home(repo, &homes, &mut failure, |home| self.verified(base, home)) {
            let content = Arc::new(content);
            self.bases.put(base, &content);
            return Ok(content);
        }
        Err(match failure {
            None => Error::damaged(format!("chunk {} needs chunk {}, which is in no pack", id.short(), base.short())),
            Some(error) => {
                unreadable(base, Some(error)).while_doing(format!("chunk {} needs chunk {}", id.short(), base.short()))
            }
        })
    }

    /// The content of one chunk as this home has it, compared with its id.
    pub(super) fn verified(&mut self, id: ChunkId, home: &Home) -> std::result::Result<Vec<u8>, Unread> {
        let content = self.frame(id, home)?;
        if is_planted("base-not-compared") && self.frames_left < FRAMES_MAX - 1 {
            return Ok(slice_of(&content, home)?.to_vec());
        }
        let chunk = verified_slice(self.repo, &content, id, home)?;
        Ok(if chunk.len() == content.len() { content } else { chunk.to_vec() })
    }
}

/// True for errors that say nothing about what is stored.
pub(super) fn is_no_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::Denied | Kind::WrongKey) || error.is_about_this_run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::frame_cache::FrameCache;
    use crate::repo::names;
    use crate::repo::test_support::{self, noise, open, store, version};

    fn id(number: u64) -> ChunkId {
        ChunkId::of(&version(number))
    }

    /// Every way to read a chunk gives the same.
    fn read(repo: &Repo, id: ChunkId) -> Result<Vec<u8>> {
        let cached = FrameCache::new(repo);
        let (plain, first, second) = (repo.read_chunk(id), cached.read(id), cached.read(id));
        match (&plain, &first, &second) {
            (Ok(a), Ok(b), Ok(c)) => assert!(a == b && b == c),
            (Err(a), Err(b), Err(c)) => {
                assert!(a.kind() == b.kind() && a.to_string() == b.to_string() && b.kind() == c.kind())
            }
            _ => panic!("{plain:?}, {first:?}, {second:?}"),
        }
        plain
    }

    #[test]
    fn a_chunk_is_read_through_its_bases_and_theirs() {
        let storage = test_support::storage();
        let repo = open(&storage);
        store(&repo, &[(&version(0), &[]), (&version(1), &[&version(0)])]);
        store(&repo, &[(&version(2), &[&version(1), &version(0)])]);
        store(&repo, &[(&version(3), &[&version(2), &version(1), &version(0)])]);
        for number in 0..4 {
            assert_eq!(read(&repo, id(number)).expect("sound"), version(number));
        }
        let home = repo.locate(&[id(3)]).expect("known")[0][0];
        assert_eq!(home.base_count, 3);
        assert_eq!(repo.read_frame(id(3), &home).expect("sound"), version(3));
        // A run whose index knows only the last pack finds the others.
        let known: Vec<_> = repo.index().packs().expect("known").iter().map(|p| p.id).collect();
        repo.index()
            .remove_packs(&known.into_iter().filter(|&pack| pack != home.pack).collect::<Vec<_>>())
            .expect("ok");
        assert_eq!(repo.read_chunk(id(3)).expect("sound"), version(3));
    }

    #[test]
    fn a_base_that_is_in_no_pack_is_named() {
        let repo = open(&test_support::storage());
        store(&repo, &[(&version(1), &[&version(0)]), (&version(2), &[&version(1)])]);
        let error = read(&repo, id(1)).expect_err("no base");
        let missing = format!("chunk {} needs chunk {}, which is in no pack", id(1).short(), id(0).short());
        assert_eq!((error.kind(), error.to_string()), (Kind::Damaged, missing.clone()));
        let error = read(&repo, id(2)).expect_err("no base").to_string();
        assert_eq!(error, format!("chunk {} needs chunk {}: {missing}", id(2).short(), id(1).short()));
    }

    #[test]
    fn a_damaged_base_is_read_from_another_home() {
        let storage = test_support::storage();
        let repo = open(&storage);
        // Twice alone, in packs of their own, and once against another.
        let (first, second) = (store(&repo, &[(&version(0), &[])]), store(&repo, &[(&version(0), &[])]));
        store(&repo, &[(&version(9), &[])]);
        let third = store(&repo, &[(&version(0), &[&version(9)])]);
        store(&repo, &[(&version(1), &[&version(0)])]);
        let homes = repo.locate(&[id(0)]).expect("known").remove(0);
        assert_eq!(homes.iter().map(|h| h.base_count).collect::<Vec<_>>(), [0, 0, 1], "alone first");
        for pack in [first, second, third] {
            assert_eq!(read(&repo, id(1)).expect("a home is left"), version(1));
            assert!(storage.corrupt(&names::pack(pack.id).expect("a name"), 100, 1));
        }
        let error = read(&repo, id(1)).expect_err("no home is left").to_string();
        let front = format!("chunk {} needs chunk {}", id(1).short(), id(0).short());
        assert!(error.starts_with(&front), "{error}");
    }

    #[test]
    fn rings_and_endless_chains_are_refused_and_other_homes_still_serve() {
        let repo = open(&test_support::storage());
        store(&repo, &[(&version(1), &[&version(2)]), (&version(2), &[&version(3)])]);
        store(&repo, &[(&version(3), &[&version(1)])]);
        let error = read(&repo, id(1)).expect_err("a ring").to_string();
        assert!(error.contains(&format!("chunk {} needs itself", id(1).short())), "{error}");
        store(&repo, &[(&version(2), &[])]);
        for number in 1..4 {
            assert_eq!(read(&repo, id(number)).expect("a way out of the ring"), version(number));
        }
        let link = |number: usize| noise(5000 + number as u64, 100);
        store(&repo, &[(&link(0), &[])]);
        for number in 1..=DEPTH_MAX + 1 {
            store(&repo, &[(&link(number), &[&link(number - 1)])]);
        }
        assert_eq!(read(&repo, ChunkId::of(&link(DEPTH_MAX))).expect("just deep enough"), link(DEPTH_MAX));
        let error = read(&repo, ChunkId::of(&link(DEPTH_MAX + 1))).expect_err("too deep").to_string();
        assert!(error.contains("more than 64 others in a row"), "{error}");
    }

    #[test]
    fn chunks_that_all_need_one_another_end_after_bounded_work() {
        let repo = open(&test_support::storage());
        let all: Vec<Vec<u8>> = (0..9).map(|n| noise(7000 + n, 50)).collect();
        for chunk in &all {
            let others: Vec<&[u8]> = all.iter().filter(|c| *c != chunk).map(Vec::as_slice).collect();
            store(&repo, &[(chunk, &others)]);
        }
        assert_eq!(read(&repo, ChunkId::of(&all[0])).expect_err("no way in").kind(), Kind::Damaged);
        // A ladder: each needs both of the rung below, so without memory the work would double with each rung.
        let rung = |n: u64, side: u64| noise(8000 + 2 * n + side, 50);
        store(&repo, &[(&rung(0, 0), &[]), (&rung(0, 1), &[])]);
        for n in 1..60 {
            let below = [rung(n - 1, 0), rung(n - 1, 1)];
            store(&repo, &[(&rung(n, 0), &[&below[0], &below[1]]), (&rung(n, 1), &[&below[0], &below[1]])]);
        }
        assert_eq!(read(&repo, ChunkId::of(&rung(59, 1))).expect("sound"), rung(59, 1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let cache = BaseCache::default();
        for n in 0..40u64 {
            cache.put(ChunkId::of(&n.to_le_bytes()), &Arc::new(vec![0; 1 << 20]));
        }
        let kept = cache.kept.lock().expect("whole");
        assert!(kept.bytes <= KEPT_BYTES_MAX && kept.contents.len() == 32);
        assert_eq!(kept.bytes, kept.contents.iter().map(|(_, c)| c.len()).sum::<usize>());
    }
}
