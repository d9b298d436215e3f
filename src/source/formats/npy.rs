//! One numpy array: a magic, a version, a header that is a dictionary in Python's notation, the elements.
//!
//! Versions 1.0, 2.0 and 3.0. The dictionary is read by a small strict parser (`python_literal.rs`), nothing is evaluated. Arrays of
//! several dimensions in Fortran order keep their run and have no place; structured types and objects have a run without type. Bytes behind the
//! array are allowed: numpy does not look at them either.

use super::finish::{RUN_BYTES_MIN, finish};
use super::header_reader::{HeaderReader, Refusal, range, shown};
use super::python_literal::{self, Literal};
use crate::bytes::ByteRange;
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Cut, Dtype, Layout, Run, Tensor};

/// What every array begins with.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// What the only array of a file is called: the format has no name for it.
pub(super) const NAME: &str = "array";

/// Headers are some 100 bytes; those of structured types have some for each field.
const HEADER_TEXT_BYTES_MAX: u64 = 1 << 20;

/// numpy has 64.
const DIMENSIONS_MAX: usize = 64;

/// Structured types in structured types.
const NESTED_TYPES_MAX: u32 = 8;

/// What stands before the elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The type of the elements; none for structured types and objects.
    pub dtype: Option<Dtype>,
    /// The dimensions as numpy shows them.
    pub shape: Vec<u64>,
    /// True if the first dimension is the fastest, and there are others.
    pub is_column_major: bool,
    /// Where in the file the elements begin.
    pub data_begin: u64,
    /// The bytes of all elements; none for objects, which are pickled.
    pub data_bytes: Option<u64>,
}

impl Header {
    /// The array as a tensor, and as a run if it is long enough for one, in a file or an archive's entry that ends at
    /// `end`; elements of unknown length are taken to end there.
    pub(super) fn contents(&self, name: &str, end: u64) -> Result<(Option<Tensor>, Option<Run>), Refusal> {
        let bytes = self.data_bytes.unwrap_or(end.saturating_sub(self.data_begin));
        let elements: ByteRange = range(self.data_begin, bytes)?;
        let tensor = self.dtype.map(|dtype| Tensor {
            name: name.to_owned(),
            dtype,
            shape: self.shape.clone(),
            place: (!self.is_column_major).then_some(elements),
        });
        let cut = if self.data_bytes.is_some() { Cut::Fixed } else { Cut::Content };
        let run = Run { range: elements, key: name.to_owned(), dtype: self.dtype, cut };
        Ok((tensor, (bytes >= RUN_BYTES_MIN).then_some(run)))
    }
}

/// Reads the header of a file that is one array.
pub(super) fn parse(file: &dyn ReadAt) -> Result<Layout, Refusal> {
    let header = read_header(&mut HeaderReader::new(file), 0)?;
    let (tensor, run) = header.contents(NAME, file.bytes())?;
    let is_truncated = header.data_bytes.is_some_and(|bytes| bytes > file.bytes().saturating_sub(header.data_begin));
    let tensors = tensor.into_iter().collect();
    let runs = run.into_iter().collect();
    finish(Layout { container: Container::Npy, tensors, runs, metadata: Vec::new(), is_truncated }, file.bytes())
}

/// The header of the array that begins at `offset`; [`Refusal::CutShort`] if the file ends within it.
pub(super) fn read_header(reader: &mut HeaderReader<'_>, offset: u64) -> Result<Header, Refusal> {
    let magic_bytes = MAGIC.len() as u64;
    let begin = reader.read(offset, magic_bytes + 2)?;
    let Some([major, minor]) = begin.strip_prefix(MAGIC) else {
        return Err(Refusal::malformed("it does not begin like an array"));
    };
    let length_bytes = match (major, minor) {
        (1, 0) => 2,
        (2 | 3, 0) => 4,
        _ => return Err(Refusal::malformed(format!("its version is {major}.{minor}, and 1.0 to 3.0 are known"))),
    };
    let length_begin = offset.saturating_add(magic_bytes + 2);
    let mut length = [0; 4];
    length.iter_mut().zip(reader.read(length_begin, length_bytes)?).for_each(|(to, from)| *to = from);
    let text_bytes = u64::from(u32::from_le_bytes(length));
    if text_bytes > HEADER_TEXT_BYTES_MAX {
        return Err(Refusal::malformed(format!(
            "its header has {text_bytes} bytes, and at most {HEADER_TEXT_BYTES_MAX} are possible"
        )));
    }
    let text_begin = length_begin.saturating_add(length_bytes);
    let text = reader.read(text_begin, text_bytes)?;
    header(&text, text_begin.saturating_add(text_bytes))
}

