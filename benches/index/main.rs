//! `cargo bench --bench index -- --generate DIR --chunks 50M`, then `cargo bench --bench index -- --measure DIR`: what the
//! index costs in a repository of many chunks.
//!
//! The repository is made without data (`synthetic.rs`); every step is measured in a process of its own (`steps.rs`), the
//! database in the page cache and not. What a step adds to the repository or the database is taken away behind it, and what a
//! killed run has left before the first. `docs/BENCHMARKS.md` says how to read the table.

#![expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]

#[path = "../support/checkpoint.rs"]
mod checkpoint;
#[path = "../support/gaussian.rs"]
mod gaussian;
mod steps;
mod synthetic;
#[path = "../support/timing.rs"]
mod timing;

use clap::Parser;
use rustix::fs::Advice;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use steps::{ASKED, Place, Step};

#[derive(Parser)]
struct Arguments {
    /// Make a repository in DIR/repository, and a list of its objects in DIR/objects
    #[arg(long, value_name = "DIR")]
    generate: Option<PathBuf>,
    /// Measure with the repository in DIR/repository; takes DIR/cache, DIR/saved, DIR/empty and DIR/source
    #[arg(long, value_name = "DIR", required_unless_present = "generate")]
    measure: Option<PathBuf>,
    /// How many chunks the repository that is made has, with K or M for powers of 1000
    #[arg(long, default_value = "5M", value_parser = parse_count)]
    chunks: u64,
    /// Measured runs of each step
    #[arg(long, default_value_t = 3)]
    runs: u64,
    /// Only these steps
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
    /// How much is backed up, in GiB
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// Do one step in this process
    #[arg(long, value_enum, hide = true)]
    step: Option<Step>,
    /// The repository of the step
    #[arg(long, hide = true, default_value = "repository")]
    repository: String,
    /// Sets runs of a step apart
    #[arg(long, hide = true, default_value_t = 0)]
    seed: u64,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.generate {
        let made = timing::time(|| synthetic::generate(&folder.join("repository"), arguments.chunks));
        let (elapsed, (packs, bytes)) = (made.0, made.1.map_err(|error| error.to_string())?);
        list_objects(folder)?;
        println!(
            "{} chunks, {packs} packs, {bytes} bytes of content, {:.0} s",
            arguments.chunks,
            elapsed.as_secs_f64()
        );
        return Ok(());
    }
    let Some(folder) = &arguments.measure else { return Err("no --measure".into()) };
    if let Some(step) = arguments.step {
        return run_step(folder, step, &arguments);
    }
    let mut bench =
        Bench { folder, arguments: &arguments, objects: listed_objects(folder)?, chunks: 0, rows: BTreeMap::new() };
    bench.measure()?;
    bench.print();
    Ok(())
}

/// Does one step and prints a line for each figure, and one for the memory.
fn run_step(folder: &Path, step: Step, arguments: &Arguments) -> Outcome<()> {
    let cache = folder.join(if arguments.repository == "repository" { "cache" } else { "empty-cache" });
    let place = Place { repository: &folder.join(&arguments.repository), cache: &cache, chunks: arguments.chunks };
    let figures = place.run(step, &folder.join("source"), arguments.seed).map_err(|error| format!("{error:?}"))?;
    let peak_kib = peak_kib()?;
    for (name, elapsed, processor) in figures {
        println!("{name} {} {} {peak_kib}", elapsed.as_micros(), processor.as_micros());
    }
    Ok(())
}

/// The most memory that this process ever had.
fn peak_kib() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// What was measured for one row: seconds of each run, the most memory of any.
#[derive(Default)]
struct Row {
    times: Vec<Duration>,
    processor_times: Vec<Duration>,
    peak_kib: u64,
}

struct Bench<'a> {
    folder: &'a Path,
    arguments: &'a Arguments,
    /// The files of the repository as it was made.
    objects: BTreeSet<PathBuf>,
    chunks: u64,
    rows: BTreeMap<String, Row>,
}

