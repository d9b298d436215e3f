//! The loops that everything else waits for, each alone and ready to run.

use crate::gaussian::{Gaussian, Random};
use ckpt::aligned::AlignedBuffer;
use ckpt::codec::parity_stream::ParityStream;
use ckpt::codec::seal::{Cipher, Key};
use ckpt::codec::{Base, Compression, Decoder, Encoder, Relation};
use ckpt::source::chunker::{CONTEXT_BYTES, Candidates, ChunkSizes, Chunker};
use std::hint::black_box;

/// What bf16 tensors are cut into.
const CHUNK_BYTES: usize = 512 << 10;
/// The stored share of Gaussian bf16.
const STORED: f64 = 0.663;

/// All stages: the machine's own, those of a backup, those of the way back, and what versions cost.
pub const NAMES: [&str; 14] = [
    "memcpy",
    "BLAKE3",
    "cut",
    "hash",
    "sample",
    "sample-code-check",
    "check",
    "gather",
    "seal",
    "parity",
    "open",
    "decode",
    "code-difference",
    "decode-difference",
];

/// A loop over some bytes of the source, or what became of them.
pub struct Stage {
    pub name: &'static str,
    /// Bytes that a run works through.
    pub bytes: usize,
    /// How many of those there are for each byte of the source.
    pub share: f64,
    work: Box<dyn FnMut()>,
}

impl Stage {
    pub fn run(&mut self) {
        (self.work)();
    }
}

/// The stage of that name with all that it needs, for `source_bytes`, which are whole chunks.
pub fn prepare(name: &str, source_bytes: usize) -> Option<Stage> {
    let name = *NAMES.iter().find(|known| **known == name)?;
    let source = weights(source_bytes);
    let mut frames = Frames::of(&source);
    let stored_bytes = frames.bytes.iter().map(Vec::len).sum();
    let (bytes, share) = match name {
        "gather" | "seal" | "parity" | "open" => (stored_bytes, STORED),
        _ => (source_bytes, 1.0),
    };
    let cipher = Cipher::new(&Key::from_bytes([7; 32]));
    let mut encoder = Encoder::new(Compression::Auto).expect("the usual level");
    let mut decoder = Decoder::new().expect("memory");
    let mut out = Vec::new();
    let work: Box<dyn FnMut()> = match name {
        "memcpy" => {
            let mut copy = vec![0; source_bytes];
            Box::new(move || black_box(&mut copy).copy_from_slice(black_box(&source)))
        }
        "BLAKE3" => Box::new(move || _ = black_box(blake3::hash(black_box(&source)))),
        "cut" => Box::new(move || cut(&source)),
        "hash" => Box::new(move || {
            source.chunks(CHUNK_BYTES).for_each(|chunk| _ = black_box(blake3::hash(chunk)));
        }),
        "sample" => Box::new(move || {
            source.chunks(CHUNK_BYTES).for_each(|chunk| {
                black_box(encoder.promises(chunk));
            });
        }),
        "sample-code-check" => Box::new(move || {
            for chunk in source.chunks(CHUNK_BYTES) {
                out.clear();
                encoder.encode(chunk, &mut out).expect("coded");
            }
        }),
        "check" => Box::new(move || {
            for (chunk, frame) in source.chunks(CHUNK_BYTES).zip(&frames.bytes) {
                assert!(encoder.holds(frame, &[], chunk), "the frame decodes");
            }
        }),
        "gather" => {
            let mut piece = AlignedBuffer::new(stored_bytes);
            Box::new(move || gather(&frames, piece.as_mut_slice()))
        }
        "seal" => Box::new(move || {
            for (frame, nonce) in frames.bytes.iter_mut().zip(0..) {
                let bytes = frame.len();
                cipher.seal(nonce, b"", frame, 0).expect("sealed");
                frame.truncate(bytes);
            }
        }),
        "parity" => {
            let pack = frames.bytes.concat();
            let mut stream = ParityStream::for_packs_of(64 << 20).expect("a pack");
            Box::new(move || {
                stream.clear();
                stream.check(black_box(&pack));
                stream.absorb(black_box(&pack));
            })
        }
        "open" => {
            for (frame, nonce) in frames.bytes.iter_mut().zip(0..) {
                cipher.seal(nonce, b"", frame, 0).expect("sealed");
            }
            Box::new(move || {
                for (frame, nonce) in frames.bytes.iter().zip(0..) {
                    out.clear();
                    out.extend_from_slice(frame);
                    cipher.open(nonce, b"", &mut out).expect("opened");
                }
            })
        }
        "decode" => Box::new(move || {
            for frame in &frames.bytes {
                out.clear();
                decoder.decode(frame, &mut out).expect("decoded");
            }
        }),
        "code-difference" => {
            let later = later(&source);
            Box::new(move || {
                for (chunk, content) in later.chunks(CHUNK_BYTES).zip(source.chunks(CHUNK_BYTES)) {
                    out.clear();
                    encoder.encode_against(chunk, &base(content), &mut out).expect("coded");
                }
            })
        }
        _ => {
            let later = later(&source);
            let mut coded = Vec::new();
            for (chunk, content) in later.chunks(CHUNK_BYTES).zip(source.chunks(CHUNK_BYTES)) {
                let mut frame = Vec::new();
                let encoded = encoder.encode_against(chunk, &base(content), &mut frame).expect("coded");
                assert!(encoded.needs_base, "near weights are coded as a difference");
                coded.push(frame);
            }
            Box::new(move || {
                for (frame, content) in coded.iter().zip(source.chunks(CHUNK_BYTES)) {
                    out.clear();
                    decoder.decode_against(frame, content, &mut out).expect("decoded");
                }
            })
        }
    };
    Some(Stage { name, bytes, share, work })
}

