//! Adding, rotating and removing keys, cut off at every step.

use super::*;
use crate::codec::stretch::SALT_BYTES;
use crate::repo::key_slots::Unlocked;
use crate::storage::simulated::SimulatedStorage;
use std::collections::BTreeSet;
use zeroize::Zeroizing;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([5; 16]);
const COST: Cost = Cost { memory_kib: 8192, passes: 1, lanes: 1 };
const SALT: [u8; SALT_BYTES] = [4; SALT_BYTES];

/// Secrets by their text: each is stretched once, however often it is tried.
struct Secrets(BTreeMap<&'static str, Secret>);

impl Secrets {
    fn new() -> Secrets {
        let secret = |text: &'static str| (text, Secret::new(Zeroizing::new(text.into())).expect("a secret"));
        Secrets(["admin", "second", "read", "put", "new"].map(secret).into())
    }

    fn unlock(&self, storage: &SimulatedStorage, text: &str) -> Option<Unlocked> {
        let slots = Slots::read(storage, REPOSITORY).expect("readable");
        let unlocked = slots.unlock(&self.0[text]).expect("nothing is damaged");
        unlocked.inspect(|unlocked| assert!(unlocked.damage.is_empty(), "{:?}", unlocked.damage))
    }

    fn new_secret(&self, text: &str) -> NewSecret<'_> {
        NewSecret { secret: &self.0[text], cost: None, now: FileTime { seconds: 1, nanoseconds: 0 } }
    }

    /// Does `work` as the admin with this secret.
    fn with<T>(&self, storage: &SimulatedStorage, text: &str, work: impl FnOnce(Admin<'_>) -> Result<T>) -> Result<T> {
        let Unlocked { slot, bundle, .. } = self.unlock(storage, text).expect("a key that opens");
        work(Admin { storage, repository: REPOSITORY, bundle: &bundle, slot, log: None })
    }

    /// The generations that a secret opens.
    fn numbers(&self, storage: &SimulatedStorage, text: &str) -> Option<BTreeSet<u32>> {
        Some(self.unlock(storage, text)?.bundle.generations.iter().map(|g| g.number).collect())
    }

    fn id(&self, storage: &SimulatedStorage, text: &str) -> SlotId {
        self.unlock(storage, text).expect("opens").slot
    }

    /// A repository's slots: two admins, a reader, a writer.
    fn storage(&self) -> SimulatedStorage {
        let storage = SimulatedStorage::new();
        let bundle = Bundle::derive(&Key::from_bytes([9; 32]), 1, Role::Admin, [3; 32]);
        for (text, role) in [("admin", Role::Admin), ("second", Role::Admin), ("read", Role::Read), ("put", Role::Put)]
        {
            let created = FileTime { seconds: 0, nanoseconds: 0 };
            let new = NewSlot { role, label: text.to_owned(), created, salt: SALT, cost: COST };
            key_slots::create(&storage, REPOSITORY, &bundle, &new, &self.0[text], None).expect("created");
        }
        storage
    }
}

#[test]
fn keys_are_added_removed_and_changed() {
    let (secrets, storage) = (Secrets::new(), Secrets::new().storage());
    let added = secrets.with(&storage, "admin", |admin| admin.add(Role::Prune, "cron", secrets.new_secret("new")));
    let added = added.expect("adds");
    assert_eq!((added.role, added.label.as_str(), added.standing), (Role::Prune, "cron", Some(Standing::Current)));
    assert_eq!((added.cost, added.is_in_use), (COST, false));
    assert_eq!(secrets.unlock(&storage, "new").expect("opens").bundle.role, Role::Prune);
    let again = secrets.with(&storage, "admin", |admin| admin.add(Role::Put, "", secrets.new_secret("read")));
    assert_eq!(again.expect_err("a key that opens already").kind(), Kind::Usage);
    for label in ["x".repeat(201), "a\nb".to_owned()] {
        let refused = secrets.with(&storage, "admin", |admin| admin.add(Role::Put, &label, secrets.new_secret("new")));
        assert_eq!(refused.expect_err("no label").kind(), Kind::Usage);
    }
    let removed = secrets.with(&storage, "second", |admin| admin.remove(&added.id.to_hex()[..6])).expect("removes");
    assert_eq!((removed.id, removed.role), (added.id, Role::Prune));
    assert!(secrets.unlock(&storage, "new").is_none());
    let changed = secrets.with(&storage, "admin", |admin| admin.change_secret(secrets.new_secret("new")));
    let changed = changed.expect("changes");
    assert_eq!((changed.label.as_str(), changed.role, changed.is_in_use), ("admin", Role::Admin, true));
    assert!(secrets.unlock(&storage, "admin").is_none() && secrets.unlock(&storage, "new").is_some());
}

#[test]
fn the_last_admin_cannot_be_removed_and_slots_are_named_clearly() {
    let (secrets, storage) = (Secrets::new(), Secrets::new().storage());
    let id = |text| secrets.id(&storage, text).to_hex();
    let remove = |prefix: &str| secrets.with(&storage, "admin", |admin| admin.remove(prefix)).map_err(|e| e.kind());
    assert_eq!(remove("abc").expect_err("short"), Kind::Usage);
    assert_eq!(remove(&"f".repeat(32)).expect_err("nobody's"), Kind::NotFound);
    let (admin, second) = (id("admin"), id("second"));
    remove(&second.to_uppercase()).expect("another is left");
    assert_eq!(remove(&admin).expect_err("the last one"), Kind::Usage);
    // One that claims to be an admin's does not count.
    let stranger = Bundle::derive(&Key::from_bytes([1; 32]), 1, Role::Admin, [3; 32]);
    let created = FileTime { seconds: 0, nanoseconds: 0 };
    let planted = NewSlot { role: Role::Admin, label: String::new(), created, salt: SALT, cost: COST };
    key_slots::create(&storage, REPOSITORY, &stranger, &planted, &secrets.0["new"], None).expect("planted");
    assert_eq!(remove(&admin).expect_err("still the last one"), Kind::Usage);
    remove(&id("new")).expect("what was planted may go");
}

#[test]
fn a_rotation_gives_new_keys_to_all_that_are_ours_and_to_nobody_else() {
    let (secrets, storage) = (Secrets::new(), Secrets::new().storage());
    let kept = storage.copy();
    let put = secrets.id(&storage, "put");
    secrets.with(&storage, "admin", |admin| admin.remove(&put.to_hex())).expect("removes");
    // A slot that only looks like ours.
    let stranger = Bundle::derive(&Key::from_bytes([1; 32]), 1, Role::Admin, [3; 32]);
    let created = FileTime { seconds: 0, nanoseconds: 0 };
    let planted = NewSlot { role: Role::Read, label: "planted".to_owned(), created, salt: SALT, cost: COST };
    key_slots::create(&storage, REPOSITORY, &stranger, &planted, &secrets.0["new"], None).expect("planted");
    let report = secrets.with(&storage, "admin", |admin| admin.rotate()).expect("rotates");
    assert!(report.generation > 1 && report.renewed.len() == 3, "{report:?}");
    assert_eq!(report.foreign.iter().map(|slot| slot.label.as_str()).collect::<Vec<_>>(), ["planted"]);
    let both = Some(BTreeSet::from([1, report.generation]));
    for text in ["admin", "second", "read"] {
        assert_eq!(secrets.numbers(&storage, text), both, "{text}");
    }
    assert_eq!(storage.names().len(), 4, "what was renewed is gone");
    // Who was removed keeps what it had, and no more; its old slot, put back, is not renewed either.
    assert_eq!(secrets.numbers(&kept, "put"), Some(BTreeSet::from([1])));
    let (name, object) = kept.objects().into_iter().find(|(n, _)| n.as_str().contains(&put.to_hex())).expect("kept");
    storage.insert(name, object);
    let report = secrets.with(&storage, "second", |admin| admin.rotate()).expect("rotates");
    assert_eq!((report.renewed.len(), report.foreign.len()), (3, 2));
    assert_eq!(secrets.numbers(&storage, "put"), Some(BTreeSet::from([1])));
    assert_eq!(secrets.numbers(&storage, "read").map(|numbers| numbers.len()), Some(3));
}

#[test]
fn a_former_admin_cannot_plant_a_slot() {
    let (secrets, storage) = (Secrets::new(), Secrets::new().storage());
    let former = secrets.unlock(&storage, "second").expect("opens").bundle;
    let id = secrets.id(&storage, "second").to_hex();
    secrets.with(&storage, "admin", |admin| admin.remove(&id)).expect("removes");
    secrets.with(&storage, "admin", |admin| admin.rotate()).expect("rotates");
    // Marked with all that the former admin knows.
    let created = FileTime { seconds: 0, nanoseconds: 0 };
    let planted = NewSlot { role: Role::Admin, label: "planted".to_owned(), created, salt: SALT, cost: COST };
    key_slots::create(&storage, REPOSITORY, &former, &planted, &secrets.0["second"], None).expect("planted");
    let report = secrets.with(&storage, "admin", |admin| admin.rotate()).expect("rotates");
    assert_eq!((report.renewed.len(), report.foreign.len()), (3, 1));
    assert_eq!(secrets.numbers(&storage, "second"), Some(BTreeSet::from([1])));
}

#[test]
fn rotations_that_do_not_know_of_each_other_lose_nothing() {
    let (secrets, storage) = (Secrets::new(), Secrets::new().storage());
    // Both have opened before either begins.
    let rotate = |text: &str, at: &SimulatedStorage| secrets.with(at, text, |admin| admin.rotate()).expect("rotates");
    let (mine, theirs) = (storage.copy(), storage.copy());
    let numbers = [rotate("admin", &mine).generation, rotate("second", &theirs).generation];
    if numbers[0] == numbers[1] {
        return; // Once in 65,536 runs: then both have the same names, and the second to be stored would have failed.
    }
    for (name, object) in mine.objects().into_iter().chain(theirs.objects()) {
        storage.insert(name, object);
    }
    for text in ["admin", "second", "read", "put"] {
        assert_eq!(secrets.numbers(&storage, text), Some(BTreeSet::from([1, numbers[0], numbers[1]])), "{text}");
    }
    let report = rotate("second", &storage);
    assert!(report.generation > numbers[0].max(numbers[1]) && report.foreign.is_empty());
    assert_eq!(storage.names().len(), 4);
    for text in ["admin", "second", "read", "put"] {
        assert_eq!(secrets.numbers(&storage, text).map(|numbers| numbers.len()), Some(4), "{text}");
    }
}

/// A change of keys that is cut off everywhere.
struct Change<'s> {
    name: &'static str,
    /// Who does it, and who may have to be asked the second time.
    by: [&'static str; 2],
    run: &'s dyn Fn(Admin<'_>) -> Result<()>,
    /// Secrets that open whenever it is cut off.
    lasting: &'static [&'static str],
    /// Secrets that open, and no others, once it has been done.
    left: &'static [&'static str],
}

