//! `.gguf`, versions 2 and 3: counts, metadata, descriptions of tensors, padding, tensors.
//!
//! Metadata is passed over within bounds; only `general.alignment` is used. The bytes of a tensor follow from the blocks of
//! its type. Tensors must be aligned and may not overlap; padding may lie between them and behind the last.
//! Big-endian files, version 1 and unknown types are told as malformed, with that reason.

use super::finish::{finish, name_twice, run_of};
use super::header_reader::{Refusal, range, shown};
use super::header_stream::HeaderStream;
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Dtype, Layout, Tensor};

/// What every file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// The key of the alignment of tensors.
const ALIGNMENT_KEY: &[u8] = b"general.alignment";

/// The alignment of files that do not say.
const ALIGNMENT_DEFAULT: u64 = 32;

/// Names of tensors have 64 bytes in the format's library, keys are not much longer.
const NAME_BYTES_MAX: u64 = 4 << 10;

/// The format's library has 4.
const DIMENSIONS_MAX: u32 = 8;

/// Arrays in arrays: nobody writes them, the format has them.
const NESTED_ARRAYS_MAX: u32 = 4;

const VALUE_U32: u32 = 4;
const VALUE_STRING: u32 = 8;
const VALUE_ARRAY: u32 = 9;

/// A type of elements: its number in a file, elements and bytes of one block.
struct BlockType {
    number: u32,
    dtype: Dtype,
    elements: u64,
    bytes: u64,
}

const fn plain(number: u32, dtype: Dtype, bytes: u64) -> BlockType {
    BlockType { number, dtype, elements: 1, bytes }
}

const fn blocks(number: u32, name: &'static str, elements: u64, bytes: u64) -> BlockType {
    BlockType { number, dtype: Dtype::Blocks(name), elements, bytes }
}

/// All types that a file may hold; 31 to 33 and 36 to 38 are no longer written, and arrange Q4_0 and IQ4_NL otherwise.
const TYPES: &[BlockType] = &[
    plain(0, Dtype::F32, 4),
    plain(1, Dtype::F16, 2),
    blocks(2, "Q4_0", 32, 18),
    blocks(3, "Q4_1", 32, 20),
    blocks(6, "Q5_0", 32, 22),
    blocks(7, "Q5_1", 32, 24),
    blocks(8, "Q8_0", 32, 34),
    blocks(9, "Q8_1", 32, 36),
    blocks(10, "Q2_K", 256, 84),
    blocks(11, "Q3_K", 256, 110),
    blocks(12, "Q4_K", 256, 144),
    blocks(13, "Q5_K", 256, 176),
    blocks(14, "Q6_K", 256, 210),
    blocks(15, "Q8_K", 256, 292),
    blocks(16, "IQ2_XXS", 256, 66),
    blocks(17, "IQ2_XS", 256, 74),
    blocks(18, "IQ3_XXS", 256, 98),
    blocks(19, "IQ1_S", 256, 50),
    blocks(20, "IQ4_NL", 32, 18),
    blocks(21, "IQ3_S", 256, 110),
    blocks(22, "IQ2_S", 256, 82),
    blocks(23, "IQ4_XS", 256, 136),
    plain(24, Dtype::I8, 1),
    plain(25, Dtype::I16, 2),
    plain(26, Dtype::I32, 4),
    plain(27, Dtype::I64, 8),
    plain(28, Dtype::F64, 8),
    blocks(29, "IQ1_M", 256, 56),
    plain(30, Dtype::Bf16, 2),
    blocks(31, "Q4_0_4_4", 32, 18),
    blocks(32, "Q4_0_4_8", 32, 18),
    blocks(33, "Q4_0_8_8", 32, 18),
    blocks(34, "TQ1_0", 256, 54),
    blocks(35, "TQ2_0", 256, 66),
    blocks(36, "IQ4_NL_4_4", 32, 18),
    blocks(37, "IQ4_NL_4_8", 32, 18),
    blocks(38, "IQ4_NL_8_8", 32, 18),
    blocks(39, "MXFP4", 32, 17),
    blocks(40, "NVFP4", 64, 36),
    blocks(41, "Q1_0", 128, 18),
];

