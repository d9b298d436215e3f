//! What is at fault when chunks that others are coded against cannot be read.
//!
//! They may lie in packs that this run does not read, and may be coded against others themselves. Only looked into when
//! there is damage.

use super::found::{BadPacks, Found};
use crate::error::Result;
use crate::ids::ChunkId;
use crate::repo::frame_cache::FrameCache;
use crate::repo::{Repo, names};
use std::collections::{BTreeSet, HashSet};

/// The most chunks that are looked into: bounds the time when nearly everything is lost.
const LOOKED_INTO_MAX: usize = 100_000;

/// Adds the homes at fault for those of `unread` that cannot be read: homes that need nothing or only what can be read.
/// Returns those of `unread` that can be read by now: what stopped the reading of them has passed.
pub(crate) fn find_faults(
    frames: &FrameCache<'_>,
    repo: &Repo,
    unread: BTreeSet<ChunkId>,
    found: &mut Found,
    bad: &mut BadPacks,
) -> Result<HashSet<ChunkId>> {
    let mut readable = HashSet::new();
    let mut ahead: Vec<ChunkId> = unread.iter().copied().collect();
    let mut seen: HashSet<ChunkId> = ahead.iter().copied().collect();
    while let Some(id) = ahead.pop() {
        if can_be_read(frames, id)? {
            readable.extend(unread.contains(&id).then_some(id));
            continue;
        }
        for home in repo.index().homes(&[id])?.pop().unwrap_or_default() {
            let mut is_at_fault = true;
            for base in repo.index().bases_at(&[(id, home)])?.pop().unwrap_or_default() {
                if !can_be_read(frames, base)? {
                    is_at_fault = false;
                    if seen.len() < LOOKED_INTO_MAX && seen.insert(base) {
                        ahead.push(base);
                    }
                }
            }
            if is_at_fault {
                found.add(
                    names::pack(home.pack)?.as_str(),
                    "chunks that others are coded against cannot be read from it",
                );
                bad.add_chunks(home.pack, HashSet::from([id]));
            }
        }
    }
    Ok(readable)
}

/// An error only if it says nothing about the chunk.
fn can_be_read(frames: &FrameCache<'_>, id: ChunkId) -> Result<bool> {
    match frames.read(id) {
        Err(error) if error.is_about_this_run() => Err(error),
        read => Ok(read.is_ok()),
    }
}
