//! What a user can ask for: one file each, a function with Options and a Report.
//!
//! No operation calls another (composition lives in the program), none prints, none reads the clock or the environment:
//! both are given in the Options.

pub mod ahead;
pub mod audit;
pub mod backup;
pub mod diff;
pub mod diff_tensors;
pub mod dump;
pub mod dump_tensor;
pub(crate) mod examine;
pub mod find;
pub mod forget;
pub mod info;
pub mod init;
pub mod keys;
pub mod list;
pub mod list_tensors;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod restore_tensors;
pub mod retention;
pub mod stats;
pub mod tag;
pub mod tensors;
pub mod verify;
pub mod verify_against;

use crate::error::Error;

/// How much of the machine a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Threads that compute; at least 1.
    pub threads: usize,
    /// Bytes of memory that a run aims to stay under, all buffers together.
    pub memory_bytes: u64,
}

/// A file that could not be handled as asked.
#[derive(Debug)]
pub struct FileProblem {
    /// The path as the user knows it (absolute for sources, relative to the target for restores).
    pub path: Vec<u8>,
    /// What was wrong.
    pub error: Error,
}

/// The problems of a run: all are counted, the first [`Problems::KEPT_MAX`] are kept.
#[derive(Debug, Default)]
pub struct Problems {
    /// How many there were.
    pub count: u64,
    /// The first of them.
    pub kept: Vec<FileProblem>,
}

impl Problems {
    /// How many problems are kept with their text.
    pub const KEPT_MAX: usize = 1000;

    /// Counts a problem and keeps it if there is room.
    pub fn push(&mut self, path: Vec<u8>, error: Error) {
        self.count += 1;
        if self.kept.len() < Self::KEPT_MAX {
            self.kept.push(FileProblem { path, error });
        }
    }

    /// True if nothing went wrong.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
