//! A window of files that are restored together: bounded in number and in chunks, so that memory is.
//!
//! A file of more chunks than a window may have goes on in the next: it is opened in the first and gets its name in the last.

use super::plan::Want;
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::metadata::Metadata;
use crate::ops::Resources;
use crate::repo::Repo;
use crate::repo::stream::StreamRef;
use crate::repo::tree::FetchChunk;
use crate::source::apply::MetadataIssue;

/// Chunks that are planned at once, by memory: 200 bytes of plan for each (twice as much if all stand on others), which is a
/// fifth of it and 128 GiB of content at the usual sizes of memory and chunks.
const BYTES_PER_WANT: u64 = 1 << 10;
const WANTS: std::ops::Range<u64> = 16..512 << 10;
/// Files in one window, if the system allows that many open files.
const FILES_MAX: usize = 4 << 10;

/// A file to restore.
pub(super) struct Job {
    /// Relative to the target.
    pub(super) path: Vec<u8>,
    pub(super) metadata: Metadata,
    pub(super) content: Option<StreamRef>,
    /// What stands there may be taken over and compared.
    pub(super) compare: bool,
    /// Its directory was made by this run: nothing stands there.
    pub(super) is_fresh: bool,
}

impl Job {
    /// What is booked under.
    pub(super) fn name(self) -> Name {
        Name { link_group: self.metadata.link_group, path: self.path }
    }
}

/// A file whose outcome is known.
pub(super) struct Name {
    /// Relative to the target.
    pub(super) path: Vec<u8>,
    /// Set if it has other names.
    pub(super) link_group: Option<(u64, u64)>,
}

/// How a file fared.
pub(super) enum Outcome {
    Restored(Vec<MetadataIssue>),
    /// The repository cannot bring its content.
    Damaged(Error),
    /// The target did not take it.
    Failed(Error),
}

/// See the module. Its files are numbered from 0; if one `continues`, that is the first.
pub(super) struct Window {
    /// The files that begin in it.
    pub(super) jobs: Vec<Job>,
    pub(super) wants: Vec<Want>,
    /// The numbers of files whose chunk lists cannot be read to their ends.
    pub(super) refused: Vec<(u32, Error)>,
    /// Where in the last file of the window before this one goes on.
    pub(super) continues: Option<u64>,
    /// Where in its own last file the next window goes on.
    pub(super) goes_on: Option<u64>,
    files_max: usize,
    wants_max: usize,
}

impl Window {
    pub(super) fn new(resources: Resources) -> Window {
        let wants_max = (resources.memory_bytes / BYTES_PER_WANT).clamp(WANTS.start, WANTS.end);
        Window {
            jobs: Vec::new(),
            wants: Vec::new(),
            refused: Vec::new(),
            continues: None,
            goes_on: None,
            files_max: files_max(),
            wants_max: usize::try_from(wants_max).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files() == 0
    }

    fn files(&self) -> usize {
        self.jobs.len() + usize::from(self.continues.is_some())
    }

    /// What is in it. It is empty then, or goes on with its last file at an offset.
    pub(super) fn take(&mut self, goes_on: Option<u64>) -> Window {
        let next = Window {
            jobs: Vec::new(),
            wants: Vec::new(),
            refused: Vec::new(),
            continues: goes_on,
            goes_on: None,
            ..*self
        };
        Window { goes_on, ..std::mem::replace(self, next) }
    }

    /// Adds a file; its chunk list is read. Windows that are full are given to `push`.
    pub(super) fn add(
        &mut self,
        job: Job,
        repo: &Repo,
        fetch: &FetchChunk<'_>,
        push: &mut dyn FnMut(Window) -> Result<()>,
    ) -> Result<()> {
        let mut number = u32::try_from(self.files()).unwrap_or(u32::MAX);
        let mut offset = 0u64;
        let content = job.content;
        self.jobs.push(job);
        for child in content.into_iter().flat_map(|content| repo.content_chunks(fetch, content)) {
            if self.wants.len() >= self.wants_max {
                push(self.take(Some(offset)))?;
                number = 0;
            }
            match child.and_then(|child| Ok((child, chunk_bytes(child.id, child.bytes)?))) {
                Ok((child, bytes)) => {
                    if child.id != ChunkId::HOLE {
                        self.wants.push(Want { job: number, bytes, offset, id: child.id });
                    }
                    offset = offset.saturating_add(child.bytes);
                }
                Err(error) => {
                    self.refused.push((number, error));
                    break;
                }
            }
        }
        if self.files() >= self.files_max || self.wants.len() >= self.wants_max {
            push(self.take(None))?;
        }
        Ok(())
    }
}

fn chunk_bytes(id: ChunkId, bytes: u64) -> Result<u32> {
    match u32::try_from(bytes) {
        Ok(bytes) => Ok(bytes),
        Err(_) if id == ChunkId::HOLE => Ok(0),
        Err(_) => Err(Error::damaged(format!("a chunk of {bytes} bytes is not possible"))),
    }
}

/// How many files may be open at once. The limit of the process is raised as far as the system allows.
fn files_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum.map(|m| m.min(1 << 20)), maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    // A file that is read and written past the page cache has three descriptors and one for its directory, a file of the
    // window before two; and room for everything else.
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    (limit.saturating_sub(128) / 6).clamp(16, FILES_MAX)
}
