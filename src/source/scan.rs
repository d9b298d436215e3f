//! Walks the paths of a backup and reports every entry with its metadata.
//!
//! Entries come in the order of [`compare_paths`](crate::paths::compare_paths) within each root, so that a scan and a stored snapshot can be merged
//! in one pass. What cannot be read is reported and the walk goes on. A regular file costs one `lstat`; extended
//! attributes are read only when asked for, because an unchanged ctime proves that they are the same.
//!
//! No file is ever opened here but on behalf of [`super::open`], and symbolic links are not followed, also when a path is come
//! back to, with one exception: a root that is a symbolic link to a directory stands for that directory, as in
//! `cp -r link/ to`. A root that is a symbolic link to anything else is stored as a link. At any moment the names of one directory for each level of depth are in memory.

use super::apply::path_in;
use super::beneath::Beneath;
use super::excludes::Excludes;
use super::levels::{Levels, status_in, target_in};
use super::stat::FileStatus;
use super::xattrs::{Subject, Xattrs};
use crate::error::{Error, Kind, Result};
use crate::metadata::{FileKind, Metadata};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a scan leaves out.
#[derive(Debug, Clone, Default)]
pub struct ScanOptions {
    /// Patterns of paths that are left out.
    pub excludes: Excludes,
    /// Keep to the file system of each root: a mount point is stored as an empty directory.
    pub one_file_system: bool,
}

/// One entry that a scan found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The index of its root in the list given to [`scan`].
    pub root: u32,
    /// Relative to the root, components joined by `/`; empty for the root itself. Bytes, not necessarily text.
    pub path: Vec<u8>,
    /// Where it is.
    pub absolute: PathBuf,
    /// The device that holds it.
    pub device: u64,
    /// What it is, without extended attributes: [`Found::read_xattrs`] asks for those.
    pub metadata: Metadata,
    /// How to come back to it.
    pub way: Way,
}

/// How to come back to what a scan has found. By default its name is all there is, as for a root or a stream.
#[derive(Debug, Clone, Default)]
pub struct Way(Option<Arc<Beneath>>);

impl Found {
    /// Reads the extended attributes, sorted by name; those of a symbolic link are its own.
    pub fn read_xattrs(&self) -> Result<Xattrs> {
        // Only the root can be a link that the scan followed: then it is a directory by its metadata.
        let followed_root = self.path.is_empty() && self.metadata.kind == FileKind::Directory;
        if followed_root {
            let resolved = self.absolute.canonicalize();
            return Subject::Path(resolved.as_deref().unwrap_or(&self.absolute)).read_all();
        }
        let Way(Some(beneath)) = &self.way else { return Subject::Path(&self.absolute).read_all() };
        let fail = |error: Errno| Error::io(format!("reading {}", self.absolute.display()), error.into());
        let (parent, name) = beneath.parent(&self.path).map_err(fail)?;
        let by_descriptor = path_in(parent.as_fd(), name);
        match Subject::Path(&by_descriptor).read_all() {
            // Without the table of descriptors only the name is left.
            Err(_) if !has_table(&by_descriptor) => Subject::Path(&self.absolute).read_all(),
            read => read.map_err(|error| error.while_doing(self.absolute.display())),
        }
    }

    /// Opens it with `flags`, no symbolic link below its root being followed.
    pub(super) fn open(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match &self.way {
            Way(Some(beneath)) => beneath.open(&self.path, flags),
            Way(None) => rustix::fs::openat(CWD, &self.absolute, flags | OFlags::NOFOLLOW, Mode::empty()),
        }
    }

    /// The same path looked at again, for a file that was replaced while it was about to be read; extended attributes
    /// are not read. An error if nothing that can be stored is there any more.
    pub fn look_again(&self) -> Result<Found> {
        let path = self.absolute.display();
        let seen = match &self.way {
            Way(Some(beneath)) => examine_beneath(beneath, &self.path),
            Way(None) => examine_root(&self.absolute),
        };
        match seen {
            Ok(Seen { metadata: Some(metadata), device }) => Ok(Found { metadata, device, ..self.clone() }),
            Ok(Seen { metadata: None, .. }) => Err(Error::new(Kind::Failed, format!("{path} became a socket"))),
            Err(error) => Err(Error::io(format!("reading {path}"), error)),
        }
    }
}

