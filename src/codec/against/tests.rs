//! Frames that need a base, and palettes: there and back, by a plain reference, sizes, damage.

use super::*;
use crate::codec::decoder::Decoder;
use crate::codec::frame::FRAME_RAW_BYTES_MAX;
use crate::codec::synthetic::{self, Float, Random};
use crate::error::Kind as ErrorKind;

/// `docs/FORMAT.md` word by word, for sound frames: plain, slow, and sharing nothing with the reader but libzstd.
mod reference {
    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, behind) = rest.split_at(len);
        *rest = behind;
        taken
    }

    fn run(rest: &mut &[u8], len: usize) -> Vec<u8> {
        let mode = take(rest, 1)[0];
        let stored = number(take(rest, 4)) as usize;
        let mut data = take(rest, stored);
        match mode {
            0 => data.to_vec(),
            1 => zstd::decode_all(&[b"\x28\xb5\x2f\xfd", data].concat()[..]).unwrap(),
            2 => vec![data[0]; len],
            _ => {
                let common = take(&mut data, 1)[0];
                let mask = run(&mut data, len.div_ceil(8));
                let set = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
                let mut others = run(&mut data, (0..len).filter(|i| set(*i)).count()).into_iter();
                (0..len).map(|i| if set(i) { others.next().unwrap() } else { common }).collect()
            }
        }
    }

    fn base_word(base: &[u8], width: usize, i: usize) -> u64 {
        let bytes: Vec<u8> = (0..width).map(|k| base.get(i * width + k).copied().unwrap_or(0)).collect();
        number(&bytes)
    }

    pub fn difference(frame: &[u8], base: &[u8]) -> Vec<u8> {
        let (element, phase) = (frame[1], frame[2]);
        let (width, kind) = (1 << (element & 15), element >> 4);
        let raw_len = number(&frame[4..8]) as usize;
        let words = raw_len / width;
        let all = u64::MAX >> (64 - 8 * width);
        let top = 1 << (8 * width - 1);
        let ordered = |x: u64| if x & top == 0 { x | top } else { !x & all };
        let unordered = |y: u64| if y & top != 0 { y & !top } else { !y & all };
        let unfolded = |z: u64| if z & 1 == 0 { z / 2 } else { (z / 2 + 1).wrapping_neg() };
        let mut rest = &frame[8..];
        let tail = take(&mut rest, raw_len - words * width);
        let limits: Vec<u64> = (0..phase & 15).map(|_| number(take(&mut rest, 2))).collect();
        let mask = if phase & 16 != 0 { run(&mut rest, words.div_ceil(8)) } else { vec![255; words.div_ceil(8)] };
        let predictions: Vec<u64> = (0..words)
            .map(|i| match kind {
                3 => base_word(base, 2, i) << 16,
                4 => {
                    let x = base_word(base, 4, i);
                    let half = x >> 16;
                    let is_number = x & 0x7fff_ffff <= 0x7f80_0000;
                    if is_number { ((x + 0x7fff + (half & 1)) & 0xffff_ffff) >> 16 } else { half | 0x40 }
                }
                _ => base_word(base, width, i),
            })
            .collect();
        let class = |i: usize| {
            let magnitude = predictions[i] & !top;
            let upper = if width > 2 { magnitude >> (8 * width - 16) } else { magnitude };
            limits.iter().filter(|limit| upper >= **limit).count()
        };
        let stored = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
        let mut differences = vec![0u64; words];
        for number in 0..=limits.len() {
            let members: Vec<usize> = (0..words).filter(|i| stored(*i) && class(*i) == number).collect();
            if members.is_empty() && phase != 0 {
                continue;
            }
            for k in 0..width {
                for (&i, byte) in members.iter().zip(run(&mut rest, members.len())) {
                    differences[i] |= u64::from(byte) << (8 * k);
                }
            }
        }
        assert!(rest.is_empty());
        let mut raw = Vec::new();
        for (p, z) in predictions.into_iter().zip(differences) {
            let word = match kind {
                0 => p.wrapping_add(unfolded(z)) & all,
                1 => p ^ z,
                _ => unordered(ordered(p).wrapping_add(unfolded(z)) & all),
            };
            raw.extend_from_slice(&word.to_le_bytes()[..width]);
        }
        [&raw, tail].concat()
    }
}

