//! Starting threads, which may fail: a system or a user has only so many, and each takes memory.
//!
//! Who starts threads here gets an error instead of a panic. Threads that are waited for by others must get what they wait
//! for by way of channels whose other ends go when the starter gives up; then nobody waits for ever.

use crate::error::{Error, Result};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts a thread in `scope`.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|error| {
        Error::io("starting a thread", error).with_hint(
            "give this user more threads (`ulimit -u`) or memory (`ulimit -v`), or run with less by `--threads 1`",
        )
    })
}

/// Starts up to `count` threads that do the same, at least one: fewer if no more are to be had.
pub fn start_some<'scope, T: Send + 'scope, W: FnOnce() -> T + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    mut work: impl FnMut() -> W,
) -> Result<Vec<ScopedJoinHandle<'scope, T>>> {
    let mut started = vec![start(scope, work())?];
    for _ in 1..count {
        match start(scope, work()) {
            Ok(thread) => started.push(thread),
            Err(_) => break,
        }
    }
    Ok(started)
}
