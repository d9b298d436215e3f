//! Objects as files in a directory, on a local disk or a mounted file system (NFS, CephFS, Lustre).
//!
//! Guarantees: those of [`Storage`]. An object `packs/ab/x` is the file of that path, whole from the moment it has the
//! name. A stale handle is reopened by name, and an unreadable range is read again, twice, before it is reported. Nothing
//! but regular files counts as an object: links are not followed, pipes and devices are never opened for long.
//!
//! Reading needs no right to write. Deliberately not here: how a file is written (`durable_file.rs`) or read
//! (`readers.rs`), modes and the wording of errors (`place.rs`).

use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::sabotage::is_planted;
use crate::storage::durable_file::DurableFile;
use crate::storage::entries::{Entry, entries_of};
use crate::storage::place::{Place, is_temporary_name, sync_parent_of_root, uninterrupted};
use crate::storage::readers::{Reader, Readers, read_exactly};
use crate::storage::{Listed, ObjectName, ObjectWriter, Owner, Storage, check_folder, fresh, leftovers};
use rustix::fs::{self, FileType};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// How often a read is begun before its error is reported.
const READ_ATTEMPTS_MAX: u32 = 3;

/// A repository's objects in a directory.
pub struct LocalStorage {
    pub(super) place: Arc<Place>,
    readers: Readers,
}

impl LocalStorage {
    /// The storage in the existing directory `root`.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(LocalStorage { place: Arc::new(Place::open(root)?), readers: Readers::default() })
    }

    /// The storage in the directory `root`, which is made if it is absent, with its parents; durable on return.
    ///
    /// A new root is open to its owner only, whatever the umask: it is going to hold copies of files that may be private.
    pub fn create_root(root: &Path) -> Result<Self> {
        let failure = |error| Error::io(format!("making the repository's directory {}", root.display()), error);
        let absolute = std::path::absolute(root).map_err(failure)?;
        let missing: Vec<&Path> = absolute.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.iter().rev() {
            let mode = if *path == absolute { 0o700 } else { 0o777 };
            match std::fs::DirBuilder::new().mode(mode).create(path) {
                // Made by someone else since it was looked for.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failure)?,
            }
        }
        // The root's own name too if it existed: it may have been made a moment ago.
        for path in missing.iter().copied().chain([absolute.as_path()]) {
            if let Some(parent) = path.parent() {
                sync_parent_of_root(parent)?;
            }
        }
        LocalStorage::open(&absolute)
    }

    /// True once the file system would not take direct I/O, so that large objects go through the page cache.
    pub fn direct_io_refused(&self) -> bool {
        self.place.direct_io_refused()
    }

    /// True once the file system would not sync a directory, so that names are only as durable as it makes them itself.
    pub fn folder_sync_refused(&self) -> bool {
        self.place.folder_sync_refused()
    }

    /// Runs `read` on the open object and its length, again with a fresh descriptor after errors that may pass.
    fn with_object<T>(&self, name: &ObjectName, mut read: impl FnMut(&Reader, u64) -> Result<T, Errno>) -> Result<T> {
        let path = self.place.path_of(name.as_str());
        let doing = || format!("reading {}", path.display());
        let mut attempts = 0;
        loop {
            attempts += 1;
            let errno = match self.readers.open(name, &path) {
                Ok((_, None)) => {
                    return Err(Error::damaged(format!("{} is not a regular file", path.display())));
                }
                Ok((file, Some(bytes))) => match read(&file, bytes) {
                    Ok(done) => return Ok(done),
                    Err(errno) => errno,
                },
                // A link where a file was written.
                Err(Errno::LOOP) => return Err(Error::damaged(format!("{} is a link", path.display()))),
                Err(errno) => errno,
            };
            self.readers.forget(name);
            match errno {
                Errno::STALE | Errno::IO if attempts < READ_ATTEMPTS_MAX => {}
                Errno::NOENT | Errno::NOTDIR => {
                    self.place.check_root()?;
                    return Err(Error::new(Kind::Missing, format!("{} does not exist", path.display())));
                }
                errno => return Err(self.place.failure(doing(), errno)),
            }
        }
    }

    /// Calls `visit` with name and path of every entry beneath `folder` (relative to the root; empty for the root) whose
    /// path can be an object's or a temporary name. Entries that vanish meanwhile are passed over.
    pub(super) fn walk(&self, folder: &str, visit: &mut dyn FnMut(&str, &Path) -> Result<()>) -> Result<()> {
        let directory = self.place.path_of(folder);
        let entries = match entries_of(&directory) {
            Err(Errno::NOENT) => return Ok(()),
            entries => {
                entries.map_err(|errno| self.place.failure(format!("listing {}", directory.display()), errno))?
            }
        };
        for Entry { name: part, path, file_type } in entries {
            let name = if folder.is_empty() { part.clone() } else { format!("{folder}/{part}") };
            if is_temporary_name(&part) {
                visit(&name, &path)?;
                continue;
            }
            // The length of a name is bounded, and so is the depth that this can reach.
            if ObjectName::new(name.as_str()).is_err() {
                continue;
            }
            match file_type {
                FileType::Directory => self.walk(&name, visit)?,
                _ => visit(&name, &path)?,
            }
        }
        Ok(())
    }

    /// What `list_once` finds, begun again after stale handles.
    fn listing<T>(&self, folder: &str, list_once: &dyn Fn() -> Result<Vec<T>>) -> Result<Vec<T>> {
        check_folder(folder)?;
        let mut attempts = 1;
        let listed = loop {
            match list_once() {
                Err(error) if error.os_code() == Some(Errno::STALE.raw_os_error()) && attempts < READ_ATTEMPTS_MAX => {
                    attempts += 1;
                }
                listed => break listed?,
            }
        };
        if listed.is_empty() {
            self.place.check_root()?;
        }
        Ok(listed)
    }

    /// The objects beneath `folder`, unsorted.
    fn list_once(&self, folder: &str) -> Result<Vec<Listed>> {
        Ok(self.list_seeing(folder, "")?.0)
    }

    /// The objects beneath `folder`, unsorted, and whether the temporary name was seen right in it.
    pub(super) fn list_seeing(&self, folder: &str, temporary_name: &str) -> Result<(Vec<Listed>, bool)> {
        let mut listed = Vec::new();
        let mut is_seen = false;
        self.walk(folder, &mut |name, path| {
            let Ok(object) = ObjectName::new(name) else {
                is_seen |= name.rsplit('/').next() == Some(temporary_name);
                return Ok(());
            };
            match uninterrupted(|| fs::lstat(path)) {
                Ok(status) if FileType::from_raw_mode(status.st_mode).is_file() => {
                    listed.push(Listed { name: object, bytes: u64::try_from(status.st_size).unwrap_or(0) });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.place.failure(format!("listing {}", path.display()), errno)),
            }
            Ok(())
        })?;
        Ok((listed, is_seen))
    }

    fn sync_tree(&self, folder: &str) -> Result<()> {
        let directory = self.place.path_of(folder);
        self.place.sync_directory(&directory)?;
        let entries = entries_of(&directory)
            .map_err(|errno| self.place.failure(format!("listing {}", directory.display()), errno))?;
        for entry in entries.iter().filter(|entry| entry.file_type.is_dir()) {
            let name = format!("{folder}/{}", entry.name);
            if ObjectName::new(name.as_str()).is_ok() {
                self.sync_tree(&name)?;
            }
        }
        Ok(())
    }
}

