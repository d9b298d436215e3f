//! What stands in a directory of a repository.
//!
//! Guarantees: a listing that a signal interrupted is begun again; closing a directory is never an error (the standard
//! library's listing panics there). Deliberately not here: order, names of objects, retries after errors.

use crate::storage::place::uninterrupted;
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// One entry.
pub(super) struct Entry {
    /// Its name; what is not UTF-8 is nobody's object and is left out.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file_type: FileType,
}

/// The entries of `directory`, without those that vanish meanwhile.
pub(super) fn entries_of(directory: &Path) -> Result<Vec<Entry>, Errno> {
    uninterrupted(|| entries_once(directory))
}

fn entries_once(directory: &Path) -> Result<Vec<Entry>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut entries = Vec::new();
    for found in fs::Dir::new(fs::open(directory, flags, Mode::empty())?)? {
        let found = found?;
        let Ok(name) = found.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let path = directory.join(name);
        let file_type = match found.file_type() {
            // Some file systems do not tell it here.
            FileType::Unknown => match fs::lstat(&path) {
                Ok(status) => FileType::from_raw_mode(status.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            told => told,
        };
        entries.push(Entry { name: name.to_owned(), path, file_type });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_with_their_types_and_an_absent_directory_is_an_error() {
        let root = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(root.path().join("file"), "x").expect("a file");
        std::fs::create_dir(root.path().join("folder")).expect("a folder");
        std::os::unix::fs::symlink("file", root.path().join("link")).expect("a link");
        let mut entries = entries_of(root.path()).expect("listed");
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let found: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.file_type)).collect();
        let wanted = [("file", FileType::RegularFile), ("folder", FileType::Directory), ("link", FileType::Symlink)];
        assert_eq!(found, wanted);
        assert_eq!(entries_of(&root.path().join("none")).err(), Some(Errno::NOENT));
    }
}
