//! Damage between runs, to packs, index objects and this host's cache: the next run stores again or makes anew what is lost.

use crate::support::keys::KeysOf;
use crate::support::runs::{self, contents};
use crate::support::trees::Tree;
use crate::support::world::{World, assert_backed_up, plain_backup};
use crate::support::{Chance, disk_folder, noise, quick_folder, seed};
use ckpt::events::Silent;
use ckpt::ops::prune::prune;
use ckpt::repo::keys::Role;
use ckpt::repo::{Cache, Repo};
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::SimulatedStorage;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What happens to an object.
#[derive(Debug, Clone, Copy)]
enum Action {
    Remove,
    Empty,
    Halve,
    LoseOneByte,
}

impl Action {
    const ALL: [Action; 4] = [Action::Remove, Action::Empty, Action::Halve, Action::LoseOneByte];

    fn apply(self, storage: &SimulatedStorage, name: &ObjectName) {
        let bytes = storage.objects()[name].len();
        let happened = match self {
            Action::Remove => storage.remove(name),
            Action::Empty => storage.truncate(name, 0),
            Action::Halve => storage.truncate(name, bytes / 2),
            Action::LoseOneByte => storage.truncate(name, bytes - 1),
        };
        assert!(happened, "{name} is there");
    }
}

/// What happens to the source between the damage and the next backup.
const CHANGES: [&str; 4] = ["nothing", "a file is changed", "a file is new", "a file is gone"];

fn change(source: &Path, change: &str) {
    match change {
        "a file is changed" => fs::write(source.join("sub/b"), noise(30, 80_000)).expect("a file"),
        "a file is new" => fs::write(source.join("d"), noise(31, 60_000)).expect("a file"),
        "a file is gone" => fs::remove_file(source.join("a")).expect("removed"),
        _ => {}
    }
}

#[test]
fn the_backup_after_any_damage_to_packs_or_index_stores_again_what_is_lost() {
    let objects = {
        let world = World::new();
        let is_data = |name: &ObjectName| name.as_str().starts_with("packs/") || name.as_str().starts_with("index/");
        world.storage.names().into_iter().filter(is_data).count()
    };
    for later in CHANGES {
        for place in 0..objects {
            for action in Action::ALL {
                // Once with the index of before the damage, once with a new one.
                for with_old_index in [false, true] {
                    assert_damage_is_mended(later, place, action, with_old_index);
                }
            }
        }
    }
}

fn assert_damage_is_mended(later: &str, place: usize, action: Action, with_old_index: bool) {
    let world = World::new();
    let is_data = |name: &&ObjectName| name.as_str().starts_with("packs/") || name.as_str().starts_with("index/");
    let name = world.storage.names().iter().filter(is_data).nth(place).expect("as many as before").clone();
    let why = format!("{action:?} of {name}, {later}, old index: {with_old_index}");
    let old_repo = runs::open(&world.storage).expect("opens");
    action.apply(&world.storage, &name);
    change(&world.source(), later);
    let repo = if with_old_index { old_repo } else { runs::open(&world.storage).expect("opens") };
    let report = plain_backup(&repo, &world.source()).unwrap_or_else(|e| panic!("{why}: {e}"));
    let fresh = runs::open(&world.storage).expect("opens");
    assert_backed_up(&fresh, &report, &world.source(), &why);
    let target = quick_folder();
    let snapshot = report.snapshot.and_then(|id| fresh.snapshot(id)).expect("as above");
    let restored = runs::restore(&fresh, &snapshot, target.path()).unwrap_or_else(|e| panic!("{why}: {e}"));
    assert!(restored.damaged.is_empty() && restored.failed.is_empty(), "{why}: {restored:?}");
    Tree::read(target.path()).assert_is(&Tree::read(&world.source()), &why);
    if later == "nothing" {
        // Everything that the first snapshot needs was stored again on the way, its tree too.
        contents(&fresh, &world.saved.0).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(&world.saved.1, &why);
    }
}

#[test]
fn without_any_index_object_everything_is_found_in_the_packs() {
    let world = World::new();
    for with_old_index in [false, true] {
        let storage = world.storage.copy();
        let old_repo = runs::open(&storage).expect("opens");
        for name in storage.names().iter().filter(|name| name.as_str().starts_with("index/")) {
            assert!(storage.remove(name));
        }
        world.assert_saved(&storage, "no index objects");
        let repo = if with_old_index { old_repo } else { runs::open(&storage).expect("opens") };
        let report = plain_backup(&repo, &world.source()).expect("backs up");
        assert_eq!((report.bytes_new, report.bytes_read), (0, 0));
        if with_old_index {
            // It was opened before the loss; the next run that opens the repository lists the packs again.
            runs::save(&runs::open(&storage).expect("opens"), &world.source());
        }
        let listed = storage.names().iter().filter(|name| name.as_str().starts_with("index/")).count();
        assert_eq!(listed, 1, "the packs that are relied on are listed again");
        assert_backed_up(&runs::open(&storage).expect("opens"), &report, &world.source(), "no index objects");
    }
}