/// Reads counts, metadata and descriptions.
pub(super) fn parse(file: &dyn ReadAt) -> Result<Layout, Refusal> {
    let mut stream = HeaderStream::new(file, MAGIC.len() as u64);
    let version = stream.u32()?;
    match version {
        2 | 3 => {}
        _ if (1..=0xffff).contains(&version.swap_bytes()) => return Err(Refusal::malformed("it is big-endian")),
        _ => return Err(Refusal::malformed(format!("its version is {version}, and 2 and 3 are known"))),
    }
    let (tensor_count, value_count) = (stream.u64()?, stream.u64()?);
    let alignment = alignment(&mut stream, value_count)?;
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(tensor(&mut stream, alignment)?);
    }
    if let Some(twice) = name_twice(tensors.iter().map(|tensor| tensor.name.as_str())) {
        return Err(Refusal::malformed(format!("the name {} is there twice", shown(twice))));
    }
    let data_begin = stream.position().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    for tensor in &mut tensors {
        if let Some(place) = tensor.place {
            let offset = place.offset().saturating_add(data_begin);
            tensor.place = Some(range(offset, place.len())?);
        }
    }
    tensors.sort_by_key(|tensor| tensor.place);
    let runs = tensors.iter().filter_map(run_of).collect();
    let layout = Layout { container: Container::Gguf, tensors, runs, metadata: Vec::new(), is_truncated: false };
    finish(layout, file.bytes())
}

/// Passes over the metadata; returns the alignment of tensors.
fn alignment(stream: &mut HeaderStream<'_>, value_count: u64) -> Result<u64, Refusal> {
    let mut alignment = ALIGNMENT_DEFAULT;
    for _ in 0..value_count {
        let is_alignment = name(stream)? == ALIGNMENT_KEY;
        let kind = stream.u32()?;
        if !is_alignment {
            skip_value(stream, kind, 0)?;
            continue;
        }
        if kind != VALUE_U32 {
            return Err(Refusal::malformed("its alignment is not a number of 32 bits"));
        }
        alignment = stream.u32()?.into();
        if !alignment.is_power_of_two() {
            return Err(Refusal::malformed(format!("its alignment is {alignment}, which is no power of two")));
        }
    }
    Ok(alignment)
}

/// The bytes of a short string.
fn name<'s>(stream: &'s mut HeaderStream<'_>) -> Result<&'s [u8], Refusal> {
    let bytes = stream.u64()?;
    if bytes > NAME_BYTES_MAX {
        return Err(Refusal::malformed(format!("a name has {bytes} bytes, and {NAME_BYTES_MAX} are possible")));
    }
    stream.take(bytes)
}

/// The bytes of a value that has the same number of them every time.
fn value_bytes(kind: u32) -> Result<u64, Refusal> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        VALUE_U32 | 5 | 6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(Refusal::malformed(format!("its metadata has a value of the unknown type {kind}"))),
    }
}

fn skip_value(stream: &mut HeaderStream<'_>, kind: u32, depth: u32) -> Result<(), Refusal> {
    match kind {
        VALUE_STRING => {
            let bytes = stream.u64()?;
            stream.skip(bytes)
        }
        VALUE_ARRAY if depth == NESTED_ARRAYS_MAX => Err(Refusal::malformed("its metadata nests arrays too deep")),
        VALUE_ARRAY => {
            let (kind, count) = (stream.u32()?, stream.u64()?);
            if matches!(kind, VALUE_STRING | VALUE_ARRAY) {
                // Each element has bytes of its own, so a count from outside ends at the end of the file at the latest.
                return (0..count).try_for_each(|_| skip_value(stream, kind, depth + 1));
            }
            let bytes = value_bytes(kind)?.checked_mul(count).ok_or(Refusal::CutShort)?;
            stream.skip(bytes)
        }
        kind => stream.skip(value_bytes(kind)?),
    }
}

