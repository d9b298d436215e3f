//! The forecast: how many bytes a backup will have to read, found out beside the work.
//!
//! It walks the source and the parent a second time, which only happens when someone looks at the progress.

use super::feed::Merge;
use crate::events::{Event, Observer};
use crate::metadata::FileKind;
use crate::source::scan::Scanned;
use std::sync::atomic::{AtomicBool, Ordering};

/// Counts what has to be read and reports the totals once they are known.
pub(super) fn run(mut merge: Merge<'_>, reread: bool, stop: &AtomicBool, observer: &dyn Observer) {
    let (mut bytes_total, mut files_total) = (0u64, 0u64);
    while let Some((scanned, _, is_same)) = merge.next_pair() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Scanned::Entry(found) = scanned else { continue };
        if found.metadata.kind == FileKind::Regular {
            files_total += 1;
            if !is_same || reread {
                bytes_total = bytes_total.saturating_add(found.metadata.size);
            }
        }
    }
    observer.on_event(&Event::Totals { bytes_total, files_total });
}
