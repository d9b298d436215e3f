//! The files that `tests/data/torch/make.py` wrote, for the tests of the parsers.

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
