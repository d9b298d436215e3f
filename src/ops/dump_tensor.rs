//! Writes one tensor of a file of a snapshot to a stream, alone.
//!
//! Only the chunks that the headers and the tensor lie in are read, ahead by several threads, and each is verified
//! before a byte of it is written.

use super::Resources;
use super::ahead::read_in_order;
use super::tensors::{open_tensor_file, place_of};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use crate::source::layout::{Dtype, Tensor};
use std::io::Write;

/// What stands around the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorFormat {
    /// Nothing.
    Raw,
    /// The header of a numpy array in front.
    Npy,
}

/// Writes the tensor `name` of the file at `path` to `out` and returns how many bytes its elements have.
///
/// [`Kind::NotFound`] if there is no such file or tensor; [`Kind::Usage`]
/// if the file holds no tensors or the elements are not contiguous; [`Kind::Damaged`] if a part
/// of it cannot be read: what comes before that part has been written then.
pub fn dump_tensor(
    repo: &Repo,
    snapshot: &Snapshot,
    (path, name): (&[u8], &str),
    format: TensorFormat,
    out: &mut dyn Write,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<u64> {
    let file = open_tensor_file(repo, snapshot, path, observer)?;
    let tensor = file.tensor(name)?;
    let place = place_of(tensor)?;
    observer.on_event(&Event::Phase { name: "writing", bytes_total: Some(place.len()), files_total: Some(1) });
    let to_out = |error| Error::io("writing the tensor out", error);
    if format == TensorFormat::Npy {
        let header = npy_front(tensor, place.len(), observer)?;
        out.write_all(&header).map_err(to_out)?;
    }
    let frames = FrameCache::new(repo);
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(to_out);
    let stretches = file.stretches(place).map(Ok);
    let written = read_in_order(&frames, stretches, resources, observer, &mut write)
        .map_err(|error| error.while_doing(format!("{}, {name}", String::from_utf8_lossy(path))))?;
    if written != place.len() {
        return Err(Error::damaged(format!("{name}: {written} bytes of {} are listed", place.len())));
    }
    out.flush().map_err(to_out)?;
    Ok(written)
}

/// The header of a numpy array for the tensor, whose elements have so many bytes.
fn npy_front(tensor: &Tensor, bytes: u64, observer: &dyn Observer) -> Result<Vec<u8>> {
    let refused = |text: String| Error::new(Kind::Usage, text).with_hint("--format raw writes the bytes as they are");
    let dtype = numpy_dtype(tensor.dtype, tensor.elements() == Some(bytes));
    let Some(descr) = descr(dtype) else {
        return Err(refused(format!("numpy has no type for elements of type {dtype}")));
    };
    if tensor.elements().zip(dtype.element_bytes()).and_then(|(n, each)| n.checked_mul(each)) != Some(bytes) {
        return Err(refused(format!("{} has {bytes} bytes, which its type and shape do not give", tensor.name)));
    }
    if dtype != tensor.dtype {
        let bits = 8 * dtype.element_bytes().unwrap_or(1);
        let text = format!("numpy has no type {}: written as uint{bits}", tensor.dtype);
        observer.on_event(&Event::Warning { text: &text });
    }
    Ok(npy_header(descr, &tensor.shape))
}

/// The type that numpy has for elements of `dtype`, or that stands in for it.
fn numpy_dtype(dtype: Dtype, is_one_byte_each: bool) -> Dtype {
    match dtype {
        Dtype::Bf16 => Dtype::U16,
        Dtype::F8E4m3 | Dtype::F8E5m2 => Dtype::U8,
        Dtype::Blocks(_) if is_one_byte_each => Dtype::U8,
        _ => dtype,
    }
}

/// The type as numpy writes it; none if it has no such type.
fn descr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
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
        Dtype::Bf16 | Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::Blocks(_) | Dtype::Other(_) => return None,
    })
}

