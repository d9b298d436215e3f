//! What the robustness tests share: places, chance, checks that the machine forbids, and ready-made runs of the library.
//!
//! Nothing here judges: a support function fails a test only where it could not do its own work.

pub mod containers;
pub mod forge;
pub mod keys;
pub mod mounted;
pub mod program;
pub mod runs;
pub mod strace;
pub mod trees;
pub mod vault;
pub mod weights;
pub mod world;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

static NOT_RUN: AtomicU64 = AtomicU64::new(0);

/// Says that a check cannot be made on this machine, and why, past the capture of test output; counts it.
pub fn not_run(check: &str, reason: &str) {
    let count = NOT_RUN.fetch_add(1, Ordering::Relaxed) + 1;
    say(&format!("NOT RUN: {check}: {reason} ({count} so far)"));
}

/// A line on stderr that is seen without `--nocapture`: counts and seeds of long tests.
pub fn say(line: &str) {
    use std::io::Write;
    // The handle, unlike the macro, is not captured. A closed stderr must not fail a test.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The number in an environment variable, else `usual`.
pub fn setting(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    }
}

/// The seed of this run: `CKPT_TEST_SEED`, else always the same one.
pub fn seed() -> u64 {
    setting("CKPT_TEST_SEED", 20_261_121)
}

/// A folder in memory if there is one: for what is written thousands of times.
pub fn quick_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).expect("a folder for the test")
}

/// A folder on a disk, where holes, attributes and direct I/O are those of a real file system.
pub fn disk_folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

/// True if this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A stream of choices that follows from its seed (SplitMix64 by Steele, Lea and Flood).
#[derive(Debug, Clone)]
pub struct Chance(pub u64);

impl Chance {
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// An index into something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }
}

/// Bytes that look random and follow from the seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Does `work` for each number below `count` on two threads and adds up what it returns.
///
/// Plain threads: a thread of rayon's pool that waits in a restore would begin another piece of work on the same stack.
pub fn in_parallel(count: u64, work: impl Fn(u64) -> u64 + Sync) -> u64 {
    let next = AtomicU64::new(0);
    let worker = || {
        let mut sum = 0;
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                number if number < count => sum += work(number),
                _ => return sum,
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        let sums = threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        sums.iter().sum()
    })
}