impl Change<'_> {
    /// Cuts it at every step; returns how many images were checked.
    fn cut_everywhere(&self, secrets: &Secrets, storage: &SimulatedStorage) -> u64 {
        let whole = storage.copy();
        let before = whole.steps();
        secrets.with(&whole, self.by[0], self.run).expect("undisturbed");
        let steps = whole.steps() - before;
        let mut images = 0;
        for step in 0..=steps {
            let cut = storage.copy();
            // Opening comes first, and is not cut here.
            let _ = secrets.with(&cut, self.by[0], |admin| {
                cut.crash_at(cut.steps() + step);
                (self.run)(admin)
            });
            for image in [cut.copy(), cut.after_power_cut(step), cut.after_power_cut(step + 1000)] {
                self.check(secrets, &image, step);
                images += 1;
            }
        }
        images
    }

    fn check(&self, secrets: &Secrets, image: &SimulatedStorage, step: u64) {
        let place = format!("{} cut at step {step}", self.name);
        for text in self.lasting {
            assert!(secrets.unlock(image, text).is_some(), "{place}: {text} opens");
        }
        let by = self.by.into_iter().find(|text| secrets.unlock(image, text).is_some());
        let by = by.unwrap_or_else(|| panic!("{place}: nobody can go on"));
        // What somebody can seal something to, the admin can open.
        let known = secrets.numbers(image, by).expect("opens");
        for text in ["admin", "second", "read", "put", "new"] {
            assert!(secrets.numbers(image, text).is_none_or(|numbers| numbers.is_subset(&known)), "{place}: {text}");
        }
        if let Err(error) = secrets.with(image, by, self.run) {
            // Done already.
            assert!(matches!(error.kind(), Kind::NotFound | Kind::Usage), "{place}: {error}");
        }
        for text in ["admin", "second", "read", "put", "new"] {
            let opens = secrets.unlock(image, text).is_some();
            assert_eq!(opens, self.left.contains(&text), "{place}, done again: {text}");
        }
        let all: BTreeSet<_> = self.left.iter().map(|text| secrets.numbers(image, text)).collect();
        assert_eq!(all.len(), 1, "{place}: all have the same generations");
    }
}