fn header(text: &[u8], data_begin: u64) -> Result<Header, Refusal> {
    // Latin-1 before version 3.0: only the names of fields may hold other characters, and they are not used.
    let text = String::from_utf8_lossy(text);
    let wrong = |what: &str| Refusal::malformed(format!("its header {} {what}", shown(&text)));
    let Some(Literal::Map(fields)) = python_literal::parse(&text) else { return Err(wrong("is no dictionary")) };
    let [mut descr, mut order, mut shape] = [None, None, None];
    for (key, value) in &fields {
        let field = match key.as_str() {
            "descr" => &mut descr,
            "fortran_order" => &mut order,
            "shape" => &mut shape,
            _ => return Err(wrong("has a key that the format does not have")),
        };
        if field.replace(value).is_some() {
            return Err(wrong("has a key twice"));
        }
    }
    let (Some(descr), Some(Literal::Truth(is_fortran)), Some(Literal::Tuple(shape))) = (descr, order, shape) else {
        return Err(wrong("lacks the type, the order or the shape"));
    };
    let shape = dimensions(shape).ok_or_else(|| wrong("has a shape that cannot be"))?;
    let item = item(descr, 0).ok_or_else(|| wrong("has a type that cannot be"))?;
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let too_many = || wrong("has more bytes than 64 bits hold");
    let data_bytes = match item.bytes {
        Some(bytes) => Some(elements.and_then(|n| n.checked_mul(bytes)).ok_or_else(too_many)?),
        None => None,
    };
    let is_column_major = *is_fortran && shape.len() > 1;
    Ok(Header { dtype: item.dtype, shape, is_column_major, data_begin, data_bytes })
}

fn dimensions(literals: &[Literal]) -> Option<Vec<u64>> {
    let number = |literal: &Literal| if let Literal::Integer(n) = literal { Some(*n) } else { None };
    if literals.len() > DIMENSIONS_MAX { None } else { literals.iter().map(number).collect() }
}

/// What one element is.
struct Item {
    dtype: Option<Dtype>,
    /// None for objects.
    bytes: Option<u64>,
}

/// What `descr` says of one element; none if it makes no sense.
fn item(descr: &Literal, depth: u32) -> Option<Item> {
    match descr {
        Literal::Text(name) => simple_item(name),
        Literal::List(fields) if depth < NESTED_TYPES_MAX => {
            let mut bytes = Some(0u64);
            for field in fields {
                let Literal::Tuple(field) = field else { return None };
                // A name or (title, name), a type, and for fields that are arrays a shape.
                let (inner, shape) = match field.as_slice() {
                    [_, inner] => (inner, Vec::new()),
                    [_, inner, Literal::Tuple(shape)] => (inner, dimensions(shape)?),
                    _ => return None,
                };
                let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
                bytes = match (bytes, item(inner, depth + 1)?.bytes) {
                    (Some(sum), Some(bytes)) => Some(bytes.checked_mul(elements)?.checked_add(sum)?),
                    _ => None,
                };
            }
            Some(Item { dtype: None, bytes })
        }
        // A type with a shape of its own.
        Literal::Tuple(pair) if depth < NESTED_TYPES_MAX => {
            let [inner, Literal::Tuple(shape)] = pair.as_slice() else { return None };
            let elements = dimensions(shape)?.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
            let bytes = match item(inner, depth + 1)?.bytes {
                Some(bytes) => Some(bytes.checked_mul(elements)?),
                None => None,
            };
            Some(Item { dtype: None, bytes })
        }
        _ => None,
    }
}

/// `<f4` and the like: byte order, kind, bytes.
fn simple_item(name: &str) -> Option<Item> {
    // Types of other packages by their names.
    let named = match name {
        "bfloat16" => Some(Dtype::Other(2)),
        "float8_e4m3fn" => Some(Dtype::F8E4m3),
        "float8_e5m2" => Some(Dtype::F8E5m2),
        _ => None,
    };
    if let Some(dtype) = named {
        return Some(Item { dtype: Some(dtype), bytes: dtype.element_bytes() });
    }
    let (is_big_endian, rest) = match name.split_at_checked(1)? {
        ("<" | "|" | "=", rest) => (false, rest),
        (">", rest) => (true, rest),
        _ => return None,
    };
    let (kind, rest) = rest.split_at_checked(1)?;
    if kind == "O" {
        return Some(Item { dtype: None, bytes: None });
    }
    // Times have a unit: `<M8[ns]`.
    let (digits, unit) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
    let has_unit = matches!(kind, "M" | "m");
    if !digits.bytes().all(|b| b.is_ascii_digit()) || (!unit.is_empty() && !has_unit) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let dtype = match (kind, count) {
        ("f", 8) => Dtype::F64,
        ("f", 4) => Dtype::F32,
        ("f", 2) => Dtype::F16,
        ("i", 8) => Dtype::I64,
        ("i", 4) => Dtype::I32,
        ("i", 2) => Dtype::I16,
        ("i", 1) => Dtype::I8,
        ("u", 8) => Dtype::U64,
        ("u", 4) => Dtype::U32,
        ("u", 2) => Dtype::U16,
        ("u", 1) => Dtype::U8,
        ("b", 1) => Dtype::Bool,
        ("c", 8) => Dtype::C64,
        ("c", 16) => Dtype::C128,
        ("f" | "c" | "V" | "S" | "a" | "M" | "m", _) => return Some(other(count)),
        // Characters of four bytes.
        ("U", _) => return Some(other(count.checked_mul(4)?)),
        _ => return None,
    };
    let is_swapped = is_big_endian && count > 1;
    Some(if is_swapped { other(count) } else { Item { dtype: Some(dtype), bytes: Some(count) } })
}

