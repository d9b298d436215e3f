//! One new file that appears whole, under a name that nobody else has, and survives a power cut.
//!
//! The order is the guarantee: written under a temporary name, synced, named exclusively, its folder synced. A crash
//! before the naming leaves at most an abandoned temporary file; a crash after it leaves the whole object, because its
//! bytes were durable before. After any error the file is given up and never synced again: a kernel that failed to write
//! a page back may report the next sync of that file as a success.
//!
//! Large objects bypass the page cache in aligned writes of 8 MiB, which leaves the processors to hashing and coding;
//! where a file system refuses that, they go through the cache. What comes in such pieces is written from where it stands,
//! anything else is gathered first. Small objects are one plain write.
//!
//! Closing is not checked: the sync before it has reported whatever a close could still have to say.
//!
//! Deliberately not here: what to do after an error (writing again under a new temporary name is the caller's choice),
//! and preallocation, which gained nothing where it was measured.

use crate::aligned::suits_direct_io;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::sabotage::is_planted;
use crate::storage::place::{Place, is_unsupported, temporary_name, uninterrupted};
use crate::storage::staging::{ALIGNMENT, Staging};
use crate::storage::{ObjectName, ObjectWriter, Published, check_folder_of};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Objects up to this length are collected in ordinary memory and written through the page cache.
const PLAIN_BYTES_MAX: usize = 1 << 20;

/// An object being written into a temporary file of its folder.
pub(super) struct DurableFile {
    place: Arc<Place>,
    folder: String,
    temporary: PathBuf,
    /// None once closed.
    file: Option<File>,
    collected: Collected,
    /// What was appended, in bytes.
    appended: u64,
    /// What has been handed to the file, in bytes; more than `appended` when the tail was padded.
    written: u64,
    direct: bool,
    /// A write failed, so nothing more may be done with this file.
    failed: bool,
    /// The temporary name is no longer there to be removed.
    renamed: bool,
}

/// Appended bytes that have not been written.
enum Collected {
    Plain(Vec<u8>),
    Staged(Staging),
}

