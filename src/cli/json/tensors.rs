//! The data of the commands that look at tensors.

use super::path_text;
use ckpt::ops::diff_tensors::{Described, TensorChange, TensorChangeKind};
use ckpt::ops::list_tensors::{ListedFile, ListedTensor};
use ckpt::repo::snapshots::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;

/// What stands before the files of `ls --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListTensorsHead {
    /// The snapshot that was listed.
    pub snapshot: String,
}

/// What stands behind the files of `ls --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListTensorsTail {
    /// How many files there are.
    pub files_total: u64,
    /// How many tensors are in them.
    pub tensors_total: u64,
    /// Bytes of these tensors, as far as known.
    pub bytes: u64,
    /// The bytes that they take in the repository; what several tensors share counts for each.
    pub bytes_stored: u64,
    /// Files that hold no tensors, or are of no kind that is known.
    pub files_passed_over: u64,
    /// How many files and parts of the list of files could not be read because they are damaged.
    pub damaged: u64,
}

/// `ls --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListTensorsDocument {
    #[serde(flatten)]
    head: ListTensorsHead,
    /// Sorted by path.
    files: Vec<TensorFileItem>,
    #[serde(flatten)]
    tail: ListTensorsTail,
}

/// A file of tensors.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TensorFileItem {
    /// The path that was backed up and holds the file.
    pub root: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub root_bytes: Option<String>,
    /// The path below the root; empty for the root itself.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// `safetensors`, `torch`, `dcp`, `gguf`, `npy`, `npz` or `parquet`.
    pub container: String,
    /// True if the file ends before its tensors do.
    pub truncated: bool,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the tensors that are listed, as far as known.
    pub bytes: u64,
    /// The bytes that they take in the repository, as far as known.
    pub bytes_stored: u64,
    /// In the order of the file.
    pub tensors: Vec<TensorItem>,
}

/// A tensor.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TensorItem {
    /// Its name in the file.
    pub name: String,
    /// The type of its elements, as safetensors calls it: `F32`, `BF16`, ...
    pub dtype: String,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file; null if they do not lie one behind the other.
    pub offset: Option<u64>,
    /// Its bytes; null if they cannot be told.
    pub bytes: Option<u64>,
    /// The bytes that its chunks take in the repository, in proportion where a chunk holds more; null if that cannot be
    /// told.
    pub bytes_stored: Option<u64>,
    /// The codecs of its chunks.
    pub codecs: Vec<String>,
    /// How many chunks it lies in; holes are none.
    pub segments: u64,
    /// How many of them are coded against other chunks.
    pub segments_with_base: u64,
    /// The ids of the first of these.
    pub bases: Vec<String>,
}

impl TensorFileItem {
    /// The item of `listed`, which belongs to `snapshot`.
    pub fn new(snapshot: &Snapshot, listed: &ListedFile) -> Self {
        let entry = &listed.file.file.entry;
        let root = usize::try_from(entry.root).ok().and_then(|root| snapshot.roots.get(root));
        let (root, root_bytes) = path_text(root.map_or(&[], Vec::as_slice));
        let (path, path_bytes) = path_text(&entry.path);
        TensorFileItem {
            root,
            root_bytes,
            path,
            path_bytes,
            container: listed.file.layout.container.name().to_owned(),
            truncated: listed.file.layout.is_truncated,
            file_bytes: entry.metadata.size,
            bytes: listed.bytes,
            bytes_stored: listed.stored_bytes,
            tensors: listed.tensors.iter().map(TensorItem::new).collect(),
        }
    }
}

impl TensorItem {
    fn new(listed: &ListedTensor) -> Self {
        let tensor = &listed.tensor;
        TensorItem {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            offset: tensor.place.map(|place| place.offset()),
            bytes: listed.bytes,
            bytes_stored: listed.stored_bytes,
            codecs: listed.codecs.iter().map(|&codec| codec.to_owned()).collect(),
            segments: listed.segments,
            segments_with_base: listed.segments_with_base,
            bases: listed.bases.iter().map(|base| base.to_hex()).collect(),
        }
    }
}

/// What stands before the changes of `diff --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffTensorsHead {
    /// The snapshot on the left.
    pub before: String,
    /// The snapshot on the right.
    pub after: String,
}

/// What stands behind the changes of `diff --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffTensorsTail {
    /// Pairs of files that were compared.
    pub files_compared: u64,
    /// Files only in `after`.
    pub files_added: u64,
    /// Files only in `before`.
    pub files_removed: u64,
    /// Tensors that are the same.
    pub unchanged: u64,
    /// Tensors with other elements.
    pub changed: u64,
    /// Tensors only in `after`.
    pub added: u64,
    /// Tensors only in `before`.
    pub removed: u64,
    /// Tensors of another shape or type.
    pub reshaped: u64,
    /// Tensors that could not be compared: their elements are not contiguous, or missing.
    pub not_compared: u64,
    /// Bytes of tensors that were read.
    pub bytes_read: u64,
    /// How many files and parts of lists of files could not be read because they are damaged.
    pub damaged: u64,
}

