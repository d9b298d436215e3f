//! The parity of a pack, and what of the pack is left.

use super::held::with_repo;
use ckpt::codec::parity::{CHECKSUM_BYTES, ParityEncoder, Shape};
use ckpt::ids::PackId;
use ckpt::repo::{names, parity as mending};
use std::ops::Range;
use std::sync::Once;

const HEADER_BYTES: usize = 160;

/// A pack behind its length, and its parity, with the hashes in both headers made right.
pub fn parity(bytes: &[u8]) -> bool {
    // The tables of the code are made once.
    static TABLES: Once = Once::new();
    TABLES.call_once(|| {
        let shape = Shape::of(4096).expect("a pack");
        ParityEncoder::default().encode(&[1; 4096], &shape, &mut Vec::new()).expect("encodes");
    });
    let (pack, parity) = super::split(bytes);
    let parity = mended(parity);
    let id = parity.get(32..64).and_then(|id| PackId::from_slice(id).ok()).unwrap_or(PackId::from_bytes([3; 32]));
    let objects = vec![(names::PACKS.to_owned(), pack.to_vec()), (names::PARITY.to_owned(), parity)];
    with_repo(false, objects, |repo| {
        for length in [None, Some(pack.len() as u64)] {
            for read_data in [false, true] {
                let _ = mending::check(repo, id, length, read_data);
            }
        }
        let can_mend = mending::can_mend(repo, id);
        match mending::mend(repo, id) {
            Ok(mended) => {
                assert_eq!(blake3::hash(&mended.bytes).as_bytes(), id.as_bytes());
                assert!(can_mend);
                true
            }
            Err(_) => false,
        }
    })
}

/// Each header with the hash of the table beside it, and its own.
fn mended(parity: &[u8]) -> Vec<u8> {
    let mut object = parity.to_vec();
    let Some(last) = object.len().checked_sub(HEADER_BYTES).filter(|last| *last >= HEADER_BYTES) else { return object };
    for at in [0, last] {
        let pack_bytes = u64::from_le_bytes(object[at + 64..at + 72].try_into().expect("eight"));
        let Ok(shape) = Shape::of(pack_bytes) else { continue };
        let table_bytes = (shape.data_shards + shape.parity_shards) * CHECKSUM_BYTES;
        let table: Option<Range<usize>> = match at {
            0 => Some(HEADER_BYTES..HEADER_BYTES + table_bytes),
            last => last.checked_sub(table_bytes).map(|begin| begin..last),
        };
        if let Some(hash) = table.and_then(|table| object.get(table)).map(blake3::hash) {
            object[at + 96..at + 128].copy_from_slice(hash.as_bytes());
        }
        let hash = blake3::hash(&object[at..at + 128]);
        object[at + 128..at + 160].copy_from_slice(hash.as_bytes());
    }
    object
}
