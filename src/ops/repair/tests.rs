//! Repairs of small repositories, damaged in every way, with every help there is.

use super::*;
use crate::codec::seal::Key;
use crate::events::Silent;
use crate::ids::{ChunkId, RepositoryId};
use crate::ops::verify::{Subset, VerifyOptions, VerifyReport, verify};
use crate::repo::keys::{Bundle, NoKey, Role, Unlock};
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, TestKeys, noise, open, time, writer};
use crate::repo::transaction::Transaction;
use crate::repo::{condemned, names, quarantine, records};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use std::collections::{BTreeMap, BTreeSet};

const RESOURCES: Resources = Resources { threads: 1, memory_bytes: 1 << 24 };

fn options(from: &[&SimulatedStorage]) -> RepairOptions {
    RepairOptions {
        from: from.iter().map(|&storage| Arc::new(storage.clone()) as Arc<dyn Storage>).collect(),
        sources_of_host: None,
        read: ReadChoice::All,
        add_parity: false,
        dry_run: false,
        resources: RESOURCES,
        now: time(2000),
        writer: writer(),
        actor: Actor::of_this_process(),
    }
}

fn run(storage: &SimulatedStorage, options: &RepairOptions) -> Result<RepairReport> {
    run_with(storage, options, &TestKeys { role: Role::Admin })
}

fn run_with(storage: &SimulatedStorage, options: &RepairOptions, keys: &dyn Unlock) -> Result<RepairReport> {
    let mut mended = mend_parameters(storage, &options.from, keys, options.dry_run)?;
    let cache = crate::repo::Cache::Memory;
    let repo = Repo::open_storage_with(Arc::new(storage.clone()), &cache, keys, &Silent)?;
    let mut report = repair(&repo, options, &Silent)?;
    mended.append(&mut report.mended);
    Ok(RepairReport { mended, ..report })
}

fn verified(storage: &SimulatedStorage) -> VerifyReport {
    let options = VerifyOptions { read_data: Some(Subset::All), resources: RESOURCES, now: time(3000) };
    verify(&open(storage), &options, &Silent).expect("verifies")
}

/// The keys of sealed repositories of one kind, whatever stands in `config/`.
#[derive(Clone, Copy)]
struct Held {
    role: Role,
    config_hash: [u8; 32],
}

impl Unlock for Held {
    fn is_given(&self) -> bool {
        true
    }

    fn unlock(&self, _: &dyn Storage, _: RepositoryId) -> Result<Bundle> {
        Ok(Bundle::derive(&Key::from_bytes([6; 32]), 1, self.role, self.config_hash))
    }
}

/// A repository with every kind of object, and the files that it was made of.
struct World {
    storage: SimulatedStorage,
    /// The keys, if everything is sealed.
    held: Option<Held>,
    folder: tempfile::TempDir,
    saved: Vec<Snapshot>,
}

type File = (SnapshotIdText, String);
type SnapshotIdText = String;

impl World {
    fn new(parity: bool) -> World {
        World::on(test_support::storage_of([5; 16], parity, Some([7; 32])))
    }

    fn sealed(parity: bool) -> World {
        World::on(test_support::storage_of([5; 16], parity, None))
    }

    fn on(storage: SimulatedStorage) -> World {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let read = crate::repo::config::read(&storage).expect("just made");
        let held = read.config.is_encrypted().then_some(Held { role: Role::Admin, config_hash: read.body_hash });
        let mut world = World { storage, held, folder, saved: Vec::new() };
        let files = world.files();
        world.save(1, &files[..2]);
        world.save(2, &files);
        let repo = open(&world.storage);
        let gone = test_support::save(&repo, 3, &[("gone", Node::File(noise(9, 5000)))]);
        records::create_forgotten(&repo, gone.id, time(4), audit::AuditHead::NONE).expect("marked");
        records::create_tags(&repo, world.saved[0].id, 1, &["best".to_owned()].into()).expect("tagged");
        let open_id = crate::ids::SnapshotId::from_bytes([9; 16]);
        records::create_transaction(&repo, open_id, &writer()).expect("open");
        let dead = PackId::from_bytes([4; 32]);
        condemned::create_list(&repo, 1, &[dead], &writer(), time(4)).expect("condemned");
        condemned::create_end(&repo, 1, &[dead], time(4)).expect("ended");
        let report = verified(&world.storage);
        assert_eq!((report.damage, report.packs_read), (vec![], report.packs_total));
        world
    }