/// `diff --tensors`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffTensorsDocument {
    #[serde(flatten)]
    head: DiffTensorsHead,
    /// By file.
    changes: Vec<TensorChangeItem>,
    #[serde(flatten)]
    tail: DiffTensorsTail,
}

/// A tensor that differs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TensorChangeItem {
    /// The file before; null if it has no counterpart there.
    pub path_before: Option<String>,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_before_bytes: Option<String>,
    /// The file after; null if it has no counterpart there.
    pub path_after: Option<String>,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_after_bytes: Option<String>,
    /// The name of the tensor.
    pub name: String,
    /// `added`, `removed`, `changed`, `reshaped` or `not_compared`.
    pub change: String,
    /// The type of its elements before.
    pub dtype_before: Option<String>,
    /// The type of its elements after.
    pub dtype_after: Option<String>,
    /// Its dimensions before.
    pub shape_before: Option<Vec<u64>>,
    /// Its dimensions after.
    pub shape_after: Option<Vec<u64>>,
    /// Its bytes before.
    pub bytes_before: Option<u64>,
    /// Its bytes after.
    pub bytes_after: Option<u64>,
    /// How much of it changed, if it was compared.
    pub numbers: Option<NumbersItem>,
}

/// How much of a tensor changed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NumbersItem {
    /// Elements; bytes where these are of no known size.
    pub elements: u64,
    /// Elements of other bits.
    pub elements_changed: u64,
    /// Their share of all.
    pub share_changed: f64,
    /// The L2 norm of the change, over elements that are finite on both sides; null if they are no numbers.
    pub norm_change: Option<f64>,
    /// The L2 norm of what was before, over finite elements.
    pub norm_before: Option<f64>,
    /// The first by the second; null if that is 0.
    pub norm_relative: Option<f64>,
    /// Elements that were infinite or no number.
    pub nonfinite_before: u64,
    /// Elements that are infinite or no number now.
    pub nonfinite_after: u64,
}

impl TensorChangeItem {
    /// The item of `change` in the files of these paths.
    pub fn new(before: Option<&[u8]>, after: Option<&[u8]>, change: &TensorChange) -> Self {
        let (path_before, path_before_bytes) = before.map(path_text).map_or((None, None), |(p, b)| (Some(p), b));
        let (path_after, path_after_bytes) = after.map(path_text).map_or((None, None), |(p, b)| (Some(p), b));
        let kind = match change.kind {
            TensorChangeKind::Added => "added",
            TensorChangeKind::Removed => "removed",
            TensorChangeKind::Changed => "changed",
            TensorChangeKind::Reshaped => "reshaped",
            TensorChangeKind::NotCompared => "not_compared",
        };
        let dtype = |described: &Option<Described>| described.as_ref().map(|d| d.dtype.name().to_owned());
        let shape = |described: &Option<Described>| described.as_ref().map(|d| d.shape.clone());
        let bytes = |described: &Option<Described>| described.as_ref().and_then(|d| d.bytes);
        TensorChangeItem {
            path_before,
            path_before_bytes,
            path_after,
            path_after_bytes,
            name: change.name.clone(),
            change: kind.to_owned(),
            dtype_before: dtype(&change.before),
            dtype_after: dtype(&change.after),
            shape_before: shape(&change.before),
            shape_after: shape(&change.after),
            bytes_before: bytes(&change.before),
            bytes_after: bytes(&change.after),
            numbers: change.numbers.map(|numbers| NumbersItem {
                elements: numbers.elements,
                elements_changed: numbers.elements_changed,
                share_changed: numbers.share_changed(),
                norm_change: numbers.norm_change,
                norm_before: numbers.norm_before,
                norm_relative: numbers.norm_relative(),
                nonfinite_before: numbers.nonfinite_before,
                nonfinite_after: numbers.nonfinite_after,
            }),
        }
    }
}

/// What `restore --tensor` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RestoreTensorsSummary {
    /// The snapshot that the tensors were taken from.
    pub snapshot: String,
    /// The directory or the file that they went to.
    pub target: String,
    /// True if nothing was written because of `--dry-run`.
    pub dry_run: bool,
    /// Files that were written.
    pub files_restored: u64,
    /// Files that were right already.
    pub files_unchanged: u64,
    /// Files that `--overwrite never` left as they were.
    pub files_kept: u64,
    /// Tensors in all files that were selected.
    pub tensors: u64,
    /// Tensors that safetensors cannot hold, and that were left out.
    pub tensors_skipped: u64,
    /// Bytes of these files.
    pub bytes_total: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Files left out because the repository's copy is damaged.
    pub damaged: u64,
    /// Files that the target refused.
    pub failed: u64,
    /// Owners or permissions that could not be set.
    pub metadata_issues: Vec<String>,
    /// What a dry run would do; null otherwise.
    pub planned: Option<Vec<PlannedTensorFileItem>>,
    /// How long it took.
    pub seconds_elapsed: f64,
}

/// What a dry run of `restore --tensor` would do with one file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedTensorFileItem {
    /// The path below the target.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// What would happen to it.
    pub action: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: u64,
}
