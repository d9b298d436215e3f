//! Real files of PyTorch, and archives built byte by byte.

use super::super::torch_samples::{check, sample};
use super::*;
use crate::source::layout::{Parsed, parse};

fn layout_of(content: &[u8], name: &str) -> Layout {
    match parse(&content, name.as_bytes(), None) {
        Parsed::Layout(layout) => *layout,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn real_files_have_the_tensors_that_were_saved_where_their_bytes_are() {
    for name in ["types.pt", "checkpoint.ckpt", "lone.pt", "module.pt", "protocol_5.pt", "script.pt"] {
        let content = sample(name);
        let mut layout = layout_of(&content, name);
        if name == "lone.pt" {
            assert_eq!(layout.tensors[0].name, "tensor");
            layout.tensors[0].name.clear();
        }
        check(name, layout, &content);
    }
}

#[test]
fn of_a_file_that_was_cut_off_all_that_is_there_is_used() {
    for name in ["types.pt", "checkpoint.ckpt"] {
        let content = sample(name);
        let whole = layout_of(&content, name);
        for bytes in (4..content.len()).step_by(97).chain([content.len() - 1]) {
            let cut = layout_of(&content[..bytes], name);
            assert!(cut.is_truncated);
            let pickle_is_whole = bytes > whole.runs[0].range.offset() as usize;
            let expected = |place: Option<ByteRange>| place.filter(|place| place.end() <= bytes as u64);
            for tensor in whole.tensors.iter().filter(|_| pickle_is_whole) {
                let there = cut.tensors.iter().find(|found| found.name == tensor.name).expect("all are named");
                assert_eq!(there.place, expected(tensor.place), "{name} cut at {bytes}: {}", tensor.name);
            }
        }
    }
}
