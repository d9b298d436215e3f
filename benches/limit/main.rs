//! `cargo bench --bench limit -- --source DIR --out DIR`: how fast this machine can back up and restore bf16 data at
//! best, measured run by run beside a command of your choice.
//!
//! A minimal program without names, metadata, index or repair data. Backup: read the files in pieces of 1 MiB, BLAKE3
//! of each, rotate and split the 16-bit elements, Huffman on the exponent plane, decode it again and compare with the
//! source, gather packs of 64 MiB with their BLAKE3, direct writes of 8 MiB, `fsync` of each pack. Restore: direct
//! reads, decode, BLAKE3, direct writes, `fsync`. Every number of threads from 1 to 6 is tried; the fastest counts.
//!
//! It uses nothing of the library, so that a mistake there cannot move the limit. `docs/BENCHMARKS.md` says how to read
//! its table.

#![expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]

#[path = "../support/checkpoint.rs"]
mod checkpoint;
mod code;
mod direct;
#[path = "../support/gaussian.rs"]
mod gaussian;
mod restore;
mod store;
#[path = "../support/timing.rs"]
mod timing;

use clap::{Parser, ValueEnum};
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use store::{Source, Unit};

#[derive(Parser)]
struct Arguments {
    /// Directory whose files (not those of its subdirectories) are the source
    #[arg(long, required_unless_present = "generate")]
    source: Option<PathBuf>,
    /// Directory to write packs and restored files into; what an earlier run left there is deleted
    #[arg(long, required_unless_present = "generate")]
    out: Option<PathBuf>,
    /// Which half to measure
    #[arg(long, value_enum, default_value = "backup")]
    phase: Phase,
    /// Measured runs, after the search for the best number of threads
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only this number of threads instead of 1 to 6
    #[arg(long)]
    threads: Option<usize>,
    /// A shell command to time in turn with the limit
    #[arg(long, value_name = "COMMAND")]
    with: Option<String>,
    /// A shell command to run before each run of --with, not timed
    #[arg(long, value_name = "COMMAND")]
    before: Option<String>,
    /// Drop the source from the page cache before each run
    #[arg(long)]
    cold: bool,
    /// Write a synthetic checkpoint into this directory, and nothing else
    #[arg(long, value_name = "DIR")]
    generate: Option<PathBuf>,
    /// The size of the synthetic checkpoint, with K, M or G for powers of 1024
    #[arg(long, default_value = "4G", value_parser = parse_bytes)]
    bytes: u64,
    /// The seed of the synthetic checkpoint
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phase {
    Backup,
    Restore,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.generate {
        let (elapsed, paths) = timing::time(|| checkpoint::generate(directory, arguments.bytes, arguments.seed));
        for path in paths? {
            println!("{} {} bytes", path.display(), fs::metadata(&path)?.len());
        }
        println!("seed {}, {:.1} s", arguments.seed, elapsed.as_secs_f64());
        return Ok(());
    }
    let (Some(source), Some(out)) = (&arguments.source, &arguments.out) else { return Err("no --source".into()) };
    let sources = open_sources(source)?;
    let bytes: u64 = sources.iter().map(|source| source.len).sum();
    println!("{} files, {bytes} bytes, in {}", sources.len(), source.display());
    let limit = Limit { sources, out, phase: arguments.phase, cold: arguments.cold };
    limit.measure(&arguments)
}

/// The program whose speed is the limit, with what it works on.
struct Limit<'a> {
    sources: Vec<Source>,
    out: &'a Path,
    phase: Phase,
    cold: bool,
}

