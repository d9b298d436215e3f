//! `cargo bench --bench budget -- --dir DIR`: what every stage of a backup, a verification and a restore costs for each byte
//! of the source, what the whole commands cost, and what the machine could do at best.
//!
//! The stages run alone on one core, with the library's own functions, on Gaussian bf16 weights in chunks of 512 KiB as
//! tensors are cut. The whole commands are the program itself, on a synthetic checkpoint under DIR, in rounds, with the
//! processor time of the kernel taken from `/proc/self/stat`. Tables are medians; `docs/PERFORMANCE.md` says how to read them.
//!
//! `-- --stage NAME --rounds N` runs one stage so often and prints nothing: `benches/instructions.py` counts with it.

#![expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]

#[path = "../support/checkpoint.rs"]
mod checkpoint;
#[path = "../support/gaussian.rs"]
mod gaussian;
mod machine;
mod stages;
#[path = "../support/timing.rs"]
mod timing;
mod whole;

use clap::Parser;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    /// Directory on the disk that matters; a new folder `budget` is made in it and deleted at the end
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The program whose commands are measured as a whole
    #[arg(long, default_value = "target/release/ckpt")]
    ckpt: PathBuf,
    /// The size of the synthetic checkpoint, in MiB
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// Rounds of which the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB of the source that a stage works through in a round: by default beyond the caches of a core
    #[arg(long, default_value_t = 32)]
    set: usize,
    /// Run only this stage, --rounds times, and print nothing
    #[arg(long)]
    stage: Option<String>,
    /// Print the names of all stages
    #[arg(long)]
    list: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.list {
        stages::NAMES.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    if let Some(name) = &arguments.stage {
        let mut stage =
            stages::prepare(name, arguments.set << 20).ok_or_else(|| format!("no stage is called {name}"))?;
        (0..arguments.rounds).for_each(|_| stage.run());
        return Ok(());
    }
    let work = arguments.dir.as_ref().map(|dir| dir.join("budget"));
    if let Some(work) = &work {
        // It is deleted at the end: nothing may have been in it.
        let parent = arguments.dir.iter().try_for_each(std::fs::create_dir_all);
        parent.and_then(|()| std::fs::create_dir(work)).map_err(|error| format!("{}: {error}", work.display()))?;
    }
    println!("medians of {} rounds, one core unless said otherwise; GB is 10^9 bytes\n", arguments.rounds);
    print_stages(arguments.set << 20, arguments.rounds);
    let Some(work) = work else { return Ok(()) };
    let measured = machine::print_disk(&work, arguments.rounds)
        .and_then(|()| whole::print(&work, &arguments.ckpt, arguments.mib, arguments.rounds));
    std::fs::remove_dir_all(&work)?;
    measured
}

/// Every stage in turn in every round, so that a disturbance hits all alike.
fn print_stages(set_bytes: usize, rounds: usize) {
    let mut all: Vec<_> = stages::NAMES.iter().filter_map(|name| stages::prepare(name, set_bytes)).collect();
    let mut times = vec![Vec::<Duration>::new(); all.len()];
    for _ in 0..rounds.max(1) {
        for (stage, times) in all.iter_mut().zip(&mut times) {
            times.push(timing::time(|| stage.run()).0);
        }
    }
    println!("| stage | ns/byte | GB/s | bytes for each of the source | ns for each byte of the source |");
    println!("|---|---|---|---|---|");
    for (stage, times) in all.iter().zip(&times) {
        let nanoseconds = timing::median_seconds(times) * 1e9 / stage.bytes as f64;
        let (share, cost) = (stage.share, nanoseconds * stage.share);
        println!("| {} | {nanoseconds:.3} | {:.2} | {share:.2} | {cost:.3} |", stage.name, 1.0 / nanoseconds);
    }
}
