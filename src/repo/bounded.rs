//! Lists and maps of records with a bound on how many items are believed.
//!
//! An item may take one byte in a record and a hundred in memory: what was written by others must not decide how much is
//! allocated. A list that breaks its bound cannot be decoded. Nothing is bounded when it is written; writers have bounds of their own.

use crate::ids::{ChunkId, PackId};
use minicbor::decode::{Decode, Decoder, Error};
use minicbor::encode::{self, Encode, Encoder, Write};
use std::collections::BTreeMap;

/// A list of at most `MAX` items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<'b, C, T: Decode<'b, C>, const MAX: usize> Decode<'b, C> for List<T, MAX> {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let mut items = Vec::new();
        for item in d.array_iter_with(context)? {
            if items.len() == MAX {
                return Err(too_many());
            }
            items.push(item?);
        }
        Ok(List(items))
    }
}

impl<C, T: Encode<C>, const MAX: usize> Encode<C> for List<T, MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, context: &mut C) -> Result<(), encode::Error<W::Error>> {
        self.0.encode(e, context)
    }
}

/// A map from text to text of at most `MAX` items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Notes<const MAX: usize>(pub(super) BTreeMap<String, String>);

impl<'b, C, const MAX: usize> Decode<'b, C> for Notes<MAX> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let mut notes = BTreeMap::new();
        for item in d.map_iter::<String, String>()? {
            if notes.len() == MAX {
                return Err(too_many());
            }
            let (key, value) = item?;
            notes.insert(key, value);
        }
        Ok(Notes(notes))
    }
}

impl<C, const MAX: usize> Encode<C> for Notes<MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, context: &mut C) -> Result<(), encode::Error<W::Error>> {
        self.0.encode(e, context)
    }
}

/// Ids of packs: each takes no more in memory than in the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Packs(pub(super) Vec<PackId>);

impl<'b, C> Decode<'b, C> for Packs {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        ids(d, |bytes| PackId::from_slice(bytes).ok()).map(Packs)
    }
}

impl<C> Encode<C> for Packs {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        encode_ids(e, self.0.iter().map(|id| id.as_bytes()))
    }
}

/// Ids of chunks, in the same way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chunks(pub(super) Vec<ChunkId>);

impl<'b, C> Decode<'b, C> for Chunks {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        ids(d, |bytes| ChunkId::from_slice(bytes).ok()).map(Chunks)
    }
}

impl<C> Encode<C> for Chunks {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        encode_ids(e, self.0.iter().map(|id| id.as_bytes()))
    }
}

fn ids<T>(d: &mut Decoder<'_>, id_of: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Error> {
    let mut ids = Vec::new();
    for bytes in d.array_iter::<&minicbor::bytes::ByteSlice>()? {
        ids.push(id_of(bytes?).ok_or_else(|| Error::message("an id has the wrong length"))?);
    }
    Ok(ids)
}

fn encode_ids<'i, W: Write>(
    e: &mut Encoder<W>,
    ids: impl ExactSizeIterator<Item = &'i [u8; 32]>,
) -> Result<(), encode::Error<W::Error>> {
    e.array(ids.len() as u64)?;
    for id in ids {
        e.bytes(id)?;
    }
    Ok(())
}

fn too_many() -> Error {
    Error::message("a list has more items than any can have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_its_bound_round_trips_and_no_more() {
        let list = List::<String, 2>(vec!["a".to_owned(), "b".to_owned()]);
        let bytes = minicbor::to_vec(&list).expect("memory");
        assert_eq!(minicbor::decode::<List<String, 2>>(&bytes).expect("own bytes"), list);
        assert!(minicbor::decode::<List<String, 1>>(&bytes).is_err());
        let notes = Notes::<1>(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        let bytes = minicbor::to_vec(&notes).expect("memory");
        assert_eq!(minicbor::decode::<Notes<1>>(&bytes).expect("own bytes"), notes);
        assert!(minicbor::decode::<Notes<0>>(&bytes).is_err());
        let packs = Packs(vec![PackId::from_bytes([1; 32]), PackId::from_bytes([2; 32])]);
        let bytes = minicbor::to_vec(&packs).expect("memory");
        assert_eq!(minicbor::decode::<Packs>(&bytes).expect("own bytes"), packs);
        // A million empty ids in a million bytes.
        let hostile = [&[0x9a, 0, 0x0f, 0x42, 0x40][..], &[0x40; 1_000_000]].concat();
        assert!(minicbor::decode::<Packs>(&hostile).is_err());
    }
}
