//! Secrets that people choose, and the keys made of them: Argon2id.
//!
//! A [`Secret`] is never empty, never printed, and wiped from memory when it is dropped. What it costs to turn one into a
//! key stands in [`Cost`], whose bounds hold for values from outside before any work is done. Where secrets come from is
//! not looked at here.

use super::seal::Key;
use crate::error::{Error, Kind, Result};
use argon2::{Algorithm, Argon2, Params, Version};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;

/// The longest secret in bytes.
pub const SECRET_BYTES_MAX: usize = 1 << 20;

const KIB_MIN: u32 = 8 << 10;
const KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

/// A passphrase, or the content of a key file.
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    /// The last key that was made of it: looking for its slot and making one take the same.
    stretched: Mutex<Option<Stretched>>,
}

struct Stretched {
    salt: [u8; SALT_BYTES],
    cost: Cost,
    key: Key,
}

impl Secret {
    /// The secret of these bytes, without one line end behind them. [`Kind::Usage`] if nothing is left, or too much.
    pub fn new(mut bytes: Zeroizing<Vec<u8>>) -> Result<Secret> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            return Err(Error::new(Kind::Usage, "the key is empty").with_hint("an empty key protects nothing"));
        }
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(Error::new(Kind::Usage, format!("the key is longer than {SECRET_BYTES_MAX} bytes")));
        }
        Ok(Secret { bytes, stretched: Mutex::new(None) })
    }

    /// True if both are the same.
    pub fn is_same(&self, other: &Secret) -> bool {
        // Both were typed or read just now by who holds them: there is nothing to time.
        *self.bytes == *other.bytes
    }

    /// The key that follows from this secret, `salt` and `cost`: slow, so that guessing is.
    pub fn stretch(&self, salt: &[u8; SALT_BYTES], cost: Cost) -> Result<Key> {
        cost.check()?;
        let mut last = self.stretched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.salt == *salt && last.cost == cost) {
            return Ok(last.key.clone());
        }
        let failure = |error| Error::new(Kind::Failed, format!("making a key of a passphrase ({cost}): {error}"));
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(Key::BYTES)).map_err(failure)?;
        let mut bytes = [0; Key::BYTES];
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let result = argon2.hash_password_into(&self.bytes, salt, &mut bytes).map_err(failure);
        let key = Key::from_bytes(bytes);
        bytes.zeroize();
        result?;
        *last = Some(Stretched { salt: *salt, cost, key: key.clone() });
        Ok(key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What Argon2id spends on a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
    /// Lanes of it.
    pub lanes: u32,
}

impl Default for Cost {
    /// The second recommendation of RFC 9106, section 4.
    fn default() -> Self {
        Cost { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl Cost {
    /// [`Kind::Damaged`] unless all values lie within their bounds: a stored cost may come from anybody.
    pub fn check(self) -> Result<()> {
        let fits = (KIB_MIN..=KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes);
        if fits {
            return Ok(());
        }
        Err(Error::damaged(format!(
            "{self}: not within {} MiB to {} GiB, 1 to {PASSES_MAX} passes, 1 to {LANES_MAX} lanes",
            KIB_MIN >> 10,
            KIB_MAX >> 20
        )))
    }

    /// How long it takes, in a unit of its own: KiB written.
    pub fn work(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Argon2id of {} KiB, {} passes, {} lanes", self.memory_kib, self.passes, self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Result<Secret> {
        Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn one_line_end_is_no_part_of_a_secret_and_an_empty_one_is_refused() {
        let is_same = |a: &str, b: &str| secret(a).expect("a secret").is_same(&secret(b).expect("a secret"));
        assert!(is_same("word\n", "word") && is_same("word\r\n", "word"));
        assert!(!is_same("word\n\n", "word") && !is_same(" word", "word") && !is_same("word\r", "word"));
        for empty in ["", "\n", "\r\n"] {
            assert_eq!(secret(empty).expect_err("empty").kind(), Kind::Usage);
        }
        let long = Secret::new(Zeroizing::new(vec![b'x'; SECRET_BYTES_MAX + 1]));
        assert_eq!(long.expect_err("too long").kind(), Kind::Usage);
        assert_eq!(format!("{:?}", secret("word").expect("a secret")), "Secret(..)");
    }

    #[test]
    fn a_cost_out_of_bounds_is_refused_before_any_work() {
        let usual = Cost::default();
        let wrong = [
            Cost { memory_kib: KIB_MIN - 1, ..usual },
            Cost { memory_kib: KIB_MAX + 1, ..usual },
            Cost { memory_kib: u32::MAX, ..usual },
            Cost { passes: 0, ..usual },
            Cost { passes: 17, ..usual },
            Cost { passes: u32::MAX, ..usual },
            Cost { lanes: 0, ..usual },
            Cost { lanes: 17, ..usual },
        ];
        for cost in wrong {
            let error = secret("word").expect("a secret").stretch(&[1; SALT_BYTES], cost).expect_err("out of bounds");
            assert_eq!(error.kind(), Kind::Damaged, "{cost}");
        }
        assert!(usual.check().is_ok());
    }

    /// Computed with another implementation, that of Python's `cryptography` (OpenSSL).
    #[test]
    fn keys_follow_from_secret_salt_and_cost() {
        let cost = Cost { memory_kib: 8192, passes: 2, lanes: 1 };
        let key =
            |word: &str, salt: &[u8; 16], cost| secret(word).expect("a secret").stretch(salt, cost).expect("a key");
        let first = key("word", b"0123456789abcdef", cost);
        let (kept, other) = (secret("word").expect("a secret"), Cost { passes: 1, ..cost });
        for cost in [cost, cost, other, cost] {
            let made = kept.stretch(b"0123456789abcdef", cost).expect("a key");
            assert!((made == first) == (cost != other), "the key that is kept is that of this cost");
        }
        assert_eq!(first.as_bytes(), &hex("e1d1a0c9dadcf97f260d68ff8d95c5e29d0a9aa4defe5dfa8bf4655bfee5b11e"));
        let lanes = key("word", b"0123456789abcdef", Cost { passes: 1, lanes: 4, ..cost });
        assert_eq!(lanes.as_bytes(), &hex("5c81de0cb20f7a9149366b65aed9af6159c401f24158bd4e1a03be5a0be17351"));
        assert!(first != key("ward", b"0123456789abcdef", cost) && first != key("word", b"0123456789abcdeg", cost));
    }

    fn hex(text: &str) -> [u8; 32] {
        *crate::ids::ChunkId::from_hex(text).expect("digits").as_bytes()
    }
}