/// What a scan reports, in order.
#[derive(Debug)]
pub enum Scanned {
    /// An entry to store.
    Entry(Found),
    /// Something could not be read: it vanished, or permission is denied. For a directory, its own entry came
    /// before and its content is missing from the scan.
    Problem {
        /// The index of its root.
        root: u32,
        /// Relative to the root, as in [`Found::path`].
        path: Vec<u8>,
        /// What was wrong.
        error: Error,
    },
    /// A socket: it has no content and cannot be restored, so it is not stored.
    SkippedSocket {
        /// The index of its root.
        root: u32,
        /// Relative to the root, as in [`Found::path`].
        path: Vec<u8>,
    },
    /// Left out by a pattern; nothing below it is reported.
    Excluded {
        /// The index of its root.
        root: u32,
        /// Relative to the root, as in [`Found::path`].
        path: Vec<u8>,
    },
}

/// Walks `roots` one after the other, each a directory or a single file. Relative roots begin at the current
/// directory of this moment. A root that does not exist is a [`Scanned::Problem`] with
/// [`Kind::Missing`].
pub fn scan(roots: &[PathBuf], options: ScanOptions) -> Scan {
    // Without a current directory a relative root stays as it is, and fails where it is used.
    let roots = roots.iter().map(|root| std::path::absolute(root).unwrap_or_else(|_| root.clone())).collect();
    Scan { roots, options, roots_begun: 0, walk: None }
}

/// The iterator that [`scan`] returns.
#[derive(Debug)]
pub struct Scan {
    roots: Vec<PathBuf>,
    options: ScanOptions,
    roots_begun: usize,
    walk: Option<Walk>,
}

impl Scan {
    /// The next thing found. Regular files whose names are not `wanted` are passed over without a look at them, also if they
    /// are excluded, as far as listings tell types.
    pub fn next_wanted(&mut self, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Scanned> {
        if let Some(scanned) = self.walk.as_mut().and_then(|walk| walk.step(&self.options, wanted)) {
            return Some(scanned);
        }
        self.walk = None;
        let path = self.roots.get(self.roots_begun)?;
        // A list of more than 2^32 roots does not fit a command line: ending there loses nothing.
        let root = u32::try_from(self.roots_begun).ok()?;
        self.roots_begun += 1;
        let (scanned, walk) = begin_root(root, path);
        self.walk = walk;
        Some(scanned)
    }
}

impl Iterator for Scan {
    type Item = Scanned;

