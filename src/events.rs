//! What the library reports while it works: it never prints.

use crate::error::Error;

/// Something that happened and that an observer may want to show.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A phase of the work begins.
    Phase {
        /// Its name in words: `reading`, `committing`.
        name: &'static str,
        /// The bytes of work ahead, if known.
        bytes_total: Option<u64>,
        /// The files of work ahead, if known.
        files_total: Option<u64>,
    },
    /// Work done since the last report of this kind.
    Progress {
        /// Bytes of content handled.
        bytes: u64,
        /// Files handled.
        files: u64,
    },
    /// The totals of the current phase became better known while it runs.
    Totals {
        /// Bytes of work in the phase, as far as known.
        bytes_total: u64,
        /// Files of work in the phase, as far as known.
        files_total: u64,
    },
    /// Something the user should know, that does not fail the run.
    Warning {
        /// One sentence.
        text: &'a str,
    },
    /// One file could not be handled as asked; the run goes on.
    FileProblem {
        /// The path, as bytes of its name.
        path: &'a [u8],
        /// What was wrong.
        error: &'a Error,
    },
    /// Detail for `-v`.
    Detail {
        /// One line.
        text: &'a str,
    },
}

/// Receives events, from any thread.
pub trait Observer: Send + Sync {
    /// Called for each event, in the order in which they happen on each thread.
    fn on_event(&self, event: &Event<'_>);

    /// True once the user has asked the run to end; long work checks it often and returns
    /// [`Kind::Interrupted`](crate::error::Kind::Interrupted).
    fn is_interrupted(&self) -> bool;

    /// True at most once in each interval (a few minutes of real time) in which a run is to give a sign of life. Asked often,
    /// from any thread, also while nothing moves.
    fn is_sign_due(&self) -> bool {
        false
    }

    /// True if someone looks at the progress, so that finding out totals beforehand is worth its cost.
    fn wants_totals(&self) -> bool {
        false
    }
}

/// An observer that ignores everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn on_event(&self, _event: &Event<'_>) {}

    fn is_interrupted(&self) -> bool {
        false
    }
}
