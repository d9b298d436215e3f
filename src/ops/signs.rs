//! Signs of life beside long work.
//!
//! A thread of its own gives them, so that they come while a huge file is read, while a stream says nothing, and while
//! storage is slow. When one is due is the observer's to say; here is no clock that matters.

use crate::error::Result;
use crate::events::Observer;
use crate::threads;
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
        let giver = threads::start(scope, move || {
            while is_ended.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if observer.is_sign_due() {
                    sign()?;
                }
            }
            Ok(())
        })?;
        let done = work();
        drop(ended);
        // A panic of the giver has lost signs and nothing else.
        giver.join().unwrap_or(Ok(())).and(done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use crate::events::Event;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct AlwaysDue;

    impl Observer for AlwaysDue {
        fn on_event(&self, _event: &Event<'_>) {}

        fn is_interrupted(&self) -> bool {
            false
        }

        fn is_sign_due(&self) -> bool {
            true
        }
    }

    #[test]
    fn signs_come_while_the_work_stands_still_and_their_failure_is_the_result() {
        let (told, hears) = crossbeam_channel::unbounded();
        let is_revoked = AtomicBool::new(false);
        let sign = || {
            let is_revoked = is_revoked.load(Ordering::Relaxed);
            let _ = told.send(is_revoked);
            if is_revoked { Err(Error::new(Kind::Busy, "revoked")) } else { Ok(()) }
        };
        let done = giving(&AlwaysDue, &sign, || Ok([hears.recv(), hears.recv()].map(|heard| heard.expect("a sign"))));
        assert_eq!(done.expect("no sign has failed"), [false, false]);
        is_revoked.store(true, Ordering::Relaxed);
        let until_it_fails = || {
            while !hears.recv().expect("a sign") {}
            Ok(())
        };
        assert_eq!(giving(&AlwaysDue, &sign, until_it_fails).expect_err("the sign failed").kind(), Kind::Busy);
    }
}
