//! Byte counts, offsets and ranges with checked arithmetic.
//!
//! Counts and offsets from outside are bounded here before anything is allocated or multiplied.

use crate::error::{Error, Result};
use std::fmt;

/// One kibibyte, mebibyte, gibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// A half-open range of bytes `offset .. offset + len` in an object or a file; its end never overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes at `offset`; an error if its end would overflow.
    pub fn new(offset: u64, len: u64) -> Result<Self> {
        match offset.checked_add(len) {
            Some(_) => Ok(ByteRange { offset, len }),
            None => Err(Error::damaged(format!("a range of {len} bytes at {offset} has no end"))),
        }
    }

    /// The first byte's position.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// The number of bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// True if the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The position behind the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// True if `other` lies within this range.
    pub const fn contains(self, other: ByteRange) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }
}

/// A number of bytes shown for people in binary units: `1.50 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < KIB {
            return write!(f, "{} B", self.0);
        }
        let mut unit = 0;
        let mut scale = KIB;
        while unit + 1 < UNITS.len() && self.0 / scale >= KIB {
            unit += 1;
            scale <<= 10;
        }
        // Hundredths in integers: exact, whatever the size.
        let hundredths = u128::from(self.0) * 100 / u128::from(scale);
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        match whole {
            0..=9 => write!(f, "{whole}.{rest:02} {}", UNITS[unit]),
            10..=99 => write!(f, "{whole}.{} {}", rest / 10, UNITS[unit]),
            _ => write!(f, "{whole} {}", UNITS[unit]),
        }
    }
}

/// A length read from outside as an index into memory, refused above `max`.
pub fn bounded_len(len: u64, max: u64, what: &str) -> Result<usize> {
    if len > max {
        return Err(Error::damaged(format!("{what} claims {len} bytes, at most {max} are possible")));
    }
    usize::try_from(len).map_err(|_| Error::damaged(format!("{what} claims {len} bytes, more than memory can address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let shown = |n| ByteCount(n).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.00 KiB");
        assert_eq!(shown(1536 * 1024), "1.50 MiB");
        assert_eq!(shown(123 * GIB), "123 GiB");
        assert_eq!(shown(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn a_range_whose_end_overflows_is_refused() {
        assert!(ByteRange::new(u64::MAX, 1).is_err());
        assert!(ByteRange::new(u64::MAX - 1, 1).is_ok());
        assert!(bounded_len(11, 10, "x").is_err());
    }
}
