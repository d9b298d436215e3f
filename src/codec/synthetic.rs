//! Made-up data of known kinds for the codec's tests and benchmarks: reproducible from a seed, no files.
//!
//! The benchmark includes this file by its path; it depends on nothing but `std`.

/// A small generator of random numbers (SplitMix64, Steele et al. 2014); not for secrets.
pub struct Random(u64);

impl Random {
    /// The generator started from `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to but not including `bound`, which is above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// A number from the standard normal distribution (Box and Muller 1958).
    pub fn gaussian(&mut self) -> f64 {
        let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (u, v) = (unit(self.bits()), unit(self.bits()));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// `len` bytes of noise.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// `len` bytes of lines of words, the words as unevenly frequent as in a language.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| {
            (0..2 + random.below(9))
                .map(|_| char::from(b'a' + (random.below(26) * random.below(26) / 26) as u8))
                .collect()
        })
        .collect();
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        let rank = (words.len() as f64).powf(random.below(1 << 20) as f64 / (1 << 20) as f64) as usize;
        bytes.extend_from_slice(words[rank.min(words.len() - 1)].as_bytes());
        bytes.push(if random.below(12) == 0 { b'\n' } else { b' ' });
    }
    bytes.truncate(len);
    bytes
}

/// `len` bytes of token numbers below 50,000 as 32-bit integers, frequent ones more often, some of them in phrases that come back.
pub fn tokens(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut ids: Vec<u32> = Vec::new();
    while ids.len() < len / 4 {
        if ids.len() > 100 && random.below(8) == 0 {
            let start = random.below(ids.len() - 20);
            let phrase = ids[start..start + 3 + random.below(12)].to_vec();
            ids.extend(phrase);
        } else {
            ids.push(50_000f64.powf(random.below(1 << 20) as f64 / (1 << 20) as f64) as u32);
        }
    }
    ids.truncate(len / 4);
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// The number formats that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// The upper half of an IEEE binary32.
    Bf16,
    /// IEEE binary16.
    Fp16,
    /// IEEE binary32.
    Fp32,
    /// IEEE binary64.
    Fp64,
}

impl Float {
    /// All of them.
    pub const ALL: [Float; 4] = [Float::Bf16, Float::Fp16, Float::Fp32, Float::Fp64];

    /// Appends `value`, rounded to this format, little-endian.
    pub fn push(self, value: f64, bytes: &mut Vec<u8>) {
        match self {
            Float::Bf16 => {
                let bits = (value as f32).to_bits();
                let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
                bytes.extend_from_slice(&(rounded as u16).to_le_bytes());
            }
            Float::Fp16 => bytes.extend_from_slice(&fp16_bits(value).to_le_bytes()),
            Float::Fp32 => bytes.extend_from_slice(&(value as f32).to_le_bytes()),
            Float::Fp64 => bytes.extend_from_slice(&value.to_le_bytes()),
        }
    }
}

/// `len` bytes of Gaussian numbers of deviation `scale`, beginning `phase` bytes before a whole number.
pub fn gaussian(seed: u64, float: Float, scale: f64, phase: usize, len: usize) -> Vec<u8> {
    made(seed, float, phase, len, |random| random.gaussian() * scale)
}

/// Like [`gaussian`] from a whole number on, and the same numbers after steps of deviation `step`.
pub fn two_steps(seed: u64, float: Float, scale: f64, step: f64, len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::new(seed);
    let (mut before, mut after) = (Vec::with_capacity(len + 16), Vec::with_capacity(len + 16));
    while before.len() < len {
        let value = random.gaussian() * scale;
        float.push(value, &mut before);
        float.push(value + random.gaussian() * step, &mut after);
    }
    before.truncate(len);
    after.truncate(len);
    (before, after)
}

/// Like [`gaussian`], of numbers that look like Adam's second moment: positive, over many orders of magnitude.
pub fn adam_v(seed: u64, float: Float, phase: usize, len: usize) -> Vec<u8> {
    made(seed, float, phase, len, |random| {
        let (row, gradient) = (random.gaussian() * 1.5, random.gaussian());
        gradient * gradient * 1e-9 * row.exp()
    })
}

/// Like [`gaussian`], of numbers that look like Adam's first moment: of either sign, heavy tails.
pub fn adam_m(seed: u64, float: Float, phase: usize, len: usize) -> Vec<u8> {
    made(seed, float, phase, len, |random| {
        let (row, gradient) = (random.gaussian(), random.gaussian());
        gradient * 1e-5 * row.exp()
    })
}

fn made(seed: u64, float: Float, phase: usize, len: usize, mut next: impl FnMut(&mut Random) -> f64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 16);
    let width = match float {
        Float::Bf16 | Float::Fp16 => 2,
        Float::Fp32 => 4,
        Float::Fp64 => 8,
    };
    let skipped = (width - phase % width) % width;
    while bytes.len() < len + skipped {
        float.push(next(&mut random), &mut bytes);
    }
    bytes.drain(..skipped);
    bytes.truncate(len);
    bytes
}

/// The nearest binary16; underflow becomes a subnormal or zero, overflow infinity.
fn fp16_bits(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = value.abs();
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    let exponent = (magnitude.log2().floor()).max(-14.0);
    let scaled = (magnitude / exponent.exp2() * 1024.0).round() as u32;
    // `scaled` is 1024..=2048 for normal numbers, below for subnormal ones: the carry into the exponent is right as it is.
    sign | ((((exponent as i32 + 14) as u32) << 10) + scaled) as u16
}
