//! Who has the database of a repository open on this host.
//!
//! Every run that has it open holds the lock file beside it, shared; whoever puts another database in its place holds it
//! alone. SQLite keeps changes apart by itself: this is only about the file as a whole. A killed run holds nothing.
//!
//! Where files cannot be locked so, nobody ever holds it alone.
//!
//! The lock file goes with the database ([`super::Index::remove`]): who goes on with a removed one disturbs nobody.

use crate::error::{Error, Kind, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a run waits for another one that makes the database: at worst as long as that takes.
const WAIT_MAX: Duration = Duration::from_secs(900);
const PAUSE: Duration = Duration::from_millis(10);

/// A lock that is held.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Holds the lock at `path` with all others that read and write the database.
    pub(super) fn shared(path: &Path) -> Result<Lock> {
        let mut lock = Lock { path: path.to_owned(), file: open(path)? };
        lock.share()?;
        Ok(lock)
    }

    /// Comes to hold it alone, if nobody else holds it; true if so. Otherwise, after whatever the others did, it is shared
    /// again. In between it is not held: the database may be another one afterwards.
    pub(super) fn try_alone(&mut self) -> Result<bool> {
        match self.file.unlock() {
            Err(error) if is_refused(&error) => return Ok(false),
            unlocked => unlocked.map_err(|e| failure(&self.path, e))?,
        }
        match self.file.try_lock() {
            Ok(()) if is_at(&self.file, &self.path) => return Ok(true),
            Ok(()) => self.file = open(&self.path)?,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failure(&self.path, error)),
        }
        self.share()?;
        Ok(false)
    }

    /// Holds it with others.
    pub(super) fn share(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.file.try_lock_shared() {
                // Whoever removed the database has removed this lock with it, and the next one has one of its own.
                Ok(()) if is_at(&self.file, &self.path) => return Ok(()),
                Ok(()) => self.file = open(&self.path)?,
                Err(TryLockError::WouldBlock) if begin.elapsed() < WAIT_MAX => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let text = format!("another run has held {} for long, to make the index", self.path.display());
                    return Err(Error::new(Kind::Busy, text).with_hint("see whether it is stopped, and run again"));
                }
                Err(TryLockError::Error(error)) if is_refused(&error) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(failure(&self.path, error)),
            }
        }
    }
}

/// True if the file system does not know such locks.
fn is_refused(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [Errno::NOSYS, Errno::NOLCK, Errno::OPNOTSUPP, Errno::INVAL];
    refusals.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn open(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|e| failure(path, e))
}

/// True if the open file is the one that has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let found = |metadata: std::io::Result<std::fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
    let opened = found(file.metadata());
    opened.is_some() && opened == found(std::fs::metadata(path))
}

fn failure(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("locking the index cache {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_alone_holds_it_alone_and_a_removed_lock_holds_nobody_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let mut one = Lock::shared(&path).expect("free");
        let two = Lock::shared(&path).expect("shared");
        assert!(!one.try_alone().expect("locks"));
        drop(two);
        assert!(one.try_alone().expect("locks"));
        std::fs::remove_file(&path).expect("removed");
        let mut three = Lock::shared(&path).expect("another one");
        assert!(!one.try_alone().expect("locks"), "it is not the lock that has the name");
        assert!(!three.try_alone().expect("locks"), "the other has found the new one");
        drop(one);
        assert!(three.try_alone().expect("locks"));
        three.share().expect("locks");
        drop(Lock::shared(&path).expect("shared again"));
    }
}
