//! A directory as a walk has seen it: what the rules are asked about. Reads files with bounds.

use super::Tally;
use crate::error::Error;
use crate::metadata::{FileKind, FileTime};
use crate::source::open::SourceFile;
use crate::source::scan::Found;
use std::collections::BTreeSet;

/// JSON files beside weights (an index, the state of a trainer) are read up to this size.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Why a checkpoint is not finished: one sentence that names the file.
pub(super) type Verdict = Result<(), String>;

/// A directory.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Relative to the root of the backup.
    pub(super) path: Vec<u8>,
    /// Its own last component.
    pub(super) name: Vec<u8>,
    pub(super) mtime: FileTime,
    /// Identifies the directory's own state.
    pub(super) stamp: u64,
    /// Regular files, in order; in a directory that cannot be a checkpoint of its own, only those that matter.
    pub(super) files: Vec<Found>,
    pub(super) folders: Vec<Folder>,
    /// Names of what else is there or is left out on purpose: it exists, and is not looked into.
    pub(super) others: BTreeSet<Vec<u8>>,
    /// Something that could not be looked at.
    pub(super) problem: Option<String>,
}

impl Folder {
    /// The file called `name`.
    pub(super) fn file(&self, name: &[u8]) -> Option<&Found> {
        self.files.iter().find(|file| name_of(file) == name)
    }

    /// True if something is called `name`.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.file(name).is_some() || self.others.contains(name) || self.folders.iter().any(|f| f.name == name)
    }

    /// This directory and all beneath it.
    pub(super) fn all(&self) -> Vec<&Folder> {
        let mut all = vec![self];
        let mut at = 0;
        while let Some(folder) = all.get(at) {
            all.extend(&folder.folders);
            at += 1;
        }
        all
    }

    /// True if nothing but directories is there.
    pub(super) fn is_empty(&self) -> bool {
        self.all().iter().all(|folder| folder.files.is_empty() && folder.others.is_empty())
    }

    /// True if this directory or one beneath it has a file whose name `wanted` takes.
    pub(super) fn any_file(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        self.all().iter().any(|folder| folder.files.iter().any(|file| wanted(name_of(file))))
    }
}

/// The last component of a file's path.
pub(super) fn name_of(file: &Found) -> &[u8] {
    let path: &[u8] = if file.path.is_empty() {
        use std::os::unix::ffi::OsStrExt;
        file.absolute.as_os_str().as_bytes()
    } else {
        &file.path
    };
    path.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

/// The name for a sentence, relative to the checkpoint.
pub(super) fn shown(file: &Found, tally: &Tally) -> String {
    let below = file.path.get(tally.path_bytes..).unwrap_or_default();
    let below = below.strip_prefix(b"/").unwrap_or(below);
    let name = if below.is_empty() { name_of(file) } else { below };
    String::from_utf8_lossy(name).into_owned()
}

/// Opens a file; what is not readable is a reason.
pub(super) fn open(file: &Found, tally: &Tally) -> Result<SourceFile, String> {
    if file.metadata.kind != FileKind::Regular {
        return Err(format!("{} is no regular file", shown(file, tally)));
    }
    SourceFile::open(file).map_err(|error| unreadable(file, tally, &error))
}

/// The sentence for a file that cannot be read.
pub(super) fn unreadable(file: &Found, tally: &Tally, error: &Error) -> String {
    format!("{} cannot be read: {error}", shown(file, tally))
}

/// The start of a file, at most `bytes_max` of it.
pub(super) fn read_front(file: &Found, tally: &Tally, bytes_max: u64) -> Result<Vec<u8>, String> {
    let source = open(file, tally)?;
    let bytes = usize::try_from(file.metadata.size.min(bytes_max)).unwrap_or(0);
    let mut buffer = vec![0; bytes];
    let read = source.read_at(0, &mut buffer).map_err(|error| unreadable(file, tally, &error))?;
    buffer.truncate(read);
    Ok(buffer)
}

/// A JSON file taken apart; one that ends too early is a reason, one that is too long is passed over.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(file: &Found, tally: &Tally) -> Result<Option<T>, String> {
    if file.metadata.size > JSON_BYTES_MAX {
        return Ok(None);
    }
    let text = read_front(file, tally, JSON_BYTES_MAX)?;
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        // JSON of another shape is somebody else's.
        Err(error) if error.is_data() => Ok(None),
        Err(_) => Err(format!("{} is not whole: it ends in the middle of its JSON", shown(file, tally))),
    }
}