/// What a file of numpy begins with: of version 1.0, or 2.0 where that is too short for the shape.
fn npy_header(descr: &str, shape: &[u64]) -> Vec<u8> {
    const ALIGNMENT: usize = 64;
    let dimensions: Vec<String> = shape.iter().map(u64::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dimensions.join(", "));
    let front = |fixed: usize| (fixed + text.len() + 1).next_multiple_of(ALIGNMENT) - fixed;
    let mut header = b"\x93NUMPY".to_vec();
    match u16::try_from(front(10)) {
        Ok(length) => {
            header.extend_from_slice(&[1, 0]);
            header.extend_from_slice(&length.to_le_bytes());
        }
        Err(_) => {
            header.extend_from_slice(&[2, 0]);
            header.extend_from_slice(&u32::try_from(front(12)).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    header.extend_from_slice(text.as_bytes());
    header.resize((header.len() + 1).next_multiple_of(ALIGNMENT) - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::ops::tensors::tests::safetensors;
    use crate::repo::test_support::{self, Node, noise};

    fn dumped(repo: &Repo, snapshot: &Snapshot, path: &str, name: &str) -> Result<Vec<u8>> {
        dumped_as(repo, snapshot, (path, name), TensorFormat::Raw)
    }

    fn dumped_as(
        repo: &Repo,
        snapshot: &Snapshot,
        (path, name): (&str, &str),
        format: TensorFormat,
    ) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let resources = Resources { threads: 2, memory_bytes: 1 << 20 };
        let what = (path.as_bytes(), name);
        let bytes = dump_tensor(repo, snapshot, what, format, &mut out, resources, &Silent)?;
        assert!(bytes == out.len() as u64 || format == TensorFormat::Npy);
        Ok(out)
    }

    #[test]
    fn every_tensor_is_dumped_and_one_behind_the_other_they_are_the_content() {
        let repo = test_support::open(&test_support::storage());
        let (a, b) = (noise(1, 30_000), noise(2, 5000));
        let file =
            safetensors(&[("a", "F32", &[7500], &a), ("b.c", "BF16", &[2500], &b), ("none", "F32", &[0], &[])], "");
        let snapshot = test_support::save(&repo, 10, &[("d", Node::Directory), ("d/m", Node::File(file.clone()))]);
        let all = ["a", "b.c", "none"].map(|name| dumped(&repo, &snapshot, "d/m", name).expect("there")).concat();
        assert_eq!(all, file[file.len() - 35_000..]);
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is_near() {
        let repo = test_support::open(&test_support::storage());
        let file = safetensors(&[("model.weight", "U8", &[1], &[1])], "");
        let nodes = [("d", Node::Directory), ("d/m", Node::File(file)), ("t", Node::File(b"text".to_vec()))];
        let snapshot = test_support::save(&repo, 10, &nodes);
        let refused = |path: &str, name: &str| dumped(&repo, &snapshot, path, name).expect_err("refused");
        let error = refused("d/m", "model.weigth");
        assert_eq!((error.kind(), error.hint()), (Kind::NotFound, Some("near names: model.weight")));
        assert_eq!(refused("d/x", "a").kind(), Kind::NotFound);
        assert_eq!(refused("d", "a").kind(), Kind::Usage);
        assert_eq!(refused("t", "a").kind(), Kind::Usage);
    }

    #[test]
    fn numpy_finds_its_header_before_the_elements() {
        let repo = test_support::open(&test_support::storage());
        let bytes = noise(1, 24);
        let file = safetensors(&[("a", "F32", &[2, 3], &bytes), ("b", "BF16", &[12], &bytes)], "");
        let snapshot = test_support::save(&repo, 10, &[("m", Node::File(file))]);
        let npy = |name| dumped_as(&repo, &snapshot, ("m", name), TensorFormat::Npy).expect("written");
        // As numpy itself writes it.
        let text = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let header = [text.as_slice(), &vec![b' '; 127 - text.len()], b"\n"].concat();
        assert_eq!(npy("a"), [header, bytes.clone()].concat());
        assert!(npy("b").windows(24).any(|part| part == b"'<u2', 'fortran_order': "));
        assert_eq!(npy("b")[..10], *b"\x93NUMPY\x01\x00v\x00");
        assert_eq!(npy("b")[128..], bytes);
    }

    #[test]
    fn headers_of_any_shape_are_aligned_and_say_their_length() {
        for dimensions in [0, 1, 5, 20, 10_000] {
            let header = npy_header("<f4", &vec![123_456; dimensions]);
            let (fixed, length) = match header[6] {
                1 => (10, usize::from(u16::from_le_bytes([header[8], header[9]]))),
                _ => (12, u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize),
            };
            assert_eq!((header.len(), header.len() % 64, header.last()), (fixed + length, 0, Some(&b'\n')));
        }
        let refused = [Dtype::Other(3), Dtype::Blocks("Q4_0")].map(|dtype| descr(numpy_dtype(dtype, false)));
        assert_eq!(refused, [None, None]);
    }
}
