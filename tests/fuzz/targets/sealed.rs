//! What an encrypted repository holds: packs, index objects, key slots and bundles. Mutants are made of what stands inside the
//! seals, and are sealed again, so that they get past them.
//!
//! In the corpus packs and index objects are *opened*: as they are stored, but with frames and tables in plain, each before the
//! sixteen bytes of its tag.

use super::held::{self, REPOSITORY, bundle, fresh, master, with_repo};
use ckpt::codec::seal::{BOX_BYTES, Cipher, Key, TAG_BYTES, open_box};
use ckpt::codec::stretch::{Cost, SALT_BYTES, Secret};
use ckpt::ids::{IndexId, PackId, SlotId};
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::key_slots::{Slots, renew};
use ckpt::repo::keys::{Bundle, Keys};
use ckpt::repo::{index_object, names, pack, pack_table};
use std::ops::Range;
use zeroize::Zeroizing;

const PACK_HEADER_BYTES: usize = 160;
const TRAILER_BYTES: usize = 64;
const INDEX_HEADER_BYTES: usize = 64;
const SECTION_HEAD_BYTES: usize = 62;

/// What is done with the sealed parts of an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Content becomes sealed.
    Seal,
    /// Sealed bytes become content.
    Open,
}

impl Turn {
    /// Does it to a part of an object whose last bytes are the tag.
    fn part(self, cipher: &Cipher, nonce: u64, about: &[u8], object: &mut [u8], range: Range<usize>) {
        let Some(part) = object.get_mut(range) else { return };
        let Some(content_bytes) = part.len().checked_sub(TAG_BYTES) else { return };
        match self {
            Turn::Seal => {
                let mut sealed = part[..content_bytes].to_vec();
                cipher.seal(nonce, about, &mut sealed, 0).expect("short");
                part.copy_from_slice(&sealed);
            }
            Turn::Open => drop(cipher.open(nonce, about, part).expect("own bytes")),
        }
    }
}

fn number(object: &[u8], at: usize, bytes: usize) -> usize {
    object.get(at..at + bytes).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
}

/// Seals or opens table and frames of a pack and makes its checksum right, as far as it can be understood.
pub fn turn_pack(object: &mut [u8], turn: Turn) -> Option<()> {
    let front = object.len().checked_sub(TRAILER_BYTES)?;
    let table_offset = number(object, front, 8);
    if !(PACK_HEADER_BYTES..=front).contains(&table_offset) {
        return None;
    }
    let header = object[..PACK_HEADER_BYTES].to_vec();
    let cipher = Cipher::new(&bundle().table_key.derive("ckpt pack table v1", &header));
    if turn == Turn::Open {
        turn.part(&cipher, table_offset as u64, b"", object, table_offset..front);
    }
    let table = &object[table_offset..front - TAG_BYTES.min(front - table_offset)];
    let frames = pack_table::parse(table, PACK_HEADER_BYTES as u64).map(|(frames, _)| frames).unwrap_or_default();
    if let Some(key) = pack_key(&header) {
        let (key, about) = (Cipher::new(&key), *blake3::hash(&header).as_bytes());
        for frame in frames {
            let begin = usize::try_from(frame.offset).unwrap_or(usize::MAX);
            let range = begin..begin.saturating_add(frame.stored_bytes as usize);
            if range.end <= table_offset {
                turn.part(&key, frame.offset, &about, object, range);
            }
        }
    }
    if turn == Turn::Seal {
        turn.part(&cipher, table_offset as u64, b"", object, table_offset..front);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header).update(&object[table_offset..front]).update(&object[front..front + 16]);
    object[front + 16..front + 48].copy_from_slice(hasher.finalize().as_bytes());
    Some(())
}

/// The key that the header of a pack holds, if it opens.
fn pack_key(header: &[u8]) -> Option<Key> {
    let bundle = bundle();
    let generation = bundle.generations.iter().find(|g| g.number as usize == number(header, 64, 4))?;
    let private = match pack::PackKind::from_code(header[11]).ok()? {
        pack::PackKind::Data => generation.data_private.as_ref()?,
        pack::PackKind::Tree => generation.tree_private.as_ref()?,
    };
    let (front, sealed) = header.split_at(PACK_HEADER_BYTES - BOX_BYTES);
    open_box(private, sealed, front).ok()
}

/// An opened pack; what its table says is there is read with the keys.
pub fn sealed_pack(bytes: &[u8]) -> bool {
    let mut object = bytes.to_vec();
    let _ = turn_pack(&mut object, Turn::Seal);
    let id = PackId::from_bytes(*blake3::hash(&object).as_bytes());
    let (object_bytes, place) = (object.len() as u64, names::pack(id).expect("a name").to_string());
    let whole = pack::summary_of(&Keys::opened(bundle(), REPOSITORY), &object, id, REPOSITORY);
    let objects = vec![(place, object)];
    let read = with_repo(true, objects.clone(), |repo| pack::read_summary(repo, id, object_bytes));
    assert_eq!(whole.as_ref().ok(), read.as_ref().ok(), "both ways to read a pack agree");
    let Ok(summary) = whole else { return false };
    let frames = summary.frames().expect("it was looked at");
    let fits = |offset: u64, bytes: u32| offset >= 160 && offset + u64::from(bytes) <= object_bytes;
    assert!(summary.is_sealed && frames.iter().all(|frame| fits(frame.offset, frame.stored_bytes)));
    let Ok(repo) = fresh(true, objects) else { return true };
    for chunk in frames.iter().take(8).flat_map(|frame| frame.chunks.iter().take(8)) {
        if let Ok(content) = repo.read_chunk(chunk.0) {
            assert_eq!(repo.chunk_id(&content), chunk.0);
        }
    }
    true
}

