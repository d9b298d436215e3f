//! Restores that are meant to write outside of their target: forged lists of files, and traps laid in the target.
//!
//! Beside the target lies a canary: a tree with files, links and pipes. After every attack it is as it was, to the times and the
//! numbers of links, nothing has appeared beside it, and the restore has come to an end. Whether an attack
//! is refused or its harmless part restored is not judged here. Each case differs from the others in kind or in place.

mod lists;
mod tensors;

use crate::support::forge::{self, entry_at, filled, leaf, raw, whole};
use crate::support::runs::{self, restore_options};
use crate::support::{in_parallel, is_root, not_run, quick_folder, say};
use ckpt::events::{Event, Observer};
use ckpt::metadata::FileKind;
use ckpt::ops::restore::{Overwrite, RestoreOptions, restore};
use ckpt::ops::restore_tensors::Existing;
use ckpt::repo::entry::Entry;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// No attack takes longer, or it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The content of every file that is restored.
const CONTENT: &[u8] = b"what the snapshot holds";
const CANARY: &[u8] = b"precious";

/// One attack.
struct Attack {
    what: String,
    entries: Vec<Entry>,
    /// Lays traps; the folder holds `target` and `canary`.
    prepare: Box<dyn Fn(&Path) + Send>,
    overwrite: Overwrite,
    delete: bool,
    subpath: Option<&'static str>,
    /// Puts a link in the place of the folder `target/a` at this event.
    swap_at: Option<u64>,
    /// Instead of files the tensors in them are restored, into this file of the target or beneath it.
    tensors: Option<(Existing, Option<&'static str>)>,
}

impl Attack {
    fn new(what: impl Into<String>, entries: Vec<Entry>) -> Attack {
        let what = what.into();
        let (overwrite, delete) = (Overwrite::Always, false);
        let prepare = Box::new(|_: &Path| {});
        Attack { what, entries, prepare, overwrite, delete, subpath: None, swap_at: None, tensors: None }
    }

