//! Resolves paths below one directory, whatever is planted there.
//!
//! A path comes from a repository that may be hostile, and the directory may hold symbolic links that lead elsewhere.
//! Guarantees: a path that is absolute or holds an empty component, `.`, `..` or NUL is refused; no symbolic link below
//! the root is ever followed. Where `openat2` exists the kernel resolves a whole path at once; elsewhere each component
//! is opened for itself without following. Somebody who may rename directories below the root while it is written can
//! still move what is being written: that is within their own rights.

use crate::error::{Error, Result};
use crate::sabotage::is_planted;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptors of directories kept open: restores come in path order, so few are in use at a time.
const DIRECTORIES_KEPT: usize = 64;
/// The longest path given to the kernel in one piece, below its limit of 4096 with the end mark.
#[cfg(target_os = "linux")]
pub(super) const PATH_BYTES_MAX: usize = 4000;
/// How often the kernel is asked again when a rename elsewhere interfered with the check that a path stays below.
#[cfg(target_os = "linux")]
const ATTEMPTS_MAX: u32 = 64;

/// How a descriptor that only names a place is opened; on Linux without permission to read.
#[cfg(target_os = "linux")]
pub(super) const LOCATE: OFlags = OFlags::PATH;
/// How a descriptor that only names a place is opened.
#[cfg(not(target_os = "linux"))]
pub(super) const LOCATE: OFlags = OFlags::RDONLY;

/// How paths are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    /// By the kernel, in one call.
    #[cfg(target_os = "linux")]
    WholePath,
    /// One component after the other.
    ComponentWise,
}

/// The directory below which everything stays.
#[derive(Debug)]
pub(super) struct Confined {
    root: Arc<OwnedFd>,
    resolver: Resolver,
    /// Most recently used last.
    kept: Mutex<Vec<(Vec<u8>, Arc<OwnedFd>)>>,
}

/// A name in an open directory: one component, to be used without following.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) parent: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
}

impl Confined {
    /// Everything below `root`, an open directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        let resolver = best_resolver(&root);
        Confined::with_resolver(root, resolver)
    }

    pub(super) fn with_resolver(root: OwnedFd, resolver: Resolver) -> Self {
        Confined { root: Arc::new(root), resolver, kept: Mutex::new(Vec::new()) }
    }

    /// The directory itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The last component of `path` in its open parent. [`Errno::NOENT`] if the parent does not exist; [`Errno::LOOP`]
    /// or [`Errno::NOTDIR`] if something else than a directory stands in the way.
    pub(super) fn place(&self, path: &[u8]) -> Result<rustix::io::Result<Place>> {
        check_path(path)?;
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        Ok(self.kept_directory(parent).map(|parent| Place { parent, name: name.to_vec() }))
    }

    /// Opens the directory at `path`, the root if it is empty, with `flags`.
    pub(super) fn open_directory(&self, path: &[u8], flags: OFlags) -> Result<rustix::io::Result<OwnedFd>> {
        if path.is_empty() {
            return Ok(open_name(&self.root, b".", flags | OFlags::DIRECTORY));
        }
        check_path(path)?;
        Ok(self.resolve(path, flags))
    }

    /// Forgets descriptors of `path` and of everything below it, before it is removed.
    pub(super) fn forget(&self, path: &[u8]) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(kept, _)| kept.strip_prefix(path).is_none_or(|rest| !rest.is_empty() && !rest.starts_with(b"/")));
    }

    fn kept_directory(&self, path: &[u8]) -> rustix::io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        // A panic elsewhere leaves the list whole: it is only changed by single calls.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = kept.iter().rposition(|(known, _)| known == path) {
            let entry = kept.remove(index);
            let descriptor = Arc::clone(&entry.1);
            kept.push(entry);
            return Ok(descriptor);
        }
        let descriptor = Arc::new(self.resolve(path, LOCATE)?);
        if kept.len() >= DIRECTORIES_KEPT {
            kept.remove(0);
        }
        kept.push((path.to_vec(), Arc::clone(&descriptor)));
        Ok(descriptor)
    }

    fn resolve(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match self.resolver {
            #[cfg(target_os = "linux")]
            Resolver::WholePath if path.len() <= PATH_BYTES_MAX => {
                whole_path(&self.root, path, flags | OFlags::DIRECTORY)
            }
            _ => component_wise(&self.root, path, flags | OFlags::DIRECTORY),
        }
    }
}

/// Refuses a path that is not plainly relative.
pub(super) fn check_path(path: &[u8]) -> Result<()> {
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    if path.split(|&byte| byte == b'/').all(plain) {
        return Ok(());
    }
    Err(Error::damaged(format!("the path \"{}\" does not stay below the target", path.escape_ascii())))
}

/// Opens one name of a directory without following a symbolic link.
pub(super) fn open_name(directory: &OwnedFd, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    create_name(directory, name, flags, Mode::empty())
}

