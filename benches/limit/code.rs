//! Coding of one piece of bf16 data: rotate, split, Huffman on the exponents; and back.

use std::io;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// Bytes coded at a time: one frame of one pack.
pub const PIECE_BYTES: usize = 1 << 20;

/// The contexts and planes of one thread.
pub struct Coder {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    exponents: Vec<u8>,
    mantissas: Vec<u8>,
    encoded: Vec<u8>,
    decoded: Vec<u8>,
}

impl Coder {
    /// Contexts for the entropy stage: no matches are searched, literals are always Huffman-coded.
    pub fn new() -> io::Result<Self> {
        let mut compressor = Compressor::new(1)?;
        compressor.set_parameter(CParameter::CompressionLevel(-100_000))?;
        compressor.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
        Ok(Coder {
            compressor,
            decompressor: Decompressor::new()?,
            exponents: vec![0; PIECE_BYTES / 2],
            mantissas: vec![0; PIECE_BYTES / 2],
            encoded: vec![0; zstd::zstd_safe::compress_bound(PIECE_BYTES / 2)],
            decoded: vec![0; PIECE_BYTES / 2],
        })
    }

    /// The exponent plane as a zstd frame and the other plane as it is, of a piece of at most [`PIECE_BYTES`]; an odd
    /// last byte is not part of either. Fails unless decoding gives back `piece`.
    pub fn encode(&mut self, piece: &[u8]) -> io::Result<(&[u8], &[u8])> {
        let (elements, _) = piece.as_chunks::<2>();
        let len = elements.len();
        let (exponents, mantissas) = (&mut self.exponents[..len], &mut self.mantissas[..len]);
        for ((&element, exponent), mantissa) in elements.iter().zip(&mut *exponents).zip(&mut *mantissas) {
            let rotated = u16::from_le_bytes(element).rotate_left(1);
            *exponent = (rotated >> 8) as u8;
            *mantissa = rotated as u8;
        }
        let encoded_len = self.compressor.compress_to_buffer(exponents, self.encoded.as_mut_slice())?;
        let decoded = &mut self.decoded[..len];
        self.decompressor.decompress_to_buffer(&self.encoded[..encoded_len], &mut *decoded)?;
        // One pass without a branch for each element: the comparison runs at the speed of memory.
        let mut difference = 0;
        for ((&element, &exponent), &mantissa) in elements.iter().zip(&*decoded).zip(&*mantissas) {
            difference |= joined(exponent, mantissa) ^ u16::from_le_bytes(element);
        }
        if difference != 0 {
            return Err(io::Error::other("a piece decodes to something else"));
        }
        Ok((&self.encoded[..encoded_len], mantissas))
    }

    /// The reverse of [`Coder::encode`] into `piece`.
    pub fn decode(&mut self, encoded: &[u8], mantissas: &[u8], piece: &mut [u8]) -> io::Result<()> {
        let (elements, _) = piece.as_chunks_mut::<2>();
        let decoded = &mut self.decoded[..elements.len()];
        self.decompressor.decompress_to_buffer(encoded, &mut *decoded)?;
        for ((element, &exponent), &mantissa) in elements.iter_mut().zip(&*decoded).zip(mantissas) {
            *element = joined(exponent, mantissa).to_le_bytes();
        }
        Ok(())
    }
}

fn joined(exponent: u8, mantissa: u8) -> u16 {
    (u16::from(exponent) << 8 | u16::from(mantissa)).rotate_right(1)
}
