//! From what the operating system says about a file to [`Metadata`].
//!
//! Two system interfaces answer with two types (by path through the standard library, relative to a directory through
//! rustix); both become a [`FileStatus`] first, so that the rules stand here once. It makes no system call.

use crate::metadata::{FileKind, FileTime, Metadata};
use rustix::fs::{FileType, RawMode, Stat};
use std::os::unix::fs::MetadataExt;

/// The permission bits with setuid, setgid and sticky.
pub const MODE_MASK: u32 = 0o7777;

/// What one file is, before a symbolic link's target is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// The type of the file.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The device that holds it.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// How many names it has.
    pub links: u64,
    /// The number of the device that it stands for.
    pub rdev: u64,
    /// Bytes of content, for directories and devices whatever the file system says.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// When the content last changed.
    pub mtime: FileTime,
    /// When anything about it last changed.
    pub ctime: FileTime,
}

impl FileStatus {
    /// From the standard library's answer.
    pub fn from_std(metadata: &std::fs::Metadata) -> Self {
        // The mode fits its system type, from which the standard library widened it.
        let raw_mode = RawMode::try_from(metadata.mode()).unwrap_or_default();
        FileStatus {
            file_type: FileType::from_raw_mode(raw_mode),
            mode: metadata.mode() & MODE_MASK,
            uid: metadata.uid(),
            gid: metadata.gid(),
            device: metadata.dev(),
            inode: metadata.ino(),
            links: metadata.nlink(),
            rdev: metadata.rdev(),
            size: metadata.size(),
            blocks: metadata.blocks(),
            mtime: file_time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: file_time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// From the answer of `fstatat` or `fstat`.
    pub fn from_rustix(stat: &Stat) -> Self {
        FileStatus {
            file_type: FileType::from_raw_mode(stat.st_mode),
            mode: u32::try_from(wide(stat.st_mode)).unwrap_or_default() & MODE_MASK,
            uid: stat.st_uid,
            gid: stat.st_gid,
            device: wide(stat.st_dev),
            inode: wide(stat.st_ino),
            links: wide(stat.st_nlink),
            rdev: wide(stat.st_rdev),
            size: wide(stat.st_size),
            blocks: wide(stat.st_blocks),
            mtime: file_time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: file_time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// True for a regular file.
    pub fn is_regular(&self) -> bool {
        self.file_type == FileType::RegularFile
    }

    /// True for a directory, not for a symbolic link to one.
    pub fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// True for a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type == FileType::Symlink
    }

    /// True if both describe the same file, whatever its state.
    pub fn is_same_file(&self, other: &FileStatus) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// The metadata, without extended attributes; `None` for what is never stored: sockets and unknown types.
    /// `symlink_target` is called for a symbolic link only.
    pub fn into_metadata<E>(
        self,
        symlink_target: impl FnOnce() -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<Option<Metadata>, E> {
        let kind = match self.file_type {
            FileType::RegularFile => FileKind::Regular,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink { target: symlink_target()? },
            FileType::Fifo => FileKind::Fifo,
            FileType::CharacterDevice => FileKind::CharDevice { rdev: self.rdev },
            FileType::BlockDevice => FileKind::BlockDevice { rdev: self.rdev },
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        Ok(Some(Metadata {
            size: if kind == FileKind::Regular { self.size } else { 0 },
            link_group: (self.links > 1 && kind != FileKind::Directory).then_some((self.device, self.inode)),
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ctime: self.ctime,
            inode: self.inode,
            xattrs: Vec::new(),
        }))
    }
}

/// The fields of the system's structure have another width on each platform; none of those used here is negative.
fn wide<T: TryInto<u64>>(value: T) -> u64 {
    value.try_into().unwrap_or_default()
}

fn file_time<T: TryInto<u32>>(seconds: i64, nanoseconds: T) -> FileTime {
    FileTime { seconds, nanoseconds: nanoseconds.try_into().unwrap_or_default().min(999_999_999) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    #[test]
    fn both_interfaces_say_the_same_even_before_1970() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("old");
        let file = std::fs::File::create(&path).expect("create");
        file.set_modified(SystemTime::UNIX_EPOCH - Duration::new(12_345, 678)).expect("set time");
        let by_std = FileStatus::from_std(&file.metadata().expect("metadata"));
        let by_rustix = FileStatus::from_rustix(&rustix::fs::fstat(&file).expect("fstat"));
        assert_eq!(by_std, by_rustix);
        assert_eq!(by_std.mtime, FileTime { seconds: -12_346, nanoseconds: 999_999_322 });
    }

    #[test]
    fn a_link_group_names_files_with_several_names_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a");
        std::fs::write(&path, b"x").expect("write");
        let metadata_of = |path: &std::path::Path| {
            let status = FileStatus::from_std(&std::fs::symlink_metadata(path).expect("lstat"));
            status.into_metadata(|| Ok::<_, ()>(b"t".to_vec())).expect("no error").expect("storable")
        };
        assert_eq!(metadata_of(&path).link_group, None);
        std::fs::hard_link(&path, dir.path().join("b")).expect("link");
        assert!(metadata_of(&path).link_group.is_some());
        assert_eq!(metadata_of(dir.path()).link_group, None);
        symlink("t", dir.path().join("s")).expect("symlink");
        let link = metadata_of(&dir.path().join("s"));
        assert_eq!((link.kind, link.size), (FileKind::Symlink { target: b"t".to_vec() }, 0));
    }
}
