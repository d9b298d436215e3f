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
//! 10  1   envelope: 0 plain (1 is reserved for sealed bodies)
//! 11  1   zero
//! 12  4   length of the body
//! 16  n   body
//! 16+n 32 BLAKE3 of all the bytes before
//! ```

use super::keys::Keys;
use crate::error::{Error, Kind, Result};
use crate::storage::{ObjectName, Storage};
use minicbor::{Decode, Encode};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"CKPTDOC\0";
const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;

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
    /// The longest body of this kind that is written or believed: only lists of packs grow with the repository.
    const fn body_bytes_max(self) -> u64 {
        match self {
            DocumentKind::Condemned | DocumentKind::History | DocumentKind::Audit => BODY_BYTES_MAX,
            DocumentKind::Snapshot => 64 << 20,
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
pub fn seal(_keys: &Keys, kind: DocumentKind, _name: &ObjectName, body: &[u8]) -> Result<Vec<u8>> {
    let body_bytes = u32::try_from(body.len())
        .ok()
        .filter(|&n| u64::from(n) <= kind.body_bytes_max())
        .ok_or_else(|| Error::new(Kind::Failed, format!("a {kind:?} document of {} bytes is too long", body.len())))?;
    let mut copy = Vec::with_capacity(2 * (HEADER_BYTES + body.len() + CHECKSUM_BYTES));
    copy.extend_from_slice(MAGIC);
    copy.extend_from_slice(&[kind as u8, FORMAT_VERSION, 0, 0]);
    copy.extend_from_slice(&body_bytes.to_le_bytes());
    copy.extend_from_slice(body);
    let checksum = blake3::hash(&copy);
    copy.extend_from_slice(checksum.as_bytes());
    copy.extend_from_within(..);
    Ok(copy)
}

/// The body in `object`, which stands under `name`, from whichever copy is sound.
pub fn open(_keys: &Keys, kind: DocumentKind, _name: &ObjectName, object: &[u8]) -> Result<Opened> {
    let (place, both_copies_sound) = find_body(kind, object)?;
    Ok(Opened { body: object[place].to_vec(), both_copies_sound })
}

/// Where in `object` the body of a sound copy lies, and whether both copies are sound.
fn find_body(kind: DocumentKind, object: &[u8]) -> Result<(Range<usize>, bool)> {
    let (first, second) = object.split_at(object.len() / 2);
    let place = |copy: usize, body: &[u8]| copy + HEADER_BYTES..copy + HEADER_BYTES + body.len();
    match (open_copy(kind, first), open_copy(kind, second)) {
        (Ok(body), other) => Ok((place(0, body), other.is_ok_and(|b| b == body))),
        (Err(_), Ok(body)) => Ok((place(first.len(), body), false)),
        // A truncated object no longer splits in the middle: its first copy may still be whole at the front.
        (Err(error), Err(_)) => match open_front(kind, object) {
            Some(body) => Ok((place(0, body), false)),
            None => Err(error),
        },
    }
}

/// The object as it was written, from whichever copy in `object` is sound; none if neither is. For repair: what is inside
/// the body is not looked at, so no key is needed.
pub fn rebuilt(kind: DocumentKind, object: &[u8]) -> Option<Vec<u8>> {
    let (first, second) = object.split_at(object.len() / 2);
    let copy_bytes = |body: &[u8]| HEADER_BYTES + body.len() + CHECKSUM_BYTES;
    let copy = match (open_copy(kind, first), open_copy(kind, second)) {
        (Ok(_), _) => first,
        (Err(_), Ok(_)) => second,
        (Err(_), Err(_)) => object.get(..copy_bytes(open_front(kind, object)?))?,
    };
    Some([copy, copy].concat())
}

fn open_front(kind: DocumentKind, object: &[u8]) -> Option<&[u8]> {
    let body_bytes = u32::from_le_bytes(object.get(12..HEADER_BYTES)?.try_into().ok()?);
    let copy_bytes = usize::try_from(body_bytes).ok()?.checked_add(HEADER_BYTES + CHECKSUM_BYTES)?;
    open_copy(kind, object.get(..copy_bytes)?).ok()
}

fn open_copy(kind: DocumentKind, copy: &[u8]) -> Result<&[u8]> {
    if copy.len() < HEADER_BYTES + CHECKSUM_BYTES {
        return Err(Error::damaged(format!("a document of {} bytes is too short", copy.len())));
    }
    let (covered, checksum) = copy.split_at(copy.len() - CHECKSUM_BYTES);
    let (header, body) = covered.split_at(HEADER_BYTES);
    if &header[..8] != MAGIC {
        return Err(Error::damaged("not a document: wrong magic"));
    }
    if blake3::hash(covered).as_bytes() != checksum {
        return Err(Error::damaged("the checksum of a document does not match"));
    }
    // Only now is the header to be believed: a flipped bit must not look like a newer version.
    if header[9] > FORMAT_VERSION || header[10] != 0 {
        return Err(Error::new(Kind::FormatTooNew, format!("written in format version {}", header[9]))
            .with_hint("use a newer ckpt"));
    }
    if header[8] != kind as u8 {
        return Err(Error::damaged(format!("a document of kind {} stands where {kind:?} belongs", header[8])));
    }
    if header[12..16] != u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes() {
        return Err(Error::damaged("the length of a document does not match"));
    }
    Ok(body)
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
pub fn read(storage: &dyn Storage, _keys: &Keys, kind: DocumentKind, name: &ObjectName) -> Result<Opened> {
    let mut body = storage.read(name, kind.object_bytes_max())?;
    let (place, both_copies_sound) = find_body(kind, &body).map_err(|e| e.while_doing(name))?;
    // In place: a list of packs may be long, and is there twice as it is.
    body.truncate(place.end);
    body.drain(..place.start);
    body.shrink_to_fit();
    Ok(Opened { body, both_copies_sound })
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
        assert_eq!(rebuilt(DocumentKind::Snapshot, &object).as_ref(), Some(&object));
        for at in 0..object.len() {
            let mut damaged = object.clone();
            damaged[at] ^= 1;
            assert_eq!(rebuilt(DocumentKind::Snapshot, &damaged).as_ref(), Some(&object), "{at}");
            let front = rebuilt(DocumentKind::Snapshot, &object[..at]);
            assert_eq!(front.as_ref(), (at >= object.len() / 2).then_some(&object), "{at}");
            damaged[(at + object.len() / 2) % object.len()] ^= 1;
            assert_eq!(rebuilt(DocumentKind::Snapshot, &damaged), None, "{at}");
        }
        assert_eq!(rebuilt(DocumentKind::Tags, &object), None);
        let longer = [object.as_slice(), b"and more"].concat();
        assert_eq!(rebuilt(DocumentKind::Snapshot, &longer), Some(object));
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
