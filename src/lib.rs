//! `ckpt` keeps model weights, training checkpoints and datasets safe: content-addressed, deduplicated, float-aware,
//! verified end to end.
//!
//! Layers, each importing only those above it in this list (`tests/it/tidy.rs` holds the table):
//!
//! * [`error`], [`ids`], [`bytes`], [`aligned`], [`metadata`], [`paths`], [`events`], [`read_at`],
//!   [`page_cache`], `sabotage`: the vocabulary.
//! * [`source`] (the user's files), [`codec`] (bytes to bytes), [`storage`] (named immutable objects): never each other.
//! * [`repo`]: packs, index, trees, snapshots, transactions.
//! * [`ops`]: backup, restore, verify and the rest, one file each, never one another.
//!
//! The program around it (`src/main.rs`, `src/cli`) parses arguments, renders reports and owns clock and environment.
//! `docs/ARCHITECTURE.md` says how the parts work together, `docs/FORMAT.md` what the stored bytes are.

pub mod aligned;
pub mod bytes;
pub mod codec;
pub mod error;
pub mod events;
pub mod ids;
pub mod metadata;
pub mod ops;
pub mod page_cache;
pub mod paths;
pub mod read_at;
pub mod repo;
pub mod source;
pub mod storage;
pub mod threads;

mod sabotage;
