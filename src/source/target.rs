//! The confined writer of restored files.
//!
//! Every operation takes a path relative to the target, as bytes, and stays below the target whatever the path says
//! and whatever is planted there (see `confined`). The target itself may be a symbolic link: the user named it. A new
//! entry appears under its final name at once and whole, by a rename; an existing one is replaced only on request, and
//! a directory only after [`Target::remove`]. What to replace or to delete is decided by the caller.
//!
//! Nothing is durable before [`Target::sync_all`] or [`TargetFile::sync`] returns.

use super::apply::{Handle, MetadataIssue, system_mode};
use super::confined::{Confined, LOCATE, Place, open_name};
use super::open::read_full_at;
use super::part_file::{TargetFile, random_part_name};
use super::remove::{read_names, remove_entry};
use super::stat::FileStatus;
use super::xattrs::{Subject, Xattrs};
use crate::error::{Error, Kind, Result};
use crate::metadata::{FileKind, Metadata};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

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

/// What stands at a path of the target.
#[derive(Debug, Clone)]
pub struct Existing {
    /// Its metadata without extended attributes; `None` for what is never stored, such as a socket.
    pub metadata: Option<Metadata>,
    /// The bytes that it occupies.
    pub allocated: u64,
}

/// A directory that files are restored into.
#[derive(Debug)]
pub struct Target {
    shared: Arc<Shared>,
}

/// What a target and its open files have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) confined: Confined,
    /// Set once the file system refuses direct I/O.
    pub(super) direct_refused: AtomicBool,
    path: PathBuf,
    device: u64,
    /// A file on each other file system mounted below the target, to make that one durable too.
    other_devices: Mutex<HashMap<u64, File>>,
}

impl Target {
    /// Opens the directory at `path`, which is created with its parents if it does not exist.
    pub fn open(path: &Path) -> Result<Target> {
        std::fs::create_dir_all(path)
            .map_err(|error| Error::io(format!("creating the target {}", path.display()), error))?;
        Target::open_with(path, Confined::new)
    }

    /// Opens the directory at `path` without creating it, for a plan that changes nothing; `None` if there is nothing.
    pub fn open_if_present(path: &Path) -> Result<Option<Target>> {
        match Target::open_with(path, Confined::new) {
            Ok(target) => Ok(Some(target)),
            Err(error) if error.kind() == Kind::Missing => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn open_with(path: &Path, confine: impl FnOnce(OwnedFd) -> Confined) -> Result<Target> {
        let fail = |error: std::io::Error| Error::io(format!("opening the target {}", path.display()), error);
        let root = File::open(path).map_err(fail)?;
        let status = FileStatus::from_std(&root.metadata().map_err(fail)?);
        if !status.is_directory() {
            return Err(Error::new(Kind::Usage, format!("the target {} is not a directory", path.display())));
        }
        let shared = Shared {
            confined: confine(root.into()),
            direct_refused: AtomicBool::new(false),
            path: path.to_path_buf(),
            device: status.device,
            other_devices: Mutex::new(HashMap::new()),
        };
        Ok(Target { shared: Arc::new(shared) })
    }

    /// What stands at `path`; `None` also if a parent is absent or not a directory.
    pub fn existing(&self, path: &[u8]) -> Result<Option<Existing>> {
        let Some(place) = self.place_if_present(path)? else { return Ok(None) };
        let status = match stat_name(&place.parent, &place.name) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.shared.error("examining", path, error)),
        };
        let symlink_target = || rustix::fs::readlinkat(&place.parent, &place.name[..], Vec::new());
        match status.into_metadata(|| symlink_target().map(std::ffi::CString::into_bytes)) {
            Ok(metadata) => Ok(Some(Existing { metadata, allocated: status.blocks.saturating_mul(512) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.shared.error("examining", path, error)),
        }
    }

    /// The extended attributes of what stands at `path`, sorted by name; those of a symbolic link are its own.
    pub fn read_xattrs(&self, path: &[u8]) -> Result<Xattrs> {
        let place = self.shared.place(path)?;
        Subject::Path(&super::apply::path_in(place.parent.as_fd(), &place.name))
            .read_all()
            .map_err(|error| error.while_doing(self.shared.show(path)))
    }

    /// Opens the regular file at `path` to read what may be reused of it; `None` if there is none, or no permission.
    pub fn open_existing(&self, path: &[u8]) -> Result<Option<ExistingFile>> {
        let Some(place) = self.place_if_present(path)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match open_name(&place.parent, &place.name, flags) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(error) => return Err(self.shared.error("opening", path, error)),
        };
        let fail = |error| Error::io(format!("examining {}", self.shared.show(path)), error);
        let status = FileStatus::from_std(&file.metadata().map_err(fail)?);
        let shown = self.shared.show(path);
        Ok(status.is_regular().then_some(ExistingFile { file, size: status.size, shown }))
    }

    /// Makes a directory with rights for its owner only; true if it is new, false if a directory stands there already.
    /// One of ours that we may not write in is made writable until [`Target::set_directory_metadata`].
    pub fn make_directory(&self, path: &[u8]) -> Result<bool> {
        let place = self.shared.place(path)?;
        match rustix::fs::mkdirat(&place.parent, &place.name[..], Mode::RWXU) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(self.shared.error("creating the directory", path, error)),
        }
        let status = stat_name(&place.parent, &place.name).map_err(|e| self.shared.error("examining", path, e))?;
        if !status.is_directory() {
            let text = format!("{} exists and is not a directory", self.shared.show(path));
            return Err(Error::new(Kind::Failed, text));
        }
        let user = rustix::process::geteuid();
        if !user.is_root() && status.uid == user.as_raw() && status.mode & 0o700 != 0o700 {
            // Best effort: what is written below tells whether it helped. A link put there meanwhile is not followed.
            if let Ok(directory) = open_name(&place.parent, &place.name, OFlags::RDONLY | OFlags::DIRECTORY) {
                let _ = rustix::fs::fchmod(directory, system_mode(status.mode | 0o700));
            }
        }
        Ok(false)
    }

