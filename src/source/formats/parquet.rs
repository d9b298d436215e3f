//! Apache Parquet: column chunks one behind another, described by a footer in Thrift's compact protocol.
//!
//! Every column chunk is a run that is cut by content, from its first page on. Only the fields that this needs are read; the rest of
//! the footer is passed over within bounds. Chunks in other files and encrypted ones without a description have no run; a footer that is
//! encrypted or absent makes the file malformed.

use super::finish::{RUN_BYTES_MIN, finish};
use super::header_reader::{HEADER_BYTES_MAX, HeaderReader, Refusal, range};
use super::thrift::{Field, Reader};
use crate::bytes::{ByteRange, MIB};
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Cut, Layout, Run};

/// What a file begins and ends with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The same if the footer is encrypted.
pub(super) const MAGIC_ENCRYPTED: &[u8] = b"PARE";

/// The length of the footer and the magic.
const TAIL_BYTES: u64 = 8;

/// Reads the footer.
pub(super) fn parse(file: &dyn ReadAt) -> Result<Layout, Refusal> {
    let mut reader = HeaderReader::new(file);
    let begin_bytes = MAGIC.len() as u64;
    let tail_begin = file.bytes().checked_sub(TAIL_BYTES).filter(|&begin| begin >= begin_bytes);
    let absent = || Refusal::malformed("it ends without a footer");
    let tail = reader.read(tail_begin.ok_or_else(absent)?, TAIL_BYTES)?;
    let Some((length, magic)) = tail.split_first_chunk::<4>() else { return Err(Refusal::Unreadable) };
    if magic == MAGIC_ENCRYPTED {
        return Err(Refusal::malformed("its footer is encrypted"));
    }
    if magic != MAGIC {
        return Err(absent());
    }
    let bytes = u64::from(u32::from_le_bytes(*length));
    if bytes + TAIL_BYTES > HEADER_BYTES_MAX {
        let limit = HEADER_BYTES_MAX / MIB;
        return Err(Refusal::malformed(format!("its footer has {bytes} bytes, and above {limit} MiB none is read")));
    }
    let footer_begin = tail_begin.and_then(|begin| begin.checked_sub(bytes)).filter(|&begin| begin >= begin_bytes);
    let footer_begin = footer_begin.ok_or_else(|| Refusal::malformed("its footer is longer than the file"))?;
    let footer = reader.read(footer_begin, bytes)?;
    let inside = range(begin_bytes, footer_begin - begin_bytes)?;
    let runs = runs(&footer, inside).map_err(|what| Refusal::malformed(format!("its footer {what}")))?;
    let layout =
        Layout { container: Container::Parquet, tensors: Vec::new(), runs, metadata: Vec::new(), is_truncated: false };
    finish(layout, file.bytes())
}

/// What is wrong with a footer.
type Wrong = &'static str;

/// The runs of all row groups; they lie in `inside`.
fn runs(footer: &[u8], inside: ByteRange) -> Result<Vec<Run>, Wrong> {
    const ROW_GROUPS: i16 = 4;
    const COLUMNS: i16 = 1;
    let mut runs = Vec::new();
    let mut reader = Reader::new(footer);
    reader.fields(|reader, field| {
        if field.id != ROW_GROUPS {
            return reader.skip(field);
        }
        let mut group = 0u64;
        reader.structs(field, |reader| {
            let group_number = group;
            group += 1;
            reader.fields(|reader, field| match field.id {
                COLUMNS => reader.structs(field, |reader| {
                    let column = column(reader)?;
                    runs.extend(column.run(group_number, inside)?);
                    Ok(())
                }),
                _ => reader.skip(field),
            })
        })
    })?;
    Ok(runs)
}

/// What is said of a column chunk.
#[derive(Default)]
struct Column {
    is_elsewhere: bool,
    has_description: bool,
    path: String,
    compressed_bytes: i64,
    data_page: i64,
    dictionary_page: Option<i64>,
}

impl Column {
    fn run(self, group: u64, inside: ByteRange) -> Result<Option<Run>, Wrong> {
        if self.is_elsewhere || !self.has_description {
            return Ok(None);
        }
        // Some writers say 0 for no dictionary.
        let dictionary = self.dictionary_page.filter(|&at| at > 0);
        let begin = dictionary.map_or(self.data_page, |at| at.min(self.data_page));
        let (Ok(begin), Ok(bytes)) = (u64::try_from(begin), u64::try_from(self.compressed_bytes)) else {
            return Err("has a column chunk of negative place or length");
        };
        let range = ByteRange::new(begin, bytes).map_err(|_| "has a column chunk without an end")?;
        if !inside.contains(range) {
            return Err("has a column chunk that does not lie before it");
        }
        let key = format!("{}#{group}", self.path);
        Ok((bytes >= RUN_BYTES_MIN).then_some(Run { range, key, dtype: None, cut: Cut::Content }))
    }
}

fn column(reader: &mut Reader<'_>) -> Result<Column, Wrong> {
    const FILE_PATH: i16 = 1;
    const DESCRIPTION: i16 = 3;
    let mut column = Column::default();
    reader.fields(|reader, field| match field.id {
        FILE_PATH => {
            column.is_elsewhere = true;
            reader.skip(field)
        }
        DESCRIPTION => {
            column.has_description = true;
            reader.nested(field, |reader| reader.fields(|reader, field| describe(&mut column, reader, field)))
        }
        _ => reader.skip(field),
    })?;
    Ok(column)
}

