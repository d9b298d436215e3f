//! Real files of PyTorch, and archives built byte by byte.

use super::super::torch_samples::{Part, archive_of, check, part, sample, small_pickle};
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

fn small() -> Vec<Part> {
    let storage: Vec<u8> = (0..1600u32).map(|n| n as u8).collect();
    vec![part("m/data.pkl", small_pickle()), part("m/byteorder", *b"little"), part("m/data/0", storage)]
}

/// Names and types of the runs.
fn runs(layout: &Layout) -> Vec<(&str, Option<&str>)> {
    layout.runs.iter().map(|run| (run.key.as_str(), run.dtype.map(|dtype| dtype.name()))).collect()
}

#[test]
fn every_way_to_write_the_same_archive_is_read() {
    let plain = layout_of(&archive_of(&small(), b""), "m.pt");
    assert_eq!(runs(&plain), [("w", Some("F32"))]);
    assert_eq!(plain.tensors[0].place, Some(plain.runs[0].range));
    let mut wide = small();
    wide.iter_mut().for_each(|part| part.is_wide = true);
    let mut in_front = small();
    in_front.iter_mut().for_each(|part| part.sizes_follow = false);
    for (parts, comment) in [(wide, &b""[..]), (in_front, b""), (small(), b"a comment PK\x05\x06 of some length")] {
        assert_eq!(runs(&layout_of(&archive_of(&parts, comment), "m.pt")), runs(&plain));
    }
    // Without a folder, as TorchScript on phones has it.
    let bare = [part("data.pkl", small_pickle()), part("data/0", vec![1; 1600])];
    assert_eq!(runs(&layout_of(&archive_of(&bare, b""), "m.pt")), runs(&plain));
}

#[test]
fn numbers_of_a_big_endian_machine_have_no_type_and_no_place() {
    let mut parts = small();
    parts[1].content = b"big".to_vec();
    let layout = layout_of(&archive_of(&parts, b""), "m.pt");
    assert_eq!(runs(&layout), [("w", None)]);
    assert_eq!(layout.tensors[0].place, None);
}

#[test]
fn a_pickle_that_is_not_understood_leaves_the_runs() {
    let mut parts = small();
    parts[0].content = b"\x80\x02\xff".to_vec();
    let layout = layout_of(&archive_of(&parts, b""), "m.pt");
    assert_eq!((runs(&layout), layout.tensors.len()), (vec![("data/0", None)], 0));
    parts[0] = part("m/data.pkl", small_pickle());
    parts[0].method = 8;
    assert_eq!(runs(&layout_of(&archive_of(&parts, b""), "m.pt")), [("data/0", None)]);
}

#[test]
fn what_is_compressed_or_missing_has_no_run_and_no_place() {
    let mut parts = small();
    parts[2].method = 8;
    for parts in [&parts[..], &parts[..2]] {
        let layout = layout_of(&archive_of(parts, b""), "m.pt");
        assert_eq!((layout.runs.len(), layout.tensors[0].place), (0, None));
    }
    // A storage that is shorter than the tensor in it.
    let mut parts = small();
    parts[2].content.truncate(1599);
    let layout = layout_of(&archive_of(&parts, b""), "m.pt");
    assert_eq!((layout.runs.len(), layout.tensors[0].place), (1, None));
}

fn is_malformed(content: &[u8]) -> bool {
    matches!(parse(&content, b"m.pt", None), Parsed::Malformed(Container::Torch, _))
}

#[test]
fn entries_that_overlap_or_contradict_their_headers_are_refused() {
    let archive = archive_of(&small(), b"");
    let find = |what: &[u8], nth: usize| archive.windows(what.len()).enumerate().filter(|(_, w)| *w == what).nth(nth);
    let (entry, _) = find(b"PK\x01\x02", 2).expect("three entries");
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = archive.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    assert!(is_malformed(&changed(entry + 42, &[0; 4])), "two entries at one place");
    assert!(is_malformed(&changed(entry + 20, &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0])), "larger than the archive");
    assert!(is_malformed(&changed(entry + 20, &[0xff; 8])), "wide without the extra field");
    let (local, _) = find(b"PK\x03\x04", 2).expect("three entries");
    assert!(is_malformed(&changed(local, b"PK\x03\x05")), "no header there");
    assert!(is_malformed(&changed(local + 30, b"n")), "another name");
    assert!(is_malformed(&changed(local + 28, &[0xff, 0xff])), "an extra field that reaches into what follows");
    assert!(is_malformed(&changed(local + 8, &[8, 0])), "another method");
}

#[test]
fn archives_of_something_else_are_plain() {
    let archive = archive_of(&[part("word/document.xml", vec![b'x'; 2000])], b"");
    for content in [archive.as_slice(), &archive[..archive.len() - 30], b"PK\x05\x06".as_slice(), b"PK"] {
        assert_eq!(parse(&content, b"a.docx", None), Parsed::Plain);
    }
}