/// Like [`open_name`], with the mode of a file that is created.
pub(super) fn create_name(directory: &OwnedFd, name: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens what stands at `path` below `root` with `flags`, no directory on the way being a symbolic link, nor what is opened.
pub(super) fn component_wise(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut names = path.split(|&byte| byte == b'/').peekable();
    let mut directory: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let flags = if names.peek().is_some() { LOCATE | OFlags::DIRECTORY } else { flags };
        directory = Some(open_name(directory.as_ref().unwrap_or(root), name, flags)?);
    }
    directory.ok_or(Errno::NOENT)
}

#[cfg(target_os = "linux")]
fn whole_path(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let resolve = if is_planted("links-of-target-followed") { ResolveFlags::empty() } else { resolve };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS_MAX {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
    component_wise(root, path, flags)
}

/// Opens what stands at `path`, absolute or below `root`, with `flags`; a symbolic link anywhere in it is an error.
#[cfg(target_os = "linux")]
pub(super) fn no_link(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let resolve = if is_planted("links-of-source-followed") { ResolveFlags::empty() } else { resolve };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// `openat2` is absent before Linux 5.6, and some containers forbid what they do not know.
#[cfg(target_os = "linux")]
fn best_resolver(root: &OwnedFd) -> Resolver {
    match whole_path(root, b".", LOCATE | OFlags::DIRECTORY) {
        Ok(_) => Resolver::WholePath,
        Err(_) => Resolver::ComponentWise,
    }
}

#[cfg(not(target_os = "linux"))]
fn best_resolver(_root: &OwnedFd) -> Resolver {
    Resolver::ComponentWise
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn both(root: &std::path::Path) -> Vec<Confined> {
        let open = || OwnedFd::from(File::open(root).expect("open"));
        vec![Confined::new(open()), Confined::with_resolver(open(), Resolver::ComponentWise)]
    }

    #[test]
    fn paths_that_leave_or_are_ambiguous_are_refused() {
        for path in [&b""[..], b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b", b"a\0b", b"./a"] {
            assert!(check_path(path).is_err(), "{}", path.escape_ascii());
        }
        for path in [&b"a"[..], b"a/b", b"...", b"a/..b", b".a/b.", b"\xff/\n", b"a\\..\\b"] {
            assert!(check_path(path).is_ok(), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn links_below_the_root_are_not_followed() {
        let outside = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(outside.path().join("sub")).expect("mkdir");
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(dir.path().join("real/sub")).expect("mkdir");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).expect("symlink");
        std::os::unix::fs::symlink("real", dir.path().join("in")).expect("symlink");
        std::fs::write(dir.path().join("file"), b"").expect("write");
        for confined in both(dir.path()) {
            assert!(confined.place(b"real/sub/x").expect("plain").is_ok());
            for path in [&b"out/x"[..], b"in/x", b"out/sub/x", b"in/sub/x", b"file/x"] {
                let error = confined.place(path).expect("plain").expect_err("in the way");
                assert!(matches!(error, Errno::LOOP | Errno::NOTDIR), "{error}");
                assert!(confined.open_directory(&path[..path.len() - 2], LOCATE).expect("plain").is_err());
            }
            assert_eq!(confined.place(b"absent/x").expect("plain").expect_err("absent"), Errno::NOENT);
            assert!(confined.place(b"../x").is_err());
        }
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_resolved_in_pieces() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let name = [b'n'; 200];
        let path = vec![&name[..]; 40].join(&b'/');
        for confined in both(dir.path()) {
            for end in (0..40).map(|depth| depth * 201 + 200) {
                let place = confined.place(&path[..end]).expect("plain").expect("parent exists");
                match rustix::fs::mkdirat(&place.parent, &place.name[..], Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(confined.place(&[&path[..], b"/x"].concat()).expect("plain").is_ok());
        }
    }

    #[test]
    fn few_descriptors_are_kept_and_removed_directories_are_forgotten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for index in 0..3 * DIRECTORIES_KEPT {
            std::fs::create_dir(dir.path().join(index.to_string())).expect("mkdir");
        }
        let confined = &both(dir.path())[0];
        for index in 0..3 * DIRECTORIES_KEPT {
            confined.place(format!("{index}/x").as_bytes()).expect("plain").expect("parent exists");
        }
        let kept = || confined.kept.lock().expect("not poisoned").iter().map(|(p, _)| p.clone()).collect::<Vec<_>>();
        assert_eq!(kept().len(), DIRECTORIES_KEPT);
        assert_eq!(kept().last().expect("not empty"), b"191");
        confined.forget(b"19");
        assert_eq!(kept().last().expect("not empty"), b"191");
        confined.forget(b"191");
        assert_eq!(kept().last().expect("not empty"), b"190");
    }
}
