//! `cargo bench --bench parity`: computing the parity of a pack of 64 MiB on one core, in GB/s (10^9 bytes) and ns/byte,
//! beside hashing it, in the same rounds; and mending it.
//!
//! The median of 15 rounds, in each of which every row runs once, so that a disturbance hits all rows alike.

#![expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]

#[path = "support/timing.rs"]
mod timing;

use ckpt::codec::parity::{Columns, ParityEncoder, Shape, checksum, reconstruct};
use ckpt::codec::parity_stream::ParityStream;
use std::hint::black_box;
use std::time::Duration;

const PACK_BYTES: usize = 64 << 20;
const ROUNDS: usize = 15;
const ROWS: [&str; 8] = [
    "memcpy",
    "BLAKE3, whole",
    "checksums",
    "parity",
    "parity and checksums, streamed",
    "parity, new encoder",
    "parity, wide columns",
    "128 shards mended",
];

fn main() {
    let mut pack = vec![0u8; PACK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut pack);
    let mut copy = vec![0u8; PACK_BYTES];
    let shape = Shape::of(PACK_BYTES as u64).expect("a pack");
    let mut encoder = ParityEncoder::default();
    let mut parity = Vec::new();
    encoder.encode(&pack, &shape, &mut parity).expect("encodes");
    let mut stream = ParityStream::for_packs_of(PACK_BYTES as u64).expect("a pack");
    let mut streamed = Vec::new();
    let all = parity.clone();
    let lost: Vec<usize> = (0..shape.parity_shards).map(|n| n * 31).collect();
    let given: Vec<usize> = (0..shape.parity_shards).collect();
    let mut times = vec![Vec::<Duration>::new(); ROWS.len()];
    for _ in 0..ROUNDS {
        for (row, name) in ROWS.iter().enumerate() {
            let (elapsed, ()) = timing::time(|| match *name {
                "memcpy" => black_box(&mut copy).copy_from_slice(black_box(&pack)),
                "BLAKE3, whole" => drop(black_box(blake3::hash(black_box(&pack)))),
                "checksums" => pack.chunks(shape.shard_bytes).for_each(|shard| {
                    black_box(checksum(shard));
                }),
                "parity" => encoder.encode(black_box(&pack), &shape, &mut parity).expect("encodes"),
                "parity and checksums, streamed" => {
                    stream.clear();
                    for piece in [black_box(&pack[..]), &[0]] {
                        // One byte more than the pack: it is what usual packs have.
                        stream.check(piece);
                        stream.absorb(piece);
                    }
                    black_box(stream.finish(PACK_BYTES as u64 + 1, &mut streamed).expect("a pack"));
                }
                "parity, new encoder" => {
                    ParityEncoder::default().encode(black_box(&pack), &shape, &mut parity).expect("encodes");
                }
                "parity, wide columns" => {
                    let shards = pack.chunks(shape.shard_bytes);
                    drop(black_box(reed_solomon_simd::encode(shape.data_shards, shape.parity_shards, shards)));
                }
                _ => {
                    let columns = Columns {
                        width: shape.shard_bytes,
                        data: black_box(&pack),
                        lost: &lost,
                        given: &given,
                        parity: &all,
                    };
                    drop(black_box(reconstruct(&shape, &columns).expect("mends")));
                }
            });
            times[row].push(elapsed);
        }
    }
    println!("{:<22} {:>8} {:>8}", "", "GB/s", "ns/byte");
    for (name, times) in ROWS.iter().zip(&times) {
        let seconds = timing::median_seconds(times);
        println!("{name:<22} {:>8.2} {:>8.3}", PACK_BYTES as f64 / seconds / 1e9, seconds * 1e9 / PACK_BYTES as f64);
    }
}
