//! Frames, of every codec, with a base and without.

use ckpt::codec::{Decoder, FRAME_HEADER_BYTES, FrameHeader};

/// Any frame without a base. What a frame claims to hold is at most 16 MiB.
pub fn frame(bytes: &[u8]) -> bool {
    decode(bytes, &[])
}

/// A base, then a frame that may need it.
pub fn frame_with_base(bytes: &[u8]) -> bool {
    let (base, frame) = super::split(bytes);
    decode(frame, base)
}

fn decode(frame: &[u8], base: &[u8]) -> bool {
    let header = FrameHeader::read(frame);
    let mut decoder = Decoder::new().expect("memory for a decoder");
    let mut out = b"before".to_vec();
    let decoded = match base {
        [] => decoder.decode(frame, &mut out),
        base => decoder.decode_against(frame, base, &mut out),
    };
    assert_eq!(&out[..6], b"before");
    match decoded {
        Ok(()) => {
            let header = header.expect("what decodes has a header");
            assert_eq!(out.len() as u64 - 6, header.raw_bytes, "{header:?}");
            assert!(frame.len() >= FRAME_HEADER_BYTES);
            // A decoder that has met anything decodes the same again.
            let mut again = Vec::new();
            decoder.decode_against(frame, base, &mut again).expect("as before");
            assert_eq!(again, out[6..]);
            true
        }
        Err(_) => {
            assert_eq!(out, b"before", "an error leaves nothing behind");
            false
        }
    }
}

/// Content twice, and what a decoder keeps: at most three times that.
pub fn frame_memory_max(frame: &[u8]) -> u64 {
    let claimed = FrameHeader::read(frame).map_or(0, |header| header.raw_bytes);
    5 * claimed + 8 * frame.len() as u64 + (128 << 10)
}

pub fn frame_with_base_memory_max(bytes: &[u8]) -> u64 {
    frame_memory_max(super::split(bytes).1) + bytes.len() as u64
}
