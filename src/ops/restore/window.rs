//! A window of files that are restored together: bounded in number and in chunks, so that memory is.

use super::plan::Want;
use crate::error::{Error, Result};
use crate::ids::ChunkId;
use crate::metadata::Metadata;
use crate::repo::Repo;
use crate::repo::stream::StreamRef;
use crate::repo::tree::FetchChunk;
use crate::source::apply::MetadataIssue;

/// Chunks that are planned at once: about 100 MB of plan (twice as much if all stand on others), 128 GiB of content at the usual size of chunks.
const WANTS_MAX: usize = 512 << 10;
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

/// See the module.
pub(super) struct Window {
    pub(super) jobs: Vec<Job>,
    pub(super) wants: Vec<Want>,
    files_max: usize,
}

impl Window {
    pub(super) fn new() -> Window {
        Window { jobs: Vec::new(), wants: Vec::new(), files_max: files_max() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// True if it is time to restore it.
    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= self.files_max || self.wants.len() >= WANTS_MAX
    }

    /// What is in it; it is empty then.
    pub(super) fn take(&mut self) -> Window {
        let (jobs, wants) = (std::mem::take(&mut self.jobs), std::mem::take(&mut self.wants));
        Window { jobs, wants, files_max: self.files_max }
    }

    /// Adds a file; its chunk list is read. A list that cannot be read gives the job back.
    pub(super) fn add(&mut self, job: Job, repo: &Repo, fetch: &FetchChunk<'_>) -> Result<(), Box<(Job, Error)>> {
        let before = self.wants.len();
        let number = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        let mut offset = 0u64;
        for child in job.content.into_iter().flat_map(|content| repo.content_chunks(fetch, content)) {
            let (child, bytes) = match child.and_then(|child| Ok((child, chunk_bytes(child.id, child.bytes)?))) {
                Ok(found) => found,
                Err(error) => {
                    self.wants.truncate(before);
                    return Err(Box::new((job, error)));
                }
            };
            if child.id != ChunkId::HOLE {
                self.wants.push(Want { job: number, bytes, offset, id: child.id });
            }
            offset = offset.saturating_add(child.bytes);
        }
        self.jobs.push(job);
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
