//! One entry of a snapshot and its bytes.
//!
//! An entry is a CBOR map with numbered fields behind its length (u32, little-endian); fields that a version does not
//! know are passed over. `docs/FORMAT.md`, "Entries", lists them.

use super::bounded::List;
use super::stream::StreamRef;
use crate::error::{Error, Result};
use crate::metadata::{FileKind, FileTime, Metadata};
use crate::paths;
use minicbor::{Decode, Encode};
use std::cmp::Ordering;

/// The longest entry that is written or believed: names, link targets and extended attributes together.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

/// No file has more extended attributes: Linux lists at most 64 KiB of their names.
const XATTRS_MAX: usize = 32_768;

/// A file, directory or other thing at a path of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which of the snapshot's roots it lies beneath.
    pub root: u32,
    /// The path relative to the root, components joined by `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// Everything but the content.
    pub metadata: Metadata,
    /// The content; none unless it is a regular file of at least one byte.
    pub content: Option<StreamRef>,
    /// True if the file changed while it was read: the content may mix two states.
    pub changed_while_read: bool,
}

impl Entry {
    /// The order of entries in a snapshot: by root, then component by component, a directory before what is in it.
    pub fn compare(&self, other: &Entry) -> Ordering {
        self.root.cmp(&other.root).then_with(|| paths::compare_paths(&self.path, &other.path))
    }

    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        self.metadata.kind == FileKind::Regular
    }

    /// True for a directory.
    pub fn is_directory(&self) -> bool {
        self.metadata.kind == FileKind::Directory
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Stored<'a> {
    #[n(0)]
    root: u32,
    #[cbor(b(1), with = "minicbor::bytes")]
    path: &'a [u8],
    #[n(2)]
    kind: u8,
    #[n(3)]
    mode: u32,
    #[n(4)]
    uid: u32,
    #[n(5)]
    gid: u32,
    #[n(6)]
    size: u64,
    #[n(7)]
    mtime: (i64, u32),
    #[n(8)]
    ctime: (i64, u32),
    #[n(9)]
    inode: u64,
    #[n(10)]
    link_group: Option<(u64, u64)>,
    #[b(11)]
    xattrs: Option<List<Xattr<'a>, XATTRS_MAX>>,
    #[cbor(b(12), with = "minicbor::bytes")]
    link_target: Option<&'a [u8]>,
    #[n(13)]
    rdev: Option<u64>,
    #[n(14)]
    content: Option<StreamRef>,
    #[n(15)]
    changed_while_read: Option<bool>,
}

#[derive(Encode, Decode)]
struct Xattr<'a> {
    #[cbor(b(0), with = "minicbor::bytes")]
    name: &'a [u8],
    #[cbor(b(1), with = "minicbor::bytes")]
    value: &'a [u8],
}

/// Appends the entry behind its length.
pub fn append(entry: &Entry, into: &mut Vec<u8>) -> Result<()> {
    let metadata = &entry.metadata;
    let (kind, link_target, rdev) = match &metadata.kind {
        FileKind::Regular => (0, None, None),
        FileKind::Directory => (1, None, None),
        FileKind::Symlink { target } => (2, Some(target.as_slice()), None),
        FileKind::Fifo => (3, None, None),
        FileKind::CharDevice { rdev } => (4, None, Some(*rdev)),
        FileKind::BlockDevice { rdev } => (5, None, Some(*rdev)),
    };
    let stored = Stored {
        root: entry.root,
        path: &entry.path,
        kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        size: metadata.size,
        mtime: (metadata.mtime.seconds, metadata.mtime.nanoseconds),
        ctime: (metadata.ctime.seconds, metadata.ctime.nanoseconds),
        inode: metadata.inode,
        link_group: metadata.link_group,
        xattrs: (!metadata.xattrs.is_empty())
            .then(|| List(metadata.xattrs.iter().map(|(name, value)| Xattr { name, value }).collect())),
        link_target,
        rdev,
        content: entry.content,
        changed_while_read: entry.changed_while_read.then_some(true),
    };
    let body = super::document::encode(&stored)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= ENTRY_BYTES_MAX).ok_or_else(|| {
        let path = String::from_utf8_lossy(&entry.path);
        Error::damaged(format!("the metadata of {path} takes {} bytes, more than {ENTRY_BYTES_MAX}", body.len()))
    })?;
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&body);
    Ok(())
}

