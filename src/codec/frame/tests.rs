//! Frames of every kind of data: there and back, sizes, damage.

use super::*;
use crate::codec::decoder::Decoder;
use crate::codec::encoder::{CONSTANT_PAYLOAD_BYTES, Compression, Encoder};
use crate::codec::synthetic::{self, Float, Random};
use crate::error::Kind;

fn encoder() -> Encoder {
    Encoder::new(Compression::Auto).unwrap()
}

/// Encodes and decodes behind other bytes; returns codec and frame.
fn there_and_back(encoder: &mut Encoder, decoder: &mut Decoder, raw: &[u8]) -> (Codec, Vec<u8>) {
    let mut out = b"before".to_vec();
    let codec = encoder.encode(raw, &mut out).unwrap();
    assert_eq!(&out[..6], b"before");
    let frame = out.split_off(6);
    assert!(frame.len() <= raw.len() + FRAME_HEADER_BYTES, "{codec:?}");
    let header = FrameHeader::read(&frame).unwrap();
    assert_eq!((header.codec, header.raw_bytes), (codec, raw.len() as u64));
    let mut decoded = b"front".to_vec();
    decoder.decode(&frame, &mut decoded).unwrap();
    assert!(&decoded[..5] == b"front" && &decoded[5..] == raw, "{codec:?} of {} bytes", raw.len());
    (codec, frame)
}

fn lengths() -> impl Iterator<Item = usize> {
    (0..34).chain([63, 64, 65, 127, 1000, 4095, 4096, 4097, 65_535, 65_536, 65_537])
}

#[test]
fn every_kind_and_length_comes_back() {
    let (mut encoder, mut decoder) = (encoder(), Decoder::new().unwrap());
    for len in lengths().chain([1 << 20]) {
        for raw in [synthetic::random(1, len), vec![0; len], vec![7; len], synthetic::text(2, len)] {
            there_and_back(&mut encoder, &mut decoder, &raw);
        }
    }
}

#[test]
fn floats_come_back_at_every_phase_and_length() {
    let (mut encoder, mut decoder) = (encoder(), Decoder::new().unwrap());
    for float in Float::ALL {
        for phase in 0..8 {
            let whole = synthetic::gaussian(phase as u64, float, 0.02, phase, 65_537);
            for len in lengths() {
                there_and_back(&mut encoder, &mut decoder, &whole[..len]);
            }
        }
        let whole = synthetic::gaussian(9, float, 1.0, 3, 1 << 20);
        there_and_back(&mut encoder, &mut decoder, &whole);
    }
}

#[test]
fn a_bit_that_flips_in_a_frame_before_it_is_stored_is_caught_and_costs_only_size() {
    let (mut encoder, mut decoder) = (encoder(), Decoder::new().unwrap());
    let kinds = [
        vec![7; 5000],
        synthetic::text(2, 3000),
        synthetic::gaussian(3, Float::ALL[0], 0.02, 0, 3000),
        synthetic::random(1, 400),
    ];
    let mut caught = 0;
    for raw in kinds {
        let mut sound = Vec::new();
        let codec = encoder.encode(&raw, &mut sound).unwrap();
        for bit in 0..sound.len() * 8 {
            let mut out = [b"before".as_slice(), &sound].concat();
            out[6 + bit / 8] ^= 1 << (bit % 8);
            // As after an encoder whose memory is faulty: what it made is decoded and compared.
            let settled = encoder.settle(Ok(codec), &raw, 6, &mut out).unwrap();
            caught += usize::from(out[6..] != sound[..] || settled != codec);
            let mut decoded = Vec::new();
            decoder.decode(&out[6..], &mut decoded).unwrap();
            assert!(out.starts_with(b"before") && decoded == raw, "{codec:?}, bit {bit}");
        }
    }
    assert!(caught > 10_000, "hardly any flip mattered: {caught}");
}

#[test]
fn a_constant_mebibyte_is_a_few_bytes() {
    let (_, frame) = there_and_back(&mut encoder(), &mut Decoder::new().unwrap(), &vec![0; 1 << 20]);
    assert_eq!(frame.len(), FRAME_HEADER_BYTES + CONSTANT_PAYLOAD_BYTES);
}

