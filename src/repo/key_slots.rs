//! Key slots: for each secret that opens the repository, an object that holds what it gives.
//!
//! A slot keeps a [`Bundle`] sealed to a public key, whose private key follows from the slot's secret, so an admin renews
//! the slots of others without their secrets. Sealing to a public key authenticates nobody, therefore a slot carries two
//! marks. The holder's is keyed by the slot's own secret: who opens a slot knows that the bundle comes from an admin and
//! not from the storage. The admin's is keyed by what admins of its generation alone have: who renews a slot knows that
//! its public key is none that the storage, or a former admin, has planted.
//!
//! A slot may stand in several objects, `keys/<slot>.<generation>`, while keys are rotated; who opens it takes the
//! generations of all of them, so a rotation that was cut off, and two at once, take nothing away. What is read here is
//! hostile until a mark was checked: everything is bounded before work is spent on it.

mod unlock;

pub use unlock::{Slots, Unlocked};

use super::document::{self, DocumentKind};
use super::keys::{Bundle, Keys, Role};
use super::names;
use crate::codec::seal::{self, BOX_BYTES, Cipher, Key, PUBLIC_KEY_BYTES};
use crate::codec::stretch::{Cost, SALT_BYTES, Secret};
use crate::error::{Error, Kind, Result};
use crate::ids::{RepositoryId, SlotId};
use crate::metadata::FileTime;
use crate::sabotage::is_planted;
use crate::storage::{self, ObjectName, Published, Storage};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

/// The longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 200;

/// A slot as it stands in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// What it is and holds; as trustworthy as the marks beside it.
    pub fields: Fields,
    body: Vec<u8>,
    holder_mark: [u8; 32],
    admin_mark: [u8; 32],
    /// False if one copy of the object is damaged.
    is_whole: bool,
}

/// The fields of a slot that both marks cover.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Fields {
    #[n(0)]
    id: ByteArray<16>,
    #[n(1)]
    repository: ByteArray<16>,
    /// What its secret allows.
    #[n(2)]
    pub role: Role,
    /// What it is called.
    #[n(3)]
    pub label: String,
    /// When it was added, seconds since 1970.
    #[n(4)]
    created: i64,
    #[n(5)]
    salt: ByteArray<SALT_BYTES>,
    #[n(6)]
    memory_kib: u32,
    #[n(7)]
    passes: u32,
    #[n(8)]
    lanes: u32,
    #[n(9)]
    public: ByteArray<PUBLIC_KEY_BYTES>,
    /// The newest key generation in the bundle.
    #[n(10)]
    pub generation: u32,
    /// A key of this object alone, sealed to the public key; the bundle is sealed with it.
    #[n(11)]
    sealed_key: ByteArray<BOX_BYTES>,
    #[n(12)]
    sealed_bundle: ByteVec,
    /// The key of the holder's mark, sealed for admins.
    #[n(13)]
    sealed_mark_key: ByteVec,
    /// While keys are rotated, in the slot of the admin who does it: hashes of the slots that are to be renewed.
    #[n(14)]
    pending: Option<Vec<ByteArray<32>>>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    body: ByteVec,
    #[n(1)]
    holder_mark: ByteArray<32>,
    #[n(2)]
    admin_mark: ByteArray<32>,
}

/// What a slot to be added is.
#[derive(Debug, Clone)]
pub struct NewSlot {
    /// What its secret is to allow.
    pub role: Role,
    /// What it is called.
    pub label: String,
    /// When this is.
    pub created: FileTime,
    /// The salt of its secret: one that other slots have saves whoever opens the repository time.
    pub salt: [u8; SALT_BYTES],
    /// What stretching its secret costs.
    pub cost: Cost,
}

/// What follows from a secret for one slot.
struct Holder {
    private: Key,
    mark_key: Key,
}

impl Holder {
    fn new(root: &Key, id: SlotId) -> Holder {
        Holder {
            private: root.derive("ckpt key slot private key v1", id.as_bytes()),
            mark_key: root.derive("ckpt key slot holder mark v1", id.as_bytes()),
        }
    }
}

impl Slot {
    /// Its id.
    pub fn id(&self) -> SlotId {
        SlotId::from_bytes(*self.fields.id)
    }

    /// The object it stands in.
    pub fn name(&self) -> Result<ObjectName> {
        names::key_slot(self.id(), self.fields.generation)
    }

