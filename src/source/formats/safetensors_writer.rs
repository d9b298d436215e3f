//! The header of a `model.safetensors` that is to be written.
//!
//! A pure function: what tensors there are in, the bytes before the first tensor and the place of each out, so that whoever has the content can
//! stream it. The order and the alignment are those of the format's own library: types of many bits first, then
//! names; the header padded with spaces to a multiple of 8. It writes nothing.

use super::finish::name_twice;
use super::safetensors::{DTYPES, FORMAT_HEADER_BYTES_MAX, LENGTH_BYTES, METADATA_KEY, bytes_of};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::layout::Dtype;
use serde::Serialize;

/// A tensor that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its name; no other tensor of the file has it.
    pub name: &'a str,
    /// The type of its elements: one that the format has.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: &'a [u64],
    /// The length of its content: what shape and type demand.
    pub bytes: u64,
}

/// The front of a file, and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the file begins with, up to the first tensor.
    pub bytes: Vec<u8>,
    /// Where in the file each tensor lies, in the order of the items that were given.
    pub places: Vec<ByteRange>,
    /// The items by their order in the file: the tensors follow the header in this order, without a gap.
    pub order: Vec<usize>,
    /// The length of the whole file.
    pub file_bytes: u64,
}

/// True if the format has a name for the type.
pub fn is_known(dtype: Dtype) -> bool {
    rank(dtype).is_some()
}

/// The header of a file of `items` with the notes `metadata`, none if it is empty.
///
/// Refused ([`Kind::Usage`]): a type that the format does not have, a length that type and shape do not give, a name that is there
/// twice or is reserved, a header above the format's 100 MB.
pub fn header(items: &[Item<'_>], metadata: &[(String, String)]) -> Result<Header> {
    items.iter().try_for_each(check)?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| items.get(at).map(|item| (std::cmp::Reverse(rank(item.dtype)), item.name)));
    if let Some(twice) = name_twice(items.iter().map(|item| item.name)) {
        return Err(refused(twice, "is there twice"));
    }
    let mut json = Json { text: b"{".to_vec() };
    if !metadata.is_empty() {
        let notes: std::collections::BTreeMap<_, _> = metadata.iter().map(|(key, value)| (key, value)).collect();
        json.field(METADATA_KEY, &notes)?;
    }
    let mut at = 0u64;
    for item in order.iter().filter_map(|&at| items.get(at)) {
        let end = at.checked_add(item.bytes).ok_or_else(|| refused(item.name, "ends beyond what 64 bits hold"))?;
        let entry = Entry { dtype: item.dtype.name(), shape: item.shape, data_offsets: (at, end) };
        json.field(item.name, &entry)?;
        at = end;
    }
    let bytes = json.finish()?;
    let places = places(items, &order, bytes.len() as u64)?;
    let file_bytes = ByteRange::new(bytes.len() as u64, at)?.end();
    Ok(Header { bytes, places, order, file_bytes })
}

fn check(item: &Item<'_>) -> Result<()> {
    if item.name == METADATA_KEY {
        return Err(refused(item.name, "has the name of the notes"));
    }
    if !is_known(item.dtype) {
        return Err(refused(item.name, &format!("is of the type {}, which safetensors does not have", item.dtype)));
    }
    if bytes_of(item.dtype, item.shape) != Some(item.bytes) {
        return Err(refused(item.name, &format!("has {} bytes, which its type and shape do not give", item.bytes)));
    }
    Ok(())
}