/// The stored share of `raw` and the codec that was chosen.
fn stored(raw: &[u8]) -> (Codec, f64) {
    let (codec, frame) = there_and_back(&mut encoder(), &mut Decoder::new().unwrap(), raw);
    (codec, frame.len() as f64 / raw.len() as f64)
}

#[test]
fn each_kind_of_data_gets_its_codec_and_its_size() {
    let len = 256 << 10;
    let gaussian = |float, phase| synthetic::gaussian(1, float, 0.02, phase, len);
    let held = gaussian(Float::Bf16, 0).as_chunks::<2>().0.iter().flat_map(|&[low, high]| [0, 0, low, high]).collect();
    let mut rows = Vec::new();
    for row in 0..len / 1536 {
        rows.extend(synthetic::gaussian(row as u64 % 20, Float::Bf16, 0.02, 0, 1536));
    }
    for (name, raw, codec, most) in [
        ("bf16", gaussian(Float::Bf16, 0), Codec::Planes, 0.664),
        ("bf16 at an odd phase", gaussian(Float::Bf16, 1), Codec::Planes, 0.664),
        ("fp16", gaussian(Float::Fp16, 0), Codec::Planes, 0.85),
        ("fp32", gaussian(Float::Fp32, 3), Codec::Planes, 0.834),
        ("fp64", gaussian(Float::Fp64, 5), Codec::Planes, 0.88),
        ("Adam m", synthetic::adam_m(1, Float::Fp32, 0, len), Codec::Planes, 0.855),
        ("Adam v", synthetic::adam_v(1, Float::Fp32, 0, len), Codec::Planes, 0.85),
        ("bf16 held as fp32", held, Codec::Planes, 0.336),
        ("text", synthetic::text(1, len), Codec::Zstd, 0.32),
        ("token ids", synthetic::tokens(1, len), Codec::Zstd, 0.33),
        ("repeated rows", rows, Codec::Zstd, 0.14),
        ("noise", synthetic::random(1, len), Codec::Raw, 1.0001),
    ] {
        let (found, share) = stored(&raw);
        assert!(share <= most, "{name} is stored as {share:.4}, not {most}");
        assert_eq!(found, codec, "{name}, {share:.4}");
        let general = zstd::bulk::compress(&raw, 3).unwrap().len() as f64 / raw.len() as f64;
        assert!(share <= 1.002 * general, "{name} is stored as {share:.4}, zstd alone reaches {general:.4}");
    }
}

/// Gaussian numbers of one byte with `mantissa` bits behind the exponent, rounded towards zero.
fn fp8(mantissa: u32, bias: i32, len: usize) -> Vec<u8> {
    let mut random = Random::new(u64::from(mantissa));
    let number = |value: f32| {
        let bits = value.to_bits();
        let exponent = ((bits >> 23 & 255) as i32 - 127 + bias).clamp(0, (1 << (7 - mantissa)) - 1) as u32;
        (bits >> 31 << 7 | exponent << mantissa | (bits & 0x7f_ffff) >> (23 - mantissa)) as u8
    };
    (0..len).map(|_| number(random.gaussian() as f32 * 0.3)).collect()
}

#[test]
fn numbers_of_one_byte_reach_their_entropy() {
    for (name, mantissa, bias, most) in [("E4M3", 3, 7, 0.82), ("E5M2", 2, 15, 0.70)] {
        let raw = fp8(mantissa, bias, 256 << 10);
        let mut counts = [0f64; 256];
        raw.iter().for_each(|byte| counts[usize::from(*byte)] += 1.0);
        let total = raw.len() as f64;
        let bits: f64 = counts.iter().filter(|&&n| n > 0.0).map(|n| n / total * (total / n).log2()).sum();
        let (codec, share) = stored(&raw);
        assert_eq!(codec, Codec::Planes, "{name}");
        assert!(
            share <= most && share <= 1.015 * bits / 8.0,
            "{name} is stored as {share:.4}, entropy {:.4}",
            bits / 8.0
        );
    }
}