/// Seals or opens the tables of an index object and makes its checksums right.
pub fn turn_index(object: &mut [u8], turn: Turn) {
    let keys = bundle();
    let mut at = INDEX_HEADER_BYTES;
    while object.get(at) == Some(&1) {
        let end = at + SECTION_HEAD_BYTES + number(object, at + 58, 4);
        if object.len() < end + 32 {
            return;
        }
        let cipher = Cipher::new(&keys.table_key.derive("ckpt index section v1", &object[at..at + SECTION_HEAD_BYTES]));
        turn.part(&cipher, 0, b"", object, at + SECTION_HEAD_BYTES..end);
        let sum = blake3::hash(&object[at..end]);
        object[end..end + 32].copy_from_slice(sum.as_bytes());
        at = end + 32;
    }
    if object.len() == at + 37 {
        let sum = blake3::hash(&object[..at + 5]);
        object[at + 5..].copy_from_slice(sum.as_bytes());
    }
}

/// An opened index object.
pub fn sealed_index(bytes: &[u8]) -> bool {
    let mut object = bytes.to_vec();
    turn_index(&mut object, Turn::Seal);
    let mut visited = 0;
    let read = with_repo(true, vec![(names::INDEX.to_owned(), object)], |repo| {
        index_object::read(repo, IndexId::from_bytes([7; 16]), &mut |pack| {
            assert!(pack.is_sealed);
            visited += 1;
            pack.frames().map(drop)
        })
    });
    assert!(visited <= bytes.len() / 94);
    read.is_ok_and(|is_whole| is_whole && visited > 0)
}

/// What the slots of the corpus cost, and their salt: of these alone the key is known without paying for it each time.
pub const COST: Cost = Cost { memory_kib: 8 << 10, passes: 1, lanes: 1 };
/// See [`COST`].
pub const SALT: [u8; SALT_BYTES] = [4; SALT_BYTES];

/// The secret of the slots of the corpus.
pub fn secret() -> Secret {
    Secret::new(Zeroizing::new(b"secret".to_vec())).expect("not empty")
}

/// The fields of a key slot, with marks that are right.
pub fn key_slot(bytes: &[u8]) -> bool {
    thread_local! {
        static STRETCHED: (Secret, Key) = {
            let secret = secret();
            let root = secret.stretch(&SALT, COST).expect("within bounds");
            (secret, root)
        };
    }
    STRETCHED.with(|(secret, root)| look_at_slot(bytes, secret, root))
}

fn look_at_slot(fields: &[u8], secret: &Secret, root: &Key) -> bool {
    let admin = bundle();
    let newest = admin.generations.last().expect("two");
    // It is the first field, behind three bytes.
    let id = fields.get(3..19).and_then(|id| SlotId::from_slice(id).ok()).unwrap_or(SlotId::from_bytes([3; 16]));
    let private = newest.data_private.as_ref().expect("an admin has it");
    let marks = [
        root.derive("ckpt key slot holder mark v1", id.as_bytes()),
        master().derive("ckpt key slot admin key v1", private.as_bytes()),
    ]
    .map(|key| blake3::keyed_hash(key.as_bytes(), fields));
    let mut stored = minicbor::Encoder::new(Vec::new());
    let written = stored.map(3).and_then(|e| e.u8(0)?.bytes(fields)?.u8(1)?.bytes(marks[0].as_bytes()));
    written.and_then(|e| e.u8(2)?.bytes(marks[1].as_bytes())).expect("memory");
    let name = names::key_slot(id, newest.number).expect("a name");
    let Ok(object) = document::seal(&Keys::plain(), DocumentKind::KeySlot, &name, stored.writer()) else {
        return false;
    };
    let storage = held::Held::of(&name, &object);
    let slots = Slots::read(&storage, REPOSITORY).expect("the storage lists");
    assert!(slots.slots.len() + slots.damage.len() <= 1);
    let Some(slot) = slots.slots.first() else { return false };
    slot.cost().check().expect("what is read can be paid for");
    assert!(slot.id() == id && slot.is_marked_by(&admin));
    assert!(renew(&storage, &admin, slot, None).is_err(), "the storage takes nothing");
    if (slot.cost(), slot.salt()) != (COST, SALT) {
        return true;
    }
    match slots.unlock(secret) {
        Ok(Some(unlocked)) => {
            assert!(unlocked.slot == id && unlocked.bundle.role == slot.fields.role);
            true
        }
        Ok(None) | Err(_) => false,
    }
}

/// What a slot gives to who unlocks it.
pub fn key_bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = Bundle::decode(bytes) else { return false };
    assert!(!bundle.generations.is_empty());
    assert_eq!(Bundle::decode(&bundle.encode().expect("short")).expect("own bytes"), bundle);
    true
}
