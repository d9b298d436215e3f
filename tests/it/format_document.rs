//! `docs/FORMAT.md` is complete and true: a reader written from it alone (`tests/read_repository.py`) restores what the
//! program has saved, also where only second copies and the packs themselves are left.
//!
//! Needs `CKPT_TEST_PYTHON`, an interpreter with the packages `blake3`, `xxhash`, `zstandard` and `cryptography` (44 or
//! later), which `tests/run` provides.

use crate::support::keys::{self, KeysOf, init_encrypted};
use crate::support::program::expect;
use crate::support::vault::Vault;
use crate::support::{noise, not_run, runs};
use ckpt::events::Silent;
use ckpt::repo::keys::{Bundle, Role};
use ckpt::repo::{Cache, Repo};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter; none, with that said, if there is none to run.
fn python() -> Option<OsString> {
    let python = std::env::var_os("CKPT_TEST_PYTHON");
    if python.is_none() {
        not_run("the reader of docs/FORMAT.md", "CKPT_TEST_PYTHON is not set; tests/run sets it");
    }
    python
}

/// Everything that the format can say in little space.
fn make_source(source: &Path) {
    let slices = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/slices");
    fs::create_dir_all(source.join("many")).expect("folders");
    for slice in fs::read_dir(slices).expect("the slices are part of the project").flatten() {
        // Several times over, so that they are long enough for frames of their own.
        let bytes = fs::read(slice.path()).expect("a slice").repeat(7);
        fs::write(source.join(slice.file_name()), bytes).expect("a file");
    }
    let mut random = vec![0u8; 3_000_001];
    blake3::Hasher::new().update(b"format").finalize_xof().fill(&mut random);
    fs::write(source.join("random"), &random).expect("a file");
    fs::write(source.join("constant"), vec![7; 2_000_000]).expect("a file");
    fs::write(source.join("empty"), b"").expect("a file");
    for (name, at, len) in [("sparse", 5_000_000, 20_000_000), ("hole", 0, 3 << 30)] {
        let file = fs::File::create(source.join(name)).expect("a file");
        let data: &[u8] = if at > 0 { &random[..70_000] } else { b"" };
        std::os::unix::fs::FileExt::write_all_at(&file, data, at).expect("written");
        file.set_len(len).expect("a hole");
    }
    for i in 0..600 {
        fs::write(source.join(format!("many/file {i}")), format!("small {i}\n").repeat(i % 17)).expect("a file");
    }
    symlink("../nowhere/\u{e9}", source.join("link")).expect("a link");
    fs::hard_link(source.join("random"), source.join("many/hard")).expect("another name");
    fs::write(source.join(OsStr::from_bytes(b"odd \xff\n")), b"odd").expect("a file");
    fs::set_permissions(source.join("random"), fs::Permissions::from_mode(0o4751)).expect("a mode");
}

fn ckpt(folder: &Path, arguments: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_ckpt"))
        .args(arguments)
        .env("CKPT_REPO", folder.join("repository"))
        .env("CKPT_CACHE_DIR", folder.join("cache"))
        .status()
        .expect("the program starts");
    assert!(status.success(), "ckpt {arguments:?}: {status}");
}

/// Restores the newest snapshot with the reader, given the keys if it needs any, and returns what that says.
fn read_with(python: &OsStr, repository: &Path, target: &Path, bundle: Option<&Path>) -> String {
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_repository.py"))
        .args([repository.as_os_str(), OsStr::new("latest"), target.as_os_str()])
        .args(bundle)
        .output()
        .expect("the interpreter of CKPT_TEST_PYTHON starts");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    out.into_owned()
}

fn read_and_compare(python: &OsStr, folder: &Path, target: &str) {
    let out = read_with(python, &folder.join("repository"), &folder.join(target), None);
    assert!(out.contains("[second,third]"), "{out}");
    compare(&folder.join("data"), &folder.join(target));
}

/// Fails unless both trees hold the same.
fn compare(expected: &Path, found: &Path) {
    let (a, b) = (fs::symlink_metadata(expected).expect("there"), fs::symlink_metadata(found).expect("restored"));
    assert_eq!((a.mode(), a.uid(), a.gid()), (b.mode(), b.uid(), b.gid()), "{}", expected.display());
    assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()), "{}", expected.display());
    if a.is_dir() {
        let names = |folder: &Path| {
            let mut names: Vec<_> = fs::read_dir(folder).expect("listed").flatten().map(|e| e.file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(expected), names(found));
        names(expected).iter().for_each(|name| compare(&expected.join(name), &found.join(name)));
    } else if a.is_symlink() {
        assert_eq!(fs::read_link(expected).expect("a link"), fs::read_link(found).expect("a link"));
    } else {
        assert_eq!((a.size(), a.nlink()), (b.size(), b.nlink()), "{}", expected.display());
        // The one that is nothing but a hole is too long to be read.
        let is_same = a.size() > 1 << 30 || fs::read(expected).expect("read") == fs::read(found).expect("read");
        assert!(is_same && a.blocks().abs_diff(b.blocks()) < 1000, "{}", expected.display());
    }
}

fn objects(repository: &Path, folder: &str) -> Vec<PathBuf> {
    fs::read_dir(repository.join(folder)).expect("listed").flatten().map(|e| e.path()).collect()
}

