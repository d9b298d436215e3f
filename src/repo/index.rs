//! The index: which chunk lies in which packs, in an SQLite database on this host.
//!
//! It is never the truth. Every row can be made again from index objects and packs, content is verified on every read,
//! and deleting the database at any moment costs time and nothing else. It lies on a local file system (the caller
//! chooses the folder), in WAL mode, so several runs on one host share it.
//!
//! A pack is *dead* when it is in a final list of a prune. As long as its file may still be there its rows stay, for a
//! restore that began before; they come last among the homes of a chunk, and nothing else goes by them.
//!
//! A pack is *listed* when some index object lists it. Packs of a run that was killed are known here but not listed;
//! whoever relies on one lists it in an index object of its own.

mod build;
mod filter;
mod homes;
mod kept_trees;
mod levels;
mod lock;
mod merge;
mod packs;
mod records;
mod remembered;
mod schema;
mod sorter;
mod standing;
pub mod survey;
mod totals;

pub use build::{Beginning, Build};
pub use homes::{DeltaUse, Home};
pub use packs::KnownPack;
pub use records::RunRecord;
pub use standing::Standing;
pub use totals::CodecTotals;

use super::pack::PackSummary;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, IndexId, PackId, RepositoryId};
use lock::Lock;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file of the database in the folder of its repository.
const DATABASE: &str = "index.sqlite3";
/// The file of its lock.
const LOCK: &str = "index.lock";

/// The database of one repository on this host.
pub struct Index {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// None for a database in memory.
    file_lock: Option<Mutex<Lock>>,
}

struct Inner {
    /// None while another database is put in the place of this one, when that has failed, and once it is removed.
    connection: Option<Connection>,
    /// The packs, and whether they are dead: that may be out of date, and only orders homes.
    packs_by_number: HashMap<i64, (PackId, bool)>,
    filter: levels::Held,
}

/// What a question needs of an open database.
struct Parts<'i> {
    connection: &'i mut Connection,
    packs_by_number: &'i mut HashMap<i64, (PackId, bool)>,
    filter: &'i mut levels::Held,
}

impl Inner {
    fn of(connection: Option<Connection>) -> Inner {
        Inner { connection, packs_by_number: HashMap::new(), filter: levels::Held::default() }
    }

    fn parts(&mut self) -> Result<Parts<'_>> {
        let Inner { connection, packs_by_number, filter } = self;
        let closed = || Error::new(Kind::Failed, "the index cache is closed").with_hint("run again");
        Ok(Parts { connection: connection.as_mut().ok_or_else(closed)?, packs_by_number, filter })
    }
}

impl Index {
    /// Opens the database of `repository` under `folder`, making it if there is none, and making it anew if it is no good.
    pub fn open(folder: &Path, repository: RepositoryId, observer: &dyn Observer) -> Result<Index> {
        let folder = folder.join(repository.to_hex());
        let path = folder.join(DATABASE);
        make_folder(&folder)?;
        let mut lock = Lock::shared(&folder.join(LOCK), observer)?;
        let (connection, _) = open_held(&mut lock, &path, observer)?;
        Ok(Index { inner: Mutex::new(Inner::of(Some(connection))), file_lock: Some(Mutex::new(lock)), path })
    }

    /// A database in memory, for when no folder can be written.
    pub fn in_memory() -> Result<Index> {
        let path = PathBuf::from(":memory:");
        let mut connection = Connection::open_in_memory().map_err(|e| sqlite_error(&path, e))?;
        schema::prepare(&mut connection, &path)?;
        Ok(Index { inner: Mutex::new(Inner::of(Some(connection))), file_lock: None, path })
    }

    /// Closes the database and removes it, unless another one has its name by now. Others that have it open go on with it;
    /// it is only no longer found.
    pub fn remove(&self) -> Result<()> {
        self.close();
        let Some(lock) = &self.file_lock else { return Ok(()) };
        remove_held(&lock.lock().unwrap_or_else(PoisonError::into_inner), &self.path)
    }

    /// The file of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closed by the last that has it open, a database takes its journal with it.
    fn close(&self) {
        *self.lock() = Inner::of(None);
    }

    /// Comes to hold the lock alone, or with others; true if alone. In any case the database that has the name then is
    /// opened: in between it may have been replaced.
    fn reopen_alone(&self, observer: &dyn Observer) -> Result<bool> {
        let Some(lock) = &self.file_lock else { return Ok(false) };
        self.close();
        let mut lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alone = lock.try_alone(observer)?;
        let (connection, is_remade) = open_held(&mut lock, &self.path, observer)?;
        *self.lock() = Inner::of(Some(connection));
        Ok(is_alone && !is_remade)
    }

