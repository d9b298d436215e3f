//! One file for each container; every parser reads bounded bytes, believes no length, and never panics.
//!
//! A parser is a function from a file to a [`Layout`] or a [`Refusal`]; [`parse`] chooses it by the first bytes, and by the name
//! where these leave it open. A new container is a file, a line in [`parse`] and a target of fuzzing (`tests/fuzz/targets`).

mod archives;
pub(super) mod dcp;
mod fields;
mod finish;
mod gguf;
mod header_reader;
mod header_stream;
mod npy;
pub mod npy_writer;
mod npz;
mod parquet;
mod pickle;
mod pickle_machine;
mod python_literal;
mod safetensors;
pub mod safetensors_writer;
mod thrift;
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
    // An archive at the front may be one item of many, or the items may be something else.
    if has_extension(name, "distcp") {
        return parsed(Container::Dcp, dcp::parse(file, name, companion));
    }
    if first.starts_with(&zip::MAGIC) {
        return archives::parse(file).map_or(Parsed::Plain, |(container, layout)| parsed(container, layout));
    }
    if first.starts_with(gguf::MAGIC) {
        return parsed(Container::Gguf, gguf::parse(file));
    }
    if first.starts_with(npy::MAGIC) {
        return parsed(Container::Npy, npy::parse(file));
    }
    if first.starts_with(parquet::MAGIC) || first.starts_with(parquet::MAGIC_ENCRYPTED) {
        return parsed(Container::Parquet, parquet::parse(file));
    }
    // The format has no magic: a name that promises it is taken at its word.
    if safetensors::is_begin(first) || has_extension(name, "safetensors") {
        return parsed(Container::Safetensors, safetensors::parse(file));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide_and_the_name_only_where_they_leave_it_open() {
        let valid: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
        for name in ["model.safetensors", "renamed.bin", ""] {
            assert!(matches!(parse(&valid, name.as_bytes(), None), Parsed::Layout(_)), "{name}");
        }
        let zeros: &[u8] = &[0; 64];
        assert_eq!(parse(&zeros, b"x.bin", None), Parsed::Plain);
        for file in [zeros, b"", b"version https://git-lfs"] {
            let parsed = parse(&file, b"x.SafeTensors", None);
            assert!(matches!(parsed, Parsed::Malformed(Container::Safetensors, _)), "{parsed:?}");
        }
        let cut: &[u8] = b"\x20\0\0\0\0\0\0\0{\"a\":";
        let Parsed::Layout(layout) = parse(&cut, b"", None) else { panic!("cut short") };
        assert!(layout.is_truncated && layout.runs.is_empty());
    }

    #[test]
    fn extensions_are_the_whole_last_part() {
        assert!(has_extension(b"a.npy", "npy") && has_extension(b".NPY", "npy"));
        assert!(!has_extension(b"anpy", "npy") && !has_extension(b"npy", "npy") && !has_extension(b"a.npy2", "npy"));
    }
}
