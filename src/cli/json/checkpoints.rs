//! A checkpoint in the documents.

use super::path_text;
use ckpt::repo::checkpoints::CheckpointRecord;
use ckpt::repo::snapshots::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;

/// A checkpoint in a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CheckpointItem {
    /// The absolute path of its directory, or of the file that it is.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// Its step, if that is known.
    pub step: Option<u64>,
    /// Who wrote it: `hf-trainer`, `weights`, `deepspeed`, `dcp`, `lightning`, `megatron` or `torch`.
    pub framework: String,
    /// Files that hold weights.
    pub shards: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Why it is not finished, if it was stored all the same; null if it is finished.
    pub unfinished: Option<String>,
}

impl CheckpointItem {
    /// The item of `record`, which belongs to `snapshot`.
    pub fn new(snapshot: &Snapshot, record: &CheckpointRecord) -> Self {
        CheckpointItem::at(&record.absolute_path(snapshot), record)
    }

    /// The item of `record` at its absolute path.
    pub fn at(path: &[u8], record: &CheckpointRecord) -> Self {
        let (path, path_bytes) = path_text(path);
        CheckpointItem {
            path,
            path_bytes,
            step: record.step,
            framework: record.framework.clone(),
            shards: record.shards,
            tensors: record.tensors,
            bytes: record.bytes,
            unfinished: record.unfinished.clone(),
        }
    }
}
