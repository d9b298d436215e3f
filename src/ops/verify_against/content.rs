//! Comparing the content of files with the ids of their chunks, on several threads.

use super::Difference;
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::page_cache::PageCache;
use crate::repo::keys::Keys;
use crate::repo::stream::Child;
use crossbeam_channel::Receiver;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A file is read in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// What all threads add to.
pub(super) struct Shared<'a> {
    pub(super) keys: &'a Keys,
    pub(super) observer: &'a dyn Observer,
    pub(super) differences: Mutex<Vec<Difference>>,
    pub(super) count: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl<'a> Shared<'a> {
    pub(super) fn new(keys: &'a Keys, observer: &'a dyn Observer) -> Shared<'a> {
        Shared { keys, observer, differences: Mutex::default(), count: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn differ(&self, path: &[u8], what: impl Into<String>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut differences = self.differences.lock().unwrap_or_else(PoisonError::into_inner);
        if differences.len() < Difference::KEPT_MAX {
            differences.push(Difference { path: path.to_vec(), what: what.into() });
        }
    }
}

/// A run of chunks of one file to be compared.
pub(super) struct Job {
    pub(super) file: Arc<Compared>,
    pub(super) offset: u64,
    pub(super) chunks: Vec<Child>,
}

pub(super) struct Compared {
    pub(super) path: PathBuf,
    pub(super) shown: Vec<u8>,
    /// One difference is enough.
    pub(super) differs: AtomicBool,
}

/// Does jobs until there are no more.
pub(super) fn work(jobs: &Receiver<Job>, shared: &Shared<'_>) {
    let mut piece = vec![0; PIECE_BYTES];
    for job in jobs {
        if shared.observer.is_interrupted() || job.file.differs.load(Ordering::Relaxed) {
            continue;
        }
        let result = compare_chunks(&job, &mut piece, shared).unwrap_or_else(|e| Some(format!("cannot be read: {e}")));
        if let Some(what) = result
            && !job.file.differs.swap(true, Ordering::Relaxed)
        {
            shared.differ(&job.file.shown, what);
        }
    }
}

fn compare_chunks(job: &Job, piece: &mut [u8], shared: &Shared<'_>) -> std::io::Result<Option<String>> {
    // Not blocking and no links: something else may stand there by now.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&job.file.path)?;
    let page_cache = PageCache::new(file.metadata()?.len());
    let mut at = job.offset;
    for chunk in &job.chunks {
        if shared.observer.is_interrupted() {
            return Ok(None);
        }
        if !holds(shared.keys, (&file, &page_cache), at, *chunk, piece)? {
            return Ok(Some(format!("the content differs within bytes {at} to {}", at.saturating_add(chunk.bytes))));
        }
        at += chunk.bytes;
        shared.bytes.fetch_add(chunk.bytes, Ordering::Relaxed);
        shared.observer.on_event(&Event::Progress { bytes: chunk.bytes, files: 0 });
    }
    Ok(None)
}

/// True if the file has this chunk, or zeros for a hole, at this offset.
fn holds(
    keys: &Keys,
    (file, page_cache): (&File, &PageCache),
    mut at: u64,
    chunk: Child,
    piece: &mut [u8],
) -> std::io::Result<bool> {
    let mut hasher = keys.chunk_hasher();
    let mut left = chunk.bytes;
    while left > 0 {
        let now = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        let Some(bytes) = piece.get_mut(..now) else { return Ok(false) };
        if page_cache.read_at(file, at, bytes)? < now {
            return Ok(false);
        }
        if chunk.id != ChunkId::HOLE {
            hasher.update(bytes);
        } else if bytes.iter().any(|&b| b != 0) {
            return Ok(false);
        }
        at += now as u64;
        left -= now as u64;
    }
    Ok(chunk.id == ChunkId::HOLE || hasher.finalize().as_bytes() == chunk.id.as_bytes())
}