fn offered<'a>(content: &'a [u8], relation: Relation) -> Base<'a> {
    Base { content, chunks: 1, relation, stored_bytes_max: usize::MAX }
}

fn words(width_log2: u8, is_float: bool) -> Relation {
    Relation::Words { width_log2, is_float }
}

/// Encodes and decodes behind other bytes; returns what came out and the frame.
fn there_and_back(encoder: &mut Encoder, raw: &[u8], base: &Base<'_>) -> (Encoded, Vec<u8>) {
    let mut out = b"before".to_vec();
    let encoded = encoder.encode_against(raw, base, &mut out).unwrap();
    assert_eq!(&out[..6], b"before");
    let frame = out.split_off(6);
    assert!(frame.len() <= raw.len() + FRAME_HEADER_BYTES, "{encoded:?}");
    let header = FrameHeader::read(&frame).unwrap();
    assert_eq!((header.codec, header.raw_bytes), (encoded.codec, raw.len() as u64));
    assert_eq!(header.base_count, if encoded.needs_base { base.chunks } else { 0 });
    assert_eq!(encoded.needs_base, encoded.codec.needs_base());
    let mut decoder = Decoder::new().unwrap();
    let mut decoded = b"front".to_vec();
    decoder.decode_against(&frame, base.content, &mut decoded).unwrap();
    assert!(&decoded[..5] == b"front" && &decoded[5..] == raw, "{encoded:?} of {} bytes", raw.len());
    let alone = decoder.decode(&frame, &mut decoded);
    assert_eq!(alone.err().map(|error| error.kind()), encoded.needs_base.then_some(ErrorKind::Damaged));
    if encoded.codec == Codec::Difference {
        assert!(reference::difference(&frame, base.content) == raw, "the reference decodes {header:?} otherwise");
    }
    (encoded, frame)
}

fn encoder() -> Encoder {
    Encoder::new(Compression::Auto).unwrap()
}

/// A frame by this plan, whether it is worth it or not, checked by the reader and by the reference.
fn forced(encoder: &mut Encoder, plan: &DifferencePlan, raw: &[u8], base: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameHeader::write(Codec::Difference, plan.codes(), 1, raw.len(), &mut frame);
    encoder.difference.append(&mut encoder.runs, plan, raw, base, &mut frame).unwrap();
    assert!(encoder.holds(&frame, base, raw), "{plan:?}, {} bytes on {}", raw.len(), base.len());
    assert!(reference::difference(&frame, base) == raw, "{plan:?}, {} bytes on {}", raw.len(), base.len());
    frame
}

/// Every kind at every width, with and without mask and limits.
fn plans() -> Vec<DifferencePlan> {
    let mut plans = Vec::new();
    for width_log2 in 0..4 {
        for kind in [Kind::Integers, Kind::Bits, Kind::Floats, Kind::Widened, Kind::Narrowed] {
            for is_masked in [false, true] {
                for limits in [&[][..], &[0x3c00], &[0, 1, 0x20, 0x40, 0x3f00, 0x3f80, 0x7fff]] {
                    let Some(prediction) = Prediction::new(width_log2, kind) else { continue };
                    let mut plan = DifferencePlan { is_masked, ..DifferencePlan::plain(prediction) };
                    plan.limits[..limits.len()].copy_from_slice(limits);
                    plan.limit_count = limits.len();
                    if limits.is_empty() || prediction.is_float() {
                        plans.push(plan);
                    }
                }
            }
        }
    }
    plans
}