    /// Makes the directories above `path` that do not exist, for an entry that is restored without its parents. They
    /// get the usual rights of a new directory.
    pub fn make_parents(&self, path: &[u8]) -> Result<()> {
        super::confined::check_path(path)?;
        for end in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index) {
            let parent = &path[..end];
            let place = self.shared.place(parent)?;
            match rustix::fs::mkdirat(&place.parent, &place.name[..], Mode::RWXU | Mode::RWXG | Mode::RWXO) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.shared.error("creating the directory", parent, error)),
            }
        }
        Ok(())
    }

    /// Begins the file at `path`, of `size` bytes, all zero unless resumed. `resume_key` stands for the content: an
    /// interrupted restore of the same content to the same path finds its part again.
    pub fn begin_file(&self, path: &[u8], size: u64, resume_key: &str) -> Result<TargetFile> {
        TargetFile::begin(&self.shared, path, size, resume_key)
    }

    /// Makes the symbolic link, pipe or device that `metadata` describes.
    pub fn make_special(&self, path: &[u8], metadata: &Metadata, overwrite: Overwrite) -> Result<Placed> {
        let place = self.shared.place(path)?;
        let part = random_part_name()?;
        let create = |file_type, rdev| make_node(&place.parent, &part, file_type, rdev);
        let made = match &metadata.kind {
            FileKind::Symlink { target } => rustix::fs::symlinkat(&target[..], &place.parent, &part[..]),
            FileKind::Fifo => create(FileType::Fifo, 0),
            FileKind::CharDevice { rdev } => create(FileType::CharacterDevice, *rdev),
            FileKind::BlockDevice { rdev } => create(FileType::BlockDevice, *rdev),
            FileKind::Regular | FileKind::Directory => Err(Errno::INVAL),
        };
        made.map_err(|error| self.shared.error("creating", path, error))?;
        let applied = apply_by_name(&place.parent, &part, metadata);
        let issues = match applied {
            Ok(issues) => issues,
            Err(error) => {
                // The first failure is the one to report.
                let _ = remove_entry(&place.parent, &part);
                return Err(error.while_doing(self.shared.show(path)));
            }
        };
        let placed = self.shared.rename_into_place(&place, &part, overwrite, path)?;
        Ok(Placed { placed, issues })
    }

    /// Makes `path` another name of the entry at `existing`, which was restored before; false if something stands
    /// there and was kept. Metadata belongs to the entry, not to the name.
    pub fn hard_link(&self, existing: &[u8], path: &[u8], overwrite: Overwrite) -> Result<bool> {
        let from = self.shared.place(existing)?;
        let place = self.shared.place(path)?;
        let part = random_part_name()?;
        rustix::fs::linkat(&from.parent, &from.name[..], &place.parent, &part[..], AtFlags::empty())
            .map_err(|error| self.shared.error("creating the hard link", path, error))?;
        let placed = self.shared.rename_into_place(&place, &part, overwrite, path)?;
        // A rename between two names of the same file does nothing at all, by the letter of POSIX.
        remove_entry(&place.parent, &part).map_err(|error| self.shared.error("removing a part of", path, error))?;
        Ok(placed)
    }

    /// Gives the directory at `path` its metadata, the target itself if the path is empty. To be called when nothing
    /// below it will change any more, deepest first.
    pub fn set_directory_metadata(&self, path: &[u8], metadata: &Metadata) -> Result<Vec<MetadataIssue>> {
        let fail = |error| self.shared.error("setting the metadata of", path, error);
        let directory = self.shared.confined.open_directory(path, OFlags::RDONLY)?.map_err(fail)?;
        let status = FileStatus::from_rustix(&rustix::fs::fstat(&directory).map_err(fail)?);
        Handle::Descriptor(directory.as_fd())
            .apply(metadata, &status)
            .map_err(|error| error.while_doing(self.shared.show(path)))
    }

    /// The names in the directory at `path`, the target itself if it is empty, sorted; none if there is no directory.
    pub fn list_children(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let fail = |error| self.shared.error("listing", path, error);
        let directory = match self.shared.confined.open_directory(path, OFlags::RDONLY)? {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut names: Vec<_> = read_names(&directory).map_err(fail)?.into_iter().map(|(name, _)| name).collect();
        names.sort();
        Ok(names)
    }

    /// Removes what stands at `path` with everything below it; nothing there is fine. A symbolic link is removed
    /// itself. What is mounted below is not touched, and an error.
    pub fn remove(&self, path: &[u8]) -> Result<()> {
        let Some(place) = self.place_if_present(path)? else { return Ok(()) };
        self.shared.confined.forget(path);
        remove_entry(&place.parent, &place.name).map_err(|error| self.shared.error("removing", path, error))
    }

    /// Makes everything restored so far durable, on every file system that regular files were restored to.
    pub fn sync_all(&self) -> Result<()> {
        let fail = |error| self.shared.error("making durable", b"", error);
        sync_file_system(self.shared.confined.root()).map_err(fail)?;
        for file in self.shared.other_devices.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sync_file_system(file.as_fd()).map_err(fail)?;
        }
        Ok(())
    }

    /// The bytes that may still be written to the file system of the target.
    pub fn free_bytes(&self) -> Result<u64> {
        let answer = rustix::fs::fstatvfs(self.shared.confined.root());
        let answer = answer.map_err(|error| self.shared.error("asking for the free space of", b"", error))?;
        Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
    }

    fn place_if_present(&self, path: &[u8]) -> Result<Option<Place>> {
        match self.shared.confined.place(path)? {
            Ok(place) => Ok(Some(place)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(self.shared.error("opening the parent of", path, error)),
        }
    }
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

/// A regular file that stood in the target before.
#[derive(Debug)]
pub struct ExistingFile {
    file: File,
    size: u64,
    shown: String,
}

impl ExistingFile {
    /// Its size when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let fail = |error| Error::io(format!("reading {}", self.shown), error);
        read_full_at(&self.file, offset, buffer).map_err(fail)
    }
}

fn stat_name(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<FileStatus> {
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

fn apply_by_name(parent: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<Vec<MetadataIssue>> {
    let fail = |error: Errno| Error::io("examining what was made", error.into());
    let status = stat_name(parent, name).map_err(fail)?;
    let locator = match status.is_symlink() {
        true => None,
        false => {
            let locator = open_name(parent, name, LOCATE | OFlags::NONBLOCK).map_err(fail)?;
            // Somebody else's entry under this name is none of ours to change.
            let located = FileStatus::from_rustix(&rustix::fs::fstat(&locator).map_err(fail)?);
            if !located.is_same_file(&status) {
                return Err(fail(Errno::STALE));
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

#[cfg(target_os = "linux")]
fn sync_file_system(descriptor: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::syncfs(descriptor)
}

/// Elsewhere only all file systems together can be made durable.
#[cfg(not(target_os = "linux"))]
fn sync_file_system(_descriptor: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
