//! The stable runner of the fuzz targets: every parser is run on its corpus and on mutants of it, and its memory is measured.
//!
//! Everything follows from `CKPT_TEST_SEED`. `CKPT_TEST_FUZZ` is the number of executions of each target. An input that fails is
//! written to `target/fuzz-failures`; mended, it goes into the corpus as `tests/data/corpus/<target>/found-<what>`.
//! `CKPT_WRITE_CORPUS=1` makes all other files of the corpus anew from what the program and other libraries write.

mod corpus;
mod mutate;
#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use crate::support::{Chance, in_parallel, say, seed, setting};
use std::fs;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use targets::{ALL, Target};

/// Executions are given out in so many pieces, so that two threads share the slow targets.
const PIECES: u64 = 4;
/// All of the corpus together.
const CORPUS_BYTES_MAX: u64 = 400 << 10;

/// A file of the corpus.
struct Seed {
    name: String,
    bytes: Vec<u8>,
}

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus").join(target.name)
}

/// The corpus of a target, sorted by name.
fn seeds(target: &Target) -> Vec<Seed> {
    let folder = folder(target);
    let listed = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let seed = |path: PathBuf| Seed {
        name: path.file_name().expect("a name").to_string_lossy().into_owned(),
        bytes: fs::read(&path).expect("a file of the corpus"),
    };
    let mut seeds: Vec<Seed> = listed.map(|item| seed(item.expect("readable").path())).collect();
    seeds.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!seeds.is_empty(), "{} is empty", folder.display());
    seeds
}

/// Runs the target once: whether the bytes were taken; an error says what is wrong.
fn execute(target: &Target, bytes: &[u8]) -> Result<bool, String> {
    let mut outcome = Err("it did not come to an end".to_owned());
    let used = allocation_counter::measure(|| {
        outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).map_err(|_| "it panics, see above".to_owned());
    });
    let memory_max = (target.memory_max)(bytes);
    // A panic takes memory of its own.
    if outcome.is_ok() && used.bytes_max > memory_max {
        return Err(format!("it takes {} bytes of memory, at most {memory_max} are allowed", used.bytes_max));
    }
    outcome
}

/// As [`execute`]; an input that fails is kept.
fn check(target: &Target, bytes: &[u8], what: &str) -> Result<bool, String> {
    execute(target, bytes).map_err(|wrong| {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz-failures");
        fs::create_dir_all(&kept).expect("a folder");
        let kept = kept.join(format!("{}-{}", target.name, &blake3::hash(bytes).to_hex()[..12]));
        fs::write(&kept, bytes).expect("written");
        format!("{}: {what}: {wrong}; the input is {}", target.name, kept.display())
    })
}

/// What became of the executions of one target.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    taken: u64,
    refused: u64,
    time: Duration,
}

/// The mutants of one piece of a target's work, up to the first that fails.
fn run_piece(target: &Target, seeds: &[Seed], executions: u64, piece: u64) -> Result<Counts, String> {
    // What is made once and kept, such as time zones, is not the input's.
    let _ = catch_unwind(|| (target.run)(b"1d"));
    let begun = Instant::now();
    let mut counts = Counts::default();
    let begin =
        seed() ^ blake3::hash(target.name.as_bytes()).as_bytes()[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    for number in (piece..executions).step_by(PIECES as usize) {
        let number = begin.wrapping_add(number << 20);
        let mut chance = Chance(number);
        let (one, other) = (chance.index(seeds.len()), chance.index(seeds.len()));
        let bytes = mutate::mutant(&seeds[one].bytes, &seeds[other].bytes, number ^ 1);
        match check(target, &bytes, &seeds[one].name)? {
            true => counts.taken += 1,
            false => counts.refused += 1,
        }
    }
    counts.time = begun.elapsed();
    Ok(counts)
}

#[test]
fn no_mutant_makes_a_parser_panic_lie_or_take_memory_without_bound() {
    let usual = setting("CKPT_TEST_FUZZ", 100_000);
    let all: Vec<Vec<Seed>> = ALL.iter().map(seeds).collect();
    let counts = Mutex::new(vec![Counts::default(); ALL.len()]);
    let failures = Mutex::new(Vec::new());
    in_parallel(ALL.len() as u64 * PIECES, |work| {
        let number = (work / PIECES) as usize;
        let target = &ALL[number];
        let piece = match run_piece(target, &all[number], usual.div_ceil(target.one_in), work % PIECES) {
            Ok(piece) => piece,
            Err(failure) => {
                failures.lock().expect("nobody has panicked").push(failure);
                return 1;
            }
        };
        let mut counts = counts.lock().expect("nobody has panicked");
        let counts = &mut counts[number];
        counts.taken += piece.taken;
        counts.refused += piece.refused;
        counts.time += piece.time;
        0
    });
    let failures = failures.into_inner().expect("nobody has panicked");
    assert!(failures.is_empty(), "CKPT_TEST_SEED={}:\n{}", seed(), failures.join("\n"));
    let counts = counts.into_inner().expect("nobody has panicked");
    for (target, counts) in ALL.iter().zip(&counts) {
        let (name, sum) = (target.name, counts.taken + counts.refused);
        say(&format!("fuzz: {name}: {sum} executions, {} taken, {:.1} s", counts.taken, counts.time.as_secs_f64()));
        // Mutants that are all refused at the door, or all taken, would test nothing.
        assert!(sum < 100 || counts.taken > 0 && counts.refused > 0, "{name}: {counts:?}");
    }
}

#[test]
fn every_seed_is_taken_and_every_prefix_survived() {
    let mut bytes_total = 0;
    let mut failures = Vec::new();
    for target in ALL {
        let _ = catch_unwind(|| (target.run)(b"1d"));
        for seed in seeds(target) {
            bytes_total += seed.bytes.len() as u64;
            match check(target, &seed.bytes, &seed.name) {
                Ok(taken) if taken || seed.name.starts_with("found-") => {}
                Ok(_) => failures.push(format!("{}: {} is refused", target.name, seed.name)),
                Err(failure) => failures.push(failure),
            }
            // Every prefix of what is short, some of what is long.
            let step = (seed.bytes.len() / 1000).max(1) * target.one_in.min(20) as usize;
            for end in (0..seed.bytes.len()).step_by(step) {
                failures.extend(check(target, &seed.bytes[..end], &format!("{} cut to {end}", seed.name)).err());
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    say(&format!("fuzz: {} targets, a corpus of {bytes_total} bytes", ALL.len()));
    assert!(bytes_total <= CORPUS_BYTES_MAX, "the corpus has {bytes_total} bytes");
}

#[test]
fn the_crate_for_libfuzzer_has_every_target() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("a file of the project");
    let binaries = manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_eq!(binaries.collect::<Vec<_>>(), ALL.iter().map(|target| target.name).collect::<Vec<_>>());
}

#[test]
fn the_runner_notices_a_panic_and_too_much_memory() {
    let bad = |run| Target { name: "bad", run, memory_max: |_| 1000, one_in: 1 };
    assert_eq!(execute(&bad(|bytes| black_box(Vec::<u8>::with_capacity(999)).capacity() > bytes.len()), b""), Ok(true));
    let wrong = execute(&bad(|bytes| black_box(Vec::<u8>::with_capacity(1001)).capacity() > bytes.len()), b"");
    assert!(wrong.as_ref().is_err_and(|wrong| wrong.contains("1001 bytes of memory")), "{wrong:?}");
    let wrong = execute(&bad(|bytes| bytes[0] == 0), b"");
    assert!(wrong.is_err_and(|wrong| wrong.contains("panics")));
}
