//! `--background`: everything else on the machine comes first.
//!
//! The whole process takes the lowest priority for processors (nice 19) and the idle class for disks. Both are properties of
//! threads that new ones inherit, so this comes before any thread is started. Nothing makes them higher again.
//!
//! The system call for disks has no safe interface in the libraries in use, so `ionice` of util-linux makes it. Without that
//! program the kernel derives the priority for disks from nice: the lowest of the usual class. Schedulers that know no
//! priorities (`none`) do without either.

use super::output::Output;
use std::process::{Command, Stdio};

/// The lowest priority for processors.
const NICE: i32 = 19;

/// Puts this process behind all others. What cannot be done is said, and the run goes on.
pub fn enter(output: &Output) {
    if let Err(errno) = rustix::process::nice(NICE) {
        output.warning(&format!("the priority for processors stays as it is: {errno}"));
    }
    let process = std::process::id().to_string();
    let mut ionice = Command::new("ionice");
    ionice.args(["-c", "3", "-p", &process]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let reason = match ionice.status() {
        Ok(status) if status.success() => return,
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    output.warning(&format!("the idle priority for disks could not be set, a low one is: ionice: {reason}"));
}
