//! What is measured, each step in a process of its own, so that its peak memory is its own.

use crate::synthetic::{self, text};
use ckpt::error::{Error, Result};
use ckpt::events::Silent;
use ckpt::ids::{ChunkId, SnapshotId};
use ckpt::metadata::FileTime;
use ckpt::ops::Resources;
use ckpt::ops::backup::{BackupOptions, Input, backup};
use ckpt::ops::info::info;
use ckpt::repo::transaction::Transaction;
use ckpt::repo::{Cache, Repo};
use clap::ValueEnum;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Chunks of a backup of 4 GB, and how many are asked for at once.
pub const ASKED: u64 = 16_000;
const ASKED_AT_ONCE: usize = 8;
/// The chunks of one pack that is added.
const CHUNKS_OF_PACK: u64 = 280;
const PACKS_ADDED: u64 = 60;

/// One figure: its name, its time by the clock and its processor time.
pub type Figure = (&'static str, Duration, Duration);

/// Measures both times.
struct Watch {
    begin: Instant,
    processor: Duration,
}

impl Watch {
    fn start() -> Watch {
        Watch { begin: Instant::now(), processor: processor_time() }
    }

    fn figure(&self, name: &'static str) -> Figure {
        (name, self.begin.elapsed(), processor_time() - self.processor)
    }
}

/// User and system time of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Opens the repository; makes the database if there is none.
    Open,
    /// Asks for chunks that are not there, as a backup does.
    Missing,
    /// Asks for chunks that are there.
    Known,
    /// Adds packs.
    Add,
    /// Backs up.
    Backup,
}

/// Where a repository and its database lie.
pub struct Place<'a> {
    pub repository: &'a Path,
    pub cache: &'a Path,
    pub chunks: u64,
}

impl Place<'_> {
    /// Does the step and tells how long its parts took.
    pub fn run(&self, step: Step, source: &Path, seed: u64) -> Result<Vec<Figure>> {
        let watch = Watch::start();
        let repo = Repo::open(&text(self.repository), &Cache::Folder(self.cache.to_owned()), &Silent)?;
        let opened = watch.figure("open");
        let watch = Watch::start();
        match step {
            Step::Open => {
                info(&repo)?;
                Ok(vec![opened, watch.figure("info")])
            }
            Step::Missing => self.ask(&repo, false, |number| synthetic::missing(seed * ASKED + number)),
            Step::Known => {
                let spread = |number: u64| (seed + number) * (self.chunks / ASKED).max(1) % self.chunks;
                self.ask(&repo, true, |number| synthetic::stored(spread(number)))
            }
            Step::Add => {
                add(&repo, seed)?;
                Ok(vec![watch.figure("add")])
            }
            Step::Backup => {
                back_up(&repo, source)?;
                Ok(vec![opened, watch.figure("backup")])
            }
        }
    }

    /// Begins a run that writes nothing, and asks it for chunks.
    fn ask(&self, repo: &Repo, is_stored: bool, id: impl Fn(u64) -> ChunkId) -> Result<Vec<Figure>> {
        let ids: Vec<ChunkId> = (0..ASKED).map(id).collect();
        let watch = Watch::start();
        let transaction = Transaction::rehearse(repo)?;
        let begun = watch.figure("begin");
        let watch = Watch::start();
        for ids in ids.chunks(ASKED_AT_ONCE) {
            if transaction.known(ids)?.iter().any(|&known| known != is_stored) {
                return Err(Error::damaged("the index does not know what it should, or more"));
            }
        }
        Ok(vec![begun, watch.figure("ask")])
    }
}

/// The chunks of a repository.
pub fn count(repository: &Path, cache: &Path) -> Result<u64> {
    let repo = Repo::open(&text(repository), &Cache::Folder(cache.to_owned()), &Silent)?;
    repo.index().unique_chunks().map(|(chunks, _)| chunks)
}

/// Adds packs one by one, as a backup does.
fn add(repo: &Repo, seed: u64) -> Result<()> {
    for number in 0..PACKS_ADDED {
        let first = (1 << 60) + (seed * PACKS_ADDED + number) * CHUNKS_OF_PACK;
        let (mut next, end) = (first, first + CHUNKS_OF_PACK);
        let (pack, _) = synthetic::pack(first, SnapshotId::from_bytes([9; 16]), &mut next, end)?;
        repo.index().add_packs(&[pack], None)?;
    }
    Ok(())
}

fn back_up(repo: &Repo, source: &Path) -> Result<()> {
    let now = || {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        FileTime { seconds: i64::try_from(elapsed.as_secs()).unwrap_or(0), nanoseconds: 0 }
    };
    let options = BackupOptions::usual("bench", &now, Resources { threads: 2, memory_bytes: 512 << 20 });
    backup(repo, Input::Paths(vec![source.to_owned()]), &options, &Silent).map(|_| ())
}
