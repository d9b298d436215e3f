//! Key slots: what opens them, and forged ones that do not.

use super::*;
use crate::repo::keys::Generation;
use crate::storage::simulated::SimulatedStorage;

pub(crate) const COST: Cost = Cost { memory_kib: 8192, passes: 1, lanes: 1 };

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([5; 16]);

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec())).expect("a secret")
}

fn admin() -> Bundle {
    Bundle::derive(&Key::from_bytes([9; 32]), 1, Role::Admin, [3; 32])
}

fn new_slot(role: Role) -> NewSlot {
    let created = FileTime { seconds: 77, nanoseconds: 0 };
    NewSlot { role, label: "label".to_owned(), created, salt: [4; 16], cost: COST }
}

fn add(storage: &SimulatedStorage, role: Role, text: &str) -> SlotId {
    create(storage, REPOSITORY, &admin(), &new_slot(role), &secret(text), None).expect("created")
}

fn read(storage: &SimulatedStorage) -> Slots {
    Slots::read(storage, REPOSITORY).expect("read")
}

fn unlock(storage: &SimulatedStorage, text: &str) -> Option<Unlocked> {
    read(storage).unlock(&secret(text)).expect("no damage")
}

/// The bundle with another generation.
fn rotated(mut bundle: Bundle, number: u32) -> Bundle {
    let (data, tree) = (Key::random().expect("a key"), Key::random().expect("a key"));
    let publics = (data.public(), tree.public());
    bundle.generations.push(Generation {
        number,
        data_public: publics.0,
        tree_public: publics.1,
        data_private: Some(data),
        tree_private: Some(tree),
    });
    bundle
}

/// The slot's object with other fields, and marks that fit to keys of somebody's own.
fn forge(slot: &Slot, change: impl FnOnce(&mut Fields), marks: [&Key; 2]) -> (ObjectName, Vec<u8>) {
    let mut fields = slot.fields.clone();
    change(&mut fields);
    let body = document::encode(&fields).expect("encodes");
    let stored = Stored {
        holder_mark: mark(marks[0], &body).into(),
        admin_mark: mark(marks[1], &body).into(),
        body: body.into(),
    };
    let name = names::key_slot(SlotId::from_bytes(*fields.id), fields.generation).expect("a name");
    let body = document::encode(&stored).expect("encodes");
    let object = document::seal(&Keys::plain(), DocumentKind::KeySlot, &name, &body).expect("seals");
    (name, object)
}

#[test]
fn every_role_gets_what_it_needs_and_nothing_beyond() {
    let storage = SimulatedStorage::new();
    for role in [Role::Put, Role::Read, Role::Prune, Role::Admin] {
        let id = add(&storage, role, role.name());
        let unlocked = unlock(&storage, role.name()).expect("its own secret");
        assert_eq!((unlocked.slot, unlocked.bundle.role), (id, role));
        assert!(unlocked.damage.is_empty());
        assert_eq!(unlocked.bundle, Bundle::derive(&Key::from_bytes([9; 32]), 1, role, [3; 32]), "as it is derived");
        assert_eq!(unlocked.bundle.master.is_some(), role == Role::Admin);
        let generation = &unlocked.bundle.generations[0];
        assert_eq!(generation.data_private.is_some(), matches!(role, Role::Read | Role::Admin));
        assert_eq!(generation.tree_private.is_some(), role != Role::Put);
    }
    assert!(unlock(&storage, "another").is_none());
    assert_eq!(read(&storage).count(), 4);
    let slots = read(&storage);
    let slot = slots.newest().next().expect("a slot");
    assert_eq!((slot.fields.label.as_str(), slot.created().seconds, slot.cost()), ("label", 77, COST));
    assert!(slots.slots.iter().all(|slot| slot.is_marked_by(&admin())));
}

