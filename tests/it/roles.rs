//! Hosts of different roles on one encrypted repository, as processes, and what whoever has the storage alone can do to them.
//!
//! Every host has a cache of its own. What a role is refused ends with 12 before anything is changed, in the repository and in the
//! host's cache; what was forged, moved, replayed or cut short is never taken for content.

use crate::support::noise;
use crate::support::program::expect;
use crate::support::vault::{Vault, data};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Vault {
    /// The program on the host of this role: with its key and its cache.
    fn on(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = self.with(role, arguments);
        command.env("CKPT_CACHE_DIR", self.place.path(&format!("cache-{role}")));
        command.env("CKPT_HOST", "the-host");
        command
    }

    fn backup_on(&self, role: &str) -> Value {
        let data_folder = self.place.text("data");
        data(&expect(self.on(role, &["backup", &data_folder, "--settle", "0", "--json"]), 0).0)
    }

    fn write(&self, name: &str, seed: u64, bytes: usize) {
        fs::write(self.place.path("data").join(name), noise(seed, bytes)).expect("a file");
    }

    /// The newest snapshot restored by the read key is the data as it is.
    fn assert_restores(&self) {
        let target = self.place.path("restored");
        let _ = fs::remove_dir_all(&target);
        expect(self.on("read", &["restore", "latest", "--target", &self.place.text("restored")]), 0);
        assert!(tree(&target) == tree(&self.place.path("data")), "what was restored is not what was saved");
    }

    /// Must end with 12 and change neither repository nor cache.
    fn assert_refused(&self, role: &str, arguments: &[&str]) {
        let folders = [self.place.path("repository"), self.place.path(&format!("cache-{role}"))];
        let before = folders.each_ref().map(|folder| tree(folder).into_keys().collect::<Vec<_>>());
        let objects = tree(&folders[0]);
        let (_, said) = expect(self.on(role, arguments), 12);
        assert!(said.contains(&format!("role {role}")) && said.contains("hint"), "{arguments:?}: {said}");
        let after = folders.each_ref().map(|folder| tree(folder).into_keys().collect::<Vec<_>>());
        assert!(before == after && objects == tree(&folders[0]), "{role}: {arguments:?} has changed something");
    }
}

/// All regular files beneath `folder` with their content, but for what a database makes and removes as it runs.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    if !folder.exists() {
        return BTreeMap::new();
    }
    let items = walkdir::WalkDir::new(folder).into_iter().map(|item| item.expect("readable"));
    let files = items.filter(|item| item.file_type().is_file()).map(|item| item.into_path());
    let lasting = files.filter(|path| !path.to_string_lossy().contains("sqlite3-"));
    lasting
        .map(|path| (path.strip_prefix(folder).expect("beneath").to_owned(), fs::read(&path).expect("read")))
        .collect()
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = tree(folder).into_keys().map(|path| folder.join(path)).collect();
    found.sort_by_key(|path| (fs::metadata(path).expect("there").len(), path.clone()));
    found
}

/// Puts these bytes where an object stands or stood.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("written");
}

