//! The walk over the source, a little ahead of the feed, in a thread of its own: system calls on one side, the comparison
//! with the parent on the other.
//!
//! Never far ahead: what a walk has seen grows old until it is read.

use crate::source::scan::{Scan, Scanned};
use crossbeam_channel::{Receiver, Sender, bounded};

/// What is handed over together.
const BATCH_ENTRIES: usize = 128;
/// Batches that wait.
const BATCHES_WAITING: usize = 2;

/// The two ends of the walk.
pub(super) fn ends() -> (Sender<Vec<Scanned>>, Receiver<Vec<Scanned>>) {
    bounded(BATCHES_WAITING)
}

/// Walks to the end, or until nobody takes anything any more.
pub(super) fn run(mut scan: Scan, batches: &Sender<Vec<Scanned>>) {
    loop {
        let batch: Vec<Scanned> = scan.by_ref().take(BATCH_ENTRIES).collect();
        if batch.is_empty() || batches.send(batch).is_err() {
            return;
        }
    }
}
