//! Words predicted from a base, and the differences between words and their predictions.
//!
//! Everything here is exact for any bytes: a bad prediction costs space, never data. A base is read as if zeros followed
//! it for ever. Words are little-endian; slices hold whole words, as many in each.
//!
//! The loops are functions of their own, never inlined: only as arguments does the compiler know that the slices do not
//! overlap, and vectorises.

/// What a frame's element byte says about a difference, and how words are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prediction {
    width_log2: u8,
    kind: Kind,
}

/// How words and predictions are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Integers of the base, subtracted.
    Integers,
    /// Bits of the base, exclusive-or.
    Bits,
    /// Floats of the base, subtracted in the order of their values.
    Floats,
    /// bf16 of the base as fp32, subtracted like floats.
    Widened,
    /// fp32 of the base rounded to bf16, subtracted like floats.
    Narrowed,
}

impl Prediction {
    /// The prediction of words of `1 << width_log2` bytes; `None` unless the width is 1 to 8, and the kind's own.
    pub(super) fn new(width_log2: u8, kind: Kind) -> Option<Self> {
        let fits = match kind {
            Kind::Integers | Kind::Bits | Kind::Floats => width_log2 <= 3,
            Kind::Widened => width_log2 == 2,
            Kind::Narrowed => width_log2 == 1,
        };
        fits.then_some(Prediction { width_log2, kind })
    }

    /// The prediction that an element byte of a frame header spells.
    pub(super) fn from_code(element: u8) -> Option<Self> {
        let kind = match element >> 4 {
            0 => Kind::Integers,
            1 => Kind::Bits,
            2 => Kind::Floats,
            3 => Kind::Widened,
            4 => Kind::Narrowed,
            _ => return None,
        };
        Prediction::new(element & 15, kind)
    }

    /// The element byte of a frame header.
    pub(super) fn code(self) -> u8 {
        let kind = match self.kind {
            Kind::Integers => 0,
            Kind::Bits => 1,
            Kind::Floats => 2,
            Kind::Widened => 3,
            Kind::Narrowed => 4,
        };
        kind << 4 | self.width_log2
    }

    /// Bytes of a word: 1, 2, 4 or 8.
    pub(super) fn width(self) -> usize {
        1 << self.width_log2
    }

    /// Logarithm to base 2 of the bytes of a word.
    pub(super) fn width_log2(self) -> u8 {
        self.width_log2
    }

    /// True if words have a sign and a magnitude, by which they may be told apart.
    pub(super) fn is_float(self) -> bool {
        matches!(self.kind, Kind::Floats | Kind::Widened | Kind::Narrowed)
    }

    /// The predictions of the words from number `first`, as many as `memory` has room for: as they stand in the base if
    /// they can, otherwise put into `memory`.
    pub(super) fn lend<'a>(self, base: &'a [u8], first: usize, memory: &'a mut [u8]) -> &'a [u8] {
        let from = first.saturating_mul(self.width());
        match (self.kind, base.get(from..from.saturating_add(memory.len()))) {
            (Kind::Integers | Kind::Bits | Kind::Floats, Some(predicted)) => predicted,
            _ => {
                self.predict(base, first, memory);
                memory
            }
        }
    }

