//! What is read of big files, and the readers: threads that bring what is not in the page cache, ahead of the workers, so that
//! these compute while the storage of the source is waited for.
//!
//! What is cached the workers read themselves: then it is in the cache of their core when they need it. Whether a file is cached
//! is known once something of it has been read.

use super::shared::{Segment, Shared};
use super::worker::Task;
use crate::error::{Kind, Result};
use crate::page_cache::{SLACK_BYTES, place_for};
use crate::source::open::SourceFile;
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Reads in flight: one more than keeps a disk busy, for the moment between two.
pub(super) const READERS: usize = 2;

/// A part of a file.
pub(super) struct Stretch {
    pub(super) file: Arc<SourceFile>,
    pub(super) offset: u64,
    pub(super) bytes: usize,
    /// Bytes before it that are read too.
    pub(super) context: usize,
}

impl Stretch {
    /// Reads it; shorter than asked for where the file ends. The outer result is the run's, the inner one the file's.
    fn read(&self, shared: &Shared<'_>) -> Result<Result<Segment>> {
        let (first, wanted) = (self.offset - self.context as u64, self.context + self.bytes);
        let mut buffer = shared.buffers.take(wanted + SLACK_BYTES);
        let start = place_for(first, &buffer);
        match shared.read_around(&self.file, first, &mut buffer, start, wanted) {
            Ok(read) => {
                // What lies before it was counted with the segment before.
                shared.bytes_read.fetch_sub(read.min(self.context) as u64, Ordering::Relaxed);
                let read = read.saturating_sub(self.context);
                Ok(Ok(Segment::new(buffer, self.context, read, &shared.buffers).starting_at(start)))
            }
            Err(error) if error.kind() == Kind::Interrupted => Err(error),
            Err(error) => Ok(Err(error)),
        }
    }
}

/// The bytes of a segment, or where they are.
pub(super) enum Source {
    Unread(Stretch),
    /// What came of reading it.
    Read(Result<Segment>),
}

impl Source {
    /// The bytes, read now if they are not yet. The outer result is the run's, the inner one the file's.
    pub(super) fn into_segment(self, shared: &Shared<'_>) -> Result<Result<Segment>> {
        match self {
            Source::Unread(stretch) => stretch.read(shared),
            Source::Read(result) => Ok(result),
        }
    }

    /// True if it is worth reading ahead of the workers.
    fn is_far(&self) -> bool {
        matches!(self, Source::Unread(stretch) if !stretch.file.was_cached())
    }
}

/// Where tasks wait.
pub(super) struct Queues {
    pub(super) workers: Sender<Task>,
    /// The readers hand on what they get.
    pub(super) readers: Sender<Task>,
}

impl Queues {
    /// Puts a task where it belongs; false if nobody is left to take it.
    pub(super) fn put(&self, task: Task) -> bool {
        let is_far = match &task {
            Task::Scan { source, .. } | Task::Fixed { source, .. } => source.is_far(),
            Task::Small(_) | Task::Store { .. } => false,
        };
        let queue = if is_far { &self.readers } else { &self.workers };
        queue.send(task).is_ok()
    }
}

/// Reads for the workers until there are no more tasks.
pub(super) fn run(shared: &Shared<'_>, tasks: &Receiver<Task>, workers: &Sender<Task>) {
    for mut task in tasks {
        if let Task::Scan { source, .. } | Task::Fixed { source, .. } = &mut task
            && let Source::Unread(stretch) = source
            // When the run ends, the worker that gets the task says so.
            && let Ok(result) = shared.check_stop().and_then(|()| stretch.read(shared))
        {
            *source = Source::Read(result);
        }
        if workers.send(task).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::scan::{ScanOptions, Scanned, scan};
    use crossbeam_channel::unbounded;

    /// One file, which has just been written.
    fn open_file(folder: &std::path::Path) -> Arc<SourceFile> {
        std::fs::write(folder.join("file"), vec![1; 300_000]).expect("written");
        let found = scan(&[folder.to_path_buf()], ScanOptions::default()).find_map(|scanned| match scanned {
            Scanned::Entry(found) if !found.path.is_empty() => Some(found),
            _ => None,
        });
        Arc::new(SourceFile::open(&found.expect("found")).expect("opened"))
    }

    #[test]
    fn only_files_that_are_not_known_to_be_cached_go_to_the_readers() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = open_file(folder.path());
        let ((workers, worked), (readers, read)) = (unbounded(), unbounded());
        let queues = Queues { workers, readers };
        let stretch = || Stretch { file: Arc::clone(&file), offset: 0, bytes: 300_000, context: 0 };
        let scan = |source| Task::Scan { sequence: 0, index: 0, source };
        let fixed = |source| Task::Fixed { sequence: 0, index: 0, source, offset: 0, cuts: Vec::new(), origin: None };
        let put = |task| {
            assert!(queues.put(task));
            (worked.try_iter().count(), read.try_iter().count())
        };
        assert_eq!(put(scan(Source::Unread(stretch()))), (0, 1), "nothing is known yet");
        assert_eq!(put(fixed(Source::Unread(stretch()))), (0, 1), "nothing is known yet");
        file.read_at(0, &mut vec![0; 300_000]).expect("read");
        // What has just been written is cached, if the file system can tell.
        let expected = if file.was_cached() { (1, 0) } else { (0, 1) };
        assert_eq!(put(scan(Source::Unread(stretch()))), expected);
        assert_eq!(put(fixed(Source::Unread(stretch()))), expected);
        let segment = Segment::new(Vec::new(), 0, 0, &Arc::new(super::super::shared::Buffers::new()));
        assert_eq!(put(scan(Source::Read(Ok(segment)))), (1, 0), "already read");
        assert_eq!(put(Task::Small(Vec::new())), (1, 0), "workers read small files");
        drop((worked, read));
        assert!(!queues.put(Task::Small(Vec::new())), "nobody is left");
        assert!(!queues.put(scan(Source::Unread(stretch()))), "nobody is left");
    }
}
