//! Gaussian bf16 elements from a seed, several GB/s: random choices from a table of samples.

/// Values drawn for a table; every element is a random choice among them.
const TABLE_LEN: usize = 1 << 16;

/// The bf16 values of one distribution, little-endian.
pub struct Gaussian(Box<[[u8; 2]; TABLE_LEN]>);

impl Gaussian {
    /// Samples of the standard normal distribution (Box and Muller, 1958), for [`Gaussian::new`].
    pub fn standard_samples(random: &mut Random) -> Vec<f32> {
        let sample = |_| {
            let (radius, angle) = ((-2.0 * random.unit().ln()).sqrt(), std::f64::consts::TAU * random.unit());
            (radius * angle.cos()) as f32
        };
        (0..TABLE_LEN).map(sample).collect()
    }

    /// The samples moved to `mean` and `deviation`, rounded to the nearest bf16, ties to even.
    pub fn new(samples: &[f32], mean: f32, deviation: f32) -> Self {
        let to_bf16 = |value: f32| {
            let bits = value.to_bits();
            let rounded = bits + 0x7fff + ((bits >> 16) & 1);
            ((rounded >> 16) as u16).to_le_bytes()
        };
        let mut values = Box::new([[0; 2]; TABLE_LEN]);
        for (value, &sample) in values.iter_mut().zip(samples) {
            *value = to_bf16(mean + deviation * sample);
        }
        Gaussian(values)
    }

    /// Fills `bytes` with elements.
    pub fn fill(&self, bytes: &mut [u8], random: &mut Random) {
        for four in bytes.chunks_mut(8) {
            let word = random.word();
            for (i, element) in four.chunks_mut(2).enumerate() {
                let index = (word >> (16 * i)) as u16;
                element.copy_from_slice(&self.0[usize::from(index)][..element.len()]);
            }
        }
    }
}

/// A fast generator of random words: splitmix64 (Steele et al., OOPSLA 2014), of period 2^64.
pub struct Random(u64);

impl Random {
    /// The generator that starts from `seed`; near seeds give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        let mut mixer = Random(seed);
        Random(mixer.word())
    }

    /// The next 64 bits.
    #[inline]
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `(0, 1]`.
    fn unit(&mut self) -> f64 {
        ((self.word() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}
