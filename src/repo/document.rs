//! The envelope of small objects: a body stored twice, each copy with its own checksum.
//!
//! Any damage to one copy is detected and the other serves; damage to both is reported. What bodies hold is the
//! business of their own files; how names are chosen is [`super::names`]'s.
//!
//! One copy (`docs/FORMAT.md`, "Documents"), all integers little-endian:
//!
//! ```text
//! 0   8   magic "CKPTDOC\0"
//! 8   1   kind of document
//! 9   1   format version
//! 10  1   envelope: 0 the body is plain, 1 it is sealed: a salt of 32 bytes, then the sealed body and its tag of 16
//! 11  1   zero
//! 12  4   length of the body
//! 16  n   body
//! 16+n 32 BLAKE3 of all the bytes before
//! ```

use super::keys::Keys;
use crate::error::{Error, Kind, Result};
use crate::sabotage::is_planted;
use crate::storage::{ObjectName, Storage};
use minicbor::{Decode, Encode};
use std::borrow::Cow;

const MAGIC: &[u8; 8] = b"CKPTDOC\0";
const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;
const SALT_BYTES: usize = 32;

/// The newest format version that this program reads and the one it writes.
pub const FORMAT_VERSION: u8 = 1;

/// The longest body of any kind.
pub const BODY_BYTES_MAX: u64 = 256 << 20;

/// What a document is about: a byte in its header, so that one can never be taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DocumentKind {
    /// Repository parameters.
    Config = 1,
    /// A writer that has begun.
    Transaction = 2,
    /// How a transaction ended.
    Snapshot = 3,
    /// A snapshot that is no longer live.
    Forgotten = 4,
    /// Packs that a prune means to delete, or has decided to delete.
    Condemned = 5,
    /// What was verified when.
    History = 6,
    /// The tags of a snapshot after a change.
    Tags = 7,
    /// A key slot.
    KeySlot = 8,
    /// A pack that is damaged and set aside.
    Quarantine = 9,
    /// A record of the audit log.
    Audit = 10,
}

impl DocumentKind {
    /// The longest body of this kind that is written or believed: only lists of packs and of chunks are long.
    const fn body_bytes_max(self) -> u64 {
        match self {
            DocumentKind::Condemned | DocumentKind::History | DocumentKind::Quarantine => BODY_BYTES_MAX,
            DocumentKind::Snapshot => 64 << 20,
            DocumentKind::Audit => 16 << 20,
            _ => 1 << 20,
        }
    }

    /// The longest object of this kind that is read.
    pub const fn object_bytes_max(self) -> u64 {
        2 * (self.body_bytes_max() + (HEADER_BYTES + CHECKSUM_BYTES) as u64)
    }
}

/// A body read back and whether both of its copies were sound.
#[derive(Debug)]
pub struct Opened {
    /// The body.
    pub body: Vec<u8>,
    /// False if one of the two copies is damaged.
    pub both_copies_sound: bool,
}

/// The bytes of the object that holds `body` twice, to stand under `name`.
pub fn seal(keys: &Keys, kind: DocumentKind, name: &ObjectName, body: &[u8]) -> Result<Vec<u8>> {
    let body = sealed_body(keys, kind, name, body)?;
    let body_bytes = u32::try_from(body.len())
        .ok()
        .filter(|&n| u64::from(n) <= kind.body_bytes_max())
        .ok_or_else(|| Error::new(Kind::Failed, format!("a {kind:?} document of {} bytes is too long", body.len())))?;
    let mut copy = Vec::with_capacity(2 * (HEADER_BYTES + body.len() + CHECKSUM_BYTES));
    copy.extend_from_slice(MAGIC);
    copy.extend_from_slice(&[kind as u8, FORMAT_VERSION, u8::from(keys.is_encrypted()), 0]);
    copy.extend_from_slice(&body_bytes.to_le_bytes());
    copy.extend_from_slice(&body);
    let checksum = blake3::hash(&copy);
    copy.extend_from_slice(checksum.as_bytes());
    copy.extend_from_within(..);
    Ok(copy)
}

/// What stands where the body belongs: in an encrypted repository a fresh salt and the body, sealed under a key that
/// comes from the salt and is used once.
fn sealed_body<'b>(keys: &Keys, kind: DocumentKind, name: &ObjectName, body: &'b [u8]) -> Result<Cow<'b, [u8]>> {
    let mut salt = [0u8; SALT_BYTES];
    let Some(_) = keys.bundle() else { return Ok(Cow::Borrowed(body)) };
    getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    let Some((cipher, associated)) = keys.document_cipher(&salt, kind as u8, name) else {
        return Ok(Cow::Borrowed(body));
    };
    let mut sealed = [&salt, body].concat();
    cipher.seal(0, &associated, &mut sealed, SALT_BYTES)?;
    Ok(Cow::Owned(sealed))
}

