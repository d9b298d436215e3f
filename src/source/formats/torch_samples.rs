//! The files that `tests/data/torch/make.py` wrote, and archives built byte by byte, for the tests of the parsers.

use super::finish::assert_obeys;
use crate::source::layout::Layout;
use std::collections::HashMap;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch")
}

pub(super) fn sample(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).expect("a sample")
}

/// What the script that wrote the samples says is in them: name, type, shape, whether contiguous, offset and length.
type Expected = (String, String, Vec<u64>, bool, Option<(u64, u64)>);

fn expected(name: &str) -> Vec<Expected> {
    let text = sample("expected.json");
    let mut all: HashMap<String, Vec<Expected>> = serde_json::from_slice(&text).expect("as the script wrote it");
    all.remove(name).expect("a sample with expectations")
}

/// Holds a layout against what was expected, and returns it.
pub(super) fn check(name: &str, layout: Layout, content: &[u8]) -> Layout {
    let expected = expected(name);
    assert_eq!(layout.tensors.len(), expected.len(), "{name}: {:?}", layout.tensors);
    for (key, dtype, shape, is_contiguous, place) in expected {
        let found = layout.tensors.iter().find(|tensor| tensor.name == key);
        let tensor = found.unwrap_or_else(|| panic!("{name} lacks {key}: {:?}", layout.tensors));
        assert_eq!((tensor.dtype.name(), &tensor.shape), (dtype.as_str(), &shape), "{name}: {key}");
        assert_eq!(tensor.place.is_some(), is_contiguous, "{name}: {key}");
        if let Some((offset, len)) = place {
            let there = tensor.place.expect("contiguous");
            let bytes = |offset: u64, len: u64| &content[offset as usize..][..len as usize];
            assert_eq!(bytes(offset, len), bytes(there.offset(), there.len()), "{name}: {key}");
            assert!(len <= 16 || there.offset() == offset, "{name}: {key} at {} not {offset}", there.offset());
        }
    }
    assert_obeys(&layout, content.len() as u64);
    assert!(!layout.is_truncated, "{name}");
    layout
}

/// An entry of an archive to build.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) content: Vec<u8>,
    pub(super) method: u16,
    /// Sizes and position stand in the zip64 extra field of the directory.
    pub(super) is_wide: bool,
    /// The sizes stand behind the payload, as PyTorch has it.
    pub(super) sizes_follow: bool,
}

/// A stored entry as PyTorch writes it.
pub(super) fn part(name: &'static str, content: impl Into<Vec<u8>>) -> Part {
    Part { name, content: content.into(), method: 0, is_wide: false, sizes_follow: true }
}

/// An archive of these entries with a comment behind it.
pub(super) fn archive_of(parts: &[Part], comment: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for part in parts {
        let header = file.len() as u64;
        let size = part.content.len() as u64;
        let flags = if part.sizes_follow { 8u16 } else { 0 };
        let in_front = if part.sizes_follow { 0 } else { size as u32 };
        let common = |out: &mut Vec<u8>, size: u32, extra_bytes: usize| {
            out.extend([[20, 0], flags.to_le_bytes(), part.method.to_le_bytes()].concat());
            out.extend([0; 8]);
            out.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
            out.extend((part.name.len() as u16).to_le_bytes());
            out.extend((extra_bytes as u16).to_le_bytes());
        };
        file.extend(b"PK\x03\x04");
        common(&mut file, in_front, 9);
        file.extend(part.name.as_bytes());
        file.extend(b"FB\x05\0ZZZZZ");
        file.extend(&part.content);
        if part.sizes_follow {
            file.extend(b"PK\x07\x08\0\0\0\0");
            file.extend([(size as u32).to_le_bytes(), (size as u32).to_le_bytes()].concat());
        }
        let extra = match part.is_wide {
            true => [&[1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &header.to_le_bytes()].concat(),
            false => Vec::new(),
        };
        directory.extend(b"PK\x01\x02\x14\0");
        common(&mut directory, if part.is_wide { u32::MAX } else { size as u32 }, extra.len());
        directory.extend([0; 10]);
        directory.extend((if part.is_wide { u32::MAX } else { header as u32 }).to_le_bytes());
        directory.extend(part.name.as_bytes());
        directory.extend(extra);
    }
    let (offset, bytes, count) = (file.len() as u32, directory.len() as u32, parts.len() as u16);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([bytes.to_le_bytes(), offset.to_le_bytes()].concat());
    file.extend((comment.len() as u16).to_le_bytes());
    file.extend(comment);
    file
}

/// The pickle of a dictionary with a tensor `w` of 400 floats in storage `0`.
pub(super) fn small_pickle() -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    bytes.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuM\x90\x01tQ");
    bytes.extend(b"K\0M\x90\x01\x85K\x01\x85\x89NtRs.");
    bytes
}
