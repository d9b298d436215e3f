//! What the disk under a directory gives to a program that does nothing else.

#[expect(dead_code, reason = "the limit uses the rest")]
#[path = "../limit/direct.rs"]
mod direct;

use crate::timing::{median_seconds, time};
use direct::{AlignedBuffer, TRANSFER_BYTES};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILE_BYTES: u64 = 1 << 30;

/// Reads and writes of 1 GiB, by direct I/O in pieces of 8 MiB and through a warm page cache.
pub fn print_disk(work: &Path, rounds: usize) -> Result<(), Box<dyn Error>> {
    let path = work.join("disk");
    let mut buffer = AlignedBuffer::new(TRANSFER_BYTES);
    let offsets = || (0..FILE_BYTES).step_by(TRANSFER_BYTES);
    let (mut written, mut read, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let (elapsed, result) = time(|| {
            let file = direct::create(&path, FILE_BYTES)?;
            offsets().try_for_each(|at| file.write_all_at(buffer.bytes(), at))?;
            file.sync_all()
        });
        result?;
        written.push(elapsed);
        let file = direct::open(&path)?;
        let (elapsed, result) = time(|| offsets().try_for_each(|at| file.read_exact_at(buffer.bytes_mut(), at)));
        result?;
        read.push(elapsed);
        let file = File::open(&path)?;
        offsets().try_for_each(|at| file.read_exact_at(buffer.bytes_mut(), at))?;
        let (elapsed, result) = time(|| offsets().try_for_each(|at| file.read_exact_at(buffer.bytes_mut(), at)));
        result?;
        cached.push(elapsed);
    }
    println!("\n| disk, pieces of 8 MiB, one after the other | ns/byte | GB/s |\n|---|---|---|");
    for (name, times) in [("direct write and fsync", written), ("direct read", read), ("read, cached", cached)] {
        let nanoseconds = median_seconds(&times) * 1e9 / FILE_BYTES as f64;
        println!("| {name} | {nanoseconds:.3} | {:.2} |", 1.0 / nanoseconds);
    }
    std::fs::remove_file(path)?;
    Ok(())
}