/// The body in `object`, which stands under `name`, from whichever copy is sound. In an encrypted repository a body that is
/// not sealed, or was sealed for another place, is damage.
pub fn open(keys: &Keys, kind: DocumentKind, name: &ObjectName, object: &[u8]) -> Result<Opened> {
    let found = find(keys, kind, name, object)?;
    Ok(Opened { body: found.body.into_owned(), both_copies_sound: found.both_copies_sound })
}

/// A body, and which of the object's copies it was found in.
struct Found<'o> {
    body: Cow<'o, [u8]>,
    /// Where that copy begins.
    copy: usize,
    both_copies_sound: bool,
}

fn find<'o>(keys: &Keys, kind: DocumentKind, name: &ObjectName, object: &'o [u8]) -> Result<Found<'o>> {
    let open_copy = |copy| open_copy(keys, kind, name, copy);
    let (first, second) = object.split_at(object.len() / 2);
    match open_copy(first) {
        // Copies are written alike, so the second needs no look of its own.
        Ok(body) => Ok(Found { body, copy: 0, both_copies_sound: first == second }),
        Err(error) if is_planted("second-copy-not-tried") => Err(error),
        Err(error) => match (open_copy(second), front(object)) {
            (Ok(body), _) => Ok(Found { body, copy: first.len(), both_copies_sound: false }),
            // A truncated object no longer splits in the middle: its first copy may still be whole at the front.
            (Err(_), Some(copy)) => {
                let body = open_copy(copy).map_err(|_| error)?;
                Ok(Found { body, copy: 0, both_copies_sound: false })
            }
            (Err(_), None) => Err(error),
        },
    }
}

/// The object as it was written under `name`, from whichever copy in `object` is sound; none if neither is. For repair.
pub fn rebuilt(keys: &Keys, kind: DocumentKind, name: &ObjectName, object: &[u8]) -> Option<Vec<u8>> {
    let (first, second) = object.split_at(object.len() / 2);
    let copy = [Some(first), Some(second), front(object)]
        .into_iter()
        .flatten()
        .find(|copy| open_copy(keys, kind, name, copy).is_ok())?;
    Some([copy, copy].concat())
}

fn front(object: &[u8]) -> Option<&[u8]> {
    let body_bytes = u32::from_le_bytes(object.get(12..HEADER_BYTES)?.try_into().ok()?);
    let copy_bytes = usize::try_from(body_bytes).ok()?.checked_add(HEADER_BYTES + CHECKSUM_BYTES)?;
    object.get(..copy_bytes)
}

fn open_copy<'c>(keys: &Keys, kind: DocumentKind, name: &ObjectName, copy: &'c [u8]) -> Result<Cow<'c, [u8]>> {
    if copy.len() < HEADER_BYTES + CHECKSUM_BYTES {
        return Err(Error::damaged(format!("a document of {} bytes is too short", copy.len())));
    }
    let (covered, checksum) = copy.split_at(copy.len() - CHECKSUM_BYTES);
    let (header, body) = covered.split_at(HEADER_BYTES);
    if &header[..8] != MAGIC {
        return Err(Error::damaged("not a document: wrong magic"));
    }
    if blake3::hash(covered).as_bytes() != checksum && !is_planted("document-checksum-ignored") {
        return Err(Error::damaged("the checksum of a document does not match"));
    }
    // Only now is the header to be believed: a flipped bit must not look like a newer version.
    if header[9] > FORMAT_VERSION || header[10] > 1 {
        return Err(Error::new(Kind::FormatTooNew, format!("written in format version {}", header[9]))
            .with_hint("use a newer ckpt"));
    }
    if header[8] != kind as u8 {
        return Err(Error::damaged(format!("a document of kind {} stands where {kind:?} belongs", header[8])));
    }
    if header[12..16] != u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes() {
        return Err(Error::damaged("the length of a document does not match"));
    }
    opened_body(keys, kind, name, header[10] == 1, body)
}

fn opened_body<'c>(
    keys: &Keys,
    kind: DocumentKind,
    name: &ObjectName,
    is_sealed: bool,
    body: &'c [u8],
) -> Result<Cow<'c, [u8]>> {
    match (is_sealed, keys.is_encrypted()) {
        (false, false) => return Ok(Cow::Borrowed(body)),
        (false, true) if is_planted("plain-document-accepted") => return Ok(Cow::Borrowed(body)),
        (false, true) => return Err(Error::damaged("a document of an encrypted repository is not sealed")),
        (true, false) => return Err(Error::damaged("a sealed document in a repository without encryption")),
        (true, true) => {}
    }
    let (salt, sealed) =
        body.split_at_checked(SALT_BYTES).ok_or_else(|| Error::damaged("a sealed document is too short"))?;
    let Some((cipher, associated)) = keys.document_cipher(salt, kind as u8, name) else {
        return Err(Error::damaged("a sealed document in a repository without encryption"));
    };
    let mut content = sealed.to_vec();
    let bytes = cipher.open(0, &associated, &mut content)?.len();
    content.truncate(bytes);
    Ok(Cow::Owned(content))
}

