//! Runs of bytes of one kind (planes, masks), each stored by itself in the shortest of four ways.
//!
//! What is read is bounded by what is there and by the length that the reader expects; what the bytes mean is not known
//! here.

use super::entropy::{Compressor, Decompressor};
use super::sample::PlaneHint;
use crate::bytes::bounded_len;
use crate::error::{Error, Result};

/// Bytes of mode and length before the data of a run.
pub(super) const RUN_HEADER_BYTES: usize = 5;

/// The level of zstd for planes with repeats: higher ones cost more time than they save (measured on AdamW states).
const LEVEL_PLANES: i32 = -3;

/// The level of zstd for masks, which are short and full of repeats.
const LEVEL_MASKS: i32 = 1;

/// The share of its commonest byte above which a run is stored sparsely: Huffman coding spends a whole bit on that byte.
const COMMON_SHARE: f32 = 0.65;

/// The share above which it is tried which of both is shorter.
const CLUSTER_SHARE: f32 = 0.35;

/// Bytes of a run that are looked at to choose how it is stored.
const SAMPLE_BYTES: usize = 2048;

/// How a run is stored.
pub(super) mod run_mode {
    pub(in crate::codec) const RAW: u8 = 0;
    pub(in crate::codec) const CODED: u8 = 1;
    pub(in crate::codec) const CONSTANT: u8 = 2;
    pub(in crate::codec) const SPARSE: u8 = 3;
}

/// One run as it stands in a frame.
#[derive(Clone, Copy)]
pub(super) enum StoredRun<'a> {
    Raw(&'a [u8]),
    Coded(&'a [u8]),
    Constant(u8),
    /// A common byte, where it does not stand, and what stands there.
    Sparse(&'a [u8]),
}

impl<'a> StoredRun<'a> {
    /// Takes the run of `len` bytes from the front of `rest`.
    pub(super) fn read(rest: &mut &'a [u8], len: usize) -> Result<Self> {
        let short = || Error::damaged("a frame ends within a run of bytes");
        let (&[mode, a, b, c, d], behind) = rest.split_first_chunk::<RUN_HEADER_BYTES>().ok_or_else(short)?;
        let stored_len = bounded_len(u32::from_le_bytes([a, b, c, d]).into(), behind.len() as u64, "a run of bytes")?;
        let (data, behind) = behind.split_at_checked(stored_len).ok_or_else(short)?;
        *rest = behind;
        match (mode, data) {
            (run_mode::RAW, _) if data.len() == len => Ok(StoredRun::Raw(data)),
            (run_mode::CODED, _) => Ok(StoredRun::Coded(data)),
            (run_mode::CONSTANT, &[byte]) => Ok(StoredRun::Constant(byte)),
            (run_mode::SPARSE, _) => Ok(StoredRun::Sparse(data)),
            _ => Err(Error::damaged(format!("a run of mode {mode} holds {stored_len} bytes"))),
        }
    }
}

/// How deep sparse runs may lie in each other, each the mask of the one around it.
const DEPTH_MAX: usize = 4;

/// Decodes runs; keeps its memory, which stays below that of the longest run.
pub(super) struct RunReader {
    pub(super) zstd: Decompressor<'static>,
    /// Mask and others of each depth.
    memory: [[Vec<u8>; 2]; DEPTH_MAX],
}

impl RunReader {
    pub(super) fn new() -> Result<Self> {
        Ok(RunReader { zstd: Decompressor::new()?, memory: Default::default() })
    }

    /// Fills `place` with the run.
    pub(super) fn fill(&mut self, run: StoredRun<'_>, place: &mut [u8]) -> Result<()> {
        self.fill_at(0, run, place)
    }

    fn fill_at(&mut self, depth: usize, run: StoredRun<'_>, place: &mut [u8]) -> Result<()> {
        let StoredRun::Sparse(data) = run else { return fill_plain(&mut self.zstd, run, place) };
        let memory = self.memory.get_mut(depth).ok_or_else(|| Error::damaged("sparse runs lie too deep"))?;
        let [mut mask, mut others] = std::mem::take(memory);
        let filled = self.fill_sparse(depth, data, &mut mask, &mut others, place);
        self.memory[depth] = [mask, others];
        filled
    }

    fn fill_sparse(
        &mut self,
        depth: usize,
        data: &[u8],
        mask: &mut Vec<u8>,
        others: &mut Vec<u8>,
        place: &mut [u8],
    ) -> Result<()> {
        let (&common, mut rest) = data.split_first().ok_or_else(|| Error::damaged("a sparse run is empty"))?;
        let mask_len = place.len().div_ceil(8);
        let run = StoredRun::read(&mut rest, mask_len)?;
        grow(mask, mask_len);
        let mask = &mut mask[..mask_len];
        self.fill_at(depth + 1, run, mask)?;
        let count = mask_count(mask, place.len())?;
        let run = StoredRun::read(&mut rest, count)?;
        grow(others, count);
        let others = &mut others[..count];
        fill_plain(&mut self.zstd, run, others)?;
        expand(common, mask, others, place);
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Error::damaged("a sparse run is too long")),
        }
    }
}

