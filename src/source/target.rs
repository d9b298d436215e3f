//! The confined writer of restored files.
//!
//! Every operation takes a path relative to the target, as bytes, and stays below the target whatever the path says
//! and whatever is planted there (see `confined`). The target itself may be a symbolic link: the user named it. A new
//! entry appears under its final name at once and whole, by a rename; an existing one is replaced only on request, and
//! a directory only after [`Target::remove`]. What to replace or to delete is decided by the caller.
//!
//! Nothing is durable before [`Target::sync_all`] or [`TargetFile::sync`] returns.

use super::apply::{Handle, MetadataIssue, path_in, system_mode};
use super::confined::{Confined, Place, check_path, open_name};
pub use super::part_file::{ReadyFile, TargetFile};
pub use super::placing::{Overwrite, Placed};
use super::placing::{Shared, stat_name};
use super::remove::{read_names, remove_entry};
use super::stat::FileStatus;
use super::xattrs::{Subject, Xattrs};
use crate::error::{Error, Kind, Result};
use crate::metadata::Metadata;
use crate::page_cache::PageCache;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

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

impl Target {
    /// Opens the directory at `path`, which is created with its parents if it does not exist.
    pub fn open(path: &Path) -> Result<Target> {
        let fail = |error| Error::io(format!("creating the target {}", path.display()), error);
        std::fs::create_dir_all(path).map_err(|error| match fail(error) {
            // What is missing is no object of a repository: the file system does not let the directory come to be.
            error if error.kind() == Kind::Missing => error.with_kind(Kind::Failed),
            error => error,
        })?;
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
        Subject::Path(&path_in(place.parent.as_fd(), &place.name))
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
        Ok(status.is_regular().then_some(ExistingFile {
            file,
            page_cache: PageCache::new(status.size),
            size: status.size,
            shown,
        }))
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
        check_path(path)?;
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

    /// Begins the file at `path`, which will have `size` bytes, zero where none are written. `resume_key` stands for the content: an
    /// interrupted restore of the same content to the same path finds its part again.
    pub fn begin_file(&self, path: &[u8], size: u64, resume_key: &str) -> Result<TargetFile> {
        TargetFile::begin(&self.shared, path, size, resume_key)
    }

    /// As [`Target::begin_file`], but begins with what stands at `path` if that is a file of ours with no other name. It
    /// is gone from there until the new file is placed, or until it is dropped with nothing changed in it.
    pub fn adopt_file(&self, path: &[u8], size: u64, resume_key: &str) -> Result<TargetFile> {
        TargetFile::adopt(&self.shared, path, size, resume_key)
    }

    /// Makes the symbolic link, pipe or device that `metadata` describes.
    pub fn make_special(&self, path: &[u8], metadata: &Metadata, overwrite: Overwrite) -> Result<Placed> {
        self.shared.make_special(path, metadata, overwrite)
    }

    /// Makes `path` another name of the entry at `existing`, which was restored before; false if something stands
    /// there and was kept. Metadata belongs to the entry, not to the name.
    pub fn hard_link(&self, existing: &[u8], path: &[u8], overwrite: Overwrite) -> Result<bool> {
        self.shared.hard_link(existing, path, overwrite)
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

    /// Where it is, for messages.
    pub fn describe(&self) -> String {
        self.shared.show(b"")
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

/// A regular file that stood in the target before.
#[derive(Debug)]
pub struct ExistingFile {
    file: File,
    page_cache: PageCache,
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
        self.page_cache.read_at(&self.file, offset, buffer).map_err(fail)
    }
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

#[cfg(test)]
mod tests {
    use super::super::confined::Resolver;
    use super::super::part_file::is_part_name;
    use super::super::scan::{Found, ScanOptions, Scanned, scan};
    use super::*;
    use crate::aligned::AlignedBuffer;
    use crate::metadata::{FileKind, FileTime};
    use crate::paths::compare_paths;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    type Resolve = fn(OwnedFd) -> Confined;
    const RESOLVERS: [Resolve; 2] = [Confined::new, |root| Confined::with_resolver(root, Resolver::ComponentWise)];

    fn temporary() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary directory")
    }

    fn target(path: &Path, resolve: Resolve) -> Target {
        Target::open_with(path, resolve).expect("open target")
    }

    fn metadata(kind: FileKind) -> Metadata {
        let user = rustix::process::geteuid().as_raw();
        Metadata {
            kind,
            mode: 0o640,
            uid: user,
            gid: rustix::process::getegid().as_raw(),
            size: 0,
            mtime: FileTime { seconds: 1_000_000_000, nanoseconds: 5 },
            ctime: FileTime::default(),
            inode: 0,
            link_group: None,
            xattrs: Vec::new(),
        }
    }

    fn write_file(target: &Target, path: &[u8], content: &[u8]) -> Placed {
        let file = target.begin_file(path, content.len() as u64, "key").expect("begin");
        file.write_at(0, content).expect("write");
        file.finish(&metadata(FileKind::Regular), Overwrite::Replace).expect("finish")
    }

    fn scanned(root: &Path) -> Vec<Found> {
        scan(&[root.to_path_buf()], ScanOptions::default())
            .map(|scanned| match scanned {
                Scanned::Entry(mut found) => {
                    found.metadata.xattrs = found.read_xattrs().expect("xattrs");
                    found
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Restores `entries` the way a restore does: in path order, directories' metadata at the end.
    fn restore(entries: &[Found], target: &Target) {
        let mut firsts: HashMap<(u64, u64), &[u8]> = HashMap::new();
        for found in &entries[1..] {
            let (path, metadata) = (&found.path[..], &found.metadata);
            if let Some(group) = metadata.link_group
                && let Some(first) = firsts.get(&group)
            {
                assert!(target.hard_link(first, path, Overwrite::Replace).expect("hard link"));
                continue;
            }
            firsts.extend(metadata.link_group.map(|group| (group, path)));
            let placed = match metadata.kind {
                FileKind::Directory => {
                    assert!(target.make_directory(path).expect("mkdir"));
                    continue;
                }
                FileKind::Regular => {
                    let content = fs::read(&found.absolute).expect("read");
                    let file = target.begin_file(path, metadata.size, "key").expect("begin");
                    for (index, block) in content.chunks(4096).enumerate() {
                        if block.iter().any(|&byte| byte != 0) {
                            file.write_at(index as u64 * 4096, block).expect("write");
                        }
                    }
                    file.finish(metadata, Overwrite::Replace).expect("finish")
                }
                _ => target.make_special(path, metadata, Overwrite::Replace).expect("special"),
            };
            assert!(placed.placed);
            assert_eq!(placed.issues, []);
        }
        for found in entries.iter().rev().filter(|found| found.metadata.kind == FileKind::Directory) {
            assert_eq!(target.set_directory_metadata(&found.path, &found.metadata).expect("directory"), []);
        }
        target.sync_all().expect("sync");
    }

    fn assert_same(original: &[Found], restored: &[Found]) {
        assert_eq!(original.len(), restored.len());
        let mut groups = HashMap::new();
        for (a, b) in original.iter().zip(restored) {
            assert_eq!(compare_paths(&a.path, &b.path), std::cmp::Ordering::Equal);
            let neutral = |found: &Found| Metadata {
                ctime: FileTime::default(),
                inode: 0,
                link_group: None,
                ..found.metadata.clone()
            };
            assert_eq!(neutral(a), neutral(b), "{}", a.path.escape_ascii());
            assert_eq!(a.metadata.link_group.is_some(), b.metadata.link_group.is_some());
            if let Some(group) = a.metadata.link_group {
                assert_eq!(groups.entry(group).or_insert(b.metadata.link_group), &b.metadata.link_group);
            }
            if a.metadata.kind == FileKind::Regular {
                assert_eq!(fs::read(&a.absolute).expect("read"), fs::read(&b.absolute).expect("read"));
            }
        }
    }

    #[derive(Debug, Clone)]
    struct Planned {
        path: Vec<u8>,
        kind: u8,
        mode: u32,
        seconds: i64,
        nanoseconds: u32,
        content: Vec<u8>,
        xattr: Option<Vec<u8>>,
    }

    fn planned() -> impl Strategy<Value = Planned> {
        let byte = prop::sample::select(vec![b'a', b'b', b'-', b'.', b' ', b'\n', 1, 0xff]);
        let name = prop::collection::vec(byte, 1..4).prop_filter("a name", |name| name != b"." && name != b"..");
        (
            prop::collection::vec(name, 1..5).prop_map(|names| names.join(&b'/')),
            0u8..6,
            0u32..0o10000,
            -2_000_000_000i64..4_000_000_000,
            0u32..1_000_000_000,
            prop::collection::vec(any::<u8>(), 0..64),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        )
            .prop_map(|(path, kind, mode, seconds, nanoseconds, content, xattr)| Planned {
                path,
                kind,
                mode,
                seconds,
                nanoseconds,
                content,
                xattr,
            })
    }

    /// Makes what can be made of the plan: some entries stand in the way of others.
    fn make_tree(root: &Path, plan: &[Planned]) {
        let mut files: Vec<std::path::PathBuf> = Vec::new();
        let mut made = Vec::new();
        for entry in plan {
            let path = root.join(OsStr::from_bytes(&entry.path));
            if fs::create_dir_all(path.parent().expect("a parent")).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            match entry.kind {
                0 => fs::create_dir(&path).expect("mkdir"),
                1 => symlink(OsStr::from_bytes(&[b"../", &entry.path[..]].concat()), &path).expect("symlink"),
                2 => rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR).expect("fifo"),
                3 if !files.is_empty() => fs::hard_link(&files[0], &path).expect("hard link"),
                kind => {
                    let file = File::create(&path).expect("create");
                    file.write_all_at(&entry.content, if kind == 4 { 300_000 } else { 0 }).expect("write");
                    files.push(path.clone());
                }
            }
            made.push((path, entry));
        }
        made.sort_by(|(a, _), (b, _)| b.cmp(a));
        for (path, entry) in made {
            let user = if entry.kind == 1 { b"" as &[u8] } else { b"user.x\xfe" };
            let placed = Target::open(path.parent().expect("a parent")).expect("open");
            let name = path.file_name().expect("a name").as_bytes();
            let existing = placed.existing(name).expect("existing").expect("made").metadata.expect("storable");
            let has_user_xattrs = matches!(existing.kind, FileKind::Regular | FileKind::Directory);
            if let Some(value) = entry.xattr.as_ref().filter(|_| has_user_xattrs) {
                let _ = Subject::Path(&path).set(user, value);
            }
            let mtime = FileTime { seconds: entry.seconds, nanoseconds: entry.nanoseconds };
            let mut xattrs = placed.read_xattrs(name).expect("xattrs");
            xattrs.sort();
            // Without the superuser's rights an unreadable tree could not be compared.
            let mode = entry.mode | if rustix::process::geteuid().is_root() { 0 } else { 0o700 };
            let wanted = Metadata { mode, mtime, xattrs, ..existing };
            placed.shared.apply_for_test(name, &wanted);
        }
    }

    impl Shared {
        fn apply_for_test(&self, name: &[u8], wanted: &Metadata) {
            let place = self.place(name).expect("place");
            let issues = super::super::placing::apply_by_name(&place.parent, name, wanted).expect("apply");
            assert_eq!(issues, []);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_tree_that_is_scanned_and_restored_is_the_same(plan in prop::collection::vec(planned(), 0..20)) {
            let source = temporary();
            make_tree(source.path(), &plan);
            let original = scanned(source.path());
            for resolve in RESOLVERS {
                let dir = temporary();
                restore(&original, &target(dir.path(), resolve));
                assert_same(&original, &scanned(dir.path()));
            }
        }
    }

    #[test]
    fn deep_trees_and_long_names_are_restored() {
        let source = temporary();
        let mut deep = source.path().to_path_buf();
        for _ in 0..15 {
            deep.push("d".repeat(200));
        }
        fs::create_dir_all(&deep).expect("mkdir");
        fs::write(deep.join("n".repeat(255)), b"x").expect("write");
        let original = scanned(source.path());
        let dir = temporary();
        restore(&original, &target(dir.path(), RESOLVERS[0]));
        assert_same(&original, &scanned(dir.path()));
    }

    #[test]
    fn every_operation_refuses_a_path_that_leaves_the_target() {
        let outer = temporary();
        let inner = outer.path().join("target");
        fs::write(outer.path().join("victim"), b"safe").expect("write");
        let target = Target::open(&inner).expect("open");
        write_file(&target, b"own", b"x");
        let absolute = outer.path().join("victim").into_os_string().into_encoded_bytes();
        let link = metadata(FileKind::Symlink { target: b"x".to_vec() });
        for path in [&b"../victim"[..], b"..", b".", b"", b"a/../../victim", b"own/", b"a\0b", &absolute] {
            let replace = Overwrite::Replace;
            assert!(target.existing(path).is_err());
            assert!(target.open_existing(path).is_err());
            assert!(target.read_xattrs(path).is_err());
            assert!(target.make_directory(path).is_err());
            assert!(target.make_parents(path).is_err());
            assert!(target.begin_file(path, 1, "key").is_err());
            assert!(target.make_special(path, &link, replace).is_err());
            assert!(target.hard_link(b"own", path, replace).is_err());
            assert!(target.hard_link(path, b"new", replace).is_err());
            assert!(target.remove(path).is_err());
            if !path.is_empty() {
                // Empty means the target itself here.
                assert!(target.list_children(path).is_err());
                assert!(target.set_directory_metadata(path, &metadata(FileKind::Directory)).is_err());
            }
        }
        assert_eq!(fs::read(outer.path().join("victim")).expect("read"), b"safe");
        assert_eq!(target.list_children(b"").expect("list"), [b"own"]);
    }

    #[test]
    fn a_planted_link_to_a_directory_is_never_followed() {
        for resolve in RESOLVERS {
            let outside = temporary();
            fs::write(outside.path().join("victim"), b"safe").expect("write");
            let dir = temporary();
            symlink(outside.path(), dir.path().join("link")).expect("symlink");
            let target = target(dir.path(), resolve);
            write_file(&target, b"own", b"x");
            let link = metadata(FileKind::Symlink { target: b"x".to_vec() });
            let error = target.begin_file(b"link/victim", 1, "key").expect_err("refused");
            assert!(error.to_string().contains("symbolic link") && error.hint().is_some(), "{error}");
            assert!(target.make_directory(b"link").is_err());
            assert!(target.make_directory(b"link/new").is_err());
            assert!(target.make_parents(b"link/new/x").is_err());
            assert!(target.make_special(b"link/new", &link, Overwrite::Replace).is_err());
            assert!(target.hard_link(b"own", b"link/new", Overwrite::Replace).is_err());
            assert!(target.hard_link(b"link/victim", b"new", Overwrite::Replace).is_err());
            assert!(target.set_directory_metadata(b"link", &metadata(FileKind::Directory)).is_err());
            assert!(target.read_xattrs(b"link/victim").is_err());
            assert!(target.existing(b"link/victim").expect("looked").is_none());
            assert!(target.open_existing(b"link/victim").expect("looked").is_none());
            assert!(target.list_children(b"link").expect("listed").is_empty());
            target.remove(b"link/victim").expect("nothing there");
            target.remove(b"link").expect("the link itself");
            assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
            assert_eq!(fs::read(outside.path().join("victim")).expect("read"), b"safe");
        }
    }

    #[test]
    fn a_link_under_the_final_name_is_replaced_and_not_followed() {
        let dir = temporary();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("victim"), b"safe").expect("write");
        for name in ["file", "link", "hard", "pipe"] {
            symlink("victim", at(name)).expect("symlink");
        }
        let target = target(dir.path(), RESOLVERS[0]);
        assert!(target.open_existing(b"file").expect("looked").is_none());
        write_file(&target, b"file", b"new");
        let special =
            |path: &[u8], kind| target.make_special(path, &metadata(kind), Overwrite::Replace).expect("special");
        special(b"link", FileKind::Symlink { target: b"\xff".to_vec() });
        special(b"pipe", FileKind::Fifo);
        assert!(target.hard_link(b"file", b"hard", Overwrite::Replace).expect("hard link"));
        // Again, onto a name that it has already.
        assert!(target.hard_link(b"file", b"hard", Overwrite::Replace).expect("hard link"));
        assert_eq!(fs::read(at("victim")).expect("read"), b"safe");
        assert_eq!(fs::read(at("hard")).expect("read"), b"new");
        assert_eq!(fs::symlink_metadata(at("file")).expect("stat").nlink(), 2);
        assert_eq!(fs::read_link(at("link")).expect("link").as_os_str().as_bytes(), b"\xff");
        assert_eq!(target.list_children(b"").expect("list").len(), 5);
    }

    #[test]
    fn an_interrupted_file_is_resumed_only_for_the_same_content() {
        let dir = temporary();
        let target = target(dir.path(), RESOLVERS[0]);
        let file = target.begin_file(b"f", 10, "one").expect("begin");
        assert!(!file.resumed());
        file.write_at(0, b"01234").expect("write");
        drop(file);
        let other = target.begin_file(b"f", 10, "two").expect("begin");
        assert!(!other.resumed());
        // While one process writes a part, a second one leaves it alone.
        let concurrent = target.begin_file(b"f", 10, "two").expect("begin");
        assert!(!concurrent.resumed());
        concurrent.discard().expect("discard");
        other.discard().expect("discard");
        let again = target.begin_file(b"f", 7, "one").expect("begin");
        assert!(again.resumed());
        let mut buffer = [9; 10];
        assert_eq!(again.read_at(0, &mut buffer).expect("read"), 7);
        assert_eq!(&buffer[..7], b"01234\0\0");
        assert!(again.write_at(5, b"567").is_err());
        again.write_at(5, b"56").expect("write");
        again.sync().expect("sync");
        again.finish(&metadata(FileKind::Regular), Overwrite::Replace).expect("finish");
        assert_eq!(fs::read(dir.path().join("f")).expect("read"), b"0123456");
        assert_eq!(target.list_children(b"").expect("list"), [b"f"]);
    }

    #[test]
    fn a_planted_part_is_removed_and_not_written_to() {
        let dir = temporary();
        let at = |name: &OsStr| dir.path().join(name);
        let victim = at(OsStr::new("victim"));
        fs::write(&victim, b"safe").expect("write");
        let target = target(dir.path(), RESOLVERS[0]);
        drop(target.begin_file(b"f", 4, "key").expect("begin"));
        let names = target.list_children(b"").expect("list");
        let part = at(OsStr::from_bytes(names.iter().find(|name| is_part_name(name)).expect("a part")));
        let plants: [&dyn Fn(); 5] = [
            &|| symlink(&victim, &part).expect("symlink"),
            &|| fs::hard_link(&victim, &part).expect("hard link"),
            &|| rustix::fs::mkfifoat(rustix::fs::CWD, &part, Mode::RWXU).expect("fifo"),
            &|| fs::create_dir_all(part.join("sub")).expect("mkdir"),
            &|| drop(std::os::unix::net::UnixListener::bind(&part)),
        ];
        for plant in plants {
            fs::remove_file(&part).expect("the part of before");
            plant();
            let file = target.begin_file(b"f", 4, "key").expect("begin");
            assert!(!file.resumed());
            file.write_at(0, b"evil").expect("write");
            drop(file);
            assert!(part.symlink_metadata().expect("part").is_file());
            assert_eq!(fs::read(&victim).expect("read"), b"safe");
        }
    }

    #[test]
    fn what_must_not_be_replaced_stays() {
        let dir = temporary();
        let target = target(dir.path(), RESOLVERS[0]);
        write_file(&target, b"old", b"old");
        let file = target.begin_file(b"old", 3, "key").expect("begin");
        file.write_at(0, b"new").expect("write");
        assert!(!file.finish(&metadata(FileKind::Regular), Overwrite::Never).expect("finish").placed);
        let fifo = metadata(FileKind::Fifo);
        assert!(!target.make_special(b"old", &fifo, Overwrite::Never).expect("special").placed);
        write_file(&target, b"other", b"x");
        assert!(!target.hard_link(b"other", b"old", Overwrite::Never).expect("hard link"));
        assert!(target.hard_link(b"other", b"new", Overwrite::Never).expect("hard link"));
        assert_eq!(fs::read(dir.path().join("old")).expect("read"), b"old");
        assert_eq!(target.list_children(b"").expect("list").len(), 3);
        assert!(target.make_directory(b"dir").expect("mkdir"));
        assert!(!target.make_directory(b"dir").expect("there already"));
        assert!(target.make_directory(b"old").is_err());
        // A directory is replaced by nothing; the part of a special entry is not left behind.
        assert!(target.make_special(b"dir", &fifo, Overwrite::Replace).is_err());
        assert_eq!(target.list_children(b"").expect("list").len(), 4);
        target.remove(b"dir").expect("remove");
        assert!(target.make_special(b"dir", &fifo, Overwrite::Replace).expect("special").placed);
    }

    #[test]
    fn a_directory_made_again_after_removal_is_the_new_one() {
        let dir = temporary();
        let target = target(dir.path(), RESOLVERS[0]);
        for content in [b"1", b"2"] {
            target.remove(b"a").expect("remove");
            target.make_parents(b"a/b/f").expect("parents");
            write_file(&target, b"a/b/f", content);
            assert_eq!(fs::read(dir.path().join("a/b/f")).expect("read"), content);
        }
        let existing = target.existing(b"a/b/f").expect("looked").expect("there");
        assert_eq!(existing.metadata.expect("a file").mode, 0o640);
        let reader = target.open_existing(b"a/b/f").expect("opened").expect("there");
        assert_eq!((reader.size(), reader.read_at(0, &mut [0; 4]).expect("read")), (1, 1));
        assert!(target.free_bytes().expect("space") > 0);
    }

    #[test]
    fn direct_writes_hold_the_same_bytes_and_holes_stay_holes() {
        // A file system in memory has no direct I/O: then this tests the fall back.
        for resolve in RESOLVERS {
            let dir = temporary();
            let target = target(dir.path(), resolve);
            let mib = 1 << 20;
            let size = 64 * mib + 5;
            let file = target.begin_file(b"f", size, "key").expect("begin");
            let mut buffer = AlignedBuffer::new(1 << 20);
            buffer.as_mut_slice().fill(7);
            file.write_direct_at(32 * mib, buffer.as_slice()).expect("aligned");
            file.write_direct_at(33 * mib + 1, buffer.as_slice()).expect("unaligned offset");
            file.write_direct_at(64 * mib, &buffer.as_slice()[..5]).expect("tail");
            assert!(file.write_direct_at(64 * mib, &buffer.as_slice()[..4096]).is_err());
            file.sync().expect("sync");
            file.finish(&metadata(FileKind::Regular), Overwrite::Replace).expect("finish");
            let content = fs::read(dir.path().join("f")).expect("read");
            assert_eq!(content.len() as u64, size);
            let sevens = content.iter().filter(|&&byte| byte == 7).count();
            assert_eq!(sevens, (2 << 20) + 5);
            assert!(content[(32 << 20)..(33 << 20)].iter().all(|&byte| byte == 7));
            assert!(fs::metadata(dir.path().join("f")).expect("stat").blocks() * 512 < 8 * mib);
        }
    }

    /// What a window of a restore counts with.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_is_taken_over_has_three_descriptors_at_most_and_one_when_it_is_ready() {
        let dir = temporary();
        let target = target(dir.path(), RESOLVERS[0]);
        let mut buffer = AlignedBuffer::new(1 << 20);
        let size = buffer.len() as u64;
        // Written past the page cache: it has to be read past it.
        let file = target.begin_file(b"f", size, "key").expect("begin");
        file.write_direct_at(0, buffer.as_slice()).expect("written");
        file.sync().expect("sync");
        file.finish(&metadata(FileKind::Regular), Overwrite::Replace).expect("finish");
        let open = || {
            let links = fs::read_dir("/proc/self/fd").expect("a list").flatten();
            let names = links.filter_map(|link| fs::read_link(link.path()).ok());
            names.filter(|name| name.starts_with(dir.path()) && name.extension() == Some("ckpt-part".as_ref())).count()
        };
        let file = target.adopt_file(b"f", size, "other key").expect("taken over");
        assert_eq!(file.read_at(0, buffer.as_mut_slice()).expect("read") as u64, size);
        file.write_direct_at(0, buffer.as_slice()).expect("written");
        assert!((1..=3).contains(&open()));
        let ready = file.apply(&metadata(FileKind::Regular)).expect("applied");
        assert_eq!(open(), 1);
        ready.place(Overwrite::Replace).expect("placed");
    }

    #[test]
    fn a_file_that_is_taken_over_and_dropped_as_it_was_has_its_name_and_mode_again() {
        for resolve in RESOLVERS {
            let dir = temporary();
            let target = target(dir.path(), resolve);
            let path = dir.path().join("f");
            fs::write(&path, b"old").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("mode");
            let inode = fs::metadata(&path).expect("stat").ino();
            let file = target.adopt_file(b"f", 2 << 20, "key").expect("taken over");
            assert!(file.resumed() != path.exists() && file.leaves_part().is_none());
            drop(file);
            let found = fs::metadata(&path).expect("stat");
            assert_eq!((found.ino(), found.mode() & 0o7777, found.len()), (inode, 0o444, 3));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
            let file = target.adopt_file(b"f", 2 << 20, "key").expect("taken over");
            file.write_at(1, b"x").expect("written");
            let part = file.leaves_part().expect("a part").to_vec();
            drop(file);
            assert!(!path.exists(), "half of it is new");
            assert!(fs::read(dir.path().join(OsStr::from_bytes(&part))).expect("read").starts_with(b"oxd"));
        }
    }

    #[test]
    fn the_target_may_be_a_link_and_is_created_with_its_parents() {
        let dir = temporary();
        fs::create_dir(dir.path().join("real")).expect("mkdir");
        symlink("real", dir.path().join("link")).expect("symlink");
        let target = Target::open(&dir.path().join("link/a/b")).expect("open");
        write_file(&target, b"f", b"x");
        assert!(dir.path().join("real/a/b/f").exists());
        assert!(Target::open_if_present(&dir.path().join("none")).expect("looked").is_none());
        assert!(Target::open_if_present(&dir.path().join("real")).expect("looked").is_some());
        assert!(Target::open(&dir.path().join("real/a/b/f")).is_err());
    }

    #[test]
    fn setuid_and_times_before_1970_survive_the_change_of_owner() {
        let dir = temporary();
        let target = target(dir.path(), RESOLVERS[0]);
        let is_root = rustix::process::geteuid().is_root();
        let mut wanted = metadata(FileKind::Regular);
        wanted.mode = 0o6755;
        wanted.uid = 12_345;
        wanted.mtime = FileTime { seconds: -100, nanoseconds: 999_999_999 };
        let file = target.begin_file(b"f", 0, "key").expect("begin");
        let placed = file.finish(&wanted, Overwrite::Replace).expect("finish");
        let stat = fs::metadata(dir.path().join("f")).expect("stat");
        assert_eq!(stat.modified().expect("time"), SystemTime::UNIX_EPOCH - Duration::new(99, 1));
        if is_root {
            assert_eq!((placed.issues.len(), stat.uid(), stat.mode() & 0o7777), (0, 12_345, 0o6755));
        } else {
            // One issue for the owner, one for the bit that must not be given to another owner's file.
            assert_eq!((placed.issues.len(), stat.mode() & 0o7777), (2, 0o2755));
        }
    }

    #[test]
    fn rights_inherited_from_the_parent_are_not_added_to_a_restored_file() {
        let dir = temporary();
        // An ACL of version 2: owner rwx, user 12345 rwx, group r-x, mask rwx, others r-x.
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let none = u32::MAX;
        let entries =
            [entry(1, 7, none), entry(2, 7, 12_345), entry(4, 5, none), entry(16, 7, none), entry(32, 5, none)];
        let acl = [&2u32.to_le_bytes()[..], &entries.concat()].concat();
        if Subject::Path(dir.path()).set(b"system.posix_acl_default", &acl).is_err() {
            return;
        }
        let target = target(dir.path(), RESOLVERS[0]);
        assert_eq!(write_file(&target, b"plain", b"x").issues, []);
        assert_eq!(target.read_xattrs(b"plain").expect("xattrs"), []);
        assert_eq!(fs::metadata(dir.path().join("plain")).expect("stat").permissions().mode() & 0o7777, 0o640);
        let mut wanted = metadata(FileKind::Regular);
        wanted.mode = 0o775;
        wanted.xattrs = vec![(b"system.posix_acl_access".to_vec(), acl.clone())];
        let file = target.begin_file(b"with", 0, "key").expect("begin");
        assert_eq!(file.finish(&wanted, Overwrite::Replace).expect("finish").issues, []);
        assert_eq!(target.read_xattrs(b"with").expect("xattrs"), wanted.xattrs);
        assert_eq!(fs::metadata(dir.path().join("with")).expect("stat").permissions().mode() & 0o7777, 0o775);
    }
}
