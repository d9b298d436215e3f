//! Attacks on the files that `restore --tensor` writes.

use super::{Attack, directory, link, make_pipe, run_all};
use crate::support::forge::filled;
use crate::support::runs::resources;
use ckpt::error::Result;
use ckpt::events::Silent;
use ckpt::ops::restore_tensors::{Destination, Existing, RestoreTensorsOptions, restore_tensors};
use ckpt::ops::tensors::{Part, TensorFilter};
use ckpt::repo::Repo;
use ckpt::repo::entry::Entry;
use ckpt::repo::snapshots::Snapshot;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// A file with one tensor.
pub(super) fn weights() -> Vec<u8> {
    let header = br#"{"t":{"dtype":"F32","shape":[512],"data_offsets":[0,2048]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[7; 2048]].concat()
}

/// Restores all tensors; how many files there are of them.
pub(super) fn restore(
    repo: &Repo,
    snapshot: &Snapshot,
    target: &Path,
    existing: Existing,
    file: Option<&str>,
) -> Result<u64> {
    let target = match file {
        Some(name) => Destination::File(target.join(name)),
        None => Destination::Directory(target.to_owned()),
    };
    let options = RestoreTensorsOptions {
        target,
        filter: TensorFilter::new(&["*".to_owned()])?,
        includes: Vec::new(),
        excludes: Vec::new(),
        existing,
        dry_run: false,
        resources: resources(1),
    };
    restore_tensors(repo, Part { snapshot, subpath: None }, &options, &Silent).map(|report| report.files_restored)
}

fn model(path: &[u8]) -> Entry {
    filled(path, &weights())
}

const EXISTING: [Existing; 3] = [Existing::Keep, Existing::ReplaceIfChanged, Existing::Replace];

#[test]
fn tensors_of_forged_paths_lead_nowhere() {
    let mut attacks = Vec::new();
    let attack = |what: String, entries| Attack {
        tensors: Some((Existing::Replace, None)),
        ..Attack::new(format!("the tensors of {what}"), entries)
    };
    for path in [
        &b"../canary/m"[..],
        b"..",
        b"a/../../canary/file",
        b"/canary/m",
        b"./m",
        b"a//m",
        b"a/./m",
        b".",
        b"m\0",
        b"m/",
        b"/",
        b"../../m",
        b"\xff\xfe",
        b".safetensors",
        b"...",
    ] {
        for end in ["", ".safetensors"] {
            let path = [path, end.as_bytes()].concat();
            let shown = String::from_utf8_lossy(&path).into_owned();
            attacks.push(attack(format!("a file at {shown:?}"), vec![directory(b""), model(&path)]));
            let second = vec![directory(b""), model(b"a.safetensors"), model(&path)];
            attacks.push(attack(format!("a file at {shown:?} behind another"), second));
        }
    }
    for to in ["../canary", "..", "/", ".", "nowhere"] {
        let entries = vec![directory(b""), link(b"l", to), model(b"l/m.safetensors"), model(b"n.safetensors")];
        attacks.push(attack(format!("a file beneath a link to {to}"), entries));
    }
    run_all("forged paths of tensors", attacks, 60);
}

#[test]
fn tensors_are_not_written_through_what_stands_in_the_target() {
    type Lay = fn(&Path, &Path);
    let traps: [(&str, Lay); 9] = [
        ("a link to a folder outside", |at, canary| symlink(canary, at).expect("a link")),
        ("a link to a file outside", |at, canary| symlink(canary.join("file"), at).expect("a link")),
        ("a link to a pipe outside", |at, canary| symlink(canary.join("pipe"), at).expect("a link")),
        ("a link to nothing outside", |at, canary| symlink(canary.join("new"), at).expect("a link")),
        ("a link to the root", |at, _| symlink("/", at).expect("a link")),
        ("a pipe", |at, _| make_pipe(at)),
        ("a socket", |at, _| drop(std::os::unix::net::UnixListener::bind(at).expect("a socket"))),
        ("a folder", |at, _| fs::create_dir(at).expect("a folder")),
        ("a file", |at, _| fs::write(at, b"x").expect("a file")),
    ];
    let mut attacks = Vec::new();
    for (trap, lay) in traps {
        for existing in EXISTING {
            for (place, file) in [
                ("a", None),
                ("a/b", None),
                ("a/b/c.safetensors", None),
                ("one.safetensors", Some("one.safetensors")),
                ("into", Some("into/one.safetensors")),
            ] {
                let lay = move |folder: &Path| {
                    let at = folder.join("target").join(place);
                    fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                    lay(&at, &folder.join("canary"));
                };
                let entries = vec![directory(b""), directory(b"a"), directory(b"a/b"), model(b"a/b/c.safetensors")];
                // What the user names as the folder may lead anywhere.
                if file.is_some_and(|file| file.contains('/')) && trap.contains("link to a folder") {
                    continue;
                }
                let what = format!("tensors where {place} is {trap}, {existing:?}");
                let tensors = Some((existing, file));
                attacks.push(Attack { tensors, ..Attack::new(what, entries).after(lay) });
            }
        }
    }
    run_all("targets of tensors", attacks, 120);
}