#[test]
fn slots_of_one_salt_take_one_stretching_and_do_not_show_that_secrets_are_the_same() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Put, "same");
    let reader = add(&storage, Role::Read, "same");
    let slots = read(&storage);
    assert_ne!(slots.slots[0].fields.public, slots.slots[1].fields.public);
    // Of two slots of one secret the one that allows more.
    assert_eq!(unlock(&storage, "same").expect("opens").slot, reader);
    for n in 0..40 {
        add(&storage, Role::Put, &format!("host {n}"));
    }
    let begun = std::time::Instant::now();
    let once = secret("host 39").stretch(&[4; 16], COST).map(|_| begun.elapsed()).expect("a key");
    let begun = std::time::Instant::now();
    assert!(unlock(&storage, "host 39").is_some());
    // 42 stretchings would take more than twice as long.
    assert!(begun.elapsed() < once * 20 + std::time::Duration::from_millis(100), "{:?}, {once:?}", begun.elapsed());
}

#[test]
fn one_copy_may_be_damaged_and_a_slot_stands_under_its_own_name_in_its_own_repository_only() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Read, "word");
    let name = storage.names()[0].clone();
    assert!(storage.corrupt(&name, 100, 1));
    assert!(unlock(&storage, "word").is_some());
    assert_eq!(read(&storage).damage.len(), 1);
    assert_eq!(Slots::read(&storage, RepositoryId::from_bytes([6; 16])).expect("read").count(), 0);
    let object = storage.objects()[&name].clone();
    storage.remove(&name);
    storage.insert(names::key_slot(SlotId::from_bytes([1; 16]), 1).expect("a name"), object);
    assert!(unlock(&storage, "word").is_none());
    assert_eq!(read(&storage).damage.len(), 1);
}

#[test]
fn whatever_is_changed_in_a_slot_it_does_not_open() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Put, "word");
    let slot = read(&storage).slots[0].clone();
    let stranger = Key::from_bytes([1; 32]);
    let mine = Bundle::derive(&Key::from_bytes([66; 32]), 1, Role::Put, [3; 32]);
    // Sealed properly to the public key, which stands there in plain.
    let sealed_by_stranger = |fields: &mut Fields| {
        let (key, about) = (Key::random().expect("a key"), about(fields));
        let mut bundle = mine.encode().expect("encodes");
        Cipher::new(&key).seal(0, &about, &mut bundle, 0).expect("seals");
        fields.sealed_key = seal::seal_to(&fields.public, &key, &about).expect("seals").into();
        fields.sealed_bundle = bundle.to_vec().into();
    };
    type Change<'c> = Box<dyn Fn(&mut Fields) + 'c>;
    let changes: [(&str, Change<'_>); 6] = [
        ("role", Box::new(|f| f.role = Role::Admin)),
        ("label", Box::new(|f| f.label.push('x'))),
        ("generation", Box::new(|f| f.generation = 9)),
        ("keys", Box::new(sealed_by_stranger)),
        ("box", Box::new(|f| f.sealed_key[40] ^= 1)),
        ("bundle", Box::new(|f| f.sealed_bundle[9] ^= 1)),
    ];
    for (what, change) in changes {
        let storage = SimulatedStorage::new();
        let (name, object) = forge(&slot, change, [&stranger, &stranger]);
        storage.insert(name, object);
        let slots = read(&storage);
        assert_eq!(slots.count(), 1, "{what}: it is well-formed");
        assert_eq!(slots.unlock(&secret("word")).expect_err("forged").kind(), Kind::Damaged, "{what}");
        assert!(slots.unlock(&secret("other")).expect("nothing to open").is_none(), "{what}");
        assert!(!slots.slots[0].is_marked_by(&admin()), "{what}");
    }
    // Beside the right one a forged one takes nothing away and adds nothing.
    let (name, object) = forge(&slot, |f| f.generation = 9, [&stranger, &stranger]);
    storage.insert(name, object);
    let unlocked = unlock(&storage, "word").expect("opens");
    assert_eq!((unlocked.bundle.generations.len(), unlocked.damage.len()), (1, 1));
}