/// Reads the entry at the front of `rest` and moves past it.
pub fn take(rest: &mut &[u8]) -> Result<Entry> {
    let short = || Error::damaged("an entry of a snapshot is cut short");
    let (head, tail) = rest.split_at_checked(4).ok_or_else(short)?;
    let length = usize::try_from(head.try_into().map_or(u32::MAX, u32::from_le_bytes)).unwrap_or(usize::MAX);
    let (body, tail) = tail.split_at_checked(length).ok_or_else(short)?;
    if length > ENTRY_BYTES_MAX {
        return Err(Error::damaged(format!("an entry of a snapshot has {length} bytes, more than any can have")));
    }
    *rest = tail;
    from_stored(super::document::decode(body, "an entry of a snapshot")?)
}

fn from_stored(stored: Stored<'_>) -> Result<Entry> {
    let wrong = |what: &str| Error::damaged(format!("an entry of a snapshot {what}"));
    let kind = match (stored.kind, stored.link_target, stored.rdev) {
        (0, None, None) => FileKind::Regular,
        (1, None, None) => FileKind::Directory,
        (2, Some(target), None) => FileKind::Symlink { target: target.to_vec() },
        (3, None, None) => FileKind::Fifo,
        (4, None, Some(rdev)) => FileKind::CharDevice { rdev },
        (5, None, Some(rdev)) => FileKind::BlockDevice { rdev },
        (kind, _, _) => return Err(wrong(&format!("is of unknown kind {kind}"))),
    };
    if !paths::is_confined(stored.path) {
        return Err(wrong(&format!("has the path {:?}", String::from_utf8_lossy(stored.path))));
    }
    let content_bytes = stored.content.map_or(0, |content| content.bytes);
    if content_bytes != stored.size || (stored.content.is_some() && kind != FileKind::Regular) {
        return Err(wrong(&format!("of {} bytes has a content of {content_bytes}", stored.size)));
    }
    let time = |(seconds, nanoseconds): (i64, u32)| match nanoseconds {
        0..=999_999_999 => Ok(FileTime { seconds, nanoseconds }),
        _ => Err(wrong("has an impossible time")),
    };
    let xattrs = stored.xattrs.map(|list| list.0).unwrap_or_default();
    Ok(Entry {
        root: stored.root,
        path: stored.path.to_vec(),
        metadata: Metadata {
            kind,
            mode: stored.mode & 0o7777,
            uid: stored.uid,
            gid: stored.gid,
            size: stored.size,
            mtime: time(stored.mtime)?,
            ctime: time(stored.ctime)?,
            inode: stored.inode,
            link_group: stored.link_group,
            xattrs: xattrs.iter().map(|x| (x.name.to_vec(), x.value.to_vec())).collect(),
        },
        content: stored.content,
        changed_while_read: stored.changed_while_read.unwrap_or(false),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::ChunkId;
    use proptest::prelude::*;

    pub(crate) fn file(path: &str, bytes: u64) -> Entry {
        Entry {
            root: 0,
            path: path.as_bytes().to_vec(),
            metadata: Metadata {
                kind: FileKind::Regular,
                mode: 0o644,
                uid: 1,
                gid: 2,
                size: bytes,
                mtime: FileTime { seconds: -5, nanoseconds: 999_999_999 },
                ctime: FileTime { seconds: 1, nanoseconds: 2 },
                inode: 77,
                link_group: None,
                xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
            },
            content: (bytes > 0).then(|| StreamRef { root: ChunkId::of(path.as_bytes()), depth: 0, bytes }),
            changed_while_read: false,
        }
    }

    #[test]
    fn entries_of_every_kind_round_trip() {
        let kinds = [
            FileKind::Directory,
            FileKind::Symlink { target: b"\xff/x".to_vec() },
            FileKind::Fifo,
            FileKind::CharDevice { rdev: 0x103 },
            FileKind::BlockDevice { rdev: u64::MAX },
        ];
        let mut entries = vec![file("a/b", 10), file("empty", 0)];
        entries.extend(kinds.map(|kind| {
            let mut entry = file("x", 0);
            entry.path = b"x\xffy".to_vec();
            entry.metadata.kind = kind;
            entry.metadata.link_group = Some((1, 2));
            entry
        }));
        entries[0].changed_while_read = true;
        let mut bytes = Vec::new();
        entries.iter().for_each(|e| append(e, &mut bytes).expect("short entry"));
        let mut rest = bytes.as_slice();
        for entry in &entries {
            assert_eq!(&take(&mut rest).expect("own bytes"), entry);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn paths_that_lead_out_of_the_root_are_refused() {
        for path in ["..", "a/../b", "/a", "a//b", "a/", "./a", "a/\0"] {
            let mut bytes = Vec::new();
            append(&file(path, 0), &mut bytes).expect("short entry");
            assert!(take(&mut bytes.as_slice()).is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = take(&mut bytes.as_slice());
        }
    }
}
