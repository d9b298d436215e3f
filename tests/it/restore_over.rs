//! Restores over files that stand in the target, as they fare when something is odd: holes, further names, damage.

use crate::support::program::{Place, expect, runs};
use crate::support::runs::{self, PACK_BYTES_MIN, init_options, restore_options};
use crate::support::trees::Tree;
use crate::support::{disk_folder, noise, not_run};
use ckpt::error::Kind;
use ckpt::events::Silent;
use ckpt::ops::restore::{Overwrite, RestoreOptions, RestoreReport, restore};
use ckpt::ops::{Resources, init};
use ckpt::repo::pack::PackKind;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A source, a target, and a repository without parity, in which damage stays damage.
struct Scene {
    folder: tempfile::TempDir,
    storage: SimulatedStorage,
}

impl Scene {
    fn new() -> Scene {
        let folder = disk_folder();
        for name in ["source", "target"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let storage = SimulatedStorage::new();
        let options = init::InitOptions { parity: false, ..init_options("simulated", PACK_BYTES_MIN) };
        init::init_storage(&storage, &options).expect("an empty storage takes a repository");
        Scene { folder, storage }
    }

    fn source(&self, name: &str) -> PathBuf {
        self.folder.path().join("source").join(name)
    }

    fn target(&self, name: &str) -> PathBuf {
        self.folder.path().join("target").join(name)
    }

    fn save(&self) -> Snapshot {
        runs::save(&runs::open(&self.storage).expect("opens"), &self.source(""))
    }

    fn restore(&self, snapshot: &Snapshot) -> RestoreReport {
        self.restore_in(snapshot, 128 << 20)
    }

    /// In so much memory: a little has windows of few chunks.
    fn restore_in(&self, snapshot: &Snapshot, memory_bytes: u64) -> RestoreReport {
        let repo = runs::open(&self.storage).expect("opens");
        let resources = Resources { threads: 2, memory_bytes };
        let options =
            RestoreOptions { overwrite: Overwrite::IfChanged, resources, ..restore_options(&self.target("")) };
        restore(&repo, snapshot, &options, &Silent).expect("restores what it can")
    }

    /// The packs of content, by name.
    fn packs(&self) -> Vec<ckpt::storage::ObjectName> {
        let repo: Repo = runs::open(&self.storage).expect("opens");
        let packs = repo.index().packs().expect("known");
        let data = packs.iter().filter(|pack| pack.kind == PackKind::Data).map(|pack| pack.id);
        let mut packs: Vec<_> = data.map(|id| names::pack(id).expect("a name")).collect();
        packs.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        packs
    }

    fn target_names(&self) -> Vec<String> {
        let names = fs::read_dir(self.target("")).expect("a folder");
        let mut names: Vec<String> =
            names.map(|item| item.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

const MIB: u64 = 1 << 20;

/// A file of `bytes` with this content at some places and holes elsewhere.
fn write_sparse(path: &Path, bytes: u64, content: &[(u64, Vec<u8>)]) {
    let file = fs::File::create(path).expect("a file");
    file.set_len(bytes).expect("a size");
    content.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).expect("written"));
}

#[test]
fn a_hole_is_a_hole_again_whatever_stood_there() {
    let scene = Scene::new();
    let data = || noise(1, 200_000);
    write_sparse(&scene.source("front"), 2 * MIB, &[(MIB, noise(2, MIB as usize))]);
    write_sparse(&scene.source("middle"), 3 * MIB, &[(0, data()), (2 * MIB, data())]);
    write_sparse(&scene.source("end"), 3 * MIB, &[(0, data())]);
    write_sparse(&scene.source("all"), MIB, &[]);
    let (snapshot, wanted) = (scene.save(), Tree::read(&scene.source("")));
    for (bytes, memory_bytes) in [(MIB / 2, 128 << 20), (3 * MIB, 128 << 20), (4 * MIB, 128 << 20), (4 * MIB, 1 << 10)]
    {
        for name in ["front", "middle", "end", "all"] {
            fs::write(scene.target(name), noise(9, bytes as usize)).expect("a file");
        }
        let report = scene.restore_in(&snapshot, memory_bytes);
        assert_eq!((report.files_restored, report.failed.count), (4, 0), "{report:?}");
        Tree::read(&scene.target("")).assert_is(&wanted, &format!("over {bytes} bytes"));
        for name in ["front", "middle", "end", "all"] {
            let blocks = |path: &Path| fs::metadata(path).expect("there").blocks();
            let (was, is) = (blocks(&scene.source(name)), blocks(&scene.target(name)));
            assert!(is <= was + 64, "{name} takes {is} blocks instead of {was}");
        }
    }
}

#[test]
fn further_names_of_a_file_that_is_not_restored_are_left_out_with_it() {
    let scene = Scene::new();
    fs::write(scene.source("x"), noise(1, 10_000)).expect("a file");
    fs::hard_link(scene.source("x"), scene.source("y")).expect("a link");
    let snapshot = scene.save();
    scene.packs().iter().for_each(|pack| assert!(scene.storage.remove(pack)));
    fs::write(scene.target("x"), b"old").expect("a file");
    fs::hard_link(scene.target("x"), scene.target("other")).expect("a link");
    fs::write(scene.target("y"), b"older").expect("a file");
    let report = scene.restore(&snapshot);
    assert_eq!((report.files_restored, report.damaged.count, report.failed.count), (0, 2, 0), "{report:?}");
    assert!(report.damaged.kept.iter().all(|problem| problem.error.kind() == Kind::Damaged), "{report:?}");
    assert!(report.damaged.kept[1].error.to_string().contains("another name of x"), "{report:?}");
    assert_eq!(fs::read(scene.target("x")).expect("there"), b"old");
    assert_eq!(fs::read(scene.target("y")).expect("there"), b"older");
}

#[test]
fn a_file_that_cannot_be_restored_stays_as_it_was_if_nothing_was_written_to_it() {
    let scene = Scene::new();
    let content = noise(1, 300_000);
    fs::write(scene.source("f"), &content).expect("a file");
    let snapshot = scene.save();
    scene.packs().iter().for_each(|pack| assert!(scene.storage.remove(pack)));
    let old = [&content[..150_000], &noise(2, 200_000)].concat();
    fs::write(scene.target("f"), &old).expect("a file");
    fs::set_permissions(scene.target("f"), fs::Permissions::from_mode(0o640)).expect("a mode");
    let before = fs::metadata(scene.target("f")).expect("there");
    let report = scene.restore(&snapshot);
    assert_eq!(report.damaged.count, 1, "{report:?}");
    assert_eq!(scene.target_names(), ["f"]);
    assert!(fs::read(scene.target("f")).expect("there") == old);
    let after = fs::metadata(scene.target("f")).expect("there");
    let seen = |m: &fs::Metadata| (m.ino(), m.mode(), m.mtime(), m.mtime_nsec());
    assert_eq!(seen(&after), seen(&before));
}

#[test]
fn a_file_that_was_partly_written_over_is_named_and_the_next_restore_goes_on_with_it() {
    let scene = Scene::new();
    let content = noise(1, 3_000_000);
    fs::write(scene.source("f"), &content[..2_000_000]).expect("a file");
    scene.save();
    let before = scene.packs();
    fs::write(scene.source("f"), &content).expect("a file");
    let (snapshot, wanted) = (scene.save(), Tree::read(&scene.source("")));
    // In windows of few chunks, what comes first in the file has been written when the rest turns out to be gone.
    let lost: Vec<_> = scene.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
    let mut objects = scene.storage.objects();
    let lost: Vec<_> = lost.into_iter().map(|name| (objects.remove(&name).expect("there"), name)).collect();
    lost.iter().for_each(|(_, name)| assert!(scene.storage.remove(name)));
    fs::write(scene.target("f"), noise(2, 3_000_000)).expect("a file");
    let report = scene.restore_in(&snapshot, 1 << 10);
    assert_eq!(report.damaged.count, 1, "{report:?}");
    let found = scene.target_names();
    assert!(found.len() == 1 && found[0].ends_with(".ckpt-part"), "{found:?}");
    let text = report.damaged.kept[0].error.to_string();
    assert!(text.contains(&found[0]) && text.contains("partly overwritten"), "{text}");
    lost.into_iter().for_each(|(bytes, name)| scene.storage.insert(name, bytes));
    let report = scene.restore(&snapshot);
    assert!(report.bytes_reused > 1_000_000, "{report:?}");
    Tree::read(&scene.target("")).assert_is(&wanted, "gone on");
}

#[test]
fn few_descriptors_are_enough_to_restore_over_many_files() {
    let script = "ulimit -n 400; exec \"$@\"";
    if !runs("sh", &["-c", "ulimit -n 400"]) {
        return not_run("few_descriptors_are_enough_to_restore_over_many_files", "the shell cannot bound descriptors");
    }
    let place = Place::with_repository();
    // Large enough to be read and written past the page cache, each in a directory of its own: four descriptors.
    let write = |seed: u64| {
        for n in 0..120 {
            let folder = place.path(&format!("data/{n}"));
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("f"), noise(seed + n, 300_000)).expect("a file");
        }
        place.backup("data")
    };
    let (first, second, target) = (write(0), write(1000), place.text("target"));
    place.succeed(&["restore", &first, "--target", &target]);
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]);
    expect(place.command_by(shell, &["restore", &second, "--target", &target, "--threads", "2"]), 0);
    Tree::read(&place.path("target")).assert_is(&Tree::read(&place.path("data")), "with few descriptors");
}