#[test]
fn a_slot_is_renewed_without_its_secret_and_all_its_objects_count() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Put, "word");
    let (second, third) = (rotated(admin(), 20), rotated(admin(), 30));
    let slot = read(&storage).slots[0].clone();
    assert_eq!(renew(&storage, &second, &slot, None).expect("renews"), Published::Created);
    assert_eq!(renew(&storage, &second, &slot, None).expect("is there"), Published::AlreadyExists);
    // By an admin who knows nothing of the second.
    renew(&storage, &third, &slot, Some(vec![slot.hash()])).expect("renews");
    let numbers = |unlocked: Unlocked| unlocked.bundle.generations.iter().map(|g| g.number).collect::<Vec<_>>();
    assert_eq!(numbers(unlock(&storage, "word").expect("opens")), [1, 20, 30]);
    let slots = read(&storage);
    assert_eq!(slots.count(), 1);
    let of = |number| slots.slots.iter().find(|s| s.fields.generation == number).expect("there");
    assert!(of(20).is_marked_by(&second) && !of(20).is_marked_by(&third) && !of(20).is_marked_by(&admin()));
    assert!(of(30).awaits(&slot) && !of(20).awaits(&slot) && !of(30).awaits(of(20)));
    // From a renewed one it goes on.
    renew(&storage, &rotated(second, 40), of(20), None).expect("renews");
    assert_eq!(numbers(unlock(&storage, "word").expect("opens")), [1, 20, 30, 40]);
    let other = Bundle::derive(&Key::from_bytes([8; 32]), 1, Role::Admin, [3; 32]);
    assert!(renew(&storage, &rotated(other, 50), &slot, None).is_err(), "not an admin of this repository");
}

#[test]
fn costs_out_of_bounds_are_refused_before_any_work_and_all_slots_together_are_bounded() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Put, "word");
    let slot = read(&storage).slots[0].clone();
    let key = Key::from_bytes([1; 32]);
    let plant = |n: u32, memory_kib, passes| {
        let change = |f: &mut Fields| {
            f.id = [u8::try_from(n).expect("few"); 16].into();
            f.salt[..4].copy_from_slice(&n.to_le_bytes());
            (f.memory_kib, f.passes) = (memory_kib, passes);
        };
        let (name, object) = forge(&slot, change, [&key, &key]);
        storage.insert(name, object);
    };
    let begun = std::time::Instant::now();
    for (n, memory_kib, passes) in
        [(1, u32::MAX, 1), (2, 8192, u32::MAX), (3, 0, 1), (4, (1 << 20) + 1, 16), (5, 8192, 0)]
    {
        plant(n, memory_kib, passes);
    }
    let slots = read(&storage);
    assert_eq!((slots.count(), slots.damage.len()), (1, 5));
    assert!(slots.unlock(&secret("word")).expect("opens").is_some());
    // Cheap ones come first, so dear ones that somebody planted do not delay the right one.
    (10..40).for_each(|n| plant(n, 1 << 20, 16));
    assert!(unlock(&storage, "word").is_some());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn garbage_among_the_slots_is_named_and_takes_nothing_away() {
    let storage = SimulatedStorage::new();
    add(&storage, Role::Put, "word");
    let object = storage.objects().into_values().next().expect("a slot");
    let name = |n: u8| names::key_slot(SlotId::from_bytes([n; 16]), 1).expect("a name");
    storage.insert(name(1), Vec::new());
    storage.insert(name(2), vec![0xff; 3 << 20]);
    storage.insert(name(3), object[..object.len() / 3].to_vec());
    let empty = document::seal(&Keys::plain(), DocumentKind::KeySlot, &name(4), b"\xa0").expect("seals");
    storage.insert(name(4), empty);
    storage.insert(ObjectName::new("keys/readme").expect("a name"), b"x".to_vec());
    let slots = read(&storage);
    assert_eq!((slots.count(), slots.damage.len()), (1, 4), "{:?}", slots.damage);
    assert!(slots.unlock(&secret("word")).expect("opens").is_some());
    for n in 5..60 {
        storage.insert(name(n), vec![0; 2 << 20]);
    }
    assert_eq!(Slots::read(&storage, REPOSITORY).expect_err("too many bytes").kind(), Kind::Damaged);
}
