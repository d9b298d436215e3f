//! What storage can do to an encrypted repository, and what keys of each role can do with it.

use super::config::{self, Config, Parameters};
use super::document::{self, DocumentKind};
use super::keys::{Bundle, Keys, Role, Unlock};
use super::pack::{self, PackKind, PackSummary};
use super::test_support::{
    self, Node, TestKeys, contents, encrypted_storage, encrypted_storage_with_parity, noise, open, open_as, save,
    store, time,
};
use super::transaction::Transaction;
use super::{Cache, Repo, names};
use crate::codec::seal::Key;
use crate::error::{Kind, Result};
use crate::events::Silent;
use crate::ids::{ChunkId, RepositoryId};
use crate::storage::simulated::SimulatedStorage;
use crate::storage::{ObjectName, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

const MARKER: &[u8] = b"a text that nobody should find";

fn keys(repository: u8) -> Keys {
    let bundle = Bundle::derive(&Key::from_bytes([6; 32]), 1, Role::Admin, [0; 32]);
    Keys::opened(bundle, RepositoryId::from_bytes([repository; 16]))
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a name")
}

fn filled() -> SimulatedStorage {
    let storage = encrypted_storage();
    let big = noise(3, 200_000);
    let nodes = [("secret-name", Node::File(MARKER.repeat(1000))), ("noise", Node::File(big))];
    save(&open(&storage), 1, &nodes);
    storage
}

/// The packs with their bytes.
fn packs(storage: &SimulatedStorage) -> BTreeMap<ObjectName, Vec<u8>> {
    storage.objects().into_iter().filter(|(name, _)| names::pack_id(name).is_some()).collect()
}

/// Gives the end of a pack the checksum that fits: what whoever can write to the storage can do.
fn fit_checksum(object: &mut [u8]) {
    let end = object.len() - 64;
    let table = usize::try_from(u64::from_le_bytes(object[end..end + 8].try_into().expect("eight"))).expect("small");
    let hash = blake3::Hasher::new().update(&object[..160]).update(&object[table..end + 16]).finalize();
    object[end + 16..end + 48].copy_from_slice(hash.as_bytes());
}

fn summary(repo: &Repo, object: &[u8]) -> Result<PackSummary> {
    pack::summary_of(repo.keys(), object, crate::ids::PackId::from_bytes(*blake3::hash(object).as_bytes()), repo.id())
}

#[test]
fn a_document_opens_only_where_it_was_sealed_for() {
    let (here, elsewhere) = (keys(1), keys(2));
    let object = document::seal(&here, DocumentKind::Tags, &name("tags/a"), MARKER).expect("short");
    assert!(!object.windows(MARKER.len()).any(|w| w == MARKER));
    let open = |keys: &Keys, kind, at: &str, object: &[u8]| {
        document::open(keys, kind, &name(at), object).map(|o| o.body).map_err(|e| e.kind())
    };
    assert_eq!(open(&here, DocumentKind::Tags, "tags/a", &object), Ok(MARKER.to_vec()));
    assert_eq!(open(&here, DocumentKind::Tags, "tags/b", &object), Err(Kind::Damaged), "another name");
    assert_eq!(open(&here, DocumentKind::Forgotten, "tags/a", &object), Err(Kind::Damaged), "another kind");
    assert_eq!(open(&elsewhere, DocumentKind::Tags, "tags/a", &object), Err(Kind::Damaged), "another repository");
    assert_eq!(open(&Keys::plain(), DocumentKind::Tags, "tags/a", &object), Err(Kind::Damaged), "without keys");
    let plain = document::seal(&Keys::plain(), DocumentKind::Tags, &name("tags/a"), MARKER).expect("short");
    assert_eq!(open(&here, DocumentKind::Tags, "tags/a", &plain), Err(Kind::Damaged), "not sealed at all");
    let again = document::seal(&here, DocumentKind::Tags, &name("tags/a"), MARKER).expect("short");
    assert_ne!(object, again, "the same body never looks the same");
}

#[test]
fn a_document_forged_with_a_fitting_checksum_is_refused() {
    let keys = keys(1);
    let object = document::seal(&keys, DocumentKind::Tags, &name("tags/a"), b"body").expect("short");
    let half = object.len() / 2;
    for at in 16..half - 32 {
        let mut copy = object[..half - 32].to_vec();
        copy[at] ^= 1;
        let hash = blake3::hash(&copy);
        copy.extend_from_slice(hash.as_bytes());
        copy.extend_from_within(..);
        let refused = document::open(&keys, DocumentKind::Tags, &name("tags/a"), &copy).expect_err("forged");
        assert_eq!(refused.kind(), Kind::Damaged, "byte {at}");
    }
    for length in 0..half {
        assert!(document::open(&keys, DocumentKind::Tags, &name("tags/a"), &object[..length]).is_err(), "{length}");
    }
    assert!(document::open(&keys, DocumentKind::Tags, &name("tags/a"), &object[..half]).is_ok(), "one copy is enough");
}

#[test]
fn nothing_of_content_names_or_ids_stands_in_clear() {
    let storage = filled();
    let repo = open(&storage);
    let snapshot = repo.snapshots().pop().expect("saved");
    let found = contents(&repo, &snapshot).expect("reads");
    assert_eq!(found["secret-name"], MARKER.repeat(1000));
    let chunk = &noise(3, 200_000)[..test_support::CHUNK_BYTES];
    let root = snapshot.tree.expect("a tree").root;
    let (keyed, plain) = (repo.chunk_id(chunk), ChunkId::of(chunk));
    let markers: [&[u8]; 8] =
        [MARKER, b"secret-name", b"/data", b"here", &chunk[..32], keyed.as_bytes(), plain.as_bytes(), root.as_bytes()];
    for (name, object) in storage.objects() {
        for marker in markers {
            assert!(!object.windows(marker.len()).any(|w| w == marker), "{name}: {}", String::from_utf8_lossy(marker));
        }
    }
    // The search finds what is there.
    let plain = test_support::storage();
    save(&open(&plain), 1, &[("secret-name", Node::Directory)]);
    assert!(plain.objects().values().any(|object| object.windows(5).any(|w| w == b"/data")));
}

#[test]
fn a_frame_opens_only_in_its_place_and_unchanged() {
    let storage = encrypted_storage();
    let repo = open(&storage);
    let (one, other) = (noise(1, 3000), noise(2, 3000));
    let first = store(&repo, &[(&one, &[]), (&other, &[])]);
    let second = store(&repo, &[(&noise(4, 3000), &[]), (&noise(5, 3000), &[])]);
    let object = storage.read(&names::pack(first.id).expect("a name"), 1 << 20).expect("there");
    let frames = first.frames().expect("sound");
    let stored = |n: usize| {
        let at = usize::try_from(frames[n].offset).expect("small");
        object[at..at + frames[n].stored_bytes as usize].to_vec()
    };
    assert_eq!((frames[0].offset, stored(0).len()), (160, stored(1).len()));
    let open = |pack, offset, mut bytes: Vec<u8>| repo.open_frame(pack, offset, &mut bytes).map_err(|e| e.kind());
    assert_eq!(open(first.id, frames[0].offset, stored(0)), Ok(()));
    assert_eq!(open(first.id, frames[1].offset, stored(0)), Err(Kind::Damaged), "swapped within the pack");
    assert_eq!(open(second.id, frames[0].offset, stored(0)), Err(Kind::Damaged), "moved to another pack");
    for bit in (0..stored(0).len() * 8).step_by(61) {
        let mut flipped = stored(0);
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(first.id, frames[0].offset, flipped), Err(Kind::Damaged), "bit {bit}");
    }
    for length in [0, 1, 15, 16, stored(0).len() - 1] {
        assert!(open(first.id, frames[0].offset, stored(0)[..length].to_vec()).is_err(), "{length} bytes");
    }
    let error = repo.open_frame(first.id, 1, &mut stored(0)).expect_err("nothing begins there").to_string();
    assert!(error.contains(&first.id.to_hex()), "{error}");
}