impl Storage for LocalStorage {
    fn describe(&self) -> String {
        self.place.root().display().to_string()
    }

    fn remarks(&self) -> Vec<String> {
        let direct =
            "the file system of the repository refuses direct I/O: packs go through the page cache, which is slower";
        let folders =
            "the file system of the repository cannot sync directories: names are as durable as it makes them itself";
        let found = [(self.direct_io_refused(), direct), (self.folder_sync_refused(), folders)];
        found.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text.to_owned()).collect()
    }

    fn create(&self, folder: &str) -> Result<Box<dyn ObjectWriter>> {
        check_folder(folder)?;
        Ok(Box::new(DurableFile::create(&self.place, folder, None)?))
    }

    fn create_for(&self, folder: &str, owner: SnapshotId) -> Result<Box<dyn ObjectWriter>> {
        check_folder(folder)?;
        Ok(Box::new(DurableFile::create(&self.place, folder, Some(owner))?))
    }

    fn replace(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        let folder = name.as_str().split('/').next().unwrap_or_default();
        check_folder(folder)?;
        let mut file = DurableFile::create(&self.place, folder, None)?;
        file.write(bytes)?;
        file.publish_over(name)?;
        // The old object is still open here, perhaps under another name, too.
        self.readers.forget(name);
        Ok(())
    }

    fn read(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let (bytes, whole) = self.with_object(name, |file, bytes| {
            let mut whole = Vec::new();
            if bytes <= bytes_max {
                read_exactly(file, ByteRange::new(0, bytes).map_err(|_| Errno::FBIG)?, &mut whole)?;
            }
            Ok((bytes, whole))
        })?;
        if bytes > bytes_max {
            return Err(Error::damaged(format!(
                "{} holds {bytes} bytes, at most {bytes_max} are possible",
                self.place.path_of(name.as_str()).display()
            )));
        }
        ends_at(bytes, whole.len() as u64, &self.place.path_of(name.as_str()))?;
        Ok(whole)
    }

    fn read_range(&self, name: &ObjectName, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        let before = into.len();
        let result = self.with_object(name, |file, bytes| {
            into.truncate(before);
            // Checked against the real length before anything is allocated.
            if range.end() > bytes {
                Ok(bytes)
            } else {
                read_exactly(file, range, into).map(|read| range.offset() + read)
            }
        });
        let path = self.place.path_of(name.as_str());
        let checked = result.and_then(|end| ends_at(range.end(), end, &path));
        if checked.is_err() {
            into.truncate(before);
        }
        checked
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let mut listed = self.listing(folder, &|| self.list_once(folder))?;
        listed.sort();
        Ok(listed)
    }

    fn list_names(&self, folder: &str) -> Result<Vec<ObjectName>> {
        self.listing(folder, &|| {
            let mut names = Vec::new();
            self.walk(folder, &mut |name, _| {
                names.extend(ObjectName::new(name));
                Ok(())
            })?;
            Ok(names)
        })
    }

    fn list_fresh(&self, folder: &str) -> Result<Vec<Listed>> {
        check_folder(folder)?;
        fresh::list(self, folder)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let path = self.place.path_of(name.as_str());
        let mut attempts = 1;
        loop {
            match fs::lstat(&path) {
                Ok(status) if FileType::from_raw_mode(status.st_mode).is_file() => {
                    return Ok(Some(u64::try_from(status.st_size).unwrap_or(0)));
                }
                Ok(_) => return Err(Error::damaged(format!("{} is not a regular file", path.display()))),
                Err(Errno::NOENT | Errno::NOTDIR) => return self.place.check_root().map(|()| None),
                Err(Errno::STALE | Errno::IO | Errno::INTR) if attempts < READ_ATTEMPTS_MAX => attempts += 1,
                Err(errno) => return Err(self.place.failure(format!("looking at {}", path.display()), errno)),
            }
        }
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        self.readers.forget(name);
        let path = self.place.path_of(name.as_str());
        let existed = match uninterrupted(|| fs::unlink(&path)) {
            Ok(()) => true,
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(errno) => return Err(self.place.write_failure(format!("deleting {}", path.display()), errno)),
        };
        if !existed {
            self.place.check_root()?;
        }
        // Also when it was gone: another may have removed it a moment ago, and the caller relies on its absence now.
        match path.parent() {
            Some(parent) if parent.is_dir() && !is_planted("deletion-unsynced") => self.place.sync_directory(parent)?,
            _ => {}
        }
        Ok(existed)
    }

    fn sync_folder(&self, folder: &str) -> Result<()> {
        check_folder(folder)?;
        if !self.place.path_of(folder).is_dir() {
            return self.place.check_root();
        }
        self.place.sync_directory(self.place.root())?;
        self.sync_tree(folder)
    }

    fn delete_abandoned(&self, owner: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64> {
        leftovers::delete(self, owner)
    }
}

