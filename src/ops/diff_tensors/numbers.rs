//! Two stretches of numbers held against each other: how many differ, and by how much.
//!
//! Differing means other bits. Sums of squares are over what is finite; what is not is counted beside them.

use crate::source::layout::Dtype;
use std::ops::AddAssign;

/// What comparing has shown; sums of two stretches add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Elements whose bits differ.
    pub(super) changed: u64,
    /// Squares of the change, over the elements that are finite on both sides.
    pub(super) change_squares: f64,
    /// Squares of the elements before, where finite.
    pub(super) before_squares: f64,
    /// Elements that are infinite or no number.
    pub(super) nonfinite_before: u64,
    pub(super) nonfinite_after: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.changed += other.changed;
        self.change_squares += other.change_squares;
        self.before_squares += other.before_squares;
        self.nonfinite_before += other.nonfinite_before;
        self.nonfinite_after += other.nonfinite_after;
    }
}

/// Bytes of what is counted: of an element, or of a byte where elements are not known.
pub(super) fn unit_bytes(dtype: Dtype) -> u64 {
    dtype.element_bytes().unwrap_or(1).max(1)
}

/// True if the elements are numbers, so that a change of them has a norm.
pub(super) fn has_norm(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::Blocks(_) | Dtype::Other(_))
}

/// Compares two stretches of equal length, whole elements each.
pub(super) fn compare(dtype: Dtype, before: &[u8], after: &[u8]) -> Sums {
    match dtype {
        Dtype::F64 => floats(before, after, |b| [f64::from_le_bytes(b)]),
        Dtype::F32 => floats(before, after, |b| [f64::from(f32::from_le_bytes(b))]),
        Dtype::F16 => floats(before, after, |b| [half(u16::from_le_bytes(b))]),
        Dtype::Bf16 => floats(before, after, |b: [u8; 2]| [f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))]),
        Dtype::F8E4m3 => floats(before, after, |b: [u8; 1]| [e4m3(b[0])]),
        // The upper half of a binary16.
        Dtype::F8E5m2 => floats(before, after, |b: [u8; 1]| [half(u16::from_le_bytes([0, b[0]]))]),
        Dtype::C64 => floats(before, after, |[a, b, c, d, e, f, g, h]| {
            [f64::from(f32::from_le_bytes([a, b, c, d])), f64::from(f32::from_le_bytes([e, f, g, h]))]
        }),
        Dtype::C128 => floats(before, after, |b: [u8; 16]| {
            let (real, imaginary) = b.split_at(8);
            [real, imaginary].map(|part| part.try_into().map_or(f64::NAN, f64::from_le_bytes))
        }),
        Dtype::I64 => integers(before, after, |b| i64::from_le_bytes(b).into()),
        Dtype::I32 => integers(before, after, |b| i32::from_le_bytes(b).into()),
        Dtype::I16 => integers(before, after, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => integers(before, after, |b| i8::from_le_bytes(b).into()),
        Dtype::U64 => integers(before, after, |b| u64::from_le_bytes(b).into()),
        Dtype::U32 => integers(before, after, |b| u32::from_le_bytes(b).into()),
        Dtype::U16 => integers(before, after, |b| u16::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::Bool => integers(before, after, |b| u8::from_le_bytes(b).into()),
        Dtype::Blocks(_) | Dtype::Other(_) => {
            let unit = usize::try_from(unit_bytes(dtype)).unwrap_or(1);
            let pairs = before.chunks(unit).zip(after.chunks(unit));
            Sums { changed: pairs.filter(|(a, b)| a != b).count() as u64, ..Sums::default() }
        }
    }
}

/// Numbers of one or two floats each.
fn floats<const N: usize, const P: usize>(before: &[u8], after: &[u8], value: impl Fn([u8; N]) -> [f64; P]) -> Sums {
    let is_finite = |parts: &[f64; P]| parts.iter().all(|part| part.is_finite());
    let mut sums = Sums::default();
    for (a, b) in before.as_chunks::<N>().0.iter().zip(after.as_chunks::<N>().0) {
        let old = value(*a);
        let was_finite = is_finite(&old);
        sums.nonfinite_before += u64::from(!was_finite);
        if was_finite {
            sums.before_squares += old.iter().map(|part| part * part).sum::<f64>();
        }
        if a == b {
            sums.nonfinite_after += u64::from(!was_finite);
            continue;
        }
        sums.changed += 1;
        let new = value(*b);
        let stays_finite = is_finite(&new);
        sums.nonfinite_after += u64::from(!stays_finite);
        if was_finite && stays_finite {
            sums.change_squares += old.iter().zip(&new).map(|(x, y)| (y - x) * (y - x)).sum::<f64>();
        }
    }
    sums
}

