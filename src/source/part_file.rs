//! One restored file while it is written: beside its final name, under the name of a part.
//!
//! The final name holds the old file or the whole new one, never a piece. The name of a part follows from the final
//! name and from what is being restored, so that an interrupted restore finds it again and reads what it holds. A part
//! that somebody else may have planted (a link, a file of another owner or with other names) is removed, not used; one
//! that another process is writing is left to it. Dropping a [`TargetFile`] leaves the part for the next run, but for an
//! old file in which nothing has been changed yet.
//!
//! Renaming does not make content durable: a caller that renames before [`TargetFile::sync`] or
//! [`Target::sync_all`](super::target::Target::sync_all) may find a file of the right size and time but without its
//! content after a power failure. [`TargetFile::apply`] and [`ReadyFile::place`] are therefore apart, so that
//! the content of many files can be made durable at once in between.

use super::apply::{Handle, MetadataIssue, system_mode};
use super::confined::{Place, create_name, open_name};
use super::holes;
use super::old_file::OldFile;
use super::placing::{Overwrite, Placed, Shared, stat_name};
use super::remove::remove_entry;
use super::stat::FileStatus;
use crate::aligned::suits_direct_io;
use crate::bytes::ByteRange;
use crate::error::{Error, Result};
use crate::metadata::Metadata;
use crate::page_cache::PageCache;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

pub(super) const PART_MODE: u32 = 0o600;
/// Larger files get their size before they are written, so that several threads do not wait for each other to extend
/// it; smaller ones at the end, where it mostly is right by then.
const SIZED_EARLY_BYTES_MIN: u64 = 1 << 20;

/// A file being restored. Writing through a shared reference is fine from several threads.
#[derive(Debug)]
pub struct TargetFile {
    shared: Arc<Shared>,
    path: Vec<u8>,
    place: Place,
    part: Vec<u8>,
    file: File,
    /// For direct I/O; absent if the file system refuses it.
    direct: OnceLock<Option<File>>,
    page_cache: PageCache,
    size: u64,
    resumed: bool,
    /// What stood under the final name and became the part.
    old: Option<OldFile>,
    /// Something of it has been changed.
    touched: AtomicBool,
}

impl TargetFile {
    pub(super) fn begin(shared: &Arc<Shared>, path: &[u8], size: u64, resume_key: &str) -> Result<TargetFile> {
        let place = shared.place(path)?;
        let begun = begin_part(&place, resume_key)?.map_err(|error| shared.error("creating", path, error))?;
        let target = TargetFile::new(shared, path, size, place, begun);
        if target.resumed || size >= SIZED_EARLY_BYTES_MIN {
            target.set_size()?;
        }
        Ok(target)
    }

    /// As [`TargetFile::begin`], but what stands under the final name becomes the part if it is a file of ours with no
    /// other name, so that what is right in it need not be written. Until the file is placed there is nothing under the
    /// final name: a mixture of old and new is never seen there. If it is dropped before anything of it has been changed, it
    /// gets its name back.
    pub(super) fn adopt(shared: &Arc<Shared>, path: &[u8], size: u64, resume_key: &str) -> Result<TargetFile> {
        let place = shared.place(path)?;
        let part = part_name(&place.name, resume_key);
        match OldFile::take(&place, &part) {
            Some((file, old)) => {
                let begun = Begun { part, file, resumed: true };
                let mut target = TargetFile::new(shared, path, size, place, begun);
                target.old = Some(old);
                Ok(target)
            }
            None => TargetFile::begin(shared, path, size, resume_key),
        }
    }

    fn new(shared: &Arc<Shared>, path: &[u8], size: u64, place: Place, begun: Begun) -> TargetFile {
        TargetFile {
            shared: Arc::clone(shared),
            path: path.to_vec(),
            place,
            part: begun.part,
            file: begun.file,
            direct: OnceLock::new(),
            page_cache: PageCache::new(size),
            size,
            resumed: begun.resumed,
            old: None,
            touched: AtomicBool::new(false),
        }
    }

    /// True if an earlier run left this part, or it stood under the final name: some of its content may be right already.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The name of the part if it holds more than this run has written and stays when the file is dropped now.
    pub fn leaves_part(&self) -> Option<&[u8]> {
        (self.resumed && !self.is_old_as_it_was()).then_some(&self.part)
    }