fn other(bytes: u64) -> Item {
    Item { dtype: u16::try_from(bytes).ok().map(Dtype::Other), bytes: Some(bytes) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file of version 1.0, or of 2.0 if `is_long`.
    pub(in crate::source::formats) fn file(header: &str, is_long: bool, data_bytes: usize) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        let length = (header.len() as u32).to_le_bytes();
        file.extend_from_slice(if is_long { &[2, 0] } else { &[1, 0] });
        file.extend_from_slice(if is_long { &length } else { &length[..2] });
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data_bytes, 3);
        file
    }

    fn described(descr: &str, order: &str, shape: &str, data_bytes: usize) -> Result<Layout, Refusal> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}   \n");
        let file = file(&header, false, data_bytes);
        parse(&file.as_slice())
    }

    #[test]
    fn an_array_is_one_tensor_and_one_run() {
        for (descr, dtype, bytes) in [
            ("'<f4'", Dtype::F32, 4),
            ("'<f8'", Dtype::F64, 8),
            ("'|b1'", Dtype::Bool, 1),
            ("'<u2'", Dtype::U16, 2),
            ("'|V2'", Dtype::Other(2), 2),
            ("'bfloat16'", Dtype::Other(2), 2),
            ("'>f4'", Dtype::Other(4), 4),
            ("'>u1'", Dtype::U8, 1),
            ("'<U3'", Dtype::Other(12), 12),
            ("'<M8[ns]'", Dtype::Other(8), 8),
            ("'<c16'", Dtype::C128, 16),
        ] {
            let layout = described(descr, "False", "(40, 30)", 1200 * bytes).expect("valid");
            let (tensor, run) = (&layout.tensors[0], &layout.runs[0]);
            assert_eq!((tensor.dtype, &*tensor.shape, tensor.place), (dtype, &[40, 30][..], Some(run.range)));
            assert_eq!((run.range.len(), run.dtype), (1200 * bytes as u64, Some(dtype)), "{descr}");
            assert!(!layout.is_truncated);
            assert!(described(descr, "False", "(40, 30)", 1200 * bytes - 1).expect("short").is_truncated);
        }
    }

    #[test]
    fn fortran_order_has_no_place_and_structures_have_no_type() {
        let place = |layout: Result<Layout, Refusal>| layout.expect("valid").tensors[0].place;
        let layout = described("'<f4'", "True", "(40, 30)", 4800);
        assert_eq!(layout.as_ref().map(|layout| layout.runs[0].range.len()), Ok(4800));
        assert_eq!(place(layout), None);
        assert!(place(described("'<f4'", "True", "(400,)", 1600)).is_some());
        assert!(place(described("'<f4'", "False", "()", 4)).is_some());
        let structure = "[('a', '<f4', (2, 2)), (('title', 'b'), [('x', '|u1'), ('y', '<i8')])]";
        let layout = described(structure, "False", "(100,)", 2500).expect("valid");
        assert_eq!(layout.tensors, []);
        assert_eq!((layout.runs[0].range.len(), layout.runs[0].dtype), (2500, None));
        let objects = described("'|O'", "False", "(2,)", 3000).expect("valid");
        assert_eq!((objects.runs[0].range.len(), objects.runs[0].cut), (3000, Cut::Content));
    }

    #[test]
    fn long_headers_are_read_and_wrong_ones_refused() {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (300,)}}{}", " ".repeat(70_000));
        assert_eq!(parse(&file(&header, true, 1200).as_slice()).expect("valid").runs.len(), 1);
        for (descr, order, shape) in [
            ("'f4'", "False", "(1,)"),
            ("'<f4x'", "False", "(1,)"),
            ("'<f+4'", "False", "(1,)"),
            ("'<q4'", "False", "(1,)"),
            ("'<f4'", "0", "(1,)"),
            ("'<f4'", "False", "(-1,)"),
            ("'<f4'", "False", "[1]"),
            ("'<f4'", "False", "(1, 'a')"),
            ("'<f8'", "False", "(4294967296, 4294967296)"),
            ("'<f4', 'descr': '<f4'", "False", "(1,)"),
            ("__import__('os')", "False", "(1,)"),
            ("[('a', '<f4', (9999999999, 9999999999, 9))]", "False", "(1,)"),
        ] {
            let parsed = described(descr, order, shape, 64);
            assert!(matches!(parsed, Err(Refusal::Malformed(_))), "{descr} {order} {shape}: {parsed:?}");
        }
        let mut newer = file("{}", false, 0);
        newer[6] = 4;
        assert!(matches!(parse(&newer.as_slice()), Err(Refusal::Malformed(_))));
        let whole = file("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", false, 12);
        for bytes in 0..whole.len() - 12 {
            assert_eq!(parse(&&whole[..bytes]), Err(Refusal::CutShort), "{bytes}");
        }
    }
}
