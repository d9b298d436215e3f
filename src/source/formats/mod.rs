//! One file for each container; every parser reads bounded bytes, believes no length, and never panics.

use super::layout::Parsed;
use crate::read_at::ReadAt;

/// See [`super::layout::parse`].
pub(super) fn parse(_file: &dyn ReadAt, _name: &[u8], _companion: Option<&dyn ReadAt>) -> Parsed {
    Parsed::Plain
}
