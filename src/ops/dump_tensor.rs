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
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::source::layout::{Dtype, Tensor};
use crate::source::npy;
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
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
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
    let header = npy::header(dtype, &tensor.shape).map_err(|error| refused(error.to_string()))?;
    if tensor.elements().zip(dtype.element_bytes()).and_then(|(n, each)| n.checked_mul(each)) != Some(bytes) {
        return Err(refused(format!("{} has {bytes} bytes, which its type and shape do not give", tensor.name)));
    }
    if dtype != tensor.dtype {
        let bits = 8 * dtype.element_bytes().unwrap_or(1);
        let text = format!("numpy has no type {}: written as uint{bits}", tensor.dtype);
        observer.on_event(&Event::Warning { text: &text });
    }
    Ok(header)
}

/// The type that numpy has for elements of `dtype`, or the integers that stand in for it:
/// unlike plain bytes, numpy counts with them.
fn numpy_dtype(dtype: Dtype, is_one_byte_each: bool) -> Dtype {
    match dtype {
        Dtype::Bf16 => Dtype::U16,
        Dtype::F8E4m3 | Dtype::F8E5m2 => Dtype::U8,
        Dtype::Blocks(_) if is_one_byte_each => Dtype::U8,
        _ => dtype,
    }
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
}
