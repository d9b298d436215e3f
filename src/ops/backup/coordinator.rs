//! The coordinator: one thread that owns all state of a run and keeps all order.
//!
//! It gives out tasks while the content under way stays within its budget, chooses cuts, collects results, and passes
//! finished entries to the tree in the order of the scan. It does no work for each byte.

use super::big_file::{BigFile, Decided, Dispatch};
use super::feed::{Feed, Item, Merge};
use super::metadata_sink::MetadataSink;
use super::worker::{Buffers, Done, Pace, Shared, SmallFile, SmallRead, Task, Unread};
use super::{BackupOptions, BackupReport, Input, forecast, interrupted, packs, worker};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::{FileKind, FileTime, Metadata};
use crate::repo::entry::Entry;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{NodeBuilder, StreamRef};
use crate::repo::transaction::Transaction;
use crate::repo::tree::TreeBuilder;
use crate::source::chunker::{ChunkSizes, Chunker};
use crate::source::scan::{Found, ScanOptions, scan};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::collections::{HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Files up to this size are one task; larger ones are divided into segments of it.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Small files that share a task.
const SMALL_FILES_MAX: usize = 512;
/// How often an idle coordinator looks whether it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// What a run brought in.
pub(super) struct Harvest {
    pub(super) tree: Option<StreamRef>,
    pub(super) report: BackupReport,
}

/// Reads, cuts, codes and stores everything; on return all packs are durable.
pub(super) fn run(
    transaction: &Transaction<'_>,
    input: &mut Input<'_>,
    scan_options: &ScanOptions,
    parent: Option<&Snapshot>,
    options: &BackupOptions<'_>,
    observer: &dyn Observer,
) -> Result<Harvest> {
    let config = transaction.repo().config();
    let sizes = (config.chunk_min, config.chunk_average, config.chunk_max);
    let sizes = ChunkSizes::new(sizes.0.into(), sizes.1.into(), sizes.2.into())?;
    let shared = Shared {
        transaction,
        observer,
        chunker: Chunker::new(sizes, &config.chunker_key()),
        compression: options.compression,
        pace: options.limit_read.map(Pace::new),
        buffers: Arc::new(Buffers::new()),
        stop: AtomicBool::new(false),
        bytes_read: AtomicU64::new(0),
        bytes_new: AtomicU64::new(0),
        bytes_stored: AtomicU64::new(0),
        chunks_new: AtomicU64::new(0),
    };
    observer.on_event(&Event::Phase { name: "backing up", bytes_total: None, files_total: None });
    let threads = options.resources.threads.max(1);
    let lanes = threads.div_ceil(2).min(4);
    let (task_sender, task_receiver) = unbounded();
    let (done_sender, done_receiver) = unbounded();
    let (full_sender, full_receiver) = bounded(lanes);
    let (empty_sender, empty_receiver) = unbounded();
    std::thread::scope(|scope| {
        let lane_threads: Vec<_> = (0..lanes)
            .map(|_| {
                let (full, empty) = (full_receiver.clone(), empty_sender.clone());
                let shared = &shared;
                scope.spawn(move || {
                    packs::run(transaction, &full, &empty).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))
                })
            })
            .collect();
        drop(full_receiver);
        for _ in 0..threads {
            let (tasks, done) = (task_receiver.clone(), done_sender.clone());
            let (full, empty) = (full_sender.clone(), empty_receiver.clone());
            let shared = &shared;
            scope.spawn(move || worker::run(shared, &tasks, &done, &full, &empty));
        }
        drop((task_receiver, done_sender, full_sender));
        let harvest = drive(&shared, task_sender, &done_receiver, input, scan_options, parent, options);
        shared.stop.store(true, Ordering::Relaxed);
        drop(done_receiver);
        let mut lane_result = Ok(());
        for lane in lane_threads {
            let ended =
                lane.join().unwrap_or_else(|_| Err(Error::new(Kind::Failed, "writing a pack failed unexpectedly")));
            lane_result = lane_result.and(ended);
        }
        // When a lane fails, everything else is interrupted: its error is the cause.
        lane_result.and(harvest)
    })
}