fn count(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[test]
fn a_host_that_may_only_add_goes_on_adding_whatever_others_do() {
    let vault = Vault::new();
    for role in ["put", "read", "prune"] {
        vault.add(role);
    }
    let first = vault.backup_on("put");
    vault.write("second", 2, 200_000);
    let second = vault.backup_on("put");
    assert_eq!((count(&second, "files_new"), count(&second, "bytes_new")), (1, 200_000), "{second}");
    let (id, target, folder) =
        (second["snapshot"].as_str().expect("an id"), vault.place.text("no"), vault.place.text("data"));
    let refused: [&[&str]; 14] = [
        &["ls", id],
        &["find", "text"],
        &["dump", id, "text"],
        &["diff", first["snapshot"].as_str().expect("an id"), id],
        &["restore", id, "--target", &target],
        &["verify"],
        &["verify", "--read-data"],
        &["verify", id, "--against", &folder],
        &["forget", id],
        &["forget", "--keep-last", "1", "--prune"],
        &["prune"],
        &["prune", "--dry-run"],
        &["repair"],
        &["repair", "--quick", "--dry-run"],
    ];
    // Its cache alone keeps the lists of files that it stored: it is the same file afterwards, not one made anew.
    let index = objects(&vault.place.path("cache-put")).into_iter().find(|path| path.ends_with("index.sqlite3"));
    let (index, held) = (index.expect("an index"), vault.place.path("held"));
    fs::hard_link(&index, &held).expect("another name");
    for command in refused {
        vault.assert_refused("put", command);
    }
    assert!(!vault.place.path("no").exists());
    let number = |path: &Path| fs::metadata(path).expect("there").ino();
    assert_eq!(number(&index), number(&held), "the index was made anew");
    vault.write("third", 3, 1000);
    let third = vault.backup_on("put");
    assert_eq!((count(&third, "files_new"), count(&third, "bytes_new")), (1, 1000), "{third}");

    // Others forget, prune and rotate.
    fs::remove_file(vault.place.path("data/second")).expect("removed");
    vault.backup_on("put");
    for gone in [&first, &second, &third] {
        expect(vault.on("prune", &["forget", gone["snapshot"].as_str().expect("an id")]), 0);
    }
    expect(vault.on("prune", &["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    expect(vault.on("admin", &["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    expect(vault.on("admin", &["key", "rotate"]), 0);
    let same = vault.backup_on("put");
    assert_eq!((count(&same, "files_new"), count(&same, "bytes_new")), (0, 0), "{same}");
    // What only forgotten snapshots had is gone, and is stored again when it comes back.
    vault.write("second", 2, 200_000);
    let back = vault.backup_on("put");
    assert_eq!((count(&back, "files_new"), count(&back, "bytes_new")), (1, 200_000), "{back}");
    vault.assert_restores();
    // Without its cache it reads everything again and stores nothing twice.
    fs::remove_dir_all(vault.place.path("cache-put")).expect("removed");
    let anew = vault.backup_on("put");
    assert_eq!((count(&anew, "files_unchanged"), count(&anew, "bytes_new")), (0, 0), "{anew}");
    vault.assert_restores();
    expect(vault.on("read", &["verify", "--read-data"]), 0);

    // A snapshot that vanished is named by a host that cannot even read it, and hinders it in nothing.
    let gone = anew["snapshot"].as_str().expect("an id");
    fs::remove_file(vault.place.path("repository/snapshots").join(gone)).expect("removed");
    let (_, said) = expect(vault.on("put", &["backup", &folder, "--settle", "0"]), 0);
    assert!(said.contains(gone) && said.contains("nobody forgot"), "{said}");
    vault.assert_restores();
}

#[test]
fn a_lesser_key_than_an_admins_repairs_nothing() {
    let vault = Vault::new();
    for role in ["put", "read", "prune"] {
        vault.add(role);
    }
    vault.backup_on("put");
    let repository = vault.place.path("repository");
    let pack = objects(&repository.join("packs")).pop().expect("a pack");
    let mut bytes = fs::read(&pack).expect("read");
    bytes[5000] ^= 1;
    put(&pack, &bytes);
    fs::remove_file(repository.join("config/1")).expect("removed");
    for role in ["put", "read", "prune"] {
        for arguments in [&["repair"][..], &["repair", "--quick", "--add-parity"], &["repair", "-n"]] {
            vault.assert_refused(role, arguments);
        }
    }
    expect(vault.on("read", &["verify", "--read-data"]), 5);
    // The variable that names the host does not speak against leaving files alone.
    let (said, _) = expect(vault.on("admin", &["repair", "--no-source-files"]), 6);
    assert!(said.contains("config/1") && said.contains("by its parity"), "{said}");
    expect(vault.on("read", &["verify", "--read-data"]), 0);
    expect(vault.on("read", &["audit", "verify"]), 0);
    vault.assert_restores();
}

#[test]
fn a_marker_that_nobody_with_a_key_has_made_forgets_nothing() {
    let vault = Vault::new();
    for role in ["read", "prune"] {
        vault.add(role);
    }
    let first = vault.backup_on("admin");
    vault.write("text", 9, 50_000);
    let second = vault.backup_on("admin");
    let id = |backup: &Value| backup["snapshot"].as_str().expect("an id").to_owned();
    let (first, second) = (id(&first), id(&second));
    let marker = vault.place.path("repository/forgotten").join(&first);
    expect(vault.on("prune", &["forget", &second]), 0);
    // Genuine, and of another snapshot.
    let of_second = fs::read(vault.place.path("repository/forgotten").join(&second)).expect("a marker");
    for forged in [Vec::new(), noise(1, 300), of_second] {
        put(&marker, &forged);
        for role in ["read", "prune"] {
            let (out, said) = expect(vault.on(role, &["snapshots"]), 0);
            assert!(out.contains(&first[..8]) && said.contains("counts as live"), "{out}{said}");
            expect(vault.on(role, &["verify"]), 5);
        }
        expect(vault.on("prune", &["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
        // A repair leaves it to people to judge.
        let (out, _) = expect(vault.on("admin", &["repair"]), 5);
        assert!(out.contains("counts as live"), "{out}");
        assert_eq!(fs::read(&marker).expect("there"), forged);
        expect(vault.on("read", &["restore", &first, "--target", &vault.place.text("first")]), 0);
    }
    // Forgetting it in earnest puts a genuine one there.
    expect(vault.on("prune", &["forget", &first]), 0);
    let (out, said) = expect(vault.on("read", &["snapshots"]), 0);
    assert!(!out.contains(&first[..8]) && !said.contains("counts as live"), "{out}{said}");
    expect(vault.on("prune", &["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    expect(vault.on("read", &["verify"]), 0);
}

#[test]
fn what_was_moved_replayed_or_taken_from_another_repository_is_found() {
    let (vault, other) = (Vault::new(), Vault::new());
    vault.add("read");
    vault.backup_on("admin");
    other.backup_on("admin");
    let (repository, theirs) = (vault.place.path("repository"), other.place.path("repository"));
    let largest = |folder: &Path| objects(folder).pop().expect("an object");
    let cases: [(&str, Vec<u8>); 6] = [
        ("snapshots", fs::read(largest(&theirs.join("snapshots"))).expect("read")),
        ("index", fs::read(largest(&theirs.join("index"))).expect("read")),
        ("packs", fs::read(largest(&theirs.join("packs"))).expect("read")),
        ("parity", fs::read(largest(&theirs.join("parity"))).expect("read")),
        ("config", fs::read(theirs.join("config/0")).expect("read")),
        // Of the same repository, under another name: a pack of lists in the place of one of content.
        ("packs", fs::read(&objects(&repository.join("packs"))[0]).expect("read")),
    ];
    for (folder, bytes) in cases {
        let object = if folder == "config" { repository.join("config/2") } else { largest(&repository.join(folder)) };
        let own = fs::read(&object).expect("read");
        assert!(own != bytes, "{folder}");
        put(&object, &bytes);
        let (out, _) = expect(vault.on("read", &["verify", "--read-data", "--json"]), 5);
        assert!(out.contains(folder), "{folder}: {out}");
        let target = vault.place.path("restored");
        let _ = fs::remove_dir_all(&target);
        let fresh = vault.place.text("fresh-cache");
        let _ = fs::remove_dir_all(&fresh);
        let text = vault.place.text("restored");
        let output = vault
            .on("read", &["restore", "latest", "--target", &text, "--cache-dir", &fresh])
            .output()
            .expect("the program starts");
        if output.status.success() {
            assert!(tree(&target) == tree(&vault.place.path("data")), "{folder}: wrong content");
        }
        put(&object, &own);
    }
    expect(vault.on("read", &["verify", "--read-data"]), 0);
    // A whole repository in the place of another: the key is of none of its slots.
    let (_, said) = expect(vault.on("read", &["snapshots", "-r", &other.place.text("repository")]), 12);
    assert!(said.contains("does not open"), "{said}");
}

#[test]
fn a_slot_that_was_put_back_opens_what_it_opened_and_calls_nothing_newer_damaged() {
    let vault = Vault::new();
    let slot = vault.add("read");
    vault.backup_on("admin");
    expect(vault.on("read", &["verify", "--read-data"]), 0);
    let keys = vault.place.path("repository/keys");
    let (name, bytes) =
        tree(&keys).into_iter().find(|(name, _)| name.to_string_lossy().starts_with(&slot)).expect("it");
    expect(vault.on("admin", &["key", "remove", &slot]), 0);
    for command in [&["snapshots"][..], &["verify"], &["restore", "latest", "--target", "/nonexistent"]] {
        let (_, said) = expect(vault.on("read", command), 12);
        assert!(said.contains("the one key slot"), "{said}");
    }
    expect(vault.on("admin", &["key", "rotate"]), 0);
    vault.write("text", 5, 90_000);
    vault.backup_on("admin");
    put(&keys.join(name), &bytes);
    let older = vault.place.text("older");
    let snapshots = data(&expect(vault.on("read", &["snapshots", "--json"]), 0).0);
    let ids = snapshots["snapshots"].as_array().expect("a list");
    expect(vault.on("read", &["restore", ids[0]["id"].as_str().expect("an id"), "--target", &older]), 0);
    let newer = vault.place.text("newer");
    let refused: [&[&str]; 4] =
        [&["restore", "latest", "--target", &newer], &["ls", "latest"], &["verify"], &["verify", "--read-data"]];
    for command in refused {
        let (_, said) = expect(vault.on("read", command), 12);
        assert!(said.contains("generation"), "{command:?}: {said}");
    }
    let listed = vault.slots("admin");
    assert!(listed.iter().any(|listed| listed["id"] == slot.as_str() && listed["standing"] == "foreign"), "{listed:?}");
}
