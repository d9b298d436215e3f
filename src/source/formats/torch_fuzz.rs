//! Pickles of random opcodes: no panic, no rule broken, no more read than the file could ask for. Damaged archives and pickles are
//! the business of `tests/it/fuzz`.

use super::finish::assert_obeys;
use super::torch_samples::{archive_of, part};
use crate::error::Result;
use crate::read_at::ReadAt;
use crate::source::layout::{Parsed, parse};
use crate::source::torch::torch_facts;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what is read of a file.
struct Counted<'a> {
    content: &'a [u8],
    bytes: AtomicU64,
}

impl ReadAt for Counted<'_> {
    fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let read = self.content.read_at(offset, buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

fn counted(content: &[u8]) -> Counted<'_> {
    Counted { content, bytes: AtomicU64::new(0) }
}

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Parses, and holds the result against the rules.
fn look(content: &[u8], name: &str, companion: Option<&[u8]>, what: &str) {
    let file = counted(content);
    let companion = companion.as_ref().map(|companion| companion as &dyn ReadAt);
    if let Parsed::Layout(layout) = parse(&file, name.as_bytes(), companion) {
        assert_obeys(&layout, content.len() as u64);
        assert!(layout.tensors.len() <= content.len(), "{what}: {} tensors", layout.tensors.len());
    }
    // The longest way: the end is sought twice, then the archive walked from its front.
    let read = file.bytes.load(Ordering::Relaxed);
    assert!(read <= 200_000 + 12 * content.len() as u64, "{what}: {read} bytes read of {}", content.len());
}

const SEED: u64 = 0x5eed_0f70_12c4;

/// Random opcodes: what a pickle cannot be by accident of damage.
#[test]
fn pickles_of_random_opcodes_are_survived() {
    const OPCODES: &[u8] =
        b".(0122KMJXUqrhj]})tldaesucRQbNGCB\x85\x86\x87\x88\x8a\x8b\x8c\x8d\x8f\x90\x91\x92\x93\x94\x95\x81";
    let mut numbers = Numbers(SEED);
    let mut understood = 0;
    for case in 0..20_000 {
        let mut bytes = b"\x80\x04N]}ctorch\nSize\n".to_vec();
        for _ in 0..numbers.below(60) {
            bytes.push(OPCODES[numbers.below(OPCODES.len())]);
            if numbers.below(3) == 0 {
                bytes.extend([0, 1, 2, 0, 0, 0, 0, 0, 0][..numbers.below(9)].iter());
            }
        }
        bytes.push(b'.');
        let parts = [part("m/data.pkl", bytes), part("m/data/0", vec![7; 1600])];
        let content = archive_of(&parts, b"");
        look(&content, "m.pt", None, &format!("seed {SEED:#x}, case {case}"));
        understood += usize::from(torch_facts(&content.as_slice()).is_some());
    }
    assert!(understood > 100, "only {understood} were understood");
}