/// `base` with about `changed` in 256 of its words of `width` bytes a little different.
fn moved(seed: u64, base: &[u8], width: usize, changed: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut raw = base.to_vec();
    for word in raw.chunks_exact_mut(width) {
        if random.below(256) < changed {
            word[0] = word[0].wrapping_add(random.below(15) as u8).wrapping_sub(7);
        }
    }
    raw
}

#[test]
fn every_plan_comes_back_as_the_reference_says() {
    let mut encoder = encoder();
    for plan in plans() {
        let width = plan.prediction.width();
        let lane = 2048 / width;
        let around = |words: usize| [words.saturating_sub(1), words, words + 1];
        for count in (0..10).chain([63, 64, 65, 511, 512, 513]).chain(around(lane)).chain(around(4 * lane)) {
            for extra in if width > 1 { &[0, 1][..] } else { &[0] } {
                let len = count * width + extra;
                let base = synthetic::random(len as u64, 2 * len);
                let raw = moved(3, &base[..len], width, 40);
                for base_len in [len, 0, len / 2, len / 2 + 1, len.saturating_sub(1), len + 1, 2 * len] {
                    forced(&mut encoder, &plan, &raw, &base[..base_len.min(base.len())]);
                }
            }
        }
    }
}

#[test]
fn special_floats_come_back() {
    let specials = [
        0u32,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
        0x7fff_ffff,
        0xffff_ffff,
        0x7fc0_0000,
        1,
        0x8000_0001,
    ];
    let near = |bits: u32| (0..5u32).map(move |d| bits.wrapping_add(d).wrapping_sub(2));
    let halves = |bits: u32| [0x7fff, 0x8000, 0x8001].map(|low| (bits & 0xffff_0000) | low);
    let all: Vec<u32> = specials.into_iter().flat_map(near).chain(specials.into_iter().flat_map(halves)).collect();
    let base: Vec<u8> = all.iter().flat_map(|&x| all.iter().flat_map(move |_| x.to_le_bytes())).collect();
    let raw: Vec<u8> = all.iter().flat_map(|_| all.iter().flat_map(|x| x.to_le_bytes())).collect();
    let mut encoder = encoder();
    for plan in plans() {
        forced(&mut encoder, &plan, &raw, &base);
        forced(&mut encoder, &plan, &base, &raw);
    }
}

fn fp32(seed: u64, len: usize) -> Vec<u8> {
    synthetic::gaussian(seed, Float::Fp32, 0.02, 0, len)
}

/// fp32 numbers rounded to bf16.
fn rounded(fp32: &[u8]) -> Vec<u8> {
    let words = fp32.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes)));
    let mut bytes = Vec::new();
    words.for_each(|word| Float::Bf16.push(word, &mut bytes));
    bytes
}

#[test]
fn each_relation_reaches_its_size() {
    let len = 512 << 10;
    let (full, later) = synthetic::two_steps(1, Float::Fp32, 0.02, 1e-4, len);
    let half = rounded(&full);
    let tokens = synthetic::tokens(1, len);
    let text = synthetic::text(1, len);
    let shifted = [&text[1000..300_000], b"something new", &text[310_000..]].concat();
    for (name, raw, base, relation, codec, most) in [
        ("equal", &half, &half, words(1, true), Codec::Difference, 0.0001),
        ("fp32 from bf16", &full, &half, Relation::Widened, Codec::Difference, 0.501),
        ("bf16 from fp32", &half, &full, Relation::Narrowed, Codec::Difference, 0.0001),
        ("fp32, later", &later, &full, words(2, true), Codec::Difference, 0.68),
        ("bf16, later", &rounded(&later), &half, words(1, true), Codec::Difference, 0.31),
        ("sparse fp32", &moved(1, &full, 4, 3), &full, words(2, true), Codec::Difference, 0.006),
        ("sparse bf16", &moved(1, &half, 2, 3), &half, words(1, true), Codec::Difference, 0.011),
        ("sparse integers", &moved(1, &tokens, 4, 3), &tokens, words(2, false), Codec::Difference, 0.006),
        ("sparse bytes", &moved(1, &full, 1, 3), &full, words(0, true), Codec::Difference, 0.02),
        ("other numbers", &fp32(2, len), &full, words(2, true), Codec::Planes, 0.834),
        ("text, edited", &shifted, &text, Relation::Text, Codec::Prefix, 0.001),
        ("other text", &synthetic::text(2, len), &text, Relation::Text, Codec::Zstd, 0.32),
        ("text, no base", &text, &Vec::new(), Relation::Text, Codec::Zstd, 0.32),
    ] {
        let (encoded, frame) = there_and_back(&mut encoder(), raw, &offered(base, relation));
        let share = frame.len() as f64 / raw.len() as f64;
        assert!(share <= most, "{name} is stored as {share:.4}, not {most}");
        assert_eq!(encoded.codec, codec, "{name}, {share:.4}");
    }
}

