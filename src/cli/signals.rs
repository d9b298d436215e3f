//! What SIGINT and SIGTERM do.
//!
//! A command that changes or writes something is asked to end by the first signal and ended at once by the second. A command
//! that only looks ends at the first. Either way the exit code is 130 or 143, and the repository is consistent: nothing becomes
//! visible in it before it is complete.

use ckpt::error::{Error, Kind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How a command takes a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The first signal asks, the second ends.
    Orderly,
    /// The first signal ends.
    AtOnce,
}

/// Whether a signal came, and which.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    seen: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM.
    pub fn install(manner: Manner) -> Result<Signals> {
        let signals = Signals::default();
        signals.seen.store(manner == Manner::AtOnce, Ordering::SeqCst);
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            // The order matters: the second signal must find `seen` set by the first, and the first not by itself.
            flag::register_conditional_shutdown(signal, code, Arc::clone(&signals.seen))
                .and_then(|_| {
                    flag::register_usize(signal, Arc::clone(&signals.number), usize::try_from(code).unwrap_or(0))
                })
                .and_then(|_| flag::register(signal, Arc::clone(&signals.seen)))
                .map_err(|e| Error::io("taking over the signals", e))?;
        }
        Ok(signals)
    }

    /// True once a signal asked the run to end.
    pub fn is_interrupted(&self) -> bool {
        self.number.load(Ordering::Relaxed) != 0
    }

    /// The exit code that belongs to the signal: 130 unless it was SIGTERM.
    pub fn exit_code(&self) -> u8 {
        u8::try_from(self.number.load(Ordering::Relaxed)).ok().filter(|&code| code != 0).unwrap_or(130)
    }

    /// The error of a run that ends because of a signal.
    pub fn interrupted() -> Error {
        Error::new(Kind::Interrupted, "interrupted; the repository is consistent")
    }
}