#[test]
fn tables_of_two_packs_cannot_change_places() {
    let storage = encrypted_storage();
    let repo = open(&storage);
    store(&repo, &[(&noise(1, 3000), &[])]);
    store(&repo, &[(&noise(2, 3000), &[])]);
    let objects: Vec<Vec<u8>> = packs(&storage).into_values().collect();
    let (one, other) = (&objects[0], &objects[1]);
    assert_eq!(one.len(), other.len());
    assert!(summary(&repo, one).is_ok());
    let table = one.len() - 64 - 16 - 12 - 36;
    let mut forged = [&one[..table], &other[table..]].concat();
    fit_checksum(&mut forged);
    assert_eq!(summary(&repo, &forged).expect_err("another's table").kind(), Kind::Damaged);
    let mut forged = [&other[..160], &one[160..]].concat();
    fit_checksum(&mut forged);
    assert_eq!(summary(&repo, &forged).expect_err("another's header").kind(), Kind::Damaged);
    for at in (16..160).chain(table..one.len() - 64) {
        let mut forged = one.clone();
        forged[at] ^= 1;
        fit_checksum(&mut forged);
        assert!(summary(&repo, &forged).is_err(), "byte {at}");
    }
    // A pack that is not sealed does not pass for one that is.
    let plain = test_support::storage();
    store(&open(&plain), &[(&noise(1, 3000), &[])]);
    let object = packs(&plain).into_values().next().expect("a pack");
    assert_eq!(summary(&repo, &object).expect_err("not sealed").kind(), Kind::Damaged);
}

