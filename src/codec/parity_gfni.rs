//! The transform of parity by instructions that multiply 64 bytes with bit matrices at once (GFNI with AVX-512).
//!
//! Multiplying by a constant of the field is linear over bits: each of the two bytes of a product is the sum of one bit
//! matrix times the low byte and another times the high byte. So a product of 32 elements takes two instructions and a
//! swap, where table look-ups by half bytes take eight and their masks, and four shards go through two layers in registers.
//! `cargo bench --bench parity` shows it: the row "streamed" beside "parity", which is the twin, without checksums.
//!
//! The only file with `unsafe`: instructions that not every processor has, behind a question that is asked once. Its twin
//! is the engine of `reed-solomon-simd`, which serves all other processors, and whose bytes the tests of
//! [`ParityStream`](super::parity_stream::ParityStream) want from this one. The walk through the layers is that of Lin, Han
//! and Chung's transform in the basis of that crate: <https://github.com/catid/leopard>.

#![expect(unsafe_code, reason = "instructions that the compiler may not assume; each use says why it is sound")]

use super::parity_stream::{Block, Group};
use reed_solomon_simd::engine::tables::get_skew;
use reed_solomon_simd::engine::{DefaultEngine, Engine, GF_MODULUS, GfElement};
use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_set_epi64,
    _mm512_shuffle_i64x2, _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

/// Transforms groups of shards. There is one only where the processor has the instructions.
pub(super) struct GfniTransform {
    /// For every place of a group the constant that the butterflies which begin there multiply by.
    factors: Vec<Factor>,
}

/// A constant of the field as bit matrices in the order of bits that the instruction wants.
#[derive(Clone, Copy)]
struct Factor {
    low_to_low: u64,
    high_to_low: u64,
    low_to_high: u64,
    high_to_high: u64,
}

impl GfniTransform {
    /// None if this processor lacks the instructions.
    pub(super) fn detect() -> Option<GfniTransform> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("gfni"))
            .then(|| GfniTransform { factors: Vec::new() })
    }

    /// Makes ready for a group of `shards` shards at `place` of the code.
    pub(super) fn prepare(&mut self, shards: usize, place: usize, engine: &DefaultEngine) {
        let skew = get_skew();
        self.factors.clear();
        // A code has 65,536 places at most, and nobody asks for one behind them.
        let logarithms = skew.get(place..).unwrap_or_default().iter().take(shards);
        self.factors.extend(logarithms.map(|&logarithm| Factor::of(logarithm, engine)));
        self.factors.resize(shards, Factor::of(GF_MODULUS, engine));
    }

    /// Adds the inverse transform of one column of a group to `sum`. In `sum` and in `column`, which is for working in, the
    /// shards of a column stand one behind the other in equal parts.
    pub(super) fn add_inverse(&self, group: &Group<'_>, column: &mut [Block], sum: &mut [Block]) {
        // SAFETY: `detect` has asked for the features that the function is compiled with, and nothing else makes one of these.
        unsafe { self.add_inverse_with_gfni(group, column, sum) }
    }

    #[target_feature(enable = "avx512f,gfni")]
    fn add_inverse_with_gfni(&self, group: &Group<'_>, column: &mut [Block], sum: &mut [Block]) {
        let shards = self.factors.len();
        let count = group.count();
        let width = column.len() / shards.max(1);
        let mut distance = 1;
        if shards >= 4 && count == shards && group.is_whole() {
            // The first layers take the shards from where they are.
            for first in (0..shards).step_by(4) {
                let from = |number: usize| blocks(group.part(first + number));
                let next = |number: usize| blocks(group.part((first + 4 + number) % shards));
                let into = &mut column[first * width..(first + 4) * width];
                first_layers([0, 1, 2, 3].map(from), [0, 1, 2, 3].map(next), into, &self.three(first, 1));
            }
            distance = 4;
        } else {
            group.gather(column.as_flattened_mut());
        }
        // Two layers at once: what is loaded goes through both.
        while distance * 4 <= shards {
            for first in (0..count).step_by(distance * 4) {
                let factors = self.three(first, distance);
                for shard in first..first + distance {
                    two_layers(column, shard * width, distance * width, width, &factors);
                }
            }
            distance *= 4;
        }
        if distance < shards {
            let factor = self.factors[distance - 1].spread();
            let (low, high) = column.split_at_mut(distance * width);
            for (low, high) in low.iter_mut().zip(high) {
                let (x, y) = butterfly(load(low), load(high), factor);
                store(low, x);
                store(high, y);
            }
        }
        for (sum, more) in sum.iter_mut().zip(column.iter()) {
            store(sum, _mm512_xor_si512(load(sum), load(more)));
        }
    }

    /// The factors of two layers between four shards, the first of which stands at `first`.
    #[target_feature(enable = "avx512f,gfni")]
    fn three(&self, first: usize, distance: usize) -> [Spread; 3] {
        [1, 2, 3].map(|step| self.factors[first + step * distance - 1].spread())
    }
}