    fn after(self, prepare: impl Fn(&Path) + Send + 'static) -> Attack {
        Attack { prepare: Box::new(prepare), ..self }
    }
}

/// Everything that can be seen of a file system without opening what might block.
fn seen(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let outside = |item: &walkdir::DirEntry| item.path() != folder.join("target");
    for item in walkdir::WalkDir::new(folder).min_depth(1).into_iter().filter_entry(outside) {
        let path = item.expect("readable").into_path();
        let m = fs::symlink_metadata(&path).expect("there");
        let content = if m.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        let link = fs::read_link(&path).ok();
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let fields = format!("{:o} {} {} {} {times:?} {link:?} {content:?}", m.mode(), m.uid(), m.gid(), m.nlink());
        all.insert(path, fields);
    }
    all
}

/// Counts events, and at one of them puts a link in the place of a folder.
struct Swapping {
    seen: AtomicU64,
    at: Option<u64>,
    folder: PathBuf,
}

impl Observer for Swapping {
    fn on_event(&self, _: &Event<'_>) {
        if Some(self.seen.fetch_add(1, Ordering::Relaxed)) == self.at {
            let place = self.folder.join("target/a");
            let _ = fs::rename(&place, self.folder.join("target/was-a"));
            let _ = symlink(self.folder.join("canary"), &place);
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

fn lay_canary(folder: &Path) {
    let canary = folder.join("canary");
    fs::create_dir_all(canary.join("b")).expect("folders");
    for name in ["file", "c", "b/c", "b/file", "x"] {
        fs::write(canary.join(name), CANARY).expect("a file");
    }
    fs::hard_link(canary.join("file"), canary.join("linked")).expect("a link");
    symlink("file", canary.join("link")).expect("a link");
    make_pipe(&canary.join("pipe"));
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
}

/// Makes one attack; how many files it restored.
fn run(attack: Attack) -> u64 {
    let folder = quick_folder();
    let place = folder.path().to_owned();
    lay_canary(&place);
    fs::create_dir(place.join("target")).expect("a folder");
    (attack.prepare)(&place);
    let before = seen(&place);
    let list = leaf(&attack.entries);
    let weights = tensors::weights();
    let (storage, snapshot) = forge::repository(&[raw(CONTENT), raw(&weights), raw(&list)], whole(&list));
    let what = attack.what.clone();
    let (done, end) = mpsc::channel();
    let target = place.join("target");
    std::thread::spawn({
        let place = place.clone();
        move || {
            let repo = runs::open(&storage).expect("opens");
            let options = RestoreOptions {
                overwrite: attack.overwrite,
                delete: attack.delete,
                subpath: attack.subpath.map(|path| path.as_bytes().to_vec()),
                resources: runs::resources(1),
                ..restore_options(&target)
            };
            let observer = Swapping { seen: AtomicU64::new(0), at: attack.swap_at, folder: place };
            let result = match attack.tensors {
                None => restore(&repo, &snapshot, &options, &observer).map(|report| report.files_restored),
                Some((existing, file)) => tensors::restore(&repo, &snapshot, &target, existing, file),
            };
            // Nobody may wait any more: the case is over.
            let _ = done.send(result.map_err(|error| error.to_string()));
        }
    });
    let ended = end.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{what}: it hangs or panics: {e}"));
    let after = seen(&place);
    for path in before.keys().chain(after.keys()) {
        assert_eq!(after.get(path), before.get(path), "{what}: {} is not as it was", path.display());
    }
    ended.unwrap_or(0)
}

/// Runs all attacks and says how many they were.
fn run_all(name: &str, attacks: Vec<Attack>, least: usize) {
    let count = attacks.len();
    let attacks: Vec<_> = attacks.into_iter().map(|attack| std::sync::Mutex::new(Some(attack))).collect();
    let restored = in_parallel(count as u64, |number| {
        let attack = attacks[number as usize].lock().expect("taken once").take();
        run(attack.expect("taken once"))
    });
    say(&format!("attacks: {name}: {count} cases, {restored} files restored beside them"));
    assert!(restored > 0, "{name}: attacks on restores that do nothing show nothing");
    assert!(count >= least, "{name}: only {count} cases");
}

fn directory(path: &[u8]) -> Entry {
    entry_at(path, FileKind::Directory)
}

fn link(path: &[u8], target: &str) -> Entry {
    entry_at(path, FileKind::Symlink { target: target.as_bytes().to_vec() })
}

/// An entry of each kind at a path, called by its kind.
fn of_each_kind(path: &[u8]) -> Vec<(&'static str, Entry)> {
    let mut setuid = filled(path, CONTENT);
    setuid.metadata.mode = 0o6777;
    vec![
        ("file", filled(path, CONTENT)),
        ("setuid file", setuid),
        ("folder", directory(path)),
        ("link", link(path, "/etc")),
        ("pipe", entry_at(path, FileKind::Fifo)),
        ("device", entry_at(path, FileKind::CharDevice { rdev: 0x103 })),
    ]
}

#[test]
fn forged_paths_lead_nowhere() {
    let mut paths: Vec<Vec<u8>> = [
        &b".."[..],
        b"../canary/file",
        b"../canary/new",
        b"a/../../canary/file",
        b"a/..",
        b"a/../b",
        b"./a",
        b"a/.",
        b"a//b",
        b"a/",
        b"/",
        b"//",
        b"/canary",
        b".",
        b"...",
        b"\0",
        b"a\0b",
        b"a/\0",
        b"..\0",
        b"../",
        b"a/b/../../../canary/c",
    ]
    .map(<[u8]>::to_vec)
    .into();
    paths.push([b"a/".as_slice(), &[b'n'; 300]].concat());
    paths.push(b"d/".repeat(3000).strip_suffix(b"/").expect("not empty").to_vec());
    let mut attacks = Vec::new();
    for path in &paths {
        let shown = String::from_utf8_lossy(&path[..path.len().min(40)]).into_owned();
        for (kind, entry) in of_each_kind(path) {
            attacks.push(Attack::new(format!("a {kind} at {shown:?}"), vec![directory(b""), entry.clone()]));
            let second = vec![directory(b""), directory(b"a"), filled(b"a/x", CONTENT), entry];
            attacks.push(Attack::new(format!("a {kind} at {shown:?} behind others"), second));
        }
    }
    run_all("forged paths", attacks, 200);
}

#[test]
fn nothing_is_restored_through_a_link_of_the_snapshot() {
    let mut attacks = Vec::new();
    for to in ["../canary", "..", "/", ".", "l", "nowhere", "../canary/file", "../canary/pipe"] {
        for (kind, entry) in of_each_kind(b"l/x") {
            let entries = vec![directory(b""), link(b"l", to), entry.clone()];
            attacks.push(Attack::new(format!("a {kind} beneath a link to {to}"), entries.clone()));
            attacks.push(Attack {
                subpath: Some("l"),
                ..Attack::new(format!("a {kind}, and the link to {to} asked for"), entries.clone())
            });
            attacks.push(Attack {
                subpath: Some("l/x"),
                ..Attack::new(format!("a {kind} beneath a link to {to} asked for"), entries)
            });
            let twice = vec![directory(b""), directory(b"l"), link(b"l", to), entry];
            attacks.push(Attack::new(format!("a {kind} beneath what is a folder and a link to {to}"), twice));
        }
        let root = vec![link(b"", to), filled(b"x", CONTENT)];
        attacks.push(Attack::new(format!("a root that is a link to {to}"), root));
    }
    // Groups of links whose first name is not what it should be.
    for first in
        [link(b"l", "../canary/file"), link(b"l", "../canary"), directory(b"l"), entry_at(b"l", FileKind::Fifo)]
    {
        let mut all = vec![directory(b""), first, filled(b"m", CONTENT), link(b"n", "../canary/x")];
        all[1..].iter_mut().for_each(|entry| entry.metadata.link_group = Some((1, 2)));
        attacks.push(Attack::new(format!("a group of links of many kinds, first {:?}", all[1].metadata.kind), all));
    }
    for name in [
        &b"user.x"[..],
        b"security.capability",
        b"trusted.x",
        b"",
        b"no-dot",
        b"user.\0",
        &[b'u'; 400],
        b"system.posix_acl_access",
    ] {
        for path in [&b"f"[..], b""] {
            let mut all = vec![directory(b""), filled(b"f", CONTENT), link(b"g", "../canary/file")];
            let entry = all.iter_mut().find(|entry| entry.path == path).expect("there");
            entry.metadata.xattrs = vec![(name.to_vec(), vec![1; 70])];
            all[2].metadata.xattrs = vec![(name.to_vec(), vec![1; 70])];
            attacks.push(Attack::new(format!("an attribute {:?} of {path:?}", String::from_utf8_lossy(name)), all));
        }
    }
    run_all("links of the snapshot", attacks, 200);
}

fn usual() -> Vec<Entry> {
    vec![
        directory(b""),
        directory(b"a"),
        directory(b"a/b"),
        filled(b"a/b/c", CONTENT),
        link(b"a/b/d", "c"),
        filled(b"a/c", CONTENT),
    ]
}

const OVERWRITES: [Overwrite; 3] = [Overwrite::Never, Overwrite::IfChanged, Overwrite::Always];

/// Where a trap is laid: at each component of a path of the snapshot.
const PLACES: [&str; 5] = ["a", "a/b", "a/b/c", "a/b/d", "a/c"];

#[test]
fn nothing_in_the_target_leads_out_of_it() {
    let mut attacks = Vec::new();
    for place in PLACES {
        for to in ["CANARY", "CANARY/file", "CANARY/pipe", "/", "up", "nowhere", "."] {
            for overwrite in OVERWRITES {
                for delete in [false, true] {
                    let what = format!("{place} is a link to {to}, {overwrite:?}, delete {delete}");
                    let lay = move |folder: &Path| {
                        let at = folder.join("target").join(place);
                        fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                        let to = to.replace("CANARY", folder.join("canary").to_str().expect("text"));
                        let up = format!("{}canary", "../".repeat(1 + place.matches('/').count()));
                        symlink(if to == "up" { up } else { to }, at).expect("a link");
                    };
                    attacks.push(Attack { overwrite, delete, ..Attack::new(what, usual()).after(lay) });
                }
            }
        }
    }
    run_all("links in the target", attacks, 200);
}

#[test]
fn pipes_sockets_folders_and_links_to_files_outside_are_no_trap() {
    type Lay = fn(&Path, &Path);
    let traps: [(&str, Lay); 6] = [
        ("a pipe", |at, _| make_pipe(at)),
        ("a socket", |at, _| drop(std::os::unix::net::UnixListener::bind(at).expect("a socket"))),
        ("a folder", |at, _| fs::create_dir(at).expect("a folder")),
        ("a folder with a link in it", |at, canary| {
            fs::create_dir(at).expect("a folder");
            symlink(canary, at.join("c")).expect("a link");
        }),
        ("a file that is closed", |at, _| {
            fs::write(at, b"x").expect("a file");
            fs::set_permissions(at, fs::Permissions::from_mode(0o0)).expect("permissions");
        }),
        ("a device, if one can be made", |at, _| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let device = rustix::fs::makedev(1, 3);
            let _ = rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::CharacterDevice, mode, device);
        }),
    ];
    let mut attacks = Vec::new();
    for place in PLACES {
        for (trap, lay) in traps {
            for overwrite in OVERWRITES {
                for delete in [false, true] {
                    let lay = move |folder: &Path| {
                        let at = folder.join("target").join(place);
                        fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                        lay(&at, &folder.join("canary"));
                    };
                    let what = format!("{place} is {trap}, {overwrite:?}, delete {delete}");
                    attacks.push(Attack { overwrite, delete, ..Attack::new(what, usual()).after(lay) });
                }
            }
        }
    }
    attacks.extend(planted_parts());
    attacks.extend(swaps());
    run_all("traps in the target", attacks, 150);
}

/// What an interrupted restore would have left as `name` beside the file.
fn part_of(file: &[u8]) -> String {
    let content = whole(CONTENT);
    let mut hasher = blake3::Hasher::new();
    hasher.update(file).update(&[0]).update(format!("{}/{}", content.root, content.bytes).as_bytes());
    format!(".{}.ckpt-part", &hasher.finalize().to_hex()[..32])
}

fn planted_parts() -> Vec<Attack> {
    type Plant = fn(&Path, &Path);
    let plants: [(&str, Plant); 5] = [
        ("a link to a file outside", |at, canary| symlink(canary.join("file"), at).expect("a link")),
        ("a link to nothing outside", |at, canary| symlink(canary.join("new"), at).expect("a link")),
        ("a pipe", |at, _| make_pipe(at)),
        ("a folder", |at, _| fs::create_dir(at).expect("a folder")),
        ("a link to a pipe", |at, canary| symlink(canary.join("pipe"), at).expect("a link")),
    ];
    let planted = plants.into_iter().flat_map(|(what, plant)| {
        [("a/b", &b"c"[..]), ("a", b"c")].map(|(folder, file)| {
            let lay = move |place: &Path| {
                let folder = place.join("target").join(folder);
                fs::create_dir_all(&folder).expect("folders");
                plant(&folder.join(part_of(file)), &place.join("canary"));
            };
            Attack::new(format!("the part of a file in {folder} is {what}"), usual()).after(lay)
        })
    });
    planted.collect()
}

fn swaps() -> Vec<Attack> {
    (0..16)
        .map(|at| Attack { swap_at: Some(at), ..Attack::new(format!("a link is put at event {at}"), usual()) })
        .collect()
}

/// A name of a file outside that stands in the target may be taken away, but the file is not written.
#[test]
fn a_file_outside_is_not_written_through_a_name_of_it_in_the_target() {
    let mut count = 0;
    for place in ["a/b/c", "a/c", "a/b/d"] {
        for overwrite in OVERWRITES {
            for content in [CANARY, CONTENT, &[7; 100]] {
                let folder = quick_folder();
                let outside = folder.path().join("outside");
                fs::write(&outside, content).expect("a file");
                fs::set_permissions(&outside, fs::Permissions::from_mode(0o640)).expect("permissions");
                let at = folder.path().join("target").join(place);
                fs::create_dir_all(at.parent().expect("the target")).expect("folders");
                fs::hard_link(&outside, &at).expect("a link");
                let before = fs::metadata(&outside).expect("there");
                let list = leaf(&usual());
                let (storage, snapshot) = forge::repository(&[raw(CONTENT), raw(&list)], whole(&list));
                let repo = runs::open(&storage).expect("opens");
                let options = RestoreOptions { overwrite, ..restore_options(&folder.path().join("target")) };
                let what = format!("{place}, {overwrite:?}, {} bytes", content.len());
                restore(&repo, &snapshot, &options, &ckpt::events::Silent).unwrap_or_else(|e| panic!("{what}: {e}"));
                let after = fs::metadata(&outside).expect("there");
                assert_eq!(fs::read(&outside).expect("there"), content, "{what}");
                let fields = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
                assert_eq!(fields(&after), fields(&before), "{what}");
                count += 1;
            }
        }
    }
    say(&format!("attacks: names of files outside: {count} cases"));
}

/// The target itself: where it leads is what the user asked for, but it has to be a folder.
#[test]
fn a_target_that_is_no_folder_is_refused_without_waiting() {
    for trap in ["pipe", "file", "link to pipe", "link to nothing"] {
        let folder = quick_folder();
        let target = folder.path().join("target");
        match trap {
            "pipe" => make_pipe(&target),
            "file" => fs::write(&target, CANARY).expect("a file"),
            "link to nothing" => symlink("nowhere/at/all", &target).expect("a link"),
            _ => {
                make_pipe(&folder.path().join("pipe"));
                symlink("pipe", &target).expect("a link");
            }
        }
        let kind = fs::symlink_metadata(&target).expect("there").file_type();
        let list = leaf(&usual());
        let (storage, snapshot) = forge::repository(&[raw(CONTENT), raw(&list)], whole(&list));
        let (done, end) = mpsc::channel();
        std::thread::spawn({
            let target = target.clone();
            move || {
                let repo = runs::open(&storage).expect("opens");
                let _ = done.send(runs::restore(&repo, &snapshot, &target).map(drop));
            }
        });
        end.recv_timeout(DEADLINE).expect("it ends").expect_err(trap);
        let after = fs::symlink_metadata(&target).expect("there").file_type();
        assert!(after == kind && (after.is_fifo() == (trap == "pipe")), "{trap}");
    }
    if !is_root() {
        not_run("devices among the attacks", "only root makes them");
    }
    assert!(!Path::new(std::ffi::OsStr::from_bytes(b"/canary")).exists(), "nothing was written to the root");
}

#[test]
fn any_change_outside_is_noticed() {
    type Change = fn(&Path);
    let changes: [Change; 5] = [
        |canary| fs::write(canary.join("c"), b"changed!").expect("written"),
        |canary| fs::hard_link(canary.join("x"), canary.join("y")).expect("a link"),
        |canary| fs::remove_file(canary.join("pipe")).expect("removed"),
        |canary| fs::set_permissions(canary.join("b"), fs::Permissions::from_mode(0o700)).expect("permissions"),
        |canary| fs::write(canary.parent().expect("a folder").join("beside"), b"").expect("written"),
    ];
    for change in changes {
        let folder = quick_folder();
        lay_canary(folder.path());
        let before = seen(folder.path());
        assert_eq!(seen(folder.path()), before);
        change(&folder.path().join("canary"));
        assert_ne!(seen(folder.path()), before);
    }
}