/// The bytes that an unprivileged process can still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let status = fs::statvfs(path)
        .map_err(|errno| Error::io(format!("asking for the free space of {}", path.display()), errno.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// An error if an object that should reach to `wanted` ends at `found`.
fn ends_at(wanted: u64, found: u64, path: &Path) -> Result<()> {
    if found < wanted && !is_planted("short-read-accepted") {
        return Err(Error::damaged(format!("{} ends at byte {found}, not {wanted} or later", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::create_new;

    #[test]
    fn a_refusal_of_direct_io_is_told_to_whoever_asks_for_detail() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let storage = LocalStorage::open(root.path()).expect("an existing directory");
        assert_eq!(storage.remarks(), Vec::<String>::new());
        storage.place.note_direct_io_refused();
        assert!(storage.remarks().concat().contains("refuses direct I/O"));
    }

    #[test]
    fn stale_and_unreadable_objects_are_opened_again_a_bounded_number_of_times() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let storage = LocalStorage::open(root.path()).expect("an existing directory");
        let name = ObjectName::new("keys/a").expect("a sound name");
        create_new(&storage, &name, b"x").expect("published");
        for errno in [Errno::STALE, Errno::IO] {
            for failures in 0..5 {
                let mut left = failures;
                let mut calls = 0;
                let result = storage.with_object(&name, |_, _| {
                    calls += 1;
                    if left > 0 {
                        left -= 1;
                        return Err(errno);
                    }
                    Ok(())
                });
                assert_eq!(result.is_ok(), failures < READ_ATTEMPTS_MAX);
                assert_eq!(calls, (failures + 1).min(READ_ATTEMPTS_MAX));
                if let Err(error) = result {
                    assert_eq!(error.kind(), Kind::Unreachable);
                    assert!(error.to_string().contains("keys/a"), "{error}");
                }
            }
        }
        let mut calls = 0;
        let result: Result<()> = storage.with_object(&name, |_, _| {
            calls += 1;
            Err(Errno::ACCESS)
        });
        assert_eq!(
            (result.expect_err("denied").kind(), calls),
            (Kind::Denied, 1),
            "what will not pass is not repeated"
        );
    }
}
