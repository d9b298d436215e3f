//! The commands themselves: seconds, and processor time for each byte of the source.

use crate::checkpoint;
use crate::timing::{median_seconds, time};
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Clock ticks a second in `/proc`: the same on every Linux of today.
const TICKS: f64 = 100.0;

/// What is measured, in the order of a round, and the options of `init` for the repository of that kind.
const KINDS: [(&str, &[&str]); 2] = [("parity", &[]), ("no parity", &["--parity", "none"])];
const COMMANDS: [&str; 4] = ["backup", "verify --read-data", "restore", "restore, 1 % differs"];

/// One run of a command.
#[derive(Clone, Copy)]
struct Run {
    elapsed: Duration,
    user: f64,
    system: f64,
}

/// Makes the checkpoint, runs everything in rounds and prints the medians.
pub fn print(work: &Path, ckpt: &Path, mib: u64, rounds: usize) -> Result<(), Box<dyn Error>> {
    let source = work.join("source");
    let paths = checkpoint::generate(&source, mib << 20, 1)?;
    let bytes: u64 = paths.iter().map(|path| path.metadata().map_or(0, |m| m.len())).sum();
    let mut runs = vec![vec![Vec::<Run>::new(); COMMANDS.len()]; KINDS.len()];
    for _ in 0..rounds.max(1) {
        for ((_, init), runs) in KINDS.iter().zip(&mut runs) {
            let round = one_round(work, ckpt, init)?;
            runs.iter_mut().zip(round).for_each(|(runs, run)| runs.push(run));
        }
    }
    println!("\n{bytes} bytes of bf16 in two files, all processors, warm page cache\n");
    println!("| command | s | GB/s | processors busy | ns of processor time for each byte | of it in the kernel |");
    println!("|---|---|---|---|---|---|");
    for ((kind, _), runs) in KINDS.iter().zip(&runs) {
        for (command, runs) in COMMANDS.iter().zip(runs) {
            let seconds = median_seconds(&runs.iter().map(|run| run.elapsed).collect::<Vec<_>>());
            let median = |of: fn(&Run) -> f64| {
                let times: Vec<_> = runs.iter().map(|run| Duration::from_secs_f64(of(run))).collect();
                median_seconds(&times)
            };
            let (all, system) = (median(|run| run.user + run.system), median(|run| run.system));
            let cost = |seconds: f64| seconds * 1e9 / bytes as f64;
            let rate = bytes as f64 / seconds / 1e9;
            println!(
                "| {command}, {kind} | {seconds:.2} | {rate:.2} | {:.2} | {:.3} | {:.3} |",
                all / seconds,
                cost(all),
                cost(system)
            );
        }
    }
    Ok(())
}

fn one_round(work: &Path, ckpt: &Path, init: &[&str]) -> Result<Vec<Run>, Box<dyn Error>> {
    let (repo, target, cache) = (work.join("repo"), work.join("target"), work.join("cache"));
    for path in [&repo, &target, &cache] {
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    let source = work.join("source");
    let run = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| -> Result<Run, Box<dyn Error>> {
        let mut command = Command::new(ckpt);
        command.args(arguments.iter().map(|a| a.as_ref())).arg("-r").arg(&repo);
        command.env("CKPT_CACHE_DIR", &cache).stdout(Stdio::null());
        let before = children()?;
        let (elapsed, status) = time(|| command.status());
        let after = children()?;
        if !status?.success() {
            return Err(format!("{command:?} failed").into());
        }
        Ok(Run { elapsed, user: after.0 - before.0, system: after.1 - before.1 })
    };
    let mut made: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"init"];
    init.iter().for_each(|argument| made.push(argument));
    run(&made)?;
    // Into the cache, and the disk at rest.
    for entry in std::fs::read_dir(&source)? {
        std::io::copy(&mut std::fs::File::open(entry?.path())?, &mut std::io::sink())?;
    }
    Command::new("sync").status()?;
    let backup = run(&[&"backup", &source])?;
    let verify = run(&[&"verify", &"--read-data"])?;
    let restore = run(&[&"restore", &"latest", &"--target", &target])?;
    spoil(&target)?;
    Command::new("sync").status()?;
    let in_place = run(&[&"restore", &"latest", &"--target", &target])?;
    Ok(vec![backup, verify, restore, in_place])
}

/// Changes 64 KiB in every 6.4 MB of every file.
fn spoil(target: &Path) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(target)? {
        let path = entry?.path();
        let file = std::fs::File::options().write(true).open(&path)?;
        let noise = vec![0x5a; 64 << 10];
        let end = file.metadata()?.len().saturating_sub(noise.len() as u64);
        for at in (0..end).step_by(6_400_000) {
            std::os::unix::fs::FileExt::write_all_at(&file, &noise, at)?;
        }
    }
    Ok(())
}

/// Seconds of processor time of all children that have ended, in user mode and in the kernel.
fn children() -> Result<(f64, f64), Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may hold anything, and counted from there.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).ok_or("an odd /proc/self/stat");
    Ok((ticks(13)? / TICKS, ticks(14)? / TICKS))
}