    /// When it was added.
    pub fn created(&self) -> FileTime {
        FileTime { seconds: self.fields.created, nanoseconds: 0 }
    }

    /// What stretching its secret costs.
    pub fn cost(&self) -> Cost {
        let Fields { memory_kib, passes, lanes, .. } = self.fields;
        Cost { memory_kib, passes, lanes }
    }

    /// The salt of its secret.
    pub fn salt(&self) -> [u8; SALT_BYTES] {
        *self.fields.salt
    }

    /// Names exactly this object in the list of slots to be renewed.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.body).as_bytes()
    }

    /// True if an admin made it who had the keys of its generation, as `admin` must have them, too.
    pub fn is_marked_by(&self, admin: &Bundle) -> bool {
        is_planted("slot-of-stranger-renewed")
            || admin_key(admin, self.fields.generation).is_ok_and(|key| mark(&key, &self.body) == self.admin_mark)
    }

    /// True if the rotation that made this slot of an admin meant to renew `other`.
    pub fn awaits(&self, other: &Slot) -> bool {
        self.fields.pending.iter().flatten().any(|hash| **hash == other.hash())
    }

    /// Reads the slot in `object`, which stands under the name of `id` and `generation`; none if it is of another
    /// repository.
    fn decode(object: &[u8], id: SlotId, generation: u32, repository: RepositoryId) -> Result<Option<Slot>> {
        let opened = document::open(&Keys::plain(), DocumentKind::KeySlot, &names::key_slot(id, generation)?, object)?;
        let stored: Stored = document::decode(&opened.body, "a key slot")?;
        let fields: Fields = document::decode(&stored.body, "the fields of a key slot")?;
        if *fields.repository != *repository.as_bytes() {
            return Ok(None);
        }
        if *fields.id != *id.as_bytes() || fields.generation != generation {
            return Err(Error::damaged("another key slot stands under this name"));
        }
        let slot = Slot {
            fields,
            body: stored.body.into(),
            holder_mark: *stored.holder_mark,
            admin_mark: *stored.admin_mark,
            is_whole: opened.both_copies_sound,
        };
        slot.cost().check()?;
        Ok(Some(slot))
    }

    /// The bundle in it, for who has its secret.
    fn open(&self, holder: &Holder) -> Result<Bundle> {
        if mark(&holder.mark_key, &self.body) != self.holder_mark && !is_planted("slot-mark-not-compared") {
            return Err(Error::damaged("the key slot was not made by an admin"));
        }
        let about = about(&self.fields);
        let key = seal::open_box(&holder.private, &*self.fields.sealed_key, &about)?;
        let mut bytes = Zeroizing::new(self.fields.sealed_bundle.to_vec());
        let bundle = Bundle::decode(Cipher::new(&key).open(0, &about, &mut bytes)?)?;
        let newest = bundle.generations.last().map(|g| g.number);
        if bundle.role != self.fields.role || newest != Some(self.fields.generation) {
            return Err(Error::damaged("the keys in a key slot are not those that it names"));
        }
        Ok(bundle)
    }
}

/// The part of an admin's bundle that `role` gets.
pub fn narrowed(admin: &Bundle, role: Role) -> Bundle {
    let mut bundle = admin.clone();
    let opens_data = matches!(role, Role::Read | Role::Admin);
    bundle.role = role;
    bundle.boundary_key = bundle.boundary_key.filter(|_| role != Role::Read);
    bundle.master = bundle.master.filter(|_| role == Role::Admin);
    for generation in &mut bundle.generations {
        generation.data_private = generation.data_private.take().filter(|_| opens_data);
        generation.tree_private = generation.tree_private.take().filter(|_| role != Role::Put);
    }
    bundle
}

/// Adds a slot for `secret`, which exists durably on return.
pub fn create(
    storage: &dyn Storage,
    repository: RepositoryId,
    admin: &Bundle,
    new: &NewSlot,
    secret: &Secret,
    pending: Option<&Slot>,
) -> Result<SlotId> {
    let mut id = [0; SlotId::BYTES];
    getrandom::fill(&mut id).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    let id = SlotId::from_bytes(id);
    let holder = Holder::new(&secret.stretch(&new.salt, new.cost)?, id);
    let fields = Fields {
        id: (*id.as_bytes()).into(),
        repository: (*repository.as_bytes()).into(),
        role: new.role,
        label: new.label.clone(),
        created: new.created.seconds,
        salt: new.salt.into(),
        memory_kib: new.cost.memory_kib,
        passes: new.cost.passes,
        lanes: new.cost.lanes,
        public: holder.private.public().into(),
        generation: 0,
        sealed_key: [0; BOX_BYTES].into(),
        sealed_bundle: Vec::new().into(),
        sealed_mark_key: Vec::new().into(),
        pending: pending.and_then(|slot| slot.fields.pending.clone()),
    };
    publish(storage, admin, fields, &holder.mark_key)?;
    Ok(id)
}