/// Fills `place` with a run that is not sparse.
fn fill_plain(zstd: &mut Decompressor<'_>, run: StoredRun<'_>, place: &mut [u8]) -> Result<()> {
    match run {
        StoredRun::Raw(bytes) if bytes.len() == place.len() => place.copy_from_slice(bytes),
        StoredRun::Coded(bytes) => zstd.fill(bytes, place)?,
        StoredRun::Constant(byte) => place.fill(byte),
        StoredRun::Raw(_) | StoredRun::Sparse(_) => {
            return Err(Error::damaged("a run of bytes has another length, or is sparse"));
        }
    }
    Ok(())
}

/// Makes `buffer` at least `len` bytes long.
pub(super) fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// How many bits of `mask` are set; an error if one stands behind the first `len`.
pub(super) fn mask_count(mask: &[u8], len: usize) -> Result<usize> {
    let (eights, rest) = mask.as_chunks::<8>();
    let whole: u32 = eights.iter().map(|&bytes| u64::from_le_bytes(bytes).count_ones()).sum();
    let count = whole + rest.iter().map(|byte| byte.count_ones()).sum::<u32>();
    match mask.last() {
        Some(last) if !len.is_multiple_of(8) && last >> (len % 8) != 0 => {
            Err(Error::damaged("a mask is longer than its run"))
        }
        _ => Ok(count as usize),
    }
}

/// `common` where the bit of `mask` is clear, the next of `others` where it is set.
#[inline(never)]
fn expand(common: u8, mask: &[u8], others: &[u8], place: &mut [u8]) {
    place.fill(common);
    let mut next = others;
    let (blocks, rest) = place.as_chunks_mut::<64>();
    let (masks, mask_rest) = mask.split_at(mask.len().min(8 * blocks.len()));
    for (&bits, block) in masks.as_chunks::<8>().0.iter().zip(blocks) {
        let mut bits = u64::from_le_bytes(bits);
        let (now, behind) = next.split_at(next.len().min(bits.count_ones() as usize));
        for &other in now {
            block[bits.trailing_zeros() as usize & 63] = other;
            bits &= bits.wrapping_sub(1);
        }
        next = behind;
    }
    for (at, byte) in rest.iter_mut().enumerate() {
        if mask_rest.get(at / 8).is_some_and(|bits| bits >> (at % 8) & 1 == 1)
            && let Some((&other, behind)) = next.split_first()
        {
            *byte = other;
            next = behind;
        }
    }
}

/// The inverse of [`expand`].
fn contract(common: u8, run: &[u8], mask: &mut Vec<u8>, others: &mut Vec<u8>) {
    mask.clear();
    others.clear();
    others.resize(run.len() + 8, 0);
    let mut count = 0;
    for bytes in run.chunks(8) {
        let mut bits = 0;
        for (j, &byte) in bytes.iter().enumerate() {
            let is_other = u8::from(byte != common);
            others[count] = byte;
            count += usize::from(is_other);
            bits |= is_other << j;
        }
        mask.push(bits);
    }
    others.truncate(count);
}

/// Stores runs; keeps its memory between calls.
pub(super) struct RunWriter {
    huffman: Compressor<'static>,
    matching: Compressor<'static>,
    masks: Compressor<'static>,
    memory: [[Vec<u8>; 2]; DEPTH_MAX],
}

impl RunWriter {
    pub(super) fn new() -> Result<Self> {
        Ok(RunWriter {
            huffman: Compressor::huffman_only()?,
            matching: Compressor::at_level(LEVEL_PLANES)?,
            masks: Compressor::at_level(LEVEL_MASKS)?,
            memory: Default::default(),
        })
    }

