//! Removes an entry with everything below it, without leaving the directory it is in.
//!
//! Symbolic links are removed, never followed; what is mounted below is left alone, with an error. Depth costs neither
//! stack nor descriptors: a tree deeper than paths can be is removed as well.

use super::confined::{LOCATE, open_name};
use super::stat::FileStatus;
use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Levels of a tree whose descriptors are kept open.
const LEVELS_OPEN: usize = 32;

/// Removes `name` in `parent`; nothing there is fine. [`Errno::XDEV`] tells of a mount point.
pub(super) fn remove_entry(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match unlink(parent, name) {
        Ok(()) => return Ok(()),
        // The second is what some systems say of a directory, and Linux of a file that may not be removed.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let status = FileStatus::from_rustix(&rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if !status.is_directory() {
        return Err(Errno::PERM);
    }
    let mut descent = Descent { parent, device: status.device, levels: Vec::new() };
    descent.enter(name.to_vec())?;
    while let Some(level) = descent.levels.last_mut() {
        match level.directories.pop() {
            Some(name) => descent.enter(name)?,
            None => descent.leave()?,
        }
    }
    Ok(())
}

/// The names in an open directory, without `.` and `..`, each with its type as far as the file system tells.
pub(super) fn read_names(directory: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

struct Descent<'a> {
    parent: &'a OwnedFd,
    device: u64,
    levels: Vec<Level>,
}

struct Level {
    name: Vec<u8>,
    /// Closed while the descent is far below.
    descriptor: Option<OwnedFd>,
    /// What is left to remove.
    directories: Vec<Vec<u8>>,
}

impl Descent<'_> {
    /// Removes the files in `name`, a directory in the deepest level, which becomes the deepest level itself.
    fn enter(&mut self, name: Vec<u8>) -> rustix::io::Result<()> {
        let descriptor = match open_name(self.deepest()?, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        if FileStatus::from_rustix(&rustix::fs::fstat(&descriptor)?).device != self.device {
            return Err(Errno::XDEV);
        }
        let mut directories = Vec::new();
        for (name, file_type) in read_names(&descriptor)? {
            if file_type == FileType::Directory {
                directories.push(name);
                continue;
            }
            match unlink(&descriptor, &name) {
                Ok(()) => {}
                // The file system did not tell its type.
                Err(Errno::ISDIR | Errno::PERM) if file_type == FileType::Unknown => directories.push(name),
                Err(error) => return Err(error),
            }
        }
        self.levels.push(Level { name, descriptor: Some(descriptor), directories });
        if let Some(far) = self.levels.len().checked_sub(LEVELS_OPEN + 1) {
            self.levels[far].descriptor = None;
        }
        Ok(())
    }

    /// Removes the deepest level, which is empty now.
    fn leave(&mut self) -> rustix::io::Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        match rustix::fs::unlinkat(self.deepest()?, &level.name[..], AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The descriptor of the deepest level, opened again from above if it was closed.
    fn deepest(&mut self) -> rustix::io::Result<&OwnedFd> {
        if self.levels.last().is_some_and(|level| level.descriptor.is_none()) {
            let first_kept = self.levels.len().saturating_sub(LEVELS_OPEN);
            let mut above: Option<OwnedFd> = None;
            for index in 0..self.levels.len() {
                let from = match index.checked_sub(1).and_then(|i| self.levels[i].descriptor.as_ref()) {
                    Some(descriptor) => descriptor,
                    None => above.as_ref().unwrap_or(self.parent),
                };
                let opened = open_name(from, &self.levels[index].name, LOCATE | OFlags::DIRECTORY)?;
                if index >= first_kept {
                    self.levels[index].descriptor = Some(opened);
                } else {
                    above = Some(opened);
                }
            }
        }
        let deepest = self.levels.last().and_then(|level| level.descriptor.as_ref());
        Ok(deepest.unwrap_or(self.parent))
    }
}

fn unlink(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;
    use std::fs;

    fn open(path: &std::path::Path) -> OwnedFd {
        fs::File::open(path).expect("open").into()
    }

    #[test]
    fn a_tree_is_removed_and_what_its_links_lead_to_is_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("tree/a/b")).expect("mkdir");
        fs::create_dir(at("kept")).expect("mkdir");
        for path in ["kept/file", "tree/x", "tree/a/y", "tree/a/b/z"] {
            fs::write(at(path), b"1").expect("write");
        }
        std::os::unix::fs::symlink(at("kept"), at("tree/a/link")).expect("symlink");
        std::os::unix::fs::symlink(at("kept"), at("link")).expect("symlink");
        for name in [&b"tree"[..], b"link", b"absent"] {
            remove_entry(&open(dir.path()), name).expect("removed");
        }
        assert!(at("kept/file").exists());
        assert_eq!(read_names(&open(dir.path())).expect("names").len(), 1);
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_allow_is_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = open(dir.path());
        let mut at = open(dir.path());
        for _ in 0..700 {
            for name in ["deeper", "side"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).expect("mkdir");
            }
            at = open_name(&at, b"deeper", OFlags::RDONLY | OFlags::DIRECTORY).expect("open");
        }
        drop(at);
        remove_entry(&root, b"deeper").expect("removed");
        remove_entry(&root, b"side").expect("removed");
        assert_eq!(read_names(&root).expect("names"), []);
    }
}
