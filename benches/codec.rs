//! How small and how fast frames are, for each kind of data, on one core.
//!
//! `cargo bench --bench codec` prints a table; `cargo bench --bench codec -- 1024 fp32` uses chunks of 1024 KiB instead
//! of 256 and only data with `fp32` in its name. Encoding includes the choice and the check. Every figure is the median
//! of many rounds over the same chunks, next to what copying and hashing them costs.
#![expect(clippy::print_stdout, reason = "the table is the purpose")]

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../src/codec/synthetic.rs"]
mod synthetic;

use ckpt::codec::{Codec, Compression, Decoder, Encoder};
use std::hint::black_box;
use std::time::{Duration, Instant};
use synthetic::Float;

/// Bytes of each kind of data; beyond the caches when cut into chunks of the default size.
const SET_BYTES: usize = 16 << 20;

/// Rounds of which the median counts.
const ROUNDS: usize = 9;

type Maker = Box<dyn Fn(u64, usize) -> Vec<u8>>;

fn main() -> Result<(), ckpt::error::Error> {
    let chunk_kib = std::env::args().filter_map(|argument| argument.parse::<usize>().ok()).next().unwrap_or(256);
    let chunk_bytes = chunk_kib.clamp(1, 16 << 10) << 10;
    println!("chunks of {chunk_kib} KiB, one core, medians of {ROUNDS} rounds; GB/s of raw bytes");
    println!(
        "{:<22} {:>7} {:>7} {:>7}  {:>7} {:>7}  {:>7} {:>7}",
        "data", "codec", "stored", "floor", "encode", "decode", "memcpy", "BLAKE3"
    );
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-') && a.parse::<usize>().is_err()).collect();
    for (name, width, maker) in kinds() {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted)) {
            continue;
        }
        let chunks: Vec<Vec<u8>> =
            (0..SET_BYTES.div_ceil(chunk_bytes)).map(|seed| maker(seed as u64, chunk_bytes)).collect();
        print_row(name, width, &chunks)?;
    }
    Ok(())
}

/// Names, widths of a word in bytes (0 where order-0 planes are no floor), and makers.
fn kinds() -> Vec<(&'static str, usize, Maker)> {
    let gaussian =
        |float, phase| -> Maker { Box::new(move |seed, len| synthetic::gaussian(seed, float, 0.02, phase, len)) };
    vec![
        ("bf16", 2, gaussian(Float::Bf16, 0)),
        ("bf16, odd phase", 2, gaussian(Float::Bf16, 1)),
        ("fp16", 2, gaussian(Float::Fp16, 0)),
        ("fp32", 4, gaussian(Float::Fp32, 0)),
        ("fp64", 8, gaussian(Float::Fp64, 0)),
        ("Adam m, fp32", 4, Box::new(|seed, len| synthetic::adam_m(seed, Float::Fp32, 0, len))),
        ("Adam v, fp32", 4, Box::new(|seed, len| synthetic::adam_v(seed, Float::Fp32, 0, len))),
        (
            "bf16 held as fp32",
            4,
            Box::new(|seed, len| widened(&synthetic::gaussian(seed, Float::Bf16, 0.02, 0, len / 2))),
        ),
        ("token ids, int32", 0, Box::new(synthetic::tokens)),
        ("text", 0, Box::new(synthetic::text)),
        ("random", 1, Box::new(synthetic::random)),
        ("zero", 1, Box::new(|_, len| vec![0; len])),
    ]
}

fn print_row(name: &str, width: usize, chunks: &[Vec<u8>]) -> Result<(), ckpt::error::Error> {
    let raw_bytes: usize = chunks.iter().map(Vec::len).sum();
    let (mut encoder, mut decoder) = (Encoder::new(Compression::Auto)?, Decoder::new()?);
    let mut frames = Vec::new();
    for chunk in chunks {
        let mut frame = Vec::new();
        let codec = encoder.encode(chunk, &mut frame)?;
        frames.push((codec, frame));
    }
    let stored: usize = frames.iter().map(|(_, frame)| frame.len()).sum();
    // One chunk tells the floor to three digits, and trying every rotation of all of them takes minutes.
    let floor = if width == 0 { "-".into() } else { format!("{:.4}", floor(&chunks[0], width)) };

    let mut out = Vec::with_capacity(2 * chunks[0].len() + 4096);
    let encode = median(|| {
        for chunk in chunks {
            out.clear();
            let _ = black_box(encoder.encode(black_box(chunk), &mut out));
        }
    });
    let decode = median(|| {
        for (_, frame) in &frames {
            out.clear();
            let _ = black_box(decoder.decode(black_box(frame), &mut out));
        }
    });
    let copy = median(|| {
        for chunk in chunks {
            out.clear();
            out.extend_from_slice(black_box(chunk));
            black_box(&out);
        }
    });
    let hash = median(|| {
        for chunk in chunks {
            black_box(blake3::hash(black_box(chunk)));
        }
    });
    let speed = |time: Duration| raw_bytes as f64 / time.as_secs_f64() / 1e9;
    println!(
        "{name:<22} {:>7} {:>7.4} {floor:>7}  {:>7.2} {:>7.2}  {:>7.2} {:>7.2}",
        codec_names(&frames),
        stored as f64 / raw_bytes as f64,
        speed(encode),
        speed(decode),
        speed(copy),
        speed(hash),
    );
    Ok(())
}

fn codec_names(frames: &[(Codec, Vec<u8>)]) -> &'static str {
    let first = frames[0].0;
    if frames.iter().all(|(codec, _)| *codec == first) { first.name() } else { "mixed" }
}

fn median(mut round: impl FnMut()) -> Duration {
    round();
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// The least share of the bytes that coding each byte of a word by itself can reach: the best order-0 entropy over all
/// rotations below 16 bits.
fn floor(raw: &[u8], width: usize) -> f64 {
    let rotations = if width == 1 { 0..1 } else { 0..16.min(8 * width as u32) };
    let phases = 0..width;
    let cost = |rotation: u32, phase: usize| {
        let mut counts = vec![[0u32; 256]; width];
        for word in raw[phase..].chunks_exact(width) {
            let mut bytes = [0u8; 8];
            bytes[..width].copy_from_slice(word);
            let bits = 8 * width as u32;
            let value = u64::from_le_bytes(bytes);
            let rotated = if rotation == 0 { value } else { value << rotation | value >> (bits - rotation) };
            for (counts, byte) in counts.iter_mut().zip(rotated.to_le_bytes()) {
                counts[usize::from(byte)] += 1;
            }
        }
        counts.iter().map(entropy).sum::<f64>() / (8 * width) as f64
    };
    rotations
        .flat_map(|rotation| phases.clone().map(move |phase| (rotation, phase)))
        .fold(1.0, |best, (rotation, phase)| f64::min(best, cost(rotation, phase)))
}

fn entropy(counts: &[u32; 256]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) / total * (total / f64::from(count)).log2())
        .sum()
}

/// Each bf16 as the binary32 of the same value.
fn widened(bf16: &[u8]) -> Vec<u8> {
    bf16.as_chunks::<2>().0.iter().flat_map(|&[low, high]| [0, 0, low, high]).collect()
}
