//! Attacks by the order and the repetition of entries, by what `--delete` finds, and on a part of a snapshot.

use super::{Attack, CONTENT, OVERWRITES, directory, link, make_pipe, of_each_kind, run_all, usual};
use crate::support::forge::filled;
use ckpt::repo::entry::Entry;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

#[test]
fn entries_that_are_there_twice_or_in_any_order_lead_nowhere() {
    let mut attacks = Vec::new();
    for (first, one) in of_each_kind(b"d") {
        for (second, other) in of_each_kind(b"d") {
            let out = |entry: &Entry| match one.metadata.kind {
                ckpt::metadata::FileKind::Symlink { .. } => link(&entry.path, "../canary"),
                _ => entry.clone(),
            };
            let entries = vec![directory(b""), out(&one), other, filled(b"d/file", CONTENT), filled(b"e", CONTENT)];
            attacks.push(Attack::new(format!("a {first} and a {second} at one path, and a file beneath"), entries));
        }
    }
    let entries = || {
        let mut all = usual();
        all.insert(3, link(b"a/b/a", "../../../canary"));
        all.push(filled(b"a/b/a/file", CONTENT));
        all
    };
    for by in 0..entries().len() {
        let mut turned = entries();
        turned.rotate_left(by);
        attacks.push(Attack::new(format!("a list that begins in its middle, at {by}"), turned.clone()));
        turned.reverse();
        attacks.push(Attack::new(format!("a list in reverse that begins at {by}"), turned));
    }
    for at in 1..entries().len() {
        let mut swapped = entries();
        swapped.swap(at - 1, at);
        attacks.push(Attack::new(format!("a list with entries {at} and the one before exchanged"), swapped));
        let mut doubled = entries();
        doubled.push(doubled[at].clone());
        attacks.push(Attack::new(format!("a list with entry {at} once more at its end"), doubled));
    }
    for (one, other) in [("a", "A"), ("\u{e4}", "a\u{308}"), ("ss", "\u{df}"), ("i", "\u{131}"), ("a", "a\u{200d}")] {
        for (first, second) in [(one, other), (other, one)] {
            let beneath = format!("{second}/file");
            let mut entries = vec![
                link(first.as_bytes(), "../canary"),
                directory(second.as_bytes()),
                filled(beneath.as_bytes(), CONTENT),
            ];
            entries.sort_by(|a, b| a.compare(b));
            entries.insert(0, directory(b""));
            attacks.push(Attack::new(format!("a link {first:?} and a folder {second:?}"), entries));
        }
    }
    run_all("order and repetition", attacks, 70);
}

#[test]
fn what_is_deleted_lies_in_the_target() {
    type Lay = fn(&Path, &Path);
    let extras: [(&str, Lay); 10] = [
        ("a link to a folder outside", |at, canary| symlink(canary, at).expect("a link")),
        ("a link to a file outside", |at, canary| symlink(canary.join("file"), at).expect("a link")),
        ("a link to a pipe outside", |at, canary| symlink(canary.join("pipe"), at).expect("a link")),
        ("a link to the root", |at, _| symlink("/", at).expect("a link")),
        ("a link to itself", |at, _| symlink(at.file_name().expect("a name"), at).expect("a link")),
        ("a link upwards", |at, _| symlink("../..", at).expect("a link")),
        ("a pipe", |at, _| make_pipe(at)),
        ("a folder of links", |at, canary| {
            fs::create_dir(at).expect("a folder");
            for (name, to) in [("l", canary.to_owned()), ("m", canary.join("b")), ("n", "/".into()), ("o", "..".into())]
            {
                symlink(to, at.join(name)).expect("a link");
            }
        }),
        ("a closed folder with a link in it", |at, canary| {
            fs::create_dir(at).expect("a folder");
            symlink(canary, at.join("l")).expect("a link");
            fs::set_permissions(at, fs::Permissions::from_mode(0o0)).expect("permissions");
        }),
        ("a deep folder that ends in a link", |at, canary| {
            let deep = at.join("d/".repeat(40));
            fs::create_dir_all(&deep).expect("folders");
            symlink(canary, deep.join("l")).expect("a link");
        }),
    ];
    let mut attacks = Vec::new();
    for place in ["z", "a/z", "a/b/z", ".z"] {
        for (extra, lay) in extras {
            for subpath in [None, Some("a")] {
                let lay = move |folder: &Path| {
                    let at = folder.join("target").join(place);
                    fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                    lay(&at, &folder.join("canary"));
                };
                let what = format!("{place} is {extra}, and goes; {subpath:?} is asked for");
                attacks.push(Attack { delete: true, subpath, ..Attack::new(what, usual()).after(lay) });
            }
        }
    }
    run_all("deletion", attacks, 80);
}

#[test]
fn a_part_of_a_snapshot_is_not_restored_through_links_either() {
    let mut attacks = Vec::new();
    for (subpath, places) in [("a", &["b", "b/c", "b/d", "c", "a", "a/b"][..]), ("a/b", &["c", "d", "a", "a/b/c", "b"])]
    {
        for place in places {
            for to in ["CANARY", "CANARY/file", "/", "nowhere"] {
                for overwrite in OVERWRITES {
                    let lay = move |folder: &Path| {
                        let at = folder.join("target").join(place);
                        fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                        symlink(to.replace("CANARY", folder.join("canary").to_str().expect("text")), at)
                            .expect("a link");
                    };
                    let what = format!("{subpath} is asked for, {place} is a link to {to}, {overwrite:?}");
                    let subpath = Some(subpath);
                    attacks.push(Attack { overwrite, subpath, ..Attack::new(what, usual()).after(lay) });
                }
            }
        }
    }
    run_all("parts of a snapshot", attacks, 80);
}
