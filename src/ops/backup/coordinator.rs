//! The coordinator: one thread that owns all state of a run and keeps all order.
//!
//! It gives out tasks while the content under way stays within its budget, chooses cuts, collects results, and passes
//! finished entries to the tree in the order of the scan. It does no work for each byte.

mod completion;

use super::approach::Approach;
use super::assembly::Assembly;
use super::big_file::{BigFile, Decided, Dispatch, SegmentSource};
use super::deferred::Deferred;
use super::feed::{self, Item, Items};
use super::reading::{Queues, Source};
use super::shared::{SEGMENT_BYTES, Segment, Shared};
use super::storer::GROUP_BYTES;
use super::worker::{Done, SmallFile, SmallRead, Task, Unread};
use super::{Harvest, interrupted, shared};
use crate::error::{Error, Kind, Result};
use crate::ops::Resources;
use crate::repo::entry::Entry;
use crate::source::chunker::Candidates;
use crate::source::open::SourceFile;
use crate::source::scan::Found;
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// Small files that share a task ...
const SMALL_FILES_MAX: usize = 2048;
/// ... and their bytes, if there is more than one: nearly four shared frames, so that these are filled.
const SMALL_BYTES_MAX: u64 = 4 * GROUP_BYTES as u64 - (128 << 10);
/// What a small file costs beside its content, in bytes: the entry, with its path twice.
const FILE_BYTES: u64 = 1 << 10;
/// More entries than this do not wait for the content of one before them. More than wait for a pointer
/// ([`super::deferred`]), or reading would go step by step.
const ENTRIES_WAITING_MAX: usize = 120_000;
/// How often an idle coordinator looks whether it is to stop, and tells the progress: often enough that an estimate of
/// the time left is not misled by what it has not been told yet.
const STOP_CHECK: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Coordinator<'a> {
    shared: &'a Shared<'a>,
    queues: Queues,
    roots: &'a [PathBuf],
    /// Bytes of content that may be under way.
    budget: u64,
    segment_bytes: u64,
    items: Items,
    feed_ended: bool,
    small: Vec<SmallFile>,
    small_bytes: u64,
    deferred: Deferred,
    /// The big file whose segments are being given out.
    dispatching: Option<u64>,
    bytes_under_way: u64,
    tasks_under_way: u64,
    big: HashMap<u64, BigFile>,
    /// Bytes of each segment under way, until what it decided is stored.
    segment_sizes: HashMap<(u64, u64), u64>,
    /// Whether the parent had something at the path of a small file under way.
    existed: HashMap<u64, bool>,
    assembly: Assembly<'a>,
    approach: Approach<'a>,
    /// Where answers come from, when files are read.
    answers: Option<Receiver<Done>>,
}