fn drive(
    shared: &Shared<'_>,
    tasks: Sender<Task>,
    done: &Receiver<Done>,
    input: &mut Input<'_>,
    scan_options: &ScanOptions,
    parent: Option<&Snapshot>,
    options: &BackupOptions<'_>,
) -> Result<Harvest> {
    let repo = shared.transaction.repo();
    let fetch = |id| repo.read_chunk(id);
    let roots: Vec<PathBuf> = match input {
        Input::Paths(paths) => paths.clone(),
        Input::Stream { .. } => Vec::new(),
    };
    let merge = || Merge::new(scan(&roots, scan_options.clone()), &fetch, repo, parent);
    let forecast_stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if shared.observer.wants_totals() && !roots.is_empty() {
            let (merge, stop) = (merge(), &forecast_stop);
            scope.spawn(move || forecast::run(merge, options.reread, stop, shared.observer));
        }
        let budget = options.resources.memory_bytes / 6;
        let mut coordinator = Coordinator {
            shared,
            tasks,
            roots: &roots,
            budget: budget.min(options.resources.threads.max(2) as u64 * 4 * SEGMENT_BYTES).max(SEGMENT_BYTES),
            segment_bytes: SEGMENT_BYTES.max(shared.chunker.sizes().max()),
            feed: Feed::new(merge(), shared.transaction, options.reread),
            feed_ended: false,
            small: Vec::new(),
            small_bytes: 0,
            dispatching: None,
            bytes_under_way: 0,
            tasks_under_way: 0,
            slots: VecDeque::new(),
            first_sequence: 0,
            big: HashMap::new(),
            segment_sizes: HashMap::new(),
            existed: HashMap::new(),
            links: HashMap::new(),
            sink: MetadataSink::new(shared.transaction)?,
            tree: TreeBuilder::default(),
            report: BackupReport::default(),
            bytes_reported: 0,
        };
        let result = match input {
            Input::Paths(_) => coordinator.run_paths(done),
            Input::Stream { name, reader, finish } => {
                let found = stream_found(name, options.started);
                coordinator.run_stream(done, found, reader.as_mut()).and_then(|()| {
                    let finish = std::mem::replace(finish, Box::new(|| Ok(())));
                    finish()
                })
            }
        };
        forecast_stop.store(true, Ordering::Relaxed);
        result.and_then(|()| coordinator.harvest())
    })
}

/// The entry of a stream: a file of this moment.
fn stream_found(name: &str, now: FileTime) -> Box<Found> {
    Box::new(Found {
        root: 0,
        path: Vec::new(),
        absolute: PathBuf::from(name),
        device: 0,
        metadata: Metadata {
            kind: FileKind::Regular,
            mode: 0o600,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            size: 0,
            mtime: now,
            ctime: now,
            inode: 0,
            link_group: None,
            xattrs: Vec::new(),
        },
    })
}

/// An entry's place in the order of the scan.
enum Slot {
    /// Its content is under way.
    Waiting,
    Ready(Box<Entry>),
    /// Another name of a file whose content is under way or known: resolved when its turn comes.
    Link(Box<Found>),
    /// Left out.
    Void,
}

struct Coordinator<'a> {
    shared: &'a Shared<'a>,
    tasks: Sender<Task>,
    roots: &'a [PathBuf],
    /// Bytes of content that may be under way.
    budget: u64,
    segment_bytes: u64,
    feed: Feed<'a>,
    feed_ended: bool,
    small: Vec<SmallFile>,
    small_bytes: u64,
    /// The big file whose segments are being given out.
    dispatching: Option<u64>,
    bytes_under_way: u64,
    tasks_under_way: u64,
    slots: VecDeque<Slot>,
    first_sequence: u64,
    big: HashMap<u64, BigFile>,
    /// Bytes of each segment under way, until what it decided is stored.
    segment_sizes: HashMap<(u64, u64), u64>,
    /// Whether the parent had something at the path of a small file under way.
    existed: HashMap<u64, bool>,
    /// Files with several names, by device and inode: what the first name brought.
    links: HashMap<(u64, u64), Option<(Metadata, Option<StreamRef>)>>,
    sink: MetadataSink<'a>,
    tree: TreeBuilder,
    report: BackupReport,
    bytes_reported: u64,
}

