//! A real checkpoint with and without its metadata, whole and cut off.

use super::super::torch_samples::{check, sample};
use super::*;
use crate::source::layout::{Parsed, parse};

fn layout_of(content: &[u8], name: &str, companion: Option<&[u8]>) -> Layout {
    let companion = companion.as_ref().map(|companion| companion as &dyn ReadAt);
    match parse(&content, name.as_bytes(), companion) {
        Parsed::Layout(layout) => *layout,
        other => panic!("{name}: {other:?}"),
    }
}

const FILE: &str = "__0_0.distcp";

#[test]
fn the_items_of_a_file_have_the_names_that_the_metadata_gives_them() {
    let (content, metadata) = (sample("dcp/__0_0.distcp"), sample("dcp/.metadata"));
    let layout = check("dcp/__0_0.distcp", layout_of(&content, FILE, Some(&metadata)), &content);
    assert_eq!(layout.container, Container::Dcp);
    let keys: Vec<&str> = layout.runs.iter().map(|run| run.key.as_str()).collect();
    assert_eq!(keys, ["model.0.weight", "model.2.weight", "extra.inner"]);
    assert!(layout.runs.iter().all(|run| run.cut == Cut::Fixed && run.dtype.is_some()));
}

#[test]
fn without_metadata_the_items_are_found_from_the_end_and_numbered() {
    let content = sample("dcp/__0_0.distcp");
    let described = layout_of(&content, FILE, Some(&sample("dcp/.metadata")));
    let numbered = layout_of(&content, FILE, None);
    let places = |layout: &Layout| layout.tensors.iter().map(|tensor| tensor.place).collect::<Vec<_>>();
    assert_eq!(places(&described), places(&numbered));
    assert_eq!(numbered.tensors[0].name, "item2", "two numbers stand in front");
    // Under a name that says nothing, the end record shows that the file is more than one archive.
    let renamed = layout_of(&content, "model.pt", None);
    assert_eq!((renamed.container, places(&renamed)), (Container::Dcp, places(&described)));
}

#[test]
fn of_a_file_that_was_cut_off_the_items_in_front_are_there() {
    let (content, metadata) = (sample("dcp/__0_0.distcp"), sample("dcp/.metadata"));
    let layout = layout_of(&content[..10_000], FILE, Some(&metadata));
    assert!(layout.is_truncated);
    let names: Vec<&str> = layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["model.0.weight", "model.0.bias", "model.1.weight"]);
}

#[test]
fn metadata_names_the_files_and_what_they_need() {
    let (content, metadata) = (sample("dcp/__0_0.distcp"), sample("dcp/.metadata"));
    let known = dcp_metadata(&metadata.as_slice()).expect("understood");
    assert_eq!(known.files, [DcpFile { name: FILE.to_owned(), bytes: content.len() as u64 }]);
    assert_eq!(known.tensors, 7);
    for bytes in 0..metadata.len() {
        assert!(dcp_metadata(&&metadata[..bytes]).is_err(), "cut at {bytes}");
    }
    assert!(dcp_metadata(&&b"\x80\x04}."[..]).is_err());
}