#[test]
fn a_base_is_not_used_beyond_its_bounds() {
    let full = fp32(1, 200_000);
    let later = moved(1, &full, 4, 128);
    let base = offered(&full, words(2, true));
    let (encoded, frame) = there_and_back(&mut encoder(), &later, &base);
    assert!(encoded.needs_base);
    for (bounded, needs_base) in [
        (Base { stored_bytes_max: frame.len(), ..base }, true),
        (Base { stored_bytes_max: frame.len() - 1, ..base }, false),
        (Base { chunks: 8, ..base }, true),
        (Base { chunks: 9, ..base }, false),
        (Base { chunks: 0, ..base }, false),
    ] {
        let mut frame = Vec::new();
        let encoded = encoder().encode_against(&later, &bounded, &mut frame).unwrap();
        assert_eq!(encoded.needs_base, needs_base, "{} chunks, {}", bounded.chunks, bounded.stored_bytes_max);
    }
    let mut off = Encoder::new(Compression::Off).unwrap();
    assert_eq!(there_and_back(&mut off, &later, &base).0.codec, Codec::Raw);
    let mut out = b"x".to_vec();
    assert!(encoder().encode_against(&vec![1; FRAME_RAW_BYTES_MAX as usize + 1], &base, &mut out).is_err());
    assert_eq!(out, b"x");
}

#[test]
fn short_bytes_and_odd_lengths_come_back_with_any_base() {
    let mut encoder = encoder();
    let relations = (0..4).flat_map(|width| [words(width, true), words(width, false)]);
    for relation in relations.chain([Relation::Widened, Relation::Narrowed, Relation::Text]) {
        for len in (0..40).chain([255, 256, 257, 8191, 8192, 8193]) {
            let base = fp32(len as u64, len + 7);
            for base_len in [0, 1, len / 2, len, len + 1] {
                there_and_back(&mut encoder, &base[..len], &offered(&base[..base_len], relation));
                there_and_back(&mut encoder, &moved(9, &base[..len], 1, 64), &offered(&base[..base_len], relation));
            }
        }
    }
}