#[test]
fn index_objects_are_sealed_and_forged_sections_are_no_more_than_damage() {
    let storage = filled();
    let all = || {
        let repo = open(&storage);
        let damage = repo.damage();
        let known = repo.index().packs().expect("an index");
        (damage.len(), known.iter().filter(|p| p.is_listed).count())
    };
    let (damage, listed) = all();
    assert!(damage == 0 && listed >= 2);
    let (name, object) = storage.objects().into_iter().find(|(n, _)| n.as_str().starts_with("index/")).expect("one");
    // The first section begins behind the header, its table behind 62 bytes of lengths and ids; both checksums are made to fit.
    let table_bytes = u32::from_le_bytes(object[64 + 58..64 + 62].try_into().expect("four")) as usize;
    let section_end = 64 + 62 + table_bytes;
    for at in [64 + 1, 64 + 40, 64 + 41, 64 + 45, 64 + 62, section_end - 1] {
        let mut forged = object.clone();
        forged[at] ^= 1;
        let hash = blake3::hash(&forged[64..section_end]);
        forged[section_end..section_end + 32].copy_from_slice(hash.as_bytes());
        let end = forged.len() - 32;
        let hash = blake3::hash(&forged[..end]);
        forged[end..].copy_from_slice(hash.as_bytes());
        storage.insert(name.clone(), forged);
        let (damage, listed_now) = all();
        assert!(damage > 0 && listed_now < listed, "byte {at} was believed");
    }
    storage.insert(name, object);
    assert_eq!(all(), (0, listed));
}

#[test]
fn each_role_can_do_its_part_and_says_what_it_cannot() {
    let storage = filled();
    let admin = open(&storage);
    let snapshot = admin.snapshots().pop().expect("saved");
    let root = snapshot.tree.expect("a tree").root;
    let data = admin.chunk_id(&noise(3, 200_000)[..test_support::CHUNK_BYTES]);
    for role in [Role::Put, Role::Read, Role::Prune, Role::Admin] {
        let repo = open_as(&storage, role).expect("opens");
        assert_eq!(repo.snapshots().len(), 1, "{role:?} sees what there is");
        assert!(repo.damage().is_empty());
        let kind = |read: Result<Vec<u8>>| read.map(drop).map_err(|e| e.kind());
        let allowed = |is_allowed| if is_allowed { Ok(()) } else { Err(Kind::WrongKey) };
        assert_eq!(kind(repo.read_chunk(root)), allowed(role != Role::Put), "{role:?} and lists of files");
        let reads_data = matches!(role, Role::Read | Role::Admin);
        assert_eq!(kind(repo.read_chunk(data)), allowed(reads_data), "{role:?} and contents");
        let begun = Transaction::begin(&repo, &test_support::writer()).map(|t| t.abandon()).map_err(|e| e.kind());
        assert_eq!(begun.map(drop), allowed(role != Role::Read), "{role:?} and adding");
        assert_eq!(repo.keys().require_deleting().is_ok(), matches!(role, Role::Prune | Role::Admin));
        assert_eq!(repo.chunker_key().is_ok(), role != Role::Read);
        if let Err(error) = repo.keys().require(PackKind::Data) {
            assert!(error.to_string().contains(role.name()) && error.hint().is_some(), "{error}");
        }
    }
}

