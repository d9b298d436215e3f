//! `cargo bench --bench chunker`: the scan for content-defined cuts on one core, in GB/s (10^9 bytes), beside copying
//! and hashing the same memory, in the same rounds.
//!
//! 64 MiB in segments of 1 MiB, more than the last-level cache of most machines holds; the median of 15 rounds, in
//! each of which every row runs once, so that a disturbance hits all rows alike.

#![expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]

#[path = "support/gaussian.rs"]
mod gaussian;
#[path = "support/timing.rs"]
mod timing;

use crate::gaussian::{Gaussian, Random};
use ckpt::source::chunker::{CONTEXT_BYTES, Candidates, ChunkSizes, Chunker, PLAIN_KEY};
use std::hint::black_box;
use std::time::Duration;

const BUFFER_BYTES: usize = 64 << 20;
const SEGMENT_BYTES: usize = 1 << 20;
const ROUNDS: usize = 15;

/// Constant data under a key (one in 65,536) for which every position of it matches.
const WORST_CASE: &str = "scan, worst";

fn main() {
    let mut words = Random::new(1);
    let random: Vec<u8> = (0..BUFFER_BYTES / 8).flat_map(|_| words.word().to_le_bytes()).collect();
    let mut bf16 = vec![0u8; BUFFER_BYTES];
    Gaussian::new(&Gaussian::standard_samples(&mut words), 0.0, 0.02).fill(&mut bf16, &mut words);
    let zeros = vec![0u8; BUFFER_BYTES];
    let mut copy = vec![0u8; BUFFER_BYTES];
    let chunker = Chunker::new(ChunkSizes::default(), &PLAIN_KEY);
    let worst = Chunker::new(ChunkSizes::default(), &key_that_zeros_match());
    let rows: [(&str, &[u8]); 6] = [
        ("memcpy", &random),
        ("BLAKE3", &random),
        ("scan, random", &random),
        ("scan, bf16", &bf16),
        ("scan, zeros", &zeros),
        (WORST_CASE, &zeros),
    ];
    let mut times = vec![Vec::<Duration>::new(); rows.len()];
    for _ in 0..ROUNDS {
        for (row, (name, data)) in rows.iter().enumerate() {
            let (elapsed, ()) = timing::time(|| match *name {
                "memcpy" => black_box(&mut copy).copy_from_slice(black_box(data)),
                "BLAKE3" => data.chunks(SEGMENT_BYTES).for_each(|segment| {
                    black_box(blake3::hash(segment));
                }),
                WORST_CASE => scan(&worst, data),
                _ => scan(&chunker, data),
            });
            times[row].push(elapsed);
        }
    }
    println!("{:<14} {:>8}", "", "GB/s");
    for ((name, data), times) in rows.iter().zip(&times) {
        println!("{name:<14} {:>8.2}", data.len() as f64 / timing::median_seconds(times) / 1e9);
    }
    for (name, data) in &rows[2..5] {
        let chunks = chunker.cut_all(data).len();
        println!("{name}: {chunks} chunks, {:.1} KiB in the mean", data.len() as f64 / chunks as f64 / 1024.0);
    }
}

fn scan(chunker: &Chunker, data: &[u8]) {
    let mut candidates = Candidates::new();
    for begin in (0..data.len()).step_by(SEGMENT_BYTES) {
        let before = &data[begin.saturating_sub(CONTEXT_BYTES)..begin];
        chunker.scan(before, black_box(&data[begin..begin + SEGMENT_BYTES]), &mut candidates);
        black_box(&candidates);
    }
}

fn key_that_zeros_match() -> [u8; 32] {
    let mut candidates = Candidates::new();
    let keys = (0u64..).map(|number| std::array::from_fn(|i| number.to_le_bytes()[i % 8]));
    let mut matches = |key: &[u8; 32]| {
        // The first 64 positions depend on where the stream begins, those behind them on the constant alone.
        Chunker::new(ChunkSizes::default(), key).scan(&[], &[0; 64], &mut candidates);
        candidates.iter().any(|candidate| candidate.end == 64)
    };
    keys.into_iter().find(|key| matches(key)).expect("the numbers do not end")
}