fn describe(column: &mut Column, reader: &mut Reader<'_>, field: Field) -> Result<(), Wrong> {
    match field.id {
        3 => reader.texts(field, |part| {
            if !column.path.is_empty() {
                column.path.push('.');
            }
            column.path.push_str(&String::from_utf8_lossy(part));
        }),
        7 => reader.integer(field).map(|bytes| column.compressed_bytes = bytes),
        9 => reader.integer(field).map(|at| column.data_page = at),
        11 => reader.integer(field).map(|at| column.dictionary_page = Some(at)),
        _ => reader.skip(field),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A field of a struct: the difference of ids, the type, the value.
    fn field(delta: u8, kind: u8, value: &[u8]) -> Vec<u8> {
        [&[delta << 4 | kind], value].concat()
    }

    fn number(n: i64) -> Vec<u8> {
        let mut rest = ((n << 1) ^ (n >> 63)) as u64;
        let mut bytes = Vec::new();
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    fn structs(items: &[Vec<u8>]) -> Vec<u8> {
        [&[(items.len() as u8) << 4 | 12], items.concat().as_slice()].concat()
    }

    fn column_chunk(path: [&str; 2], dictionary: Option<i64>, data: i64, bytes: i64) -> Vec<u8> {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let mut meta = field(1, 5, &number(2));
        meta.extend(field(1, 9, &[0x15, 0]));
        meta.extend(field(1, 9, &[&[0x28][..], &text(path[0]), &text(path[1])].concat()));
        meta.extend(field(4, 6, &number(bytes)));
        meta.extend(field(2, 6, &number(data)));
        dictionary.iter().for_each(|&at| meta.extend(field(2, 6, &number(at))));
        meta.push(0);
        [field(2, 6, &number(data)), field(1, 12, &meta), vec![0]].concat()
    }

    fn footer(groups: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let group =
            |columns: &Vec<Vec<u8>>| [field(1, 9, &structs(columns)), field(1, 6, &number(9)), vec![0]].concat();
        let groups: Vec<Vec<u8>> = groups.iter().map(group).collect();
        [field(1, 5, &number(1)), field(2, 6, &number(10)), field(1, 9, &structs(&groups)), vec![0]].concat()
    }

    fn file(data_bytes: usize, footer: &[u8], magic: &[u8]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.resize(4 + data_bytes, 5);
        file.extend_from_slice(footer);
        file.extend_from_slice(&(footer.len() as u32).to_le_bytes());
        file.extend_from_slice(magic);
        file
    }

    /// Two row groups of two columns.
    pub(in crate::source::formats) fn sample() -> Vec<u8> {
        let first = vec![column_chunk(["a", "x"], Some(4), 100, 2000), column_chunk(["a", "y"], None, 2004, 3000)];
        let second = vec![column_chunk(["a", "x"], Some(0), 5004, 1100), column_chunk(["a", "y"], None, 6104, 20)];
        file(6120, &footer(&[first, second]), MAGIC)
    }

    fn reason(file: &[u8]) -> String {
        match parse(&file) {
            Err(Refusal::Malformed(reason)) => reason,
            other => panic!("not malformed: {other:?}"),
        }
    }

    #[test]
    fn every_column_chunk_is_a_run_from_its_first_page_on() {
        let layout = parse(&sample().as_slice()).expect("valid");
        let runs: Vec<_> = layout.runs.iter().map(|r| (&*r.key, r.range.offset(), r.range.len())).collect();
        assert_eq!(runs, [("a.x#0", 4, 2000), ("a.y#0", 2004, 3000), ("a.x#1", 5004, 1100)]);
        assert!(layout.runs.iter().all(|run| run.cut == Cut::Content && run.dtype.is_none()));
    }

    #[test]
    fn a_footer_that_cannot_be_used_is_told() {
        let valid = footer(&[]);
        assert!(reason(&file(0, &valid, MAGIC_ENCRYPTED)).contains("encrypted"));
        assert!(reason(&file(0, &valid, b"PAR2")).contains("without a footer"));
        assert!(reason(b"PAR1").contains("without a footer"));
        assert!(reason(b"PAR1\xff\0\0\0PAR1").contains("longer than the file"));
        assert!(reason(b"PAR1\xff\xff\xff\xffPAR1").contains("MiB"));
        let one = |data, bytes| file(2000, &footer(&[vec![column_chunk(["a", "b"], None, data, bytes)]]), MAGIC);
        assert!(parse(&one(4, 2000).as_slice()).is_ok());
        assert!(reason(&one(4, 2001)).contains("does not lie before"));
        assert!(reason(&one(3, 2000)).contains("does not lie before"));
        assert!(reason(&one(-4, 2000)).contains("negative"));
        assert!(reason(&one(i64::MAX, i64::MAX)).contains("does not lie before"));
        let twice = vec![column_chunk(["a", "b"], None, 4, 1500), column_chunk(["a", "c"], None, 400, 1500)];
        assert!(reason(&file(2000, &footer(&[twice]), MAGIC)).contains("over each other"));
        let cut = footer(&[]);
        assert!(reason(&file(0, &cut[..cut.len() - 2], MAGIC)).contains("footer"));
    }
}
