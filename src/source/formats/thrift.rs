//! Reading Thrift's compact protocol from memory.
//!
//! Fields are visited one by one, and what a visitor does not want is skipped. Depth is bounded; a count from outside costs
//! nothing, since every element takes a byte at least. It knows nothing of what the fields mean.

/// Structs and lists in each other; the footer of Parquet has less than 8.
const DEPTH_MAX: u32 = 24;

const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// The result of reading, or what is wrong.
type Result<T> = std::result::Result<T, &'static str>;

/// The beginning of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Its number in the struct.
    pub id: i16,
    kind: u8,
}

/// Reads values one behind another.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, depth: 0 }
    }

    /// Visits the fields of the struct that comes next; the visitor reads or skips the value of each.
    pub(super) fn fields(&mut self, mut visit: impl FnMut(&mut Self, Field) -> Result<()>) -> Result<()> {
        let mut last = 0i16;
        self.deeper(|reader| {
            loop {
                let head = reader.byte()?;
                let (delta, kind) = (head >> 4, head & 0x0f);
                if kind == STOP {
                    return Ok(());
                }
                let id = if delta == 0 { i16::try_from(reader.zigzag()?).ok() } else { last.checked_add(delta.into()) };
                last = id.ok_or("has a field without a number")?;
                visit(reader, Field { id: last, kind })?;
            }
        })
    }

    /// Visits a field that is a struct.
    pub(super) fn nested(&mut self, field: Field, visit: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if field.kind == STRUCT { visit(self) } else { Err("has a field of another type than the format has") }
    }

    /// Visits every struct of a field that is a list of them.
    pub(super) fn structs(&mut self, field: Field, mut visit: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.list(field, STRUCT, |reader| visit(reader))
    }

    /// Visits every string of a field that is a list of them.
    pub(super) fn texts(&mut self, field: Field, mut visit: impl FnMut(&[u8])) -> Result<()> {
        self.list(field, BINARY, |reader| {
            visit(reader.binary()?);
            Ok(())
        })
    }

    /// The value of a field that is a whole number of 16, 32 or 64 bits.
    pub(super) fn integer(&mut self, field: Field) -> Result<i64> {
        if !(I16..=I64).contains(&field.kind) {
            return Err("has a field of another type than the format has");
        }
        self.zigzag()
    }

    /// Passes over the value of a field.
    pub(super) fn skip(&mut self, field: Field) -> Result<()> {
        match field.kind {
            // The value is the type.
            TRUE | FALSE => Ok(()),
            kind => self.skip_value(kind),
        }
    }

    fn list(&mut self, field: Field, kind: u8, mut visit: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if field.kind != LIST {
            return Err("has a field of another type than the format has");
        }
        let (found, count) = self.list_head()?;
        if found != kind && count > 0 {
            return Err("has a list of another type than the format has");
        }
        self.deeper(|reader| (0..count).try_for_each(|_| visit(reader)))
    }

    fn list_head(&mut self) -> Result<(u8, u64)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Ok((head & 0x0f, count))
    }

    /// Passes over a value that stands in a list, a map or a field; booleans take a byte in the first two.
    fn skip_value(&mut self, kind: u8) -> Result<()> {
        match kind {
            TRUE | FALSE | BYTE => self.take(1).map(drop),
            I16..=I64 => self.varint().map(drop),
            DOUBLE => self.take(8).map(drop),
            BINARY => self.binary().map(drop),
            UUID => self.take(16).map(drop),
            LIST | SET => {
                let (kind, count) = self.list_head()?;
                self.deeper(|reader| (0..count).try_for_each(|_| reader.skip_value(kind)))
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                self.deeper(|reader| {
                    (0..count).try_for_each(|_| {
                        reader.skip_value(kinds >> 4)?;
                        reader.skip_value(kinds & 0x0f)
                    })
                })
            }
            STRUCT => self.fields(|reader, field| reader.skip(field)),
            _ => Err("has a value of an unknown type"),
        }
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.depth == DEPTH_MAX {
            return Err("is nested too deep");
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8]> {
        let taken = usize::try_from(bytes).ok().and_then(|bytes| self.rest.split_at_checked(bytes));
        let (taken, rest) = taken.ok_or("ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1)?.first().copied().ok_or("ends too early")
    }

    fn binary(&mut self) -> Result<&'a [u8]> {
        let bytes = self.varint()?;
        self.take(bytes)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if (part << shift) >> shift != part {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("has a number of more than 64 bits")
    }

    fn zigzag(&mut self) -> Result<i64> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(bytes: &[u8]) -> Result<usize> {
        let mut reader = Reader::new(bytes);
        reader.fields(|reader, field| reader.skip(field))?;
        Ok(reader.rest.len())
    }

    #[test]
    fn values_of_every_type_are_skipped() {
        // true, false, byte, i16, i32, i64, double, binary, list of bool, set, empty map, map, struct, uuid.
        let bytes = [
            &[0x11, 0x12, 0x13, 9, 0x14, 1, 0x15, 0xff, 0x7f, 0x16, 2, 0x17, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0x18, 3, b'a', b'b', b'c', 0x19, 0x21, 1, 2, 0x1a, 0x13, 7, 0x1b, 0, 0x1b, 1, 0x85, 1, b'k', 4],
            &[0x1c, 0x15, 8, 0, 0x1d],
            &[0; 16],
            &[0x05, 0x80, 0x02, 6, 0, 99],
        ]
        .concat();
        assert_eq!(skipped(&bytes), Ok(1));
        assert!((0..bytes.len() - 1).all(|end| skipped(&bytes[..end]).is_err()));
    }

    #[test]
    fn depth_counts_and_numbers_are_bounded() {
        assert_eq!(skipped(&[0x1c; 100_000]), Err("is nested too deep"));
        assert_eq!(skipped(&[&[0x19][..], &[0x19; 100_000]].concat()), Err("is nested too deep"));
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(skipped(&[&[0x19, 0xf3][..], &huge].concat()), Err("ends too early"));
        assert_eq!(skipped(&[&[0x18][..], &huge].concat()), Err("ends too early"));
        assert_eq!(skipped(&[&[0x16][..], &[0xff; 11]].concat()), Err("has a number of more than 64 bits"));
        assert_eq!(skipped(&[0x1e]), Err("has a value of an unknown type"));
    }

    #[test]
    fn numbers_alternate_in_sign() {
        for (bytes, value) in [(&[0u8][..], 0), (&[1], -1), (&[2], 1), (&[0xfe, 0xff, 0x03], 32_767)] {
            assert_eq!(Reader::new(bytes).zigzag(), Ok(value));
        }
    }
}