impl Bench<'_> {
    fn measure(&mut self) -> Outcome<()> {
        let wanted = |step: Step| self.arguments.only.is_empty() || self.arguments.only.contains(&step);
        let (open, back_up) = (wanted(Step::Open), wanted(Step::Backup));
        let others: Vec<Step> = [Step::Missing, Step::Known, Step::Add].into_iter().filter(|&s| wanted(s)).collect();
        let cache = self.folder.join("cache");
        self.take_objects_away()?;
        for run in 0..self.arguments.runs {
            if open || run == 0 {
                remove(&cache)?;
                self.step("made anew", Step::Open, "repository", run)?;
                self.save_cache()?;
            }
            if run == 0 {
                self.chunks =
                    steps::count(&self.folder.join("repository"), &cache).map_err(|error| error.to_string())?;
            }
            for (state, is_cold) in [("warm", false), ("cold", true)] {
                let steps = open.then_some(Step::Open).into_iter().chain(others.iter().copied());
                for step in steps {
                    if is_cold {
                        evict(&cache)?;
                    }
                    self.step(state, step, "repository", 2 * run + u64::from(is_cold))?;
                    if step == Step::Add {
                        self.put_cache_back()?;
                    }
                }
            }
        }
        if back_up {
            self.measure_backups()?;
        }
        remove(&self.folder.join("saved"))
    }

    /// Backs up the same into an empty repository and into the big one, in turns.
    fn measure_backups(&mut self) -> Outcome<()> {
        let place = |name: &str| self.folder.join(name);
        let (source, cache) = (place("source"), place("cache"));
        let (empty, empty_cache) = (place("empty"), place("empty-cache"));
        remove(&source)?;
        checkpoint::generate(&source, self.arguments.gib << 30, 1)?;
        for run in 0..self.arguments.runs {
            for (state, repository) in [("empty", "empty"), ("warm", "repository"), ("cold", "repository")] {
                remove(&empty)?;
                remove(&empty_cache)?;
                if state == "empty" {
                    synthetic::empty(&empty).map_err(|error| error.to_string())?;
                }
                rustix::fs::sync();
                if state == "cold" {
                    evict(&cache)?;
                }
                self.step(state, Step::Backup, repository, run)?;
                if repository == "repository" {
                    self.take_objects_away()?;
                    self.put_cache_back()?;
                }
            }
        }
        [&source, &empty, &empty_cache].into_iter().try_for_each(|folder| remove(folder))
    }

    /// Removes from the repository what it did not have when it was made.
    fn take_objects_away(&self) -> Outcome<()> {
        for new in files(&self.folder.join("repository"))?.difference(&self.objects) {
            fs::remove_file(new)?;
        }
        Ok(())
    }

    fn save_cache(&self) -> Outcome<()> {
        remove(&self.folder.join("saved"))?;
        copy(&self.folder.join("cache"), &self.folder.join("saved"))
    }

    fn put_cache_back(&self) -> Outcome<()> {
        remove(&self.folder.join("cache"))?;
        copy(&self.folder.join("saved"), &self.folder.join("cache"))?;
        rustix::fs::sync();
        Ok(())
    }

    /// Does a step in a process of its own and keeps its figures.
    fn step(&mut self, state: &str, step: Step, repository: &str, seed: u64) -> Outcome<()> {
        let name = format!("{step:?}").to_lowercase();
        let (chunks, seed) = (self.chunks.to_string(), seed.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--measure").arg(self.folder).args(["--step", &name, "--repository", repository]);
        let output = command.args(["--chunks", &chunks, "--seed", &seed]).output()?;
        if !output.status.success() {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let text = String::from_utf8(output.stdout)?;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let figure = words.next().unwrap_or_default();
            let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
            let &[micros, processor_micros, peak_kib] = numbers.as_slice() else { return Err(line.into()) };
            println!("{name}, {state}: {figure} {:.4} s, peak {} MiB", micros as f64 / 1e6, peak_kib >> 10);
            let row = self.rows.entry(format!("{name} {state}: {figure}")).or_default();
            row.times.push(Duration::from_micros(micros));
            row.processor_times.push(Duration::from_micros(processor_micros));
            row.peak_kib = row.peak_kib.max(peak_kib);
        }
        Ok(())
    }

    fn print(&self) {
        let bytes = files(&self.folder.join("cache")).unwrap_or_default();
        let bytes: u64 = bytes.iter().filter_map(|path| fs::metadata(path).ok()).map(|found| found.len()).sum();
        println!(
            "\n{} chunks, {} runs, {ASKED} asked for; database {} MiB",
            self.chunks,
            self.arguments.runs,
            bytes >> 20
        );
        println!("{:<28} {:>10} {:>12} {:>10}", "", "median s", "processor s", "peak MiB");
        for (name, row) in &self.rows {
            let [seconds, processor] = [&row.times, &row.processor_times].map(|times| timing::median_seconds(times));
            println!("{name:<28} {seconds:>10.4} {processor:>12.4} {:>10}", row.peak_kib >> 10);
        }
        if let Some(row) = self.rows.get("open made anew: open") {
            let rate = self.chunks as f64 / timing::median_seconds(&row.times) / 1e6;
            println!("made anew: {rate:.3} million chunks/s");
        }
    }
}

/// Drops the files in `folder` from the page cache.
fn evict(folder: &Path) -> Outcome<()> {
    for path in files(folder)? {
        let file = File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Outcome<()> {
    if folder.exists() { Ok(fs::remove_dir_all(folder)?) } else { Ok(()) }
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    for path in files(from)? {
        let target = to.join(path.strip_prefix(from)?);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(path, target)?;
    }
    Ok(())
}

/// Writes down which files the repository has.
fn list_objects(folder: &Path) -> Outcome<()> {
    let repository = folder.join("repository");
    let mut list = String::new();
    for path in files(&repository)? {
        let name = path.strip_prefix(&repository)?.to_str().ok_or("a name of no text")?;
        list.push_str(name);
        list.push('\n');
    }
    Ok(fs::write(folder.join("objects"), list)?)
}

fn listed_objects(folder: &Path) -> Outcome<BTreeSet<PathBuf>> {
    let list = folder.join("objects");
    let text =
        fs::read_to_string(&list).map_err(|error| format!("{}: {error}; make it by --generate", list.display()))?;
    Ok(text.lines().map(|name| folder.join("repository").join(name)).collect())
}

/// Every file beneath `folder`.
fn files(folder: &Path) -> Outcome<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry?;
        if entry.file_type().is_file() {
            found.insert(entry.into_path());
        }
    }
    Ok(found)
}

fn parse_count(text: &str) -> Result<u64, String> {
    let units = [('K', 1000), ('M', 1_000_000)];
    let unit = units.iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, factor) = unit.map_or((text, 1), |(_, factor)| (&text[..text.len() - 1], *factor));
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is no number"))?;
    count.checked_mul(factor).ok_or_else(|| format!("{text} is too many"))
}