/// Numbers whose difference is exact before it is rounded.
fn integers<const N: usize>(before: &[u8], after: &[u8], value: impl Fn([u8; N]) -> i128) -> Sums {
    let mut sums = Sums::default();
    for (a, b) in before.as_chunks::<N>().0.iter().zip(after.as_chunks::<N>().0) {
        let old = value(*a);
        sums.before_squares += (old as f64) * (old as f64);
        if a != b {
            let change = (value(*b) - old) as f64;
            sums.changed += 1;
            sums.change_squares += change * change;
        }
    }
    sums
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    match exponent {
        0 => sign * mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1024.0 + mantissa) * 2f64.powi(exponent - 25),
    }
}

/// 4 bits of exponent, 3 of mantissa, no infinities.
fn e4m3(bits: u8) -> f64 {
    let sign = if bits >> 7 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f64::from(bits & 7));
    match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => sign * mantissa * 2f64.powi(-9),
        _ => sign * (8.0 + mantissa) * 2f64.powi(exponent - 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T, const N: usize>(values: &[T], encode: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(encode).collect()
    }

    #[test]
    fn small_floats_have_the_values_of_their_standards() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (1, 2f64.powi(-24)), (0x8000, 0.0)] {
            assert_eq!(half(bits), value, "{bits:x}");
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
        for (bits, value) in [(0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (1, 2f64.powi(-9)), (8, 2f64.powi(-6))] {
            assert_eq!(e4m3(bits), value, "{bits:x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = |bits: u8| half(u16::from_le_bytes([0, bits]));
        assert_eq!((e5m2(0x3c), e5m2(0x7b)), (1.0, 57344.0));
        assert!(e5m2(0x7c).is_infinite() && e5m2(0x7d).is_nan());
    }

    #[test]
    fn norms_are_over_what_is_finite_and_the_rest_is_counted() {
        let a = bytes(&[3.0f32, 4.0, f32::NAN, 1.0, f32::INFINITY], |v| v.to_le_bytes());
        let b = bytes(&[3.0f32, 7.0, f32::NAN, f32::NEG_INFINITY, 2.0], |v| v.to_le_bytes());
        let sums = compare(Dtype::F32, &a, &b);
        let expected =
            Sums { changed: 3, change_squares: 9.0, before_squares: 26.0, nonfinite_before: 2, nonfinite_after: 2 };
        assert_eq!(sums, expected);
        let complex = compare(Dtype::C64, &a[..8], &b[..8]);
        assert_eq!((complex.changed, complex.change_squares, complex.before_squares), (1, 9.0, 25.0));
    }

    #[test]
    fn integers_do_not_lose_small_changes_of_large_numbers() {
        let a = bytes(&[i64::MIN, i64::MAX], |v| v.to_le_bytes());
        let b = bytes(&[i64::MIN + 1, i64::MAX], |v| v.to_le_bytes());
        let sums = compare(Dtype::I64, &a, &b);
        assert_eq!((sums.changed, sums.change_squares), (1, 1.0));
        assert_eq!(compare(Dtype::U8, &[1, 250], &[3, 250]).change_squares, 4.0);
    }

    #[test]
    fn what_is_no_number_is_counted_by_its_units() {
        assert_eq!(compare(Dtype::Blocks("Q4_0"), &[1, 2, 3, 4], &[1, 2, 9, 9]).changed, 2);
        assert_eq!(compare(Dtype::Other(2), &[1, 2, 3, 4], &[1, 2, 9, 9]).changed, 1);
        assert_eq!(compare(Dtype::Other(0), &[1, 2], &[1, 3]).changed, 1);
    }
}