#[test]
fn real_checkpoints_reach_their_sizes() {
    for (name, codec, most) in [
        ("weights.bf16", Codec::Planes, 0.645),
        ("weights.fp32", Codec::Planes, 0.825),
        ("adam_m.fp32", Codec::Planes, 0.85),
        ("adam_v.fp32", Codec::Planes, 0.83),
        ("tokenizer.json", Codec::Zstd, 0.315),
    ] {
        let path = format!("{}/tests/data/slices/{name}", env!("CARGO_MANIFEST_DIR"));
        let raw = std::fs::read(&path).unwrap();
        for phase in [0, 1, 3] {
            let (found, share) = stored(&raw[phase..]);
            assert!(share <= most, "{name} from {phase} is stored as {share:.4}, not {most}");
            assert_eq!(found, codec, "{name}");
        }
    }
}

#[test]
fn a_level_is_used_and_off_is_raw() {
    let text = synthetic::text(1, 200_000);
    let mut sizes = Vec::new();
    for compression in [Compression::Off, Compression::Zstd(1), Compression::Auto, Compression::Zstd(19)] {
        let mut encoder = Encoder::new(compression).unwrap();
        sizes.push(there_and_back(&mut encoder, &mut Decoder::new().unwrap(), &text).1.len());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    assert_eq!(sizes[0], text.len() + FRAME_HEADER_BYTES);
    assert_eq!(Encoder::new(Compression::Zstd(1000)).err().map(|error| error.kind()), Some(Kind::Usage));
}

#[test]
fn what_does_not_decode_to_its_source_is_stored_raw() {
    let raw = synthetic::gaussian(1, Float::Bf16, 0.02, 1, 100_001);
    let mut encoder = encoder();
    let mut frame = Vec::new();
    assert_eq!(encoder.encode(&raw, &mut frame).unwrap(), Codec::Planes);
    let seed = 11;
    let mut random = Random::new(seed);
    for _ in 0..300 {
        let mut spoilt = b"before".to_vec();
        spoilt.extend_from_slice(&frame);
        let at = 6 + random.below(frame.len());
        spoilt[at] ^= 1 << random.below(8);
        // Every byte of the frame matters, except that decoders may ignore a few bits of a compressed stream.
        let codec = encoder.settle(Ok(Codec::Planes), &raw, 6, &mut spoilt).unwrap();
        let mut decoded = Vec::new();
        Decoder::new().unwrap().decode(&spoilt[6..], &mut decoded).unwrap();
        assert!(&spoilt[..6] == b"before" && decoded == raw, "seed {seed}, byte {at}, {codec:?}");
    }
}

#[test]
fn more_than_a_frame_holds_is_refused() {
    let mut out = b"x".to_vec();
    let raw = vec![1; FRAME_RAW_BYTES_MAX as usize + 1];
    assert!(encoder().encode(&raw, &mut out).is_err());
    assert_eq!(out, b"x");
    assert_eq!(encoder().encode(&raw[1..], &mut out).unwrap(), Codec::Planes);
}

/// The example of `docs/FORMAT.md`, byte by byte.
#[test]
fn the_documented_frame_reads_as_documented() {
    let frame = [
        0x03, 0x11, 0x01, 0x00, 0x07, 0x00, 0x00, 0x00, 0xaa, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
        0x03, 0x00, 0x00, 0x00, 0x7f, 0x7f, 0x80,
    ];
    let mut raw = Vec::new();
    Decoder::new().unwrap().decode(&frame, &mut raw).unwrap();
    assert_eq!(raw, [0xaa, 0x80, 0x3f, 0x80, 0xbf, 0x00, 0x40]);
}

/// One frame of each shape.
fn frames() -> Vec<Vec<u8>> {
    let raws = [
        synthetic::random(1, 3000),
        synthetic::text(1, 5000),
        synthetic::gaussian(1, Float::Bf16, 0.02, 1, 8001),
        synthetic::gaussian(1, Float::Fp32, 0.02, 3, 8001),
        synthetic::gaussian(1, Float::Fp64, 0.02, 5, 9001),
        synthetic::gaussian(1, Float::Fp32, 0.02, 0, 8000)
            .iter()
            .enumerate()
            .map(|(i, b)| if i % 4 < 2 { 0 } else { *b })
            .collect(),
        vec![9; 5000],
        Vec::new(),
    ];
    let mut encoder = encoder();
    raws.iter()
        .map(|raw| {
            let mut frame = Vec::new();
            encoder.encode(raw, &mut frame).unwrap();
            frame
        })
        .collect()
}

/// Decodes what may be damaged: an error leaves the output alone, success has the length of the header.
fn decode_any(decoder: &mut Decoder, frame: &[u8], note: &str) {
    let mut out = b"kept".to_vec();
    match decoder.decode(frame, &mut out) {
        Ok(()) => {
            let header = FrameHeader::read(frame).unwrap();
            assert_eq!(out.len() as u64, 4 + header.raw_bytes, "{note}");
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::Damaged, "{note}");
            assert_eq!(out, b"kept", "{note}");
        }
    }
    assert!(out.capacity() as u64 <= 2 * FRAME_RAW_BYTES_MAX, "{note}");
}

