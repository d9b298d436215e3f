//! Everything that takes bytes from outside, each parser as a function of bytes: the targets of fuzzing.
//!
//! Two runners share them: `tests/it/fuzz/mod.rs` mutates a corpus in every run of the tests, `tests/fuzz/run.rs` is libFuzzer's. A target panics
//! if the parser does, and if a result breaks what its type promises. Where bytes stand behind a checksum the
//! target computes it, so that mutants get past it. What a target may take of memory is stated beside it; the first runner measures.
//!
//! A new parser is a line in [`ALL`] and a seed in `tests/it/fuzz/corpus.rs`.

mod checkpoints;
mod cli;
mod codec;
pub mod held;
mod parity;
mod records;
mod repo;
pub mod sealed;
mod source;

/// A parser.
pub struct Target {
    /// Also the name of its folder in `tests/data/corpus`.
    pub name: &'static str,
    /// Runs the parser; true if it took the bytes for what it parses.
    pub run: fn(&[u8]) -> bool,
    /// The most memory that parsing these bytes may take at one time, without what C libraries take.
    pub memory_max: fn(&[u8]) -> u64,
    /// Of the usual number of executions one in so many: what is slow runs less.
    pub one_in: u64,
}

/// Memory in proportion to the input: so many bytes for each byte, and a constant.
macro_rules! in_proportion {
    ($factor:expr, $constant:expr) => {
        |bytes: &[u8]| $factor * bytes.len() as u64 + ($constant << 10)
    };
}

/// All targets.
pub const ALL: &[Target] = &[
    target("safetensors", source::safetensors, in_proportion!(24, 64), 1),
    target("safetensors_header", source::safetensors_header, in_proportion!(32, 64), 2),
    target("gguf", source::gguf, in_proportion!(24, 192), 1),
    target("npy", source::npy, in_proportion!(24, 64), 1),
    target("npy_header", source::npy_header, in_proportion!(64, 64), 1),
    target("npz", source::npz, in_proportion!(24, 128), 2),
    target("torch", source::torch, in_proportion!(48, 192), 4),
    target("pickle", source::pickle, in_proportion!(96, 256), 4),
    target("dcp", source::dcp, in_proportion!(96, 256), 4),
    target("parquet", source::parquet, in_proportion!(24, 64), 1),
    target("parquet_footer", source::parquet_footer, in_proportion!(48, 128), 1),
    target("checkpoint_folder", checkpoints::folder, in_proportion!(96, 512), 50),
    target("pointer", checkpoints::pointer, in_proportion!(8, 4), 1),
    target("frame", codec::frame, codec::frame_memory_max, 1),
    target("frame_with_base", codec::frame_with_base, codec::frame_with_base_memory_max, 1),
    target("document", repo::document, in_proportion!(8, 8), 1),
    target("config", repo::config, in_proportion!(16, 16), 1),
    target("snapshot", repo::snapshot, in_proportion!(96, 64), 1),
    target("record", records::record, in_proportion!(40, 64), 1),
    target("condemned", records::condemned, in_proportion!(40, 64), 1),
    target("pack", repo::pack, in_proportion!(16, 256), 1),
    target("pack_table", repo::pack_table, in_proportion!(16, 16), 1),
    target("index_object", repo::index_object, in_proportion!(24, 64), 1),
    target("sealed_pack", sealed::sealed_pack, in_proportion!(32, 1024), 25),
    target("sealed_index", sealed::sealed_index, in_proportion!(24, 64), 2),
    target("key_slot", sealed::key_slot, in_proportion!(48, 64), 5),
    target("key_bundle", sealed::key_bundle, in_proportion!(32, 16), 5),
    target("parity", parity::parity, in_proportion!(32, 1024), 5),
    target("node", repo::node, in_proportion!(8, 8), 1),
    target("tree", repo::tree, repo::tree_memory_max, 2),
    target("entry", repo::entry, in_proportion!(48, 64), 1),
    target("object_name", repo::object_name, in_proportion!(16, 8), 1),
    target("selector", cli::selector, in_proportion!(64, 16), 1),
    target("size", cli::size, in_proportion!(64, 16), 1),
    target("time", cli::time, in_proportion!(64, 32), 1),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool, memory_max: fn(&[u8]) -> u64, one_in: u64) -> Target {
    Target { name, run, memory_max, one_in }
}

/// The target of this name.
pub fn named(name: &str) -> &'static Target {
    ALL.iter().find(|target| target.name == name).expect("one of ALL")
}

/// Takes `bytes` apart into a front whose length (`u16`, little-endian) stands before it, and the rest.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return (&[], bytes) };
    rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()))
}
