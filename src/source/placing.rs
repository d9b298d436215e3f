//! How an entry gets its final name, and what a target and its open files share.
//!
//! Every entry but a directory is made under a name of its own and renamed, so that it appears whole, with its
//! metadata, and never through a link that stands under the final name.

use super::apply::{Handle, MetadataIssue};
use super::confined::{Confined, LOCATE, Place, open_name};
use super::part_file::random_part_name;
use super::remove::remove_entry;
use super::stat::FileStatus;
use crate::error::{Error, Kind, Result};
use crate::metadata::{FileKind, Metadata};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// What happens to something that stands where an entry is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays, and the new entry is dropped.
    Never,
    /// It is replaced, unless it is a directory.
    Replace,
}

/// The outcome of placing an entry.
#[derive(Debug)]
pub struct Placed {
    /// False if something stood there and was kept.
    pub placed: bool,
    /// Metadata that could not be set.
    pub issues: Vec<MetadataIssue>,
}

/// What a target and its open files have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) confined: Confined,
    /// Set once the file system refuses direct I/O.
    pub(super) direct_refused: AtomicBool,
    pub(super) path: PathBuf,
    pub(super) device: u64,
    /// A file on each other file system mounted below the target, to make that one durable too.
    pub(super) other_devices: Mutex<HashMap<u64, File>>,
}

impl Shared {
    pub(super) fn place(&self, path: &[u8]) -> Result<Place> {
        self.confined.place(path)?.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => {
                let text = format!("a parent of {} is a symbolic link or a file, not a directory", self.show(path));
                Error::new(Kind::Failed, text).with_hint("Remove it, or restore to another directory.")
            }
            _ => self.error("opening the parent of", path, error),
        })
    }

    /// The path as people know it.
    pub(super) fn show(&self, path: &[u8]) -> String {
        match path {
            b"" => self.path.display().to_string(),
            _ => self.path.join(OsStr::from_bytes(path)).display().to_string(),
        }
    }

    pub(super) fn error(&self, doing: &str, path: &[u8], error: Errno) -> Error {
        Error::io(format!("{doing} {}", self.show(path)), error.into())
    }

    /// Remembers a file on a file system other than that of the target.
    pub(super) fn note_device(&self, device: u64, file: &File) {
        if device == self.device {
            return;
        }
        let mut known = self.other_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::hash_map::Entry::Vacant(entry) = known.entry(device) {
            // Without a descriptor to spare the file is not remembered, and the next one is tried.
            if let Ok(file) = file.try_clone() {
                entry.insert(file);
            }
        }
    }

    /// Makes what `metadata` describes, neither a file nor a directory.
    pub(super) fn make_special(&self, path: &[u8], metadata: &Metadata, overwrite: Overwrite) -> Result<Placed> {
        let place = self.place(path)?;
        let part = random_part_name()?;
        let create = |file_type, rdev| make_node(&place.parent, &part, file_type, rdev);
        let made = match &metadata.kind {
            FileKind::Symlink { target } => rustix::fs::symlinkat(&target[..], &place.parent, &part[..]),
            FileKind::Fifo => create(FileType::Fifo, 0),
            FileKind::CharDevice { rdev } => create(FileType::CharacterDevice, *rdev),
            FileKind::BlockDevice { rdev } => create(FileType::BlockDevice, *rdev),
            FileKind::Regular | FileKind::Directory => Err(Errno::INVAL),
        };
        made.map_err(|error| self.error("creating", path, error))?;
        let outcome = apply_by_name(&place.parent, &part, metadata)
            .map_err(|error| error.while_doing(self.show(path)))
            .and_then(|issues| {
                let placed = self.rename_into_place(&place, &part, overwrite, path)?;
                Ok(Placed { placed, issues })
            });
        if outcome.is_err() {
            // The failure itself is what there is to report.
            let _ = remove_entry(&place.parent, &part);
        }
        outcome
    }

    /// Makes a further name of an entry.
    pub(super) fn hard_link(&self, existing: &[u8], path: &[u8], overwrite: Overwrite) -> Result<bool> {
        let from = self.place(existing)?;
        let place = self.place(path)?;
        let part = random_part_name()?;
        rustix::fs::linkat(&from.parent, &from.name[..], &place.parent, &part[..], AtFlags::empty())
            .map_err(|error| self.error("creating the hard link", path, error))?;
        let outcome = self.rename_into_place(&place, &part, overwrite, path);
        // Also after success: a rename between two names of one file does nothing at all, by the letter of POSIX.
        let removed = remove_entry(&place.parent, &part);
        let placed = outcome?;
        removed.map_err(|error| self.error("removing a part of", path, error))?;
        Ok(placed)
    }

    /// Gives `part` its final name, or removes it if that is taken and must not be replaced.
    pub(super) fn rename_into_place(
        &self,
        place: &Place,
        part: &[u8],
        overwrite: Overwrite,
        path: &[u8],
    ) -> Result<bool> {
        let (parent, name) = (&place.parent, &place.name[..]);
        let renamed = match overwrite {
            Overwrite::Replace => rustix::fs::renameat(parent, part, parent, name).map(|()| true),
            Overwrite::Never => rename_if_absent(parent, part, name),
        };
        match renamed {
            Ok(true) => Ok(true),
            Ok(false) => {
                remove_entry(parent, part).map_err(|error| self.error("removing the part of", path, error))?;
                Ok(false)
            }
            Err(error) => Err(self.error("giving its name to", path, error)),
        }
    }
}

/// What stands under a name, itself if it is a symbolic link.
pub(super) fn stat_name(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<FileStatus> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileStatus::from_rustix(&stat))
}

/// False if `name` is taken. Not every file system can rename that way; a new link fails as safely.
fn rename_if_absent(parent: &OwnedFd, part: &[u8], name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::renameat_with(parent, part, parent, name, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(true),
        Err(Errno::EXIST) => return Ok(false),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::linkat(parent, part, parent, name, AtFlags::empty()) {
        Ok(()) => {
            remove_entry(parent, part)?;
            Ok(true)
        }
        Err(Errno::EXIST) => Ok(false),
        // Without hard links either, looking before is the best there is.
        Err(_) => match stat_name(parent, name) {
            Err(Errno::NOENT) => rustix::fs::renameat(parent, part, parent, name).map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        },
    }
}

pub(super) fn apply_by_name(parent: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<Vec<MetadataIssue>> {
    let fail = |error: Errno| Error::io("examining what was made", error.into());
    let status = stat_name(parent, name).map_err(fail)?;
    let locator = match status.is_symlink() {
        true => None,
        false => {
            let locator = open_name(parent, name, LOCATE | OFlags::NONBLOCK).map_err(fail)?;
            // Somebody else's entry under this name is none of ours to change.
            let located = FileStatus::from_rustix(&rustix::fs::fstat(&locator).map_err(fail)?);
            if !located.is_same_file(&status) {
                return Err(Error::new(Kind::Failed, "what was made was replaced at once"));
            }
            Some(locator)
        }
    };
    Handle::Name { parent: parent.as_fd(), name, locator: locator.as_ref().map(AsFd::as_fd) }.apply(metadata, &status)
}

#[cfg(not(target_vendor = "apple"))]
fn make_node(parent: &OwnedFd, name: &[u8], file_type: FileType, rdev: u64) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, rdev)
}

/// There is no safe call for it on this platform.
#[cfg(target_vendor = "apple")]
fn make_node(_parent: &OwnedFd, _name: &[u8], _file_type: FileType, _rdev: u64) -> rustix::io::Result<()> {
    Err(Errno::NOTSUP)
}