    fn next(&mut self) -> Option<Scanned> {
        self.next_wanted(&|_| true)
    }
}

/// The walk of one root that is a directory.
#[derive(Debug)]
struct Walk {
    root: u32,
    root_device: u64,
    levels: Levels,
    /// The directory reported last, still to be listed: where it is, and relative to the root.
    ahead: Option<(PathBuf, Vec<u8>)>,
}

impl Walk {
    fn step(&mut self, options: &ScanOptions, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Scanned> {
        if let Some((absolute, path)) = self.ahead.take()
            && let Err(error) = self.levels.enter(absolute.clone(), path.clone())
        {
            let error = Error::io(format!("reading {}", absolute.display()), error);
            return Some(Scanned::Problem { root: self.root, path, error });
        }
        loop {
            let level = self.levels.deepest()?;
            match level.next() {
                None => {
                    if let (Err(error), Some(level)) = (self.levels.leave(), self.levels.deepest()) {
                        let text = format!("coming back to {}", level.absolute().display());
                        let (root, path) = (self.root, level.path().to_vec());
                        return Some(Scanned::Problem { root, path, error: Error::io(text, error) });
                    }
                }
                Some((name, FileType::RegularFile)) if !wanted(&name) => {}
                Some((name, listed)) => return Some(self.entry(&name, listed, options)),
            }
        }
    }

    fn entry(&mut self, name: &[u8], listed: FileType, options: &ScanOptions) -> Scanned {
        let (root, way) = (self.root, Way(self.levels.beneath()));
        let Some(level) = self.levels.deepest() else { return Scanned::Excluded { root, path: Vec::new() } };
        let (path, absolute) = (level.path_of(name), level.absolute_of(name));
        let listed_as_directory = level.is_directory(name, listed);
        if options.excludes.excludes(&path, listed_as_directory) {
            return Scanned::Excluded { root, path };
        }
        let seen = level.status(name).and_then(|status| {
            Ok(Seen { metadata: status.into_metadata(|| level.target(name))?, device: status.device })
        });
        let error = match seen {
            Ok(Seen { metadata: None, .. }) => return Scanned::SkippedSocket { root, path },
            Ok(Seen { metadata: Some(metadata), device }) => {
                // A directory that was a file when its parent was listed would be stored as if it were empty.
                if (metadata.kind == FileKind::Directory) == listed_as_directory {
                    if listed_as_directory && !(options.one_file_system && device != self.root_device) {
                        self.ahead = Some((absolute.clone(), path.clone()));
                    }
                    return Scanned::Entry(Found { root, path, absolute, device, metadata, way });
                }
                Error::new(Kind::Failed, format!("{} changed its type while it was read", absolute.display()))
            }
            Err(error) => Error::io(format!("reading {}", absolute.display()), error),
        };
        Scanned::Problem { root, path, error }
    }
}

/// The root itself, and the walk below it if it is a directory.
fn begin_root(root: u32, path: &Path) -> (Scanned, Option<Walk>) {
    let (metadata, device) = match examine_root(path) {
        Ok(Seen { metadata: Some(metadata), device }) => (metadata, device),
        Ok(Seen { metadata: None, .. }) => return (Scanned::SkippedSocket { root, path: Vec::new() }, None),
        Err(error) => {
            let error = Error::io(format!("reading {}", path.display()), error);
            return (Scanned::Problem { root, path: Vec::new(), error }, None);
        }
    };
    let ahead = Some((path.to_path_buf(), Vec::new()));
    let walk = (metadata.kind == FileKind::Directory).then(|| Walk {
        root,
        root_device: device,
        levels: Levels::default(),
        ahead,
    });
    let absolute = path.to_path_buf();
    (Scanned::Entry(Found { root, path: Vec::new(), absolute, device, metadata, way: Way::default() }), walk)
}

/// What stands at a path; `metadata` is absent for a socket.
struct Seen {
    metadata: Option<Metadata>,
    device: u64,
}

/// Looks at a root without opening it. One that is a symbolic link to a directory is seen as that directory.
fn examine_root(path: &Path) -> io::Result<Seen> {
    let mut status = FileStatus::from_std(&std::fs::symlink_metadata(path)?);
    if status.is_symlink() {
        // A link that leads nowhere is stored as the link that it is.
        if let Ok(target) = std::fs::metadata(path).map(|m| FileStatus::from_std(&m))
            && target.is_directory()
        {
            status = target;
        }
    }
    let symlink_target = || std::fs::read_link(path).map(|target| target.into_os_string().into_vec());
    Ok(Seen { metadata: status.into_metadata(symlink_target)?, device: status.device })
}

/// Looks at what stands below a root without opening it.
fn examine_beneath(beneath: &Beneath, path: &[u8]) -> io::Result<Seen> {
    let (parent, name) = beneath.parent(path)?;
    let status = status_in(parent.as_fd(), name)?;
    let target = || target_in(parent.as_fd(), name);
    Ok(Seen { metadata: status.into_metadata(target)?, device: status.device })
}

/// Is there a table of open descriptors, in which this path is?
fn has_table(by_descriptor: &Path) -> bool {
    by_descriptor.parent().is_some_and(Path::exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::compare_paths;
    use proptest::prelude::*;
    use std::cmp::Ordering;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn entries(root: &Path, options: ScanOptions) -> Vec<Found> {
        scan(&[root.to_path_buf()], options)
            .filter_map(|scanned| match scanned {
                Scanned::Entry(found) => Some(found),
                Scanned::Excluded { .. } | Scanned::SkippedSocket { .. } => None,
                Scanned::Problem { error, .. } => panic!("{error}"),
            })
            .collect()
    }

    fn paths(root: &Path, options: ScanOptions) -> Vec<String> {
        entries(root, options).iter().map(|found| String::from_utf8_lossy(&found.path).into_owned()).collect()
    }

    fn components(path: &[u8]) -> Vec<&[u8]> {
        if path.is_empty() { Vec::new() } else { path.split(|&byte| byte == b'/').collect() }
    }

    /// Short names of bytes around `/`, so that they often share prefixes, and of bytes that are not text.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop::sample::select(vec![1, b'\n', b' ', b'+', b'-', b'.', b'0', b'a', b'b', 0x80, 0xff]);
        prop::collection::vec(byte, 1..4).prop_filter("not a name", |name| name != b"." && name != b"..")
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
    }

    proptest! {
        #[test]
        fn paths_compare_component_by_component(a in path(), b in path()) {
            prop_assert_eq!(compare_paths(&a, &b), components(&a).cmp(&components(&b)));
            prop_assert_eq!(compare_paths(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare_paths(b"", &a), Ordering::Less);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_walk_comes_in_the_order_of_compare_paths(files in prop::collection::vec(path(), 0..24)) {
            let dir = tempfile::tempdir().expect("temporary directory");
            let mut made = std::collections::BTreeSet::from([Vec::new()]);
            for file in files {
                let absolute = dir.path().join(OsStr::from_bytes(&file));
                // Some paths need a directory where another has put a file.
                let parent = absolute.parent().expect("has a parent");
                if fs::create_dir_all(parent).is_ok() && (absolute.is_dir() || fs::write(&absolute, b"x").is_ok()) {
                    made.insert(file);
                }
            }
            let found = entries(dir.path(), ScanOptions::default());
            prop_assert!(found.windows(2).all(|pair| compare_paths(&pair[0].path, &pair[1].path).is_lt()));
            for path in made {
                prop_assert!(found.iter().any(|found| found.path == path));
            }
        }
    }

    #[test]
    fn a_slash_sorts_before_every_byte_of_a_name() {
        for (a, b) in [(&b"a/b"[..], &b"a-b"[..]), (b"a", b"a/b"), (b"a/b", b"a\x01"), (b"", b"a"), (b"a/z", b"a.b")] {
            assert_eq!(compare_paths(a, b), Ordering::Less);
            assert_eq!(compare_paths(b, a), Ordering::Greater);
        }
    }

    #[test]
    fn links_pipes_and_sockets_are_seen_and_never_opened() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"12345").expect("write");
        fs::hard_link(at("file"), at("hard")).expect("link");
        symlink("file/../nowhere", at("link")).expect("symlink");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).expect("fifo");
        let _listener = UnixListener::bind(at("socket")).expect("socket");
        let scanned: Vec<_> = scan(&[dir.path().to_path_buf()], ScanOptions::default()).collect();
        assert!(matches!(&scanned[5], Scanned::SkippedSocket { path, .. } if path == b"socket"));
        let found = entries(dir.path(), ScanOptions::default());
        assert_eq!(found.len(), 5);
        assert_eq!(found[0].metadata.kind, FileKind::Directory);
        assert_eq!((found[1].metadata.size, &found[1].metadata.kind), (5, &FileKind::Regular));
        assert!(found[1].metadata.link_group.is_some());
        assert_eq!(found[1].metadata.link_group, found[2].metadata.link_group);
        assert_eq!(found[3].metadata.kind, FileKind::Symlink { target: b"file/../nowhere".to_vec() });
        assert_eq!(found[4].metadata.kind, FileKind::Fifo);
    }