/// Numbers of `count` values, as quantisation leaves them, at a phase.
fn quantised(width: usize, count: usize, phase: usize, len: usize) -> Vec<u8> {
    let mut random = Random::new(count as u64);
    let mut bytes = vec![7; phase];
    while bytes.len() < len {
        let level =
            (random.gaussian() * count as f64 / 6.0).round().clamp(-(count as f64) / 2.0, count as f64 / 2.0 - 1.0);
        let word = (level as f32 * 0.013 + 0.0).to_bits().to_le_bytes();
        bytes.extend_from_slice(&word[4 - width..]);
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn few_values_cost_their_indices() {
    let len = 256 << 10;
    for (width, count, most) in [(2, 16, 4.0), (4, 16, 4.0), (2, 200, 7.4), (4, 256, 7.7), (4, 4, 2.0), (2, 2, 1.01)] {
        for phase in [0, width / 2, 1] {
            let raw = quantised(width, count, phase, len);
            let mut frame = Vec::new();
            let codec = encoder().encode(&raw, &mut frame).unwrap();
            let bits = frame.len() as f64 * 8.0 / (len / width) as f64;
            assert!(bits <= most, "{count} values of {width} bytes at {phase}: {bits:.2} bits, {codec:?}");
        }
        // A value too many shows only in the whole.
        let mut raw = quantised(width, 250, 0, len);
        for (i, word) in raw.chunks_exact_mut(width).skip(50_000).take(300).enumerate() {
            word[0] = i as u8;
            word[1] = (i >> 8) as u8;
        }
        let mut frame = Vec::new();
        encoder().encode(&raw, &mut frame).unwrap();
    }
}

#[test]
fn what_does_not_decode_to_its_source_stands_alone() {
    let full = fp32(1, 100_001);
    let later = moved(1, &full, 4, 128);
    let mut encoder = encoder();
    let (_, frame) = there_and_back(&mut encoder, &later, &offered(&full, words(2, true)));
    let seed = 5;
    let mut random = Random::new(seed);
    for _ in 0..200 {
        let mut spoilt = frame.clone();
        let at = random.below(frame.len());
        spoilt[at] ^= 1 << random.below(8);
        let mut decoded = Vec::new();
        let same = Decoder::new().unwrap().decode_against(&spoilt, &full, &mut decoded).is_ok() && decoded == later;
        assert_eq!(encoder.holds(&spoilt, &full, &later), same, "seed {seed}, byte {at}");
    }
    let mut other = full.clone();
    other[50_000] ^= 0x10;
    assert!(!encoder.holds(&frame, &other, &later));
}

/// The example of `docs/FORMAT.md`, byte by byte.
#[test]
fn the_documented_difference_reads_as_documented() {
    let frame = [
        0x04, 0x21, 0x01, 0x01, 0x06, 0x00, 0x00, 0x00, 0x00, 0x40, 0x00, 0x02, 0x00, 0x00, 0x00, 0x02, 0x01, 0x02,
        0x01, 0x00, 0x00, 0x00, 0x00, 0x02, 0x01, 0x00, 0x00, 0x00, 0x00, 0x02, 0x01, 0x00, 0x00, 0x00, 0x00,
    ];
    let base = [0x80, 0x3f, 0x80, 0xbf, 0x00, 0x40];
    let mut raw = Vec::new();
    Decoder::new().unwrap().decode_against(&frame, &base, &mut raw).unwrap();
    assert_eq!(raw, [0x81, 0x3f, 0x81, 0xbf, 0x00, 0x40]);
    assert_eq!(reference::difference(&frame, &base), raw);
}

/// Frames of each shape with their bases.
fn frames() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut encoder = encoder();
    let full = fp32(1, 9_003);
    let mut frames: Vec<(Vec<u8>, Vec<u8>)> = plans()
        .iter()
        .map(|plan| (forced(&mut encoder, plan, &moved(2, &full, plan.prediction.width(), 60), &full), full.clone()))
        .collect();
    let text = synthetic::text(1, 9_000);
    for (raw, base, relation) in [(&text[500..], &text[..7000], Relation::Text), (&full, &full, words(2, true))] {
        frames.push((there_and_back(&mut encoder, raw, &offered(base, relation)).1, base.to_vec()));
    }
    for count in [2, 4, 16, 100] {
        frames.push((
            there_and_back(&mut encoder, &quantised(2, count, 0, 9_001), &offered(&[], words(0, false))).1,
            Vec::new(),
        ));
    }
    frames
}

/// Decodes what may be damaged: an error leaves the output alone, success has the length of the header.
fn decode_any(decoder: &mut Decoder, frame: &[u8], base: &[u8], note: &str) {
    let mut out = b"kept".to_vec();
    match decoder.decode_against(frame, base, &mut out) {
        Ok(()) => assert_eq!(out.len() as u64, 4 + FrameHeader::read(frame).unwrap().raw_bytes, "{note}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Damaged, "{note}");
            assert_eq!(out, b"kept", "{note}");
        }
    }
    assert!(out.capacity() as u64 <= 2 * FRAME_RAW_BYTES_MAX, "{note}");
}

#[test]
fn damaged_frames_and_bases_are_errors_and_never_more() {
    let mut decoder = Decoder::new().unwrap();
    let seed = 43;
    let mut random = Random::new(seed);
    for (kind, (frame, base)) in frames().iter().enumerate() {
        for len in (0..frame.len()).filter(|len| *len < 100 || len % 197 == 0) {
            let error = decoder.decode_against(&frame[..len], base, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "frame {kind} cut to {len}");
        }
        let longer = [&frame[..], &[0]].concat();
        assert!(decoder.decode_against(&longer, base, &mut Vec::new()).is_err(), "frame {kind} with a byte more");
        for round in 0..150 {
            let mut mutated = frame.clone();
            for _ in 0..random.below(4) {
                let within = if random.below(2) == 0 { mutated.len().min(60) } else { mutated.len() };
                mutated[random.below(within)] = random.bits() as u8;
            }
            let mut other = base.clone();
            other.truncate(random.below(2 * base.len() + 1));
            if !other.is_empty() && random.below(2) == 0 {
                let at = random.below(other.len());
                other[at] = random.bits() as u8;
            }
            decode_any(&mut decoder, &mutated, &other, &format!("seed {seed}, frame {kind}, round {round}"));
        }
        for claim in [0, 1, 7, 9_004, 1 << 20, 1 << 24, (1 << 24) + 1, u32::MAX] {
            let mut lying = frame.clone();
            lying[4..8].copy_from_slice(&claim.to_le_bytes());
            decode_any(&mut decoder, &lying, base, &format!("frame {kind} claims {claim}"));
        }
    }
}

#[test]
fn parameters_of_differences_without_meaning_are_refused() {
    // Codec, element, phase, bases: no base, too many, an unknown kind, widths that do not fit, limits for integers,
    // flags without meaning; a prefix with parameters; a palette with a base, and of rotated words.
    for header in [
        [4, 1, 0, 0],
        [4, 1, 0, 9],
        [4, 0x51, 0, 1],
        [4, 4, 0, 1],
        [4, 0x31, 0, 1],
        [4, 0x42, 0, 1],
        [4, 1, 1, 1],
        [4, 0x21, 32, 1],
        [5, 0, 0, 0],
        [5, 1, 0, 1],
        [5, 0, 1, 1],
        [6, 1, 0, 1],
        [6, 0x11, 0, 0],
        [1, 0, 0, 1],
        [3, 1, 0, 1],
    ] {
        let frame = [&header[..], &[0; 4]].concat();
        assert!(FrameHeader::read(&frame).is_err(), "{header:?}");
    }
    // A limit that no magnitude reaches, and a mask with a bit behind the last word.
    let mut decoder = Decoder::new().unwrap();
    for frame in [
        &[4, 0x21, 1, 1, 2, 0, 0, 0, 0, 0x80, 2, 1, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0][..],
        &[4, 0x21, 16, 1, 2, 0, 0, 0, 2, 1, 0, 0, 0, 3, 2, 1, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0],
    ] {
        assert_eq!(decoder.decode_against(frame, &[], &mut Vec::new()).unwrap_err().kind(), ErrorKind::Damaged);
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_against_any_base_or_are_refused(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 8..200),
        base in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        codec in 4u8..7, small in 0u8..60, bases in 0u8..3,
    ) {
        let mut frame = bytes;
        frame[0] = codec;
        frame[3] = bases;
        frame[4..8].copy_from_slice(&[small, 0, 0, 0]);
        decode_any(&mut Decoder::new().unwrap(), &frame, &base, "any bytes");
    }

    #[test]
    fn any_words_come_back_on_any_base(
        raw in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        base in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        times in 1usize..60, plan in 0usize..64,
    ) {
        let plans = plans();
        forced(&mut encoder(), &plans[plan % plans.len()], &raw.repeat(times), &base.repeat(times));
    }
}