/// Writes `slot` again with all keys of `admin`, which has those of the slot's generation, too. The slot must be one that
/// the caller trusts.
pub fn renew(storage: &dyn Storage, admin: &Bundle, slot: &Slot, pending: Option<Vec<[u8; 32]>>) -> Result<Published> {
    let mut sealed = Zeroizing::new(slot.fields.sealed_mark_key.to_vec());
    let wrapping = wrapping_key(admin, &slot.fields)?;
    let opened = Cipher::new(&wrapping).open(0, &about(&slot.fields), &mut sealed)?;
    let mark_key = <[u8; Key::BYTES]>::try_from(&*opened)
        .map(Key::from_bytes)
        .map_err(|_| Error::damaged("the key of a mark has the wrong length"))?;
    let pending = pending.map(|hashes| hashes.into_iter().map(ByteArray::from).collect());
    publish(storage, admin, Fields { pending, ..slot.fields.clone() }, &mark_key)
}

/// Seals the keys of `admin` that the role of `fields` gets, marks it all, and publishes it.
fn publish(storage: &dyn Storage, admin: &Bundle, mut fields: Fields, mark_key: &Key) -> Result<Published> {
    let newest = admin.generations.last().ok_or_else(|| Error::new(Kind::Failed, "a bundle without any generation"))?;
    fields.generation = newest.number;
    let about = about(&fields);
    let key = Key::random()?;
    let mut bundle = narrowed(admin, fields.role).encode()?;
    Cipher::new(&key).seal(0, &about, &mut bundle, 0)?;
    fields.sealed_key = seal::seal_to(&fields.public, &key, &about)?.into();
    fields.sealed_bundle = bundle.to_vec().into();
    // The key follows from slot and generation, and so does what is sealed: the same nonce seals the same bytes.
    let mut wrapped = Zeroizing::new(Vec::with_capacity(Key::BYTES + seal::TAG_BYTES));
    wrapped.extend_from_slice(mark_key.as_bytes());
    Cipher::new(&wrapping_key(admin, &fields)?).seal(0, &about, &mut wrapped, 0)?;
    fields.sealed_mark_key = wrapped.to_vec().into();
    let body = document::encode(&fields)?;
    let stored = Stored {
        holder_mark: mark(mark_key, &body).into(),
        admin_mark: mark(&admin_key(admin, fields.generation)?, &body).into(),
        body: body.into(),
    };
    let name = names::key_slot(SlotId::from_bytes(*fields.id), fields.generation)?;
    // In plain: it is read before there are any keys.
    let object = document::seal(&Keys::plain(), DocumentKind::KeySlot, &name, &document::encode(&stored)?)?;
    storage::create_new(storage, &name, &object)
}

/// What admins of a generation alone have. A former admin knows the master secret, but no later generation.
fn admin_key(admin: &Bundle, generation: u32) -> Result<Key> {
    let master = admin.master.as_ref();
    let private = admin.generations.iter().find(|g| g.number == generation).and_then(|g| g.data_private.as_ref());
    match (master, private) {
        (Some(master), Some(private)) => Ok(master.derive("ckpt key slot admin key v1", private.as_bytes())),
        _ => Err(Error::new(Kind::WrongKey, format!("key generation {generation} is not known to this key"))),
    }
}

fn wrapping_key(admin: &Bundle, fields: &Fields) -> Result<Key> {
    Ok(admin_key(admin, fields.generation)?.derive("ckpt key slot mark key v1", &*fields.id))
}

fn mark(key: &Key, body: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key.as_bytes(), body).as_bytes()
}

/// What sealed parts of a slot are bound to: repository, slot, generation.
fn about(fields: &Fields) -> Vec<u8> {
    [&fields.repository[..], &fields.id[..], &fields.generation.to_le_bytes()[..]].concat()
}

#[cfg(test)]
mod tests;
