//! Opens one file of the user for reading, after a scan found it.
//!
//! The file opened is the very one that was scanned, or an error: never a pipe or device put in its place, never what
//! a symbolic link leads to. Reading leaves the access time alone where that is allowed, and leaves the page cache as
//! it was, see [`crate::page_cache`]. Whether the content changed meanwhile is answered, not decided, here.

use super::scan::Found;
use super::stat::FileStatus;
use super::xattrs::{Subject, Xattrs};
use crate::error::{Error, Kind, Result};
use crate::metadata::Metadata;
use crate::page_cache::{Around, PageCache};
use crate::read_at::ReadAt;
use crate::sabotage::is_planted;
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The number of extents after which the rest of a file counts as data: reading holes is slow, but not wrong.
const EXTENTS_MAX: usize = 1 << 16;

/// A stretch of a file that is either stored data or a hole, which reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first byte's position.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// True if nothing is stored there.
    pub is_hole: bool,
}

/// An open regular file of the user.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    path: PathBuf,
    /// Its length when it was opened, and the bytes that are allocated for it.
    bytes: u64,
    allocated: u64,
    page_cache: PageCache,
}

impl SourceFile {
    /// Opens what `found` describes. If another file has taken its place, or something that is not a regular file,
    /// the error is [`Kind::Failed`]; [`Found::look_again`] then tells what is there now.
    pub fn open(found: &Found) -> Result<SourceFile> {
        let path = &found.absolute;
        let fail = |error: Errno| match error {
            // What the kernel says when a symbolic link is in the place of the file, or of a directory above it.
            Errno::LOOP => replaced(path),
            _ => Error::io(format!("opening {}", path.display()), error.into()),
        };
        let file = File::from(open_for_reading(found).map_err(fail)?);
        let mut source = SourceFile {
            file,
            path: path.clone(),
            bytes: 0,
            allocated: 0,
            page_cache: PageCache::new(found.metadata.size),
        };
        let status = source.status()?;
        if !status.is_regular() || status.inode != found.metadata.inode || status.device != found.device {
            return Err(replaced(path));
        }
        (source.bytes, source.allocated) = (status.size, status.blocks.saturating_mul(512));
        Ok(source)
    }

    /// The extended attributes of this moment, sorted by name.
    pub fn read_xattrs(&self) -> Result<Xattrs> {
        Subject::Descriptor(self.file.as_fd()).read_all().map_err(|error| error.while_doing(self.path.display()))
    }

    /// True if size, mtime or ctime differ from `earlier`: what was read since may be of two versions.
    pub fn changed_since(&self, earlier: &Metadata) -> Result<bool> {
        let now = self.status()?;
        let is_same = (now.size, now.mtime, now.ctime) == (earlier.size, earlier.mtime, earlier.ctime);
        Ok(!is_same && !is_planted("change-while-reading-unseen"))
    }

    /// Where the first `size` bytes are data and where holes, in order and without a gap. A file that has at least as
    /// many blocks as bytes is one extent of data without a further question, as is one on a file system that cannot
    /// tell.
    pub fn extents(&self, size: u64) -> Result<Vec<Extent>> {
        if size == 0 {
            return Ok(Vec::new());
        }
        if self.allocated >= size {
            return Ok(vec![Extent { offset: 0, len: size, is_hole: false }]);
        }
        let seek = |position| match rustix::fs::seek(&self.file, position) {
            Ok(offset) => Ok(Some(offset)),
            // No data, or no hole, behind the position.
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        };
        match extents_by_seeking(size, |at| seek(SeekFrom::Data(at)), |at| seek(SeekFrom::Hole(at))) {
            Ok(extents) => Ok(extents),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                Ok(vec![Extent { offset: 0, len: size, is_hole: false }])
            }
            Err(error) => Err(self.error("looking for holes in", error.into())),
        }
    }

    /// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.page_cache.read_at(&self.file, offset, buffer).map_err(|error| self.error("reading", error))
    }

    /// As [`SourceFile::read_at`], `bytes` of them to `place` in `buffer`, see [`crate::page_cache::place_for`].
    pub fn read_around(&self, offset: u64, buffer: &mut [u8], place: usize, bytes: usize) -> Result<usize> {
        let mut around = Around::new(buffer, place, bytes);
        let read = self.page_cache.read_into(&self.file, offset, bytes, &mut around);
        read.map_err(|error| self.error("reading", error))
    }

    /// True if what was read last was in the page cache; false before anything was read.
    pub fn was_cached(&self) -> bool {
        self.page_cache.was_cached()
    }

    fn status(&self) -> Result<FileStatus> {
        self.file.metadata().map(|m| FileStatus::from_std(&m)).map_err(|error| self.error("examining", error))
    }

    fn error(&self, doing: &str, error: io::Error) -> Error {
        Error::io(format!("{doing} {}", self.path.display()), error)
    }
}

