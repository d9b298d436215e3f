//! `model.safetensors`: 8 bytes of length, a header in JSON, the tensors without gaps.
//!
//! The rules of the format are held exactly: a header of at most 100 MB that begins with `{`, no key twice, known types, as many bytes
//! as shape and type demand, offsets that cover all that follows the header. Of a file that ends too early what is there is
//! used; anything else is malformed. Headers above the bound of all parsers are not read.

use super::finish::{finish, name_twice, run_of};
use super::header_reader::{HEADER_BYTES_MAX, HeaderReader, Refusal, range, shown};
use crate::bytes::MIB;
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Dtype, Layout, Tensor};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The length in front of the header.
pub(super) const LENGTH_BYTES: u64 = 8;

/// What the format allows a header to be.
pub(super) const FORMAT_HEADER_BYTES_MAX: u64 = 100_000_000;

/// The key of the notes.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// More dimensions than any library has.
const DIMENSIONS_MAX: usize = 64;

/// The types of the format with the bits of one element, in the order in which its library writes them last to first.
pub(super) const DTYPES: [(Dtype, u64); 22] = [
    (Dtype::Bool, 8),
    (Dtype::Blocks("F4"), 4),
    (Dtype::Blocks("F6_E2M3"), 6),
    (Dtype::Blocks("F6_E3M2"), 6),
    (Dtype::U8, 8),
    (Dtype::I8, 8),
    (Dtype::F8E5m2, 8),
    (Dtype::F8E4m3, 8),
    (Dtype::Blocks("F8_E8M0"), 8),
    (Dtype::Blocks("F8_E4M3FNUZ"), 8),
    (Dtype::Blocks("F8_E5M2FNUZ"), 8),
    (Dtype::I16, 16),
    (Dtype::U16, 16),
    (Dtype::F16, 16),
    (Dtype::Bf16, 16),
    (Dtype::I32, 32),
    (Dtype::U32, 32),
    (Dtype::F32, 32),
    (Dtype::C64, 64),
    (Dtype::F64, 64),
    (Dtype::I64, 64),
    (Dtype::U64, 64),
];

/// True if the first bytes of a file are a possible length and the beginning of a header.
pub(super) fn is_begin(first: &[u8]) -> bool {
    let Some((length, header)) = first.split_first_chunk::<8>() else { return false };
    (2..=FORMAT_HEADER_BYTES_MAX).contains(&u64::from_le_bytes(*length)) && header.first() == Some(&b'{')
}

/// Reads the header.
pub(super) fn parse(file: &dyn ReadAt) -> Result<Layout, Refusal> {
    let mut reader = HeaderReader::new(file);
    let header_bytes = header_bytes(&mut reader)?;
    let text = reader.read(LENGTH_BYTES, header_bytes)?;
    let header: Header = serde_json::from_slice(&text).map_err(|error| {
        Refusal::malformed(format!("its header is not as the format has it: {}", shown(&error.to_string())))
    })?;
    drop(text);
    check_names(&header)?;
    let Header { mut tensors, metadata } = header;
    let data_begin = LENGTH_BYTES + header_bytes;
    let end = place(&mut tensors, data_begin)?;
    if end < reader.file_bytes() {
        let rest = reader.file_bytes() - end;
        return Err(Refusal::malformed(format!("{rest} bytes at its end belong to no tensor")));
    }
    let is_truncated = end > reader.file_bytes();
    let runs = tensors.iter().filter_map(run_of).collect();
    let layout = Layout { container: Container::Safetensors, tensors, runs, metadata, is_truncated };
    finish(layout, reader.file_bytes())
}

/// The length of the header, if the file begins as one must.
fn header_bytes(reader: &mut HeaderReader<'_>) -> Result<u64, Refusal> {
    let begin = reader.read(0, reader.file_bytes().min(LENGTH_BYTES + 1))?;
    let Some((length, first)) = begin.split_first_chunk::<8>() else {
        return Err(Refusal::malformed("it is too short for the length of a header"));
    };
    let bytes = u64::from_le_bytes(*length);
    if bytes > FORMAT_HEADER_BYTES_MAX {
        return Err(Refusal::malformed(format!(
            "it claims a header of {bytes} bytes, and the format allows {FORMAT_HEADER_BYTES_MAX}"
        )));
    }
    if bytes < 2 || first.first().is_some_and(|&byte| byte != b'{') {
        return Err(Refusal::malformed("it does not begin with the length of a header and the header"));
    }
    if bytes + LENGTH_BYTES + 1 > HEADER_BYTES_MAX {
        return Err(Refusal::malformed(format!(
            "its header has {bytes} bytes, and headers above {} MiB are not read",
            HEADER_BYTES_MAX / MIB
        )));
    }
    Ok(bytes)
}

