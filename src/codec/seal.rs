//! Sealing bytes: keys, authenticated encryption under a key, boxes sealed to a public key.
//!
//! What was sealed opens only unchanged, under the same key, nonce and associated data; everything else is an error of
//! [`Kind::Damaged`], which cannot tell rot from forgery. Keys are wiped from memory when they are dropped, and never
//! printed. Which key is for what is `repo::keys`' business; nothing here draws a nonce: callers have one that never
//! repeats under its key.

use crate::error::{Error, Kind, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// What sealing adds to the length of what is sealed.
pub const TAG_BYTES: usize = 16;
/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of a key sealed to a public key: the ephemeral public key, the sealed key.
pub const BOX_BYTES: usize = PUBLIC_KEY_BYTES + Key::BYTES + TAG_BYTES;

/// What a box is sealed with, from the shared secret and both public keys.
const BOX_CONTEXT: &str = "ckpt sealed box v1";

/// 256 secret bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; Key::BYTES]);

impl Key {
    /// Its length.
    pub const BYTES: usize = 32;

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; Key::BYTES]) -> Key {
        Key(bytes)
    }

    /// A fresh key.
    pub fn random() -> Result<Key> {
        let mut key = Key([0; Key::BYTES]);
        getrandom::fill(&mut key.0).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
        Ok(key)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; Key::BYTES] {
        &self.0
    }

    /// The key for `purpose`, one of a fixed set of texts, and `data`; it tells nothing about this one.
    pub fn derive(&self, purpose: &str, data: &[u8]) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&self.0).update(data);
        let mut derived = Key([0; Key::BYTES]);
        hasher.finalize_xof().fill(&mut derived.0);
        derived
    }

    /// The public key that belongs to this private one.
    pub fn public(&self) -> [u8; PUBLIC_KEY_BYTES] {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A key made ready for sealing and opening many times: AES-256-GCM.
pub struct Cipher(LessSafeKey);

impl Cipher {
    /// The cipher under `key`.
    pub fn new(key: &Key) -> Cipher {
        let unbound = UnboundKey::new(&AES_256_GCM, &key.0).expect("the cipher takes keys of this very length");
        Cipher(LessSafeKey::new(unbound))
    }

    /// Seals what stands in `bytes` from `from` on, in place, and appends the tag. A nonce must never come twice.
    pub fn seal(&self, nonce: u64, associated: &[u8], bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let tag = self.seal_apart(nonce, associated, bytes.get_mut(from..).unwrap_or_default())?;
        bytes.extend_from_slice(&tag);
        Ok(())
    }

    /// The same; the tag is for the caller to put behind them.
    pub fn seal_apart(&self, nonce: u64, associated: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG_BYTES]> {
        let mut out = [0; TAG_BYTES];
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce_of(nonce), Aad::from(associated), bytes)
            .map_err(|_| Error::new(Kind::Failed, "more bytes than can be sealed at once"))?;
        out.copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens sealed bytes in place; the content is what they begin with then.
    pub fn open<'b>(&self, nonce: u64, associated: &[u8], sealed: &'b mut [u8]) -> Result<&'b mut [u8]> {
        self.0
            .open_in_place(nonce_of(nonce), Aad::from(associated), sealed)
            .map_err(|_| Error::damaged("sealed bytes do not open: changed, or sealed with another key"))
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(..)")
    }
}