    /// Fills `predicted` with the predictions of the words from number `first`.
    fn predict(self, base: &[u8], first: usize, predicted: &mut [u8]) {
        match self.kind {
            Kind::Integers | Kind::Bits | Kind::Floats => {
                let from = rest(base, first.saturating_mul(self.width()));
                let known = from.len().min(predicted.len());
                predicted[..known].copy_from_slice(&from[..known]);
                predicted[known..].fill(0);
            }
            Kind::Widened => {
                let from = rest(base, first.saturating_mul(2));
                let (known, unknown) = predicted.split_at_mut(predicted.len().min(from.len() / 2 * 4));
                widen(&from[..known.len() / 2], known);
                unknown.fill(0);
                // Half a number at the end of the base is the number's lower byte.
                if let (Some(&last), Some(byte), true) = (from.last(), unknown.get_mut(2), from.len() % 2 == 1) {
                    *byte = last;
                }
            }
            Kind::Narrowed => {
                let from = rest(base, first.saturating_mul(4));
                let (known, unknown) = predicted.split_at_mut(predicted.len().min(from.len() / 4 * 2));
                narrow(&from[..known.len() * 2], known);
                unknown.fill(0);
                let partial = &from[known.len() * 2..];
                if partial.len() < 4
                    && let Some(word) = unknown.first_chunk_mut::<2>()
                {
                    let mut padded = [0; 4];
                    padded[..partial.len()].copy_from_slice(partial);
                    *word = narrowed(u32::from_le_bytes(padded)).to_le_bytes();
                }
            }
        }
    }

    /// The differences of `raw` to `predicted` into `differences`.
    pub(super) fn subtract(self, predicted: &[u8], raw: &[u8], differences: &mut [u8]) {
        match (self.width_log2, self.kind) {
            (_, Kind::Bits) => exclusive_or(predicted, raw, differences),
            (0, Kind::Integers) => of_8::subtract_integers(predicted, raw, differences),
            (1, Kind::Integers) => of_16::subtract_integers(predicted, raw, differences),
            (2, Kind::Integers) => of_32::subtract_integers(predicted, raw, differences),
            (_, Kind::Integers) => of_64::subtract_integers(predicted, raw, differences),
            (0, _) => of_8::subtract_floats(predicted, raw, differences),
            (1, _) => of_16::subtract_floats(predicted, raw, differences),
            (2, _) => of_32::subtract_floats(predicted, raw, differences),
            _ => of_64::subtract_floats(predicted, raw, differences),
        }
    }

    /// The inverse of [`Prediction::subtract`].
    pub(super) fn add(self, predicted: &[u8], differences: &[u8], raw: &mut [u8]) {
        match (self.width_log2, self.kind) {
            (_, Kind::Bits) => exclusive_or(predicted, differences, raw),
            (0, Kind::Integers) => of_8::add_integers(predicted, differences, raw),
            (1, Kind::Integers) => of_16::add_integers(predicted, differences, raw),
            (2, Kind::Integers) => of_32::add_integers(predicted, differences, raw),
            (_, Kind::Integers) => of_64::add_integers(predicted, differences, raw),
            (0, _) => of_8::add_floats(predicted, differences, raw),
            (1, _) => of_16::add_floats(predicted, differences, raw),
            (2, _) => of_32::add_floats(predicted, differences, raw),
            _ => of_64::add_floats(predicted, differences, raw),
        }
    }

    /// The magnitudes of the predicted words: their upper 16 bits (8 for single bytes) without the sign.
    pub(super) fn magnitudes(self, predicted: &[u8], magnitudes: &mut [i16]) {
        match self.width_log2 {
            0 => of_8::magnitudes(predicted, magnitudes),
            1 => of_16::magnitudes(predicted, magnitudes),
            2 => of_32::magnitudes(predicted, magnitudes),
            _ => of_64::magnitudes(predicted, magnitudes),
        }
    }
}

fn rest(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or(&[])
}

/// bf16 into fp32 of the same value.
#[inline(never)]
fn widen(from: &[u8], to: &mut [u8]) {
    for (to, &from) in to.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<2>().0) {
        *to = (u32::from(u16::from_le_bytes(from)) << 16).to_le_bytes();
    }
}

/// fp32 into the nearest bf16.
#[inline(never)]
fn narrow(from: &[u8], to: &mut [u8]) {
    for (to, &from) in to.as_chunks_mut::<2>().0.iter_mut().zip(from.as_chunks::<4>().0) {
        *to = narrowed(u32::from_le_bytes(from)).to_le_bytes();
    }
}

