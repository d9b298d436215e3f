//! How small and how fast frames are, for each kind of data, on one core.
//!
//! `cargo bench --bench codec` prints a table; `cargo bench --bench codec -- 1024 fp32` uses chunks of 1024 KiB instead
//! of 256 and only data with `fp32` in its name. Encoding includes the choice and the check. Every figure is the median
//! of many rounds over the same chunks, next to what copying and hashing them costs. A second table shows frames that
//! need a base, next to the same chunks coded alone.
#![expect(clippy::print_stdout, reason = "the table is the purpose")]

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../src/codec/synthetic.rs"]
mod synthetic;

use ckpt::codec::{Base, Codec, Compression, Decoder, Encoder, Relation};
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
    println!(
        "\n{:<22} {:>10} {:>7} {:>7}  {:>7} {:>7}  {:>7} {:>7}  {:>7}",
        "against a base", "codec", "stored", "alone", "encode", "decode", "encode", "decode", "memcpy"
    );
    for (name, relation, maker) in related_kinds() {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted)) {
            continue;
        }
        let pairs: Vec<Pair> =
            (0..SET_BYTES.div_ceil(chunk_bytes)).map(|seed| maker(seed as u64, chunk_bytes)).collect();
        print_related_row(name, relation, &pairs)?;
    }
    Ok(())
}

/// Bytes and their base.
type Pair = (Vec<u8>, Vec<u8>);

type PairMaker = Box<dyn Fn(u64, usize) -> Pair>;

/// Names, relations, and makers of bytes with their bases.
fn related_kinds() -> Vec<(&'static str, Relation, PairMaker)> {
    let float = |width_log2| Relation::Words { width_log2, is_float: true };
    let later = |float: Float, step: f64| -> PairMaker {
        Box::new(move |seed, len| {
            let (base, raw) = synthetic::two_steps(seed, float, 0.02, step, len);
            (raw, base)
        })
    };
    let halves = |seed, len: usize| {
        let wide = synthetic::gaussian(seed, Float::Fp32, 0.02, 0, len);
        let mut narrow = Vec::new();
        wide.as_chunks::<4>().0.iter().for_each(|&b| Float::Bf16.push(f64::from(f32::from_le_bytes(b)), &mut narrow));
        (wide, narrow)
    };
    vec![
        ("bf16, 1e-5 later", float(1), later(Float::Bf16, 1e-5)),
        ("bf16, 1e-4 later", float(1), later(Float::Bf16, 1e-4)),
        ("fp32, 1e-5 later", float(2), later(Float::Fp32, 1e-5)),
        ("fp32, 1e-4 later", float(2), later(Float::Fp32, 1e-4)),
        ("fp32 from bf16", Relation::Widened, Box::new(halves)),
        (
            "bf16 from fp32",
            Relation::Narrowed,
            Box::new(move |seed, len| {
                let (wide, narrow) = halves(seed, 2 * len);
                (narrow, wide)
            }),
        ),
        (
            "fp32, 1 % changed",
            float(2),
            Box::new(|seed, len| {
                let base = synthetic::gaussian(seed, Float::Fp32, 0.02, 0, len);
                let mut raw = base.clone();
                let mut random = synthetic::Random::new(seed);
                for word in raw.as_chunks_mut::<4>().0 {
                    word[0] ^= if random.below(100) == 0 { 9 } else { 0 };
                }
                (raw, base)
            }),
        ),
        (
            "equal",
            float(1),
            Box::new(|seed, len| {
                let base = synthetic::gaussian(seed, Float::Bf16, 0.02, 0, len);
                (base.clone(), base)
            }),
        ),
        (
            "text, edited",
            Relation::Text,
            Box::new(|seed, len| {
                let base = synthetic::text(seed, len);
                let mut raw = base.clone();
                for at in (0..raw.len()).step_by(2000) {
                    raw[at] = b'#';
                }
                raw.rotate_left(len / 10);
                (raw, base)
            }),
        ),
    ]
}

fn print_related_row(name: &str, relation: Relation, pairs: &[Pair]) -> Result<(), ckpt::error::Error> {
    let raw_bytes: usize = pairs.iter().map(|(raw, _)| raw.len()).sum();
    let (mut encoder, mut decoder) = (Encoder::new(Compression::Auto)?, Decoder::new()?);
    let base = |content| Base { content, chunks: 1, relation, stored_bytes_max: usize::MAX };
    let (mut frames, mut alone) = (Vec::new(), Vec::new());
    for (raw, content) in pairs {
        let (mut frame, mut other) = (Vec::new(), Vec::new());
        let encoded = encoder.encode_against(raw, &base(content), &mut frame)?;
        frames.push((encoded.codec, frame));
        let codec = encoder.encode(raw, &mut other)?;
        alone.push((codec, other));
    }
    let mut out = Vec::with_capacity(2 * pairs[0].0.len() + 4096);
    let encode = median(|| {
        for (raw, content) in pairs {
            out.clear();
            let _ = black_box(encoder.encode_against(black_box(raw), &base(content), &mut out));
        }
    });
    let decode = median(|| {
        for ((_, frame), (_, content)) in frames.iter().zip(pairs) {
            out.clear();
            let _ = black_box(decoder.decode_against(black_box(frame), content, &mut out));
        }
    });
    let encode_alone = median(|| {
        for (raw, _) in pairs {
            out.clear();
            let _ = black_box(encoder.encode(black_box(raw), &mut out));
        }
    });
    let decode_alone = median(|| {
        for (_, frame) in &alone {
            out.clear();
            let _ = black_box(decoder.decode(black_box(frame), &mut out));
        }
    });
    let copy = median(|| {
        for (raw, _) in pairs {
            out.clear();
            out.extend_from_slice(black_box(raw));
            black_box(&out);
        }
    });
    let speed = |time: Duration| raw_bytes as f64 / time.as_secs_f64() / 1e9;
    let share = |frames: &[(Codec, Vec<u8>)]| {
        frames.iter().map(|(_, frame)| frame.len()).sum::<usize>() as f64 / raw_bytes as f64
    };
    println!(
        "{name:<22} {:>10} {:>7.4} {:>7.4}  {:>7.2} {:>7.2}  {:>7.2} {:>7.2}  {:>7.2}",
        codec_names(&frames),
        share(&frames),
        share(&alone),
        speed(encode),
        speed(decode),
        speed(encode_alone),
        speed(decode_alone),
        speed(copy),
    );
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
        ("fp32 of 256 values", 0, Box::new(|seed, len| quantised(seed, 4, 256, len))),
        ("bf16 of 16 values", 0, Box::new(|seed, len| quantised(seed, 2, 16, len))),
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

/// Gaussian numbers of `count` values, as quantisation leaves them: fp32, or bf16 for a width of 2.
fn quantised(seed: u64, width: usize, count: usize, len: usize) -> Vec<u8> {
    let mut random = synthetic::Random::new(seed);
    let half = count as f64 / 2.0;
    let levels = (0..len / width).map(|_| (random.gaussian() * half / 3.0).round().clamp(-half, half - 1.0) + 0.0);
    levels.flat_map(|level| (level as f32 * 0.013).to_le_bytes().into_iter().skip(4 - width)).collect()
}
