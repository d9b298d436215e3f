//! `ckpt repair` as a process: damage to a repository on disk, what it says and how it ends, and what verify, backup and
//! restore make of the repository afterwards. Every damage to every object, kills and full disks are in `src/ops/repair`.

use crate::support::noise;
use crate::support::program::{Place, documents, expect};
use std::fs;
use std::path::{Path, PathBuf};

/// A repository with two snapshots of a folder, and a plain copy of it.
struct World {
    place: Place,
}

#[derive(Clone, Copy)]
enum Hurt {
    Flip,
    Delete,
    Empty,
    LoseOneByte,
    Append,
}

impl World {
    fn new(parity: &str) -> World {
        let place = Place::new();
        place.succeed(&["init", "--parity", parity]);
        let world = World { place };
        world.write_data();
        world.place.backup("data");
        world.place.backup("data");
        copy_folder(&world.place.path("repository"), &world.place.path("other"));
        world
    }

    fn write_data(&self) {
        let data = self.place.path("data");
        fs::create_dir_all(&data).expect("a folder");
        fs::write(data.join("weights"), noise(1, 700_000)).expect("a file");
        fs::write(data.join("log"), "step 1, loss 0.5, and so on\n".repeat(900)).expect("a file");
    }

    /// The objects of a folder of the repository, the largest last.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = files_in(&self.place.path("repository").join(folder));
        found.sort_by_key(|path| (fs::metadata(path).expect("it exists").len(), path.clone()));
        found
    }

    fn hurt(&self, path: &Path, how: Hurt) {
        let mut bytes = fs::read(path).expect("an object");
        // Objects may only be read, so the file is made anew.
        fs::remove_file(path).expect("removed");
        let middle = bytes.len() / 2;
        match how {
            Hurt::Flip => bytes[middle] ^= 4,
            Hurt::Delete => return,
            Hurt::Empty => bytes.clear(),
            Hurt::LoseOneByte => drop(bytes.pop()),
            Hurt::Append => bytes.extend_from_slice(b"more"),
        }
        fs::write(path, bytes).expect("written");
    }

    /// Runs the command, which must end with `code`; stdout and stderr, one behind the other.
    fn run(&self, arguments: &[&str], code: i32) -> String {
        let (out, err) = expect(self.place.command(arguments), code);
        out + &err
    }

    /// Everything verifies, is backed up again and restores as it was.
    fn assert_whole(&self) {
        self.run(&["verify", "--read-data"], 0);
        self.write_data();
        self.place.backup("data");
        let target = self.place.text("restored");
        self.run(&["restore", "latest", "--target", &target], 0);
        for name in ["weights", "log"] {
            let read = |folder: &str| fs::read(self.place.path(folder).join(name)).expect("a file");
            assert!(read("restored") == read("data"), "{name}");
        }
        self.run(&["repair"], 0);
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    for file in files_in(from) {
        let target = to.join(file.strip_prefix(from).expect("beneath it"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        fs::copy(&file, &target).expect("copied");
    }
}

#[test]
fn what_is_whole_is_left_alone_and_nothing_is_said() {
    for parity in ["none", "default"] {
        let world = World::new(parity);
        for arguments in [vec!["repair"], vec!["repair", "--quick"], vec!["repair", "--dry-run"]] {
            assert_eq!(world.run(&arguments, 0), "");
        }
        world.assert_whole();
    }
}

#[test]
fn packs_are_mended_by_parity_by_a_copy_or_by_cutting_off_what_was_added() {
    for (parity, how, from, means) in [
        ("default", Hurt::Flip, false, "by its parity"),
        ("default", Hurt::LoseOneByte, false, "by its parity"),
        ("default", Hurt::Append, false, "cut off"),
        ("none", Hurt::Append, false, "cut off"),
        ("default", Hurt::Delete, true, "other"),
        ("none", Hurt::Delete, true, "other"),
        ("none", Hurt::Empty, true, "other"),
    ] {
        let world = World::new(parity);
        let pack = world.objects("packs").pop().expect("a pack");
        let before = fs::read(&pack).expect("a pack");
        world.hurt(&pack, how);
        // Source files would do as well, but are not needed.
        fs::remove_dir_all(world.place.path("data")).expect("removed");
        let other = world.place.text("other");
        let arguments = if from { vec!["repair", "--from", &other] } else { vec!["repair"] };
        let said = world.run(&arguments, 6);
        assert!(said.contains("mended packs/") && said.contains(means), "{said}");
        assert!(said.contains("1 object was damaged, and all is mended"), "{said}");
        assert!(fs::read(&pack).expect("a pack") == before);
        world.assert_whole();
    }
}

#[test]
fn swapped_packs_are_put_right_from_a_copy() {
    let world = World::new("none");
    let packs = world.objects("packs");
    let (a, b) = (packs[0].clone(), packs[1].clone());
    let aside = world.place.path("aside");
    fs::rename(&a, &aside).expect("moved");
    fs::rename(&b, &a).expect("moved");
    fs::rename(&aside, &b).expect("moved");
    let said = world.run(&["repair", "--from", &world.place.text("other")], 6);
    assert_eq!(said.matches("mended packs/").count(), 2, "{said}");
    world.assert_whole();
}

#[test]
fn lost_content_is_taken_from_files_that_still_hold_it_and_the_pack_is_set_aside() {
    for how in [Hurt::Flip, Hurt::Delete, Hurt::LoseOneByte] {
        let world = World::new("none");
        let pack = world.objects("packs").pop().expect("a pack");
        world.hurt(&pack, how);
        let before: Vec<PathBuf> = files_in(&world.place.path("repository"));
        let promised = world.run(&["repair", "--dry-run"], 6);
        assert!(promised.contains("can be mended packs/"), "{promised}");
        assert_eq!(files_in(&world.place.path("repository")).len(), before.len());
        let said = world.run(&["repair"], 6);
        assert!(said.contains("set aside, nothing that snapshots need is lost with it"), "{said}");
        world.assert_whole();
    }
}

#[test]
fn what_cannot_be_mended_is_named_and_the_next_backup_heals_it() {
    let world = World::new("none");
    let pack = world.objects("packs").pop().expect("a pack");
    world.hurt(&pack, Hurt::Flip);
    fs::remove_dir_all(world.place.path("data")).expect("removed");
    let weights = world.place.text("data/weights");
    for arguments in [vec!["repair"], vec!["repair", "--no-source-files"], vec!["verify"]] {
        let said = world.run(&arguments, 5);
        assert!(said.contains("needed by snapshot") && said.contains(&weights), "{said}");
        assert!(!said.contains("data/log"), "{said}");
    }
    let json = expect(world.place.command(&["repair", "--json"]), 5).0;
    let document = documents(&json).pop().expect("a summary");
    assert_eq!((&document["data"]["left_count"], &document["data"]["packs_set_aside"]), (&1.into(), &1.into()));
    let schema = serde_json::from_str(&world.place.succeed(&["schema"])).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    assert!(validator.is_valid(&document), "{document}");
    // Everything else is restored.
    let target = world.place.text("half");
    world.run(&["restore", "latest", "--target", &target], 5);
    assert!(world.place.path("half/log").exists() && !world.place.path("half/weights").exists());
    world.write_data();
    world.place.backup("data");
    world.assert_whole();
    let log = world.place.succeed(&["audit", "list", "--action", "repair", "--json"]);
    assert!(log.contains("repair"), "{log}");
}

#[test]
fn small_objects_come_from_their_other_copies_and_the_index_from_packs() {
    for (folder, how, means) in [
        ("config", Hurt::Delete, "from the other parameters"),
        ("config", Hurt::Flip, "from its other copy"),
        ("snapshots", Hurt::Flip, "from its other copy"),
        ("snapshots", Hurt::Empty, "from this host's cache"),
        ("index", Hurt::Flip, "written anew"),
        ("index", Hurt::Empty, "written anew"),
        ("parity", Hurt::Flip, "written anew"),
    ] {
        let world = World::new("default");
        let object = world.objects(folder).pop().expect("an object");
        world.hurt(&object, how);
        let said = world.run(&["repair"], 6);
        assert!(said.contains(&format!("mended {folder}/")) && said.contains(means), "{folder}: {said}");
        world.assert_whole();
    }
}

#[test]
fn parity_that_is_added_mends_later_damage() {
    let world = World::new("none");
    assert_eq!(world.run(&["repair", "--add-parity"], 0), "");
    assert_eq!(world.objects("parity").len(), world.objects("packs").len());
    let pack = world.objects("packs").pop().expect("a pack");
    world.hurt(&pack, Hurt::Flip);
    let id = pack.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    world.run(&["repair", "--pack", "12"], 2);
    let said = world.run(&["repair", "--pack", &id[..12]], 6);
    assert!(said.contains("by its parity"), "{said}");
    world.assert_whole();
    let said = world.run(&["repair", "--from", &world.place.text("nowhere")], 2);
    assert!(said.contains("nowhere") && said.contains("--from"), "{said}");
}