impl DurableFile {
    /// Opens a temporary file in `folder`, which is made if it is not there; its name tells the `owner`, if there is one.
    pub(super) fn create(place: &Arc<Place>, folder: &str, owner: Option<SnapshotId>) -> Result<Self> {
        place.make_folder(folder)?;
        let temporary = place.path_of(folder).join(temporary_name(owner)?);
        let open = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            uninterrupted(|| fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR))
        };
        let opened = match open() {
            Err(Errno::NOENT) => {
                // Someone removed the folder after this process had made it.
                place.forget_folders();
                place.make_folder(folder)?;
                open()
            }
            opened => opened,
        };
        let file = opened.map_err(|errno| place.write_failure(format!("creating {}", temporary.display()), errno))?;
        Ok(DurableFile {
            place: Arc::clone(place),
            folder: folder.to_owned(),
            temporary,
            file: Some(File::from(file)),
            collected: Collected::Plain(Vec::new()),
            appended: 0,
            written: 0,
            direct: false,
            failed: false,
            renamed: false,
        })
    }

    /// The last part of the temporary path.
    pub(super) fn temporary_name(&self) -> Option<&str> {
        self.temporary.file_name().and_then(std::ffi::OsStr::to_str)
    }

    /// When the file was last written to, by the clock of its file system.
    pub(super) fn modified(&self) -> Option<std::time::SystemTime> {
        self.file.as_ref()?.metadata().ok()?.modified().ok()
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write of this object failed"));
        }
        self.appended += bytes.len() as u64;
        bytes = self.write_as_it_stands(bytes)?;
        if let Collected::Plain(plain) = &mut self.collected {
            // Behind what bypassed the cache, an end is padded in staging memory and does the same.
            if plain.len() + bytes.len() <= PLAIN_BYTES_MAX && self.written == 0 {
                plain.extend_from_slice(bytes);
                return Ok(());
            }
            let mut staging = self.place.staging.take();
            staging.append(plain);
            self.collected = Collected::Staged(staging);
        }
        while let Collected::Staged(staging) = &mut self.collected {
            let taken = staging.append(bytes);
            bytes = &bytes[taken..];
            if !staging.is_full() {
                break;
            }
            self.write_collected()?;
        }
        Ok(())
    }

    /// Writes the front of `bytes` from where it stands, if nothing waits before it and direct I/O takes it; returns the rest.
    fn write_as_it_stands<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        let is_empty = match &self.collected {
            Collected::Plain(plain) => plain.is_empty(),
            Collected::Staged(staging) => staging.filled().is_empty(),
        };
        let (front, rest) = bytes.split_at(bytes.len() / ALIGNMENT * ALIGNMENT);
        if !is_empty || front.len() <= PLAIN_BYTES_MAX || !suits_direct_io(self.written, front) {
            return Ok(bytes);
        }
        self.failed = true;
        self.begin_direct();
        self.write_all(front)?;
        self.failed = false;
        Ok(rest)
    }

    /// Writes what has been collected; the tail of a staged object is padded.
    fn write_collected(&mut self) -> io::Result<()> {
        // Until the bytes are written the object is unusable; an error leaves it so.
        self.failed = true;
        match std::mem::replace(&mut self.collected, Collected::Plain(Vec::new())) {
            Collected::Plain(plain) => self.write_all(&plain)?,
            Collected::Staged(mut staging) => {
                self.begin_direct();
                if self.direct {
                    staging.pad();
                }
                let written = self.write_all(staging.filled());
                staging.clear();
                self.collected = Collected::Staged(staging);
                written?;
            }
        }
        self.failed = false;
        Ok(())
    }

    /// As [`ObjectWriter::publish`], but takes the place of what has the name.
    pub(super) fn publish_over(mut self, name: &ObjectName) -> Result<()> {
        check_folder_of(name, &self.folder)?;
        let path = self.place.path_of(name.as_str());
        let folder = name.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        self.place.make_folder(folder)?;
        let failure =
            |place: &Place, error: io::Error| place.write_failure(format!("writing {}", path.display()), error);
        self.make_durable().map_err(|error| failure(&self.place, error))?;
        let renamed = uninterrupted(|| fs::rename(&self.temporary, &path));
        self.renamed = renamed.is_ok();
        if let Err(errno) = renamed
            // On a network the answer to a request that was carried out may be lost.
            && !self.file.as_ref().is_some_and(|file| has_name(file, &path))
        {
            return Err(failure(&self.place, errno.into()));
        }
        self.place.sync_directory(&self.place.path_of(folder))
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file is closed"))
    }

    /// Bypasses the page cache from here on if the file system takes that; asked once, at the first staged write.
    fn begin_direct(&mut self) {
        if self.written > 0 || self.place.direct_io_refused() {
            return;
        }
        self.direct = self.file.as_ref().is_some_and(|file| fs::fcntl_setfl(file, OFlags::DIRECT).is_ok());
        if !self.direct {
            self.place.note_direct_io_refused();
        }
    }

    fn end_direct(&mut self) -> io::Result<()> {
        self.direct = false;
        Ok(fs::fcntl_setfl(self.file()?, OFlags::empty())?)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match uninterrupted(|| rustix::io::pwrite(self.file.as_ref().ok_or(Errno::BADF)?, bytes, self.written)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    bytes = bytes.get(taken..).unwrap_or_default();
                    self.written += taken as u64;
                    if self.direct && taken % ALIGNMENT != 0 {
                        // What remains starts at an address and offset that direct I/O cannot take.
                        self.end_direct()?;
                    }
                }
                // A file system may take the flag and refuse the first write; it has then written nothing.
                Err(Errno::INVAL) if self.direct => {
                    self.place.note_direct_io_refused();
                    self.end_direct()?;
                }
                Err(_) if is_planted("write-error-ignored") => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Everything up to and including the sync of the bytes.
    fn make_durable(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write of this object failed"));
        }
        self.write_collected()?;
        let file = self.file()?;
        if self.written != self.appended && !is_planted("padding-left") {
            uninterrupted(|| fs::ftruncate(file, self.appended))?;
        }
        self.place.set_object_mode(file)?;
        if is_planted("object-unsynced") {
            return Ok(());
        }
        let synced = uninterrupted(|| fs::fsync(file));
        let again = |errno| if is_planted("failed-sync-repeated") { fs::fsync(file) } else { Err(errno) };
        let ignored = |errno| if is_planted("sync-error-ignored") { Ok(()) } else { Err(errno) };
        Ok(synced.or_else(again).or_else(ignored)?)
    }

    /// Gives the file its name unless that is taken.
    fn give_name(&mut self, path: &Path) -> Result<Published> {
        let renamed = self.place.rename_exclusively(&self.temporary, path);
        let by_link = renamed.is_err_and(is_unsupported);
        let link = || fs::linkat(CWD, &self.temporary, CWD, path, AtFlags::empty());
        let named = if by_link { uninterrupted(link) } else { renamed };
        self.renamed = renamed.is_ok();
        let Err(errno) = named else { return Ok(Published::Created) };
        // On a network the request may have been carried out and its answer lost: the repetition then meets the file's
        // own name (EEXIST) or no longer finds the temporary one (ENOENT). Comparing tells that apart.
        if self.file.as_ref().is_some_and(|file| has_name(file, path)) {
            return Ok(Published::Created);
        }
        match errno {
            Errno::EXIST => Ok(Published::AlreadyExists),
            Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP if by_link => {
                Err(Error::io(format!("naming {}", path.display()), errno.into())
                    .with_kind(Kind::Failed)
                    .with_hint("this file system can create a name exclusively neither by renaming nor by linking"))
            }
            errno => Err(self.place.write_failure(format!("naming {}", path.display()), errno)),
        }
    }
}