fn check_names(header: &Header) -> Result<(), Refusal> {
    let twice = name_twice(header.tensors.iter().map(|tensor| tensor.name.as_str()));
    let twice = twice.or_else(|| name_twice(header.metadata.iter().map(|(key, _)| key.as_str())));
    match twice {
        Some(name) => Err(Refusal::malformed(format!("the name {} is there twice", shown(name)))),
        None => Ok(()),
    }
}

/// Puts the tensors in order and their places behind the header; returns where the last one ends.
fn place(tensors: &mut [Tensor], data_begin: u64) -> Result<u64, Refusal> {
    tensors.sort_by_key(|tensor| tensor.place);
    let mut expected = 0;
    for tensor in tensors {
        let Some(place) = tensor.place else { continue };
        if place.offset() != expected {
            let how = if place.offset() < expected { "lies over the one before" } else { "leaves a gap before it" };
            return Err(Refusal::malformed(format!("the tensor {} {how}", shown(&tensor.name))));
        }
        if bytes_of(tensor.dtype, &tensor.shape) != Some(place.len()) {
            return Err(Refusal::malformed(format!(
                "the tensor {} has {} bytes, which its type and shape do not give",
                shown(&tensor.name),
                place.len()
            )));
        }
        expected = place.end();
        let offset = data_begin.saturating_add(place.offset());
        tensor.place = Some(range(offset, place.len())?);
    }
    data_begin.checked_add(expected).ok_or_else(|| Refusal::malformed("an offset is larger than 64 bits hold"))
}

/// The bytes of a tensor; none if they are no whole number, are more than 64 bits hold, or the type is none of the format.
pub(super) fn bytes_of(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let (_, bits) = DTYPES.iter().find(|(known, _)| *known == dtype)?;
    let bits = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?.checked_mul(*bits)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header as it stands; places are counted from its end.
struct Header {
    tensors: Vec<Tensor>,
    metadata: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        let mut notes = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                let before = notes.replace(map.next_value::<Notes>()?);
                if before.is_some() {
                    return Err(A::Error::custom("its notes are there twice"));
                }
                continue;
            }
            let Entry { dtype, shape, data_offsets: (begin, end) } = map.next_value()?;
            let known = DTYPES.iter().map(|(dtype, _)| *dtype).find(|known| known.name() == dtype);
            let dtype = known.ok_or_else(|| A::Error::custom(format!("the type {} is unknown", shown(&dtype))))?;
            let bytes = end.checked_sub(begin).ok_or_else(|| A::Error::custom("a tensor ends before it begins"))?;
            let place = crate::bytes::ByteRange::new(begin, bytes).map_err(A::Error::custom)?;
            tensors.push(Tensor { name, dtype, shape: shape.0, place: Some(place) });
        }
        Ok(Header { tensors, metadata: notes.map(|notes| notes.0).unwrap_or_default() })
    }
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {DIMENSIONS_MAX} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(n) = list.next_element()? {
            if shape.len() == DIMENSIONS_MAX {
                return Err(A::Error::custom(format!("a tensor has more than {DIMENSIONS_MAX} dimensions")));
            }
            shape.push(n);
        }
        shape.shrink_to_fit();
        Ok(Shape(shape))
    }
}

/// The notes in the order of the file; a map would hide keys that are there twice.
struct Notes(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NotesVisitor)
    }
}

struct NotesVisitor;

impl<'de> Visitor<'de> for NotesVisitor {
    type Value = Notes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Notes, A::Error> {
        let mut notes = Vec::new();
        while let Some(note) = map.next_entry()? {
            notes.push(note);
        }
        Ok(Notes(notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::formats::finish::assert_obeys;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data_bytes, 7);
        file
    }

    fn parsed(header: &str, data_bytes: usize) -> Result<Layout, Refusal> {
        let file = file(header, data_bytes);
        parse(&file.as_slice())
    }

    fn reason(header: &str, data_bytes: usize) -> String {
        match parsed(header, data_bytes) {
            Err(Refusal::Malformed(reason)) => reason,
            other => panic!("not malformed: {other:?}"),
        }
    }

    const TWO: &str = r#"{"b":{"dtype":"BF16","shape":[2,400],"data_offsets":[2048,3648]},
        "__metadata__":{"format":"pt","step":"12"},"a":{"data_offsets":[0,2048],"shape":[512],"dtype":"F32"}}   "#;

