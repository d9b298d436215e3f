//! Frames of every kind of data: there and back, sizes, damage.

use super::*;
use crate::codec::synthetic::{self, Float, Random};

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
