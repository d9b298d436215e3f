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
mod packs;
mod records;
mod remembered;
mod schema;
mod sorter;
pub mod survey;
mod totals;

pub use build::Build;
pub use homes::{DeltaUse, Home};
pub use packs::KnownPack;
pub use records::RunRecord;
pub use totals::CodecTotals;

use super::pack::PackSummary;
use crate::error::{Error, Kind, Result};
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
    connection: Connection,
    /// The packs, and whether they are dead: that may be out of date, and only orders homes.
    packs_by_number: HashMap<i64, (PackId, bool)>,
    filter: levels::Held,
}

impl Inner {
    fn of(connection: Connection) -> Inner {
        Inner { connection, packs_by_number: HashMap::new(), filter: levels::Held::default() }
    }
}

impl Index {
    /// Opens the database of `repository` under `folder`, making it if there is none.
    pub fn open(folder: &Path, repository: RepositoryId) -> Result<Index> {
        let folder = folder.join(repository.to_hex());
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::io(format!("making the cache folder {}", folder.display()), e))?;
        let path = folder.join(DATABASE);
        let lock = Lock::shared(&folder.join(LOCK))?;
        let connection = schema::open(&path)?;
        Ok(Index { inner: Mutex::new(Inner::of(connection)), file_lock: Some(Mutex::new(lock)), path })
    }

    /// A database in memory, for when no folder can be written.
    pub fn in_memory() -> Result<Index> {
        let path = PathBuf::from(":memory:");
        let mut connection = Connection::open_in_memory().map_err(|e| sqlite_error(&path, e))?;
        schema::prepare(&mut connection, &path)?;
        Ok(Index { inner: Mutex::new(Inner::of(connection)), file_lock: None, path })
    }

    /// Removes the database of `repository` under `folder`: for when it is found corrupt.
    pub fn remove(folder: &Path, repository: RepositoryId) {
        let folder = folder.join(repository.to_hex());
        let extensions = ["sqlite3", "sqlite3-wal", "sqlite3-shm", "filter"];
        let beside = extensions.iter().map(|extension| Path::new(DATABASE).with_extension(extension));
        // The lock last: who waits for it finds nothing of the old database.
        for name in beside.chain([PathBuf::from(LOCK)]) {
            // One that cannot be removed cannot be opened either, and that is reported then.
            let _ = std::fs::remove_file(folder.join(name));
        }
    }

    /// The file of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the database is a file, and its lock is held.
    fn lock_held(&self) -> bool {
        self.file_lock.is_some()
    }

    /// Comes to hold the lock alone: see [`Lock::try_alone`].
    fn lock_alone(&self) -> Result<bool> {
        let Some(lock) = &self.file_lock else { return Ok(false) };
        lock.lock().unwrap_or_else(PoisonError::into_inner).try_alone()
    }

    fn share_lock(&self) -> Result<()> {
        let Some(lock) = &self.file_lock else { return Ok(()) };
        lock.lock().unwrap_or_else(PoisonError::into_inner).share()
    }

    /// Goes on with whatever database has the name now.
    fn reopen(&self) -> Result<()> {
        let connection = schema::open(&self.path)?;
        drop(self.replace_connection(connection));
        Ok(())
    }

    fn replace_connection(&self, connection: Connection) -> Connection {
        let mut inner = self.lock();
        std::mem::replace(&mut *inner, Inner::of(connection)).connection
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made change: SQLite rolls it back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let sql = |e| sqlite_error(&self.path, e);
        let tx = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        let value = work(&tx).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(value)
    }

    fn query<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.lock().connection).map_err(|e| sqlite_error(&self.path, e))
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
mod tests;
