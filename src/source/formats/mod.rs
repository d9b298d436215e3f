//! One file for each container; every parser reads bounded bytes, believes no length, and never panics.

mod archives;
pub(super) mod dcp;
mod fields;
mod finish;
mod header_reader;
mod pickle;
mod pickle_machine;
mod torch;
pub(super) mod torch_facts;
#[cfg(test)]
mod torch_fuzz;
mod torch_objects;
#[cfg(test)]
mod torch_samples;
mod zip;
mod zip_walk;

use super::layout::{Container, Layout, Parsed};
use crate::read_at::ReadAt;
use header_reader::Refusal;

/// What is looked at to choose a parser.
const FIRST_BYTES: usize = 16;

/// See [`super::layout::parse`].
pub(super) fn parse(file: &dyn ReadAt, name: &[u8], companion: Option<&dyn ReadAt>) -> Parsed {
    let mut first = [0; FIRST_BYTES];
    let Ok(bytes) = file.read_at(0, &mut first) else { return Parsed::Plain };
    let first = first.get(..bytes).unwrap_or_default();
    if has_extension(name, "distcp") {
        return parsed(Container::Dcp, dcp::parse(file, name, companion));
    }
    if first.starts_with(&zip::MAGIC)
        && let Some((container, layout)) = archives::parse(file)
    {
        return parsed(container, layout);
    }
    Parsed::Plain
}

/// What the look of a parser at a file that begins like a `container` has shown.
fn parsed(container: Container, layout: Result<Layout, Refusal>) -> Parsed {
    match layout {
        Ok(layout) => Parsed::Layout(Box::new(layout)),
        Err(Refusal::Malformed(reason)) => Parsed::Malformed(container, reason),
        Err(Refusal::Unreadable) => Parsed::Plain,
        Err(Refusal::CutShort) => Parsed::Layout(Box::new(Layout {
            container,
            tensors: Vec::new(),
            runs: Vec::new(),
            metadata: Vec::new(),
            is_truncated: true,
        })),
    }
}

/// True if `name` ends with a dot and `extension`, in whatever case.
fn has_extension(name: &[u8], extension: &str) -> bool {
    name.len()
        .checked_sub(extension.len() + 1)
        .and_then(|at| name.get(at..))
        .and_then(|end| end.strip_prefix(b"."))
        .is_some_and(|end| end.eq_ignore_ascii_case(extension.as_bytes()))
}