impl ReadAt for SourceFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        SourceFile::read_at(self, offset, buffer)
    }
}

fn replaced(path: &Path) -> Error {
    Error::new(Kind::Failed, format!("{} was replaced by another file since it was found", path.display()))
}

/// A pipe put in the place of the file must not block the opening, nor a link lead elsewhere.
fn open_for_reading(found: &Found) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let open = |flags| loop {
        match found.open(flags) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    };
    #[cfg(target_os = "linux")]
    match open(flags | OFlags::NOATIME) {
        // Only the owner and the superuser may leave the access time alone.
        Err(Errno::PERM) => {}
        other => return other,
    }
    open(flags)
}

/// Extents of a file of `size` bytes, from two functions that find the next data and the next hole at or behind a
/// position. Answers that make no sense end the search: the rest is data.
fn extents_by_seeking(
    size: u64,
    mut next_data: impl FnMut(u64) -> rustix::io::Result<Option<u64>>,
    mut next_hole: impl FnMut(u64) -> rustix::io::Result<Option<u64>>,
) -> rustix::io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut position = 0;
    while position < size {
        if extents.len() >= EXTENTS_MAX {
            extents.push(Extent { offset: position, len: size - position, is_hole: false });
            break;
        }
        let data = next_data(position)?.unwrap_or(size).clamp(position, size);
        if data > position {
            extents.push(Extent { offset: position, len: data - position, is_hole: true });
        }
        if data == size {
            break;
        }
        let hole = match next_hole(data)? {
            Some(hole) if hole > data => hole.min(size),
            // The data was removed between the two questions, or the file system contradicts itself.
            _ => size,
        };
        extents.push(Extent { offset: data, len: hole - data, is_hole: false });
        position = hole;
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::super::scan::{ScanOptions, Scanned, scan};
    use super::*;
    use rustix::fs::{CWD, Mode};
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn found(path: &Path) -> Found {
        match scan(&[path.to_path_buf()], ScanOptions::default()).next() {
            Some(Scanned::Entry(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_read_and_its_changes_are_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, b"0123456789").expect("write");
        let found = found(&path);
        let source = SourceFile::open(&found).expect("open");
        let mut buffer = [0; 8];
        assert_eq!(source.read_at(0, &mut buffer).expect("read"), 8);
        assert_eq!(source.read_at(6, &mut buffer).expect("read"), 4);
        assert_eq!(&buffer[..4], b"6789");
        assert_eq!(source.read_at(10, &mut buffer).expect("read"), 0);
        assert!(!source.changed_since(&found.metadata).expect("status"));
        fs::OpenOptions::new().append(true).open(&path).expect("open").set_len(11).expect("grow");
        assert!(source.changed_since(&found.metadata).expect("status"));
    }

    #[test]
    fn what_takes_the_place_of_a_file_is_not_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        let secret = dir.path().join("secret");
        fs::write(&path, b"mine").expect("write");
        fs::write(&secret, b"secret").expect("write");
        let found = found(&path);
        fs::rename(&path, dir.path().join("moved")).expect("rename");
        let refused = |what: &str| {
            let error = SourceFile::open(&found).expect_err(what);
            assert!(error.to_string().contains("replaced"), "{what}: {error}");
            fs::remove_file(&path).expect("remove");
        };
        std::os::unix::fs::symlink(&secret, &path).expect("symlink");
        refused("a symbolic link");
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR).expect("fifo");
        refused("a pipe");
        fs::write(&path, b"other").expect("write");
        refused("another file");
        assert_eq!(SourceFile::open(&found).expect_err("nothing").kind(), Kind::Missing);
    }

    #[test]
    fn a_link_put_in_the_place_of_a_directory_leads_to_no_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (root, secret) = (dir.path().join("root"), dir.path().join("secret"));
        for folder in [&root.join("a"), &secret] {
            fs::create_dir_all(folder).expect("mkdir");
            fs::write(folder.join("f"), b"mine").expect("write");
        }
        let mut found = scan(std::slice::from_ref(&root), ScanOptions::default())
            .find_map(|scanned| match scanned {
                Scanned::Entry(found) if found.path == b"a/f" => Some(found),
                _ => None,
            })
            .expect("found");
        assert_eq!(found.look_again().expect("still there").metadata, found.metadata);
        SourceFile::open(&found).expect("still there");
        fs::rename(root.join("a"), root.join("moved")).expect("rename");
        std::os::unix::fs::symlink("moved", root.join("a")).expect("symlink");
        // The very file, by way of a link.
        assert!(SourceFile::open(&found).expect_err("a link").to_string().contains("replaced"));
        found.look_again().expect_err("a link");
        found.read_xattrs().expect_err("a link");
        fs::remove_file(root.join("a")).expect("remove");
        std::os::unix::fs::symlink(&secret, root.join("a")).expect("symlink");
        found.look_again().expect_err("a link");
        // Also if it were taken for what was found.
        found.metadata.inode = fs::metadata(secret.join("f")).expect("there").ino();
        assert!(SourceFile::open(&found).expect_err("a link").to_string().contains("replaced"));
    }

    #[test]
    fn holes_are_found_and_a_dense_file_is_one_extent() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sparse");
        let file = File::create(&path).expect("create");
        let mib = 1 << 20;
        file.write_all_at(&[1; 4096], mib).expect("write");
        file.set_len(3 * mib).expect("grow");
        file.sync_all().expect("sync");
        let extents = SourceFile::open(&found(&path)).expect("open").extents(3 * mib).expect("extents");
        let mut end = 0;
        for extent in &extents {
            assert_eq!(extent.offset, end);
            end += extent.len;
        }
        assert_eq!(end, 3 * mib);
        assert!(extents.iter().any(|e| !e.is_hole && e.offset <= mib && e.offset + e.len >= mib + 4096));
        let dense = dir.path().join("dense");
        fs::write(&dense, vec![1; 8192]).expect("write");
        let source = SourceFile::open(&found(&dense)).expect("open");
        assert_eq!(source.extents(8192).expect("extents"), [Extent { offset: 0, len: 8192, is_hole: false }]);
        assert_eq!(source.extents(0).expect("extents"), []);
    }

    #[test]
    fn extents_cover_the_file_whatever_the_file_system_answers() {
        let answers = [None, Some(0), Some(5), Some(10), Some(99)];
        for data in answers {
            for hole in answers {
                let extents = extents_by_seeking(10, |_| Ok(data), |_| Ok(hole)).expect("no error");
                let mut end = 0;
                for extent in extents {
                    assert_eq!(extent.offset, end);
                    assert!(extent.len > 0);
                    end += extent.len;
                }
                assert_eq!(end, 10, "{data:?} {hole:?}");
            }
        }
        // Data and hole take turns byte by byte: the list stays bounded.
        let many = extents_by_seeking(1 << 20, |at| Ok(Some(at | 1)), |at| Ok(Some(at + 1))).expect("no error");
        assert!(many.len() <= EXTENTS_MAX + 2);
        assert_eq!(many.iter().map(|extent| extent.len).sum::<u64>(), 1 << 20);
    }
}
