//! The sample containers in `tests/data/containers`, and what their libraries say is in them.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// `expected.json`.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// By path.
    pub files: BTreeMap<String, ExpectedFile>,
}

/// What a library has found in a file.
#[derive(Debug, Deserialize)]
pub struct ExpectedFile {
    pub container: String,
    pub tensors: Vec<ExpectedTensor>,
    /// Where the column chunks of a Parquet file lie.
    #[serde(default)]
    pub column_chunks: Vec<ColumnChunk>,
    /// True if the names are a matter of taste.
    #[serde(default)]
    pub names_are_free: bool,
    /// True for what `torch.save` wrote before version 1.6.
    #[serde(default)]
    pub is_old: bool,
}

/// A tensor.
#[derive(Debug, Deserialize)]
pub struct ExpectedTensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    /// Of the elements, row by row and little-endian, in hexadecimal digits.
    pub blake3: String,
    /// True if the file has them so, too.
    #[serde(default = "yes")]
    pub is_plain: bool,
    /// True if no machine of today has them so.
    #[serde(default)]
    pub is_big_endian: bool,
}

/// A column in a group of rows.
#[derive(Debug, Deserialize)]
pub struct ColumnChunk {
    pub column: String,
    pub offset: u64,
    pub bytes: u64,
}

fn yes() -> bool {
    true
}

/// Where the samples are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/containers")
}

/// What is in them.
pub fn expected() -> Expected {
    let text = fs::read_to_string(folder().join("expected.json")).expect("part of the project");
    serde_json::from_str(&text).expect("as make.py writes it")
}

/// Copies all samples to a new folder, as if nobody had touched them for long.
pub fn copy_containers(to: &Path) {
    for item in walkdir::WalkDir::new(folder()).into_iter().map(|item| item.expect("readable")) {
        let place = to.join(item.path().strip_prefix(folder()).expect("beneath"));
        match item.file_type().is_dir() {
            true => fs::create_dir_all(&place).expect("a folder"),
            false => write_old(&place, &fs::read(item.path()).expect("a sample")),
        }
    }
    set_folders_old(to);
}

/// Writes a file whose time lies far back, so that it counts as finished; what was there counts as changed by its inode.
pub fn write_old(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("written");
    set_old(path);
}

/// As if nobody had made or removed anything in the folders beneath `root` for long.
pub fn set_folders_old(root: &Path) {
    let items = walkdir::WalkDir::new(root).into_iter().map(|item| item.expect("readable"));
    items.filter(|item| item.file_type().is_dir()).for_each(|item| set_old(item.path()));
}

fn set_old(path: &Path) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let file = File::open(path).expect("ours");
    file.set_times(FileTimes::new().set_modified(time)).expect("ours");
}
