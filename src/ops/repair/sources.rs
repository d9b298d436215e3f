//! Lost chunks that files of this host still hold.
//!
//! A snapshot says where in which file a chunk was. If what stands there now has the chunk's id, it is the chunk, whatever else
//! became of the file; so neither its length nor its times have to be what they were. Only regular files are opened, and only the places
//! of lost chunks are read.

use super::Work;
use super::rescue::{Store, is_chunk, unreadable};
use crate::error::Result;
use crate::events::Event;
use crate::ids::ChunkId;
use crate::ops::examine::hits;
use crate::ops::examine::reachable::Live;
use crate::repo::content_reader::ContentReader;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::StreamRef;
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The most files that are looked at: bounds memory when nearly everything is lost.
const FILES_MAX: usize = 200_000;

/// The largest chunk there can be.
const CHUNK_BYTES_MAX: u64 = 1 << 24;

/// Stores those of `wanted` that are found, and takes them out of it.
pub(super) fn search(
    work: &mut Work<'_>,
    live: &Live,
    wanted: &mut BTreeSet<ChunkId>,
    store: &mut Store<'_>,
) -> Result<()> {
    let here = work.options.sources_of_host.as_deref();
    // Newest first: what was saved last is most likely to be there still.
    let snapshots: Vec<Snapshot> =
        live.snapshots.iter().rev().filter(|s| Some(s.host.as_str()) == here).cloned().collect();
    let mut files: BTreeMap<Vec<u8>, Vec<StreamRef>> = BTreeMap::new();
    let mut count = 0;
    let is_lost = |id: &ChunkId| wanted.contains(id);
    hits::find(work.repo, &snapshots, &is_lost, work.observer, &mut |hit| {
        let Some(content) = hit.entry.and_then(|entry| entry.content) else { return };
        if count < FILES_MAX {
            let contents = files.entry(hit.path()).or_default();
            if !contents.contains(&content) {
                contents.push(content);
                count += 1;
            }
        }
    })?;
    for (path, contents) in files {
        work.check_interrupt()?;
        let path = Path::new(OsStr::from_bytes(&path));
        let Some(file) = open(path) else { continue };
        for content in contents {
            if let Err(error) = take(work, &file, path, content, wanted, store)? {
                let text = format!("{} is of no use for repair: {error}", path.display());
                work.observer.on_event(&Event::Detail { text: &text });
            }
        }
    }
    Ok(())
}

/// The outer error ends the search, the inner one is of this file.
fn take(
    work: &mut Work<'_>,
    file: &File,
    path: &Path,
    content: StreamRef,
    wanted: &mut BTreeSet<ChunkId>,
    store: &mut Store<'_>,
) -> Result<Result<()>> {
    let frames = FrameCache::new(work.repo);
    let reader = match ContentReader::open(&frames, Some(content)) {
        Ok(reader) => reader,
        // Where its chunks lie is lost as well.
        Err(error) => return Ok(Err(error)),
    };
    for placed in reader.chunks() {
        if !wanted.contains(&placed.child.id) || placed.child.bytes > CHUNK_BYTES_MAX {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(placed.child.bytes).unwrap_or(0)];
        match file.read_exact_at(&mut bytes, placed.offset) {
            Ok(()) if is_chunk(work.repo, &bytes, placed.child.id) => {
                store.put(PackKind::Data, placed.child.id, &bytes)?;
                wanted.remove(&placed.child.id);
                work.report.chunks_from_sources += 1;
            }
            Ok(()) => {}
            Err(error) => return Ok(Err(unreadable(error, path))),
        }
    }
    Ok(Ok(()))
}

/// The regular file at the path, if there is one that may be read.
fn open(path: &Path) -> Option<File> {
    // Not blocking: a pipe may stand there now.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}
