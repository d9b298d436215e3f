//! The directories that a walk is in, from its root down: each is listed once, and what is in it is looked at through its
//! own descriptor, so that no path is resolved again and again.
//!
//! Names come in the order of their bytes. No symbolic link is followed, but one that leads to the root itself. In memory are
//! the names of one directory for each level, and a bounded number of descriptors: a level far above the deepest one is opened
//! again when the walk comes back to it, and lost if it is another directory then.

use super::beneath::{Beneath, identity};
use super::stat::FileStatus;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Levels, from the deepest up, that keep their descriptor.
const DESCRIPTORS_MAX: usize = 16;
/// How a directory is opened.
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Levels {
    levels: Vec<Level>,
    /// Once the root is entered.
    beneath: Option<Arc<Beneath>>,
}

/// One directory.
#[derive(Debug)]
pub(super) struct Level {
    absolute: PathBuf,
    /// Relative to the root.
    path: Vec<u8>,
    directory: Held,
    names: std::vec::IntoIter<(Vec<u8>, FileType)>,
}

/// The descriptor of a directory, or what it was.
#[derive(Debug)]
enum Held {
    Open(Dir),
    Closed { identity: (u64, u64) },
}

impl Levels {
    /// Lists the directory at `path`, which is `absolute`: the root, or one that stands in the deepest level.
    pub(super) fn enter(&mut self, absolute: PathBuf, path: Vec<u8>) -> io::Result<()> {
        let descriptor = match self.levels.last() {
            Some(above) => {
                let (above, name) = (above.descriptor()?, absolute.file_name().unwrap_or_default());
                retrying(|| rustix::fs::openat(above, name, LISTED | OFlags::NOFOLLOW, Mode::empty()))?
            }
            None => {
                let root = retrying(|| rustix::fs::openat(CWD, &absolute, LISTED, Mode::empty()))?;
                self.beneath = Some(Arc::new(Beneath::new(&absolute, root.as_fd())));
                root
            }
        };
        let mut directory = Dir::new(descriptor)?;
        let mut names = Vec::new();
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((name.to_vec(), entry.file_type()));
            }
        }
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(far_above) = self.levels.len().checked_sub(DESCRIPTORS_MAX).and_then(|at| self.levels.get_mut(at)) {
            far_above.close()?;
        }
        self.levels.push(Level { absolute, path, directory: Held::Open(directory), names: names.into_iter() });
        Ok(())
    }

    /// The deepest level; none once everything has come.
    pub(super) fn deepest(&mut self) -> Option<&mut Level> {
        self.levels.last_mut()
    }

    /// Leaves the deepest level. An error is about the one above it: it cannot be come back to, so nothing more comes of it.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        self.levels.pop();
        let (Some(level), Some(beneath)) = (self.levels.last_mut(), &self.beneath) else { return Ok(()) };
        let reopened = level.reopen(beneath);
        if reopened.is_err() {
            level.names = Vec::new().into_iter();
        }
        reopened
    }

    /// By which what stands in the levels is come back to.
    pub(super) fn beneath(&self) -> Option<Arc<Beneath>> {
        self.beneath.clone()
    }
}

impl Level {
    /// Relative to the root.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Where it is.
    pub(super) fn absolute(&self) -> &Path {
        &self.absolute
    }

    /// The next name, and what the listing says it is.
    pub(super) fn next(&mut self) -> Option<(Vec<u8>, FileType)> {
        self.names.next()
    }

    /// The path of a name in it, relative to the root.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Where a name in it is.
    pub(super) fn absolute_of(&self, name: &[u8]) -> PathBuf {
        let above = self.absolute.as_os_str().as_bytes();
        let mut absolute = Vec::with_capacity(above.len() + 1 + name.len());
        absolute.extend_from_slice(above);
        if !above.ends_with(b"/") {
            absolute.push(b'/');
        }
        absolute.extend_from_slice(name);
        PathBuf::from(std::ffi::OsString::from_vec(absolute))
    }

    fn descriptor(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        match &self.directory {
            Held::Open(directory) => directory.fd(),
            Held::Closed { .. } => Err(Errno::BADF),
        }
    }

    fn close(&mut self) -> rustix::io::Result<()> {
        if let Held::Open(directory) = &self.directory {
            self.directory = Held::Closed { identity: identity(directory.fd()?)? };
        }
        Ok(())
    }

    /// Opens it again, if something is left to look at in it.
    fn reopen(&mut self, beneath: &Beneath) -> io::Result<()> {
        let Held::Closed { identity: before } = self.directory else { return Ok(()) };
        if self.names.as_slice().is_empty() {
            return Ok(());
        }
        let descriptor = beneath.open(&self.path, LISTED)?;
        if identity(descriptor.as_fd())? != before {
            return Err(io::Error::other("another directory was put in its place"));
        }
        self.directory = Held::Open(Dir::new(descriptor)?);
        Ok(())
    }

    /// What stands under a name in it, a symbolic link itself.
    pub(super) fn status(&self, name: &[u8]) -> io::Result<FileStatus> {
        Ok(status_in(self.descriptor()?, name)?)
    }