#[test]
fn packs_of_an_unknown_generation_need_another_key_and_are_not_damage() {
    let storage = encrypted_storage();
    let hash = config::read(&storage).expect("sound").body_hash;
    let newer = Bundle::derive(&Key::from_bytes([6; 32]), 2, Role::Admin, hash);
    struct Fixed(Bundle);
    impl Unlock for Fixed {
        fn is_given(&self) -> bool {
            true
        }
        fn unlock(&self, _: &dyn Storage, _: RepositoryId) -> Result<Bundle> {
            Ok(self.0.clone())
        }
    }
    let repo =
        Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, &Fixed(newer), &Silent).expect("opens");
    let snapshot = save(&repo, 1, &[("a", Node::File(noise(1, 9000)))]);
    assert!(contents(&repo, &snapshot).is_ok());
    let older = open(&storage);
    let error = older.read_chunk(snapshot.tree.expect("a tree").root).expect_err("a newer generation");
    assert_eq!(error.kind(), Kind::WrongKey, "{error}");
    assert!(error.to_string().contains("generation 2"), "{error}");
    // What an older generation sealed stays readable.
    let early = save(&older, 2, &[("b", Node::File(noise(2, 9000)))]);
    repo.refresh(&Silent).expect("refreshes");
    assert!(contents(&repo, &early).is_ok());
}

#[test]
fn rot_in_the_header_of_a_pack_is_damage_and_no_matter_of_keys() {
    for has_parity in [false, true] {
        let whole = if has_parity { encrypted_storage_with_parity() } else { encrypted_storage() };
        let snapshot = save(&open(&whole), 1, &[("a", Node::File(noise(1, 30_000)))]);
        for name in packs(&whole).into_keys() {
            // The kind of the pack, and the generation of its keys.
            for at in [11, 64, 65, 66, 67] {
                for role in [Role::Read, Role::Admin] {
                    let storage = whole.copy();
                    assert!(storage.corrupt(&name, at, 1));
                    let read = contents(&open_as(&storage, role).expect("opens"), &snapshot);
                    let kind = read.map(drop).map_err(|error| error.kind());
                    let wanted = if has_parity { Ok(()) } else { Err(Kind::Damaged) };
                    assert_eq!(kind, wanted, "byte {at} of {name}, {role:?}");
                }
            }
        }
    }
}

#[test]
fn parameters_that_were_replaced_are_refused() {
    struct Given;
    impl Unlock for Given {
        fn is_given(&self) -> bool {
            true
        }
        fn unlock(&self, storage: &dyn Storage, id: RepositoryId) -> Result<Bundle> {
            TestKeys { role: Role::Admin }.unlock(storage, id)
        }
    }
    let opened = |storage: &SimulatedStorage, unlock: &dyn Unlock| {
        Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, unlock, &Silent).map(drop)
    };
    let plain = test_support::storage();
    assert!(opened(&plain, &super::NoKey).is_ok());
    assert_eq!(opened(&plain, &Given).expect_err("a downgrade").kind(), Kind::WrongKey);
    let storage = filled();
    assert_eq!(opened(&storage, &super::NoKey).expect_err("no key").kind(), Kind::WrongKey);
    // Other parameters than those that the keys were made for, each copy sound by itself.
    let hash = config::read(&storage).expect("sound").body_hash;
    struct Hashed([u8; 32]);
    impl Unlock for Hashed {
        fn is_given(&self) -> bool {
            true
        }
        fn unlock(&self, _: &dyn Storage, _: RepositoryId) -> Result<Bundle> {
            Ok(Bundle::derive(&Key::from_bytes([6; 32]), 1, Role::Admin, self.0))
        }
    }
    assert!(opened(&storage, &Hashed(hash)).is_ok());
    let parameters = Parameters {
        chunk_sizes: (64, 64, 64),
        chunker_key: None,
        pack_bytes: 1 << 16,
        parity: false,
        exclusive_create: true,
    };
    let other = Config::new(RepositoryId::from_bytes([5; 16]), time(0), &parameters).expect("sound");
    for copy in 0..3 {
        storage.remove(&names::config(copy).expect("a name"));
    }
    config::create(&storage, &other).expect("created");
    let error = opened(&storage, &Hashed(hash)).expect_err("replaced");
    assert!(error.kind() == Kind::Damaged && error.hint().is_some(), "{error}");
}

#[test]
fn names_of_chunks_tell_nothing_to_who_knows_their_content() {
    let repo = open(&encrypted_storage());
    let id = repo.chunk_id(MARKER);
    assert_ne!(id, ChunkId::of(MARKER));
    assert_eq!(id, keys(9).chunk_id(MARKER), "the keys alone decide");
    let other = Bundle::derive(&Key::from_bytes([8; 32]), 1, Role::Admin, [0; 32]);
    assert_ne!(id, Keys::opened(other, repo.id()).chunk_id(MARKER));
}
