//! Finished or not: finds the checkpoints in a tree and judges each.
//!
//! Trainers write checkpoints in place, over minutes, and a directory that lacks a shard loads as garbage or not at all. One
//! walk finds what looks like a checkpoint, by names and by what lies beside what; then its files are looked at: ends and
//! headers, never the content. What every rule reads is bounded. A directory that merely holds files of weights is no
//! checkpoint and is left alone: datasets and caches just have to be backed up.
//!
//! The judgement is about one moment. Whether what is read later is still the same, [`Checkpoint::knows`] tells.

mod dcp;
mod deepspeed;
mod folder;
mod hugging_face;
mod lightning;
mod megatron;
mod names;
mod rules;
mod survey;
mod torch;
mod weights;

pub use names::{is_pointer, pointer_target};
pub use survey::{Survey, survey};

use super::scan::Found;
use crate::metadata::{FileKind, FileTime};
use crate::paths::is_beneath;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Who writes checkpoints of this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Framework {
    /// The Trainer of Hugging Face: `checkpoint-500/`.
    HuggingFace,
    /// Weights alone: shards with an index, or one file beside a configuration.
    Weights,
    /// DeepSpeed: `global_step500/`.
    DeepSpeed,
    /// A distributed checkpoint of PyTorch.
    Dcp,
    /// Lightning: `epoch=1-step=500.ckpt`.
    Lightning,
    /// Megatron-LM: `iter_0000500/`.
    Megatron,
    /// A single file of `torch.save`.
    Torch,
}

impl Framework {
    /// The name for people and records.
    pub const fn name(self) -> &'static str {
        match self {
            Framework::HuggingFace => "hf-trainer",
            Framework::Weights => "weights",
            Framework::DeepSpeed => "deepspeed",
            Framework::Dcp => "dcp",
            Framework::Lightning => "lightning",
            Framework::Megatron => "megatron",
            Framework::Torch => "torch",
        }
    }
}

/// By which clock, and how patiently.
#[derive(Debug, Clone, Copy)]
pub struct JudgeOptions {
    /// The time now.
    pub now: FileTime,
    /// A directory counts as left alone if nothing in it was modified within this time.
    pub settle: Duration,
}

/// What belongs to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Members {
    /// All beneath its path.
    Subtree,
    /// These files, by their paths relative to the root, sorted.
    Files(Vec<Vec<u8>>),
}

/// A checkpoint and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The index of its root.
    pub root: u32,
    /// Relative to the root: its directory, or the one file that it is.
    pub path: Vec<u8>,
    /// Who writes such.
    pub framework: Framework,
    /// The step, if a name or a file says it.
    pub step: Option<u64>,
    /// Files that hold weights.
    pub shards: u64,
    /// Tensors in them; of `torch.save`, what is stored by itself.
    pub tensors: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Why it is not finished: one sentence that names the file. None if it is finished.
    pub unfinished: Option<String>,
    /// Something odd that does not matter.
    pub warning: Option<String>,
    members: Members,
    /// What was seen of each entry, sorted.
    stamps: Vec<u64>,
}

impl Checkpoint {
    /// True if the entry at `path` of the same root belongs to it.
    pub fn holds(&self, path: &[u8]) -> bool {
        match &self.members {
            Members::Subtree => is_beneath(path, &self.path),
            Members::Files(files) => files.binary_search_by(|file| file.as_slice().cmp(path)).is_ok(),
        }
    }

    /// The files it consists of, if it does not own all beneath its path.
    pub fn files(&self) -> Option<&[Vec<u8>]> {
        match &self.members {
            Members::Subtree => None,
            Members::Files(files) => Some(files),
        }
    }

    /// True if the entry is just as it was when the checkpoint was judged.
    pub fn knows(&self, path: &[u8], size: u64, mtime: FileTime, ctime: FileTime, inode: u64) -> bool {
        self.stamps.binary_search(&stamp(path, size, mtime, ctime, inode)).is_ok()
    }

    /// How many entries it had when it was judged.
    pub fn entries(&self) -> u64 {
        self.stamps.len() as u64
    }
}

/// True for a directory that is called like a step: `checkpoint-500`.
pub fn is_step_directory(name: &[u8]) -> bool {
    names::step_directory(name).is_some()
}

/// What the rules find out on their way.
#[derive(Debug, Default)]
struct Tally {
    /// The length of the checkpoint's own path: sentences name files relative to it.
    path_bytes: usize,
    shards: u64,
    tensors: u64,
    /// The step that a file says.
    step: Option<u64>,
}

/// Identifies the state of an entry, as far as metadata tell.
fn stamp(path: &[u8], size: u64, mtime: FileTime, ctime: FileTime, inode: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, size, mtime, ctime, inode).hash(&mut hasher);
    hasher.finish()
}

fn stamp_of(found: &Found) -> u64 {
    let m = &found.metadata;
    stamp(&found.path, m.size, m.mtime, m.ctime, m.inode)
}

/// True for what has content.
fn is_file(found: &Found) -> bool {
    found.metadata.kind == FileKind::Regular
}

#[cfg(test)]
mod tests;