#[test]
fn a_change_that_is_cut_off_at_any_step_leaves_all_keys_working() {
    let secrets = Secrets::new();
    let storage = secrets.storage();
    let put = secrets.id(&storage, "put").to_hex();
    let changes = [
        Change {
            name: "add",
            by: ["admin", "admin"],
            run: &|admin| admin.add(Role::Read, "", secrets.new_secret("new")).map(|_| ()),
            lasting: &["admin", "second", "read", "put"],
            left: &["admin", "second", "read", "put", "new"],
        },
        Change {
            name: "remove",
            by: ["admin", "admin"],
            run: &|admin| admin.remove(&put).map(|_| ()),
            lasting: &["admin", "second", "read"],
            left: &["admin", "second", "read"],
        },
        Change {
            name: "rotate",
            by: ["admin", "admin"],
            run: &|admin| admin.rotate().map(|report| assert!(report.foreign.is_empty(), "{report:?}")),
            lasting: &["admin", "second", "read", "put"],
            left: &["admin", "second", "read", "put"],
        },
        Change {
            name: "passphrase",
            by: ["admin", "new"],
            run: &|admin| admin.change_secret(secrets.new_secret("new")).map(|_| ()),
            lasting: &["second", "read", "put"],
            left: &["new", "second", "read", "put"],
        },
    ];
    let images: u64 = changes.iter().map(|change| change.cut_everywhere(&secrets, &storage)).sum();
    assert!(images > 200, "{images} images");
}