impl Limit<'_> {
    fn measure(&self, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
        let units = self.prepare()?;
        let threads = match arguments.threads {
            Some(threads) => threads,
            None => self.best_threads(&units)?,
        };
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for run in 1..=arguments.runs {
            let elapsed = self.run_once(&units, threads)?;
            println!("run {run}: limit {:.2} s", elapsed.as_secs_f64());
            own.push(elapsed);
            if let Some(command) = &arguments.with {
                let elapsed = self.run_command(command, arguments.before.as_deref())?;
                println!("run {run}: command {:.2} s", elapsed.as_secs_f64());
                others.push(elapsed);
            }
        }
        let stored: u64 = units.iter().map(store::stored_len).sum();
        let bytes: u64 = self.sources.iter().map(|source| source.len).sum();
        println!("\nstored {:.4} of the source, {threads} threads, {} runs\n", stored as f64 / bytes as f64, own.len());
        println!("{:<10} {:>9} {:>9} {:>9} {:>9}", "", "best s", "median s", "GB/s", "x limit");
        let limit_median = timing::median_seconds(&own);
        for (name, times) in [("limit", &own), ("command", &others)] {
            if let Some(best) = times.iter().min() {
                let (best, median) = (best.as_secs_f64(), timing::median_seconds(times));
                let speed = bytes as f64 / median / 1e9;
                println!("{name:<10} {best:>9.2} {median:>9.2} {speed:>9.2} {:>9.2}", median / limit_median);
            }
        }
        self.clear()
    }

    /// Warms the page cache and makes the packs that a restore reads.
    fn prepare(&self) -> Result<Vec<Unit>, Box<dyn Error>> {
        fs::create_dir_all(self.out)?;
        self.clear()?;
        let packs = self.fresh_directory("packs")?;
        Ok(store::run(&self.sources, &packs, 2)?)
    }

    /// The number of threads with the shortest of two runs.
    fn best_threads(&self, units: &[Unit]) -> Result<usize, Box<dyn Error>> {
        let mut best = [Duration::MAX; 6];
        for _ in 0..2 {
            for (i, best) in best.iter_mut().enumerate() {
                *best = (*best).min(self.run_once(units, i + 1)?);
            }
        }
        for (i, best) in best.iter().enumerate() {
            println!("{} threads: {:.2} s", i + 1, best.as_secs_f64());
        }
        Ok(best.iter().enumerate().min_by_key(|(_, best)| **best).map_or(1, |(i, _)| i + 1))
    }

    fn run_once(&self, units: &[Unit], threads: usize) -> Result<Duration, Box<dyn Error>> {
        let result = match self.phase {
            Phase::Backup => {
                let packs = self.fresh_directory("packs")?;
                self.settle()?;
                let (elapsed, units) = timing::time(|| store::run(&self.sources, &packs, threads));
                units.map(|_| elapsed)
            }
            Phase::Restore => {
                let target = self.fresh_directory("restored")?;
                self.settle()?;
                let packs = self.out.join("packs");
                let (elapsed, done) = timing::time(|| restore::run(&self.sources, units, &packs, &target, threads));
                done.map(|()| elapsed)
            }
        };
        Ok(result?)
    }

    fn run_command(&self, command: &str, before: Option<&str>) -> Result<Duration, Box<dyn Error>> {
        let shell = |command: &str| -> Result<(), Box<dyn Error>> {
            let status = Command::new("sh").arg("-c").arg(command).stdout(std::io::stderr()).status()?;
            if status.success() { Ok(()) } else { Err(format!("{command}: {status}").into()) }
        };
        if let Some(before) = before {
            shell(before)?;
        }
        self.settle()?;
        let (elapsed, done) = timing::time(|| shell(command));
        done.map(|()| elapsed)
    }

    /// Brings the disk to rest, so that no run pays for what the one before left to write; drops the source if cold.
    fn settle(&self) -> Result<(), Box<dyn Error>> {
        rustix::fs::sync();
        if self.cold {
            for source in &self.sources {
                rustix::fs::fadvise(&source.file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }

    fn fresh_directory(&self, name: &str) -> Result<PathBuf, Box<dyn Error>> {
        let path = self.out.join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Deletes what this program wrote, and nothing else.
    fn clear(&self) -> Result<(), Box<dyn Error>> {
        for name in ["packs", "restored"] {
            let path = self.out.join(name);
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }
}

fn open_sources(directory: &Path) -> Result<Vec<Source>, Box<dyn Error>> {
    let mut sources = Vec::new();
    let entries = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            let file = File::open(&path)?;
            sources.push(Source { len: file.metadata()?.len(), file, path });
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too much"))
}