/// The chunks of the source as frames.
struct Frames {
    bytes: Vec<Vec<u8>>,
}

impl Frames {
    fn of(source: &[u8]) -> Frames {
        let mut encoder = Encoder::new(Compression::Auto).expect("the usual level");
        let coded = source.chunks(CHUNK_BYTES).map(|chunk| {
            let mut frame = Vec::new();
            encoder.encode(chunk, &mut frame).expect("coded");
            frame
        });
        Frames { bytes: coded.collect() }
    }
}

fn cut(source: &[u8]) {
    const SEGMENT_BYTES: usize = 4 << 20;
    let chunker = Chunker::new(ChunkSizes::default(), &[1; 32]);
    let mut candidates = Candidates::new();
    for begin in (0..source.len()).step_by(SEGMENT_BYTES) {
        let before = &source[begin.saturating_sub(CONTEXT_BYTES)..begin];
        chunker.scan(before, black_box(&source[begin..source.len().min(begin + SEGMENT_BYTES)]), &mut candidates);
        black_box(&candidates);
    }
}

/// Into a piece of a pack, with the hash of the pack.
fn gather(frames: &Frames, piece: &mut [u8]) {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    // Workers hand over some 3 MB at once.
    for batch in frames.bytes.chunks(9) {
        let batch = batch.concat();
        hasher.update(&batch);
        piece[at..at + batch.len()].copy_from_slice(&batch);
        at += batch.len();
    }
    black_box((hasher.finalize(), piece));
}

fn base(content: &[u8]) -> Base<'_> {
    let relation = Relation::Words { width_log2: 1, is_float: true };
    Base { content, chunks: 1, relation, stored_bytes_max: usize::MAX }
}

fn weights(source_bytes: usize) -> Vec<u8> {
    let mut random = Random::new(1);
    let samples = Gaussian::standard_samples(&mut random);
    let mut bytes = vec![0; source_bytes];
    Gaussian::new(&samples, 0.0, 0.02).fill(&mut bytes, &mut random);
    bytes
}

/// The weights some steps later: three of four words moved by up to two units of the last place.
fn later(source: &[u8]) -> Vec<u8> {
    let mut random = Random::new(2);
    let mut bytes = source.to_vec();
    for four in bytes.chunks_exact_mut(8) {
        let mut bits = random.word();
        for word in four.chunks_exact_mut(2) {
            let moved = u16::from_le_bytes([word[0], word[1]]).wrapping_add([0, 1, 2, 0xffff][(bits & 3) as usize]);
            word.copy_from_slice(&moved.to_le_bytes());
            bits >>= 2;
        }
    }
    bytes
}
