//! Files as the libraries of others write them (`tests/data/containers`): they come back byte by byte, and their layout
//! is what those libraries say.
//!
//! `expected.json` beside the files holds what each library found when it loaded them; `make.py` writes all of it. Files that
//! differ are all named before the test fails.

use crate::support::containers::{
    Expected, ExpectedFile, copy_containers, expected, folder, set_folders_old, write_old,
};
use crate::support::program::Place;
use crate::support::trees::Tree;
use ckpt::source::layout::{self, Container, Layout, Parsed};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Whose arrays are all compressed, so that nothing in it can be cut.
const WITHOUT_LAYOUT: &[&str] = &["numpy/compressed.npz"];

#[test]
fn every_container_comes_back_byte_by_byte() {
    let place = Place::with_repository();
    copy_containers(&place.path("data"));
    let wanted = Tree::read(&place.path("data"));
    place.backup("data");
    place.succeed(&["restore", "latest", "--target", &place.text("restored")]);
    Tree::read(&place.path("restored")).assert_is(&wanted, "restored");
    place.succeed(&["verify", "--read-data"]);
}

/// The newest of several versions, and the ones in front of it, whatever was coded against what.
#[test]
fn versions_of_every_container_come_back_byte_by_byte() {
    let place = Place::with_repository();
    let data = place.path("data");
    copy_containers(&data);
    let mut versions = Vec::new();
    for version in 0..3u8 {
        for path in files(&data) {
            let mut bytes = fs::read(&path).expect("a file");
            train(&path, &mut bytes, version);
            write_old(&path, &bytes);
        }
        set_folders_old(&data);
        versions.push((place.backup("data"), Tree::read(&data)));
    }
    for (snapshot, wanted) in &versions {
        place.succeed(&["restore", snapshot, "--target", &place.text(snapshot)]);
        Tree::read(&place.path(snapshot)).assert_is(wanted, snapshot);
    }
}

/// Changes a container as a step of training does: many numbers a little, and nothing else.
fn train(path: &Path, bytes: &mut [u8], version: u8) {
    let Parsed::Layout(layout) = parsed(path, bytes) else { return };
    for place in layout.tensors.iter().filter_map(|tensor| tensor.place) {
        let [from, to] = [place.offset(), place.end()].map(|at| usize::try_from(at).expect("small"));
        let numbers = bytes.get_mut(from..to).expect("within the file");
        numbers.iter_mut().skip(usize::from(version)).step_by(6).for_each(|byte| *byte ^= version & 1);
    }
}

#[test]
fn layouts_are_what_the_libraries_find() {
    let Expected { files: wanted } = expected();
    let differing: Vec<String> = wanted
        .iter()
        .flat_map(|(name, wanted)| differences(name, wanted).into_iter().map(move |what| format!("{name}: {what}")))
        .collect();
    assert!(differing.is_empty(), "{} differences:\n{}", differing.len(), differing.join("\n"));
}

/// What stands beside containers is taken for nothing else, and neither is an old file of `torch.save`, which is no archive.
#[test]
fn what_is_no_container_has_no_layout() {
    let Expected { files: containers } = expected();
    for path in files(&folder()) {
        let name = path.strip_prefix(folder()).expect("beneath").to_str().expect("text");
        let is_container = containers.get(name).is_some_and(|file| !file.is_old);
        let parsed = parsed(&path, &fs::read(&path).expect("a file"));
        assert!(is_container || parsed == Parsed::Plain, "{name}: {parsed:?}");
    }
}

/// A file cut short is never misread: what its layout still says lies within it.
#[test]
fn layouts_of_files_cut_short_stay_within_them() {
    for name in expected().files.keys() {
        let bytes = fs::read(folder().join(name)).expect("a fixture");
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 97) {
            let Parsed::Layout(layout) = parsed(&folder().join(name), &bytes[..cut]) else { continue };
            let ends = layout.runs.iter().map(|run| run.range.end());
            let ends = ends.chain(layout.tensors.iter().filter_map(|tensor| tensor.place).map(|place| place.end()));
            assert!(ends.max().is_none_or(|end| end <= cut as u64), "{name} cut to {cut} bytes: {layout:?}");
        }
    }
}

