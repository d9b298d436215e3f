//! Files that are almost valid: whatever is done to them, a parser neither panics nor reads without bound, and what it returns
//! obeys the rules of a layout.
//!
//! To add a container, add a [`Seed`] to [`seeds`]. `CKPT_TEST_MUTATIONS` is the number of mutants of each seed,
//! `CKPT_TEST_SEED` where the choices begin; a failure names the seed and the mutant, and both repeat it.

use super::finish::assert_obeys;
use super::header_reader::HEADER_BYTES_MAX;
use super::{gguf, npy, parquet, safetensors_writer};
use crate::error::Result;
use crate::read_at::ReadAt;
use crate::source::layout::{self, Container, Dtype, Parsed};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// A valid file.
struct Seed {
    /// The name under which it is parsed; seeds are told apart by it.
    name: &'static str,
    container: Container,
    file: Vec<u8>,
    /// The file beside it, which is mutated as well.
    companion: Option<Vec<u8>>,
}

fn seed(name: &'static str, container: Container, file: Vec<u8>) -> Seed {
    Seed { name, container, file, companion: None }
}

/// Valid files of every container, small so that most mutations meet a header.
fn seeds() -> Vec<Seed> {
    vec![
        seed("a.safetensors", Container::Safetensors, safetensors_file()),
        seed("a.gguf", Container::Gguf, gguf::tests::sample()),
        seed("a.npy", Container::Npy, npy_file("'<f4'", "(30, 20)", 2400)),
        seed("structured.npy", Container::Npy, npy_file("[('a', '<f4', (2,)), ('b', '|u1')]", "(200,)", 1800)),
        seed("a.parquet", Container::Parquet, parquet::tests::sample()),
    ]
}

fn safetensors_file() -> Vec<u8> {
    let item = |name, dtype, shape, bytes| safetensors_writer::Item { name, dtype, shape, bytes };
    let items = [
        item("embed", Dtype::Bf16, &[40, 30][..], 2400),
        item("norm", Dtype::F32, &[30][..], 120),
        item("layer.0.weight", Dtype::F32, &[20, 20][..], 1600),
    ];
    let header = safetensors_writer::header(&items, &[("format".to_owned(), "pt".to_owned())]).expect("valid");
    let mut file = header.bytes;
    file.resize(header.file_bytes as usize, 1);
    file
}

fn npy_file(descr: &str, shape: &str, bytes: usize) -> Vec<u8> {
    npy::tests::file(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"), false, bytes)
}

/// A file that counts what is read of it.
struct Counted<'a> {
    content: &'a [u8],
    read_bytes: AtomicU64,
}

impl<'a> Counted<'a> {
    fn new(content: &'a [u8]) -> Self {
        Counted { content, read_bytes: AtomicU64::new(0) }
    }
}

