//! The header of a `.npy` file that is to be written.
//!
//! A pure function: type and shape in, the bytes before the elements out, as numpy writes them. Version 1.0, or 2.0 where the
//! header is too long for it. It writes nothing.

use super::npy::MAGIC;
use crate::error::{Error, Kind, Result};
use crate::source::layout::Dtype;
use std::fmt::Write;

/// Elements begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// numpy leaves room for the first dimension to grow to so many digits.
const GROWN_DIGITS: usize = 21;

/// What a file of an array of `shape` begins with; its elements follow row by row, little-endian.
///
/// numpy has no name for bf16 and fp8: they are written as `|V2` and `|V1`, bytes that `ml_dtypes` can view. Blocks of quantised numbers are refused
/// ([`Kind::Usage`]).
pub fn header(dtype: Dtype, shape: &[u64]) -> Result<Vec<u8>> {
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': (", descr(dtype)?);
    for (at, n) in shape.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{n}", if at == 0 { "" } else { ", " });
    }
    text.push_str(if shape.len() == 1 { ",), }" } else { "), }" });
    if let Some(first) = shape.first() {
        let digits = first.checked_ilog10().map_or(1, |digits| digits as usize + 1);
        text.extend(std::iter::repeat_n(' ', GROWN_DIGITS.saturating_sub(digits)));
    }
    let padded = |length_bytes: usize| {
        let before = MAGIC.len() + 2 + length_bytes;
        // Like numpy: padding of 1 to 64 bytes, never none.
        (before + text.len() + 1 + 1).next_multiple_of(ALIGNMENT) - before
    };
    let mut bytes = MAGIC.to_vec();
    let text_bytes = match u16::try_from(padded(2)) {
        Ok(text_bytes) => {
            bytes.extend_from_slice(&[1, 0]);
            bytes.extend_from_slice(&text_bytes.to_le_bytes());
            usize::from(text_bytes)
        }
        Err(_) => {
            let too_long = |_| Error::new(Kind::Usage, "the shape has too many dimensions for a header of numpy");
            let text_bytes = u32::try_from(padded(4)).map_err(too_long)?;
            bytes.extend_from_slice(&[2, 0]);
            bytes.extend_from_slice(&text_bytes.to_le_bytes());
            padded(4)
        }
    };
    let end = bytes.len() + text_bytes;
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(end - 1, b' ');
    bytes.push(b'\n');
    Ok(bytes)
}

/// The type as numpy writes it.
fn descr(dtype: Dtype) -> Result<String> {
    let name = match dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::Bf16 => "|V2",
        Dtype::F8E4m3 | Dtype::F8E5m2 => "|V1",
        Dtype::I64 => "<i8",
        Dtype::I32 => "<i4",
        Dtype::I16 => "<i2",
        Dtype::I8 => "|i1",
        Dtype::U64 => "<u8",
        Dtype::U32 => "<u4",
        Dtype::U16 => "<u2",
        Dtype::U8 => "|u1",
        Dtype::Bool => "|b1",
        Dtype::C64 => "<c8",
        Dtype::C128 => "<c16",
        Dtype::Other(bytes) => return Ok(format!("|V{bytes}")),
        Dtype::Blocks(name) => {
            return Err(Error::new(Kind::Usage, format!("numpy has no type for blocks of {name}")));
        }
    };
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::formats::npy;

    #[test]
    fn the_header_is_the_one_that_numpy_writes() {
        let written = header(Dtype::F32, &[3, 4]).expect("known");
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
        assert_eq!(&written[..10], b"\x93NUMPY\x01\0\x76\0");
        assert_eq!(written[10..], *format!("{text:117}\n").as_bytes());
        let text =
            |shape: &[u64]| String::from_utf8_lossy(&header(Dtype::Bf16, shape).expect("known")[10..]).into_owned();
        assert!(text(&[]).starts_with("{'descr': '|V2', 'fortran_order': False, 'shape': (), }"));
        assert!(text(&[7]).contains("'shape': (7,), }"));
        assert!(header(Dtype::Blocks("Q4_0"), &[32]).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shape in [&[][..], &[0], &[300], &[20, 30], &[1; 64]] {
            for dtype in [Dtype::F64, Dtype::Other(700), Dtype::Bool, Dtype::C128, Dtype::U16] {
                let mut file = header(dtype, shape).expect("known");
                assert_eq!(file.len() % 64, 0);
                let elements: u64 = shape.iter().product();
                file.resize(file.len() + (elements * dtype.element_bytes().expect("known")) as usize, 1);
                let layout = npy::parse(&file.as_slice()).expect("valid");
                assert_eq!((layout.tensors[0].dtype, &*layout.tensors[0].shape), (dtype, shape));
                assert!(!layout.is_truncated);
            }
        }
        let long = header(Dtype::U8, &[10; 30_000]).expect("long");
        assert_eq!((long[6], long.len() % 64), (2, 0));
    }
}