    /// Goes on, with others, with whatever database has the name now.
    fn reopen_shared(&self, observer: &dyn Observer) -> Result<()> {
        let Some(lock) = &self.file_lock else { return Ok(()) };
        self.close();
        if let Some(folder) = self.path.parent() {
            make_folder(folder)?;
        }
        let mut lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.share(observer)?;
        *self.lock() = Inner::of(Some(open_held(&mut lock, &self.path, observer)?.0));
        Ok(())
    }

    /// True if the database is a file, which others may open.
    fn is_file(&self) -> bool {
        self.file_lock.is_some()
    }

    /// True if the database is a file whose lock still has its name: others find what is put in its place.
    fn is_found(&self) -> bool {
        let lock = self.file_lock.as_ref().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        lock.is_some_and(|lock| lock.has_its_name())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made change: SQLite rolls it back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let sql = |e| sqlite_error(&self.path, e);
        let Parts { connection, .. } = inner.parts()?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        let value = work(&tx).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(value)
    }

    fn query<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(self.lock().parts()?.connection).map_err(|e| sqlite_error(&self.path, e))
    }

    /// Adds packs and their chunks; with `index`, as listed by that index object.
    pub fn add_packs(&self, packs: &[PackSummary], index: Option<IndexId>) -> Result<()> {
        let tables = packs.iter().map(PackSummary::frames).collect::<Result<Vec<_>>>()?;
        self.change(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO recent(id, pack, frame, stored, raw, at, bytes, codec, bases)
                 VALUES(?,?,?,?,?,?,?,?,?)",
            )?;
            for (pack, frames) in packs.iter().zip(&tables) {
                let (number, is_new) = packs::add(tx, pack)?;
                if let Some(index) = index {
                    packs::list(tx, index, number)?;
                }
                if !is_new {
                    continue;
                }
                homes::add_bases(tx, number, frames)?;
                let mut rows: Vec<_> = frames.iter().flat_map(|f| with_positions(f).map(move |c| (c, f))).collect();
                // In key order, neighbouring rows go to neighbouring pages.
                rows.sort_unstable_by_key(|((id, _, _), _)| *id);
                levels::count_recent(tx, rows.len())?;
                for ((id, at, bytes), frame) in rows {
                    let offset = i64::try_from(frame.offset).unwrap_or(i64::MAX);
                    insert.execute(params![
                        id.as_bytes(),
                        number,
                        offset,
                        frame.stored_bytes,
                        frame.raw_bytes,
                        at,
                        bytes,
                        frame.codec,
                        u8::try_from(frame.bases.len()).unwrap_or(u8::MAX)
                    ])?;
                }
            }
            Ok(())
        })
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(format!("making the cache folder {}", folder.display()), e))
}

/// Opens the database that belongs to a lock. One that is no good is removed with its lock and made anew, under another lock,
/// which is shared: true if so.
fn open_held(lock: &mut Lock, path: &Path, observer: &dyn Observer) -> Result<(Connection, bool)> {
    let mut is_remade = false;
    loop {
        let gate = lock.gate_to_open()?;
        // Another lock means another database: to be opened under that one.
        if lock.has_its_name() {
            match schema::open(path) {
                Err(error) if error.kind() == Kind::Damaged && !is_remade => {
                    let text = format!("the index cache cannot be used and is made anew ({error})");
                    observer.on_event(&Event::Warning { text: &text });
                }
                opened => return Ok((opened?, is_remade)),
            }
        }
        drop(gate);
        is_remade = true;
        remove_held(lock, path)?;
        lock.share(observer)?;
    }
}

/// Removes the database that belongs to a lock, and the lock; nothing if it has been removed before.
fn remove_held(lock: &Lock, path: &Path) -> Result<()> {
    let _gate = lock.gate_to_remove()?;
    if !lock.has_its_name() {
        return Ok(());
    }
    for extension in ["sqlite3", "sqlite3-wal", "sqlite3-shm", "filter"] {
        remove_if_there(&path.with_extension(extension))?;
    }
    // Last: killed before, the pair is still one.
    remove_if_there(&path.with_file_name(LOCK))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing the index cache {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn with_positions(frame: &super::pack_table::FrameRecord) -> impl Iterator<Item = (ChunkId, u32, u32)> + '_ {
    frame.chunks.iter().scan(0u32, |at, &(id, bytes)| {
        let here = *at;
        *at = at.checked_add(bytes)?;
        Some((id, here, bytes))
    })
}

fn blobs(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// Corruption becomes [`Kind::Damaged`], so that the caller can make the database anew.
fn sqlite_error(path: &Path, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => Kind::Damaged,
        Some(rusqlite::ErrorCode::DiskFull) => Kind::NoSpace,
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Kind::Busy,
        Some(rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::ReadOnly) => Kind::Denied,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("the index cache {}", path.display()))
        .with_source(error)
        .with_hint("it can be deleted at any time: the next run makes it anew")
}

#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod tests;