impl<'a> Coordinator<'a> {
    pub(super) fn new(
        shared: &'a Shared<'a>,
        assembly: Assembly<'a>,
        queues: Queues,
        roots: &'a [PathBuf],
        items: Items,
        approach: Approach<'a>,
        resources: Resources,
    ) -> Coordinator<'a> {
        // Enough that no worker waits; the rest of the memory is for packs, codecs and the index.
        let enough = resources.threads.max(2) as u64 * 4 * SEGMENT_BYTES;
        Coordinator {
            shared,
            queues,
            roots,
            budget: (resources.memory_bytes / 6).min(enough).max(SEGMENT_BYTES),
            segment_bytes: shared.segment_bytes(),
            items,
            feed_ended: false,
            small: Vec::new(),
            small_bytes: 0,
            deferred: Deferred::default(),
            dispatching: None,
            bytes_under_way: 0,
            tasks_under_way: 0,
            big: HashMap::new(),
            segment_sizes: HashMap::new(),
            existed: HashMap::new(),
            assembly,
            approach,
            answers: None,
        }
    }

    /// Backs up everything that the feed brings.
    pub(super) fn run_paths(&mut self, done: &Receiver<Done>) -> Result<()> {
        self.answers = Some(done.clone());
        loop {
            while self.bytes_under_way < self.budget && !self.feed_ended && !self.is_crowded() {
                self.advance()?;
                self.assembly.emit_ready()?;
            }
            if self.feed_ended || self.is_crowded() {
                self.send_small()?;
            }
            self.assembly.emit_ready()?;
            match (self.tasks_under_way, self.feed_ended) {
                (0, true) => return Ok(()),
                // All wait for a pointer whose turn comes with more entries.
                (0, false) => self.advance()?,
                _ => self.receive(done)?,
            }
        }
    }

    /// True if so many entries wait for the content of one before them that no more are taken.
    fn is_crowded(&self) -> bool {
        self.assembly.waiting() >= ENTRIES_WAITING_MAX
    }

    /// Backs up a stream as one file.
    pub(super) fn run_stream(
        &mut self,
        done: &Receiver<Done>,
        found: Box<Found>,
        reader: &mut (dyn std::io::Read + Send),
    ) -> Result<()> {
        let sequence = self.assembly.reserve();
        self.big.insert(sequence, BigFile::stream(found, false, &self.shared.chunker, self.segment_bytes));
        let segment_bytes = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX);
        let mut before = Vec::new();
        loop {
            while self.bytes_under_way >= self.budget {
                self.receive(done)?;
            }
            let segment = shared::load_segment(self.shared, reader, &before, segment_bytes)?;
            let is_last = segment.bytes().len() < segment_bytes;
            before.clear();
            before.extend_from_slice(&segment.bytes()[segment.bytes().len().saturating_sub(4096)..]);
            if let Some(big) = self.big.get_mut(&sequence) {
                let dispatch = big.push_loaded(segment);
                self.send_segment(sequence, dispatch)?;
            }
            while let Ok(answer) = done.try_recv() {
                self.handle(answer)?;
            }
            if is_last {
                break;
            }
        }
        while self.tasks_under_way > 0 {
            self.receive(done)?;
        }
        self.assembly.emit_ready()
    }

    /// Waits for an answer, looking now and then whether the user wants the run to end.
    fn receive(&mut self, done: &Receiver<Done>) -> Result<()> {
        loop {
            if self.shared.observer.is_interrupted() {
                return Err(interrupted());
            }
            match done.recv_timeout(STOP_CHECK) {
                Ok(answer) => return self.handle(answer),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => self.assembly.report_progress(0),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(Kind::Failed, "all workers ended early"));
                }
            }
        }
    }

    /// Takes one step: the next segment of a big file, or the next item of the feed.
    fn advance(&mut self) -> Result<()> {
        if let Some(sequence) = self.dispatching {
            let next = self.big.get_mut(&sequence).and_then(BigFile::next_segment);
            match next {
                Some(dispatch) => return self.send_segment(sequence, dispatch),
                None => self.dispatching = None,
            }
            return self.finish_if_complete(sequence);
        }
        match self.items.next()? {
            Some(item) => {
                let due = self.deferred.due(item.place(), self.assembly.newest());
                self.small.extend(due);
                self.take(item)
            }
            None => {
                self.small.extend(self.deferred.due(None, 0));
                self.feed_ended = true;
                Ok(())
            }
        }
    }

    fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Unchanged(entry) => self.assembly.push(entry),
            Item::Read(found, earlier) => return self.take_file(found, earlier),
            Item::Other(found, xattrs) => self.take_other(*found, xattrs),
            Item::Problem(root, path, error) => {
                let path = feed::absolute(self.roots, root, &path);
                self.assembly.problem(path, error);
            }
            Item::Socket => self.assembly.report.sockets_skipped += 1,
            Item::Excluded => self.assembly.report.entries_excluded += 1,
        }
        Ok(())
    }

    fn take_other(&mut self, found: Found, xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>) {
        let xattrs = xattrs.map_or_else(|| found.read_xattrs(), Ok);
        let mut metadata = found.metadata;
        match xattrs {
            Ok(xattrs) => metadata.xattrs = xattrs,
            Err(error) => self.assembly.problem(found.absolute.as_os_str().as_bytes().to_vec(), error),
        }
        let entry = Entry { root: found.root, path: found.path, metadata, content: None, changed_while_read: false };
        self.assembly.push(Box::new(entry));
    }

    fn take_file(&mut self, found: Box<Found>, earlier: Option<Box<Entry>>) -> Result<()> {
        let existed = earlier.is_some();
        let Err(found) = self.assembly.push_link(found, existed) else { return Ok(()) };
        let size = found.metadata.size;
        let is_special = self.approach.is_special(&found, existed);
        if size <= self.segment_bytes && !is_special {
            let sequence = self.assembly.reserve();
            self.existed.insert(sequence, existed);
            let Some(file) = self.deferred.keep(SmallFile { sequence, found }) else { return Ok(()) };
            if self.small_bytes + size > SMALL_BYTES_MAX || self.small.len() >= SMALL_FILES_MAX {
                self.send_small()?;
            }
            self.small.push(file);
            self.small_bytes += size;
            return Ok(());
        }
        self.begin_big(found, earlier.as_deref())
    }

    fn begin_big(&mut self, found: Box<Found>, earlier: Option<&Entry>) -> Result<()> {
        let path = found.absolute.as_os_str().as_bytes().to_vec();
        let file = match SourceFile::open(&found) {
            Ok(file) => file,
            Err(error) => {
                self.assembly.problem(path, error);
                return Ok(());
            }
        };
        let layout = self.approach.layout_of(&found, &file);
        // What it may be coded against must be known to its end.
        let done = self.answers.clone();
        while self.tasks_under_way > 0
            && let (Some(_), Some(done)) = (self.approach.awaited(&found, layout.as_deref(), earlier.is_some()), &done)
        {
            self.receive(done)?;
        }
        let place = (self.assembly.next_sequence(), self.segment_bytes);
        match self.approach.begin(found, earlier, file, layout, place) {
            Ok(big) => {
                let sequence = self.assembly.reserve();
                self.big.insert(sequence, big);
                self.dispatching = Some(sequence);
            }
            Err(error) => self.assembly.problem(path, error),
        }
        Ok(())
    }

    fn send(&mut self, task: Task) -> Result<()> {
        self.tasks_under_way += 1;
        let is_put = self.queues.put(task);
        is_put.then_some(()).ok_or_else(|| Error::new(Kind::Failed, "all workers ended early"))
    }

    fn send_small(&mut self) -> Result<()> {
        if self.small.is_empty() {
            return Ok(());
        }
        self.bytes_under_way += std::mem::take(&mut self.small_bytes) + FILE_BYTES * self.small.len() as u64;
        let files = std::mem::take(&mut self.small);
        self.send(Task::Small(files))
    }

    fn send_segment(&mut self, sequence: u64, dispatch: Dispatch) -> Result<()> {
        let Dispatch { index, bytes, source } = dispatch;
        self.bytes_under_way += bytes;
        self.segment_sizes.insert((sequence, index), bytes);
        match source {
            SegmentSource::Fixed(stretch, cuts) => {
                let origin = self.big.get(&sequence).and_then(|big| big.origin.clone());
                let offset = stretch.offset;
                self.send(Task::Fixed { sequence, index, source: Source::Unread(stretch), offset, cuts, origin })
            }
            SegmentSource::File(stretch) => self.send(Task::Scan { sequence, index, source: Source::Unread(stretch) }),
            SegmentSource::Loaded(segment) => {
                self.send(Task::Scan { sequence, index, source: Source::Read(Ok(segment)) })
            }
        }
    }

    fn handle(&mut self, answer: Done) -> Result<()> {
        self.tasks_under_way -= 1;
        match answer {
            Done::Small(files) => self.handle_small(files),
            Done::Scanned { sequence, index, result } => self.handle_scanned(sequence, index, result),
            Done::Stored { sequence, index, children } => {
                self.release(sequence, index);
                let assembly = &mut self.assembly;
                if let Some(big) = self.big.get_mut(&sequence) {
                    match children {
                        Ok((children, is_short)) => {
                            big.push_stored(index, children, is_short, &mut |node| assembly.store(&node))?;
                        }
                        Err(error) => big.fail(error),
                    }
                }
                self.finish_if_complete(sequence)
            }
            Done::Failed(error) => Err(error),
        }?;
        self.assembly.report_progress(0);
        self.assembly.emit_ready()
    }

    fn handle_small(&mut self, files: Vec<(u64, Result<SmallRead, Unread>)>) -> Result<()> {
        for (sequence, result) in files {
            let existed = self.existed.remove(&sequence).unwrap_or(false);
            match result {
                Ok(SmallRead { found, expected_bytes, children, changed_while_read }) => {
                    self.bytes_under_way = self.bytes_under_way.saturating_sub(expected_bytes + FILE_BYTES);
                    let content = self.assembly.chunk_list(children)?;
                    self.assembly.complete(sequence, *found, content, changed_while_read, existed);
                }
                Err((path, size, error)) => {
                    self.bytes_under_way = self.bytes_under_way.saturating_sub(size + FILE_BYTES);
                    self.assembly.give_up(sequence, path, error);
                }
            }
        }
        Ok(())
    }

    fn handle_scanned(&mut self, sequence: u64, index: u64, result: Result<(Segment, Candidates)>) -> Result<()> {
        let Some(big) = self.big.get_mut(&sequence) else { return Ok(()) };
        let origin = big.origin.clone();
        for Decided { index, run, chunks } in big.push_scanned(index, result) {
            if chunks.is_empty() {
                self.release(sequence, index);
            } else {
                let origin = origin.clone();
                self.send(Task::Store { sequence, index, run, chunks, origin })?;
            }
        }
        if self.big.get(&sequence).is_some_and(|b| b.failure.is_some()) {
            self.release(sequence, index);
        }
        self.finish_if_complete(sequence)
    }

    fn release(&mut self, sequence: u64, index: u64) {
        let bytes = self.segment_sizes.remove(&(sequence, index)).unwrap_or(0);
        self.bytes_under_way = self.bytes_under_way.saturating_sub(bytes);
    }

    /// Ends the tree; everything is stored.
    pub(super) fn harvest(self) -> Result<Harvest> {
        self.assembly.harvest()
    }
}