/// Flips a bit of the object.
fn damage(object: &Path, at: usize) {
    let mut bytes = fs::read(object).expect("an object");
    bytes[at] ^= 4;
    fs::set_permissions(object, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(object, bytes).expect("written");
}

#[test]
fn a_reader_written_from_the_description_restores_everything() {
    let Some(python) = python() else { return };
    let world = tempfile::tempdir().expect("a folder for the test");
    let (folder, source) = (world.path(), world.path().join("data"));
    fs::create_dir(&source).expect("a folder");
    make_source(&source);
    let data = source.to_str().expect("a path of text");
    ckpt(folder, &["init"]);
    ckpt(folder, &["backup", data, "--tag", "first"]);
    fs::write(source.join("many/file 3"), b"changed").expect("a file");
    ckpt(folder, &["backup", data, "--tag", "second", "--meta", "loss=0.5"]);
    ckpt(folder, &["tag", "latest", "--add", "third"]);
    read_and_compare(&python, folder, "first");

    // Only packs and second copies are left.
    let repository = folder.join("repository");
    for object in ["snapshots", "tags"].iter().flat_map(|name| objects(&repository, name)) {
        damage(&object, 20);
    }
    damage(&repository.join("config/0"), 9);
    fs::remove_file(repository.join("config/1")).expect("removed");
    fs::remove_dir_all(repository.join("index")).expect("removed");
    read_and_compare(&python, folder, "second");
}

#[test]
fn a_reader_written_from_the_description_reads_the_first_version() {
    let Some(python) = python() else { return };
    let world = tempfile::tempdir().expect("a folder for the test");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/repository");
    read_with(&python, &repository, &world.path().join("restored"), None);
}

#[test]
fn a_reader_written_from_the_description_restores_an_encrypted_repository() {
    let Some(python) = python() else { return };
    let world = tempfile::tempdir().expect("a folder for the test");
    let (folder, source) = (world.path(), world.path().join("data"));
    fs::create_dir(&source).expect("a folder");
    make_source(&source);
    let location = folder.join("repository").to_str().expect("text").to_owned();
    let storage = ckpt::storage::create(&location).expect("a folder");
    init_encrypted(storage.as_ref(), &runs::init_options(&location, 1 << 20));
    let repo = || Repo::open_with(&location, &Cache::Memory, &KeysOf(Role::Admin), &Silent).expect("opens");
    runs::backup(&repo(), &source, 2).expect("backs up");
    fs::write(source.join("many/file 3"), b"changed").expect("a file");
    let report = runs::backup(&repo(), &source, 2).expect("backs up");
    assert!(report.problems.is_empty() && report.snapshot.is_some());
    let bundle = folder.join("bundle");
    for role in [Role::Admin, Role::Read] {
        let all = keys::bundle(repo().id()).expect("made here");
        let keys = Bundle::derive(all.master.as_ref().expect("an admin has it"), 1, role, all.config_hash);
        fs::write(&bundle, &*keys.encode().expect("small")).expect("a file");
        let target = folder.join(role.name());
        read_with(&python, Path::new(&location), &target, Some(&bundle));
        compare(&source, &target);
    }
    // Only packs are left.
    fs::remove_dir_all(folder.join("repository/index")).expect("removed");
    let target = folder.join("packs-only");
    read_with(&python, Path::new(&location), &target, Some(&bundle));
    compare(&source, &target);
}

/// The objects of the folder and beneath, the largest last.
fn largest(folder: &Path) -> PathBuf {
    let found = walkdir::WalkDir::new(folder).into_iter().flatten().filter(|item| item.file_type().is_file());
    let largest = found.max_by_key(|item| item.metadata().map_or(0, |metadata| metadata.len()));
    largest.expect("an object").into_path()
}

#[test]
fn a_reader_written_from_the_description_opens_a_key_slot_and_reads_parity_quarantine_and_audit() {
    let Some(python) = python() else { return };
    let vault = Vault::new();
    vault.add("read");
    let (place, repository) = (&vault.place, vault.place.path("repository"));
    let first = vault.backup("admin");
    vault.succeed("admin", &["key", "rotate"]);
    fs::write(place.path("data/text"), noise(3, 400_000)).expect("a file");
    vault.backup("admin");
    vault.succeed("admin", &["forget", &first]);
    // One pack is beyond its parity, set aside, and its content stored again.
    let pack = largest(&repository.join("packs"));
    let bytes = fs::read(&pack).expect("a pack");
    fs::remove_file(&pack).expect("removed");
    fs::write(&pack, [&bytes[..bytes.len() / 4], &noise(1, bytes.len() / 2), &bytes[bytes.len() / 4 * 3..]].concat())
        .expect("written");
    expect(vault.with("admin", &["repair"]), 6);
    assert!(repository.join("quarantine").read_dir().expect("a folder").next().is_some(), "it is set aside");
    for key in ["admin", "read"] {
        let target = place.path(&format!("read-by-{key}"));
        let output = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_repository.py"))
            .args([repository.as_os_str(), OsStr::new("latest"), target.as_os_str(), OsStr::new("--key-file")])
            .arg(place.path(&format!("{key}.key")))
            .output()
            .expect("the interpreter starts");
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}{error}");
        assert!(out.contains("4 records of actions, 1 packs set aside"), "{out}");
        compare(&place.path("data"), &target);
    }
}
