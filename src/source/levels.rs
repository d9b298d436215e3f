//! The directories that a walk is in, from its root down: each is listed once, and what is in it is looked at through its
//! own descriptor, so that no path is resolved again and again.
//!
//! Names come in the order of their bytes. No symbolic link is followed, but one that leads to the root itself. In memory are
//! the names of one directory for each level, and a bounded number of descriptors: far above the deepest level, paths serve.

use super::stat::FileStatus;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Levels, from the deepest up, that keep their descriptor.
const DESCRIPTORS_MAX: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Levels(Vec<Level>);

/// One directory.
#[derive(Debug)]
pub(super) struct Level {
    absolute: PathBuf,
    /// Relative to the root.
    path: Vec<u8>,
    directory: Option<Dir>,
    names: std::vec::IntoIter<(Vec<u8>, FileType)>,
}

impl Levels {
    /// Lists the directory at `path`, which is `absolute`: the root, or one that stands in the deepest level.
    pub(super) fn enter(&mut self, absolute: PathBuf, path: Vec<u8>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = match (self.0.last(), absolute.file_name()) {
            (Some(Level { directory: Some(above), .. }), Some(name)) => {
                let above = above.fd()?;
                retrying(|| rustix::fs::openat(above, name, flags | OFlags::NOFOLLOW, Mode::empty()))
            }
            (Some(_), _) => retrying(|| rustix::fs::openat(CWD, &absolute, flags | OFlags::NOFOLLOW, Mode::empty())),
            (None, _) => retrying(|| rustix::fs::openat(CWD, &absolute, flags, Mode::empty())),
        }?;
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
        if let Some(far_above) = self.0.len().checked_sub(DESCRIPTORS_MAX).and_then(|at| self.0.get_mut(at)) {
            far_above.directory = None;
        }
        self.0.push(Level { absolute, path, directory: Some(directory), names: names.into_iter() });
        Ok(())
    }

    /// The deepest level; none once everything has come.
    pub(super) fn deepest(&mut self) -> Option<&mut Level> {
        self.0.last_mut()
    }

    /// Leaves the deepest level.
    pub(super) fn leave(&mut self) {
        self.0.pop();
    }
}

impl Level {
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

    fn descriptor(&self) -> rustix::io::Result<Option<BorrowedFd<'_>>> {
        self.directory.as_ref().map(Dir::fd).transpose()
    }

    /// What stands under a name in it, a symbolic link itself.
    pub(super) fn status(&self, name: &[u8]) -> io::Result<FileStatus> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = match self.descriptor()? {
            Some(descriptor) => retrying(|| rustix::fs::statat(descriptor, name, flags)),
            None => retrying(|| rustix::fs::statat(CWD, self.absolute_of(name), flags)),
        };
        Ok(FileStatus::from_rustix(&stat?))
    }

    /// Where a symbolic link in it leads.
    pub(super) fn target(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let target = match self.descriptor()? {
            Some(descriptor) => rustix::fs::readlinkat(descriptor, name, Vec::new()),
            None => rustix::fs::readlinkat(CWD, self.absolute_of(name), Vec::new()),
        };
        Ok(target?.into_bytes())
    }
}

/// The type by a listing that does not tell types.
pub(super) fn is_directory(absolute: &Path, listed: FileType) -> bool {
    match listed {
        FileType::Unknown => std::fs::symlink_metadata(absolute).is_ok_and(|metadata| metadata.is_dir()),
        known => known == FileType::Directory,
    }
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
        assert_eq!(levels.0.iter().filter(|level| level.directory.is_some()).count(), DESCRIPTORS_MAX);
        for _ in 0..depth {
            let level = levels.deepest().expect("not left");
            assert_eq!(level.next().map(|(name, _)| name), Some(b"y".to_vec()));
            assert_eq!(level.target(b"y").expect("a link"), b"z");
            assert_eq!(level.next().map(|(name, _)| name), Some(b"z".to_vec()));
            assert_eq!(level.status(b"z").expect("there").size, 5);
            assert_eq!(level.next(), None);
            levels.leave();
        }
        assert!(levels.deepest().is_none());
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