/// The nearest bf16, of two equally near ones the even one; of no number the upper half, with the bit that says quiet.
#[inline(always)]
fn narrowed(bits: u32) -> u16 {
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let is_number = bits & 0x7fff_ffff <= 0x7f80_0000;
    if is_number { rounded } else { (bits >> 16) as u16 | 0x40 }
}

#[inline(never)]
fn exclusive_or(left: &[u8], right: &[u8], to: &mut [u8]) {
    for ((to, left), right) in to.iter_mut().zip(left).zip(right) {
        *to = left ^ right;
    }
}

/// The loops for one width of word.
macro_rules! loops {
    ($name:ident, $word:ty, $signed:ty, $bytes:literal, $magnitude:expr) => {
        pub(super) mod $name {
            const TOP: $word = 1 << (8 * $bytes - 1);

            /// A float's bits as an integer that ascends with its value.
            #[inline(always)]
            fn ordered(bits: $word) -> $word {
                bits ^ ((bits as $signed >> (8 * $bytes - 1)) as $word | TOP)
            }

            #[inline(always)]
            fn unordered(value: $word) -> $word {
                value ^ ((!value as $signed >> (8 * $bytes - 1)) as $word | TOP)
            }

            /// Small numbers of either sign as small numbers: 0, -1, 1, -2 become 0, 1, 2, 3.
            #[inline(always)]
            fn folded(value: $word) -> $word {
                value << 1 ^ (value as $signed >> (8 * $bytes - 1)) as $word
            }

            #[inline(always)]
            fn unfolded(value: $word) -> $word {
                value >> 1 ^ (value & 1).wrapping_neg()
            }

            #[inline(always)]
            fn each(left: &[u8], right: &[u8], to: &mut [u8], map: impl Fn($word, $word) -> $word) {
                let (left, right) = (left.as_chunks::<$bytes>().0, right.as_chunks::<$bytes>().0);
                for ((to, &left), &right) in to.as_chunks_mut::<$bytes>().0.iter_mut().zip(left).zip(right) {
                    *to = map(<$word>::from_le_bytes(left), <$word>::from_le_bytes(right)).to_le_bytes();
                }
            }

            #[inline(never)]
            pub(in crate::codec) fn subtract_integers(predicted: &[u8], raw: &[u8], to: &mut [u8]) {
                each(predicted, raw, to, |predicted, raw| folded(raw.wrapping_sub(predicted)));
            }

            #[inline(never)]
            pub(in crate::codec) fn add_integers(predicted: &[u8], differences: &[u8], to: &mut [u8]) {
                each(predicted, differences, to, |predicted, difference| predicted.wrapping_add(unfolded(difference)));
            }

            #[inline(never)]
            pub(in crate::codec) fn subtract_floats(predicted: &[u8], raw: &[u8], to: &mut [u8]) {
                each(predicted, raw, to, |predicted, raw| folded(ordered(raw).wrapping_sub(ordered(predicted))));
            }

            #[inline(never)]
            pub(in crate::codec) fn add_floats(predicted: &[u8], differences: &[u8], to: &mut [u8]) {
                each(predicted, differences, to, |predicted, difference| {
                    unordered(ordered(predicted).wrapping_add(unfolded(difference)))
                });
            }

            #[inline(never)]
            pub(in crate::codec) fn magnitudes(words: &[u8], to: &mut [i16]) {
                for (to, &word) in to.iter_mut().zip(words.as_chunks::<$bytes>().0) {
                    *to = $magnitude(<$word>::from_le_bytes(word) & !TOP);
                }
            }
        }
    };
}

loops!(of_8, u8, i8, 1, i16::from);
loops!(of_16, u16, i16, 2, |bits: u16| bits as i16);
loops!(of_32, u32, i32, 4, |bits: u32| (bits >> 16) as i16);
loops!(of_64, u64, i64, 8, |bits: u64| (bits >> 48) as i16);
