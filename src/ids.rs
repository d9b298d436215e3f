//! Identifiers: fixed-length byte strings, shown in lower-case hexadecimal.
//!
//! One macro makes them all, so that two kinds of id can never be mixed up.

use crate::error::{Error, Kind, Result};
use std::fmt;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $bytes:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The number of bytes of the id.
            pub const BYTES: usize = $bytes;

            /// The id made of exactly these bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The id in `bytes`; an error if the length differs.
            pub fn from_slice(bytes: &[u8]) -> Result<Self> {
                let array = <[u8; $bytes]>::try_from(bytes).map_err(|_| {
                    Error::damaged(format!("{} of {} bytes, not {}", stringify!($name), bytes.len(), $bytes))
                })?;
                Ok(Self(array))
            }

            /// The id written as `text`; an error if it is not that many hexadecimal digits, in lower case.
            pub fn from_hex(text: &str) -> Result<Self> {
                let mut bytes = [0u8; $bytes];
                if !hex_decode(text, &mut bytes) {
                    return Err(Error::new(Kind::Usage, format!("{text:?} is not a {}", stringify!($name))));
                }
                Ok(Self(bytes))
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The id as lower-case hexadecimal digits.
            pub fn to_hex(self) -> String {
                hex_encode(&self.0)
            }

            /// The first eight digits: enough for a person to recognise it.
            pub fn short(self) -> String {
                hex_encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex_encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex_encode(&self.0))
            }
        }
    };
}

id_type!(
    /// Names a chunk: the BLAKE3 hash of its content, whatever its encoding (keyed in an encrypted repository).
    ChunkId, 32
);
id_type!(
    /// Names a pack: the BLAKE3 hash of its stored bytes, so that it is checked without any key.
    PackId, 32
);
id_type!(
    /// Names an index object: random.
    IndexId, 16
);
id_type!(
    /// Names a transaction, and the snapshot it ends as: 128 random bits, drawn when it begins.
    SnapshotId, 16
);
id_type!(
    /// Names a repository: random, drawn by `init`.
    RepositoryId, 16
);
id_type!(
    /// Names a history record: random.
    HistoryId, 16
);
id_type!(
    /// Names a key slot: random.
    SlotId, 16
);

impl ChunkId {
    /// The id of no content: stands for a hole in a chunk list. No content hashes to it in practice.
    pub const HOLE: ChunkId = ChunkId::from_bytes([0; 32]);

    /// The id of `content` in a repository without encryption.
    pub fn of(content: &[u8]) -> ChunkId {
        ChunkId(*blake3::hash(content).as_bytes())
    }
}

fn hex_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|&byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

fn hex_decode(text: &str, into: &mut [u8]) -> bool {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    if text.len() != into.len() * 2 {
        return false;
    }
    for (pair, byte) in text.as_bytes().chunks_exact(2).zip(into) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_what_is_not_an_id() {
        let id = SnapshotId::from_bytes(std::array::from_fn(|i| u8::try_from(i * 16 + 3).unwrap_or(9)));
        assert_eq!(SnapshotId::from_hex(&id.to_hex()).expect("own hex"), id);
        assert!(SnapshotId::from_hex("00").is_err());
        assert!(SnapshotId::from_hex(&"G".repeat(32)).is_err());
        assert!(SnapshotId::from_hex(&"é".repeat(16)).is_err());
    }
}
