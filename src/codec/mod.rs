//! Bytes to bytes, no I/O: how the content of chunks is coded in frames.
//!
//! An [`Encoder`] turns raw bytes into one self-describing frame and has decoded it again before it returns; a
//! [`Decoder`] turns a frame back. Which codec a frame uses is decided from a sample of the bytes alone, never from a
//! file name, and stands in the frame, so that reading needs no knowledge of the source.
//!
//! A decoder refuses what is structurally wrong and bounds its memory, but a frame carries no checksum: that the bytes
//! are the right ones is for the caller to check against the chunk's id.
//!
//! `docs/FORMAT.md` describes the bytes.

mod against;
mod base;
mod classes;
mod decoder;
mod difference;
mod encoder;
mod entropy;
mod frame;
mod palette;
pub mod parity;
#[cfg(target_arch = "x86_64")]
mod parity_gfni;
pub mod parity_stream;
mod planes;
mod runs;
mod sample;
pub mod seal;
pub mod stretch;
#[cfg(test)]
mod synthetic;
mod words;

pub use base::{Base, Relation};
pub use decoder::Decoder;
pub use encoder::{Compression, Encoded, Encoder};
pub use frame::{Codec, FRAME_HEADER_BYTES, FRAME_RAW_BYTES_MAX, FrameHeader};