/// One description; the place is counted from the beginning of the tensors.
fn tensor(stream: &mut HeaderStream<'_>, alignment: u64) -> Result<Tensor, Refusal> {
    let name = std::str::from_utf8(name(stream)?).map_err(|_| Refusal::malformed("a name is no text"))?.to_owned();
    let wrong = |what: String| Refusal::malformed(format!("the tensor {} {what}", shown(&name)));
    let dimensions = stream.u32()?;
    if dimensions > DIMENSIONS_MAX {
        return Err(wrong(format!("has {dimensions} dimensions")));
    }
    let mut shape = (0..dimensions).map(|_| stream.u64()).collect::<Result<Vec<u64>, Refusal>>()?;
    let (number, offset) = (stream.u32()?, stream.u64()?);
    let block = TYPES.iter().find(|known| known.number == number);
    let block = block.ok_or_else(|| wrong(format!("is of the unknown type {number}")))?;
    if !shape.first().copied().unwrap_or(1).is_multiple_of(block.elements) {
        return Err(wrong(format!("has rows that are no whole number of blocks of {}", block.dtype)));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(wrong(format!("lies at {offset}, which is not aligned to {alignment}")));
    }
    // The fastest dimension stands first in the file.
    shape.reverse();
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bytes = elements.and_then(|elements| (elements / block.elements).checked_mul(block.bytes));
    let bytes = bytes.ok_or_else(|| wrong("has more bytes than 64 bits hold".to_owned()))?;
    let place = Some(range(offset, bytes)?);
    Ok(Tensor { name, dtype: block.dtype, shape, place })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::source::formats::finish::assert_obeys;

    /// Writes the parts of a file.
    pub(in crate::source::formats) struct Writer(pub Vec<u8>);

    impl Writer {
        pub(in crate::source::formats) fn new(version: u32, tensors: u64, values: u64) -> Self {
            let mut writer = Writer(MAGIC.to_vec());
            writer.u32(version).u64(tensors).u64(values);
            writer
        }

        pub(in crate::source::formats) fn u32(&mut self, n: u32) -> &mut Self {
            self.0.extend_from_slice(&n.to_le_bytes());
            self
        }

        pub(in crate::source::formats) fn u64(&mut self, n: u64) -> &mut Self {
            self.0.extend_from_slice(&n.to_le_bytes());
            self
        }

        pub(in crate::source::formats) fn text(&mut self, text: &str) -> &mut Self {
            self.u64(text.len() as u64).0.extend_from_slice(text.as_bytes());
            self
        }

        pub(in crate::source::formats) fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, at: u64) -> &mut Self {
            self.text(name).u32(dims.len() as u32);
            for &n in dims {
                self.u64(n);
            }
            self.u32(kind).u64(at)
        }

        /// Pads, and appends the tensors.
        pub(in crate::source::formats) fn data(&mut self, alignment: usize, bytes: usize) -> Vec<u8> {
            let begin = self.0.len().next_multiple_of(alignment);
            self.0.resize(begin, 0);
            self.0.resize(begin + bytes, 9);
            std::mem::take(&mut self.0)
        }
    }

    /// Metadata of every kind, two tensors of blocks and a small one of numbers.
    pub(in crate::source::formats) fn sample() -> Vec<u8> {
        let mut writer = Writer::new(3, 3, 5);
        writer.text("general.architecture").u32(VALUE_STRING).text("llama");
        writer.text("general.alignment").u32(VALUE_U32).u32(64);
        writer.text("tokens").u32(VALUE_ARRAY).u32(VALUE_STRING).u64(2).text("<s>").text("</s>");
        writer.text("scores").u32(VALUE_ARRAY).u32(6).u64(3).u32(0).u32(1).u32(2);
        writer.text("nested").u32(VALUE_ARRAY).u32(VALUE_ARRAY).u64(1).u32(0).u64(4).u32(0x0101_0101);
        writer.tensor("blk.0.q", &[512, 6], 12, 0);
        writer.tensor("norm", &[4], 0, 1728);
        writer.tensor("blk.1.q", &[32, 2, 30], 8, 1792);
        writer.data(64, 1792 + 60 * 34)
    }

    fn reason(file: Vec<u8>) -> String {
        match parse(&file.as_slice()) {
            Err(Refusal::Malformed(reason)) => reason,
            other => panic!("not malformed: {other:?}"),
        }
    }

    #[test]
    fn tensors_have_the_places_that_blocks_and_alignment_give() {
        let file = sample();
        let begin = file.len() as u64 - (1792 + 60 * 34);
        let layout = parse(&file.as_slice()).expect("valid");
        let found: Vec<_> = layout.tensors.iter().map(|t| (&*t.name, t.dtype.name(), &*t.shape)).collect();
        let expected: [(&str, &str, &[u64]); 3] =
            [("blk.0.q", "Q4_K", &[6, 512]), ("norm", "F32", &[4]), ("blk.1.q", "Q8_0", &[30, 2, 32])];
        assert_eq!(found, expected);
        let runs: Vec<_> = layout.runs.iter().map(|r| (&*r.key, r.range.offset() - begin, r.range.len())).collect();
        assert_eq!(runs, [("blk.0.q", 0, 1728), ("blk.1.q", 1792, 2040)]);
        assert!(!layout.is_truncated);
    }

    #[test]
    fn a_file_that_ends_anywhere_is_truncated() {
        let file = sample();
        for bytes in 4..file.len() {
            match parse(&&file[..bytes]) {
                Ok(layout) => {
                    assert!(layout.is_truncated);
                    assert_obeys(&layout, bytes as u64);
                }
                other => assert_eq!(other, Err(Refusal::CutShort)),
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        let one = |dims: &[u64], kind, at| Writer::new(2, 1, 0).tensor("t", dims, kind, at).data(32, 64);
        assert!(reason(Writer::new(1, 0, 0).0).contains("version"));
        assert!(reason(Writer::new(3u32.swap_bytes(), 0, 0).0).contains("big-endian"));
        assert!(reason(one(&[1], 99, 0)).contains("unknown type 99"));
        assert!(reason(one(&[33], 2, 0)).contains("blocks of Q4_0"));
        assert!(reason(one(&[1], 0, 4)).contains("aligned"));
        assert!(reason(one(&[1 << 40, 1 << 40], 0, 0)).contains("64 bits"));
        assert!(reason(one(&[1; 9], 0, 0)).contains("9 dimensions"));
        assert!(reason(one(&[1 << 63], 24, 1 << 63)).contains("64 bits"));
        let two = |b, at| Writer::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor(b, &[16], 0, at).data(32, 128);
        assert!(reason(two("a", 64)).contains("twice"));
        assert!(reason(two("b", 32)).contains("over each other"));
        let value = |kind| Writer::new(3, 0, 1).text("k").u32(kind).u64(0).data(32, 64);
        assert!(reason(value(13)).contains("unknown type 13"));
        let alignment = |n| Writer::new(3, 0, 1).text("general.alignment").u32(VALUE_U32).u32(n).data(32, 0);
        assert!(reason(alignment(0)).contains("power of two") && reason(alignment(48)).contains("power of two"));
        let mut nested = Writer::new(3, 0, 1);
        nested.text("k").u32(VALUE_ARRAY);
        for _ in 0..100 {
            nested.u32(VALUE_ARRAY).u64(1);
        }
        assert!(reason(nested.data(32, 0)).contains("too deep"));
        let long = Writer::new(3, 0, 1).u64(1 << 40).data(32, 64);
        assert!(reason(long).contains("a name has"));
    }

    #[test]
    fn counts_from_outside_cost_nothing() {
        for count in [1 << 20, u64::MAX] {
            let array = |kind| Writer::new(3, 0, 1).text("k").u32(VALUE_ARRAY).u32(kind).u64(count).data(32, 4096);
            for kind in [0, 10, VALUE_STRING, VALUE_ARRAY] {
                let file = array(kind);
                assert!(parse(&file.as_slice()).is_err(), "{kind}");
            }
            assert_eq!(parse(&Writer::new(3, count, 0).0.as_slice()), Err(Refusal::CutShort));
            assert_eq!(parse(&Writer::new(3, 0, count).0.as_slice()), Err(Refusal::CutShort));
        }
    }
}
