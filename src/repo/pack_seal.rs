//! How a pack of an encrypted repository is sealed.
//!
//! Each pack has a fresh random key, which stands in its header, sealed to the public key of a generation: one for content,
//! another for metadata. Frames are sealed one by one under it, bound to their place and to the header, so that each
//! opens alone and none can stand elsewhere. The table is sealed under a key of its own, which every role has. Nothing
//! is read or written here.
//!
//! ```text
//! 64  4   generation, u32
//! 68  12  zero
//! 80  80  the key of the pack, sealed: ephemeral public key 32, sealed key 32, tag 16
//! ```

use super::keys::{Bundle, Role};
use super::pack::PackKind;
use crate::codec::seal::{self, BOX_BYTES, Cipher, Key};
use crate::error::{Error, Kind, Result};

/// Bytes of the header of a sealed pack.
pub(super) const SEALED_HEADER_BYTES: usize = 160;
/// What the sealed key is bound to: all of the header before it.
const FRONT_BYTES: usize = SEALED_HEADER_BYTES - BOX_BYTES;

/// An opened pack: what its frames are sealed with.
#[derive(Debug)]
pub(super) struct PackSeal {
    cipher: Cipher,
    header_hash: [u8; 32],
}

impl PackSeal {
    /// Draws the key of a new pack and completes its header.
    pub(super) fn begin(header: &mut Vec<u8>, bundle: &Bundle, kind: PackKind) -> Result<PackSeal> {
        let newest =
            bundle.generations.last().ok_or_else(|| Error::new(Kind::WrongKey, "a key that can seal nothing"))?;
        header.extend_from_slice(&newest.number.to_le_bytes());
        header.resize(FRONT_BYTES, 0);
        let key = Key::random()?;
        let public = match kind {
            PackKind::Data => &newest.data_public,
            PackKind::Tree => &newest.tree_public,
        };
        let sealed = seal::seal_to(public, &key, header)?;
        header.extend_from_slice(&sealed);
        Ok(PackSeal { cipher: Cipher::new(&key), header_hash: *blake3::hash(header).as_bytes() })
    }

    /// What the whole header `header` of a pack gives who has the keys of its generation.
    pub(super) fn unlock(header: &[u8], bundle: &Bundle) -> Result<PackSeal> {
        let (Some(front), Some(sealed)) = (header.get(..FRONT_BYTES), header.get(FRONT_BYTES..SEALED_HEADER_BYTES))
        else {
            return Err(Error::damaged("the header of a pack is too short"));
        };
        let number = front[64..68].try_into().map_or(0, u32::from_le_bytes);
        let generation = bundle.generations.iter().find(|g| g.number == number).ok_or_else(|| {
            Error::new(
                Kind::WrongKey,
                format!("it is sealed with keys of generation {number}, which this key does not have"),
            )
            .with_hint("let an admin add this key anew")
        })?;
        let kind = PackKind::from_code(front[11])?;
        let private = match kind {
            PackKind::Data => generation.data_private.as_ref(),
            PackKind::Tree => generation.tree_private.as_ref(),
        };
        let key = seal::open_box(private.ok_or_else(|| not_allowed(bundle.role, kind))?, sealed, front)?;
        Ok(PackSeal { cipher: Cipher::new(&key), header_hash: *blake3::hash(header).as_bytes() })
    }

    /// Seals `frame` into `sealed`, which is longer by a tag, to stand at `offset`. Frames are never empty, so no two of a pack
    /// begin at one place.
    pub(super) fn seal_frame(&self, offset: u64, frame: &[u8], sealed: &mut [u8]) -> Result<()> {
        let too_short = || Error::new(Kind::Failed, "no room for a sealed frame");
        let (content, tag) = sealed.split_at_mut_checked(frame.len()).ok_or_else(too_short)?;
        content.copy_from_slice(frame);
        let computed = self.cipher.seal_apart(offset, &self.header_hash, content)?;
        tag.first_chunk_mut().ok_or_else(too_short).map(|tag| *tag = computed)
    }

    /// Opens a frame in place.
    pub(super) fn open_frame<'b>(&self, offset: u64, stored: &'b mut [u8]) -> Result<&'b mut [u8]> {
        self.cipher.open(offset, &self.header_hash, stored)
    }
}

/// The error of a role that may not open packs of this kind.
pub(super) fn not_allowed(role: Role, kind: PackKind) -> Error {
    let what = match kind {
        PackKind::Data => "contents",
        PackKind::Tree => "lists of files",
    };
    let may = match role {
        Role::Put => "only add",
        _ => "only add, and delete what nothing needs",
    };
    Error::new(Kind::WrongKey, format!("this key may {may} (role {}); {what} need a read key", role.name()))
        .with_hint("give a key of the role read or admin")
}

/// What the table of a pack is sealed with: the header is different for every pack.
pub(super) fn table_cipher(bundle: &Bundle, header: &[u8]) -> Cipher {
    Cipher::new(&bundle.table_key.derive("ckpt pack table v1", header))
}

/// What the table of a pack is sealed with in index objects. The same section may be written several times, so the key
/// is made from all that stands before the table: then what is sealed twice under it is the same.
pub(super) fn section_cipher(bundle: &Bundle, head: &[u8]) -> Cipher {
    Cipher::new(&bundle.table_key.derive("ckpt index section v1", head))
}
