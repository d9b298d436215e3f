//! The directory that a local repository lives in, as its file system sees it: modes, folders, syncing, and the wording
//! of errors.
//!
//! Guarantees: a folder appears under its name with its final mode, and is durable before anything is put into it by this
//! process, whoever made it. Modes follow from the root directory, never from the umask:
//!
//! | root | folders | objects |
//! |---|---|---|
//! | 0700 | 0700 | 0400 |
//! | 2770 | 2770 | 0440 |
//! | 0755 | 0755 | 0444 |
//!
//! Folders take the root's read, write and search bits and its set-group-id bit; objects take its read bits only, because
//! they never change. Nothing is ever given to another owner, and nothing needs to be the superuser.
//!
//! Deliberately not here: object names and contents.

use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::sabotage::is_planted;
use crate::storage::staging::StagingPool;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The root directory of a repository, and what was learned about its file system.
pub(super) struct Place {
    root: PathBuf,
    /// Keeps the file system from being unmounted, and tells the directory from another one that takes its path.
    root_handle: OwnedFd,
    folder_mode: Mode,
    object_mode: Mode,
    /// Folders, relative to the root, that are known to survive a power cut.
    durable_folders: Mutex<HashSet<String>>,
    /// Buffers for large objects.
    pub(super) staging: StagingPool,
    direct_io_refused: AtomicBool,
    exclusive_rename_refused: AtomicBool,
    folder_sync_refused: AtomicBool,
}