/// Ways to ruin the folder of an index cache.
const RUINS: [&str; 7] = ["keep", "delete", "empty", "garbage", "halve", "another version", "older state"];

fn ruin(cache: &Path, older: &Path, how: &str, chance: &mut Chance) {
    let files: Vec<PathBuf> = walk_files(cache);
    let database = files.iter().find(|file| file.extension().is_some_and(|e| e == "sqlite" || e == "db"));
    let database = database.or_else(|| files.first()).cloned();
    match (how, database) {
        ("delete", _) => {
            let _ = fs::remove_dir_all(cache);
        }
        ("empty", Some(file)) => fs::write(file, b"").expect("written"),
        ("garbage", Some(_)) => {
            for file in &files {
                let bytes = usize::try_from(fs::metadata(file).expect("a file").len()).expect("small");
                fs::write(file, noise(chance.below(1 << 40), bytes.max(100))).expect("written");
            }
        }
        ("halve", Some(file)) => {
            let bytes = fs::read(&file).expect("read");
            fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
        }
        ("another version", Some(file)) => {
            if let Ok(connection) = rusqlite::Connection::open(file) {
                let _ = connection.execute_batch("PRAGMA user_version = 99");
            }
        }
        ("older state", _) if older.is_dir() => {
            let _ = fs::remove_dir_all(cache);
            copy_folder(older, cache);
        }
        _ => {}
    }
}

fn walk_files(folder: &Path) -> Vec<PathBuf> {
    let found = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten();
    found.filter(|item| item.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    for file in walk_files(from) {
        let place = to.join(file.strip_prefix(from).expect("beneath"));
        fs::create_dir_all(place.parent().expect("a folder")).expect("folders");
        fs::copy(&file, place).expect("copied");
    }
}

#[test]
fn an_index_cache_that_is_lost_ruined_or_old_costs_nothing_but_time() {
    let mut chance = Chance(seed());
    for round in 0..12u64 {
        let world = World::new();
        let folder = disk_folder();
        let (cache, older) = (folder.path().join("cache"), folder.path().join("older"));
        let open = || {
            Repo::open_storage_with(
                Arc::new(world.storage.clone()),
                &Cache::Folder(cache.clone()),
                &KeysOf(Role::Admin),
                &Silent,
            )
        };
        let mut live = vec![world.saved.clone()];
        for step in 0..6u64 {
            let how = RUINS[chance.index(RUINS.len())];
            let why = format!("seed {}, round {round}, step {step}: {how}", seed());
            ruin(&cache, &older, how, &mut chance);
            let repo = open().unwrap_or_else(|e| panic!("{why}: {e}"));
            match chance.below(4) {
                0 => {
                    fs::write(world.source().join("x"), noise(chance.below(1000), 50_000)).expect("a file");
                    let report = plain_backup(&repo, &world.source()).unwrap_or_else(|e| panic!("{why}: {e}"));
                    assert_backed_up(&repo, &report, &world.source(), &why);
                    let saved = report.snapshot.and_then(|id| repo.snapshot(id)).expect("as above");
                    live.push((saved, Tree::read(&world.source())));
                }
                1 if live.len() > 1 => {
                    let gone = live.remove(chance.index(live.len()));
                    runs::forget(&repo, &gone.0).unwrap_or_else(|e| panic!("{why}: {e}"));
                }
                2 => {
                    prune(&repo, &runs::prune_options(), &Silent).unwrap_or_else(|e| panic!("{why}: {e}"));
                }
                _ => {
                    let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{why}: {e}"));
                    assert_eq!(verified.damage_count, 0, "{why}: {:?}", verified.damage);
                }
            }
            drop(repo);
            if step == 2 {
                copy_folder(&cache, &older);
            }
            let repo = open().unwrap_or_else(|e| panic!("{why}: opening again: {e}"));
            for (snapshot, wanted) in &live {
                let snapshot = repo.snapshot(snapshot.id).unwrap_or_else(|| panic!("{why}: a snapshot is gone"));
                contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}")).assert_is(wanted, &why);
            }
        }
    }
}