impl ReadAt for Counted<'_> {
    fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let read = self.content.read_at(offset, buffer)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// SplitMix64: enough for choices.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % (n as u64).max(1)) as usize
    }

    /// A position in `len` bytes, most often near an end, where headers are.
    fn position(&mut self, len: usize) -> usize {
        let near = self.below(len.min(400));
        match self.below(4) {
            0 | 1 => near,
            2 => len.saturating_sub(near + 1),
            _ => self.below(len),
        }
    }

    /// A number that is likely to be near a bound.
    fn number(&mut self, len: usize) -> u64 {
        let near = self.below(3) as u64;
        let bound = match self.below(8) {
            0 => 0,
            1 => len as u64,
            2 => 1 << self.below(64),
            3 => u64::MAX,
            4 => u64::from(u32::MAX),
            5 => i64::MAX as u64,
            6 => HEADER_BYTES_MAX,
            _ => return self.next(),
        };
        if self.below(2) == 0 { bound.wrapping_add(near) } else { bound.wrapping_sub(near) }
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], choices: &mut Choices) {
    let len = bytes.len();
    if len == 0 {
        return;
    }
    let at = choices.position(len);
    let some = choices.below(64).min(len - at);
    match choices.below(9) {
        0 => bytes[at] ^= 1 << choices.below(8),
        1 => bytes[at] = choices.next() as u8,
        2 => bytes.truncate(at),
        3 => {
            let number = choices.number(len).to_le_bytes();
            let width = 1 << choices.below(4);
            bytes[at..].iter_mut().zip(&number[..width]).for_each(|(to, from)| *to = *from);
        }
        4 => drop(bytes.drain(at..at + some)),
        5 => {
            let again = bytes[at..at + some].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let from = choices.position(other.len());
            let taken = &other[from..other.len().min(from + some)];
            bytes.splice(at..at, taken.iter().copied());
        }
        // Numbers in text.
        7 => {
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                let number = choices.number(len).to_string();
                bytes.splice(at + digit..at + digit + 1, number.bytes());
            }
        }
        _ => {
            let token = [&b"["[..], b"{", b"\"", b"'", b"(", b",", b"}", b"\\u0000", b"\xff", b"\0", b"PK\x05\x06"];
            let repeated = token[choices.below(token.len())].repeat(1 + choices.below(300));
            bytes.splice(at..at, repeated);
        }
    }
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// Parses and holds the result against the rules.
fn check(file: &[u8], name: &str, companion: Option<&[u8]>) -> Parsed {
    let counted = Counted::new(file);
    let beside = companion.map(Counted::new);
    let parsed = layout::parse(&counted, name.as_bytes(), beside.as_ref().map(|beside| beside as &dyn ReadAt));
    for file in [Some(&counted), beside.as_ref()].into_iter().flatten() {
        let read = file.read_bytes.load(Ordering::Relaxed);
        assert!(read <= HEADER_BYTES_MAX + 4096, "{read} bytes read");
        assert!(read <= 4 * file.bytes() + 4096, "{read} bytes read of a file of {}", file.bytes());
    }
    match &parsed {
        Parsed::Layout(layout) => assert_obeys(layout, file.len() as u64),
        Parsed::Malformed(_, reason) => assert!(reason.len() < 1000, "{reason}"),
        Parsed::Plain => {}
    }
    parsed
}

#[test]
fn the_seeds_are_valid() {
    for seed in seeds() {
        match check(&seed.file, seed.name, seed.companion.as_deref()) {
            Parsed::Layout(layout) => {
                assert_eq!((layout.container, layout.is_truncated), (seed.container, false), "{}", seed.name);
                assert!(!layout.runs.is_empty(), "{}", seed.name);
            }
            other => panic!("{}: {other:?}", seed.name),
        }
    }
}

#[test]
fn a_mutant_of_any_seed_is_refused_or_gives_a_layout_that_obeys_the_rules() {
    let (mutants, begin) = (setting("CKPT_TEST_MUTATIONS", 4000), setting("CKPT_TEST_SEED", 20_261_121));
    let seeds = seeds();
    for (number, seed) in seeds.iter().enumerate() {
        let mut outcomes = [0u64; 3];
        for mutant in 0..mutants {
            let mut choices = Choices(begin ^ ((number as u64) << 48) ^ (mutant << 8));
            let mut file = seed.file.clone();
            let mut companion = seed.companion.clone();
            let other = &seeds[choices.below(seeds.len())].file;
            for _ in 0..=choices.below(4) {
                match &mut companion {
                    Some(companion) if choices.below(3) == 0 => mutate(companion, other, &mut choices),
                    _ => mutate(&mut file, other, &mut choices),
                }
            }
            let parsed = catch_unwind(AssertUnwindSafe(|| check(&file, seed.name, companion.as_deref())));
            match parsed {
                Ok(Parsed::Layout(_)) => outcomes[0] += 1,
                Ok(Parsed::Malformed(..)) => outcomes[1] += 1,
                Ok(Parsed::Plain) => outcomes[2] += 1,
                Err(_) => panic!("{}: mutant {mutant} of CKPT_TEST_SEED={begin} breaks a rule", seed.name),
            }
        }
        // Mutants that are all refused at the door would test nothing.
        assert!(outcomes[0] > 0 && outcomes[1] > 0, "{}: {outcomes:?}", seed.name);
    }
}

#[test]
fn every_prefix_of_every_seed_obeys_the_rules() {
    for seed in seeds() {
        for end in 0..seed.file.len() {
            check(&seed.file[..end], seed.name, seed.companion.as_deref());
        }
    }
}
