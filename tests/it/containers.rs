//! Files as the libraries of others write them (`tests/data/containers`): they come back byte by byte.
//!
//! `expected.json` beside the files holds what each library found when it loaded them; `make.py` writes all of it.

use crate::support::containers::{copy_containers, write_old};
use crate::support::program::Place;
use crate::support::trees::Tree;
use std::fs;
use std::path::Path;

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
            // As a step of training does: many numbers change a little. Headers do as well, so some files are no longer valid.
            bytes.iter_mut().skip(usize::from(version)).step_by(9).for_each(|byte| *byte ^= version & 1);
            write_old(&path, &bytes);
        }
        versions.push((place.backup("data"), Tree::read(&data)));
    }
    for (snapshot, wanted) in &versions {
        place.succeed(&["restore", snapshot, "--target", &place.text(snapshot)]);
        Tree::read(&place.path(snapshot)).assert_is(wanted, snapshot);
    }
}

fn files(root: &Path) -> Vec<std::path::PathBuf> {
    let items = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(|item| item.expect("readable"));
    items.filter(|item| item.file_type().is_file()).map(|item| item.into_path()).collect()
}
