//! The keys that a slot gives, by role: what is derived from the master secret, and the bytes that hold it.
//!
//! A bundle holds what its role needs and nothing beyond; one that does not is refused.

use super::Role;
use crate::codec::seal::{Key, PUBLIC_KEY_BYTES};
use crate::error::{Error, Kind, Result};
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

/// The most generations of keys that are believed.
const GENERATIONS_MAX: usize = 1 << 12;

/// The keys that packs are sealed to, from some time on until the next generation is made.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Generation {
    /// Counts from 1.
    #[n(0)]
    pub number: u32,
    /// Packs of content are sealed to this.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub data_public: [u8; PUBLIC_KEY_BYTES],
    /// Packs of metadata are sealed to this.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub tree_public: [u8; PUBLIC_KEY_BYTES],
    /// Opens packs of content.
    #[n(3)]
    pub data_private: Option<Key>,
    /// Opens packs of metadata.
    #[n(4)]
    pub tree_private: Option<Key>,
}

/// What a slot gives who unlocks it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bundle {
    /// What it allows.
    #[n(0)]
    pub role: Role,
    /// Names chunks.
    #[n(1)]
    pub id_key: Key,
    /// Decides where content is cut; not for [`Role::Read`].
    #[n(2)]
    pub boundary_key: Option<Key>,
    /// Opens and seals tables of packs.
    #[n(3)]
    pub table_key: Key,
    /// Opens and seals documents.
    #[n(4)]
    pub document_key: Key,
    /// Ascending.
    #[n(5)]
    pub generations: Vec<Generation>,
    /// What everything is derived from; for [`Role::Admin`] alone.
    #[n(6)]
    pub master: Option<Key>,
    /// The hash of the body of the parameters, which are stored in plain.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub config_hash: [u8; 32],
}

impl Bundle {
    /// What `role` gets of the keys that follow from the master secret, with generations 1 to `generations`.
    pub fn derive(master: &Key, generations: u32, role: Role, config_hash: [u8; 32]) -> Bundle {
        let generation = |number: u32| {
            let data = master.derive("ckpt data private key v1", &number.to_le_bytes());
            let tree = master.derive("ckpt tree private key v1", &number.to_le_bytes());
            Generation {
                number,
                data_public: data.public(),
                tree_public: tree.public(),
                data_private: role.opens_data().then_some(data),
                tree_private: role.opens_trees().then_some(tree),
            }
        };
        Bundle {
            role,
            id_key: master.derive("ckpt chunk id key v1", b""),
            boundary_key: role.adds().then(|| master.derive("ckpt boundary key v1", b"")),
            table_key: master.derive("ckpt table key v1", b""),
            document_key: master.derive("ckpt document key v1", b""),
            generations: (1..=generations.max(1)).map(generation).collect(),
            master: (role == Role::Admin).then(|| master.clone()),
            config_hash,
        }
    }

    /// Its bytes; they are as secret as the keys in it.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        // Large enough from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(512 + 256 * self.generations.len()));
        minicbor::encode(self, &mut *bytes)
            .map_err(|e| Error::new(Kind::Failed, format!("encoding a bundle of keys: {e}")))?;
        Ok(bytes)
    }

    /// The bundle that [`Bundle::encode`] wrote; what does not fit together is refused.
    pub fn decode(bytes: &[u8]) -> Result<Bundle> {
        let bundle: Bundle =
            minicbor::decode(bytes).map_err(|e| Error::damaged(format!("a bundle of keys cannot be decoded: {e}")))?;
        bundle.check()?;
        Ok(bundle)
    }

    fn check(&self) -> Result<()> {
        let fits = |private: &Option<Key>, public, is_needed| match private {
            Some(private) => is_needed && private.public() == public,
            None => !is_needed,
        };
        let generations_fit = self.generations.iter().all(|generation| {
            fits(&generation.data_private, generation.data_public, self.role.opens_data())
                && fits(&generation.tree_private, generation.tree_public, self.role.opens_trees())
        });
        let ascends = self.generations.windows(2).all(|pair| pair[0].number < pair[1].number);
        let is_whole = (1..=GENERATIONS_MAX).contains(&self.generations.len())
            && self.boundary_key.is_some() == self.role.adds()
            && self.master.is_some() == (self.role == Role::Admin);
        if generations_fit && ascends && is_whole {
            return Ok(());
        }
        Err(Error::damaged("a bundle of keys does not hold what its role needs"))
    }
}

impl<C> Encode<C> for Key {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(self.as_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Key {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bytes = <[u8; Key::BYTES]>::try_from(d.bytes()?);
        bytes.map(Key::from_bytes).map_err(|_| minicbor::decode::Error::message("a key of the wrong length"))
    }
}