/// The ranges of the items in the order in which they were given.
fn places(items: &[Item<'_>], order: &[usize], data_begin: u64) -> Result<Vec<ByteRange>> {
    let mut places = vec![ByteRange::new(data_begin, 0)?; items.len()];
    let mut begin = data_begin;
    for &at in order {
        if let (Some(item), Some(place)) = (items.get(at), places.get_mut(at)) {
            *place = ByteRange::new(begin, item.bytes)?;
            begin = place.end();
        }
    }
    Ok(places)
}

/// The later of two types comes first in a file.
fn rank(dtype: Dtype) -> Option<usize> {
    DTYPES.iter().position(|(known, _)| *known == dtype)
}

fn refused(name: &str, why: &str) -> Error {
    Error::new(Kind::Usage, format!("the tensor {name:?} {why}"))
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    data_offsets: (u64, u64),
}

/// An object that is written field by field, since its fields have an order.
struct Json {
    text: Vec<u8>,
}

impl Json {
    fn field(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        let failed = |error| Error::new(Kind::Failed, "writing a header of safetensors").with_source(error);
        serde_json::to_writer(&mut self.text, name).map_err(failed)?;
        self.text.push(b':');
        serde_json::to_writer(&mut self.text, value).map_err(failed)
    }

    /// The length and the padded text.
    fn finish(mut self) -> Result<Vec<u8>> {
        self.text.push(b'}');
        let padded = self.text.len().next_multiple_of(LENGTH_BYTES as usize);
        self.text.resize(padded, b' ');
        if padded as u64 > FORMAT_HEADER_BYTES_MAX {
            let what = format!("a header of {padded} bytes is larger than the 100 MB of safetensors");
            return Err(Error::new(Kind::Usage, what));
        }
        let mut bytes = (padded as u64).to_le_bytes().to_vec();
        bytes.append(&mut self.text);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::formats::safetensors;
    use proptest::prelude::*;

    #[test]
    fn the_header_is_the_one_that_the_library_of_the_format_writes() {
        let item = |name, dtype, shape, bytes| Item { name, dtype, shape, bytes };
        let items = [
            item("b", Dtype::Bf16, &[2, 2][..], 8),
            item("a", Dtype::Bf16, &[1][..], 2),
            item("step", Dtype::I64, &[][..], 8),
            item("e\"", Dtype::U8, &[0, 3][..], 0),
        ];
        let written = header(&items, &[("format".to_owned(), "pt".to_owned())]).expect("valid");
        let json = concat!(
            r#"{"__metadata__":{"format":"pt"},"step":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"#,
            r#""a":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]},"b":{"dtype":"BF16","shape":[2,2],"#,
            r#""data_offsets":[10,18]},"e\"":{"dtype":"U8","shape":[0,3],"data_offsets":[18,18]}}"#
        );
        assert_eq!(std::str::from_utf8(&written.bytes[8..]).expect("text").trim_end(), json);
        assert_eq!(written.bytes.len() % 8, 0);
        assert_eq!(written.order, [2, 1, 0, 3]);
        assert_eq!(written.file_bytes, written.bytes.len() as u64 + 18);
        assert_eq!(header(&[], &[]).expect("empty").bytes, b"\x08\0\0\0\0\0\0\0{}      ");
    }

    #[test]
    fn what_would_not_be_a_valid_file_is_refused() {
        let item = |name, dtype, bytes| Item { name, dtype, shape: &[4], bytes };
        let reason = |items: &[Item<'_>]| header(items, &[]).expect_err("refused").to_string();
        assert!(reason(&[item("a", Dtype::F32, 15)]).contains("do not give"));
        assert!(reason(&[item("a", Dtype::Blocks("Q4_0"), 18)]).contains("Q4_0"));
        assert!(reason(&[item("a", Dtype::C128, 64)]).contains("C128"));
        assert!(reason(&[item("a", Dtype::U8, 4), item("a", Dtype::F32, 16)]).contains("twice"));
        assert!(reason(&[item("__metadata__", Dtype::U8, 4)]).contains("notes"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            tensors in prop::collection::btree_map(".{0,12}", (0usize..DTYPES.len(), prop::collection::vec(0u64..40, 0..4)), 0..12),
            metadata in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..4),
        ) {
            let items: Vec<Item<'_>> = tensors.iter().filter_map(|(name, (at, shape))| {
                let dtype = DTYPES[*at].0;
                Some(Item { name, dtype, shape, bytes: bytes_of(dtype, shape)? })
            }).collect();
            let metadata: Vec<_> = metadata.into_iter().collect();
            let written = header(&items, &metadata).expect("valid");
            let mut file = written.bytes.clone();
            file.resize(written.file_bytes as usize, 1);
            let layout = safetensors::parse(&file.as_slice()).expect("valid");
            prop_assert_eq!(&layout.metadata, &metadata);
            prop_assert_eq!(layout.tensors.len(), items.len());
            for (item, place) in items.iter().zip(&written.places) {
                let tensor = layout.tensors.iter().find(|tensor| tensor.name == item.name).expect("there");
                prop_assert_eq!((tensor.dtype, &tensor.shape[..], tensor.place), (item.dtype, item.shape, Some(*place)));
            }
        }
    }
}