/// Two layers of butterflies between four neighbouring shards, from where they are into a column. What comes `next` is
/// asked for meanwhile: parts of shards lie too far from each other for the processor to guess.
#[target_feature(enable = "avx512f,gfni")]
fn first_layers(from: [&[Block]; 4], next: [&[Block]; 4], into: &mut [Block], factors: &[Spread; 3]) {
    let width = into.len() / 4;
    let (a, rest) = into.split_at_mut(width);
    let (b, rest) = rest.split_at_mut(width);
    let (c, d) = rest.split_at_mut(width);
    for number in 0..width {
        next.iter().for_each(|part| prefetch(&part[number]));
        let [p, q, r, s] = from.map(|part| load(&part[number]));
        let [p, q, r, s] = four(p, q, r, s, factors);
        store(&mut a[number], p);
        store(&mut b[number], q);
        store(&mut c[number], r);
        store(&mut d[number], s);
    }
}

/// Two layers of butterflies between four shards of `width` blocks, `distance` blocks apart.
#[target_feature(enable = "avx512f,gfni")]
fn two_layers(column: &mut [Block], first: usize, distance: usize, width: usize, factors: &[Spread; 3]) {
    let range = |number: usize| first + number * distance..first + number * distance + width;
    let Ok([a, b, c, d]) = column.get_disjoint_mut([range(0), range(1), range(2), range(3)]) else { return };
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let [p, q, r, s] = four(load(a), load(b), load(c), load(d), factors);
        store(a, p);
        store(b, q);
        store(c, r);
        store(d, s);
    }
}

/// Both layers of four blocks.
#[target_feature(enable = "avx512f,gfni")]
fn four(a: __m512i, b: __m512i, c: __m512i, d: __m512i, factors: &[Spread; 3]) -> [__m512i; 4] {
    let (a, b) = butterfly(a, b, factors[0]);
    let (c, d) = butterfly(c, d, factors[2]);
    let (a, c) = butterfly(a, c, factors[1]);
    let (b, d) = butterfly(b, d, factors[1]);
    [a, b, c, d]
}

/// `y + x`, and `x` plus the factor times that.
#[target_feature(enable = "avx512f,gfni")]
fn butterfly(x: __m512i, y: __m512i, factor: Spread) -> (__m512i, __m512i) {
    let y = _mm512_xor_si512(y, x);
    let straight = _mm512_gf2p8affine_epi64_epi8::<0>(y, factor.straight);
    let crossed = _mm512_gf2p8affine_epi64_epi8::<0>(_mm512_shuffle_i64x2::<0b01_00_11_10>(y, y), factor.crossed);
    // The sum of three.
    (_mm512_ternarylogic_epi64::<0x96>(x, straight, crossed), y)
}

/// A factor as the instruction takes it: a block is the low bytes of 32 elements, then their high bytes.
#[derive(Clone, Copy)]
struct Spread {
    /// From low bytes to low ones and from high to high.
    straight: __m512i,
    /// From what stands in the place of the low bytes once the halves are swapped, and in that of the high ones.
    crossed: __m512i,
}

impl Factor {
    fn of(logarithm: GfElement, engine: &DefaultEngine) -> Factor {
        let mut factor = Factor { low_to_low: 0, high_to_low: 0, low_to_high: 0, high_to_high: 0 };
        // The logarithm of zero, by which the crate's engine refuses to multiply.
        if logarithm == GF_MODULUS {
            return factor;
        }
        // The products of all single bits: the columns of the matrices.
        let mut products: [Block; 1] = [[0; 64]];
        for bit in 0..8 {
            products[0][bit] = 1 << bit;
            products[0][32 + 8 + bit] = 1 << bit;
        }
        engine.mul(&mut products, logarithm);
        let (low, high) = products[0].split_at(32);
        for bit in 0..8 {
            for (matrix, product) in [
                (&mut factor.low_to_low, low[bit]),
                (&mut factor.high_to_low, low[8 + bit]),
                (&mut factor.low_to_high, high[bit]),
                (&mut factor.high_to_high, high[8 + bit]),
            ] {
                // The row for bit n of a product is byte 7 - n of the matrix.
                (0..8).filter(|row| product >> row & 1 == 1).for_each(|row| *matrix |= 1 << (8 * (7 - row) + bit));
            }
        }
        factor
    }

    #[target_feature(enable = "avx512f,gfni")]
    fn spread(&self) -> Spread {
        let halves = |high: u64, low: u64| {
            let (high, low) = (high.cast_signed(), low.cast_signed());
            _mm512_set_epi64(high, high, high, high, low, low, low, low)
        };
        Spread {
            straight: halves(self.high_to_high, self.low_to_low),
            crossed: halves(self.low_to_high, self.high_to_low),
        }
    }
}

#[target_feature(enable = "avx512f")]
fn load(block: &Block) -> __m512i {
    // SAFETY: the reference is to the 64 bytes that are read; the instruction wants no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn store(block: &mut Block, value: __m512i) {
    // SAFETY: the reference is to the 64 bytes that are written, and nobody else has it; no alignment is wanted.
    unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx512f")]
fn prefetch(block: &Block) {
    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast());
}

/// Lengths are multiples of a block, so nothing is left over.
fn blocks(bytes: &[u8]) -> &[Block] {
    bytes.as_chunks().0
}