    #[test]
    fn excluded_directories_are_not_descended_and_their_siblings_are_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for path in ["a/x", "cache/y", "cache.tmp/z", "d/cache/w", "d/v"] {
            fs::create_dir_all(dir.path().join(path)).expect("mkdir");
        }
        let excludes = Excludes::new(&["cache".to_owned(), "*.tmp".to_owned()], &[]).expect("valid");
        for one_file_system in [false, true] {
            let options = ScanOptions { excludes: excludes.clone(), one_file_system };
            assert_eq!(paths(dir.path(), options.clone()), ["", "a", "a/x", "d", "d/v"]);
            let excluded = scan(&[dir.path().to_path_buf()], options)
                .filter(|scanned| matches!(scanned, Scanned::Excluded { .. }))
                .count();
            assert_eq!(excluded, 3);
        }
    }

    #[test]
    fn roots_are_directories_files_or_links_to_directories() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("real/sub")).expect("mkdir");
        fs::write(at("single"), b"x").expect("write");
        symlink("real", at("to_dir")).expect("symlink");
        symlink("single", at("to_file")).expect("symlink");
        symlink("absent", at("to_nothing")).expect("symlink");
        let names = ["to_dir", "single", "to_file", "to_nothing", "absent", "real/"];
        let roots: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
        let mut seen = Vec::new();
        for scanned in scan(&roots, ScanOptions::default()) {
            match scanned {
                Scanned::Entry(found) => {
                    let again = found.look_again().expect("still there");
                    assert_eq!(again.metadata, found.metadata);
                    found.read_xattrs().expect("readable");
                    seen.push((found.root, String::from_utf8(found.path).expect("text"), found.metadata.kind));
                }
                Scanned::Problem { root, error, .. } => {
                    assert_eq!((root, error.kind()), (4, Kind::Missing));
                }
                other => panic!("{other:?}"),
            }
        }
        let link = |target: &str| FileKind::Symlink { target: target.as_bytes().to_vec() };
        let expected = [
            (0, "", FileKind::Directory),
            (0, "sub", FileKind::Directory),
            (1, "", FileKind::Regular),
            (2, "", link("single")),
            (3, "", link("absent")),
            (5, "", FileKind::Directory),
            (5, "sub", FileKind::Directory),
        ];
        assert_eq!(seen, expected.map(|(root, path, kind)| (root, path.to_owned(), kind)));
    }

    #[test]
    fn what_vanishes_during_the_walk_is_reported_and_the_walk_goes_on() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for path in ["a/x", "b/y", "c/z"] {
            fs::create_dir_all(dir.path().join(path)).expect("mkdir");
        }
        fs::write(dir.path().join("d"), b"").expect("write");
        let mut scanned = scan(&[dir.path().to_path_buf()], ScanOptions::default());
        let mut next_path = || match scanned.next() {
            Some(Scanned::Entry(found)) => format!("+{}", String::from_utf8_lossy(&found.path)),
            Some(Scanned::Problem { path, .. }) => format!("!{}", String::from_utf8_lossy(&path)),
            other => format!("{other:?}"),
        };
        assert_eq!([next_path(), next_path()], ["+", "+a"]);
        fs::remove_dir_all(dir.path().join("b")).expect("remove");
        fs::remove_dir_all(dir.path().join("c")).expect("remove");
        fs::write(dir.path().join("c"), b"").expect("write");
        fs::remove_file(dir.path().join("d")).expect("remove");
        fs::create_dir(dir.path().join("d")).expect("mkdir");
        assert_eq!([next_path(), next_path(), next_path(), next_path()], ["+a/x", "!b", "!c", "!d"]);
        assert_eq!(next_path(), "None");
    }

    #[test]
    fn another_file_system_is_an_empty_directory_when_asked_for() {
        // A part of a real tree: nearly every system mounts something below /dev or /proc.
        let mounts = |one_file_system| {
            scan(&[PathBuf::from("/dev")], ScanOptions { one_file_system, ..ScanOptions::default() })
                .filter_map(|scanned| match scanned {
                    Scanned::Entry(found) => Some((found.path, found.device)),
                    _ => None,
                })
                .take(10_000)
                .collect::<Vec<_>>()
        };
        let kept = mounts(true);
        let home = kept[0].1;
        for (path, _) in kept.iter().filter(|(_, device)| *device != home) {
            let inside = [path.as_slice(), b"/"].concat();
            assert!(!kept.iter().any(|(other, _)| other.starts_with(&inside)), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn leaving_out_a_mount_point_keeps_what_stands_beside_it() {
        // Pseudo-terminals are a file system of their own on every Linux; elsewhere nothing is left to test.
        let excludes = Excludes::new(&["/pts".to_owned()], &[]).expect("valid");
        let names = |options: ScanOptions| {
            scan(&[PathBuf::from("/dev")], options)
                .filter_map(|scanned| match scanned {
                    Scanned::Entry(found) if !found.path.contains(&b'/') => Some(found.path),
                    _ => None,
                })
                .filter(|path| path != b"pts")
                .collect::<Vec<_>>()
        };
        let all = names(ScanOptions { one_file_system: true, ..ScanOptions::default() });
        assert_eq!(names(ScanOptions { excludes: excludes.clone(), one_file_system: true }), all);
        assert_eq!(names(ScanOptions { excludes, one_file_system: false }), all);
    }

    #[test]
    fn an_unreadable_directory_is_an_entry_and_then_a_problem() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).expect("mkdir");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("chmod");
        if fs::read_dir(&closed).is_ok() {
            // The superuser may read everything.
            return;
        }
        let scanned: Vec<_> = scan(&[dir.path().to_path_buf()], ScanOptions::default()).collect();
        assert!(matches!(&scanned[1], Scanned::Entry(found) if found.path == b"closed"));
        assert!(matches!(&scanned[2], Scanned::Problem { path, error, .. }
            if path == b"closed" && error.kind() == Kind::Denied));
    }

    #[test]
    fn a_scan_can_be_handed_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Scan>();
    }
}