fn files(root: &Path) -> Vec<std::path::PathBuf> {
    let items = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(|item| item.expect("readable"));
    items.filter(|item| item.file_type().is_file()).map(|item| item.into_path()).collect()
}

fn parsed(path: &Path, bytes: &[u8]) -> Parsed {
    let name = path.file_name().expect("a name").to_str().expect("text");
    let companion = fs::read(path.with_file_name(".metadata")).ok();
    let companion = companion.as_deref();
    match &companion {
        Some(companion) => layout::parse(&bytes, name.as_bytes(), Some(companion)),
        None => layout::parse(&bytes, name.as_bytes(), None),
    }
}

fn differences(name: &str, wanted: &ExpectedFile) -> Vec<String> {
    let bytes = fs::read(folder().join(name)).expect("a fixture");
    let layout = match parsed(&folder().join(name), &bytes) {
        Parsed::Plain if wanted.is_old || WITHOUT_LAYOUT.contains(&name) => return Vec::new(),
        Parsed::Layout(layout) if !wanted.is_old => layout,
        other => return vec![format!("taken for {other:?}")],
    };
    let mut differences = Vec::new();
    if layout.container.name() != wanted.container || layout.is_truncated {
        differences.push(format!("a {}, truncated: {}", layout.container.name(), layout.is_truncated));
    }
    match layout.container {
        Container::Parquet => compare_columns(&layout, wanted, &mut differences),
        _ => compare_tensors(&layout, &bytes, wanted, &mut differences),
    }
    let mut end = 0;
    for run in &layout.runs {
        if run.range.offset() < end || run.range.end() > bytes.len() as u64 {
            differences.push(format!("the run {run:?} overlaps, or reaches beyond the file"));
        }
        end = run.range.end();
    }
    differences
}

/// A tensor in words: all that has to be the same. The hash is that of its elements where they lie as they should.
fn in_words(name: &str, dtype: &str, shape: &[u64], hash: Option<String>) -> String {
    format!("{name:?} {dtype} {shape:?} {}", hash.as_deref().unwrap_or("not in one piece"))
}

fn compare_tensors(layout: &Layout, bytes: &[u8], wanted: &ExpectedFile, differences: &mut Vec<String>) {
    let name = |name: &str| if wanted.names_are_free { String::new() } else { name.to_owned() };
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for tensor in &wanted.tensors {
        // No elements lie nowhere.
        let is_in_one_piece = tensor.is_plain && !tensor.shape.contains(&0);
        let hash = is_in_one_piece.then(|| tensor.blake3.clone());
        // To those who read layouts, big-endian numbers are elements of unknown meaning.
        let dtype = if tensor.is_big_endian { "OTHER" } else { &tensor.dtype };
        *counts.entry(in_words(&name(&tensor.name), dtype, &tensor.shape, hash)).or_default() += 1;
    }
    for tensor in &layout.tensors {
        let place = tensor.place.filter(|place| !place.is_empty() && tensor.dtype.name() != "OTHER");
        let content = place.map(|place| {
            let [from, to] = [place.offset(), place.end()].map(|at| usize::try_from(at).expect("small"));
            let content = bytes.get(from..to).expect("within the file");
            blake3::hash(content).to_hex().to_string()
        });
        *counts.entry(in_words(&name(&tensor.name), tensor.dtype.name(), &tensor.shape, content)).or_default() -= 1;
    }
    for (tensor, count) in counts {
        match count {
            0 => {}
            1.. => differences.push(format!("missing: {tensor}")),
            ..0 => differences.push(format!("not in the file: {tensor}")),
        }
    }
}

/// Every column chunk begins a run, and ends one; small ones share a run of headers and padding with their neighbours.
fn compare_columns(layout: &Layout, wanted: &ExpectedFile, differences: &mut Vec<String>) {
    for chunk in wanted.column_chunks.iter().filter(|chunk| chunk.bytes >= 1 << 10) {
        let end = chunk.offset + chunk.bytes;
        let begins = layout.runs.iter().any(|run| run.range.offset() == chunk.offset);
        let ends = layout.runs.iter().any(|run| run.range.end() == end);
        if !begins || !ends {
            differences.push(format!("no run from {} to {end}, where {} lies", chunk.offset, chunk.column));
        }
    }
}