#[test]
fn damaged_frames_are_errors_and_never_more() {
    let mut decoder = Decoder::new().unwrap();
    let seed = 42;
    let mut random = Random::new(seed);
    for (kind, frame) in frames().iter().enumerate() {
        for len in (0..frame.len()).filter(|len| *len < 200 || len % 97 == 0) {
            let mut out = Vec::new();
            let error = decoder.decode(&frame[..len], &mut out).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "frame {kind} cut to {len}");
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert!(decoder.decode(&longer, &mut Vec::new()).is_err(), "frame {kind} with a byte more");
        for round in 0..400 {
            let mut mutated = frame.clone();
            for _ in 0..1 + random.below(4) {
                // The front, where the structure stands, as often as all the rest.
                let within = if random.below(2) == 0 { mutated.len().min(40) } else { mutated.len() };
                let at = random.below(within);
                mutated[at] = random.bits() as u8;
            }
            decode_any(&mut decoder, &mutated, &format!("seed {seed}, frame {kind}, round {round}"));
        }
    }
}

#[test]
fn a_length_that_lies_is_bounded() {
    let mut decoder = Decoder::new().unwrap();
    for frame in frames() {
        for claim in [0, 1, 7, 100, 8000, 1 << 20, 1 << 24, (1 << 24) + 1, u32::MAX] {
            let mut lying = frame.clone();
            if lying[4..8] == claim.to_le_bytes() {
                continue;
            }
            lying[4..8].copy_from_slice(&claim.to_le_bytes());
            decode_any(&mut decoder, &lying, &format!("{:?} claims {claim}", FrameHeader::read(&frame)));
        }
    }
    assert_eq!(FrameHeader::read(&[1, 0, 0, 0, 1, 0, 0, 1]).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn parameters_without_meaning_are_refused() {
    for header in [[0, 0, 0, 0], [4, 0, 0, 0], [1, 1, 0, 0], [2, 0, 1, 0], [1, 0, 0, 1], [3, 0, 0, 1]] {
        let frame = [&header[..], &[0; 4]].concat();
        assert!(FrameHeader::read(&frame).is_err(), "{header:?}");
    }
    for code in 0..=255 {
        assert!(Codec::from_code(code).is_none_or(|codec| codec.code() == code));
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), codec in 0u8..5) {
        let mut frame = bytes;
        if let Some(first) = frame.first_mut() {
            *first = codec;
        }
        decode_any(&mut Decoder::new().unwrap(), &frame, "any bytes");
    }

    #[test]
    fn any_bytes_come_back(unit in proptest::collection::vec(proptest::num::u8::ANY, 0..40), times in 1usize..300, cut in 0usize..8) {
        let mut raw = unit.repeat(times);
        raw.truncate(raw.len().saturating_sub(cut));
        there_and_back(&mut encoder(), &mut Decoder::new().unwrap(), &raw);
    }
}