impl ObjectWriter for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.append(bytes)
            .map_err(|error| self.place.write_failure(format!("writing {}", self.temporary.display()), error))
    }

    fn publish(mut self: Box<Self>, name: &ObjectName) -> Result<Published> {
        check_folder_of(name, &self.folder)?;
        let path = self.place.path_of(name.as_str());
        let folder = name.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        self.place.make_folder(folder)?;
        let early = is_planted("object-named-before-synced").then(|| self.give_name(&path)).transpose()?;
        self.make_durable().map_err(|error| self.place.write_failure(format!("writing {}", path.display()), error))?;
        let published = early.map_or_else(|| self.give_name(&path), Ok)?;
        // Also when the name was taken: the caller goes on from the other's object, so that must not vanish either.
        // If this fails the object keeps its name, for others may already rely on it; whether it lasts is unknown.
        if !is_planted("name-unsynced") {
            self.place.sync_directory(&self.place.path_of(folder))?;
        }
        Ok(published)
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        // Closed first: a network file system turns the removal of an open file into a renaming.
        self.file = None;
        if !self.renamed {
            let _ = fs::unlink(&self.temporary);
        }
        if let Collected::Staged(staging) = std::mem::replace(&mut self.collected, Collected::Plain(Vec::new())) {
            self.place.staging.put(staging);
        }
    }
}