fn nonce_of(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Seals a key so that only the holder of the private key to `public` can open it. Says nothing about who sealed it.
pub fn seal_to(public: &[u8; PUBLIC_KEY_BYTES], key: &Key, associated: &[u8]) -> Result<[u8; BOX_BYTES]> {
    let ephemeral = Key::random()?;
    let ephemeral_public = ephemeral.public();
    let cipher = Cipher::new(&box_key(&ephemeral, public, &ephemeral_public, public)?);
    // Each box has a key of its own, so its nonce comes once.
    let mut sealed = Zeroizing::new(Vec::with_capacity(Key::BYTES + TAG_BYTES));
    sealed.extend_from_slice(key.as_bytes());
    cipher.seal(0, associated, &mut sealed, 0)?;
    let mut out = [0; BOX_BYTES];
    out[..PUBLIC_KEY_BYTES].copy_from_slice(&ephemeral_public);
    out[PUBLIC_KEY_BYTES..].copy_from_slice(&sealed);
    Ok(out)
}

/// Opens what [`seal_to`] sealed to the public key that belongs to `private`.
pub fn open_box(private: &Key, sealed: &[u8], associated: &[u8]) -> Result<Key> {
    let (ephemeral_public, wrapped) = sealed
        .split_first_chunk::<PUBLIC_KEY_BYTES>()
        .filter(|_| sealed.len() == BOX_BYTES)
        .ok_or_else(|| Error::damaged(format!("a sealed key of {} bytes", sealed.len())))?;
    let cipher = Cipher::new(&box_key(private, ephemeral_public, ephemeral_public, &private.public())?);
    let mut wrapped = Zeroizing::new(wrapped.to_vec());
    let opened = cipher.open(0, associated, &mut wrapped)?;
    let bytes = <[u8; Key::BYTES]>::try_from(&*opened).map_err(|_| Error::damaged("a sealed key of another length"))?;
    Ok(Key(bytes))
}

/// The key of a box: bound to both public keys, so that a box cannot be turned into one for somebody else.
fn box_key(
    private: &Key,
    other: &[u8; PUBLIC_KEY_BYTES],
    ephemeral: &[u8; PUBLIC_KEY_BYTES],
    recipient: &[u8; PUBLIC_KEY_BYTES],
) -> Result<Key> {
    let shared = StaticSecret::from(private.0).diffie_hellman(&PublicKey::from(*other));
    if !shared.was_contributory() {
        return Err(Error::damaged("a public key of a sealed key is none that anybody has"));
    }
    let shared = Key(shared.to_bytes());
    let mut both = [0; 2 * PUBLIC_KEY_BYTES];
    both[..PUBLIC_KEY_BYTES].copy_from_slice(ephemeral);
    both[PUBLIC_KEY_BYTES..].copy_from_slice(recipient);
    Ok(shared.derive(BOX_CONTEXT, &both))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::from_bytes([byte; 32])
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_key_nonce_and_associated_data_only() {
        let cipher = Cipher::new(&key(1));
        let mut sealed = b"front content".to_vec();
        cipher.seal(7, b"about", &mut sealed, 6).expect("short");
        assert!(sealed.starts_with(b"front ") && sealed.len() == 13 + TAG_BYTES);
        let open = |cipher: &Cipher, nonce, about: &[u8], bytes: &[u8]| {
            cipher.open(nonce, about, &mut bytes.to_vec()).map(|b| b.to_vec()).map_err(|e| e.kind())
        };
        let sealed = &sealed[6..];
        assert_eq!(open(&cipher, 7, b"about", sealed), Ok(b"content".to_vec()));
        assert_eq!(open(&cipher, 8, b"about", sealed), Err(Kind::Damaged));
        assert_eq!(open(&cipher, 7, b"other", sealed), Err(Kind::Damaged));
        assert_eq!(open(&Cipher::new(&key(2)), 7, b"about", sealed), Err(Kind::Damaged));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&cipher, 7, b"about", &changed), Err(Kind::Damaged), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(open(&cipher, 7, b"about", &sealed[..length]), Err(Kind::Damaged), "{length} bytes");
        }
    }

    #[test]
    fn a_box_opens_with_its_private_key_and_unchanged_only() {
        let (private, secret) = (key(3), key(4));
        let sealed = seal_to(&private.public(), &secret, b"pack").expect("a random key");
        assert_eq!(open_box(&private, &sealed, b"pack").expect("own box"), secret);
        assert_ne!(sealed, seal_to(&private.public(), &secret, b"pack").expect("a random key"), "never the same twice");
        assert!(open_box(&private, &sealed, b"tree").is_err() && open_box(&key(5), &sealed, b"pack").is_err());
        assert!(open_box(&private, &sealed[1..], b"pack").is_err() && open_box(&private, b"", b"pack").is_err());
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            // The highest bit of a public key means nothing on the curve, but the key of the box is bound to it.
            assert!(open_box(&private, &changed, b"pack").is_err(), "bit {bit}");
        }
    }

    #[test]
    fn public_keys_that_force_the_shared_secret_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for public in [[0; 32], one] {
            assert!(seal_to(&public, &key(1), b"").is_err());
            let mut sealed = [7; BOX_BYTES];
            sealed[..32].copy_from_slice(&public);
            assert_eq!(open_box(&key(3), &sealed, b"").expect_err("a point of small order").kind(), Kind::Damaged);
        }
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_data_and_nothing_prints_a_key() {
        let all = [key(1).derive("a", b""), key(1).derive("b", b""), key(1).derive("a", b"x"), key(2).derive("a", b"")];
        for (position, one) in all.iter().enumerate() {
            assert!(all[..position].iter().all(|other| other != one));
        }
        assert_eq!(format!("{:?} {:?}", key(0x77), Cipher::new(&key(1))), "Key(..) Cipher(..)");
    }
}