    /// Appends `run` to `out` as `hint` says, or in fewer bytes.
    pub(super) fn append(&mut self, run: &[u8], hint: PlaneHint, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&[0; RUN_HEADER_BYTES]);
        let mode = match hint {
            _ if is_constant(run) => {
                out.extend_from_slice(&run[..run.len().min(1)]);
                if run.is_empty() { run_mode::RAW } else { run_mode::CONSTANT }
            }
            PlaneHint::Raw => {
                out.extend_from_slice(run);
                run_mode::RAW
            }
            PlaneHint::Huffman | PlaneHint::Runs => {
                let mut stored = self.huffman.append(run, out)?;
                if hint == PlaneHint::Runs {
                    stored = keep_smaller(&mut self.matching, run, stored, out)?;
                }
                if stored < run.len() {
                    run_mode::CODED
                } else {
                    out.truncate(start + RUN_HEADER_BYTES);
                    out.extend_from_slice(run);
                    run_mode::RAW
                }
            }
        };
        finish(mode, start, out);
        Ok(())
    }

    /// Appends `run` to `out` in the way that a sample of it suggests.
    pub(super) fn append_sampled(&mut self, run: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (common, share, bits) = sampled(run);
        if is_constant(run) || bits >= 7.85 {
            return self.append(run, PlaneHint::Raw, out);
        }
        if share > COMMON_SHARE {
            return self.append_sparse(0, common, run, out);
        }
        let start = out.len();
        self.append(run, PlaneHint::Huffman, out)?;
        let stored = out.len() - start;
        if share > CLUSTER_SHARE {
            // The common byte may come in rows.
            self.append_sparse(0, common, run, out)?;
            keep_last(start, stored, out);
        }
        Ok(())
    }

    /// Appends a sparse run that lies `depth` deep in others.
    fn append_sparse(&mut self, depth: usize, common: u8, run: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&[0; RUN_HEADER_BYTES]);
        out.push(common);
        let [mut mask, mut others] = std::mem::take(&mut self.memory[depth]);
        contract(common, run, &mut mask, &mut others);
        let appended = self.append_mask_at(depth + 1, &mask, out);
        let appended = appended.and_then(|()| self.append(&others, PlaneHint::Huffman, out));
        self.memory[depth] = [mask, others];
        finish(run_mode::SPARSE, start, out);
        appended
    }

    /// Appends a mask: bytes of eight flags, which differ little or come in rows.
    pub(super) fn append_mask(&mut self, mask: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.append_mask_at(0, mask, out)
    }

    fn append_mask_at(&mut self, depth: usize, mask: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (common, share, bits) = sampled(mask);
        if is_constant(mask) || bits >= 7.85 {
            return self.append(mask, PlaneHint::Raw, out);
        }
        let start = out.len();
        out.extend_from_slice(&[0; RUN_HEADER_BYTES]);
        let stored = self.huffman.append(mask, out)?;
        keep_smaller(&mut self.masks, mask, stored, out)?;
        finish(run_mode::CODED, start, out);
        if share > COMMON_SHARE && depth < DEPTH_MAX {
            let stored = out.len() - start;
            self.append_sparse(depth, common, mask, out)?;
            keep_last(start, stored, out);
        }
        if out.len() - start - RUN_HEADER_BYTES >= mask.len() {
            out.truncate(start);
            self.append(mask, PlaneHint::Raw, out)?;
        }
        Ok(())
    }
}

/// Of the `stored` bytes from `start` on and what stands behind them keeps the shorter.
fn keep_last(start: usize, stored: usize, out: &mut Vec<u8>) {
    let last = out.len() - start - stored;
    if last < stored {
        out.copy_within(start + stored.., start);
    }
    out.truncate(start + stored.min(last));
}

/// Compresses `run` again, behind the `stored` bytes at the end of `out` that it took, and leaves the shorter there.
fn keep_smaller(compressor: &mut Compressor<'_>, run: &[u8], stored: usize, out: &mut Vec<u8>) -> Result<usize> {
    let at = out.len() - stored;
    compressor.append(run, out)?;
    keep_last(at, stored, out);
    Ok(out.len() - at)
}

fn finish(mode: u8, start: usize, out: &mut [u8]) {
    let stored = (out.len() - start - RUN_HEADER_BYTES) as u32;
    out[start] = mode;
    out[start + 1..start + RUN_HEADER_BYTES].copy_from_slice(&stored.to_le_bytes());
}

/// The commonest byte of a sample of `run`, its share, and bits per byte.
fn sampled(run: &[u8]) -> (u8, f32, f32) {
    const WINDOW: usize = 128;
    let mut counts = [0u32; 256];
    let windows = (SAMPLE_BYTES / WINDOW).min(run.len().div_ceil(WINDOW)).max(1);
    let mut total = 0u32;
    for window in 0..windows {
        let start = run.len().saturating_sub(WINDOW) * window / windows.saturating_sub(1).max(1);
        for &byte in &run[start..run.len().min(start + WINDOW)] {
            counts[usize::from(byte)] += 1;
            total += 1;
        }
    }
    let total = total.max(1) as f32;
    let (mut common, mut most, mut used, mut weighted) = (0, 0, 0, 0.0);
    for (byte, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        if count > most {
            (common, most) = (byte as u8, count);
        }
        used += 1;
        weighted += count as f32 * (count as f32).log2();
    }
    // With the correction of Miller and Madow (1955) for the smallness of the sample.
    let bits = total.log2() - weighted / total + used as f32 * std::f32::consts::LOG2_E / (2.0 * total);
    (common, most as f32 / total, bits)
}

/// True if all bytes are equal: each equals its neighbour, which compares at the speed of memory.
pub(super) fn is_constant(bytes: &[u8]) -> bool {
    bytes.is_empty() || bytes[1..] == bytes[..bytes.len() - 1]
}