    #[test]
    fn tensors_come_in_the_order_of_the_file_with_runs_and_notes() {
        let layout = parsed(TWO, 3648).expect("a valid file");
        let begin = 8 + TWO.len() as u64;
        let names: Vec<_> = layout.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
        assert_eq!(names, [("a", Dtype::F32, &[512][..]), ("b", Dtype::Bf16, &[2, 400])]);
        let runs: Vec<_> = layout.runs.iter().map(|r| (r.key.as_str(), r.range.offset(), r.range.len())).collect();
        assert_eq!(runs, [("a", begin, 2048), ("b", begin + 2048, 1600)]);
        assert_eq!(layout.metadata, [("format", "pt"), ("step", "12")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(!layout.is_truncated);
        assert_eq!(parsed("{}", 0).expect("no tensors").tensors, []);
    }

    #[test]
    fn of_a_truncated_file_what_is_there_is_used() {
        let whole = file(TWO, 3648);
        for bytes in 9..whole.len() {
            let layout = parse(&&whole[..bytes]);
            if bytes < 8 + TWO.len() {
                assert_eq!(layout, Err(Refusal::CutShort));
                continue;
            }
            let layout = layout.expect("truncated, not malformed");
            assert!(layout.is_truncated && layout.tensors.len() == 2);
            assert_obeys(&layout, bytes as u64);
        }
        let layout = parse(&&whole[..8 + TWO.len() + 2048 + 1200]).expect("truncated");
        assert_eq!(layout.runs[1].range.len(), 1200);
        assert!(layout.tensors[0].place.is_some() && layout.tensors[1].place.is_none());
    }

    #[test]
    fn what_breaks_a_rule_is_malformed_and_the_sentence_says_how() {
        let one = |rest: &str| format!(r#"{{"a":{{{rest}}}}}"#);
        let cases = [
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 9, "belong to no tensor"),
            (one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), 8, "type and shape"),
            (one(r#""dtype":"F4","shape":[3],"data_offsets":[0,1]"#), 1, "type and shape"),
            (one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#), 0, "type and shape"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8, "ends before"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[4,12]"#), 12, "gap"),
            (one(r#""dtype":"F33","shape":[2],"data_offsets":[0,8]"#), 8, "unknown"),
            (one(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), 8, "header"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8,9]"#), 8, "header"),
            (one(r#""dtype":"F32","data_offsets":[0,8]"#), 8, "missing field"),
            (one(r#""dtype":"U8","shape":[],"data_offsets":[18446744073709551614,18446744073709551615]"#), 0, "gap"),
            ("{} x".to_owned(), 0, "header"),
            ("{".to_owned() + &"[".repeat(100_000), 0, "header"),
            (one(&(r#""x":"#.to_owned() + &"[".repeat(100_000))), 0, "header"),
            (r#"{"__metadata__":{"a":1}}"#.to_owned(), 0, "header"),
            (r#"{"__metadata__":{"a":"1","a":"2"}}"#.to_owned(), 0, "twice"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), 0, "twice"),
            ("[]".to_owned(), 0, "does not begin"),
            (one(&format!(r#""dtype":"U8","shape":[{}1],"data_offsets":[0,1]"#, "1,".repeat(64))), 1, "dimensions"),
        ];
        for (header, data_bytes, part) in cases {
            let reason = reason(&header, data_bytes);
            assert!(reason.contains(part), "{header:.80}: {reason}");
            assert!(reason.len() < 300, "{reason}");
        }
        let entry = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        assert!(reason(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 4).contains("twice"));
        assert!(reason(&format!(r#"{{"a":{entry},"b":{entry}}}"#), 4).contains("lies over"));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_read() {
        for length in [0, 1, FORMAT_HEADER_BYTES_MAX + 1, HEADER_BYTES_MAX, u64::MAX] {
            let mut file = length.to_le_bytes().to_vec();
            file.extend_from_slice(b"{}");
            assert!(matches!(parse(&file.as_slice()), Err(Refusal::Malformed(_))), "{length}");
        }
        assert!(matches!(parse(&&b"1234567"[..]), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn types_of_less_than_a_byte_and_empty_tensors_have_their_place() {
        let header = r#"{"q":{"dtype":"F4","shape":[4,1024],"data_offsets":[0,2048]},
            "none":{"dtype":"F64","shape":[0,9],"data_offsets":[2048,2048]},
            "six":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[2048,2051]}}"#;
        let layout = parsed(header, 2051).expect("valid");
        assert_eq!(layout.runs.len(), 1);
        assert_eq!(layout.runs[0].dtype, Some(Dtype::Blocks("F4")));
        assert!(layout.tensors.iter().all(|tensor| tensor.place.is_some()));
    }
}