    /// Where a symbolic link in it leads.
    pub(super) fn target(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(target_in(self.descriptor()?, name)?)
    }

    /// True if what stands under a name in it is a directory; not every listing tells types.
    pub(super) fn is_directory(&self, name: &[u8], listed: FileType) -> bool {
        match listed {
            FileType::Unknown => self.status(name).is_ok_and(|status| status.is_directory()),
            known => known == FileType::Directory,
        }
    }
}

/// What stands under a name in an open directory, a symbolic link itself.
pub(super) fn status_in(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<FileStatus> {
    let stat = retrying(|| rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))?;
    Ok(FileStatus::from_rustix(&stat))
}

/// Where a symbolic link in an open directory leads.
pub(super) fn target_in(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes())
}

fn retrying<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn levels_far_above_the_deepest_one_go_on_without_their_descriptor() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let depth = 3 * DESCRIPTORS_MAX;
        let (mut levels, mut absolute, mut path) = (Levels::default(), dir.path().to_path_buf(), Vec::new());
        for _ in 0..depth {
            std::fs::write(absolute.join("z"), b"12345").expect("write");
            std::os::unix::fs::symlink("z", absolute.join("y")).expect("symlink");
            std::fs::create_dir(absolute.join("d")).expect("mkdir");
            levels.enter(absolute.clone(), path.clone()).expect("enter");
            let level = levels.deepest().expect("entered");
            assert_eq!(level.next(), Some((b"d".to_vec(), FileType::Directory)));
            (absolute, path) = (level.absolute_of(b"d"), level.path_of(b"d"));
            assert_eq!(absolute, dir.path().join(OsStr::from_bytes(&path)));
        }
        let is_open = |level: &&Level| matches!(level.directory, Held::Open(_));
        assert_eq!(levels.levels.iter().filter(is_open).count(), DESCRIPTORS_MAX);
        for _ in 0..depth {
            let level = levels.deepest().expect("not left");
            assert_eq!(level.next().map(|(name, _)| name), Some(b"y".to_vec()));
            assert_eq!(level.target(b"y").expect("a link"), b"z");
            assert_eq!(level.next().map(|(name, _)| name), Some(b"z".to_vec()));
            assert_eq!(level.status(b"z").expect("there").size, 5);
            assert_eq!(level.next(), None);
            levels.leave().expect("nothing was moved");
        }
        assert!(levels.deepest().is_none());
    }

    /// Enters a root and more levels below it than keep a descriptor, in each of which `z` comes after the next level.
    fn enter_deep(root: &Path) -> Levels {
        let (mut levels, mut absolute, mut path) = (Levels::default(), root.to_path_buf(), Vec::new());
        for _ in 0..=DESCRIPTORS_MAX + 1 {
            std::fs::write(absolute.join("z"), b"mine").expect("write");
            std::fs::create_dir(absolute.join("d")).expect("mkdir");
            levels.enter(absolute.clone(), path.clone()).expect("enter");
            let level = levels.deepest().expect("entered");
            assert_eq!(level.next().map(|(name, _)| name), Some(b"d".to_vec()));
            (absolute, path) = (level.absolute_of(b"d"), level.path_of(b"d"));
        }
        levels
    }

    #[test]
    fn a_walk_does_not_come_back_by_a_link_that_was_put_in_the_place_of_a_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (root, secret) = (dir.path().join("root"), dir.path().join("secret"));
        for in_place in ["a link", "a directory", "nothing"] {
            std::fs::create_dir_all(&root).expect("mkdir");
            std::fs::create_dir_all(&secret).expect("mkdir");
            std::fs::write(secret.join("z"), b"not theirs").expect("write");
            let mut levels = enter_deep(&root);
            std::fs::rename(root.join("d"), root.join("moved")).expect("rename");
            match in_place {
                "a link" => std::os::unix::fs::symlink(&secret, root.join("d")).expect("symlink"),
                "a directory" => std::fs::rename(&secret, root.join("d")).expect("rename"),
                _ => {}
            }
            let mut lost = Vec::new();
            while let Some(level) = levels.deepest() {
                while let Some((name, _)) = level.next() {
                    assert_eq!(level.status(&name).expect("there").size, 4, "{in_place}");
                }
                if levels.leave().is_err() {
                    lost.push(levels.deepest().expect("left").path().to_vec());
                }
            }
            // The root itself has not been moved.
            assert_eq!(lost, [b"d"], "{in_place}");
            std::fs::remove_dir_all(&root).expect("remove");
        }
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_not_entered() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("secret")).expect("mkdir");
        std::os::unix::fs::symlink("secret", dir.path().join("link")).expect("symlink");
        let mut levels = Levels::default();
        levels.enter(dir.path().to_path_buf(), Vec::new()).expect("enter");
        assert!(levels.enter(dir.path().join("link"), b"link".to_vec()).is_err());
        assert!(levels.enter(dir.path().join("secret"), b"secret".to_vec()).is_ok());
    }
}
