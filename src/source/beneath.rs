//! Comes back to what a walk has found, by its path below the root of the walk and by no symbolic link.
//!
//! Between the walk and the reading somebody may put a link in the place of a directory: a path that is resolved as usual then
//! leads anywhere. Guarantees: below the root no link is followed, so what is reached stands beneath the root, if nothing
//! was mounted there. The root is the directory that the walk has entered; links that lead to it are those that the user named.
//!
//! No descriptor is kept: a run has as many roots as it likes. One call opens a file where the kernel has `openat2`; elsewhere
//! each component is opened for itself.
//!
//! Deliberately not here: whether what is reached is still what was found.

use super::confined::{LOCATE, PATH_BYTES_MAX, Resolver, component_wise, no_link};
use super::stat::FileStatus;
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub(super) struct Beneath {
    /// Holds no symbolic link if whole paths are resolved at once.
    root: PathBuf,
    resolver: Resolver,
}

impl Beneath {
    /// Beneath the directory at `named`, which is open as `root`.
    pub(super) fn new(named: &Path, root: BorrowedFd<'_>) -> Self {
        by_kernel(named, root)
            .unwrap_or_else(|| Beneath { root: named.to_path_buf(), resolver: Resolver::ComponentWise })
    }

    /// Opens what stands at `path`, relative to the root, with `flags`; a symbolic link is an error.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if path.is_empty() {
            return self.open_root(flags);
        }
        let whole_bytes = self.root.as_os_str().len() + 1 + path.len();
        match self.resolver {
            #[cfg(target_os = "linux")]
            Resolver::WholePath if whole_bytes <= PATH_BYTES_MAX => {
                no_link(CWD, self.root.join(OsStr::from_bytes(path)).as_os_str().as_bytes(), flags)
            }
            _ => component_wise(&self.open_root(LOCATE)?, path, flags),
        }
    }

    /// The open directory in which `path` stands, to ask about its last component there, and that component.
    pub(super) fn parent<'a>(&self, path: &'a [u8]) -> rustix::io::Result<(OwnedFd, &'a [u8])> {
        let directory = LOCATE | OFlags::DIRECTORY;
        match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => Ok((self.open(&path[..slash], directory)?, &path[slash + 1..])),
            None => Ok((self.open_root(LOCATE)?, path)),
        }
    }

    fn open_root(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.resolver {
            #[cfg(target_os = "linux")]
            Resolver::WholePath => no_link(CWD, self.root.as_os_str().as_bytes(), flags),
            Resolver::ComponentWise => rustix::fs::openat(CWD, &self.root, flags, Mode::empty()),
        }
    }
}

/// None if the kernel cannot do it, or the root has no path without links: one that is reached by way of another process
/// may lie in a tree of mounts that is not ours.
#[cfg(target_os = "linux")]
fn by_kernel(named: &Path, root: BorrowedFd<'_>) -> Option<Beneath> {
    let beneath = Beneath { root: named.canonicalize().ok()?, resolver: Resolver::WholePath };
    (identity(beneath.open_root(LOCATE).ok()?.as_fd()).ok()? == identity(root).ok()?).then_some(beneath)
}

#[cfg(not(target_os = "linux"))]
fn by_kernel(_named: &Path, _root: BorrowedFd<'_>) -> Option<Beneath> {
    None
}

/// What tells an open directory from every other one.
pub(super) fn identity(directory: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let status = FileStatus::from_rustix(&rustix::fs::fstat(directory)?);
    Ok((status.device, status.inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    fn both(named: &Path) -> [Beneath; 2] {
        let root = File::open(named).expect("open");
        let best = Beneath::new(named, root.as_fd());
        #[cfg(target_os = "linux")]
        assert_eq!(best.resolver, Resolver::WholePath);
        [best, Beneath { root: named.to_path_buf(), resolver: Resolver::ComponentWise }]
    }

    #[test]
    fn no_link_below_the_root_is_followed_though_one_may_lead_to_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("real/in/deep")).expect("mkdir");
        fs::write(dir.path().join("real/in/deep/f"), b"mine").expect("write");
        symlink("real", dir.path().join("named")).expect("symlink");
        symlink("in", dir.path().join("real/link")).expect("symlink");
        symlink("f", dir.path().join("real/in/deep/link")).expect("symlink");
        for named in ["real", "named"] {
            for beneath in both(&dir.path().join(named)) {
                let opened = beneath.open(b"in/deep/f", OFlags::RDONLY).expect("plain");
                assert_eq!(std::io::read_to_string(File::from(opened)).expect("read"), "mine");
                let (parent, name) = beneath.parent(b"in/deep").expect("plain");
                assert_eq!(name, b"deep");
                let in_parent = File::open(dir.path().join("real/in")).expect("open");
                assert_eq!(identity(parent.as_fd()), identity(in_parent.as_fd()));
                assert_eq!(beneath.parent(b"in").expect("the root").1, b"in");
                for path in [&b"link/deep/f"[..], b"in/deep/link", b"link"] {
                    let error = beneath.open(path, OFlags::RDONLY).expect_err("a link");
                    assert!(matches!(error, Errno::LOOP | Errno::NOTDIR), "{error}");
                }
                assert!(beneath.parent(b"link/deep").is_err());
                assert_eq!(beneath.open(b"absent/f", OFlags::RDONLY).expect_err("absent"), Errno::NOENT);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_root_in_whose_place_a_link_was_put_is_not_entered_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("root/in")).expect("mkdir");
        let [beneath, _] = both(&dir.path().join("root"));
        fs::rename(dir.path().join("root"), dir.path().join("moved")).expect("rename");
        symlink("moved", dir.path().join("root")).expect("symlink");
        assert_eq!(beneath.open(b"in", LOCATE).expect_err("a link"), Errno::LOOP);
        assert_eq!(beneath.parent(b"in").expect_err("a link, and no directory"), Errno::NOTDIR);
    }
}