/// Encodes a value as the numbered-field binary form (CBOR maps with integer keys) that bodies have.
pub fn encode<T: Encode<()>>(value: &T) -> Result<Vec<u8>> {
    minicbor::to_vec(value).map_err(|e| Error::new(Kind::Failed, format!("encoding a record: {e}")))
}

/// Decodes a body; fields that this version does not know are passed over.
pub fn decode<'b, T: Decode<'b, ()>>(body: &'b [u8], what: &str) -> Result<T> {
    minicbor::decode(body).map_err(|e| Error::damaged(format!("{what} cannot be decoded: {e}")))
}

/// Reads and opens the document under `name`.
pub fn read(storage: &dyn Storage, keys: &Keys, kind: DocumentKind, name: &ObjectName) -> Result<Opened> {
    let mut object = storage.read(name, kind.object_bytes_max())?;
    let Found { body, copy, both_copies_sound } = find(keys, kind, name, &object).map_err(|e| e.while_doing(name))?;
    let body_bytes = match body {
        Cow::Owned(body) => return Ok(Opened { body, both_copies_sound }),
        Cow::Borrowed(body) => body.len(),
    };
    // In place: a list of packs may be long, and is there twice as it is.
    object.truncate(copy + HEADER_BYTES + body_bytes);
    object.drain(..copy + HEADER_BYTES);
    object.shrink_to_fit();
    Ok(Opened { body: object, both_copies_sound })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ObjectName {
        ObjectName::new("tags/x").expect("a name")
    }

    #[test]
    fn every_single_bit_flip_leaves_the_body_readable_and_is_noticed() {
        let object =
            seal(&Keys::plain(), DocumentKind::Snapshot, &name(), b"the body of a snapshot").expect("short body");
        for bit in 0..object.len() * 8 {
            let mut damaged = object.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opened =
                open(&Keys::plain(), DocumentKind::Snapshot, &name(), &damaged).expect("the other copy serves");
            assert_eq!(opened.body, b"the body of a snapshot");
            assert!(!opened.both_copies_sound, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn every_truncation_is_noticed_and_the_first_copy_serves_while_it_is_whole() {
        let object = seal(&Keys::plain(), DocumentKind::Config, &name(), b"parameters").expect("short body");
        for len in 0..object.len() {
            match open(&Keys::plain(), DocumentKind::Config, &name(), &object[..len]) {
                Ok(opened) => {
                    assert!(len >= object.len() / 2);
                    assert!(!opened.both_copies_sound);
                }
                Err(error) => assert!(len < object.len() / 2, "{len}: {error}"),
            }
        }
    }

    #[test]
    fn an_object_is_rebuilt_from_either_copy_as_it_was() {
        let body = b"the body of a snapshot";
        let object = seal(&Keys::plain(), DocumentKind::Snapshot, &name(), body).expect("short body");
        assert_eq!(rebuilt(&Keys::plain(), DocumentKind::Snapshot, &name(), &object).as_ref(), Some(&object));
        for at in 0..object.len() {
            let mut damaged = object.clone();
            damaged[at] ^= 1;
            assert_eq!(
                rebuilt(&Keys::plain(), DocumentKind::Snapshot, &name(), &damaged).as_ref(),
                Some(&object),
                "{at}"
            );
            let front = rebuilt(&Keys::plain(), DocumentKind::Snapshot, &name(), &object[..at]);
            assert_eq!(front.as_ref(), (at >= object.len() / 2).then_some(&object), "{at}");
            damaged[(at + object.len() / 2) % object.len()] ^= 1;
            assert_eq!(rebuilt(&Keys::plain(), DocumentKind::Snapshot, &name(), &damaged), None, "{at}");
        }
        assert_eq!(rebuilt(&Keys::plain(), DocumentKind::Tags, &name(), &object), None);
        let longer = [object.as_slice(), b"and more"].concat();
        assert_eq!(rebuilt(&Keys::plain(), DocumentKind::Snapshot, &name(), &longer), Some(object));
    }

    #[test]
    fn a_document_of_another_kind_and_a_newer_version_are_refused() {
        let object = seal(&Keys::plain(), DocumentKind::Tags, &name(), b"x").expect("short body");
        assert_eq!(
            open(&Keys::plain(), DocumentKind::Snapshot, &name(), &object).expect_err("kind").kind(),
            Kind::Damaged
        );
        let mut copy = object[..object.len() / 2 - 32].to_vec();
        copy[9] = 2;
        let sum = blake3::hash(&copy);
        copy.extend_from_slice(sum.as_bytes());
        copy.extend_from_within(..);
        assert_eq!(
            open(&Keys::plain(), DocumentKind::Tags, &name(), &copy).expect_err("version").kind(),
            Kind::FormatTooNew
        );
    }
}