/// True if `path` is a name of the open `file`; its inode cannot be recycled while it is open.
fn has_name(file: &File, path: &Path) -> bool {
    match (fs::fstat(file), fs::lstat(path)) {
        (Ok(own), Ok(found)) => (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> (tempfile::TempDir, Arc<Place>, DurableFile, PathBuf) {
        let root = tempfile::tempdir().expect("a temporary directory");
        let place = Arc::new(Place::open(root.path()).expect("an existing directory"));
        let file = DurableFile::create(&place, "keys", None).expect("a writer");
        let path = place.path_of("keys/a");
        (root, place, file, path)
    }

    #[test]
    fn a_naming_that_worked_though_its_answer_was_lost_counts_as_created() {
        let (_root, _, mut file, path) = begun();
        std::fs::hard_link(&file.temporary, &path).expect("linked by the request whose answer was lost");
        assert_eq!(file.give_name(&path).expect("an answer"), Published::Created);
        drop(file);
        let names: Vec<_> = std::fs::read_dir(path.parent().expect("a folder")).expect("listed").collect();
        assert_eq!(names.len(), 1, "only the object's name is left");

        let (_root, _, mut file, path) = begun();
        std::fs::rename(&file.temporary, &path).expect("renamed by the request whose answer was lost");
        assert_eq!(file.give_name(&path).expect("an answer"), Published::Created);
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn what_is_appended_is_what_the_file_holds_from_wherever_it_is_written() {
        let mut source = crate::aligned::AlignedBuffer::new(3 << 20);
        source.as_mut_slice().chunks_mut(8).zip(0u64..).for_each(|(b, n)| b.copy_from_slice(&n.to_le_bytes()));
        let source = source.as_slice();
        let (piece, odd) = (&source[..2 << 20], &source[..2_000_001]);
        let unaligned = &source[1..=2 << 20];
        for refused in [false, true] {
            for parts in [
                vec![piece, piece, &source[..100]],
                vec![piece, odd, piece, unaligned],
                vec![&source[..3], piece, piece],
                vec![odd, odd],
                vec![piece, &source[..0], piece],
            ] {
                let (_root, place, mut file, path) = begun();
                if refused {
                    place.note_direct_io_refused();
                }
                for part in &parts {
                    file.append(part).expect("written");
                }
                let name = ObjectName::new("keys/a").expect("a sound name");
                assert_eq!(Box::new(file).publish(&name).expect("published"), Published::Created);
                let lengths: Vec<_> = parts.iter().map(|p| p.len()).collect();
                assert!(std::fs::read(&path).expect("there") == parts.concat(), "{lengths:?}, refused: {refused}");
            }
        }
    }

    #[test]
    fn another_file_under_the_name_is_not_taken_for_our_own() {
        let (_root, _, mut file, path) = begun();
        std::fs::write(&path, "other").expect("written");
        assert_eq!(file.give_name(&path).expect("an answer"), Published::AlreadyExists);
        drop(file);
        assert_eq!(std::fs::read(&path).expect("still there"), b"other");
    }

    #[test]
    fn a_temporary_file_that_was_taken_away_is_an_error_and_not_an_absent_object() {
        let (_root, _, file, path) = begun();
        std::fs::remove_file(&file.temporary).expect("removed");
        let name = ObjectName::new("keys/a").expect("a sound name");
        let error = Box::new(file).publish(&name).expect_err("nothing to name");
        assert_eq!(error.kind(), Kind::Unreachable);
        assert!(!path.exists());
    }

    #[test]
    fn after_a_failed_write_nothing_more_can_be_done_with_the_object() {
        let (_root, _, mut file, path) = begun();
        let sound = file.file.take();
        file.file = Some(File::open(&file.temporary).expect("open for reading only"));
        file.write(&vec![1; 9 << 20]).expect_err("written to a descriptor that cannot");
        file.file = sound;
        file.write(&[1]).expect_err("an object with a hole");
        let name = ObjectName::new("keys/a").expect("a sound name");
        Box::new(file).publish(&name).expect_err("an object with a hole");
        assert!(!path.exists());
    }

    #[test]
    fn staging_buffers_are_used_again_and_plain_objects_need_none() {
        let (_root, place, mut file, _) = begun();
        file.write(&[1; PLAIN_BYTES_MAX]).expect("written");
        assert!(matches!(file.collected, Collected::Plain(_)));
        file.write(&[1]).expect("written");
        let Collected::Staged(staging) = &file.collected else { panic!("{PLAIN_BYTES_MAX} and one byte are staged") };
        let address = staging.filled().as_ptr().addr();
        drop(file);
        let mut again = place.staging.take();
        again.append(&[1]);
        assert_eq!(again.filled().as_ptr().addr(), address);
    }
}