impl Place {
    /// The existing directory `root`.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)
            .map_err(|error| Error::io(format!("finding the repository {}", root.display()), error))?;
        let nothing_there = |what: &str| {
            Error::new(Kind::NoRepository, format!("{} {what}", root.display()))
                .with_hint("check the path, or create a repository there with `ckpt init`")
        };
        let opening_failed =
            |errno: Errno| Error::io(format!("opening the repository {}", root.display()), errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_handle = match uninterrupted(|| fs::open(&root, flags, Mode::empty())) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Err(nothing_there("does not exist")),
            Err(Errno::NOTDIR) => return Err(nothing_there("is not a directory")),
            Err(errno) => return Err(opening_failed(errno)),
        };
        let status = uninterrupted(|| fs::fstat(&root_handle)).map_err(opening_failed)?;
        let root_mode = Mode::from_raw_mode(status.st_mode);
        let read = Mode::RUSR | Mode::RGRP | Mode::ROTH;
        Ok(Place {
            root,
            root_handle,
            folder_mode: (root_mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO | Mode::SGID)) | Mode::RWXU,
            object_mode: (root_mode & read) | Mode::RUSR,
            durable_folders: Mutex::default(),
            staging: StagingPool::default(),
            direct_io_refused: AtomicBool::new(false),
            exclusive_rename_refused: AtomicBool::new(false),
            folder_sync_refused: AtomicBool::new(false),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// An error if the root's path no longer leads to the directory that was opened. Called wherever something is absent:
    /// beneath a repository that was moved, or unmounted down to its empty mount point, everything seems to be.
    pub(super) fn check_root(&self) -> Result<()> {
        let opened = uninterrupted(|| fs::fstat(&self.root_handle));
        let found = uninterrupted(|| fs::stat(&self.root));
        match (opened, found) {
            (Ok(opened), Ok(found)) if (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino) => Ok(()),
            (Err(errno), _) | (_, Err(errno)) if errno != Errno::NOENT => {
                Err(self.failure(format!("looking at the repository {}", self.root.display()), errno))
            }
            _ => Err(Error::new(
                Kind::Unreachable,
                format!("the repository at {} was moved or unmounted during the run", self.root.display()),
            )
            .with_hint("bring it back to its place and run again")),
        }
    }

    /// True once the file system would not take direct I/O.
    pub(super) fn direct_io_refused(&self) -> bool {
        self.direct_io_refused.load(Ordering::Relaxed)
    }

    pub(super) fn note_direct_io_refused(&self) {
        self.direct_io_refused.store(true, Ordering::Relaxed);
    }

    /// True once the file system would not sync a directory.
    pub(super) fn folder_sync_refused(&self) -> bool {
        self.folder_sync_refused.load(Ordering::Relaxed)
    }

    /// Where the object or folder of this name lies.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes sure that `folder` (relative to the root, `/` between its parts) exists and survives a power cut.
    pub(super) fn make_folder(&self, folder: &str) -> Result<()> {
        let is_durable = |name: &str| self.durable_folders().contains(name);
        if is_durable(folder) {
            return Ok(());
        }
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        let mut parent = self.root.clone();
        for name in ends.map(|end| &folder[..end]) {
            let path = self.path_of(name);
            if !is_durable(name) {
                match uninterrupted(|| fs::stat(&path)) {
                    Ok(status) if FileType::from_raw_mode(status.st_mode).is_dir() => {}
                    Ok(_) | Err(Errno::NOENT) => self.make_directory(&parent, &path)?,
                    // Whether it is there is unknown, and making it would tell of something else.
                    Err(errno) => return Err(self.write_failure(format!("looking at {}", path.display()), errno)),
                }
                // Also for a folder that was there: whoever made it may not have come to this line yet.
                if !is_planted("new-folder-unsynced") {
                    self.sync_directory(&parent)?;
                }
                self.durable_folders().insert(name.to_owned());
            }
            parent = path;
        }
        Ok(())
    }

    /// Forgets which folders are durable, after one of them turned out to be gone.
    pub(super) fn forget_folders(&self) {
        self.durable_folders().clear();
    }

    fn durable_folders(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.durable_folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one directory under a temporary name and renames it, so that no other user ever finds it with a mode that
    /// the umask cut down; a crash between the two steps leaves only something that is abandoned.
    fn make_directory(&self, parent: &Path, path: &Path) -> Result<()> {
        self.check_root()?;
        let temporary = parent.join(temporary_name(None)?);
        let made = uninterrupted(|| fs::mkdir(&temporary, Mode::RWXU))
            .and_then(|()| self.set_mode(&open_directory(&temporary)?, self.folder_mode))
            .and_then(|()| self.rename_exclusively(&temporary, path))
            // A plain rename replaces at most an empty directory, so no object can vanish by it.
            .or_else(|errno| if is_unsupported(errno) { fs::rename(&temporary, path) } else { Err(errno) });
        let Err(errno) = made else { return Ok(()) };
        let _ = fs::unlinkat(CWD, &temporary, AtFlags::REMOVEDIR);
        // Another writer was faster, or the answer to a rename that worked got lost on a network.
        if path.is_dir() { Ok(()) } else { Err(self.write_failure(format!("making {}", path.display()), errno)) }
    }

    /// Gives a file or directory a name that must be free.
    pub(super) fn rename_exclusively(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        if self.exclusive_rename_refused.load(Ordering::Relaxed) {
            return Err(Errno::INVAL);
        }
        let flags = if is_planted("name-overwritten") { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = uninterrupted(|| fs::renameat_with(CWD, from, CWD, to, flags));
        if renamed.is_err_and(is_unsupported) {
            self.exclusive_rename_refused.store(true, Ordering::Relaxed);
        }
        renamed
    }

    /// Gives a finished object its mode.
    pub(super) fn set_object_mode(&self, file: &File) -> Result<(), Errno> {
        self.set_mode(file, self.object_mode)
    }

    fn set_mode(&self, file: &File, mode: Mode) -> Result<(), Errno> {
        match uninterrupted(|| fs::fchmod(file, mode)) {
            // The owner may always do this, so such a mount has modes of its own (CIFS, some FUSE).
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
            changed => changed,
        }
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_directory(&self, directory: &Path) -> Result<()> {
        let synced = open_directory(directory).and_then(|opened| uninterrupted(|| fs::fsync(&opened)));
        match synced {
            Ok(()) => Ok(()),
            // Some network file systems have no such operation; there every change of a name is a request of its own.
            Err(errno) if is_unsupported(errno) => {
                self.folder_sync_refused.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(errno) => Err(self.write_failure(format!("syncing {}", directory.display()), errno)),
        }
    }

    /// An error of a call that changes the repository; `doing` names the path.
    pub(super) fn write_failure(&self, doing: impl fmt::Display, error: impl Into<io::Error>) -> Error {
        let error = self.failure(doing, error);
        if error.kind() != Kind::Missing {
            return error;
        }
        // Not an absent object: the folder that it was to go into, or the temporary file, has been taken away.
        error.with_kind(Kind::Unreachable).with_hint(format!(
            "check that {} is mounted and that nothing else removes files in it",
            self.root.display()
        ))
    }

    /// An error of any call on the repository; `doing` names the path.
    pub(super) fn failure(&self, doing: impl fmt::Display, error: impl Into<io::Error>) -> Error {
        let error = error.into();
        let root = self.root.display();
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let (what, hint) = match errno {
            Some(Errno::NOSPC) if self.has_no_inodes() => (
                format!("the file system of the repository at {root} has no inodes left"),
                "remove files that are not the repository's from that file system, then run again".to_owned(),
            ),
            Some(Errno::NOSPC) => (
                format!("the repository at {root} is full"),
                format!(
                    "free space on the file system of {root}, or drop snapshots with `ckpt forget` and `ckpt prune`"
                ),
            ),
            Some(Errno::DQUOT) => (
                format!("the disk quota for the repository at {root} is used up"),
                "raise the quota, or free space there with `ckpt forget` and `ckpt prune`".to_owned(),
            ),
            Some(Errno::ROFS) => (
                format!("the repository at {root} is on a read-only file system"),
                "listing, restoring and verifying work; for anything else mount it writable".to_owned(),
            ),
            Some(Errno::ACCESS | Errno::PERM) => (
                format!("the repository at {root} gives this user no permission"),
                "check owner, group and modes of the path; folders follow the mode of the repository's root".to_owned(),
            ),
            _ => return Error::io(doing.to_string(), error),
        };
        Error::io(format!("{doing}: {what}"), error).with_hint(hint)
    }

    fn has_no_inodes(&self) -> bool {
        // Some file systems count no inodes at all and report zero of zero.
        fs::statvfs(&self.root).is_ok_and(|status| status.f_files > 0 && status.f_favail == 0)
    }
}

/// Opens a directory in order to sync it or to change its mode.
fn open_directory(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    uninterrupted(|| fs::open(path, flags, Mode::empty())).map(File::from)
}

/// Makes one directory's names durable when no [`Place`] stands there yet; one that cannot be opened is passed over.
pub(super) fn sync_parent_of_root(directory: &Path) -> Result<()> {
    // Search permission is enough to use a directory, reading it is needed to sync it.
    let Ok(opened) = open_directory(directory) else { return Ok(()) };
    match uninterrupted(|| fs::fsync(&opened)) {
        Err(errno) if !is_unsupported(errno) => {
            Err(Error::io(format!("syncing {}", directory.display()), errno.into()))
        }
        _ => Ok(()),
    }
}

/// A reserved name that no other writer on any host uses; it tells the transaction that it belongs to, if there is one.
pub(super) fn temporary_name(owner: Option<SnapshotId>) -> Result<String> {
    let random = getrandom::u64()
        .map_err(|error| Error::new(Kind::Failed, "asking the operating system for random bytes").with_source(error))?;
    Ok(match owner {
        Some(owner) => format!("tmp-{owner}-{random:016x}"),
        None => format!("tmp-{}-{random:016x}", std::process::id()),
    })
}

/// True if `name` is one that [`temporary_name`] makes; other people's `tmp-` files are none of our business.
pub(super) fn is_temporary_name(name: &str) -> bool {
    let is = |text: &str, digit: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(digit);
    name.strip_prefix("tmp-").and_then(|rest| rest.split_once('-')).is_some_and(|(of, random)| {
        let is_owned = SnapshotId::from_hex(of).is_ok();
        (is_owned || is(of, u8::is_ascii_digit)) && random.len() == 16 && is(random, u8::is_ascii_hexdigit)
    })
}

/// The transaction that a temporary name tells, if any.
pub(super) fn owner_of(temporary_name: &str) -> Option<SnapshotId> {
    SnapshotId::from_hex(temporary_name.strip_prefix("tmp-")?.split('-').next()?).ok()
}

/// True if the file system does not know the operation, as opposed to having failed at it.
pub(super) fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// Repeats a call that a signal cut short before it did anything.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn errors_of_a_repository_name_it_and_say_what_to_do() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let place = Place::open(root.path()).expect("an existing directory");
        let shown = root.path().display().to_string();
        for (errno, kind, words) in [
            (Errno::NOSPC, Kind::NoSpace, "is full"),
            (Errno::DQUOT, Kind::NoSpace, "quota"),
            (Errno::ROFS, Kind::Denied, "read-only"),
            (Errno::ACCESS, Kind::Denied, "permission"),
            (Errno::NOENT, Kind::Unreachable, "No such file"),
            (Errno::IO, Kind::Unreachable, "writing x"),
        ] {
            let error = place.write_failure("writing x", errno);
            assert_eq!(error.kind(), kind, "{errno}");
            let text = format!("{error} {}", error.hint().unwrap_or_default());
            assert!(text.contains("writing x") && text.contains(words), "{text}");
            assert!(text.contains(&shown) || errno == Errno::IO, "{text}");
        }
    }

    #[test]
    fn a_folder_takes_its_mode_from_the_root() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (of_root, of_folder, of_object) in
            [(0o2770, 0o2770, 0o440), (0o755, 0o755, 0o444), (0o1700, 0o700, 0o400), (0o500, 0o700, 0o400)]
        {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(of_root)).expect("chmod");
            let place = Place::open(root.path()).expect("an existing directory");
            assert_eq!(place.folder_mode.as_raw_mode(), of_folder);
            assert_eq!(place.object_mode.as_raw_mode(), of_object);
        }
    }

    #[test]
    fn making_a_folder_that_another_writer_just_made_is_no_error() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let place = Place::open(root.path()).expect("an existing directory");
        let path = place.path_of("packs");
        place.make_directory(root.path(), &path).expect("made");
        std::fs::write(path.join("x"), "x").expect("a file in it");
        place.make_directory(root.path(), &path).expect("made by another");
        assert_eq!(std::fs::read(path.join("x")).expect("still there"), b"x");
        assert_eq!(std::fs::read_dir(root.path()).expect("listed").count(), 1, "no temporary directory is left");
    }

    #[test]
    fn only_names_made_here_count_as_temporary() {
        let owner = SnapshotId::from_bytes([0x1f; 16]);
        for owner in [None, Some(owner)] {
            let name = temporary_name(owner).expect("random bytes");
            assert!(is_temporary_name(&name) && owner_of(&name) == owner, "{name}");
        }
        for other in
            ["tmp-", "tmp-1", "tmp-1-", "tmp-1-00", "tmp--0123456789abcdef", "tmp-x-0123456789abcdef", "tmp-notes"]
        {
            assert!(!is_temporary_name(other), "{other}");
        }
    }
}