    /// Writes all of `bytes` at `offset`. What lies behind the size of the file is refused.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes)?;
        self.touch()?;
        self.file.write_all_at(bytes, offset).map_err(|error| self.error("writing", error))
    }

    /// Writes all of `bytes` at `offset` past the page cache, if address, offset and length are multiples of
    /// [`ALIGNMENT`](crate::aligned::ALIGNMENT) and the file system allows it; else like [`TargetFile::write_at`].
    pub fn write_direct_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes)?;
        self.touch()?;
        let mut written = 0;
        if suits_direct_io(offset, bytes)
            && let Some(direct) = self.direct_file()
        {
            // A short write may end between two blocks: the rest then goes the other way.
            while written < bytes.len() && suits_direct_io(offset + written as u64, &bytes[written..]) {
                match direct.write_at(&bytes[written..], offset + written as u64) {
                    Ok(0) => break,
                    Ok(count) => written += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_refusal(&error) => {
                        self.shared.direct_refused.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => return Err(self.error("writing", error)),
                }
            }
        }
        self.write_at(offset + written as u64, &bytes[written..])
    }

    /// Fills `buffer` from `offset` with what is written so far; fewer bytes only behind the last of it.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.page_cache.read_at(&self.file, offset, buffer).map_err(|error| self.error("reading", error))
    }

    /// Makes `range` read as zeros, where nothing is written: a hole if the file system has them.
    pub fn clear(&self, range: ByteRange) -> Result<()> {
        let fail = |error| self.error("making a hole in", error);
        let mut rest = range;
        while let Some(data) = holes::next_data(&self.file, rest).map_err(fail)? {
            self.touch()?;
            holes::clear(&self.file, data).map_err(fail)?;
            rest = ByteRange::new(data.end(), range.end() - data.end())?;
        }
        Ok(())
    }

    /// Makes the content durable. After a failure the content is in doubt: discard the file.
    pub fn sync(&self) -> Result<()> {
        self.set_size()?;
        self.file.sync_all().map_err(|error| self.error("making durable", error))
    }

    /// Gives the part its metadata; its content is complete.
    pub fn apply(mut self, metadata: &Metadata) -> Result<ReadyFile> {
        // Many files may wait to be placed: each holds one descriptor only, and its directory.
        self.direct = OnceLock::new();
        self.page_cache = PageCache::default();
        self.touched = AtomicBool::new(true);
        let status = self.set_size()?;
        self.shared.note_device(status.device, &self.file);
        let issues = Handle::Descriptor(self.file.as_fd())
            .apply(metadata, &status)
            .map_err(|error| error.while_doing(self.shared.show(&self.path)))?;
        Ok(ReadyFile { file: self, issues })
    }

    /// [`TargetFile::apply`], then [`ReadyFile::place`].
    pub fn finish(self, metadata: &Metadata, overwrite: Overwrite) -> Result<Placed> {
        self.apply(metadata)?.place(overwrite)
    }

    /// Removes the part: nothing of it is worth keeping.
    pub fn discard(self) -> Result<()> {
        self.touched.store(true, Ordering::Relaxed);
        remove_entry(&self.place.parent, &self.part).map_err(|error| self.error("removing the part of", error.into()))
    }

    /// To be called before anything is changed.
    fn touch(&self) -> Result<()> {
        if self.old.is_some() && !self.touched.swap(true, Ordering::Relaxed) && self.size >= SIZED_EARLY_BYTES_MIN {
            self.set_size()?;
        }
        Ok(())
    }

    fn is_old_as_it_was(&self) -> bool {
        self.old.is_some() && !self.touched.load(Ordering::Relaxed)
    }

    fn check_range(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match ByteRange::new(offset, bytes.len() as u64) {
            Ok(range) if range.end() <= self.size => Ok(()),
            _ => Err(Error::damaged(format!(
                "{} bytes at {offset} do not fit {}, which has {} bytes",
                bytes.len(),
                self.shared.show(&self.path),
                self.size
            ))),
        }
    }

    fn direct_file(&self) -> Option<&File> {
        if self.shared.direct_refused.load(Ordering::Relaxed) {
            return None;
        }
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    #[cfg(target_os = "linux")]
    fn open_direct(&self) -> Option<File> {
        match open_name(&self.place.parent, &self.part, OFlags::WRONLY | OFlags::DIRECT | OFlags::NONBLOCK) {
            Ok(descriptor) => {
                let direct = File::from(descriptor);
                // The name may lead elsewhere by now; only the very same file will do.
                let status = FileStatus::from_std(&direct.metadata().ok()?);
                self.status().ok()?.is_same_file(&status).then_some(direct)
            }
            Err(error) => {
                if matches!(error, Errno::INVAL | Errno::OPNOTSUPP) {
                    self.shared.direct_refused.store(true, Ordering::Relaxed);
                }
                None
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open_direct(&self) -> Option<File> {
        None
    }

    /// What has not been written is a hole.
    fn set_size(&self) -> Result<FileStatus> {
        let status = self.status()?;
        if status.size != self.size {
            self.touched.store(true, Ordering::Relaxed);
            self.file.set_len(self.size).map_err(|error| self.error("setting the size of", error))?;
        }
        Ok(status)
    }

    fn status(&self) -> Result<FileStatus> {
        self.file.metadata().map(|m| FileStatus::from_std(&m)).map_err(|error| self.error("examining", error))
    }

    fn error(&self, doing: &str, error: io::Error) -> Error {
        Error::io(format!("{doing} {}", self.shared.show(&self.path)), error)
    }
}

impl Drop for TargetFile {
    fn drop(&mut self) {
        if let Some(old) = self.old.as_ref().filter(|_| self.is_old_as_it_was()) {
            old.put_back(&self.file, &self.place, &self.part);
        }
        // By itself, and not with the descriptor: a process that is just being started has a copy of that for a moment.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// A file whose content and metadata are complete, still under the name of its part. It holds one descriptor, and one of its
/// directory, which may be shared.
#[derive(Debug)]
pub struct ReadyFile {
    file: TargetFile,
    issues: Vec<MetadataIssue>,
}

impl ReadyFile {
    /// Gives the file its final name, unless something stands there and must not be replaced; then it is removed. A
    /// directory is never replaced: [`Target::remove`](super::target::Target::remove) it before.
    pub fn place(self, overwrite: Overwrite) -> Result<Placed> {
        let TargetFile { shared, place, part, path, .. } = &self.file;
        let placed = shared.rename_into_place(place, part, overwrite, path)?;
        Ok(Placed { placed, issues: self.issues })
    }
}

/// True for the name of a part, which is of no use to anybody but an interrupted restore.
pub fn is_part_name(name: &[u8]) -> bool {
    name.starts_with(b".") && name.ends_with(PART_SUFFIX)
}

const PART_SUFFIX: &[u8] = b".ckpt-part";

/// Derived by hashing, because the final name may be as long as names can be.
fn part_name(name: &[u8], resume_key: &str) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    // A name holds no NUL: the two cannot run into each other.
    hasher.update(name).update(&[0]).update(resume_key.as_bytes());
    let hex = hasher.finalize().to_hex();
    [b".", &hex.as_bytes()[..32], PART_SUFFIX].concat()
}

/// The name of a part that nobody will look for.
pub(super) fn random_part_name() -> Result<Vec<u8>> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(crate::error::Kind::Failed, format!("no random bytes: {error}")))?;
    Ok(part_name(&bytes, ""))
}

struct Begun {
    part: Vec<u8>,
    file: File,
    resumed: bool,
}

/// Creates the part of an entry, or finds the one that an earlier run left.
fn begin_part(place: &Place, resume_key: &str) -> Result<rustix::io::Result<Begun>> {
    let part = part_name(&place.name, resume_key);
    let new = |part: Vec<u8>| create(place, &part).map(|file| Begun { part, file, resumed: false });
    let found = match create(place, &part) {
        Ok(file) => return Ok(Ok(Begun { part, file, resumed: false })),
        Err(Errno::EXIST) => resume(place, &part),
        Err(error) => return Ok(Err(error)),
    };
    match found {
        Ok(Part::Resumed(file)) => return Ok(Ok(Begun { part, file, resumed: true })),
        Ok(Part::Removed) => match new(part) {
            Err(Errno::EXIST) => {}
            other => return Ok(other),
        },
        Ok(Part::InUse) => {}
        Err(error) => return Ok(Err(error)),
    }
    Ok(new(random_part_name()?))
}

/// What became of a part that exists.
enum Part {
    Resumed(File),
    /// It was none of ours, or has vanished.
    Removed,
    /// Another process is writing it.
    InUse,
}

fn resume(place: &Place, part: &[u8]) -> rustix::io::Result<Part> {
    // A pipe planted under the name must not block the opening.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_name(&place.parent, part, flags) {
        Ok(descriptor) => Some(File::from(descriptor)),
        Err(Errno::NOENT) => return Ok(Part::Removed),
        Err(_) => None,
    };
    let user = rustix::process::geteuid().as_raw();
    if let Some(file) = file {
        let status = FileStatus::from_rustix(&rustix::fs::fstat(&file)?);
        if status.is_regular() && status.links == 1 && status.uid == user {
            if !lock(&file) {
                return Ok(Part::InUse);
            }
            // Its writer may have given it its final name just before the lock was ours.
            if !stat_name(&place.parent, part).is_ok_and(|named| named.is_same_file(&status)) {
                return Ok(Part::InUse);
            }
            if status.mode != PART_MODE {
                rustix::fs::fchmod(&file, system_mode(PART_MODE))?;
            }
            return Ok(Part::Resumed(file));
        }
    }
    remove_entry(&place.parent, part)?;
    Ok(Part::Removed)
}

fn create(place: &Place, part: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let file = File::from(create_name(&place.parent, part, flags, Mode::RUSR | Mode::WUSR)?);
    // Whoever was faster in taking the lock found an empty part, which both may write: their content is the same.
    lock(&file);
    Ok(file)
}

/// False if another process holds the lock. A file system without locks has no such process.
pub(super) fn lock(file: &File) -> bool {
    !matches!(rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK))
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}
