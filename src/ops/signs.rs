//! Signs of life beside long work.
//!
//! A thread of its own gives them, so that they come while a huge file is read, while a stream says nothing, and while
//! storage is slow. When one is due is the observer's to say; here is no clock that matters.

use crate::error::Result;
use crate::events::Observer;
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::time::Duration;

/// How often the observer is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Does `work` and calls `sign` whenever the observer says that a sign is due; an error of `sign` ends the signs and is the
/// result, whatever becomes of the work.
pub(super) fn giving<T>(
    observer: &dyn Observer,
    sign: &(dyn Fn() -> Result<()> + Sync),
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let (ended, is_ended) = bounded::<()>(0);
        let giver = scope.spawn(move || {
            while is_ended.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if observer.is_sign_due() {
                    sign()?;
                }
            }
            Ok(())
        });
        let done = work();
        drop(ended);
        // A panic of the giver has lost signs and nothing else.
        giver.join().unwrap_or(Ok(())).and(done)
    })
}
