//! Who has the database of a repository open on this host.
//!
//! Every run that has it open holds the lock file beside it, shared; whoever puts another database in its place holds it
//! alone. SQLite keeps changes apart by itself: this is only about the file as a whole. A killed run holds nothing.
//!
//! The lock file goes with the database ([`super::Index::remove`]): who goes on with a removed one disturbs nobody. So a
//! lock counts only as long as it has its name. Beside it there is a *gate*, which keeps its name: whoever opens the database
//! or removes it, with its lock, holds the gate for that moment, so that nobody opens one half of an old pair.
//!
//! Where files cannot be locked so, nobody ever holds anything alone, and all go on as if they held it with others.

use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a run waits for another one that makes the database: at worst as long as that takes.
const WAIT_MAX: Duration = Duration::from_secs(900);
/// Whoever waits longer says for what.
const SILENT_MAX: Duration = Duration::from_secs(1);
/// How long who would be alone holds nothing: of several that would be, one comes to be.
const ALONE_WAIT_MAX: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(10);

/// A lock that is held.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Holds the lock at `path` with all others that read and write the database.
    pub(super) fn shared(path: &Path, observer: &dyn Observer) -> Result<Lock> {
        let mut lock = Lock { path: path.to_owned(), file: open(path)? };
        lock.share(observer)?;
        Ok(lock)
    }

    /// Comes to hold it alone, if nobody else holds it; true if so. Otherwise, after whatever the others did, it is shared
    /// again. In between it is not held: the database may be another one afterwards, so it must not be open.
    pub(super) fn try_alone(&mut self, observer: &dyn Observer) -> Result<bool> {
        match self.file.unlock() {
            Err(error) if is_refused(&error) => return Ok(false),
            unlocked => unlocked.map_err(|e| failure(&self.path, e))?,
        }
        let begin = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) if self.has_its_name() => return Ok(true),
                Ok(()) => self.file = open(&self.path)?,
                Err(TryLockError::WouldBlock) if begin.elapsed() < ALONE_WAIT_MAX => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) if is_refused(&error) => break,
                Err(TryLockError::Error(error)) => return Err(failure(&self.path, error)),
            }
        }
        self.share(observer)?;
        Ok(false)
    }

    /// Holds it with others.
    pub(super) fn share(&mut self, observer: &dyn Observer) -> Result<()> {
        let begin = Instant::now();
        let mut is_told = false;
        loop {
            match self.file.try_lock_shared() {
                // Whoever removed the database has removed this lock with it, and the next one has one of its own.
                Ok(()) if self.has_its_name() => return Ok(()),
                Ok(()) => self.file = open(&self.path)?,
                Err(TryLockError::WouldBlock) if begin.elapsed() < WAIT_MAX => {
                    if observer.is_interrupted() {
                        return Err(Error::new(Kind::Interrupted, "interrupted while another run makes the index"));
                    }
                    if !is_told && begin.elapsed() > SILENT_MAX {
                        is_told = true;
                        let name = "waiting for another run to make the index";
                        observer.on_event(&Event::Phase { name, bytes_total: None, files_total: None });
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let text = format!("another run has held {} for long, to make the index", self.path.display());
                    return Err(Error::new(Kind::Busy, text).with_hint("see whether it is stopped, and run again"));
                }
                Err(TryLockError::Error(error)) if is_refused(&error) => {
                    if !self.has_its_name() {
                        self.file = open(&self.path)?;
                    }
                    return Ok(());
                }
                Err(TryLockError::Error(error)) => return Err(failure(&self.path, error)),
            }
        }
    }

    /// True as long as nobody has removed it, and with it the database.
    pub(super) fn has_its_name(&self) -> bool {
        is_at(&self.file, &self.path)
    }

    /// Holds the gate with others that open the database.
    pub(super) fn gate_to_open(&self) -> Result<Gate> {
        self.gate(File::lock_shared)
    }

    /// Holds the gate alone: nobody opens or removes the database.
    pub(super) fn gate_to_remove(&self) -> Result<Gate> {
        self.gate(File::lock)
    }

    /// It is held for moments only, so this does not ask whether to go on.
    fn gate(&self, hold: impl Fn(&File) -> std::io::Result<()>) -> Result<Gate> {
        let path = self.path.with_extension("gate");
        let file = open(&path)?;
        match hold(&file) {
            Err(error) if !is_refused(&error) => Err(failure(&path, error)),
            _ => Ok(Gate { _file: file }),
        }
    }
}

/// The gate, held until this is dropped.
pub(super) struct Gate {
    _file: File,
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
pub(super) fn is_at(file: &File, path: &Path) -> bool {
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
    use crate::events::Silent;
    use std::sync::Mutex;

    #[test]
    fn only_who_is_alone_holds_it_alone_and_a_removed_lock_holds_nobody_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let mut one = Lock::shared(&path, &Silent).expect("free");
        let two = Lock::shared(&path, &Silent).expect("shared");
        assert!(!one.try_alone(&Silent).expect("locks"));
        drop(two);
        assert!(one.try_alone(&Silent).expect("locks"));
        std::fs::remove_file(&path).expect("removed");
        assert!(!one.has_its_name());
        let mut three = Lock::shared(&path, &Silent).expect("another one");
        assert!(!one.try_alone(&Silent).expect("locks"), "it is not the lock that has the name");
        assert!(!three.try_alone(&Silent).expect("locks"), "the other has found the new one");
        drop(one);
        assert!(three.try_alone(&Silent).expect("locks"));
        three.share(&Silent).expect("locks");
        drop(Lock::shared(&path, &Silent).expect("shared again"));
    }

    #[test]
    fn of_two_that_would_be_alone_one_comes_to_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let locks = [(); 2].map(|()| Lock::shared(&path, &Silent).expect("shared"));
        let both = std::sync::Barrier::new(2);
        let alone = std::thread::scope(|scope| {
            let both = &both;
            let runs = locks.map(|mut lock| {
                scope.spawn(move || {
                    both.wait();
                    lock.try_alone(&Silent).expect("locks")
                })
            });
            runs.map(|run| run.join().expect("no panic"))
        });
        assert!(alone.contains(&true), "{alone:?}");
    }

    /// What a run that waits says; it is interrupted once it has said something.
    #[derive(Default)]
    struct Impatient(Mutex<Vec<String>>);

    impl Observer for Impatient {
        fn on_event(&self, event: &Event<'_>) {
            self.0.lock().expect("no panic").push(format!("{event:?}"));
        }

        fn is_interrupted(&self) -> bool {
            !self.0.lock().expect("no panic").is_empty()
        }
    }

    #[test]
    fn waiting_says_for_what_and_can_be_interrupted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let mut alone = Lock::shared(&path, &Silent).expect("free");
        assert!(alone.try_alone(&Silent).expect("locks"));
        let waiting = Impatient::default();
        let error = Lock::shared(&path, &waiting).err().expect("held");
        assert_eq!(error.kind(), Kind::Interrupted);
        let told = waiting.0.into_inner().expect("no panic");
        assert!(told.len() == 1 && told[0].contains("waiting for another run"), "{told:?}");
    }
}
