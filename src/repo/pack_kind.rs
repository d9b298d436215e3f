//! The kinds of packs: a byte in their headers and in index objects. What follows from a kind is decided elsewhere.

use crate::error::{Error, Result};

/// What the frames of a pack hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// Content of files.
    Data,
    /// Entries, chunk lists and their nodes: apart, so that looking at a snapshot reads little.
    Tree,
}

impl PackKind {
    /// The byte that stands for the kind.
    pub fn code(self) -> u8 {
        match self {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }

    /// The kind that `code` stands for.
    pub fn from_code(code: u8) -> Result<PackKind> {
        match code {
            0 => Ok(PackKind::Data),
            1 => Ok(PackKind::Tree),
            _ => Err(Error::damaged(format!("a pack of unknown kind {code}"))),
        }
    }
}
