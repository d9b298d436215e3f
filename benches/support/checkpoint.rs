//! Synthetic checkpoints: valid safetensors files of Gaussian bf16 tensors with the names, shapes and scales of a
//! language model.
//!
//! The same seed gives the same bytes on every machine. Nothing repeats, so nothing deduplicates by accident. The
//! tensors hold no structure beyond their distribution: real weights code like these, but what drifts from one
//! checkpoint to the next is not modelled here.

use crate::gaussian::{Gaussian, Random};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes produced between two writes.
const PIECE_BYTES: usize = 1 << 20;

/// Writes `model-0000N-of-00002.safetensors` into `dir` (created if absent), `bytes` in total to within 1 %, from
/// `seed`; one thread for each file.
pub fn generate(dir: &Path, bytes: u64, seed: u64) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let tensors = model(bytes);
    let half: u64 = tensors.iter().map(Tensor::bytes).sum::<u64>() / 2;
    let mut before = 0;
    let (first, second): (Vec<Tensor>, Vec<Tensor>) = tensors.into_iter().partition(|tensor| {
        before += tensor.bytes();
        before <= half
    });
    let samples = Gaussian::standard_samples(&mut Random::new(seed));
    let paths = [1, 2].map(|number| dir.join(format!("model-{number:05}-of-00002.safetensors")));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| write_file(&paths[1], &second, &samples, Random::new(seed ^ 2)));
        write_file(&paths[0], &first, &samples, Random::new(seed ^ 1))?;
        other.join().map_err(|_| io::Error::other("the writer of the second file panicked"))?
    })?;
    Ok(paths.to_vec())
}

struct Tensor {
    name: String,
    shape: Vec<u64>,
    mean: f32,
    deviation: f32,
}

impl Tensor {
    fn new(name: impl Into<String>, shape: &[u64], mean: f32, deviation: f32) -> Self {
        Tensor { name: name.into(), shape: shape.to_vec(), mean, deviation }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * 2
    }
}

/// The tensors of a decoder-only transformer of `bytes`: as many layers as fit, the output matrix takes the rest.
fn model(bytes: u64) -> Vec<Tensor> {
    let width: u64 = if bytes >= 1 << 30 { 2048 } else { 256 };
    let (inner, key_width) = (width * 11 / 4, width / 8);
    let vocabulary = (bytes / 16 / (width * 2)).clamp(1, 32_000);
    let mut tensors = vec![Tensor::new("model.embed_tokens.weight", &[vocabulary, width], 0.0, 0.018)];
    let layer_bytes = 2 * (2 * width * width + 2 * key_width * width + 3 * inner * width + 2 * width);
    let head_bytes = 2 * width * vocabulary;
    let layers = bytes.saturating_sub(2 * head_bytes) / layer_bytes;
    // Weights that write into the residual stream start smaller, by the number of layers (GPT-2's rule).
    let residual = 0.02 / (2.0 * layers.max(1) as f32).sqrt();
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        // Scales drift with depth, so that no two tensors share a distribution exactly.
        let drift = 1.0 + 0.5 * layer as f32 / layers as f32;
        let mut add = |part, shape: &[u64], mean, deviation| {
            tensors.push(Tensor::new(name(part), shape, mean, deviation * drift));
        };
        add("input_layernorm", &[width], 1.0, 0.08);
        add("mlp.down_proj", &[width, inner], 0.0, residual);
        add("mlp.gate_proj", &[inner, width], 0.0, 0.021);
        add("mlp.up_proj", &[inner, width], 0.0, 0.019);
        add("post_attention_layernorm", &[width], 1.0, 0.05);
        add("self_attn.k_proj", &[key_width, width], 0.0, 0.034);
        add("self_attn.o_proj", &[width, width], 0.0, residual);
        add("self_attn.q_proj", &[width, width], 0.0, 0.027);
        add("self_attn.v_proj", &[key_width, width], 0.0, 0.016);
    }
    tensors.push(Tensor::new("model.norm.weight", &[width], 1.8, 0.2));
    let so_far: u64 = tensors.iter().map(Tensor::bytes).sum();
    let rows = (bytes.saturating_sub(so_far) / (2 * width)).max(1);
    tensors.push(Tensor::new("lm_head.weight", &[rows, width], 0.0, 0.012));
    tensors
}

fn write_file(path: &Path, tensors: &[Tensor], samples: &[f32], mut random: Random) -> io::Result<()> {
    let mut file = File::create(path)?;
    let header = header(tensors);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut piece = vec![0; PIECE_BYTES];
    for tensor in tensors {
        let values = Gaussian::new(samples, tensor.mean, tensor.deviation);
        let mut left = tensor.bytes();
        while left > 0 {
            let len = left.min(PIECE_BYTES as u64);
            let part = &mut piece[..len as usize];
            values.fill(part, &mut random);
            file.write_all(part)?;
            left -= len;
        }
    }
    Ok(())
}

/// The JSON header, padded with spaces to a multiple of 8 as the format's own writer does.
fn header(tensors: &[Tensor]) -> String {
    let mut text = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.bytes();
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        text += &format!(
            ",\"{}\":{{\"dtype\":\"BF16\",\"shape\":[{}],\"data_offsets\":[{begin},{end}]}}",
            tensor.name,
            shape.join(",")
        );
        begin = end;
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    text
}