    fn run(&self, storage: &SimulatedStorage, options: &RepairOptions) -> Result<RepairReport> {
        match &self.held {
            None => run(storage, options),
            Some(held) => run_with(storage, options, held),
        }
    }

    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("big", noise(1, 90_000)),
            ("text", b"some words, again and again. ".repeat(700)),
            ("new", noise(4, 20_000)),
        ]
    }

    fn root(&self) -> String {
        self.folder.path().to_str().expect("text").to_owned()
    }

    fn save(&mut self, seconds: i64, files: &[(&'static str, Vec<u8>)]) {
        for (name, bytes) in files {
            std::fs::write(self.folder.path().join(name), bytes).expect("a file");
        }
        let nodes: Vec<_> = files.iter().map(|(name, bytes)| (*name, Node::File(bytes.clone()))).collect();
        let root = self.root();
        let saved = test_support::save_roots(&open(&self.storage), seconds, &[(root.as_str(), nodes.as_slice())]);
        self.saved.push(saved);
    }

    /// Files of the first two snapshots that cannot be read whole from `storage`; none of them ever has wrong content.
    fn unreadable(&self, storage: &SimulatedStorage, why: &str) -> BTreeSet<File> {
        let repo = open(storage);
        let files: BTreeMap<_, _> = self.files().into_iter().collect();
        let mut bad = BTreeSet::new();
        for (snapshot, names) in self.saved.iter().zip([["big", "text"].as_slice(), &["big", "text", "new"]]) {
            let frames = crate::repo::frame_cache::FrameCache::new(&repo);
            let fetch = |id| frames.read(id);
            let mut found = BTreeSet::new();
            for entry in repo.entries(&fetch, snapshot.tree) {
                let Ok(entry) = entry else { break };
                let Some(content) = entry.content else { continue };
                let name = String::from_utf8_lossy(&entry.path).into_owned();
                let read: Result<Vec<Vec<u8>>> =
                    repo.content_chunks(&fetch, content).map(|child| fetch(child?.id)).collect();
                if let Ok(bytes) = read {
                    assert!(bytes.concat() == files[name.as_str()], "{why}: {name} is wrong");
                    found.insert(name);
                }
            }
            let missing = names.iter().filter(|name| !found.contains(**name));
            bad.extend(missing.map(|name| (snapshot.id.to_hex(), (*name).to_owned())));
        }
        bad
    }
}

/// Files that a report says are lost. Where a part of the list of files is, all files of the snapshot.
fn hit(world: &World, damage: &[Damage]) -> BTreeSet<File> {
    let mut files = BTreeSet::new();
    for (snapshot, path) in damage.iter().flat_map(|d| &d.files) {
        let path = String::from_utf8_lossy(path).into_owned();
        let held = if *snapshot == world.saved[0].id { &["big", "text"][..] } else { &["big", "text", "new"] };
        let name = path.strip_prefix(&format!("{}/", world.root())).unwrap_or_default();
        let names = held.iter().filter(|held| name.is_empty() || name == **held);
        files.extend(names.map(|name| (snapshot.to_hex(), (*name).to_owned())));
    }
    files
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Delete,
    Empty,
    Halve,
    LoseOneByte,
    Flip,
    Append,
    SwapWithNext,
    TakeAnothers,
}

const ACTIONS: [Action; 8] = [
    Action::Delete,
    Action::Empty,
    Action::Halve,
    Action::LoseOneByte,
    Action::Flip,
    Action::Append,
    Action::SwapWithNext,
    Action::TakeAnothers,
];

impl Action {
    /// False if it cannot be done to this object, or nobody could notice it.
    fn apply(self, storage: &SimulatedStorage, name: &ObjectName, others: &SimulatedStorage) -> bool {
        let folder = |name: &ObjectName| name.as_str().split('/').next().map(str::to_owned);
        let objects = storage.objects();
        let bytes = &objects[name];
        match self {
            Action::Delete => {
                let folder = folder(name).unwrap_or_default();
                let is_noticed = [names::CONFIG, names::PACKS, names::INDEX].contains(&folder.as_str());
                is_noticed && storage.remove(name)
            }
            Action::Empty => storage.truncate(name, 0),
            Action::Halve => storage.truncate(name, bytes.len() / 2),
            Action::LoseOneByte => storage.truncate(name, bytes.len() - 1),
            Action::Flip => storage.corrupt(name, bytes.len() / 3, 8),
            Action::Append => {
                storage.insert(name.clone(), [bytes.as_slice(), b"and more"].concat());
                true
            }
            Action::SwapWithNext => {
                let next = objects.iter().find(|(other, _)| *other > name && folder(other) == folder(name));
                let Some((next, theirs)) = next else { return false };
                storage.insert(name.clone(), theirs.clone());
                storage.insert(next.clone(), bytes.clone());
                true
            }
            Action::TakeAnothers => {
                let theirs = others.objects().into_iter().find(|(other, _)| folder(other) == folder(name));
                let Some((_, theirs)) = theirs else { return false };
                storage.insert(name.clone(), theirs);
                true
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Help {
    Nothing,
    Parity,
    Copy,
    Sources,
}

/// Another repository with the same kinds of objects, and, if it is sealed, with the same keys.
fn others_of(chunker_key: Option<[u8; 32]>) -> SimulatedStorage {
    let storage = test_support::storage_of([6; 16], true, chunker_key);
    let repo = open(&storage);
    let saved = test_support::save(&repo, 1, &[("other", Node::File(noise(77, 50_000)))]);
    records::create_forgotten(&repo, saved.id, time(4), audit::AuditHead::NONE).expect("marked");
    storage
}

fn others() -> SimulatedStorage {
    others_of(Some([8; 32]))
}

/// Damages one object, repairs, and holds the report against what is there; true if all was mended.
fn assert_repair(
    world: &World,
    name: &ObjectName,
    action: Action,
    help: Help,
    others: &SimulatedStorage,
) -> Option<bool> {
    let why = format!("{action:?} of {name} with {help:?}");
    let copy = world.storage.copy();
    let storage = world.storage.copy();
    if !action.apply(&storage, name, others) {
        return None;
    }
    let from: &[&SimulatedStorage] = if help == Help::Copy { &[&copy] } else { &[] };
    let mut options = options(from);
    options.sources_of_host = (help == Help::Sources).then(|| "here".to_owned());
    let dry = RepairOptions { dry_run: true, ..options.clone() };
    let before = storage.objects();
    let promised = world.run(&storage, &dry);
    assert!(storage.objects() == before, "{why}: a dry run changes nothing");
    let report = world.run(&storage, &options).unwrap_or_else(|e| panic!("{why}: {e}"));
    match promised {
        Ok(promised) => {
            assert_eq!(promised.left_count, report.left_count, "{why}: {promised:?} {report:?}");
            assert_eq!(promised.mended.len(), report.mended.len(), "{why}: {promised:?} {report:?}");
        }
        Err(error) => assert!(name.as_str().starts_with("config/") && action == Action::TakeAnothers, "{why}: {error}"),
    }

    let unreadable = world.unreadable(&storage, &why);
    let snapshot_is_lost = report.left.iter().any(|d| d.object.starts_with("snapshots/"));
    if !snapshot_is_lost {
        assert_eq!(hit(world, &report.left), unreadable, "{why}: {report:?}");
    }
    let checked = verified(&storage);
    assert_eq!(checked.damage_count == 0, report.left_count == 0, "{why}: {report:?} {:?}", checked.damage);
    let again = world.run(&storage, &options).unwrap_or_else(|e| panic!("{why}: {e}"));
    assert_eq!((again.mended, again.left_count), (vec![], report.left_count), "{why}, again: {:?}", again.left);

    // The next backup of the same stores again whatever is lost.
    let repo = open(&storage);
    if condemned::Condemned::read(&repo).is_ok() {
        let files = world.files();
        let nodes: Vec<_> = files.iter().map(|(name, bytes)| (*name, Node::File(bytes.clone()))).collect();
        let root = world.root();
        let saved = test_support::save_roots(&repo, 9, &[(root.as_str(), nodes.as_slice())]);
        let contents = test_support::contents(&open(&storage), &saved).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert!(files.iter().all(|(name, bytes)| contents[*name] == *bytes), "{why}");
        // It serves every snapshot; only a list of files that no backup makes again stays lost, that of the first.
        let is_first = |id: &crate::ids::SnapshotId| *id == world.saved[0].id;
        let mut hit = report.left.iter().flat_map(|d| &d.files);
        let list_is_lost = hit.any(|(id, path)| is_first(id) && path.is_empty());
        let first = world.saved[0].id.to_hex();
        let left = world.unreadable(&storage, &why);
        assert!(left.iter().all(|(id, _)| *id == first && list_is_lost), "{why}: {left:?} {report:?}");
        let healed = world.run(&storage, &options).unwrap_or_else(|e| panic!("{why}: {e}"));
        assert!(list_is_lost || healed.left.iter().all(|d| !d.object.starts_with("packs/")), "{why}: {healed:?}");
    }
    if help == Help::Copy && !report.mended.is_empty() && name.as_str().starts_with("packs/") {
        assert!(storage.objects()[name] == world.storage.objects()[name], "{why}: what was written is back");
    }
    Some(report.left_count == 0)
}

#[test]
fn every_damage_to_every_object_with_every_help_is_mended_or_named() {
    let others = others();
    for help in [Help::Nothing, Help::Parity, Help::Copy, Help::Sources] {
        let world = World::new(help == Help::Parity);
        let mut counts: BTreeMap<String, [u32; 2]> = BTreeMap::new();
        for name in world.storage.names() {
            for action in ACTIONS {
                if let Some(is_whole) = assert_repair(&world, &name, action, help, &others) {
                    let folder = name.as_str().split('/').next().unwrap_or_default().to_owned();
                    counts.entry(folder).or_default()[usize::from(is_whole)] += 1;
                }
            }
        }
        let left = |folder: &str| counts.get(folder).map_or(0, |c| c[0]);
        let mended = |folder: &str| counts.get(folder).map_or(0, |c| c[1]);
        assert_eq!((left("config"), left("index"), left("history"), left("forgotten")), (0, 0, 0, 0), "{counts:?}");
        assert!(mended("packs") > 0, "{counts:?}");
        match help {
            Help::Nothing => assert!(left("packs") > mended("packs") && left("snapshots") > 0, "{counts:?}"),
            Help::Parity => assert!(left("parity") == 0 && mended("parity") > 20, "{counts:?}"),
            Help::Copy => assert!(counts.values().all(|c| c[0] == 0), "{counts:?}"),
            Help::Sources => assert!(mended("packs") > left("packs"), "{counts:?}"),
        }
    }
}

#[test]
fn every_damage_to_a_sealed_repository_is_mended_or_named() {
    let others = others_of(None);
    let actions =
        [Action::Delete, Action::Halve, Action::Flip, Action::Append, Action::SwapWithNext, Action::TakeAnothers];
    for help in [Help::Nothing, Help::Parity, Help::Copy] {
        let world = World::sealed(help == Help::Parity);
        let mut left: BTreeMap<String, u32> = BTreeMap::new();
        let mut mended = 0;
        for name in world.storage.names() {
            for action in actions {
                match assert_repair(&world, &name, action, help, &others) {
                    Some(true) => mended += 1,
                    Some(false) => {
                        *left.entry(name.as_str().split('/').next().unwrap_or_default().to_owned()).or_default() += 1;
                    }
                    None => {}
                }
            }
        }
        let left = |folder: &str| left.get(folder).copied().unwrap_or(0);
        assert!(mended > 30 && left("config") + left("index") + left("history") + left("parity") == 0, "{help:?}");
        match help {
            Help::Copy => assert_eq!(left("packs") + left("snapshots") + left("forgotten"), 0),
            // A marker that nobody with a key has made is not made genuine.
            _ => assert!(left("packs") > 0 && left("snapshots") > 0 && left("forgotten") == 1, "{help:?}"),
        }
    }
}

/// A sealed repository with something of everything that a repair mends.
fn sealed_and_hurt() -> (World, SimulatedStorage) {
    let world = World::sealed(false);
    let storage = world.storage.copy();
    assert!(storage.remove(&names::config(1).expect("a name")));
    let first = |folder: &str| {
        let found = storage.names().into_iter().find(|name| name.as_str().starts_with(folder));
        found.expect("one of each")
    };
    assert!(storage.corrupt(&first("snapshots/"), 30, 1) && storage.corrupt(&first("index/"), 100, 1));
    assert!(storage.corrupt(&first("packs/"), 300, 1));
    (world, storage)
}

#[test]
fn a_key_of_a_lesser_role_repairs_nothing_and_changes_nothing() {
    let (world, storage) = sealed_and_hurt();
    let before = storage.objects();
    let held = world.held.expect("sealed");
    for role in [Role::Put, Role::Read, Role::Prune] {
        for dry_run in [true, false] {
            let options = RepairOptions { dry_run, ..options(&[]) };
            let refused = run_with(&storage, &options, &Held { role, ..held }).expect_err("not an admin");
            assert!(refused.kind() == Kind::WrongKey && refused.hint().is_some(), "{role:?}: {refused}");
            assert!(refused.to_string().contains(role.name()), "{role:?}: {refused}");
            let repo = test_support::open_as(&storage, role).expect("opens");
            let refused = repair(&repo, &options, &Silent).expect_err("not an admin");
            assert_eq!(refused.kind(), Kind::WrongKey, "{role:?}: {refused}");
            assert!(storage.objects() == before, "{role:?} has changed something");
        }
    }
    assert_eq!(run_with(&storage, &options(&[]), &NoKey).expect_err("no key").kind(), Kind::WrongKey);
    assert!(storage.objects() == before);
    assert!(world.run(&storage, &options(&[])).expect("an admin repairs").mended.len() >= 3);
}

#[test]
fn an_admin_without_the_newest_keys_sets_nothing_aside() {
    let world = World::sealed(false);
    let newer = Bundle::derive(&Key::from_bytes([6; 32]), 2, Role::Admin, world.held.expect("sealed").config_hash);
    struct Newer(Bundle);
    impl Unlock for Newer {
        fn is_given(&self) -> bool {
            true
        }
        fn unlock(&self, _: &dyn Storage, _: RepositoryId) -> Result<Bundle> {
            Ok(self.0.clone())
        }
    }
    let storage = world.storage.copy();
    let cache = crate::repo::Cache::Memory;
    let repo = Repo::open_storage_with(Arc::new(storage.clone()), &cache, &Newer(newer.clone()), &Silent);
    test_support::save(&repo.expect("opens"), 9, &[("later", Node::File(noise(31, 9000)))]);
    let before = storage.objects();
    let error = world.run(&storage, &options(&[])).expect_err("there are newer keys");
    assert!(error.kind() == Kind::WrongKey && storage.objects() == before, "{error}");
    let report = run_with(&storage, &options(&[]), &Newer(newer)).expect("nothing is damaged");
    assert_eq!((report.mended, report.left_count), (vec![], 0));
}

#[test]
fn chunks_come_from_a_sealed_copy_that_has_them_in_other_packs() {
    let storage = test_support::encrypted_storage();
    let file = noise(1, 30_000);
    let saved = test_support::save(&open(&storage), 1, &[("a", Node::File(file.clone()))]);
    let copy = storage.copy();
    let packs = open(&storage).index().packs().expect("known");
    for pack in packs.iter().filter(|pack| pack.kind == crate::repo::pack::PackKind::Data) {
        let name = names::pack(pack.id).expect("a name");
        assert!(storage.truncate(&name, 200) && copy.remove(&name));
    }
    test_support::save(&open(&copy), 2, &[("b", Node::File(file.clone()))]);
    let report = run(&storage, &options(&[&others_of(None), &copy])).expect("repairs");
    assert!(report.left_count == 0 && report.chunks_from_copies > 3, "{report:?}");
    assert_eq!(test_support::contents(&open(&storage), &saved).expect("sound")["a"], file);
    assert_eq!(verified(&storage).damage, []);
}

#[test]
fn the_parameters_of_a_sealed_repository_are_told_by_its_keys() {
    let world = World::sealed(false);
    let plain = test_support::storage_of([5; 16], false, Some([7; 32])).objects();
    let config = |n| names::config(n).expect("a name");
    let replaced = |count| {
        let storage = world.storage.copy();
        (0..count).for_each(|n| storage.insert(config(n), plain[&config(n)].clone()));
        storage
    };
    for count in [1, 2] {
        let storage = replaced(count);
        let before = storage.objects();
        let refused = run_with(&storage, &options(&[]), &NoKey).expect_err("it is sealed");
        assert!(refused.kind() == Kind::WrongKey && storage.objects() == before, "{refused}");
        let report = world.run(&storage, &options(&[])).expect("repairs");
        assert_eq!((report.mended.len(), report.left_count), (usize::from(count), 0), "{report:?}");
        assert!((0..3).all(|n| storage.objects()[&config(n)] == world.storage.objects()[&config(n)]));
    }
    let storage = replaced(3);
    let before = storage.objects();
    let refused = world.run(&storage, &options(&[])).expect_err("nothing is left of the right ones");
    assert!(refused.kind() == Kind::WrongKey && storage.objects() == before, "{refused}");
    assert_eq!(world.run(&storage, &options(&[&world.storage])).expect("repairs").mended.len(), 3);
}

/// Several things damaged at once, and a copy that mends all of them but one chunk that only a file still holds.
fn ruined() -> (World, SimulatedStorage, RepairOptions) {
    let world = World::new(false);
    let storage = world.storage.copy();
    let repo = open(&storage);
    let lost = ChunkId::of(&noise(4, 20_000)[..test_support::CHUNK_BYTES]);
    let lost_home = repo.index().homes(&[lost]).expect("an index")[0][0];
    let lost_name = names::pack(lost_home.pack).expect("a name");
    let copy = world.storage.copy();
    for storage in [&storage, &copy] {
        assert!(storage.corrupt(&lost_name, lost_home.frame_offset as usize + 100, 1));
    }
    let mut packs = 0;
    for name in storage.names() {
        let is_other_pack = names::pack_id(&name).is_some() && name != lost_name;
        packs += usize::from(is_other_pack);
        match name.as_str().split('/').next().unwrap_or_default() {
            names::PACKS if is_other_pack && packs == 1 => assert!(storage.remove(&name)),
            names::PACKS if is_other_pack && packs == 2 => assert!(storage.truncate(&name, 300)),
            names::INDEX => assert!(storage.corrupt(&name, 100, 1)),
            names::SNAPSHOTS | names::TAGS => assert!(storage.truncate(&name, 30)),
            names::CONFIG if name.as_str() != "config/1" => assert!(storage.remove(&name)),
            names::FORGOTTEN | names::CONDEMNED => assert!(storage.corrupt(&name, 20, 1)),
            _ => {}
        }
    }
    let options = RepairOptions { sources_of_host: Some("here".to_owned()), ..options(&[&copy]) };
    (world, storage, options)
}

#[test]
fn a_repair_killed_at_any_step_makes_nothing_worse_and_is_finished_by_the_next() {
    let (world, ruined, options) = ruined();
    let storage = ruined.copy();
    let report = run(&storage, &options).expect("repairs");
    assert_eq!((report.left_count, report.chunks_from_sources > 0), (0, true), "{report:?}");
    assert!(world.unreadable(&storage, "whole").is_empty());
    let steps = storage.steps();
    let is_change =
        |operation| !matches!(operation, Operation::Read | Operation::ReadRange | Operation::List | Operation::Size);
    let calls = storage.calls();
    let mut cuts = 0;
    for step in 0..steps {
        let storage = ruined.copy();
        let before = world_readable(&world, &storage);
        storage.crash_at(step);
        if run(&storage, &options).is_ok() {
            continue;
        }
        // Between two reads nothing can be lost.
        if !calls.get(step as usize).is_some_and(|call| is_change(call.operation)) && step % 16 != 0 {
            continue;
        }
        for seed in 0..2 {
            let after = storage.after_power_cut(step * 2 + seed);
            let why = format!("killed at step {step} of {steps}, seed {seed}");
            assert!(world_readable(&world, &after).is_superset(&before), "{why}");
            let report = run(&after, &options).unwrap_or_else(|e| panic!("{why}: {e}"));
            assert_eq!(report.left_count, 0, "{why}: {report:?}");
            assert!(world.unreadable(&after, &why).is_empty(), "{why}");
            assert_eq!(verified(&after).damage, [], "{why}");
            cuts += 1;
        }
    }
    assert!(cuts > 100, "{cuts}");
}

/// What can be read of the world's files, as far as the repository can be opened.
fn world_readable(world: &World, storage: &SimulatedStorage) -> BTreeSet<File> {
    let all = world.saved.iter().flat_map(|s| ["big", "text", "new"].map(|name| (s.id.to_hex(), name.to_owned())));
    let unreadable = world.unreadable(storage, "any time");
    all.filter(|file| !unreadable.contains(file)).collect()
}

#[test]
fn a_repair_without_room_says_so_and_makes_nothing_worse() {
    let (world, ruined, options) = ruined();
    let before = world_readable(&world, &ruined);
    for write in 0..40 {
        let storage = ruined.copy();
        storage.fail(write..u64::MAX, |operation, _| operation == Operation::Write, Fault::Error(Kind::NoSpace));
        match run(&storage, &options) {
            Ok(report) => return assert!(write > 10 && report.left_count == 0),
            Err(error) => assert_eq!(error.kind(), Kind::NoSpace, "{error}"),
        }
        assert!(world_readable(&world, &storage).is_superset(&before), "{write}");
        storage.heal();
        assert_eq!(run(&storage, &options).expect("repairs").left_count, 0, "{write}");
    }
    panic!("more writes than there can be");
}

#[test]
fn an_unreadable_list_without_an_end_is_ended_as_abandoned() {
    let world = World::new(false);
    let storage = world.storage.copy();
    let repo = open(&storage);
    let name = names::condemned(2).expect("a name");
    let pack = repo.index().packs().expect("known")[0].id;
    condemned::create_list(&repo, 2, &[pack], &writer(), time(5)).expect("condemned");
    assert!(storage.truncate(&name, 10));
    assert!(Transaction::begin(&repo, &writer()).is_err(), "what is condemned is not known");
    let report = run(&storage, &options(&[])).expect("repairs");
    assert!(report.left_count == 1 && report.left[0].object == name.as_str(), "{report:?}");
    assert!(report.left[0].files.is_empty());
    Transaction::begin(&repo, &writer()).expect("begins").abandon().expect("ended");
}

#[test]
fn packs_that_come_back_are_released_and_parity_is_added_where_asked() {
    let world = World::new(false);
    let storage = world.storage.copy();
    let name = storage.names().into_iter().find(|name| names::pack_id(name).is_some()).expect("a pack");
    let pack = names::pack_id(&name).expect("a pack");
    assert!(storage.corrupt(&name, 70, 1));
    let set_aside = run(&storage, &options(&[])).expect("repairs");
    assert_eq!((set_aside.packs_set_aside, quarantine::ids(&storage).expect("lists")), (1, vec![pack]));
    storage.insert(name.clone(), world.storage.objects()[&name].clone());
    let report = run(&storage, &RepairOptions { add_parity: true, ..options(&[]) }).expect("repairs");
    assert_eq!(report.mended, [Mended { object: name.to_string(), means: Means::Released }]);
    assert_eq!((report.left_count, report.packs_set_aside), (0, 0));
    let packs = storage.names().iter().filter(|name| names::pack_id(name).is_some()).count() as u64;
    assert_eq!(report.parity_added, packs);
    assert!(storage.corrupt(&name, 70, 1));
    let report =
        run(&storage, &RepairOptions { read: ReadChoice::Packs(vec![pack.to_hex()[..8].to_owned()]), ..options(&[]) });
    let report = report.expect("repairs");
    assert_eq!(report.mended, [Mended { object: name.to_string(), means: Means::Parity }]);
    assert_eq!((report.packs_read, verified(&storage).damage), (1, vec![]));
    let unknown = RepairOptions { read: ReadChoice::Packs(vec!["ffffffff".to_owned()]), ..options(&[]) };
    assert_eq!(run(&storage, &unknown).expect_err("no such pack").kind(), Kind::NotFound);
}

#[test]
fn parameters_of_another_repository_are_told_by_the_packs() {
    let world = World::new(false);
    let others = others();
    let config = |n| names::config(n).expect("a name");
    for replaced in [vec![0], vec![0, 1], vec![2]] {
        let storage = world.storage.copy();
        for &n in &replaced {
            storage.insert(config(n), others.objects()[&config(n)].clone());
        }
        let report = run(&storage, &options(&[])).expect("repairs");
        assert_eq!((report.mended.len(), report.left_count), (replaced.len(), 0), "{report:?}");
        assert!((0..3).all(|n| storage.objects()[&config(n)] == world.storage.objects()[&config(0)]));
    }
    // Without any here, those of a copy: if it is a copy.
    let storage = world.storage.copy();
    (0..3).for_each(|n| assert!(storage.remove(&config(n))));
    assert_eq!(run(&storage, &options(&[])).expect_err("none").kind(), Kind::NoRepository);
    assert_eq!(run(&storage, &options(&[&others])).expect_err("another's").kind(), Kind::NoRepository);
    assert_eq!(run(&storage, &options(&[&others, &world.storage])).expect("repairs").left_count, 0);
}

/// A prune that leaves nothing unused and deletes at once.
fn pruned(storage: &SimulatedStorage) -> Result<crate::ops::prune::PruneReport> {
    use crate::ops::prune::{MaxUnused, PruneOptions, prune};
    let options = PruneOptions {
        dry_run: false,
        max_unused: MaxUnused::Bytes(0),
        resources: RESOURCES,
        now: time(5000),
        writer: crate::repo::records::WriterRecord { process: 4_000_000, ..writer() },
        assume_alone: true,
        delete_delay: std::time::Duration::ZERO,
        silence: std::time::Duration::ZERO,
    };
    prune(&open(storage), &options, &Silent)
}

#[test]
fn prune_deletes_what_was_set_aside_once_nothing_needs_it() {
    let world = World::new(false);
    let others = others();
    let options = RepairOptions { sources_of_host: Some("here".to_owned()), ..options(&[]) };
    let is_data = |storage: &SimulatedStorage, name: &ObjectName| {
        let known = open(storage).index().packs().expect("known");
        let kind = known.iter().find(|p| Some(p.id) == names::pack_id(name)).map(|p| p.kind);
        kind == Some(crate::repo::pack::PackKind::Data)
    };
    let mut done = 0;
    for name in world.storage.names().into_iter().filter(|name| names::pack_id(name).is_some()) {
        for action in [Action::Flip, Action::Delete, Action::Halve, Action::TakeAnothers] {
            let storage = world.storage.copy();
            assert!(action.apply(&storage, &name, &others));
            let why = format!("{action:?} of {name}");
            let report = run(&storage, &options).unwrap_or_else(|e| panic!("{why}: {e}"));
            let result = pruned(&storage);
            assert_eq!(result.is_ok(), report.left_count == 0, "{why}: {result:?} {report:?}");
            assert!(report.left_count == 0 || !is_data(&world.storage, &name), "{why}: the files are there");
            if result.is_ok() {
                assert!(world.unreadable(&storage, &why).is_empty(), "{why}");
                assert!(!storage.names().contains(&name), "{why}");
                assert!(quarantine::ids(&storage).expect("lists").is_empty(), "{why}");
                let checked = verified(&storage);
                assert_eq!((checked.damage, checked.packs_quarantined), (vec![], 0), "{why}");
                done += 1;
            }
        }
    }
    assert!(done >= 8, "{done}");
}

#[test]
fn what_is_sound_in_a_pack_that_is_set_aside_is_kept_by_prune() {
    let world = World::new(false);
    let storage = world.storage.copy();
    let id = ChunkId::of(&noise(1, 90_000)[..test_support::CHUNK_BYTES]);
    let home = open(&storage).index().homes(&[id]).expect("an index")[0][0];
    let name = names::pack(home.pack).expect("a name");
    assert!(storage.corrupt(&name, home.frame_offset as usize + 20, 1));
    assert_eq!(run(&storage, &options(&[])).expect("repairs").left_count, 1);
    let lost = world.unreadable(&storage, "one frame is bad");
    assert!(pruned(&storage).is_err() && storage.names().contains(&name));
    // A backup stores again what it meets of it, here only that one chunk; the rest has no other home.
    let repo = open(&storage);
    let saved = test_support::save(
        &repo,
        9,
        &[("front", Node::File(noise(1, 90_000)[..10 * test_support::CHUNK_BYTES].to_vec()))],
    );
    assert!(!lost.is_empty() && world.unreadable(&storage, "stored again").is_empty());
    pruned(&storage).expect("prunes");
    assert!(world.unreadable(&storage, "after a prune").is_empty());
    test_support::contents(&open(&storage), &saved).expect("sound");
    assert!(!storage.names().contains(&name), "copied out of it, it is gone");
    assert_eq!(verified(&storage).damage, []);
}
