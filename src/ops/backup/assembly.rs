//! The assembly: puts entries back into the order of the scan, in whatever order their content becomes ready, and passes
//! them to the tree. Keeps the books of the run, since here everything comes by once.

use super::gate::{Gate, left_out};
use super::held::{Held, Origin};
use super::metadata_sink::MetadataSink;
use super::shared::Shared;
use super::{BackupReport, Harvest};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::ids::ChunkId;
use crate::metadata::{FileKind, Metadata};
use crate::repo::entry;
use crate::repo::stream::{Child, NodeBuilder, StreamRef};
use crate::repo::tree::TreeBuilder;
use crate::source::scan::Found;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// An entry's place in the order of the scan.
enum Slot {
    /// Its content is under way.
    Waiting,
    Ready(Box<entry::Entry>, Origin),
    /// Another name of a file whose content is under way or known, and whether the parent had something at its path:
    /// resolved when its turn comes.
    Link(Box<Found>, bool),
    /// Left out.
    Void,
}

/// What the first name of a file with several brought: the same for all of them.
type FirstName = (Metadata, Option<StreamRef>);

/// See the module.
pub(super) struct Assembly<'a> {
    shared: &'a Shared<'a>,
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: u64,
    /// Files with several names, by device and inode: what the first name brought, once it is known.
    links: HashMap<(u64, u64), Option<FirstName>>,
    sink: MetadataSink<'a>,
    held: Held<'a>,
    tree: TreeBuilder,
    pub(super) report: BackupReport,
    bytes_reported: u64,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, gate: &'a Gate) -> Result<Assembly<'a>> {
        let mut assembly = Assembly {
            shared,
            slots: VecDeque::new(),
            first: 0,
            links: HashMap::new(),
            sink: MetadataSink::new(shared.transaction)?,
            held: Held::new(gate, shared.transaction.repo()),
            tree: TreeBuilder::default(),
            report: BackupReport::default(),
            bytes_reported: 0,
        };
        for (number, reason) in gate.left_out() {
            let path = gate.checkpoint(number).map(|c| gate.absolute(c.root, &c.path)).unwrap_or_default();
            assembly.report.checkpoints_left_out += 1;
            assembly.tell(path, Error::new(Kind::Failed, left_out(&reason)));
        }
        Ok(assembly)
    }

    /// The place that [`Assembly::reserve`] will take next.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Takes the next place for an entry whose content is still to come.
    pub(super) fn reserve(&mut self) -> u64 {
        self.slots.push_back(Slot::Waiting);
        self.newest()
    }

    /// The number of the place that was taken last.
    pub(super) fn newest(&self) -> u64 {
        (self.first + self.slots.len() as u64).saturating_sub(1)
    }

    /// How many entries wait for one before them.
    pub(super) fn waiting(&self) -> usize {
        self.slots.len()
    }

    /// Takes the next place for an entry that is complete.
    pub(super) fn push(&mut self, entry: Box<entry::Entry>) {
        self.slots.push_back(Slot::Ready(entry, Origin::Unchanged));
    }

    /// True if `found` is another name of a file seen before; it then has its place and needs no reading.
    pub(super) fn push_link(&mut self, found: Box<Found>, existed: bool) -> Result<(), Box<Found>> {
        let Some(group) = found.metadata.link_group else { return Err(found) };
        match self.links.entry(group) {
            Entry::Vacant(place) => {
                place.insert(None);
                Err(found)
            }
            Entry::Occupied(_) => {
                self.slots.push_back(Slot::Link(found, existed));
                Ok(())
            }
        }
    }

    /// Keeps a chunk of metadata.
    pub(super) fn store(&mut self, chunk: &[u8]) -> Result<ChunkId> {
        self.sink.store(chunk)
    }

    /// Builds the chunk list of a file.
    pub(super) fn chunk_list(&mut self, children: Vec<Child>) -> Result<Option<StreamRef>> {
        let mut nodes = NodeBuilder::default();
        let sink = &mut self.sink;
        for child in children {
            nodes.push(child, &mut |node| sink.store(&node))?;
        }
        nodes.finish(&mut |node| sink.store(&node))
    }

    /// The content for the place `sequence` is stored.
    pub(super) fn complete(
        &mut self,
        sequence: u64,
        found: Found,
        content: Option<StreamRef>,
        changed_while_read: bool,
        existed: bool,
    ) {
        let absolute = found.absolute.as_os_str().as_bytes();
        if changed_while_read && !self.held.fail(absolute, "changed while it was read") {
            let error = Error::new(Kind::Failed, "changed while it was read; what was read is stored and marked");
            self.tell(absolute.to_vec(), error);
        }
        let Found { root, path, metadata, .. } = found;
        let entry = entry::Entry { root, path, metadata, content, changed_while_read };
        self.set(sequence, Slot::Ready(Box::new(entry), origin(existed)));
    }

    /// The place `sequence` stays empty: its file could not be read.
    pub(super) fn give_up(&mut self, sequence: u64, path: Vec<u8>, error: Error) {
        self.set(sequence, Slot::Void);
        self.problem(path, error);
    }

    fn set(&mut self, sequence: u64, slot: Slot) {
        let position = usize::try_from(sequence - self.first).unwrap_or(usize::MAX);
        if let Some(place) = self.slots.get_mut(position) {
            *place = slot;
        }
    }

    /// Passes everything that has no unfinished predecessor to the tree.
    pub(super) fn emit_ready(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.front() {
            if matches!(slot, Slot::Waiting) {
                return Ok(());
            }
            self.first += 1;
            match self.slots.pop_front() {
                Some(Slot::Ready(entry, origin)) => self.emit(*entry, origin)?,
                Some(Slot::Link(found, existed)) => self.emit_link(*found, existed)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn emit_link(&mut self, found: Found, existed: bool) -> Result<()> {
        let first = found.metadata.link_group.and_then(|group| self.links.get(&group).cloned()).flatten();
        let Some((metadata, content)) = first else {
            let error = Error::new(Kind::Failed, "another name of a file that could not be read");
            self.problem(found.absolute.as_os_str().as_bytes().to_vec(), error);
            return Ok(());
        };
        let Found { root, path, .. } = found;
        self.emit(entry::Entry { root, path, metadata, content, changed_while_read: false }, origin(existed))
    }

    fn emit(&mut self, entry: entry::Entry, origin: Origin) -> Result<()> {
        if let (FileKind::Regular, Some(group)) = (&entry.metadata.kind, entry.metadata.link_group) {
            self.links.insert(group, Some((entry.metadata.clone(), entry.content)));
        }
        if entry.is_file() {
            self.report_progress(1);
        }
        self.held.push(entry, origin);
        self.pass_on()
    }

    /// Passes to the tree what is not held back.
    fn pass_on(&mut self) -> Result<()> {
        while let Some((entry, origin)) = self.held.pop() {
            self.count(&entry, origin);
            let sink = &mut self.sink;
            self.tree.push(&entry, &mut |chunk| sink.store(&chunk))?;
        }
        for (path, reason, is_out) in self.held.take_failed() {
            self.report.checkpoints_left_out += u64::from(is_out);
            let stored = || format!("the checkpoint is unfinished and stored all the same: {reason}");
            self.tell(path, Error::new(Kind::Failed, if is_out { left_out(&reason) } else { stored() }));
        }
        Ok(())
    }

    fn count(&mut self, entry: &entry::Entry, origin: Origin) {
        let report = &mut self.report;
        report.bytes_logical = report.bytes_logical.saturating_add(entry.metadata.size);
        let counter = match (&entry.metadata.kind, origin) {
            (FileKind::Directory, _) => &mut report.directories,
            (FileKind::Regular, Origin::New) => &mut report.files_new,
            (FileKind::Regular, Origin::Changed) => &mut report.files_changed,
            (FileKind::Regular, Origin::Unchanged) => &mut report.files_unchanged,
            _ => &mut report.others,
        };
        *counter += 1;
    }

    /// Tells the observer what was read since the last time, and how many files are done.
    pub(super) fn report_progress(&mut self, files: u64) {
        let read = self.shared.bytes_read.load(Ordering::Relaxed);
        let bytes = read - std::mem::replace(&mut self.bytes_reported, read);
        if bytes > 0 || files > 0 {
            self.shared.observer.on_event(&Event::Progress { bytes, files });
        }
    }

    /// Books a file that could not be handled as asked; one of a checkpoint is that checkpoint's reason.
    pub(super) fn problem(&mut self, path: Vec<u8>, error: Error) {
        if !self.held.fail(&path, &format!("could not be read: {error}")) {
            self.tell(path, error);
        }
    }

    fn tell(&mut self, path: Vec<u8>, error: Error) {
        self.shared.observer.on_event(&Event::FileProblem { path: &path, error: &error });
        self.report.problems.push(path, error);
    }

    /// Ends the tree and the last pack of metadata.
    pub(super) fn harvest(mut self) -> Result<Harvest> {
        self.held.decide_rest();
        self.pass_on()?;
        for (path, sentence) in self.held.dangling_pointers() {
            self.tell(path, Error::new(Kind::Failed, sentence));
        }
        self.report.checkpoints = self.held.records();
        self.report.files_beside = self.held.files_beside();
        let sink = &mut self.sink;
        let tree = self.tree.finish(&mut |chunk| sink.store(&chunk))?;
        let metadata_bytes = self.sink.finish()?;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut report = self.report;
        report.bytes_read = load(&self.shared.bytes_read);
        report.bytes_new = load(&self.shared.bytes_new);
        report.bytes_stored = load(&self.shared.bytes_stored) + metadata_bytes;
        report.chunks_new = load(&self.shared.chunks_new);
        Ok(Harvest { tree, report })
    }
}

fn origin(existed: bool) -> Origin {
    if existed { Origin::Changed } else { Origin::New }
}
