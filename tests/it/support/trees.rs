//! Directory trees as values: read from a disk or from a snapshot, and compared.

use ckpt::metadata::{FileKind, FileTime, Metadata};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The content of a file, by length and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of it.
    pub hash: blake3::Hash,
}

/// Everything about one entry that a restore must bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: FileTime,
    pub content: Option<Content>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first path, in order, with the same inode, if there are several.
    pub linked_to: Option<Vec<u8>>,
}

/// A tree by paths relative to its root, which has the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub entries: BTreeMap<Vec<u8>, Seen>,
    groups: HashMap<(u64, u64), Vec<u8>>,
}

impl Tree {
    /// Adds an entry of a snapshot or a disk; in the order of paths, so that groups of links have the same first path.
    pub fn add(&mut self, path: Vec<u8>, metadata: &Metadata, content: Option<Content>) {
        let group = metadata.link_group;
        let linked_to = group.map(|group| self.groups.entry(group).or_insert_with(|| path.clone()).clone());
        let seen = Seen {
            kind: metadata.kind.clone(),
            // Nothing can set the mode of a link.
            mode: if matches!(metadata.kind, FileKind::Symlink { .. }) { 0 } else { metadata.mode },
            owner: (metadata.uid, metadata.gid),
            mtime: metadata.mtime,
            content,
            xattrs: metadata.xattrs.clone(),
            linked_to,
        };
        self.entries.insert(path, seen);
    }

    /// Reads a tree from the disk. Links whose other names lie outside of it count as such.
    pub fn read(root: &Path) -> Tree {
        let mut found = Tree::default();
        found.read_below(root, Vec::new());
        found.normal()
    }

    /// Groups by the inode numbers of one disk, or of none: compared by paths alone.
    pub fn normal(mut self) -> Tree {
        let mut first: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for (path, seen) in &mut self.entries {
            if let Some(group) = &mut seen.linked_to {
                *group = first.entry(group.clone()).or_insert_with(|| path.clone()).clone();
            }
        }
        self.groups.clear();
        self
    }

    fn read_below(&mut self, root: &Path, path: Vec<u8>) {
        let place = root.join(std::ffi::OsStr::from_bytes(&path));
        let place = if path.is_empty() { root.to_owned() } else { place };
        let (metadata, content) = read_entry(&place);
        let is_directory = metadata.kind == FileKind::Directory;
        self.add(path.clone(), &metadata, content);
        if !is_directory {
            return;
        }
        let mut names: Vec<Vec<u8>> = fs::read_dir(&place)
            .unwrap_or_else(|e| panic!("{}: {e}", place.display()))
            .map(|item| item.expect("a name").file_name().as_bytes().to_vec())
            .collect();
        names.sort();
        for name in names {
            let child = if path.is_empty() { name } else { [&path, &b"/"[..], &name].concat() };
            self.read_below(root, child);
        }
    }

    /// Fails with the first differences if `self`, what came back, is not `wanted`.
    pub fn assert_is(&self, wanted: &Tree, why: &str) {
        let mut differences = Vec::new();
        for path in self.entries.keys().chain(wanted.entries.keys()) {
            let (found, wanted) = (self.entries.get(path), wanted.entries.get(path));
            if found != wanted {
                let path = String::from_utf8_lossy(path);
                differences.push(format!("{path:?}:\n  found  {found:?}\n  wanted {wanted:?}"));
            }
        }
        assert!(differences.is_empty(), "{why}: {}", differences[..differences.len().min(3)].join("\n"));
    }
}

fn read_entry(place: &Path) -> (Metadata, Option<Content>) {
    let found = fs::symlink_metadata(place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
    let kind = found.file_type();
    let kind = if kind.is_file() {
        FileKind::Regular
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink { target: fs::read_link(place).expect("a link").as_os_str().as_bytes().to_vec() }
    } else if kind.is_fifo() {
        FileKind::Fifo
    } else {
        panic!("{} is of a kind that no test makes", place.display());
    };
    let content = (kind == FileKind::Regular).then(|| {
        let bytes = fs::read(place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
        Content { bytes: bytes.len() as u64, hash: blake3::hash(&bytes) }
    });
    let is_linked = found.nlink() > 1 && kind != FileKind::Directory;
    let metadata = Metadata {
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        size: content.map_or(0, |content| content.bytes),
        mtime: FileTime {
            seconds: found.mtime(),
            nanoseconds: u32::try_from(found.mtime_nsec()).expect("nanoseconds"),
        },
        ctime: FileTime::default(),
        inode: 0,
        link_group: is_linked.then_some((found.dev(), found.ino())),
        xattrs: if kind == FileKind::Regular || kind == FileKind::Directory { xattrs(place) } else { Vec::new() },
        kind,
    };
    (metadata, content)
}

/// The attributes of the user's own namespace, sorted.
fn xattrs(place: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0u8; 64 << 10];
    let len = rustix::fs::llistxattr(place, &mut list[..]).unwrap_or(0);
    let mut found: Vec<_> = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let c_name = CString::new(name).expect("no zero within");
            let len = rustix::fs::lgetxattr(place, &c_name, &mut value[..]).expect("a listed attribute");
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}