impl Coordinator<'_> {
    fn run_paths(&mut self, done: &Receiver<Done>) -> Result<()> {
        loop {
            while self.bytes_under_way < self.budget && !self.feed_ended {
                self.advance()?;
            }
            if self.feed_ended {
                self.send_small()?;
            }
            self.emit_ready()?;
            if self.feed_ended && self.tasks_under_way == 0 {
                return Ok(());
            }
            self.receive(done)?;
        }
    }

    fn run_stream(
        &mut self,
        done: &Receiver<Done>,
        found: Box<Found>,
        reader: &mut (dyn std::io::Read + Send),
    ) -> Result<()> {
        let sequence = self.reserve();
        self.big.insert(sequence, BigFile::stream(found, false, &self.shared.chunker, self.segment_bytes));
        let segment_bytes = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX);
        let mut before = Vec::new();
        loop {
            while self.bytes_under_way >= self.budget {
                self.receive(done)?;
            }
            let segment = worker::load_segment(self.shared, reader, &before, segment_bytes)?;
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
        self.emit_ready()
    }

    /// Waits for an answer, looking now and then whether the user wants the run to end.
    fn receive(&mut self, done: &Receiver<Done>) -> Result<()> {
        loop {
            if self.shared.observer.is_interrupted() {
                return Err(interrupted());
            }
            match done.recv_timeout(STOP_CHECK) {
                Ok(answer) => return self.handle(answer),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
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
        match self.feed.next()? {
            Some(item) => self.take(item),
            None => {
                self.feed_ended = true;
                Ok(())
            }
        }
    }

    fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Unchanged(entry) => {
                self.report.files_unchanged += 1;
                self.slots.push_back(Slot::Ready(entry));
            }
            Item::Read(found, existed) => return self.take_file(found, existed),
            Item::Other(found, xattrs) => self.take_other(*found, xattrs),
            Item::Problem(root, path, error) => {
                let path = self.absolute(root, &path);
                self.problem(path, error);
            }
            Item::Socket => self.report.sockets_skipped += 1,
            Item::Excluded => self.report.entries_excluded += 1,
        }
        Ok(())
    }

    fn take_other(&mut self, found: Found, xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>) {
        let xattrs = xattrs.map_or_else(|| found.read_xattrs(), Ok);
        let mut metadata = found.metadata;
        match xattrs {
            Ok(xattrs) => metadata.xattrs = xattrs,
            Err(error) => self.problem(found.absolute.as_os_str().as_bytes().to_vec(), error),
        }
        match metadata.kind {
            FileKind::Directory => self.report.directories += 1,
            _ => self.report.others += 1,
        }
        let entry = Entry { root: found.root, path: found.path, metadata, content: None, changed_while_read: false };
        self.slots.push_back(Slot::Ready(Box::new(entry)));
    }

    fn take_file(&mut self, found: Box<Found>, existed: bool) -> Result<()> {
        if let Some(group) = found.metadata.link_group {
            if self.links.contains_key(&group) {
                self.count_file(existed);
                self.slots.push_back(Slot::Link(found));
                return Ok(());
            }
            self.links.insert(group, None);
        }
        let size = found.metadata.size;
        if size <= self.segment_bytes {
            let sequence = self.reserve();
            self.existed.insert(sequence, existed);
            self.small.push(SmallFile { sequence, found });
            self.small_bytes += size;
            if self.small_bytes >= self.segment_bytes || self.small.len() >= SMALL_FILES_MAX {
                self.send_small()?;
            }
            return Ok(());
        }
        let path = found.absolute.as_os_str().as_bytes().to_vec();
        match BigFile::open(found, existed, &self.shared.chunker, self.segment_bytes) {
            Ok(big) => {
                let sequence = self.reserve();
                self.big.insert(sequence, big);
                self.dispatching = Some(sequence);
            }
            Err(error) => self.problem(path, error),
        }
        Ok(())
    }

    fn reserve(&mut self) -> u64 {
        self.slots.push_back(Slot::Waiting);
        self.first_sequence + self.slots.len() as u64 - 1
    }

    fn send(&mut self, task: Task) -> Result<()> {
        self.tasks_under_way += 1;
        self.tasks.send(task).map_err(|_| Error::new(Kind::Failed, "all workers ended early"))
    }

    fn send_small(&mut self) -> Result<()> {
        if self.small.is_empty() {
            return Ok(());
        }
        self.bytes_under_way += std::mem::take(&mut self.small_bytes);
        let files = std::mem::take(&mut self.small);
        self.send(Task::Small(files))
    }

    fn send_segment(&mut self, sequence: u64, dispatch: Dispatch) -> Result<()> {
        let Dispatch { index, bytes, source } = dispatch;
        self.bytes_under_way += bytes;
        self.segment_sizes.insert((sequence, index), bytes);
        self.send(Task::Scan { sequence, index, source })
    }

    fn handle(&mut self, answer: Done) -> Result<()> {
        self.tasks_under_way -= 1;
        match answer {
            Done::Small(files) => self.handle_small(files),
            Done::Scanned { sequence, index, result } => self.handle_scanned(sequence, index, result),
            Done::Stored { sequence, index, children } => {
                self.release(sequence, index);
                let sink = &mut self.sink;
                if let Some(big) = self.big.get_mut(&sequence) {
                    big.push_stored(index, children, &mut |node| sink.store(&node))?;
                }
                self.finish_if_complete(sequence)
            }
            Done::Failed(error) => Err(error),
        }?;
        self.report_progress(0);
        self.emit_ready()
    }

    fn handle_small(&mut self, files: Vec<(u64, Result<SmallRead, Unread>)>) -> Result<()> {
        for (sequence, result) in files {
            let existed = self.existed.remove(&sequence).unwrap_or(false);
            match result {
                Ok(SmallRead { found, expected_bytes, children, changed_while_read }) => {
                    self.bytes_under_way = self.bytes_under_way.saturating_sub(expected_bytes);
                    let mut nodes = NodeBuilder::default();
                    let sink = &mut self.sink;
                    for child in children {
                        nodes.push(child, &mut |node| sink.store(&node))?;
                    }
                    let content = nodes.finish(&mut |node| sink.store(&node))?;
                    self.finish_file(sequence, found, content, changed_while_read, existed);
                }
                Err((path, size, error)) => {
                    self.bytes_under_way = self.bytes_under_way.saturating_sub(size);
                    self.set(sequence, Slot::Void);
                    self.problem(path, error);
                }
            }
        }
        Ok(())
    }

    fn handle_scanned(
        &mut self,
        sequence: u64,
        index: u64,
        result: Result<(worker::Segment, crate::source::chunker::Candidates)>,
    ) -> Result<()> {
        let Some(big) = self.big.get_mut(&sequence) else { return Ok(()) };
        for Decided { index, chunks } in big.push_scanned(index, result) {
            if chunks.is_empty() {
                self.release(sequence, index);
            } else {
                self.send(Task::Store { sequence, index, chunks })?;
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

    fn finish_if_complete(&mut self, sequence: u64) -> Result<()> {
        let sink = &mut self.sink;
        let Some(big) = self.big.get_mut(&sequence) else { return Ok(()) };
        let is_complete = big.is_complete();
        big.settle(&mut |node| sink.store(&node))?;
        if !is_complete && !big.is_complete() {
            return Ok(());
        }
        let Some(mut big) = self.big.remove(&sequence) else { return Ok(()) };
        if self.dispatching == Some(sequence) {
            self.dispatching = None;
        }
        let under_way: Vec<u64> =
            self.segment_sizes.keys().filter(|(s, _)| *s == sequence).map(|(_, index)| *index).collect();
        under_way.into_iter().for_each(|index| self.release(sequence, index));
        let path = big.found.absolute.as_os_str().as_bytes().to_vec();
        if let Some(error) = big.failure.take() {
            self.set(sequence, Slot::Void);
            self.problem(path, error);
            return Ok(());
        }
        let mut changed = big.ended_early;
        let (existed, is_stream) = (big.existed, big.file.is_none());
        if let Some(file) = big.file.clone() {
            changed |= file.changed_since(&big.found.metadata)?;
            big.found.metadata.xattrs = file.read_xattrs()?;
        }
        let sink = &mut self.sink;
        let (mut found, content, bytes) = big.finish(&mut |node| sink.store(&node))?;
        if changed || is_stream {
            found.metadata.size = bytes;
        }
        self.finish_file(sequence, found, content, changed, existed);
        Ok(())
    }

    fn finish_file(
        &mut self,
        sequence: u64,
        found: Box<Found>,
        content: Option<StreamRef>,
        changed: bool,
        existed: bool,
    ) {
        if changed {
            let error = Error::new(Kind::Failed, "changed while it was read; what was read is stored and marked");
            self.problem(found.absolute.as_os_str().as_bytes().to_vec(), error);
        }
        self.count_file(existed);
        let Found { root, path, metadata, .. } = *found;
        let entry = Entry { root, path, metadata, content, changed_while_read: changed };
        self.set(sequence, Slot::Ready(Box::new(entry)));
    }

    fn count_file(&mut self, existed: bool) {
        match existed {
            true => self.report.files_changed += 1,
            false => self.report.files_new += 1,
        }
    }

    fn set(&mut self, sequence: u64, slot: Slot) {
        let position = usize::try_from(sequence - self.first_sequence).unwrap_or(usize::MAX);
        if let Some(place) = self.slots.get_mut(position) {
            *place = slot;
        }
    }

    /// Passes everything that has no unfinished predecessor to the tree.
    fn emit_ready(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.front() {
            if matches!(slot, Slot::Waiting) {
                return Ok(());
            }
            self.first_sequence += 1;
            match self.slots.pop_front() {
                Some(Slot::Ready(entry)) => self.emit(*entry)?,
                Some(Slot::Link(found)) => self.emit_link(*found)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn emit_link(&mut self, found: Found) -> Result<()> {
        let first = found.metadata.link_group.and_then(|group| self.links.get(&group).cloned()).flatten();
        match first {
            Some((metadata, content)) => {
                let entry = Entry { root: found.root, path: found.path, metadata, content, changed_while_read: false };
                self.emit(entry)
            }
            None => {
                let error = Error::new(Kind::Failed, "another name of a file that could not be read");
                self.problem(found.absolute.as_os_str().as_bytes().to_vec(), error);
                Ok(())
            }
        }
    }

    fn emit(&mut self, entry: Entry) -> Result<()> {
        if let (FileKind::Regular, Some(group)) = (&entry.metadata.kind, entry.metadata.link_group) {
            self.links.insert(group, Some((entry.metadata.clone(), entry.content)));
        }
        self.report.bytes_logical = self.report.bytes_logical.saturating_add(entry.metadata.size);
        if entry.is_file() {
            self.report_progress(1);
        }
        let sink = &mut self.sink;
        self.tree.push(&entry, &mut |chunk| sink.store(&chunk))
    }

    fn report_progress(&mut self, files: u64) {
        let read = self.shared.bytes_read.load(Ordering::Relaxed);
        let bytes = read - std::mem::replace(&mut self.bytes_reported, read);
        if bytes > 0 || files > 0 {
            self.shared.observer.on_event(&Event::Progress { bytes, files });
        }
    }

    fn problem(&mut self, path: Vec<u8>, error: Error) {
        self.shared.observer.on_event(&Event::FileProblem { path: &path, error: &error });
        self.report.problems.push(path, error);
    }

    fn absolute(&self, root: u32, path: &[u8]) -> Vec<u8> {
        let root = usize::try_from(root).ok().and_then(|r| self.roots.get(r));
        let mut absolute = root.map(|r| r.as_os_str().as_bytes().to_vec()).unwrap_or_default();
        if !path.is_empty() {
            absolute.push(b'/');
            absolute.extend_from_slice(path);
        }
        absolute
    }

    fn harvest(mut self) -> Result<Harvest> {
        let sink = &mut self.sink;
        let tree = self.tree.finish(&mut |chunk| sink.store(&chunk))?;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let metadata_bytes = self.sink.finish()?;
        let mut report = self.report;
        report.bytes_read = load(&self.shared.bytes_read);
        report.bytes_new = load(&self.shared.bytes_new);
        report.bytes_stored = load(&self.shared.bytes_stored) + metadata_bytes;
        report.chunks_new = load(&self.shared.chunks_new);
        Ok(Harvest { tree, report })
    }
}
