//! Extended attributes, ACLs among them: reading all of a file's, setting and removing single ones.
//!
//! A file system without extended attributes reads as having none. Every call is bounded by the kernel's own limits
//! (64 KiB of names, 64 KiB for each value). Which attributes are wanted, and what to do when one cannot be set, is
//! the caller's decision.

use crate::error::{Error, Result};
use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Extended attributes sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of Linux.
const KERNEL_BYTES_MAX: usize = 64 << 10;
/// Room that holds the names, and most values, of nearly every file: one system call then suffices.
const USUAL_BYTES: usize = 1 << 10;
/// How often an attribute that grows while it is read is asked for again.
const ATTEMPTS_MAX: u32 = 8;

/// The file whose attributes are meant.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// By path, without following a symbolic link at its end.
    Path(&'a Path),
    /// By open descriptor.
    Descriptor(BorrowedFd<'a>),
}

impl Subject<'_> {
    /// All attributes, sorted by name.
    pub fn read_all(self) -> Result<Xattrs> {
        let mut xattrs = Vec::new();
        for name in self.names().map_err(|error| self.error("listing extended attributes", error))? {
            match self.value(&name) {
                Ok(value) => xattrs.push((name, value)),
                // Removed since the names were listed, or listed by a file system that does not give it out.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    let what = format!("reading extended attribute {}", name.escape_ascii());
                    return Err(self.error(&what, error));
                }
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }

    /// The names of all attributes; none where the file system has no attributes.
    pub fn names(self) -> rustix::io::Result<Vec<Vec<u8>>> {
        let list = match growing(|buffer| match self {
            Subject::Path(path) => rustix::fs::llistxattr(path, spare_capacity(buffer)),
            Subject::Descriptor(fd) => rustix::fs::flistxattr(fd, spare_capacity(buffer)),
        }) {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Sets one attribute, replacing its value.
    pub fn set(self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Subject::Path(path) => rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()),
            Subject::Descriptor(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        }
    }

    /// Removes one attribute.
    pub fn remove(self, name: &[u8]) -> rustix::io::Result<()> {
        match self {
            Subject::Path(path) => rustix::fs::lremovexattr(path, name),
            Subject::Descriptor(fd) => rustix::fs::fremovexattr(fd, name),
        }
    }

    fn value(self, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
        growing(|buffer| match self {
            Subject::Path(path) => rustix::fs::lgetxattr(path, name, spare_capacity(buffer)),
            Subject::Descriptor(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(buffer)),
        })
    }

    fn error(self, what: &str, error: Errno) -> Error {
        match self {
            Subject::Path(path) => Error::io(format!("{what} of {}", path.display()), error.into()),
            Subject::Descriptor(_) => Error::io(what, error.into()),
        }
    }
}

/// Calls `read` with room for the usual, then for the largest possible answer.
fn growing(mut read: impl FnMut(&mut Vec<u8>) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(USUAL_BYTES);
    for _ in 0..ATTEMPTS_MAX {
        buffer.clear();
        match read(&mut buffer) {
            Ok(_) => return Ok(buffer),
            Err(Errno::RANGE) => buffer = Vec::with_capacity(KERNEL_BYTES_MAX),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_round_trip_by_path_and_by_descriptor() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        let file = std::fs::File::create(&path).expect("create");
        let by_path = Subject::Path(&path);
        assert_eq!(by_path.read_all().expect("none"), Vec::new());
        match by_path.set(b"user.b", b"") {
            Err(Errno::OPNOTSUPP) => return,
            other => other.expect("set"),
        }
        let by_descriptor = Subject::Descriptor(file.as_fd());
        // Longer than the usual room, and its name is not text.
        by_descriptor.set(b"user.a\xff", &[7; 2000]).expect("set");
        let expected = vec![(b"user.a\xff".to_vec(), vec![7; 2000]), (b"user.b".to_vec(), Vec::new())];
        assert_eq!(by_path.read_all().expect("read"), expected);
        assert_eq!(by_descriptor.read_all().expect("read"), expected);
        by_path.remove(b"user.b").expect("remove");
        assert_eq!(by_descriptor.names().expect("names"), vec![b"user.a\xff".to_vec()]);
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"").expect("write");
        if Subject::Path(&path).set(b"user.a", b"1").is_err() {
            return;
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("symlink");
        assert_eq!(Subject::Path(&link).read_all().expect("read"), Vec::new());
    }
}
