//! The threads of a backup and the queues between them.
//!
//! One coordinator (the calling thread), `threads` workers, readers for what is not cached, and lanes that write packs. The coordinator bounds what is
//! under way, so the queues to and from it need no bound of their own; the one to the lanes has one, so that slow storage
//! slows the workers.

use super::approach::{Approach, Policy};
use super::assembly::Assembly;
use super::bases::catalog::Catalog;
use super::coordinator::Coordinator;
use super::feed::{self, Feed, Merge};
use super::gate::Gate;
use super::reading::Queues;
use super::shared::Shared;
use super::worker::Done;
use super::{BackupOptions, Harvest, Input, forecast, packs, reading, scan_ahead, worker};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::{FileKind, FileTime, Metadata};
use crate::ops::{Resources, signs};
use crate::repo::config::Config;
use crate::repo::snapshots::Snapshot;
use crate::repo::transaction::{OPEN_PACK_BYTES, Transaction};
use crate::source::scan::{Found, ScanOptions, Way};
use crate::threads;
use crossbeam_channel::{Receiver, bounded, unbounded};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Batches of frames that may wait for a lane, of some 3 MB each: while a lane makes a pack durable, which takes as long
/// as several batches, no worker has to wait.
const BATCHES_WAITING: usize = 7;

/// The share of memory, one of so many, for looking up what has not changed.
const FORESEEN_SHARE: u64 = 8;

/// The most lanes: storage is fast enough for no more to be of use.
const LANES_MAX: usize = 4;

/// Reads, cuts, codes and stores everything, giving signs of life meanwhile; on return all packs are durable.
pub(super) fn run(
    transaction: &Transaction<'_>,
    input: &mut Input<'_>,
    scan_options: &ScanOptions,
    parent: Option<&Snapshot>,
    options: &BackupOptions<'_>,
    observer: &dyn Observer,
) -> Result<Harvest> {
    let shared = Shared::new(transaction, options, observer)?;
    let sign = || {
        let given = transaction.sign_of_life((options.now)());
        given.inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))
    };
    signs::giving(observer, &sign, || store_all(&shared, input, scan_options, parent, options))
}

fn store_all(
    shared: &Shared<'_>,
    input: &mut Input<'_>,
    scan_options: &ScanOptions,
    parent: Option<&Snapshot>,
    options: &BackupOptions<'_>,
) -> Result<Harvest> {
    let (transaction, observer) = (shared.transaction, shared.observer);
    let gate = match input {
        Input::Paths(roots) => {
            observer.on_event(&Event::Phase { name: "looking for checkpoints", bytes_total: None, files_total: None });
            Gate::new(roots, scan_options, options, observer)?
        }
        Input::Stream { .. } => Gate::default(),
    };
    observer.on_event(&Event::Phase { name: "backing up", bytes_total: None, files_total: None });
    let threads = options.resources.threads.max(1);
    let lanes = lanes(options.resources, transaction.repo().config());
    let (task_sender, task_receiver) = unbounded();
    let (unread_sender, unread_receiver) = unbounded();
    let (done_sender, done_receiver) = unbounded();
    let (full_sender, full_receiver) = bounded(lanes + BATCHES_WAITING);
    let (empty_sender, empty_receiver) = unbounded();
    std::thread::scope(|scope| {
        let lane_threads = threads::start_some(scope, lanes, || {
            let (full, empty) = (full_receiver.clone(), empty_sender.clone());
            move || packs::run(transaction, &full, &empty).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))
        })?;
        drop(full_receiver);
        threads::start_some(scope, threads, || {
            let (tasks, done) = (task_receiver.clone(), done_sender.clone());
            let (full, empty) = (full_sender.clone(), empty_receiver.clone());
            move || worker::run(shared, &tasks, &done, &full, &empty)
        })?;
        threads::start_some(scope, reading::READERS, || {
            let (unread, tasks) = (unread_receiver.clone(), task_sender.clone());
            move || reading::run(shared, &unread, &tasks)
        })?;
        drop((task_receiver, unread_receiver, done_sender, full_sender));
        let queues = Queues { workers: task_sender, readers: unread_sender };
        let harvest = drive(shared, &gate, queues, &done_receiver, input, parent, options);
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

/// How many lanes there are: one beside each thread that computes, so that none of them waits while a pack becomes durable,
/// and no more than have room for their open packs.
fn lanes(resources: Resources, config: &Config) -> usize {
    let room = resources.memory_bytes / 4 / (OPEN_PACK_BYTES * packs::packs_at_once(config) as u64);
    resources.threads.clamp(1, LANES_MAX.min(usize::try_from(room).unwrap_or(usize::MAX).max(1)))
}

fn drive(
    shared: &Shared<'_>,
    gate: &Gate,
    queues: Queues,
    done: &Receiver<Done>,
    input: &mut Input<'_>,
    parent: Option<&Snapshot>,
    options: &BackupOptions<'_>,
) -> Result<Harvest> {
    let repo = shared.transaction.repo();
    let fetch = |id| repo.read_chunk(id);
    let roots: Vec<PathBuf> = match input {
        Input::Paths(paths) => paths.clone(),
        Input::Stream { .. } => Vec::new(),
    };
    let merge = |scan| Merge::new(scan, gate, &fetch, repo, parent);
    let forecast_stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if shared.observer.wants_totals() && !roots.is_empty() {
            let (merge, stop) = (merge(Box::new(gate.scan())), &forecast_stop);
            // Without it, no time that is left is told.
            let _ = threads::start(scope, move || forecast::run(merge, options.reread, stop, shared.observer));
        }
        let (batches, scanned) = scan_ahead::ends();
        let feed = Feed::new(merge(Box::new(scanned.into_iter().flatten())), shared.transaction, options.reread)
            .expecting(parent.map_or(0, |p| p.totals.files), options.resources.memory_bytes / FORESEEN_SHARE);
        let (item_batches, items) = feed::ends();
        threads::start(scope, move || scan_ahead::run(gate.scan(), &batches))
            .and_then(|_| threads::start(scope, move || feed.run(&item_batches)))
            .inspect_err(|_| forecast_stop.store(true, Ordering::Relaxed))?;
        let policy = Policy {
            cuts_by_content: options.cuts_by_content,
            deltas: options.delta_depth > 0 && options.compression != Compression::Off,
        };
        let approach = Approach::new(shared, Catalog::new(shared, parent), policy);
        let assembly = Assembly::new(shared, gate)?;
        let mut coordinator = Coordinator::new(shared, assembly, queues, &roots, items, approach, options.resources);
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
        way: Way::default(),
    })
}
