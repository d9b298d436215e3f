//! The data of the commands that look at tensors.

use super::path_text;
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
